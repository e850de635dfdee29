"""Quantization-aware training: the model rounds as LiteRT will, while it learns."""

import contextlib
import warnings
from typing import Any

import numpy as np
import pandas as pd

from .. import _models
from .._check import MODEL, WHERE, OneOf, checked, refusal, require
from .._keras import Functional, Wrapped, fresh_inputs, graph_of, keras, same_randomness, serializable, tf
from .._typing import Data, PathLike, Where
from ._equalize import equalized
from ._graph import Graph
from ._layers import RoundedKernel, observing, unrounded
from ._lite import take
from ._prepare import Prepared

_GRAPH = {"build", "call"}             # what a class must leave to Keras: only the graph is rounded


class Rounding:
    """Mixin of a model that rounds its kernels and activations while it trains. Made by `wrap`; for `convert`.

    Attributes:
      rows: of its `plan`.
      original: the model that was passed to `wrap`, in the process where that was; else None.
    """

    original = None

    @property
    def plan(self):
        """What was done to each layer of the model that was wrapped; see `quantize.plan`."""
        return _models.table(self.rows)

    def rounded(self):
        """{name: layer} of the layers whose kernel is rounded."""
        return {layer.name: layer for layer in self.layers if isinstance(layer, RoundedKernel)}

    @property
    def mode(self):
        """The mode of `quantize.convert` that it was made for."""
        return f"int{min((layer.bits for layer in self.rounded().values()), default=8)}"

    def again(self):
        """A new model like this one."""
        return _models.copy(self)

    def save(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """As keras.Model.save, in the .keras format: Keras does not find the class again in what it writes as .h5."""
        require(not str(filepath).endswith((".h5", ".hdf5")),
                "a model from quantize.wrap is saved in the .keras format", filepath=str(filepath),
                do="Pass a path that ends in .keras, or save its weights as .weights.h5.")
        for layer in self.layers:
            _require_loadable(layer)
        super().save(filepath, *args, **kwargs)


@serializable
class Quantized(Rounding, Functional):
    """The model that `wrap` makes of Keras' own models."""

    def __init__(self, inputs, outputs, name=None, *, rows=(), **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.rows = [dict(row) for row in rows]

    def get_config(self):
        return {**super().get_config(), "rows": [dict(row) for row in self.rows]}


@serializable
class QuantizedSubclass(Rounding, Wrapped):
    """The model that `wrap` makes of one with its own `train_step`, `compute_loss` and the like, which it keeps."""

    @property
    def rows(self):
        return self.recipe["rows"]

    def attach(self):
        """All that rounds is a layer of the graph."""

    def settle(self):
        """Nothing has to be made true after training."""

    def again(self):
        with self.plain():
            new = _models.copy(self)
        return QuantizedSubclass.of(new, self.recipe)


@checked(model=MODEL, bits=OneOf(8, 4), preserve=OneOf("sparsity", "clusters", "both"), where=WHERE)
def wrap(model: keras.Model, *, bits: int = 8, preserve: str | None = None, where: Where = None) -> keras.Model:
    """Quantization-aware training (QAT): a copy of the model that rounds to eight or four bits as LiteRT will.

        x -> scale * round(x / scale)

    with scale = range / 255 for activations, max|w| / 127 for kernels of 8 bits, max|w| / 7 for kernels of 4 bits.
    Channels of very different ranges are equalized first where that is exact, as in `convert`, unless `where` is given
    or values are shared.

    Gradients go straight through the rounding. This is the TF Model Optimization toolkit's 8-bit scheme, with its
    quantizers: kernels by output channel, activations by tensor, with moving averages of their ranges (decay 0.999,
    started at +-6: use `calibrate` first if you train shortly). It takes any compile, optimizer, strategy and
    callbacks. `plan` tells beforehand what happens to each layer.

    Args:
      model: built Functional or Sequential Keras 3 model; it is only read. Layers in mixed_float16 or mixed_bfloat16
        are copied in float32, with a warning.
      bits: of the kernels, 8 or 4. With 4, those of convolutions and dense layers have four bits; those of depthwise
        and transposed convolutions, and all activations, have eight.
      preserve: None; "sparsity" (the zeros of a pruned model stay: PQAT), "clusters" (the shared values of a clustered
        model stay shared: CQAT), or "both" (PCQAT).
      where: None for every layer that can be quantized, layer names or paths (`outer/inner`), or `layer -> bool`. The
        BatchNormalization and the ReLU that LiteRT runs as one with a chosen layer go with it.

    Returns:
      keras.Model, not compiled, of the model's own class where that has e.g. its own `train_step`, with the same inputs
      and outputs, and `plan`. Its nested models are opened. Saved and
      loaded like any other after `from tfopt import quantize`. `quantize.convert` makes the int8 or int4 file.

    Raises:
      ValueError: the model is not as above; `where` chooses nothing; there is nothing to preserve, or no kernel to
        have in 4 bits; the copy, before
        rounding, computes something else than the model.
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
    graph, own = _graph(model, where, "quantize.wrap", bits), _models.own_methods(model)
    _models.require_finite(model)
    require(not own or (_GRAPH.isdisjoint(own) and _models.takes_graph(model)),
            "what a class of your own does would be lost", model=_models.describe(model), methods=own,
            do="Let its constructor take (inputs, outputs, **kwargs) and leave `call` as it is, or wrap "
            "keras.Model(model.inputs, model.outputs), which does without these methods.")
    require(any(use.kind not in ("float", "pass") for use in graph.uses), "finds no layer that it can quantize",
            model=model.name, do="`quantize.plan` says why; quantize.convert makes files of any layers.")
    half = [path for path, layer in _models.layers(model).items() if "16" in layer.dtype_policy.name]
    if half:
        warnings.warn(f"quantize.wrap: {half[0]}{' and others' if half[1:] else ''} computes in 16 bits; the wrapped "
                      "model computes in float32 before it rounds.", stacklevel=3)
    with same_randomness(), _models.scope_of(model), _layers_in_float32():
        alike = equalized(model) if where is None and not half and preserve in (None, "sparsity") else None
        prepared = Prepared(graph if alike is None else _graph(alike, None, "quantize.wrap", bits), preserve)
        if own:
            new = QuantizedSubclass.of(_models.graph_model(model, prepared.inputs, prepared.outputs),
                                       {"rows": graph.table()})
        else:
            new = Quantized(prepared.inputs, prepared.outputs, name=model.name, rows=graph.table())
        prepared.fill()
    require(preserve is None or any(layer.preserves for layer in new.rounded().values()),
            f'finds nothing to preserve with preserve="{preserve}"', model=model.name,
            do="Prune or cluster the model and strip it before; or leave `preserve` out.")
    require(new.mode == f"int{bits}", "finds no kernel that can have 4 bits", model=model.name, do="Use bits=8.")
    if not model.trainable:
        new.trainable = False
    with unrounded():
        _models.compare(model, new, tolerance=0.05 if half else 1e-4)
    new.original = _Untracked(model)
    return new


@checked(model=MODEL, bits=OneOf(8, 4), where=WHERE)
def plan(model: keras.Model, *, bits: int = 8, where: Where = None) -> pd.DataFrame:
    """Quantization plan: what `wrap` would do with each layer, read from the graph without building anything.

    Args:
      model: as for `wrap`.
      bits: as for `wrap`; with 4, `why` says which kernels have four bits.
      where: as for `wrap`.

    Returns:
      pandas.DataFrame, one row a layer or operation: `layer`, `class`, `parameters` (how many numbers it has),
      `affected` (how many of them are rounded), `status`, `why`. Status "selected": it computes in integers.
      "skipped": it computes in float; `why` says whether its output is rounded for what follows.

    Example:
      >>> import keras
      >>> from tfopt import quantize
      >>> rnn, out = keras.layers.LSTM(3, name="rnn"), keras.layers.Dense(1, name="out")
      >>> model = keras.Sequential([keras.Input((8, 4)), rnn, out])
      >>> quantize.plan(model)[["layer", "status"]].values.tolist()
      [['rnn', 'skipped'], ['out', 'selected']]
    """
    return _models.table(_graph(model, where, "quantize.plan", bits).table())


@checked(model=MODEL)
def calibrate(model: keras.Model, data: Data) -> keras.Model:
    """Calibration of activation ranges: a copy of a model from `wrap`, with the ranges of what runs through it.

    Each activation's range becomes the smallest and the largest value seen in inference.

    Args:
      model: what `wrap` returned; it is only read.
      data: typical inputs, as `calibration` of `quantize.convert`; the first 256 samples are used, in batches of 32.

    Returns:
      A new model like `model`, not compiled.

    Raises:
      ValueError: `model` is not from `wrap`; `data` does not fit it, or holds NaN or infinity.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
      >>> aware = quantize.calibrate(quantize.wrap(model), x)
      >>> bool(abs(aware.predict(x, verbose=0) - model.predict(x, verbose=0)).mean() < 0.05)
      True

    Reference:
      Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342
    """
    require(isinstance(model, Rounding), "needs a model that came from quantize.wrap",
            model=_models.describe(model), do="Call quantize.wrap(model), and pass what it returns.")
    inputs = fresh_inputs(graph_of(model))
    samples = take(data, inputs, "data")
    with same_randomness(), _models.scope_of(model):
        new = model.again()
        for layer, (low, high) in _extremes(new, inputs, samples).items():
            layer.low.assign(low)
            layer.high.assign(high)
    new.original = model.original
    return new


def _extremes(model, inputs, samples):
    """{Range: (low, high) of what runs through it}."""
    seen = {}

    def note(layer, x):
        seen.setdefault(layer, []).append((min(float(tf.reduce_min(x)), 0.0), max(float(tf.reduce_max(x)), 0.0)))

    with observing(note):
        for start in range(0, len(samples[0]), 32):
            batch = [tf.constant(array[start:start + 32]) for array in samples]
            with keras.StatelessScope():                   # random states stay
                model(keras.tree.pack_sequence_as(inputs, batch), training=False)
    return {layer: (np.min(values), np.max(values)) for layer, values in seen.items()}


def _graph(model, where, caller, bits):
    require_stripped(model)
    require(not isinstance(model, Rounding), "needs a plain model", model=type(model).__name__,
            do="It came from quantize.wrap already: train it, and convert it with quantize.convert.")
    _models.require_graph(model, caller)
    chosen = None
    if where is not None:
        able_paths = {use.path for use in Graph(model).uses if use.kind != "float"}
        able = {id(layer) for path, layer in _models.layers(model).items() if path in able_paths}
        chosen = set(_models.select(model, where, caller, able=lambda layer: id(layer) in able,
                                    what="layer that can be quantized"))
    return Graph(model, chosen, bits)


def require_stripped(model):
    """Refuses a model that another module has wrapped."""
    wrapper = next((module for module in ("prune", "cluster", "regularizers")
                    for kind in type(model).__mro__
                    if kind.__module__.startswith(f"tfopt.{module}.")), None)
    require(wrapper is None, "needs a plain model or one from quantize.wrap", model=type(model).__name__,
            do=f"Call {wrapper}.strip, and pass the result.")


def _require_loadable(layer):
    """Refuses a layer of the user's own that Keras could not make again from its config when the file is loaded."""
    if type(layer).__module__.split(".")[0] in ("keras", "tfopt"):
        return
    try:
        type(layer).from_config(layer.get_config())
    except Exception as problem:                           # whatever a class of the user's may raise
        raise refusal("each layer of a model from quantize.wrap must be made again from its config when it is loaded",
                      layer=layer.name, reason=" ".join(str(problem).split())[:160], do="Let its class take every "
                      "argument that its `get_config` returns, or save the weights alone as .weights.h5.") from problem


@contextlib.contextmanager
def _layers_in_float32():
    """Layers that are made without a dtype compute in float32, whatever the global policy is."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


class _Untracked:
    """Keeps an object out of a model's own variables, layers and files."""

    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held
