"""The rules of the house: which file may import what, how long a file may be, what importing costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tfopt

ROOM = pathlib.Path(tfopt.__file__).parent
PROJECT = pathlib.Path(__file__).parent.parent
FLOOR = {"_check": 0.0, "_files": 0.1, "_plots": 0.2, "_keras": 0.3, "_models": 1.0, "_bridge": 1.1, "_toolkit": 1.2,
         "report": 3.0, "tune": 3.1, "compress": 3.2, "__init__": 4}     # everything else is a technique: floor 2
ONLY = {"tensorflow_model_optimization": {"_toolkit"}, "tf_keras": {"_bridge", "_toolkit"}, "keras_tuner": {"tune"},
        "optuna": {"tune"}}
FILES = sorted(ROOM.rglob("*.py"))
SCRIPTS = [path for room in ("examples", "benchmarks") for path in sorted((PROJECT / room).rglob("*.py"))]


def module_of(path):
    """`distill` for distill.py and for every file of distill/."""
    return path.relative_to(ROOM).parts[0].removesuffix(".py")


def imports(path):
    """(top name, first name inside tfopt or None) of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(ROOM).parts) if ROOM in path.parents else 0
            if node.level == depth and node.level:                      # from .. up to the room itself
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                yield from (("tfopt", name) for name in names)
            elif node.module == "tfopt":
                yield from (("tfopt", alias.name) for alias in node.names)
            elif node.level == 0:
                yield node.module, node.module.split(".")[1] if node.module.startswith("tfopt.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOM)))
def test_imports_run_down_the_floors(path):
    here = module_of(path)
    for name, inside in imports(path):
        if inside and inside != here and here != "__init__":
            assert FLOOR.get(inside, 2) < FLOOR.get(here, 2), f"{here} imports {inside}"
        top = name.split(".")[0]
        assert here in ONLY.get(top, {here}), f"{here} imports {top}"
        assert not name.startswith("keras.src") or here == "_keras", "private Keras names belong in _keras"


def test_the_rule_sees_a_break(tmp_path, monkeypatch):
    """Negative control: a technique that imports its sibling is found."""
    monkeypatch.setitem(globals(), "ROOM", tmp_path)
    path = tmp_path / "prune.py"
    path.write_text("from . import cluster\nfrom ._check import require\nimport tf_keras.layers\n")
    assert list(imports(path)) == [("tfopt", "cluster"), ("tfopt", "_check"), ("tf_keras.layers", None)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOM)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 620


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_examples_and_benchmarks_use_public_names(path):
    for name, inside in imports(path):
        assert not (inside or "").startswith("_"), f"{path.name} imports {name}"


def test_importing_tfopt_is_light():
    program = ("import time; start = time.perf_counter(); import tfopt; spent = time.perf_counter() - start; "
               "import sys; assert spent < 0.1, spent; "
               "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_techniques_load_neither_tfmot_nor_keras_tuner():
    program = ("import sys; from tfopt import distill, schedules, regularizers, report; "
               "assert not {'tensorflow_model_optimization', 'keras_tuner', 'tf_keras'} & set(sys.modules)")
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


@pytest.mark.parametrize(("variable", "value", "word"), [("TF_USE_LEGACY_KERAS", "1", "Keras 2"),
                                                         ("KERAS_BACKEND", "jax", "another backend")])
def test_a_wrong_environment_is_refused_in_one_sentence(run_python, variable, value, word):
    done = run_python("import tfopt.schedules", check=False, fork=False, **{variable: value})
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tfopt works with Keras")
    assert word in last
    assert f"{variable}={value!r}" in last


def test_an_unknown_module_is_refused():
    with pytest.raises(AttributeError, match="tfopt has the modules"):
        tfopt.utils  # noqa: B018
