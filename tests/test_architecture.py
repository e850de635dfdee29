"""The rules of the architecture: which file may import what, how long a file may be, what importing costs."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import tfopt

PACKAGE = pathlib.Path(tfopt.__file__).parent
PROJECT = pathlib.Path(__file__).parent.parent
LAYER = {"_check": 0.0, "_files": 0.1, "_tables": 0.1, "_speed": 0.1, "_keras": 0.2, "_typing": 0.3, "_plots": 0.3,
         "_models": 1.0, "_data": 1.1, "_toolkit": 1.3, "_litert": 1.3,
         "callbacks": 2.1, "report": 3.0, "tune": 3.1, "compress": 3.2, "__init__": 4}     # all other modules: layer 2
PRIVATE = {"_keras", "_toolkit"}                           # where Keras' and TensorFlow's private names may be used
ONLY = {"tensorflow_model_optimization": {"_toolkit"}, "tf_keras": set(), "keras_tuner": {"tune"},
        "optuna": {"tune"}}
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [path for folder in ("examples", "benchmarks") for path in sorted((PROJECT / folder).rglob("*.py"))]


def module_of(path):
    """`distill` for distill.py and for every file of distill/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(top name, first name inside tfopt or None) of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(PACKAGE).parts) if PACKAGE in path.parents else 0
            if node.level == depth and node.level:                      # from .. up to the package itself
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                yield from (("tfopt", name) for name in names)
            elif node.module == "tfopt":
                yield from (("tfopt", alias.name) for alias in node.names)
            elif node.level == 0:
                yield node.module, node.module.split(".")[1] if node.module.startswith("tfopt.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_layers(path):
    here = module_of(path)
    for name, inside in imports(path):
        if inside and inside != here and here != "__init__":
            assert LAYER.get(inside, 2) < LAYER.get(here, 2), f"{here} imports {inside}"
        top = name.split(".")[0]
        assert here in ONLY.get(top, {here}), f"{here} imports {top}"
        private = name.startswith(("keras.src", "tensorflow.python", "tensorflow.lite.python"))
        assert not private or here in PRIVATE, f"{here} imports {name}; private names belong in {', '.join(PRIVATE)}"


def test_the_rule_sees_a_break(tmp_path, monkeypatch):
    """Negative control: a module of layer 2 that imports its sibling is found."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "prune.py"
    path.write_text("from . import cluster\nfrom ._check import require\nimport tf_keras.layers\n")
    assert list(imports(path)) == [("tfopt", "cluster"), ("tfopt", "_check"), ("tf_keras.layers", None)]


def private_names(source):
    """(names with one leading underscore that are defined, {those that are asked of an object: lines})."""
    defined, used = set(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.alias):
            defined.add(node.asname or node.name)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            used.setdefault(node.attr, []).append(node.lineno)
            if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                defined.add(node.attr)
    return defined, used


NAMED_TUPLE = {"_replace", "_fields", "_asdict"}          # public names, with an underscore against collisions
OWN = NAMED_TUPLE.union(*(private_names(path.read_text())[0] for path in FILES)) | {path.stem for path in FILES}


@pytest.mark.parametrize("path", [path for path in FILES if module_of(path) not in PRIVATE],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_attributes_are_our_own(path):
    """KerasTuner's oracles are extended by subclassing, through names with an underscore."""
    if path.name != "_oracles.py":
        assert not {name: lines for name, lines in private_names(path.read_text())[1].items() if name not in OWN}


def test_a_private_attribute_of_another_library_is_found():
    """Negative control."""
    _, used = private_names("self._mine = 1\nmodel._compile_loss(y)\n")
    assert set(used) - OWN >= {"_compile_loss"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 600


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_examples_and_benchmarks_use_public_names(path):
    for name, inside in imports(path):
        assert not (inside or "").startswith("_"), f"{path.name} imports {name}"


@pytest.mark.parametrize("name", tfopt.__all__)
def test_completion_lists_the_public_names_and_nothing_else(name):
    module = importlib.import_module(f"tfopt.{name}")
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


def test_importing_tfopt_is_light():
    program = ("import time; start = time.process_time(); import tfopt; spent = time.process_time() - start; "
               "import sys; assert spent < 0.1, spent; "
               "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_the_modules_load_neither_tfmot_nor_keras_tuner():
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
