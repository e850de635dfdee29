"""The kind of a model's outputs: logits, or probabilities whose logits are a few operations earlier in the graph."""

import inspect

from .._keras import calls_in_training, keras, tf
from ._formulas import log_probability

_PROBABILITY = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_THROUGH = {"Identity", "Cast", "StopGradient", "PreventGradient", "EnsureShape", "CheckNumerics",
            "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
_RESHAPE = {"Reshape", "Squeeze", "ExpandDims", "Transpose", "Pack", "Mean", "StridedSlice"}
_AFFINE = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv1D", "Conv2D", "Conv3D",
           "DepthwiseConv2dNative", "Conv2DBackpropInputV2", "Conv2DBackpropInput", "LogSoftmax"}
_SHIFT_OR_SCALE = {"BiasAdd", "AddV2", "Add", "Sub", "Mul", "RealDiv", "AddN"}


def run(model, x, training):
    """Calls `model`, also one whose `call` has no `training` argument."""
    if "training" in inspect.signature(model.call).parameters:
        return model(x, training=training)
    with calls_in_training(model, training):
        return model(x)


def trace(tensor):
    """(kind, logits or None, last operation) of a tensor in a graph.

    kind is "logits", "softmax" or "sigmoid"; None for outputs that are none of them for sure. Logits come from an
    affine layer, shifted or scaled by parameters alone. A weighted mean of probabilities is one too, without logits.
    """
    kind, logits, last, mass = _trace(tensor)
    return (kind if abs(mass - 1) < 1e-5 else None), logits, last


def _trace(tensor):
    """As `trace`, and what the probabilities of one example sum to."""
    op = tensor.op
    if op.type in _PROBABILITY:
        return _PROBABILITY[op.type], op.inputs[0], op.type, 1.
    if op.type in _AFFINE:
        mixes = not any(map(_is_parameter, op.inputs)) and any(_trace(x)[0] in _PROBABILITY.values() for x in op.inputs)
        return (None, None, f"{op.type} of probabilities", 1.) if mixes else ("logits", tensor, op.type, 1.)
    if op.type in _THROUGH:
        kind, logits, last, mass = _trace(op.inputs[0])
        return kind, tensor if kind == "logits" else logits, last, mass
    if op.type in _RESHAPE:
        found = [_trace(x) for x in (op.inputs if op.type == "Pack" else op.inputs[:1])]
        kind = found[0][0] if len({kind for kind, *_ in found}) == 1 else None
        _, _, last, mass = found[0]
        if kind == "logits":
            return kind, tensor, last, 1.
        if kind is None or op.type in ("Mean", "StridedSlice") or any(x[3] != mass for x in found) or (
                kind == "softmax" and not _keeps_classes(op)):
            return None, None, f"{op.type} of {last}", 1.
        logits = [logits for _, logits, *_ in found]
        return kind, None if any(part is None for part in logits) else _moved(op, logits), last, mass
    if op.type in _SHIFT_OR_SCALE:
        return _trace_sum(op, tensor)
    return None, None, op.type, 1.


def _keeps_classes(op):
    """Does an operation that moves numbers leave the last axis the last, as a whole?"""
    source, target = op.inputs[0].shape, op.outputs[0].shape
    if source.rank is None or target.rank is None:
        return False
    if op.type == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        return order is not None and order[-1] == source.rank - 1
    if op.type == "Pack":
        return op.get_attr("axis") not in (-1, source.rank)
    return source[-1] is not None and source[-1] == target[-1]


def _moved(op, logits):
    """The logits, moved as `op` moves their probabilities."""
    if op.type == "Pack":
        return tf.stack(logits, op.get_attr("axis"))
    if op.type == "Squeeze":
        return tf.squeeze(logits[0], op.get_attr("squeeze_dims"))
    return {"Reshape": tf.reshape, "ExpandDims": tf.expand_dims, "Transpose": tf.transpose}[op.type](
        logits[0], op.inputs[1])


def _trace_sum(op, tensor):
    parameters = [operand for operand in op.inputs if _is_parameter(operand)]
    found = [_trace(operand) for operand in op.inputs if not _is_parameter(operand)]
    kinds = {kind for kind, *_ in found}
    product = op.type in ("Mul", "RealDiv")
    if len(kinds) == 1 and (len(found) == 1 or not product):
        kind, = kinds
        if kind == "logits":
            return kind, tensor, op.type, 1.
        factor = tf.get_static_value(parameters[0]) if product and parameters else None
        mass = sum(mass for *_, mass in found)
        if kind and product and factor is not None and factor.size == 1:
            return kind, None, op.type, mass / float(factor) if op.type == "RealDiv" else mass * float(factor)
        if kind and op.type in ("AddV2", "Add", "AddN") and not parameters:
            return kind, None, op.type, mass
    return None, None, op.type, 1.


def _is_parameter(tensor):
    op = tensor.op
    if op.type in ("ReadVariableOp", "Const"):
        return True
    return op.type in _THROUGH | _RESHAPE and _is_parameter(op.inputs[0])


def inspect_outputs(model, inputs):
    """[(path, shape, kind, last operation)] of a model's outputs, from one trace that leaves nothing behind."""
    found = []

    def look(x):
        for path, output in keras.tree.flatten_with_path(run(model, x, False)):
            kind, _, last = trace(output)
            found.append((path, tuple(output.shape), kind, last))

    with keras.StatelessScope():
        tf.function(look, autograph=False).get_concrete_function(
            keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs))
    return found


def logits_of(outputs, kind):
    """The logits behind `outputs` of a known kind: the tensor before the activation, else a safe logarithm."""
    if kind == "logits":
        return outputs
    before = getattr(outputs, "_keras_logits", None)
    if before is None and not tf.executing_eagerly():
        before = trace(outputs)[1]
    return log_probability(outputs, kind) if before is None else before
