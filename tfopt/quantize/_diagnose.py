"""Where a LiteRT file loses what its Keras model knows: signal to noise, layer by layer."""

import dataclasses

import numpy as np
import pandas as pd
from ai_edge_litert.interpreter import OpResolverType

from .. import _models
from .._check import MODEL, Instance, Number, checked, require
from .._keras import fresh_inputs, graph_of, keras, mask_of, set_mask, tf, uses
from .._litert import file, match, run
from .._tables import Frame
from .._typing import Data
from ._lite import LiteModel, take
from ._train import Rounding

_MOST_SAMPLES, _MOST_NUMBERS = 64, 5e7                     # what is kept of all layers at once
_ALIKE = 0.9                                               # least correlation of an output with a tensor without kernel
_FUSED = (keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.Activation, keras.layers.LeakyReLU,
          keras.layers.Dropout, keras.layers.Rescaling)    # LiteRT may run these in one with the layer before them


def signal_to_noise(signal, noisy):
    """Signal-to-noise ratio in decibels, of the median channel, at most 99.

        10 log10(variance of the signal / mean square of the difference)

    Channels are the last axis; those whose signal hardly varies have none. One number for the whole would show the
    loudest channel alone, while one scale for all channels drowns the quiet ones.

    Example:
      >>> signal = np.array([[1., 100.], [-1., -100.]])
      >>> round(signal_to_noise(signal, signal + [[0.1, 10.], [0.1, 10.]]), 6)
      20.0
      >>> signal_to_noise(signal, signal)
      99.0
    """
    signal, noisy = (np.asarray(x, "float64").reshape(-1, np.shape(x)[-1] if np.ndim(x) else 1)
                     for x in (signal, noisy))
    power, noise = signal.var(axis=0), ((signal - noisy) ** 2).mean(axis=0)
    heard = power > 1e-6 * power.max(initial=0)
    if not heard.any():
        return 99.
    return float(np.clip(np.median(10 * np.log10(power[heard] / np.maximum(noise[heard], 1e-30))), -99, 99))


@checked(model=MODEL, lite=Instance(LiteModel, do="Make one with quantize.convert."), threshold_db=Number())
def diagnose(model: keras.Model, lite: LiteModel, data: Data, *, threshold_db: float = 20.0) -> pd.DataFrame:
    """Signal-to-quantization-noise ratio by layer: a LiteRT file beside its model, output by output, on the same data.

        snr  = signal to noise of the file's tensor beside the model's, in dB: all noise up to there
        own  = the same beside what the layer makes, in float, of the file's own inputs: the noise it adds itself

    Both are those of the median channel. A layer loses if `own` is below `threshold_db`; rounding to eight bits leaves
    25 to 45 dB as a rule.

    Which tensor of the file is which layer's is found out: by the values of its kernel, then by the values that come
    out. A layer that LiteRT runs in one with those behind it (BatchNormalization, ReLU) has no tensor of its own; its
    noise counts for the tensor behind. Layers that are not found are told, not guessed.

    Args:
      model: the built Functional or Sequential Keras model that the file was made of, plain; it is only read.
      lite: a `quantize.LiteModel`.
      data: typical inputs, as `calibration` of `convert`; at most 64 samples are used.
      threshold_db: decibels of `own` below which a layer is said to lose.

    Returns:
      pandas.DataFrame, one row a layer, in order: `layer`, `class`, `tensor` (name in the file), `snr`, `own`,
      `status` ("fine", "loses", "fused", "not found"), `why`, `do`.

    Raises:
      ValueError: the model is wrapped or has no graph, the file's inputs are not those of the model, no tensor of the
        file could be matched.
      TypeError: not a Keras 3 model, or `lite` is no LiteModel.

    Example:
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu", name="hidden"),
      ...                           keras.layers.Dense(3, name="classes")])
      >>> x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
      >>> quantize.diagnose(model, quantize.convert(model, calibration=x), x)[["layer", "status"]].values.tolist()
      [['hidden', 'fine'], ['classes', 'fine']]
    """
    require(not isinstance(model, Rounding), "needs the plain model", model=type(model).__name__,
            do="Pass the model that was given to quantize.wrap.")
    graph = _models.require_graph(model, "quantize.diagnose")
    _models.require_finite(model)
    inputs = fresh_inputs(graph)
    samples = take(data, inputs, "data")
    size = sum(np.prod(x.shape[1:]) for *_, outputs in uses(graph) for x in outputs if None not in x.shape[1:])
    samples = [array[:int(np.clip(_MOST_NUMBERS / max(size, 1), 4, _MOST_SAMPLES))] for array in samples]
    stored = _run_file(lite, keras.tree.pack_sequence_as(inputs, samples))
    spots = _Walk(model, samples).spots
    _match_by_kernel(spots, stored, file.kernels(lite.parsed))
    _match_by_values(spots, stored)
    require(any(spot.tensor for spot in spots), "finds no layer of the model in the file",
            model=model.name, do="Pass the model that the file was made of.")
    local = {spot.key: spot for spot in _Walk(model, samples, {spot.key: spot.tensor for spot in spots}).spots}
    return Frame([_row(spot, local[spot.key], threshold_db) for spot in spots if spot.is_layer],
                        columns=["layer", "class", "tensor", "snr", "own", "status", "why", "do"])


