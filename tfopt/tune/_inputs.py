"""The data of a search, as one trial sees them, and what else of `fit` its `run` takes."""

import math
from typing import Any, TypedDict

import numpy as np

from .. import _data, data
from .._check import NO, Number, Rule, Whole, did_you_mean, refusal, require
from .._keras import keras, tf


class FitArguments(TypedDict, total=False):
    """What `Search.run` hands on to `model.fit`, as Keras has it."""

    validation_split: float
    class_weight: dict[int, float]
    steps_per_epoch: int


def _is_class_weight(value):
    return isinstance(value, dict) and bool(value) and all(
        Whole(low=0)(label) is not NO and Number(low=0)(weight) is not NO for label, weight in value.items())


CLASS_WEIGHT = Rule("a dict of classes from 0 and their weights, >= 0", _is_class_weight,
                    lambda value: {int(label): float(weight) for label, weight in value.items()})
FIT = {"validation_split": Number(above=0, below=1), "class_weight": CLASS_WEIGHT, "steps_per_epoch": Whole(low=1)}
HABITS = {"validation_data": "val", "x": "train", "executions_per_trial": "executions", "log_dir": "logs"}


def fit_arguments(given, known):
    """What of `fit` the user passed, checked; `known`: names of all other arguments."""
    found = {}
    for name, value in given.items():
        if name not in FIT:
            do = f"Did you mean `{HABITS[name]}`?" if name in HABITS else did_you_mean(name, [*known, *FIT])
            raise refusal(f"there is no argument `{name}`", error=TypeError,
                          do=do or f"The arguments are {', '.join([*known, *FIT])}.")
        if value is not None:
            found[name] = FIT[name](value)
            require(found[name] is not NO, f"`{name}` must be {FIT[name].text}", **{name: value})
    return found


def read(given, hp, model, name, *, endless):
    """What the user means for these values: `Arrays`, a `Stream`, or None."""
    source = given(hp) if is_function(given) else given
    if hasattr(source, "__next__"):
        source = _from_generator(lambda: given(hp))
    return None if source is None else _data.read(source, model, name=name, endless=endless)


def is_function(given):
    return callable(given) and not isinstance(given, tf.data.Dataset)


def _from_generator(make):
    """A tf.data.Dataset of batches that a new generator yields in each pass."""
    def passes():
        return (_data.in_tuples(keras.tree.map_structure(_plain, element)) for element in make())

    first = next(passes(), None)
    require(first is not None, "a generator must yield a batch")
    return tf.data.Dataset.from_generator(passes, output_signature=keras.tree.map_structure(
        lambda part: tf.TensorSpec((None, *part.shape[1:]), part.dtype), first))


def _plain(part):
    array = np.asarray(part)
    return array.astype(keras.config.floatx(), copy=False) if array.dtype.kind == "f" else array


def split_off(train, share):
    """(training rows, validation rows): the last ones, as in `fit(validation_split=share)`."""
    require(isinstance(train, _data.Arrays), "`validation_split` is for arrays", train=type(train).__name__,
            do="Pass `val`.")
    at = math.floor(train.length * (1 - share))
    require(0 < at < train.length, "`validation_split` must leave an example on each side", validation_split=share,
            examples=train.length)
    return train.rows(slice(at)), train.rows(slice(at, None))


def scored_on(val):
    """`validation_data` and `validation_batch_size` of `fit`."""
    if not isinstance(val, _data.Arrays):
        return {"validation_data": None if val is None else val.dataset()}
    parts = (val.x, val.y) if val.sample_weight is None else (val.x, val.y, val.sample_weight)
    return {"validation_data": parts, "validation_batch_size": 256}


def batches_of(train, batch, seed):
    """A data set as it is; arrays in an order that (seed, epoch) decides, which `Resume` brings back."""
    if isinstance(train, _data.Arrays):
        return data.arrays(train.x, train.y, batch, sample_weight=train.sample_weight, seed=seed)
    return train.dataset()


def example_of(batches: tf.data.Dataset) -> Any:
    """The inputs of the first example."""
    element = next(iter(batches.take(1)))
    return keras.tree.map_structure(lambda part: part[:1], element[0] if isinstance(element, tuple) else element)
