"""What holds for every public object: documented, small signature, examples that run, saved and loaded."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil

import keras
import pytest

import tfopt

MODULES = [importlib.import_module(f"tfopt.{name}") for name in tfopt.__all__]
PUBLIC = [(f"{module.__name__.removeprefix('tfopt.')}.{name}", getattr(module, name))
          for module in MODULES for name in module.__all__]
OURS = [pytest.param(thing, id=name) for name, thing in PUBLIC
        if getattr(thing, "__module__", "").startswith("tfopt") and callable(thing)]


def parameters(thing):
    return [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]


@pytest.mark.parametrize("thing", OURS)
def test_documented(thing):
    text = inspect.getdoc(thing) or ""
    assert text.splitlines()[0].endswith(".")
    assert ">>>" in text, "an example that runs"
    for parameter in parameters(thing):
        if parameter.name not in ("args", "kwargs"):
            assert f"{parameter.name}:" in text or f"{parameter.name}," in text, f"{parameter.name} is not explained"


@pytest.mark.parametrize("thing", [case for case in OURS if not dataclasses.is_dataclass(case.values[0])])
def test_small_signature(thing):
    given = parameters(thing)
    most = 11 if thing is tfopt.data.image_folder else 10        # what files from outside may do is said by arguments
    assert sum(p.name not in ("name", "dtype") for p in given) <= most
    for parameter in given:
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD or issubclass_of_keras(thing), "**kwargs"
        assert not isinstance(parameter.default, list | dict | set), "a mutable default"


def issubclass_of_keras(thing):
    return inspect.isclass(thing) and issubclass(thing, keras.layers.Layer)


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(tfopt.__path__, "tfopt."):
        if not info.name.endswith("__main__"):
            yield from (test for test in finder.find(importlib.import_module(info.name)) if test.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda test: test.name)
def test_example_in_docstring(example):
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
                                   | doctest.IGNORE_EXCEPTION_DETAIL)
    problems = []
    runner.run(example, out=problems.append)
    assert not problems, "".join(problems)
