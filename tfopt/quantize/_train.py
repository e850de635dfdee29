"""Quantisation-aware training: the model rounds as LiteRT will, while it learns."""

import contextlib

import numpy as np
import pandas as pd

from .. import _models
from .._bridge import legacy_name
from .._bridge.adopt import Adopted, require_adopted, require_plain
from .._check import require
from .._keras import fresh_inputs, graph_of, keras, same_randomness, serializable, tf
from .._toolkit import quantization as toolkit
from ._graph import Graph
from ._lite import take
from ._prepare import Prepared

COLUMNS = ["layer", "class", "weights", "status", "why"]
_MOST_VALUES = 256                                         # more different values in a kernel are not shared ones


@serializable
class Quantized(Adopted):
    """A model that rounds its kernels and activations to eight bits while it trains. Made by `wrap`; for `convert`."""

    caller = "quantize.wrap"

    def rewrite(self, twin, base, *, kernels, ranges, inputs, plan):
        return toolkit.quantize(twin, {legacy_name(name): kept for name, kept in kernels.items()},
                                set(map(legacy_name, ranges)), set(map(legacy_name, inputs)))

    @property
    def plan(self):
        """What was done to each layer of the model that was wrapped; see `quantize.plan`."""
        return pd.DataFrame(self.recipe["plan"], columns=COLUMNS)

    @property
    def preserves(self):
        """Are zeros or shared values of any kernel kept?"""
        return any(map(any_kept, self.recipe["kernels"].values()))

    def kernels(self):
        """{name: (kernel as the model computes with it, the same rounded to eight bits, what is preserved of it)}."""
        wrappers = toolkit.wrapped(self.legacy)
        return {name: (*toolkit.kernel(wrappers[legacy_name(name)]), kept)
                for name, kept in self.recipe["kernels"].items()}


def wrap(model, *, preserve=None, where=None):
    """A copy of the model that rounds to eight bits as LiteRT will, with gradients straight through the rounding.

        x -> scale * round(x / scale),   scale = range / 255 for activations, max|w| / 127 for kernels

    This is the TF Model Optimization toolkit's 8-bit scheme: kernels by output channel, activations by tensor, with
    moving averages of their ranges (decay 0.999, started at +-6: call `calibrate` first if you train shortly). It takes
    any compile, optimizer, strategy and callbacks. `plan` tells beforehand what happens to each layer.

    Args:
      model: built Functional or Sequential Keras 3 model, float32 or mixed_bfloat16. It is only read.
      preserve: None; "sparsity" (the zeros of a pruned model stay: PQAT), "clusters" (the shared values of a clustered
        model stay shared: CQAT), or "both" (PCQAT).
      where: None for every layer that can be quantised, layer names or paths (`outer/inner`), or `layer -> bool`. The
        BatchNormalization and the ReLU that LiteRT runs as one with a chosen layer go with it.

    Returns:
      keras.Model, not compiled, with the same inputs and outputs, and `plan`. Saved and loaded like any other after
      `from tfopt import quantize`. `quantize.convert` makes the int8 file.

    Raises:
      ValueError: the model is not as above; `where` chooses nothing; there is nothing to preserve.
      TypeError: not a Keras 3 model.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
      >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
      >>> aware = quantize.calibrate(quantize.wrap(model), x)
      >>> aware.compile("sgd", "mse")
      >>> history = aware.fit(x, x[:, :1], verbose=0)
      >>> quantize.convert(aware, calibration=x).report["integer_ops"]
      1.0

    Reference:
      Jacob et al. 2017, https://arxiv.org/abs/1712.05877
    """
    require(preserve in (None, "sparsity", "clusters", "both"),
            '`preserve` must be None, "sparsity", "clusters" or "both"', preserve=preserve)
    require_plain(model, "quantize.wrap")
    with _models.scope_of(model), _in_float32():
        graph = _graph(model, where, "quantize.wrap")
        prepared = Prepared(graph)
    kept = {name: _preserved(prepared.model.get_layer(name), preserve) for name in prepared.kernels}
    require(preserve is None or any(map(any_kept, kept.values())),
            f'quantize.wrap finds nothing to preserve with preserve="{preserve}"', model=model.name,
            do="Prune or cluster the model and strip it before; or leave `preserve` out.")
    return Quantized(prepared.model, {"kernels": kept, "ranges": prepared.ranges, "inputs": prepared.inputs,
                                      "plan": graph.table()}, name=model.name)


