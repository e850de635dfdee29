"""The public names are annotated, and the annotations hold."""

import importlib
import inspect
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import tfopt


def pyright(folder, *arguments):
    """The report of basedpyright on the package that is imported here, as it is in a project without settings.

    `--verifytypes` takes no `--pythonpath`: it asks the `python` that the PATH has first for the libraries.
    """
    command = [sys.executable, "-P", "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", *arguments]
    where = pathlib.Path(tfopt.__file__).parents[1]
    done = subprocess.run(command, text=True, capture_output=True, cwd=folder,
                          env={**os.environ, "PYTHONPATH": str(where), "PATH": os.pathsep.join(
                              [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])})
    return json.loads(done.stdout)


def unknown(report):
    return [symbol["name"] for symbol in report["typeCompleteness"]["symbols"]
            if symbol["isExported"] and not symbol["isTypeKnown"]]


def test_public_names_are_annotated(tmp_path):
    report = pyright(tmp_path, "--verifytypes", "tfopt", "--ignoreexternal")
    assert report["typeCompleteness"]["exportedSymbolCounts"]["withKnownType"] > 100
    # What is left are the callbacks: Keras tells checkers no types, and so none of the class they are derived from.
    assert not [name for name in unknown(report) if not is_callback(name)]
    assert report["typeCompleteness"]["completenessScore"] >= 0.95


def is_callback(name):
    module, _, name = name.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return inspect.isclass(kind) and issubclass(kind, keras.callbacks.Callback)


def public_callables():
    """(name, function) of all public functions, of constructors, and of the public methods that a class defines."""
    for module in tfopt.__all__:
        for name in (listed := importlib.import_module(f"tfopt.{module}")).__all__:
            thing = getattr(listed, name)
            if not getattr(thing, "__module__", "").startswith("tfopt"):
                continue
            if not inspect.isclass(thing):
                yield f"{module}.{name}", thing
                continue
            for method, value in vars(thing).items():
                value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if inspect.isfunction(value) and (method in ("__init__", "__call__") or not method.startswith("_")):
                    yield f"{module}.{name}.{method}", value


def missing(function):
    """What a function leaves without annotation: parameters, "return"."""
    signature = inspect.signature(function)
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    return bare + ["return"] * (signature.return_annotation is signature.empty and function.__name__ != "__init__")


@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in public_callables()
                                      if inspect.isfunction(function)])
def test_every_parameter_is_annotated(function):
    assert not missing(function)


def test_a_bare_parameter_is_found():
    """Negative control."""
    def made(a: int, b, *, c=1) -> None: ...
    assert missing(made) == ["b", "c"]
