"""A Keras model -> a LiteRT file, in seconds: convert, name its ends, check what came out."""

import time
import warnings

import numpy as np

from .. import _data, _models
from .._check import MODEL, OneOf, checked, require
from .._keras import fresh_inputs, graph_of, keras, tf
from .._litert import file, match, run
from .._litert.convert import CALIBRATED, in_float32, require_convertible, sized, to_lite
from .._typing import Data
from . import _candidates
from ._layers import unrounded
from ._lite import LiteModel, take
from ._train import Rounding, require_stripped

_MODES = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")
_BY_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D")
_POOR = 10                  # dB: noise of a third of the signal


@checked(model=MODEL, mode=OneOf(*_MODES), rounding=OneOf("auto", "nearest"))
def convert(model: keras.Model, mode: str | None = None, *, calibration: Data | None = None,
            rounding: str = "auto") -> LiteModel:
    """LiteRT (TFLite) conversion: makes a file of a model, and compares its outputs with the model's.

    A model from `quantize.wrap` becomes int8 or int4, as it was trained, with the ranges it learned. Any other built
    model is quantized after training: integers are `q = round(x / scale) + zero`, with the scales of the weights taken
    from the weights and those of the activations from the calibration data.

        mode        weights   arithmetic   needs calibration   size
        "float32"   float32   float32      no                  1
        "float16"   float16   float32      no                  1/2
        "dynamic"   int8      int8/float   no                  1/4     ranges measured at run time
        "int8"      int8      int8         yes                 1/4
        "int16x8"   int8      int16        yes                 1/4     slow on CPUs, precise
        "int4"      int4      int8         yes                 1/8     for size: not faster; depthwise kernels in int8

    With calibration data the integers of the kernels are chosen by error compensation (GPTQ, then coordinate descent),
    layer by layer, with the inputs that the layers before produce, and biases make up for the mean error that is left.
    Activations of int8 and int4 get the ranges of least squared error if that wins half a dB.
    Channels of very different ranges are equalized first where that is exact. Files made in these ways and the
    converter's own are compared on the last quarter of the calibration data, and the best one is returned:
    `report["rounding"]` names it, `report["sqnr_db"]` has the signal-to-noise ratio of each. Zeros stay zeros, and
    kernels of shared values (clustered ones) keep theirs. A file below 10 dB comes with a warning.

    Random states stand still in a file. A file takes one sample at once; most can be resized to any number
    (`LiteModel.predict(x, batch_size=32)`, or `resize_tensor_input` of an interpreter): `report["resizable"]` says so.

    Args:
      model: built Keras 3 model; it is only read. A subclassed model needs `calibration` to show its inputs.
      mode: one of the six above; None for "int8", or for that which `quantize.wrap` has trained the model for.
      calibration: typical inputs, 100 or more: array, dict or list of arrays, or a tf.data.Dataset of batches. The
        first 256 samples are used, for the ranges and for the check. Sizes that the model leaves open are theirs. If
        None, the check uses 8 samples of normal noise (zeros for integer inputs).
      rounding: "auto", as above; "nearest" takes the nearest integer of each weight, as the converter does.

    Returns:
      A `LiteModel`. Its `report` has `compared_with` and `checked_on`, the largest output difference, the agreement
      (share of equal argmax), and the share of operations and multiply-accumulates in integers; for a model from
      `quantize.wrap` also `float_model`, `float_difference` and `float_agreement`, which compare with the model that
      was wrapped, or, where it is not at hand (in another process), with the trained weights before rounding. Its
      `plan` lists what stayed in float.

    Raises:
      ValueError: an unknown mode; int8 or int16x8 without calibration; inputs of unknown size; an operation that
        LiteRT does not have, such as a vocabulary; a model of `quantize.wrap` in another mode than its own.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
      >>> x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
      >>> lite = quantize.convert(model, "int8", calibration=x)
      >>> lite.report["max_difference"] < 0.05, lite.report["integer_ops"]
      (True, 1.0)

    Reference:
      Jacob et al. 2017, https://arxiv.org/abs/1712.05877
      Frantar et al., GPTQ, 2022, https://arxiv.org/abs/2210.17323
      Nagel et al., Data-free quantization through weight equalization and bias correction, 2019,
      https://arxiv.org/abs/1906.04721
    """
    start = time.perf_counter()
    trained = isinstance(model, Rounding)
    mode = mode or (model.mode if trained else "int8")
    _require_convertible(model, mode, calibration, trained)
    structure, samples = _inputs(model, calibration)
    source = model if trained else in_float32(model)
    content, outputs, batch = to_lite(source, structure, samples, mode, trained)
    rounded, expected = {}, None
    if not trained and calibration is not None and mode in (*CALIBRATED, "dynamic"):
        _run(content, [array[:batch or 1] for array in samples])              # may LiteRT run it at all?
        expected = _expected(source, structure, samples)
        content, rounded = _candidates.best(
            source, content, expected, samples, mode, rounding,
            lambda one, mode: to_lite(one, structure, samples, mode, False)[0])
    parsed = file.parse(content)
    ops = file.operations(parsed)
    if trained:
        file.separate_biases(parsed)
        file.spread_biases(parsed)
    if batch == 1:
        file.open_batch(parsed)
    sign = _Signature(structure, outputs)
    found, resizable = _run(file.pack(parsed), samples)
    report = {"mode": mode, "checked_on": "noise" if calibration is None else "calibration", "samples": len(samples[0]),
              **_compare(model, structure, samples, found, trained, expected if source is model else None),
              **_shares(ops), **rounded, "resizable": resizable}
    note = {"report": report}
    if trained:
        report.update(_preserved(source, parsed))
        note["plan"] = source.plan.to_dict("records")
    _warn(mode, report, ops, trained and (source.plan["status"] == "selected").all())
    report["seconds"] = round(time.perf_counter() - start, 2)
    file.sign(parsed, inputs=sign.inputs, outputs=sign.outputs, note={**sign.note, **note})
    return LiteModel(file.seal(file.pack(parsed)))


