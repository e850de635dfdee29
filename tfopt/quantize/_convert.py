"""A Keras model -> a LiteRT file, in seconds: freeze the graph, convert, name its ends, check what came out."""

import re
import time
import warnings

import numpy as np
from absl import logging
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from .. import _models
from .._bridge.adopt import Adopted
from .._check import require
from .._keras import fresh_inputs, graph_of, keras, tf
from . import _file
from ._lite import LiteModel, quiet, take
from ._train import Quantized

_MODES = ("float32", "float16", "dynamic", "int8", "int16x8")
_INT16 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8


def convert(model, mode="int8", *, calibration=None):
    """Makes a LiteRT (TFLite) file of a model, and compares its outputs with the model's.

    A model from `quantize.wrap` becomes int8 with the ranges it learned. Any other built model is quantised after
    training: integers are `q = round(x / scale) + zero`, with the scales of the weights taken from the weights and
    those of the activations from the calibration data.

        mode        weights   arithmetic   needs calibration   size
        "float32"   float32   float32      no                  1
        "float16"   float16   float32      no                  1/2
        "dynamic"   int8      int8/float   no                  1/4     ranges measured at run time
        "int8"      int8      int8         yes                 1/4
        "int16x8"   int8      int16        yes                 1/4     slow on CPUs, precise

    Args:
      model: built Keras 3 model; it is only read. A subclassed model needs `calibration` to show its inputs.
      mode: one of the five above.
      calibration: typical inputs, 100 or more: array, dict or list of arrays, or a tf.data.Dataset of batches. The
        first 256 samples are used, for the ranges and for the check. Sizes that the model leaves open are theirs. If
        None, the check uses 8 samples of normal noise (zeros for integer inputs).

    Returns:
      A `LiteModel`. Its `report` has the largest output difference, the agreement (share of equal argmax), and the
      share of operations and multiply-accumulates in integers; its `plan` lists what stayed in float.

    Raises:
      ValueError: an unknown mode; int8 or int16x8 without calibration; inputs of unknown size; an operation that
        LiteRT does not have; a model of `quantize.wrap` in another mode than int8.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
      >>> x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
      >>> lite = quantize.convert(model, "int8", calibration=x)
      >>> lite.report["max_difference"] < 0.05, lite.report["integer_ops"]
      (True, 1.0)

    Reference: Jacob et al. 2017, https://arxiv.org/abs/1712.05877
    """
    start = time.perf_counter()
    _models.require_model(model, "quantize.convert")
    trained = isinstance(model, Quantized)
    require(trained or not isinstance(model, Adopted), "quantize.convert needs a plain model or one from quantize.wrap",
            model=type(model).__name__, do="Call `strip` of the module that wrapped it, and convert the result.")
    require(mode in _MODES, f"`mode` must be one of {', '.join(_MODES)}", mode=mode)
    require(mode == "int8" or not trained, "A model from quantize.wrap was trained for int8", mode=mode,
            do="Convert it in mode int8, or convert the model it was made of.")
    require(mode not in ("int8", "int16x8") or trained or calibration is not None,
            f"quantize.convert to {mode} needs calibration data: it cannot guess the ranges of the activations",
            calibration=None, do="Pass some hundred typical inputs, or train the model with quantize.wrap.")
    structure = _inputs(model, calibration)
    samples = _samples(structure, calibration)
    source = _in_float32(model)
    content, outputs = _to_lite(source, structure, samples, mode, trained)
    lite = _named(content, structure, outputs, {"mode": mode})
    report = {"mode": mode, **_compare(source, structure, samples, lite, calibration is None), **_shares(lite.ops),
              "seconds": round(time.perf_counter() - start, 2)}
    if mode == "dynamic" and lite.ops["op"].str.contains("CONV").any():
        warnings.warn("quantize.convert: dynamic range makes a model with convolutions smaller, but often slower on "
                      "CPUs than float32. Measure it, or use mode int8 with calibration data.", stacklevel=2)
    note = {"report": report}
    if trained:
        report.update(_preserved(source, lite.content))
        note["plan"] = source.plan.to_dict("records")
        if report["float_ops"] and (source.plan["status"] == "done").all():
            warnings.warn(f"quantize.convert: LiteRT left operations in float that the plan counts as done: "
                          f"{report['float_ops']}.", stacklevel=2)
    return _named(content, structure, outputs, note)


