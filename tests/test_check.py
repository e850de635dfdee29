"""Refusals and constraints: what passes, what is refused and how, what stays of a signature."""

import inspect

import keras
import numpy as np
import pytest

from tfopt._check import (
    BATCH_SIZE,
    CALLBACKS,
    FLAG,
    FUNCTION,
    MODEL,
    NO,
    PATH,
    SEED,
    TEXT,
    VERBOSE,
    WHERE,
    ArgumentError,
    DictOf,
    Instance,
    ListOf,
    Number,
    OneOf,
    Whole,
    checked,
    refusal,
    require,
    shown,
)


@checked(rate=Number(above=0, below=1), steps=Whole(low=1), mode=OneOf("min", "max"), rest=Whole())
def train(rate, *rest, steps=None, mode="min"):
    return rate, rest, steps, mode


class Half(keras.layers.Layer):
    @checked(rate=Number(low=0))
    def __init__(self, rate, *, start=0, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    @checked(steps=Whole(low=1))
    def run(self, steps):
        require(steps < 9, "there are 8 steps", steps=steps)


def refused(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_a_refusal_is_rule_received_remedy():
    with pytest.raises(ValueError, match=r"^`a` must be b\. Received: a=3, c='d'\. Do e\.$"):
        require(False, "`a` must be b", a=3, c="d", do="Do e.")
    assert str(refusal("`a` must be b")) == "`a` must be b."
    require(True, "`a` must be b", a=3)


def test_what_is_received_stands_on_one_line():
    assert shown(np.ones((2, 3))) == "ndarray of shape (2, 3)"
    assert shown(np.float32(2.5)) == "np.float32(2.5)"
    assert "\n" not in shown([np.ones((9, 9))])
    assert len(shown("x" * 1000)) == 300


@pytest.mark.parametrize(("constraint", "value", "plain"), [
    (Number(), 1, 1), (Number(low=1), 1, 1), (Number(), np.float32(0.5), 0.5), (Number(), np.int8(3), 3),
    (Whole(), 2.0, 2), (Whole(), np.float64(2), 2), (Whole(low=1), np.int64(3), 3), (SEED, 0, 0),
    (FLAG, True, True), (FLAG, np.bool_(False), False), (TEXT, "a", "a"), (PATH, "a/b", "a/b"),
    (VERBOSE, "auto", "auto"), (VERBOSE, 1, 1), (OneOf(None, 8), 8.0, 8), (OneOf(None, 8), None, None),
    (ListOf(Whole()), [1, 2.0], [1, 2]), (ListOf(Whole(), length=2), (1, 2), (1, 2)), (CALLBACKS, [], []),
    (DictOf(Number()), {"a": np.float32(1)}, {"a": 1.0}), (Number() | OneOf("auto"), "auto", "auto"),
    (FUNCTION, len, len), (WHERE, "dense", "dense"), (WHERE, ["a", "b"], ["a", "b"]), (WHERE, bool, NO)])
def test_what_passes_comes_as_plain_python(constraint, value, plain):
    found = constraint(value)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(("constraint", "value"), [
    *((Number(), value) for value in (True, "1", None, np.nan, np.inf, 1j, [1], np.ones(1), b"1")),
    (Number(above=1), 1), (Number(below=1), 1), (Number(low=1), 0.99), (Number(high=1), 1.01),
    *((Whole(), value) for value in (2.5, np.inf, True, "2", 10**30)), (Whole(low=1), 0), (SEED, -1), (SEED, 2**31),
    *((FLAG, value) for value in (1, 0, "yes", None, np.ones(1, bool))), (TEXT, ""), (TEXT, 3), (TEXT, b"a"),
    *((PATH, value) for value in (b"a", 3, "", " ", "a\0b", None)), (VERBOSE, 3), (VERBOSE, "2"), (VERBOSE, np.ones(2)),
    (BATCH_SIZE, 0), (BATCH_SIZE, "32"), (ListOf(Whole()), []), (ListOf(Whole()), [1, "a"]), (ListOf(Whole()), "ab"),
    (ListOf(Whole(), length=2), [1]), (DictOf(Number()), {}), (DictOf(Number()), {1: 1}), (DictOf(Number()), [1]),
    (Instance("keras.Model"), 3), (Instance("not_imported.Class"), 3), (FUNCTION, "f"), (MODEL, keras.layers.Dense(1)),
    (CALLBACKS, keras.callbacks.Callback()), (CALLBACKS, [3]),
    *((WHERE, value) for value in (3, [], "", [3], [""], keras.layers.Dense, {"a": 1}, np.ones(2)))])
def test_what_is_refused(constraint, value):
    assert constraint(value) is NO


def test_where_takes_layers():
    layer = keras.layers.Dense(1)
    assert WHERE(layer) is layer
    assert WHERE([layer, "a"]) == [layer, "a"]


def test_a_refusal_names_the_function():
    name = f"{__name__}.train"
    refused(lambda: train(2), ArgumentError, f"{name}: `rate` must be a number > 0 and < 1. Received: rate=2.")
    refused(lambda: train(0.5, steps=0), TypeError,
            f"{name}: `steps` must be None or a whole number >= 1. Received: steps=0.")
    refused(lambda: train(0.5, 1, "b"), ValueError, f"{name}: `rest` must be a whole number. Received: rest='b'.")
    refused(lambda: train(0.5, mode="mox"), ValueError,
            f"{name}: `mode` must be 'min' or 'max'. Received: mode='mox'. Did you mean `max`?")
    refused(lambda: Half(1.0).run(9), ValueError, f"{__name__}.Half.run: there are 8 steps. Received: steps=9.")
    assert train(np.float32(0.5), 1.0, steps=None) == (0.5, (1,), None, "min")


def test_a_keyword_of_another_library_is_asked_about():
    refused(lambda: train(p=0.5), TypeError, f"{__name__}.train has no argument `p`. Did you mean `rate`?")
    refused(lambda: train(0.5, total_steps=5), TypeError,
            f"{__name__}.train has no argument `total_steps`. Did you mean `steps`?")
    refused(lambda: train(0.5, qqq=5), TypeError,
            f"{__name__}.train has no argument `qqq`. Its arguments are rate, steps, mode.")
    refused(lambda: Half(p=1), TypeError, f"{__name__}.Half has no argument `p`. Did you mean `rate`?")
    refused(train, TypeError, f"{__name__}.train needs the argument `rate`.")
    refused(lambda: Half(1, 2), TypeError,
            f"{__name__}.Half was called with too many positional arguments. Pass these by name: start.")


def test_a_signature_stays_and_keras_reads_it():
    assert str(inspect.signature(train)) == "(rate, *rest, steps=None, mode='min')"
    assert list(inspect.signature(Half).parameters) == ["rate", "start", "kwargs"]
    layer = Half(0.5, name="half", dtype="float16", trainable=False)
    assert layer.get_config()["rate"] == 0.5
    assert Half.from_config(layer.get_config()).name == "half"


def test_an_error_of_someone_else_is_left_alone():
    @checked()
    def call(function):
        return function()

    refused(lambda: call(lambda: 1 / 0), ZeroDivisionError, "division by zero")


def test_a_constraint_without_its_argument_is_a_mistake():
    with pytest.raises(NameError, match="no argument steps"):
        checked(steps=Whole())(lambda rate: rate)