def plan(model, *, where=None):
    """What `wrap` would do with each layer, without doing it.

    Args:
      model: as for `wrap`.
      where: as for `wrap`.

    Returns:
      pandas.DataFrame, one row a layer or operation: `layer`, `class`, `weights` (how many numbers), `status`, `why`.
      Status "done": in integers. "output only": it computes in float, and its output is rounded for what follows.
      "float": left alone.

    Example:
      >>> import keras
      >>> from tfopt import quantize
      >>> rnn, out = keras.layers.LSTM(3, name="rnn"), keras.layers.Dense(1, name="out")
      >>> model = keras.Sequential([keras.Input((8, 4)), rnn, out])
      >>> quantize.plan(model)[["layer", "status"]].values.tolist()
      [['rnn', 'float'], ['out', 'done']]
    """
    require_plain(model, "quantize.plan")
    return pd.DataFrame(_graph(model, where, "quantize.plan").table(), columns=COLUMNS)


def calibrate(model, data):
    """Sets the ranges of a model from `wrap` by what runs through it, before training starts.

    Each activation's range becomes the mean of the smallest and of the largest values of the batches (what the moving
    average of training tends to), that of an input the smallest and largest of all. The model runs once as in
    inference and once as in training: where the latter makes values over twice as large, because BatchNormalization has
    not learned its statistics yet, its range is taken.

    Args:
      model: what `wrap` returned. Its ranges are set in place, as `adapt` of Keras does; nothing else changes.
      data: typical inputs, as `calibration` of `quantize.convert`; the first 256 samples are used, in batches of 32.

    Returns:
      The model.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
      >>> aware = quantize.calibrate(quantize.wrap(model), x)
      >>> bool(abs(aware.predict(x, verbose=0) - model.predict(x, verbose=0)).mean() < 0.05)
      True
    """
    require_adopted(model, Quantized, "quantize.calibrate", "quantize.wrap")
    inputs = fresh_inputs(graph_of(model.base))
    samples = take(data, inputs)
    kept = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    seen = []
    with same_randomness():
        for training in (False, True):
            with toolkit.observing() as found:
                for start in range(0, len(samples[0]), 32):
                    batch = [tf.constant(array[start:start + 32]) for array in samples]
                    model.legacy(keras.tree.pack_sequence_as(inputs, batch), training=training)
            seen.append(found)
    for variable, value in zip(model.variables, kept, strict=True):
        variable.assign(value)
    toolkit.set_ranges(*seen)
    return model


def _graph(model, where, caller):
    chosen = None
    if where is not None:
        statuses = dict(row[0:4:3] for row in Graph(model).table())
        able = {id(layer) for path, layer in _models.layers(model).items() if statuses.get(path, "float") != "float"}
        chosen = set(_models.select(model, where, caller, able=lambda layer: id(layer) in able,
                                    what="layer that can be quantised"))
    graph = Graph(model, chosen)
    require(any(use.kind != "float" for use in graph.uses), f"{caller} finds no layer that it can quantise",
            model=model.name, do="See quantize.plan.")
    return graph


@contextlib.contextmanager
def _in_float32():
    """Layers that are made without a dtype compute in float32, whatever the global policy is."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def any_kept(kept):
    return bool(kept["zeros"] or kept["centroids"])


def _preserved(layer, preserve):
    """What `Preserving` is to keep of a kernel: its zeros, its shared values; neither where there are none."""
    kept = {"zeros": False, "centroids": None}
    if preserve is None or not layer.trainable:
        return kept
    value = keras.ops.convert_to_numpy(layer.kernel)
    if preserve in ("sparsity", "both"):
        kept["zeros"] = bool((value == 0).any())
    if preserve in ("clusters", "both"):
        kept["centroids"] = _shared(value)
    return kept


def _shared(kernel):
    """Shape of the table of a kernel's shared values: (n,), or (channels, n) if each channel has its own; or None."""
    whole = len(np.unique(kernel))
    counts = [len(np.unique(kernel[..., channel])) for channel in range(kernel.shape[-1])]
    if kernel.ndim == 4 and len(counts) > 1 and whole > sum(counts) / 2:
        most = max(counts)
        return [len(counts), most] if most <= min(_MOST_VALUES, kernel.size // len(counts) // 2) else None
    return [whole] if whole <= min(_MOST_VALUES, kernel.size // 2) else None