def _inputs(model, calibration):
    """The model's inputs as keras.Inputs of known size, nested as the model nests them."""
    graph = graph_of(model.base if isinstance(model, Quantized) else model)
    if graph is not None:
        inputs = fresh_inputs(graph)
        if calibration is not None:
            shapes = [array.shape for array in take(calibration, inputs)]
            sizes = iter(shapes)
            inputs = keras.tree.map_structure(lambda x: _sized(x, next(sizes)), inputs)
    else:
        require(calibration is not None, "quantize.convert needs to know the inputs of the model",
                model=_models.describe(model), do="Pass `calibration`, or rebuild it as keras.Model(inputs, outputs).")
        first = calibration
        if isinstance(calibration, tf.data.Dataset):
            first = next(iter(calibration))
            first = first[0] if isinstance(first, tuple) else first
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(np.shape(x)[1:], dtype=tf.as_dtype(x.dtype).name), first)
    flat = keras.tree.flatten(inputs)
    require(not any(x.sparse for x in flat), "quantize.convert needs dense inputs: LiteRT has no sparse ones",
            sparse=[x.name for x in flat if x.sparse])
    require(all(None not in x.shape[1:] for x in flat), "quantize.convert needs inputs of known size",
            shapes={x.name: x.shape for x in flat},
            do="Pass `calibration`, whose sizes are taken, or build the model with fixed ones.")
    return inputs


def _sized(x, shape):
    known = tuple(size or given for size, given in zip(x.shape[1:], shape[1:], strict=False))
    return keras.Input(batch_shape=(x.shape[0], *known), dtype=x.dtype, sparse=x.sparse, name=x.name)


def _samples(inputs, calibration):
    if calibration is not None:
        return take(calibration, inputs)
    noise = np.random.default_rng(0)
    return [noise.standard_normal((8, *x.shape[1:])).astype(x.dtype) if "float" in x.dtype
            else np.zeros((8, *x.shape[1:]), x.dtype) for x in keras.tree.flatten(inputs)]


def _in_float32(model):
    """`model`, or a copy that computes in float32 where it does not: LiteRT has no bfloat16."""
    base = model.base if isinstance(model, Quantized) else model
    if graph_of(base) is None or all(layer.dtype_policy.name == "float32" for layer in _models.layers(base).values()):
        return model
    plain = _models.copy(base, change=lambda layer: type(layer).from_config(_to_float32(layer.get_config())))
    if not isinstance(model, Quantized):
        return plain
    copy = type(model)(plain, model.recipe, name=model.name)
    copy.set_weights(model.get_weights())
    return copy


def _to_float32(config):
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy"):
            return "float32"
        return {key: _to_float32(value) for key, value in config.items()}
    return [_to_float32(value) for value in config] if isinstance(config, list | tuple) else config


def _to_lite(model, inputs, samples, mode, trained):
    """The converter's file, and the structure of its outputs."""
    outputs = None

    def run(*flat):
        nonlocal outputs
        outputs = model(keras.tree.pack_sequence_as(inputs, list(flat)), training=False)
        return [tf.identity(output) for output in keras.tree.flatten(outputs)]

    specs = [tf.TensorSpec((x.shape[0] or 1, *x.shape[1:]), x.dtype, name=f"input_{index}")
             for index, x in enumerate(keras.tree.flatten(inputs))]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            frozen = convert_variables_to_constants_v2(tf.function(run).get_concrete_function(*specs),
                                                       lower_control_flow=False)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
            _choose(converter, mode, None if trained else samples, frozen)
            content = converter.convert()
        except (ConverterError, RuntimeError) as error:
            missing = sorted(set(re.findall(r"'(tf\.\w+)' op is neither", str(error))))
            require(not missing, "quantize.convert: LiteRT lacks operations of this model", lacking=missing,
                    do="Take them out of the model, for instance preprocessing that can be done before it.")
            require(False, f"quantize.convert: the converter cannot make this model {mode}",
                    reason=str(error).strip().splitlines()[-1], do="Choose another mode.")
        finally:
            logging.set_verbosity(level)
    return content, outputs


def _choose(converter, mode, samples, frozen):
    sets, spec = tf.lite.OpsSet, converter.target_spec
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        spec.supported_types = [tf.float16]
    if mode in ("int8", "int16x8"):
        if mode == "int8" and not _holds_indices(frozen):
            converter.inference_input_type = converter.inference_output_type = tf.int8
        if samples is not None:
            loops = [op.name for op in frozen.graph.get_operations() if op.type in ("While", "StatelessWhile")]
            require(not loops, f"quantize.convert to {mode} cannot find the ranges inside loops", loops=loops,
                    do="Build the RNN layers with unroll=True, or convert in mode dynamic.")
            # With the float set as well, the converter leaves an operation in float where it would give up.
            spec.supported_ops = [{"int8": sets.TFLITE_BUILTINS_INT8}.get(mode, _INT16), sets.TFLITE_BUILTINS]
            step = frozen.inputs[0].shape[0]
            converter.representative_dataset = lambda: (
                [array[start:start + step] for array in samples] for start in range(0, len(samples[0]), step))


def _holds_indices(frozen):
    """Does a float input hold whole numbers, as those of Embedding may? Eight bits would change them."""
    return any(op.type == "Cast" and op.outputs[0].dtype.is_integer and op.inputs[0].op.type == "Placeholder"
               for op in frozen.graph.get_operations())