@dataclasses.dataclass
class _Tensor:
    """A tensor of the file: its values as floats, and the range that its integers can tell (None for floats)."""

    name: str
    values: np.ndarray
    limits: tuple | None


@dataclasses.dataclass
class _Spot:
    """One output of one use of a layer or operation, and the tensor of the file that holds it, once it is found."""

    key: tuple
    path: str
    op: object
    value: np.ndarray
    before: list                                           # keys of the outputs that went in
    is_layer: bool
    tensor: _Tensor | None = None
    fused: bool = False
    held: object = None                                    # the value as a tensor, so that no other gets its id

    def give(self, tensor):
        self.tensor = dataclasses.replace(tensor, values=tensor.values.reshape(self.value.shape))


class _Walk:
    """Runs the graph use by use, in float. Where `known` has the file's tensor, what follows gets that as its input.

    Attributes:
      spots: list of all outputs, in order.
    """

    def __init__(self, model, samples, known=None):
        self.spots, self.known, self.of = [], known or {}, {}
        self.paths = {id(layer): path for path, layer in _models.layers(model).items()}
        self._through(graph_of(model), [tf.constant(array) for array in samples])

    def _through(self, graph, arrays):
        values = {id(x): array for x, array in zip(graph.inputs, arrays, strict=True)}

        def now(x):
            return values[id(x)] if isinstance(x, keras.KerasTensor) else x

        for op, args, kwargs, outputs in uses(graph):
            given = keras.tree.map_structure(now, (args, kwargs))
            if graph_of(op) is not None:
                found = self._through(graph_of(op), keras.tree.flatten(given))
            else:
                found = keras.tree.flatten(op(*given[0], **given[1]))
                found = [self._note(op, index, x, given) for index, x in enumerate(found)]
            values.update((id(x), y) for x, y in zip(outputs, found, strict=True))
        return [values[id(x)] for x in graph.outputs]

    def _note(self, op, index, value, given):
        key = len(self.spots), index
        before = [self.of[id(x)] for x in keras.tree.flatten(given) if id(x) in self.of]
        self.spots.append(_Spot(key, self.paths.get(id(op), op.name), op, np.asarray(value), before,
                                isinstance(op, keras.layers.Layer)))
        tensor = self.known.get(key)
        if tensor is not None:
            mask, value = mask_of(value), tf.constant(tensor.values, value.dtype)
            if mask is not None:
                set_mask(value, mask)
        self.of[id(value)] = key
        self.spots[-1].held = value
        return value


