"""What the documents show runs, what they link to exists, and their tables are those of the modules."""

import importlib.util
import pathlib
import re

import pandas as pd
import pytest

import tfopt

PROJECT = pathlib.Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(path):
    return str(path.relative_to(PROJECT))


@pytest.mark.slow
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


TEMPLATE = ["What", "Usage", "Recommended settings", "Results", "Pitfalls", "Works with", "References"]
CARDS = [path for path in PAGES if path.stem in tfopt.__all__]


def test_every_module_has_a_card():
    assert {path.stem for path in CARDS} == set(tfopt.__all__)


@pytest.mark.parametrize("path", CARDS, ids=name)
def test_cards_follow_the_template(path):
    """The site adds "API", made from the docstrings, before the references."""
    found = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
    assert found == [part for part in TEMPLATE if part in found]
    assert {"What", "Usage", "Pitfalls", "Works with"} <= set(found)


def test_the_readme_is_short():
    code = BLOCK.findall((PROJECT / "README.md").read_text())
    assert sum(bool(line.strip()) for block in code for line in block.splitlines()) <= 13


# What is quoted as measured stands in docs/measured

MEASURED = PROJECT / "docs" / "measured"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")


def claims(text):
    """The numbers with a decimal point in what a page says was measured: its results, or the caption of its picture."""
    parts = re.findall(r"^## Results\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    parts += re.findall(r"^\*`python examples/.*?\*$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`]*`", "", "\n".join(parts))                    # code is settings
    return [number for number in NUMBER.findall(prose) if "." in number], parts


def sources(parts):
    """The files of docs/measured that the text names, with the script or by themselves; bench.txt by section."""
    text = "\n".join(parts)
    bench = (MEASURED / "bench.txt").read_text().split("\n## ")
    named = set(re.findall(r"docs/measured/(\w+)", text)) | set(re.findall(r"benchmarks/verify/(\w+)", text))
    named |= set(re.findall(r"examples/(\w+)", text))
    sections = set(re.findall(r"benchmarks/(\w+)\.py", text))
    return ([path for path in sorted(MEASURED.glob("*.csv")) if any(map(path.stem.startswith, named))]
            + [part for part in bench if part.split()[0] in sections])


def pool(places):
    """Every number of the sources, means and standard deviations over seeds, and the same in %, thousands, millions."""
    numbers = set()
    for source in places:
        if isinstance(source, pathlib.Path):
            values = pd.read_csv(source).drop(columns=["seed", "way"], errors="ignore")
            keys = [key for key in values if not pd.api.types.is_numeric_dtype(values[key])]
            groups = values.groupby(keys, sort=False, dropna=False) if keys else values.groupby(lambda row: 0)
            found = [getattr(groups, way)(numeric_only=True) for way in ("mean", "std", "max")]
            for figures in (*found, values.select_dtypes("number")):
                numbers |= {float(figure) for figure in figures.to_numpy().ravel() if figure == figure}
        else:
            written = re.findall(r"\d[\d,]*\.?\d*(?:e[-+]?\d+)?", source)
            numbers |= {float(number.replace(",", "")) for number in written}
    return [abs(number) * unit for number in numbers for unit in (1, 100, 1e-3, 1e-6)]


def unquoted(text):
    """The claims of a page that no source bears out, at the precision they are written with."""
    numbers, parts = claims(text)
    known = pool(sources(parts))

    def borne_out(written):
        digits = written.replace(",", "").split("e")[0].partition(".")[2]
        value = float(written.replace(",", ""))
        unit = 10.0 ** (-len(digits) + (int(written.split("e")[1]) if "e" in written else 0))
        return any(abs(number - value) <= 0.501 * unit for number in known)

    return [number for number in numbers if not borne_out(number)]


@pytest.mark.parametrize("path", [path for path in PAGES if claims(path.read_text())[0]], ids=name)
def test_measured_numbers_are_in_the_results(path):
    assert not unquoted(path.read_text())


def test_an_invented_number_is_found():
    """Negative control."""
    text = (PROJECT / "docs" / "shrink.md").read_text()
    assert unquoted(text.replace("## Results\n", "## Results\n\nIt is 93.71 times faster.\n")) == ["93.71"]
