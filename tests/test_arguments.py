"""Wrong values of every argument: each call works, or ends in one sentence that starts with the function's name."""

import inspect
import os
import random

import pytest
import valid_calls

NAMES = sorted(set(valid_calls.public()) - valid_calls.NOT_CALLED)
SLOW = {"compress.run", "tune.cross_validate", "distill.cache_teacher", "schedules.find", "report.compare",
        "report.measure", "report.classes", "report.temperature", "quantize.convert", "prune.xnnpack_layers",
        "shrink.channels", "average.views", "cluster.wrap"}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Made once; words that pass as paths are files of a temporary folder."""
    before, directory = os.getcwd(), tmp_path_factory.mktemp("arguments")
    os.chdir(directory)
    yield valid_calls.calls(directory)
    os.chdir(before)


def faults(calls, name, share=1.0):
    """What ends neither well nor in a sentence, of a sample of the wrong values that is the same each time."""
    thing, valid = calls[name]
    draw = random.Random(name)
    found = []
    for argument, what, attempt in valid_calls.tried(name, thing, valid):
        ended, text = attempt() if draw.random() < share else ("left out", "")
        if ended == "raw":
            found.append(f"{argument}={what}: {text[:200]}")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_valid_call_has_every_argument_and_works(calls, name):
    thing, valid = calls[name]
    parameters = inspect.signature(thing).parameters.values()
    assert set(valid) == {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    ended = ("works", "") if name == "compress.run" else valid_calls.outcome(name, thing, valid)
    assert ended == ("works", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
                                  for name in NAMES])
def test_wrong_values(calls, name):
    assert not faults(calls, name, share=0.2)


def test_a_raw_error_is_found():
    def loose(rate):
        return 1 / rate

    ended = valid_calls.outcome("tests.loose", loose, {"rate": 0})
    assert ended == ("raw", "ZeroDivisionError: division by zero")
