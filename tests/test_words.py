"""The field's words, in American spelling: no private pictures in names, messages, docstrings, comments or pages."""

import pathlib
import re

import pytest

PROJECT = pathlib.Path(__file__).parent.parent
PATTERNS = ("*.md", "*.toml", "Makefile", "mkdocs.yml", "tfopt/**/*.py", "docs/*.md", "docs/*.py", "examples/**/*.py",
            "examples/notebooks/*.ipynb", "benchmarks/**/*.py", "tests/*.py")
FILES = sorted({path for pattern in PATTERNS for path in PROJECT.glob(pattern)} - {pathlib.Path(__file__)})

# word: what the field says
INSTEAD = {
    r"answer(s|ed|ing)?": "outputs, logits, predictions, reply",
    r"remember(s|ed|ing)?": "cache, save, keep",
    r"ladders?": "stages",
    r"twins?": "counterpart",
    r"mend(s|ed|ing)?": "patch, fix, correct",
    r"untuned": "without autotune",
    r"(house|door|shelf|shelves|attic|cellar)s?": "layer, module, file, folder",
    r"climb(s|ed|ing)?": "run, stage",
    r"taught|teach(es|ing)?": "trained, distilled",
    r"pupils?": "student",
    r"in silence": "silently",
    # American spelling
    r"\w*(quanti|optimi|normali|regulari|synchroni|seriali|initiali|generali|recogni|summari|standardi|equali|visuali"
    r"|minimi|maximi|speciali|organi|factori|vectori|tokeni|parallelli|parameteri|penali|randomi|utili|categori|emphasi"
    r"|apologi|characteri|discreti|locali|materiali|memori|neutrali|prioriti|reali|stabili|symboli)s(e|ed|es|er|ers|ing"
    r"|ation|ations)": "-ize",
    r"\w*(colou?r(?<!color)|neighbour|behaviour|favour|honour|labour)\w*": "-or",
    r"\w*(analys|catalys|paralys)(e|ed|es|ing)": "-yze",
    r"cent(re|res|red|ring)": "center",
    r"grey\w*": "gray",
    r"distil|distils": "distill",
    r"\w*(labell|modell|cancell|travell|signall|channell)(ed|ing|er)": "one l",
    r"(metre|metres|licence|programme|artefact|artefacts|whilst|learnt|judgement)": "American spelling",
}
WORDS = {re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])", re.IGNORECASE): right for pattern, right in INSTEAD.items()}
ALLOWED: dict[str, set[str]] = {}                         # file: words that are other people's names


def words_in(text):
    """(word, what to say instead) in a text; parts of snake_case names count as words."""
    text = re.sub(r"https?://\S+", "", text.replace("_", " "))
    return [(found[0], right) for word, right in WORDS.items() for found in word.finditer(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_words_are_those_of_the_field(path):
    found = [(word, right) for word, right in words_in(path.read_text()) if word not in ALLOWED.get(path.name, ())]
    assert not found


@pytest.mark.parametrize("text", ["the teacher answers", "REMEMBERED", "quantise_model", "its twin", "fake-quantised",
                                  "the colour"])
def test_a_word_of_our_own_is_found(text):
    assert words_in(text)


@pytest.mark.parametrize("text", ["", "recommended", "customers", "quantized", "distilled", "color", "models", "noise",
                                  "otherwise"])
def test_plain_words_pass(text):
    assert not words_in(text)
