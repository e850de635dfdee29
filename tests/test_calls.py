"""Examples, notebooks and benchmarks call what exists, with arguments that exist; also the long ones."""

import ast
import importlib
import inspect
import json
import pathlib

import pytest

import tfopt

PROJECT = pathlib.Path(__file__).parent.parent
SCRIPTS = [path for folder in ("examples", "benchmarks") for ending in ("py", "ipynb")
           for path in sorted((PROJECT / folder).rglob(f"*.{ending}"))]


def source_of(path):
    if path.suffix == ".py":
        return path.read_text()
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells)


def misfit(function, call):
    """Why a call does not fit a signature, or None."""
    starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if starred else signature.bind)(
            *[a for a in call.args if not isinstance(a, ast.Starred)], **{k.arg: k for k in call.keywords if k.arg})
    except TypeError as error:
        return str(error)
    return None


def wrong_calls(source):
    """[(line, what, why)] of the uses of tfopt's modules that do not fit."""
    tree = ast.parse(source)
    modules = {alias.asname or alias.name: importlib.import_module(f"tfopt.{alias.name}") for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom) and node.module == "tfopt" for alias in node.names}
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules):
            continue
        thing = getattr(modules[node.value.id], node.attr, None)
        why = "no such name" if thing is None else None
        if id(node) in calls and getattr(thing, "__module__", "").startswith("tfopt"):
            why = misfit(thing, calls[id(node)])
        if why:
            found.append((node.lineno, ast.unparse(node), why))
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_calls_fit_the_signatures(path):
    assert not wrong_calls(source_of(path))


def test_calls_that_do_not_fit_are_found():
    """Negative control."""
    source = ("from tfopt import prune, schedules as s\n"
              "prune.wrap(m, 0.5, ends=3)\ns.Join()\nprune.wraps\nprune.plan(m)\ns.OneCycle(**settings)\n")
    assert [why.split(":")[0] for _, _, why in sorted(wrong_calls(source))] == [
        "got an unexpected keyword argument 'ends'", "missing a required argument", "no such name"]


def test_every_module_is_shown():
    used = {alias.name for path in SCRIPTS for node in ast.walk(ast.parse(source_of(path)))
            if isinstance(node, ast.ImportFrom) and node.module == "tfopt" for alias in node.names}
    assert set(tfopt.__all__) <= used
