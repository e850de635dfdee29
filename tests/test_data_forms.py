"""Every function that reads `data` takes every form of it, or says in one sentence why not: no raw error in 54."""

import functools

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfopt import average, distill, quantize, report, shrink

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(48, 4)).astype("float32"), RNG.integers(0, 3, 48)
PAIRS = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


@functools.cache
def model(kind="dense"):
    keras.utils.set_random_seed(0)
    if kind == "quantized":
        return quantize.wrap(model())
    if kind == "file":
        return quantize.convert(model(), "float32")
    norm = [L.BatchNormalization()] if kind == "norm" else []
    return keras.Sequential([keras.Input((4,)), L.Dense(8, "relu"), *norm, L.Dense(3)])


READERS = {
    "report.measure": lambda data: report.measure(model(), data, runs=1),
    "average.update_batch_norm": lambda data: average.update_batch_norm(model("norm"), data),
    "shrink.recalibrate": lambda data: shrink.recalibrate(model("norm"), data),
    "distill.cache_teacher": lambda data: distill.cache_teacher(model(), data, verbose=0),
    "quantize.calibrate": lambda data: quantize.calibrate(model("quantized"), data),
    "quantize.LiteModel.predict": lambda data: model("file").predict(data),
}
FORMS = {"x": X, "(x, y)": (X, Y), "[x, y]": [X, Y], "(x, y, w)": (X, Y, np.ones(48, "float32")), "a dict": {"a": X},
         "a table": pd.DataFrame(X), "a data set": PAIRS, "a data set of x": PAIRS.map(lambda x, y: x),
         "a generator": None}
# What must work: inputs with targets everywhere, inputs alone where targets are not read.
WORKS = {(name, form) for name in READERS for form in FORMS if form != "a generator"
         and (name != "report.measure" or form in ("(x, y)", "[x, y]", "(x, y, w)", "a data set"))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READERS)
def test_every_form_of_data(name, form):
    data = ((X, Y) for _ in range(2)) if form == "a generator" else FORMS[form]
    if (name, form) in WORKS:
        READERS[name](data)
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        READERS[name](data)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
