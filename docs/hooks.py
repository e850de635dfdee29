"""What the site and the README make by themselves: table of modules, navigation, reference, measured tables.

    python docs/hooks.py        writes the table into README.md
"""

import ast
import csv
import pathlib
import re

try:
    from mkdocs.plugins import event_priority
    from mkdocs.structure.files import File
except ImportError:                                       # only the README's table is wanted
    def event_priority(_):
        return lambda function: function

PROJECT = pathlib.Path(__file__).parent.parent
ROOT = [name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md") if (PROJECT / name).exists()]
NOTEBOOKS = sorted((PROJECT / "examples" / "notebooks").glob("*.ipynb"))
START, END = "<!-- modules -->", "<!-- /modules -->"


def modules():
    """{name: first line of its docstring}, read without importing anything."""
    tree = ast.parse((PROJECT / "tfopt" / "__init__.py").read_text())
    names = next(ast.literal_eval(node.value) for node in tree.body
                 if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    files = {name: next(path for path in (PROJECT / "tfopt" / f"{name}.py", PROJECT / "tfopt" / name / "__init__.py")
                        if path.exists()) for name in sorted(names)}
    return {name: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for name, path in files.items()}


def table(folder=""):
    """Markdown table of the modules; the names link to their cards in `folder`."""
    cards = {path.stem for path in (PROJECT / "docs").glob("*.md")}
    rows = [f"| {f'[`{name}`]({folder}{name}.md)' if name in cards else f'`{name}`'} | {line} |"
            for name, line in modules().items()]
    return "\n".join(["| module | |", "|---|---|", *rows])


def measured(match):
    """Markdown table of a file in docs/measured, in place of `<!-- rows: name -->`."""
    with open(PROJECT / "docs" / "measured" / f"{match[1]}.csv") as file:
        head, *body = csv.reader(file)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def benched(match):
    """What a script of benchmarks/ printed, in place of `<!-- bench: name -->`."""
    section = (PROJECT / "docs" / "measured" / "bench.txt").read_text().split(f"\n## {match[1]} ")[1].split("\n## ")[0]
    return f"```text\n{section.split(chr(10), 1)[1].strip()}\n```"


def readme(text):
    """The README with its table renewed."""
    before, rest = text.split(START)
    return f"{before}{START}\n{table('docs/')}\n{END}{rest.split(END)[1]}"


def version():
    return re.search(r'__version__ = "(.*)"', (PROJECT / "tfopt" / "__init__.py").read_text())[1]


def on_config(config):
    config.site_name = f"tfopt {version()}"
    cards = sorted(path.stem for path in (PROJECT / "docs").glob("*.md"))
    known = [name for name in modules() if name in cards]
    others = [name for name in cards if name not in {*known, "index", "install"}]
    config.nav = [{"Home": "index.md"}, {"Install": "install.md"},
                  {"Modules": [{name: f"{name}.md"} for name in known]},
                  {"Notebooks": [{path.stem.replace("_", " "): f"notebooks/{path.name}"} for path in NOTEBOOKS]},
                  {"More": [*({name.replace("_", " "): f"{name}.md"} for name in others),
                            *({name.removesuffix(".md").capitalize(): name} for name in ROOT)]}]
    return config


@event_priority(100)                                       # before the plugin that renders notebooks looks for them
def on_files(files, config):
    for path in NOTEBOOKS:
        files.append(File(f"notebooks/{path.name}", str(path.parents[1]), config.site_dir, config.use_directory_urls))
    for name in ROOT:
        files.append(File(name, str(PROJECT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, **_):
    name = page.file.src_path.removesuffix(".md")
    markdown = re.sub(r"<!-- rows: (\w+) -->", measured, markdown)
    markdown = re.sub(r"<!-- bench: (\w+) -->", benched, markdown)
    if name == "index":
        return markdown.replace(START, table())
    if name not in modules():
        return markdown
    card, references, papers = markdown.partition("\n## References\n")
    return f"{card}\n\n## API\n\n::: tfopt.{name}\n{references}{papers}"


if __name__ == "__main__":
    path = PROJECT / "README.md"
    path.write_text(readme(path.read_text()))