def _require_convertible(model, mode, calibration, trained):
    _models.require_model(model, "quantize.convert")
    _models.require_finite(model)
    require_stripped(model)
    require(not trained or mode == model.mode, "a model from quantize.wrap is converted as it was trained",
            mode=mode, trained_for=model.mode if trained else None,
            do="Leave `mode` out, or convert the model it was made of.")
    require(mode not in CALIBRATED or trained or calibration is not None,
            f"{mode} needs calibration data: it cannot guess the ranges of the activations",
            calibration=None, do="Pass some hundred typical inputs, or train the model with quantize.wrap.")
    require_convertible(model)


def _inputs(model, calibration):
    """The model's inputs as keras.Inputs of known size, nested as the model nests them; and a list of their samples."""
    graph, samples = graph_of(model), None
    if graph is not None:
        inputs = fresh_inputs(graph)
    else:
        require(calibration is not None, "needs to know the inputs of the model",
                model=_models.describe(model), do="Pass `calibration`, or rebuild it as keras.Model(inputs, outputs).")
        shown = _data.read(calibration, name="calibration", targets="ignored").head(1).x
        inputs = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype.name), shown)
    if calibration is not None:
        samples = take(calibration, inputs)
    inputs = sized(inputs, samples, "calibration")
    flat = keras.tree.flatten(inputs)
    own = flat[0].shape[0]                                 # a fixed number is fed in whole batches
    if samples is not None:
        count = len(samples[0]) // own * own if own else len(samples[0])
        require(count, "`calibration` must fill a batch of the size that the model fixes", batch_size=own,
                samples=len(samples[0]), do="Pass more, or build the model without a batch size.")
        return inputs, [array[:count] for array in samples]
    noise = np.random.default_rng(0)
    return inputs, [noise.standard_normal((own or 8, *x.shape[1:])).astype(x.dtype) if "float" in x.dtype
                    else np.zeros((own or 8, *x.shape[1:]), x.dtype) for x in flat]


class _Signature:
    """The names of a file's inputs and outputs, and how the model nests them."""

    def __init__(self, inputs, outputs):
        order = keras.tree.pack_sequence_as(outputs, list(range(len(keras.tree.flatten(outputs)))))
        self.inputs = [x.name for x in keras.tree.flatten(inputs)]
        self.outputs = ["/".join(map(str, path)) or "output" for path, _ in _walk(order)]
        self.note = {"inputs": keras.tree.pack_sequence_as(inputs, list(range(len(self.inputs)))), "outputs": order}


def _walk(structure, path=()):
    """(path, number) of every leaf, in the order of the numbers."""
    if isinstance(structure, dict):
        found = [leaf for key, part in structure.items() for leaf in _walk(part, (*path, key))]
    elif isinstance(structure, list | tuple):
        found = [leaf for key, part in enumerate(structure) for leaf in _walk(part, (*path, key))]
    else:
        return [(path, structure)]
    return sorted(found, key=lambda leaf: leaf[1])