def _run_file(lite, x):
    """[_Tensor] of what every operation of the file puts out, for all samples."""
    interpreter = run.interpreter(lite.content, experimental_preserve_all_tensors=True,
                                  experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    known = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    wanted = [known[int(index)] for op in lite.parsed.subgraphs[0].operators for index in op.outputs]
    wanted = [detail for detail in wanted if detail["dtype"] in (np.float32, np.int8, np.int16, np.uint8)]
    parts = [[] for _ in wanted]

    def each(interpreter, batch):
        outputs = run.run(interpreter, batch)
        for seen, detail in zip(parts, wanted, strict=True):
            seen.append(interpreter.get_tensor(detail["index"]))
        return outputs

    run.batches(interpreter, lite.arrays_of(x), each=each)
    return [_tensor(detail, np.concatenate(seen)) for detail, seen in zip(wanted, parts, strict=True)]


def _tensor(detail, values):
    scale, zero = detail["quantization"]
    limits = None
    if scale:
        ends = np.iinfo(detail["dtype"])
        limits = scale * (ends.min - zero), scale * (ends.max - zero)
    return _Tensor(detail["name"], np.asarray(run.restore(values, detail), "float32"), limits)


def _match_by_kernel(spots, stored, kernels):
    """Gives a layer whose kernel is in the file the output of the operation that holds it.

    LiteRT may have run the layers behind it in the same operation: of these the one whose values are most like the
    tensor's gets it, and those before are fused.
    """
    by_name, taken = {tensor.name: tensor for tensor in stored}, set()
    for place, spot in enumerate(spots):
        weights = [np.asarray(w) for w in getattr(spot.op, "weights", ()) if len(w.shape) > 1]
        entry = match.find(max(weights, key=np.size), kernels) if weights else None
        tensor = by_name.get(entry[2]) if entry else None
        if tensor is None or tensor.name in taken or tensor.values.size != spot.value.size:
            continue
        chain = _chain(spots, place)
        last = max(range(len(chain)), key=lambda i: (_correlation(chain[i].value, tensor.values), i))
        chain[last].give(tensor)
        taken.add(tensor.name)
        for before in chain[:last]:
            before.fused = True


def _match_by_values(spots, stored):
    """Gives every other output the tensor that is most like it, if one is like it at all."""
    free = {tensor.name: tensor for tensor in stored}
    for spot in spots:
        if spot.tensor is not None:
            free.pop(spot.tensor.name)
    for spot in spots:
        alike = [] if spot.tensor is not None or spot.fused else [
            (_correlation(spot.value, tensor.values), tensor.name) for tensor in free.values()
            if tensor.values.size == spot.value.size]
        most, name = max(alike, default=(0, None))
        if most >= _ALIKE:
            spot.give(free.pop(name))


def _chain(spots, place):
    """A spot, and those behind it that LiteRT may run in one with it."""
    chain = [spots[place]]
    while True:
        behind = [spot for spot in spots if chain[-1].key in spot.before]
        if len(behind) != 1 or not isinstance(behind[0].op, _FUSED) or behind[0].value.size != chain[0].value.size:
            return chain
        chain.append(behind[0])


def _correlation(a, b):
    a, b = (np.asarray(x, "float64").reshape(-1) for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.


def _row(spot, local, threshold_db):
    row = {"layer": spot.path, "class": type(spot.op).__name__, "tensor": "", "snr": np.nan, "own": np.nan,
           "status": "fused" if spot.fused else "not found", "why": "", "do": ""}
    if spot.tensor is None:
        return row | {"why": "LiteRT runs it in one with the layers behind it" if spot.fused
                      else "no tensor of the file was recognized as its output"}
    own = signal_to_noise(local.value, spot.tensor.values)
    why, do = _advice(local.value, spot.tensor, spot.op.name) if own < threshold_db else ("", "")
    return row | {"tensor": spot.tensor.name, "snr": round(signal_to_noise(spot.value, spot.tensor.values), 1),
                  "own": round(own, 1), "status": "loses" if own < threshold_db else "fine", "why": why, "do": do}


def _advice(value, tensor, name):
    """Why a tensor loses, and what helps."""
    if tensor.limits is None:
        return "it is in float: its weights were rounded, or a step inside it", "Train with quantize.wrap."
    flat = value.reshape(-1, value.shape[-1])
    low, high = tensor.limits
    step = (high - low) / 255
    beyond = (flat < low - step) | (flat > high + step)
    noise = (flat - tensor.values.reshape(flat.shape)) ** 2
    if beyond.any() and noise[beyond].sum() > 0.5 * noise.sum():
        return (f"{beyond.mean():.1%} of its values lie outside the calibrated range {low:.3g} to {high:.3g}",
                "Calibrate with more data, and with data like these.")
    spread = flat.max(axis=0) - flat.min(axis=0)
    if spread.max() > 10 * np.median(spread):
        times = spread.max() / max(np.median(spread), 1e-30)
        return (f"one scale for channels whose ranges differ {times:.0f} times",
                f"Keep it in float: quantize.wrap(model, where=lambda layer: layer.name != {name!r}); or train with "
                "quantize.wrap; or use int16x8.")
    if high - low > 8 * (flat.max() - flat.min()):
        return (f"its range is {(high - low) / max(np.ptp(flat), 1e-30):.0f} times that of its values here",
                "Calibrate with typical data, without outliers.")
    return "rounding its weights or its values to eight bits", "Train with quantize.wrap, or use int16x8."
