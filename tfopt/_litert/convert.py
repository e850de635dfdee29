"""A Keras model -> a LiteRT file: freeze the graph, convert."""

import re
import warnings

from absl import logging

from .. import _models
from .._check import refusal, require
from .._keras import fresh_inputs, graph_of, keras, parts_of, tf
from .._keras.lite import ConverterError, frozen
from . import file, run
from .rewrite import for_integers

CALIBRATED = ("int8", "int16x8", "int4")
_INT16 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
_WORDS = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.Hashing,
          keras.layers.HashedCrossing)


def require_convertible(model):
    """Refuses a model that holds what LiteRT does not have."""
    parts = parts_of(model)
    words = [f"{part.name} ({type(part).__name__})" for part in parts if isinstance(part, _WORDS)]
    require(not words, "LiteRT has no vocabularies, hashes and texts", layers=words,
            do="Leave these layers outside: convert keras.Model(what comes out of them, model.output), and run them "
               "before the file.")
    stateful = [part.name for part in parts if getattr(part, "stateful", False)]
    require(not stateful, "a file keeps no state from one call to the next", stateful=stateful,
            do="Build these layers with stateful=False.")


def sized(inputs, samples, name):
    """keras.Inputs of the sizes of some samples (arrays, flat; None: of their own), nested as `inputs`.

    Refuses what is sparse or, without samples, open; `name` is the argument that would have them.
    """
    if samples is not None:
        inputs = keras.tree.pack_sequence_as(inputs, [
            keras.Input(batch_shape=(x.shape[0], *array.shape[1:]), dtype=x.dtype, sparse=x.sparse, name=x.name)
            for x, array in zip(keras.tree.flatten(inputs), samples, strict=True)])
    flat = keras.tree.flatten(inputs)
    require(not any(x.sparse for x in flat), "needs dense inputs: LiteRT has no sparse ones",
            sparse=[x.name for x in flat if x.sparse])
    require(all(None not in x.shape[1:] for x in flat), "needs inputs of known size",
            shapes={x.name: x.shape for x in flat},
            do=f"Pass `{name}`, whose sizes are taken, or build the model with fixed ones.")
    return inputs


def in_float(model, samples, name):
    """The bytes of a float32 file of a graph model, for inputs of the sizes of `samples`; see `sized`."""
    require_convertible(model)
    inputs = sized(fresh_inputs(graph_of(model)), samples, name)
    return to_lite(in_float32(model), inputs, None, "float32")[0]


def in_float32(model):
    """`model`, or a copy that computes in float32 where it does not: LiteRT has no bfloat16.

    In the copy, the norm of one feature is the constant that it is: x - mean(x) is zero, which eight bits do not get.
    """
    used = [] if graph_of(model) is None else _models.layers(model).values()
    if all(x.dtype_policy.name == "float32" and not _is_constant(x) for x in used):
        return model
    return _models.copy(model, dtype="float32",
                        change=lambda x: _ConstantNorm.from_config(x.get_config()) if _is_constant(x) else None)


def _is_constant(layer):
    weights = (layer.beta, layer.gamma) if type(layer) is keras.layers.LayerNormalization else ()
    return any(v is not None and v.shape.num_elements() == 1 for v in weights) and not layer.rms_scaling


class _ConstantNorm(keras.layers.LayerNormalization):
    def call(self, inputs):
        zeros = keras.ops.clip(inputs, 0.0, 0.0)           # TensorFlow breaks graphs where it folds such zeros
        return zeros if self.beta is None else zeros + self.beta


def to_lite(model, inputs, samples, mode, trained=False):
    """The converter's file, the structure of the model's outputs, and how many samples the file takes at once.

    Args:
      model: that computes in float32, see `in_float32`.
      inputs: keras.Inputs that `require_convertible` has let pass, nested as the model nests them.
      samples: arrays, one for each input; None where the mode needs none.
      mode: as of `quantize.convert`.
      trained: the model holds the ranges itself.
    """
    own = next(iter(keras.tree.flatten(inputs))).shape[0]
    problems = []
    # The converter makes some models of open batch size alone, and others only of constants that are not folded: it
    # knows GELU by its parts.
    for batch, fold in [(own or 1, not trained), *([(own or 1, False)] if not trained else []),
                        *([] if own else [(None, not trained)])]:
        try:
            return *_converted(model, inputs, samples, mode, trained, batch, fold), batch
        except (ConverterError, RuntimeError) as error:
            problems.append(str(error))
    missing = sorted(set(re.findall(r"'(tf\.\w+)' op is neither", problems[0])))
    require(not missing, "LiteRT lacks operations of this model", lacking=missing,
            do="Take them out of the model, for instance preprocessing that can be done before it.")
    raise refusal(f"the converter cannot make this model {mode}: {_first_error(problems[0])}",
                  do="Choose another mode, or replace the layer that it names.")


def _converted(model, inputs, samples, mode, trained, batch, fold):
    outputs = None

    def forward(*flat):
        nonlocal outputs
        with keras.StatelessScope():                       # what a call changes (random states) stands still in a file
            outputs = model(keras.tree.pack_sequence_as(inputs, list(flat)), training=False)
        return [tf.identity(output) for output in keras.tree.flatten(outputs)]

    specs = [tf.TensorSpec((batch, *x.shape[1:]), x.dtype, name=f"input_{index}")
             for index, x in enumerate(keras.tree.flatten(inputs))]
    with run.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            function = frozen(forward, specs, fold=fold)
            if mode in CALIBRATED and not trained:
                function = for_integers(function, mode)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
            _choose(converter, mode, None if trained else samples, function)
            content = converter.convert()
            if mode in CALIBRATED and any(op.type == "SquaredDifference" for op in function.graph.get_operations()):
                parsed = file.parse(content)
                file.widen_squared_differences(parsed)
                content = file.pack(parsed)
            return content, outputs
        finally:
            logging.set_verbosity(level)


def _first_error(text):
    """What the converter complains of, without the place in its own source."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    line = next((line for line in lines if "error:" in line), lines[0] if lines else "no reason given")
    return line.split("error:", 1)[-1].strip().rstrip(".")


def _choose(converter, mode, samples, function):
    sets, spec = tf.lite.OpsSet, converter.target_spec
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        spec.supported_types = [tf.float16]
    if mode in CALIBRATED:
        if mode != "int16x8" and not _wants_floats(function):
            converter.inference_input_type = converter.inference_output_type = tf.int8
        if samples is not None:
            loops = [op.name for op in function.graph.get_operations() if op.type in ("While", "StatelessWhile")]
            require(not loops, f"{mode} cannot find the ranges inside loops", loops=loops,
                    do="Build the RNN layers with unroll=True, or convert in mode dynamic.")
            # With the float set as well, the converter leaves an operation in float where it would give up.
            spec.supported_ops = [_INT16 if mode == "int16x8" else sets.TFLITE_BUILTINS_INT8, sets.TFLITE_BUILTINS]
            step = function.inputs[0].shape[0] or 1
            converter.representative_dataset = lambda: (
                [array[start:start + step] for array in samples] for start in range(0, len(samples[0]), step))


def _wants_floats(function):
    """Would eight bits at the ends change what an input tells: indices, as for Embedding, or where a mask is?"""
    for source in function.inputs:
        takers = source.consumers()
        rounded = [op for op in takers if op.type.startswith("FakeQuant")]
        if (rounded and len(rounded) < len(takers)) or any(
                op.outputs[0].dtype.is_bool or (op.type == "Cast" and op.outputs[0].dtype.is_integer) for op in takers):
            return True
    return False