def _run(content, samples):
    """The file's outputs for all samples, and whether it gives the same when it takes several at once."""
    try:
        found = run.batches(run.interpreter(content), samples)
    except (RuntimeError, ValueError) as error:
        raise _candidates.cannot_run(error) from None
    several = [np.resize(array, (3, *array.shape[1:])) for array in samples]
    try:
        at_once = run.run(run.interpreter(content, batch=3), several)
    except (RuntimeError, ValueError):
        return found, False
    wanted = [np.resize(array, (3, *array.shape[1:])) for array in found]
    return found, all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=0.05 * np.ptp(b) + 1e-6)
                      for a, b in zip(at_once, wanted, strict=True))


def _compare(model, inputs, samples, found, trained, expected=None):
    """How far the file is from the model that was passed in; and from the one in float that this was made of."""
    difference, agreement = _difference(expected or _expected(model, inputs, samples), found)
    report = {"compared_with": "the trained model, rounding included" if trained else "the model",
              "max_difference": difference, "agreement": agreement}
    if trained:
        original = model.original.held if model.original else None
        with unrounded():
            difference, agreement = _difference(_expected(original or model, inputs, samples), found)
        report |= {"float_model": "the model passed to quantize.wrap" if original else "the trained weights in float",
                   "float_difference": difference, "float_agreement": agreement}
    return report


def _expected(model, inputs, samples):
    """The model's outputs in float32, run with random states that stand still."""
    step, found = next(iter(keras.tree.flatten(inputs))).shape[0] or 32, []
    for start in range(0, len(samples[0]), step):
        batch = keras.tree.pack_sequence_as(inputs, [tf.constant(array[start:start + step]) for array in samples])
        with keras.StatelessScope():
            found.append([np.asarray(x, "float32") for x in keras.tree.flatten(model(batch, training=False))])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _difference(expected, found):
    """Largest difference, and share of equal argmax (None if no output has several values)."""
    pairs = [(a, b[:len(a)]) for a, b in zip(expected, found, strict=True)]
    equal = [np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs if a.shape[-1:] > (1,)]
    return max(float(np.abs(a - b).max()) for a, b in pairs), float(np.mean(equal)) if equal else None


def _warn(mode, report, ops, all_selected):
    if mode == "dynamic" and (ops["op"] == "DEPTHWISE_CONV_2D").any():
        warnings.warn("quantize.convert: dynamic range makes a model with depthwise convolutions smaller, but often "
                      "slower on CPUs than float32. Measure it, or use mode int8 with calibration data.", stacklevel=3)
    if all_selected and report["float_ops"]:
        warnings.warn(f"quantize.convert: LiteRT left operations in float that the plan counts as selected: "
                      f"{report['float_ops']}.", stacklevel=3)
    level = report.get("sqnr_db", {}).get(report.get("rounding"), _POOR)
    if level < _POOR:
        warnings.warn(f"quantize.convert: the outputs of this {mode} file are far from the model's, {level} dB of "
                      "signal to noise on calibration data. quantize.diagnose names the layers that lose.",
                      stacklevel=3)


def _preserved(model, parsed):
    """Share of zeros and largest number of shared values, counted in the file; refuses if it lost any."""
    layers = {name: layer for name, layer in model.rounded().items() if layer.preserves}
    entries = [entry for entry in file.kernels(parsed) if entry[-1].dtype == np.int8]
    lost, zeros, size, most = {}, 0, 0, 0
    for name, layer in layers.items():
        pair = match.pair(layer.kernels()[0], entries)
        if pair is None:
            lost[name] = "not in the file"
            continue
        (op, *_), stored, own = pair
        if layer.zeros:
            zeros, size = zeros + (stored == 0).sum(), size + stored.size
            if (stored[own == 0] != 0).any():
                lost[name] = f"sparsity {(own == 0).mean():.4f} became {(stored == 0).mean():.4f}"
        if layer.centroids:                                # one scale a channel for convolutions, else one for all
            found, before = (max(len(np.unique(part)) for part in (rows if op in _BY_CHANNEL else [rows]))
                             for rows in (stored, own))
            most = max(most, found)
            if found > before:
                lost[name] = f"{before} shared values became {found}"
    require(not lost, "must keep what quantize.wrap preserved", lost=lost)
    return {**({"sparsity": float(zeros / size)} if size else {}), **({"clusters": most} if most else {})}


def _shares(ops):
    computing, integer = ops[file.computing(ops)], ops[file.integer(ops)]
    left = computing[~file.integer(computing)]
    return {"integer_ops": len(integer) / max(len(computing), 1),
            "integer_macs": float(integer["macs"].sum() / max(computing["macs"].sum(), 1)),
            "float_ops": {op: int(count) for op, count in left["op"].value_counts().items()}}