def _named(content, inputs, outputs, note):
    flat = keras.tree.flatten(outputs)
    order = keras.tree.pack_sequence_as(outputs, list(range(len(flat))))
    names = ["/".join(map(str, path)) or "output" for path, _ in _walk(order)]
    structure = keras.tree.map_structure(lambda _: 0, inputs)
    content = _file.sign(content, inputs=[x.name for x in keras.tree.flatten(inputs)], outputs=names,
                         note={"inputs": structure, "outputs": order, **note})
    return LiteModel(content)


def _walk(structure, path=()):
    """(path, number) of every leaf, in the order of the numbers."""
    if isinstance(structure, dict):
        found = [leaf for key, part in structure.items() for leaf in _walk(part, (*path, key))]
    elif isinstance(structure, list | tuple):
        found = [leaf for key, part in enumerate(structure) for leaf in _walk(part, (*path, key))]
    else:
        return [(path, structure)]
    return sorted(found, key=lambda leaf: leaf[1])


def _compare(model, inputs, samples, lite, on_noise):
    expected = []
    step = max(32, next(iter(keras.tree.flatten(inputs))).shape[0] or 1)
    for start in range(0, len(samples[0]), step):
        batch = keras.tree.pack_sequence_as(inputs, [tf.constant(array[start:start + step]) for array in samples])
        expected.append([np.asarray(output, "float32") for output in keras.tree.flatten(model(batch, training=False))])
    expected = [np.concatenate(parts) for parts in zip(*expected, strict=True)]
    try:
        found = keras.tree.flatten(lite.predict(keras.tree.pack_sequence_as(inputs, samples)))
    except RuntimeError as error:
        require(False, "quantize.convert: LiteRT cannot run this model in this mode",
                reason=str(error).split("Node number")[0].strip(), do="Choose another mode.")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    equal = [np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in zip(expected, found, strict=True) if a.shape[-1] > 1]
    return {"samples": len(samples[0]), "checked_on": "noise" if on_noise else "calibration",
            "max_difference": difference, "agreement": float(np.mean(equal)) if equal else None}


def _preserved(model, content):
    """Share of zeros and largest number of shared values, counted in the file; refuses if it lost any.

    A kernel is found in the file by its values, which differ by rounding and by one factor for each channel.
    """
    if not model.preserves:
        return {}
    found = [values for *_, values in _file.kernels(content) if values.dtype == np.int8]
    lost, zeros, size, most = {}, 0, 0, 0
    for name, (kernel, _, kept) in model.kernels().items():
        if not (kept["zeros"] or kept["centroids"]):
            continue
        pair = next(((values, own) for own in _layouts(kernel) for values in found if _same(values, own)), None)
        if pair is None:
            lost[name] = "not in the file"
            continue
        counts = [max(len(np.unique(row)) for row in (array if array.ndim == 4 else [array])) for array in pair]
        values, own = pair
        if kept["zeros"]:
            zeros, size = zeros + (values == 0).sum(), size + values.size
            if (values[own == 0] != 0).any():
                lost[name] = f"sparsity {(own == 0).mean():.4f} became {(values == 0).mean():.4f}"
        if kept["centroids"]:
            most = max(most, counts[0])
            if counts[0] > counts[1]:
                lost[name] = f"{counts[1]} shared values became {counts[0]}"
    require(not lost, "quantize.convert must keep what quantize.wrap preserved", lost=lost)
    return {**({"sparsity": float(zeros / size)} if size else {}), **({"clusters": most} if most else {})}


def _layouts(kernel):
    """A Keras kernel as LiteRT may lay it out: of Dense; of a convolution, a depthwise and a transposed one."""
    if kernel.ndim == 2:
        return [kernel.T]
    return [kernel.transpose(3, 0, 1, 2), kernel.reshape(1, *kernel.shape[:2], -1), kernel.transpose(2, 0, 1, 3)]


def _same(values, kernel):
    if values.shape != kernel.shape:
        return False
    first, second = (np.abs(array.reshape(len(array) if array.ndim == 4 else 1, -1).astype("float64"))
                     for array in (values, kernel))
    return np.abs(first / np.maximum(first.max(1, keepdims=True), 1e-30)
                  - second / np.maximum(second.max(1, keepdims=True), 1e-30)).max() < 0.03


def _shares(ops):
    computing, integer = ops[_file.computing(ops)], ops[_file.integer(ops)]
    left = computing[~_file.integer(computing)]
    return {"integer_ops": len(integer) / max(len(computing), 1),
            "integer_macs": float(integer["macs"].sum() / max(computing["macs"].sum(), 1)),
            "float_ops": {op: int(count) for op, count in left["op"].value_counts().items()}}
