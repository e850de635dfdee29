"""What a model answers with: logits, or probabilities whose logits stand one operation earlier in the graph."""

import functools
import inspect
import typing

from .. import _models
from .._check import require
from .._keras import graph_of, keras, producer, tf
from ._formulas import log_probability

_PROBABILITY = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_THROUGH = {"Identity", "Cast", "StopGradient", "PreventGradient", "EnsureShape", "CheckNumerics",
            "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
_RESHAPE = {"Reshape", "Squeeze", "ExpandDims", "Transpose", "Mean"}
_AFFINE = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv1D", "Conv2D", "Conv3D",
           "DepthwiseConv2dNative", "Conv2DBackpropInputV2", "Conv2DBackpropInput", "LogSoftmax"}
_SHIFT_OR_SCALE = {"BiasAdd", "AddV2", "Add", "Sub", "Mul", "RealDiv", "AddN"}


def run(model, x, training):
    """Calls `model`, also one whose `call` has no `training` argument."""
    if "training" in inspect.signature(model.call).parameters:
        return model(x, training=training)
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
        return "logits", tensor, op.type, 1.
    if op.type in _THROUGH:
        kind, logits, last, mass = _trace(op.inputs[0])
        return kind, tensor if kind == "logits" else logits, last, mass
    if op.type in _RESHAPE:
        kind, _, last, _ = _trace(op.inputs[0])
        return ("logits", tensor, last, 1.) if kind == "logits" else (None, None, f"{op.type} of {last}", 1.)
    if op.type in _SHIFT_OR_SCALE:
        return _trace_sum(op, tensor)
    return None, None, op.type, 1.


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
    """[(path, shape, dtype, kind, last operation)] of a model's outputs, from one trace that leaves nothing behind."""
    found = []

    def look(x):
        for path, output in keras.tree.flatten_with_path(run(model, x, False)):
            kind, _, last = trace(output)
            found.append((path, tuple(output.shape), output.dtype.name, kind, last))

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


class Answer(typing.NamedTuple):
    """One output of a model: where it stands, and of what kind it is."""

    path: tuple
    shape: tuple
    dtype: str
    kind: str | None
    last: str


class Result(typing.NamedTuple):
    """What one side said to one batch."""

    outputs: object
    features: dict

    def at(self, path):
        return functools.reduce(lambda outputs, key: outputs[key], path, self.outputs)


def inputs_of(*models):
    """Tensors like those of a batch, from whichever models are graphs."""
    graphs = [graph_of(getattr(model, "base", model)) for model in models]     # a wrapped model holds the plain one
    inputs = [graph.input for graph in graphs if graph is not None]
    shapes = [[tuple(tensor.shape) for tensor in keras.tree.flatten(nested)] for nested in inputs]
    for other in shapes[1:]:
        require(_fit(shapes[0], other), "teacher and student must take the same inputs", shapes=shapes)
    if inputs:
        return inputs[0]
    shape = next((config for model in models if (config := model.get_build_config())), {})
    require("input_shape" in shape, "one of teacher and student must tell the shape of its input",
            models=[_models.describe(model) for model in models],
            do="Build one with keras.Model(inputs, outputs), or with build(input_shape).")
    return keras.KerasTensor(shape["input_shape"])


def _fit(shapes, others):
    return len(shapes) == len(others) and all(
        len(a) == len(b) and all(None in (m, n) or m == n for m, n in zip(a, b, strict=True))
        for a, b in zip(shapes, others, strict=True))


def _tensors(graph):
    """{name of an operation: its tensors} of everything the outputs of a graph are made from."""
    found, waiting, seen = {}, list(graph.outputs), set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            op, inputs = producer(tensor)
            found.setdefault(op.name, []).append(tensor)
            waiting.extend(inputs)
    return found


class Remembered:
    """A teacher that is not there: its answers come with the data."""

    model, name, role = None, "remembered answers", "teacher"

    def __init__(self, student):
        self._student = student

    def answer(self, output):
        """As the student's, in logits; the data are looked at when they come."""
        return self._student.answer(output)._replace(path=(), kind="logits")

    def tap(self, layer):
        require(False, "remembered answers hold no features", layer=layer, do="Pass the teacher itself.")


class Side:
    """The teacher or the student, as the losses see it: its answers, and layers they can tap.

    Args:
      model: a built model.
      role: "teacher" or "student", for the sentences.
      inputs: tensors like those of a batch, nested as the model takes them.
    """

    def __init__(self, model, role, inputs):
        self.model, self.role, self._inputs = model, role, inputs
        self.name = model.name
        self._taps = {}
        self._view = None

    @functools.cached_property
    def answers(self):
        return [Answer(*found) for found in inspect_outputs(self.model, self._inputs)]

    def answer(self, output):
        """The output a loss asks for by its key or index; None stands for the only one."""
        found = [answer for answer in self.answers if answer.path == (() if output is None else (output,))]
        require(found, "`output` must be the key or the index of one output of the model", output=output,
                **{self.role: _models.describe(self.model)},
                do=f"Choose one of {[path[0] if path else None for path, *_ in self.answers]}, one loss for each.")
        return found[0]

    def tap(self, layer):
        """Makes the output of a layer part of each `Result`; returns its shape."""
        graph = graph_of(self.model)
        require(graph is not None, "a layer can be tapped in a functional or Sequential model only", layer=layer,
                **{self.role: _models.describe(self.model)}, do="Use a loss of the answers, such as Logits.")
        found = _tensors(graph)
        require(layer in found, f"the {self.role} must have a layer of this name", layer=layer,
                do=f"Its layers are {', '.join(reversed(found))}.")
        require(len(found[layer]) == 1, f"a tapped layer of the {self.role} must be used once and have one output",
                layer=layer, do="Name another layer, or put an Identity layer behind the use that is meant.")
        self._taps[layer], = found[layer]
        self._view = keras.Model(graph.input, {"outputs": graph.output, "features": self._taps})
        return tuple(self._taps[layer].shape)

    def __call__(self, x, training):
        if self._view is None:
            return Result(run(self.model, x, training), {})
        return Result(**self._view(x, training=training))
