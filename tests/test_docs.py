"""What the documents show runs, what they link to exists, and their tables are those of the modules."""

import importlib.util
import pathlib
import re

import pytest

PROJECT = pathlib.Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(path):
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", [path for path in PAGES if BLOCK.search(path.read_text())], ids=name)
def test_blocks_run(path, run_python):
    """All blocks of a page, in order, in one process; a line keeps its number in the page."""
    text = path.read_text()
    kept = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        lines = block[1].splitlines()
        kept[first:first + len(lines)] = lines
    run_python("\n".join(kept), TF_CPP_MIN_LOG_LEVEL="3", TQDM_DISABLE="1")


@pytest.mark.parametrize("path", [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_the_readme_lists_the_modules():
    """`python docs/hooks.py` writes the table."""
    spec = importlib.util.spec_from_file_location("hooks", PROJECT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (PROJECT / "README.md").read_text()
    assert text == hooks.readme(text)
    assert all(hooks.modules().values()), "every module says in its first line what it is"


def test_the_readme_is_short():
    code = BLOCK.findall((PROJECT / "README.md").read_text())
    assert sum(bool(line.strip()) for block in code for line in block.splitlines()) <= 13
