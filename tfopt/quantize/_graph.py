"""What quantisation does to each layer of a model, and the model prepared for it.

TFMOT's 8-bit scheme says where a tensor is rounded to eight bits: the input, every kernel, and the output of what
computes, but not between the parts that LiteRT runs as one operation (a convolution with the BatchNormalization and
the ReLU behind it, an addition with its ReLU, what is concatenated). Here these places become layers of a Keras 3
model: Identity layers that stand for ranges. `_toolkit.quantization` then puts TFMOT's quantisers there.
"""

import dataclasses
import math

from .._bridge import legacy_name
from .._bridge.build import run
from .._keras import fresh_inputs, fresh_operation, graph_of, keras, uses

layers = keras.layers

_KERNELS = {"Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D",
            "SeparableConv2D"}
_FOLDS = {"Conv1D", "Conv2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"}
_PASSES = {"ActivityRegularization", "AlphaDropout", "AveragePooling1D", "AveragePooling2D", "Cropping1D", "Cropping2D",
           "Dropout", "ExpandDims", "Flatten", "GaussianDropout", "GaussianNoise", "GetItem", "GlobalMaxPooling1D",
           "GlobalMaxPooling2D", "Identity", "MaxPooling1D", "MaxPooling2D", "Permute", "RandomBrightness",
           "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RepeatVector",
           "Reshape", "Resizing", "SpatialDropout1D", "SpatialDropout2D", "Squeeze", "Transpose", "UpSampling1D",
           "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D"}
_ROUNDED = {"Add", "Concatenate", "Divide", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "LayerScale",
            "LeakyReLU", "Maximum", "Mean", "Minimum", "Multiply", "PReLU", "ReLU", "Relu", "Relu6", "Subtract",
            "TrueDivide"}
_FIXED = {"Sigmoid", "Softmax", "Tanh"}
ACTIVATIONS = {"gelu": "range", "hard_silu": "range", "leaky_relu": "range", "relu": "range",
                "relu6": "range", "sigmoid": "fixed", "silu": "range", "softmax": "fixed", "tanh": "fixed"}
_OUTPUT = "no rule for it: its output is rounded, what is inside may compute in float"
_LOOPS = (layers.RNN, layers.Bidirectional, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)


@dataclasses.dataclass(eq=False)
class Use:
    """One use of a layer or operation in a flat graph."""

    op: object
    path: str                      # in the user's model
    args: tuple                    # with the graph's KerasTensors
    kwargs: dict
    outputs: list                  # KerasTensors
    kind: str = ""                 # kernel, fold, lone, norm, scale, range, fixed, pass, output or float
    why: str = ""

    @property
    def inputs(self):
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, keras.KerasTensor)]


class Graph:
    """A copy of a model with its nested models opened, and what quantisation does to each use of a layer.

    Args:
      model: built graph model; it is only read.
      chosen: paths of the layers to quantise, or None for all that can be. The BatchNormalization and the ReLU that
        LiteRT runs as one with a chosen layer go with it.
    """

    def __init__(self, model, chosen=None):
        self.model, self.chosen = model, chosen
        flat, self.paths = _flatten(model)
        self.graph = graph_of(flat)
        self.uses = [Use(op, self.paths[id(op)], *parts) for op, *parts in uses(self.graph)]
        self.maker = {id(x): use for use in self.uses for x in use.outputs}
        self.takers = {}
        for use in self.uses:
            for x in use.inputs:
                self.takers.setdefault(id(x), []).append(use)
        self.ends = {id(x) for x in self.graph.outputs}
        for use in self.uses:
            self._judge(use)

    def only_taker(self, use):
        """The one use that takes this one's only output, if there is just one and the model does not return it."""
        takers = self.takers.get(id(use.outputs[0]), [])
        return takers[0] if len(takers) == 1 and id(use.outputs[0]) not in self.ends else None

    def maker_of(self, use):
        """The use that made the first input of this one; None if the model's input is that."""
        return self.maker.get(id(use.inputs[0])) if use.inputs else None

    def _judge(self, use):
        kind, why = self._able(use)
        if kind != "float" and self.chosen is not None and use.path not in self.chosen:
            source = self.maker_of(use)
            goes_along = kind == "fold" or (is_relu(use) and source is not None and self.only_taker(source) is use
                                            and source.kind in ("kernel", "fold", "lone"))
            kind, why = (kind, why) if goes_along else ("float", "not chosen by `where`")
        use.kind, use.why = kind, why

    def _able(self, use):
        """(kind, why) of what can be done to a use; those of its makers are known."""
        op, name = use.op, type(use.op).__name__
        if len(use.outputs) != 1:
            return "float", "has several outputs"
        if "float" not in use.outputs[0].dtype:
            return "float", f"makes {use.outputs[0].dtype}"
        if isinstance(op, _LOOPS):
            return "float", "recurrent: the toolkit has no scheme for it"
        if not type(op).__module__.startswith("keras."):
            return "output", f"a layer of your own: {_OUTPUT}"
        if getattr(op, "data_format", None) == "channels_first":
            return "output", f"channels first: {_OUTPUT}"
        if name == "BatchNormalization":
            return self._able_norm(use)
        if name == "Normalization" and _of_images(use):
            return "norm", "as a depthwise convolution and a frozen BatchNormalization"
        if name == "Rescaling":
            return "scale", "as a multiplication and an addition"
        return _kind(op, name), "" if _kind(op, name) != "output" else _OUTPUT

    def _able_norm(self, use):
        maker = self.maker_of(use)
        rank = len(use.outputs[0].shape)
        if use.op.axis not in (-1, rank - 1) or rank > 4:
            return "output", f"normalises another axis than the last: {_OUTPUT}"
        alone = maker is not None and [other.op for other in self.uses].count(maker.op) == 1
        if (alone and maker.kind == "kernel" and type(maker.op).__name__ in _FOLDS
                and called(maker.op.activation) == "linear" and self.only_taker(maker) is use):
            return "fold", f"folded into {maker.path}"
        return "lone", "as a depthwise convolution with itself"

    def rounds(self, use):
        """Is the output of this use rounded?"""
        return use.kind not in ("fixed", "pass", "float") and self.joined(use) is None

    def joined(self, use):
        """The use behind this one that LiteRT runs as one with it, so that nothing is rounded between; or None."""
        follower = self.only_taker(use) if len(use.outputs) == 1 else None
        if follower is None or use.kind in ("output", "fixed", "pass", "float"):
            return None
        if follower.kind == "fold":
            return follower
        ends = type(use.op).__name__ == "Add" or (use.kind in ("kernel", "fold", "lone") and not self.reshapes(use))
        relu = ends and is_relu(follower) and not self.splits(use)
        together = type(follower.op).__name__ == "Concatenate" and (ends or is_relu(use))
        return follower if follower.kind == "range" and (relu or together) else None

    def reshapes(self, use):
        """Does the use work on four axes for LiteRT's sake, where the model has fewer?"""
        if len(use.outputs[0].shape) == 4:
            return False
        return use.kind in ("fold", "lone", "norm") or not isinstance(use.op, layers.Dense) or (
            self.only_taker(use) is not None and self.only_taker(use).kind == "fold")

    def splits(self, use):
        """Does a layer with a kernel become two: itself, and its activation?"""
        return use.kind == "kernel" and called(use.op.activation) not in ("linear", "relu")

    def table(self):
        """[[path, class, weights, status, why]] of every use, a shared one once."""
        rows = {}
        for use in self.uses:
            count = sum(math.prod(weight.shape) for weight in getattr(use.op, "weights", ()))
            status = {"float": "float", "output": "output only"}.get(use.kind, "done")
            rows.setdefault(use.path, [use.path, type(use.op).__name__, count, status, use.why])
            if self.splits(use) and called(use.op.activation) not in ACTIVATIONS:
                name = getattr(use.op.activation, "__name__", type(use.op.activation).__name__)
                rows.setdefault(f"{use.path} (its activation)", [f"{use.path} (its activation)", name, 0, "output only",
                                                                 _OUTPUT])
        return list(rows.values())


def _flatten(model):
    """The model with its nested models opened, its layers named `outer.inner`; and {id of an operation: its path}."""
    copies, paths, taken = {}, {}, set()

    def use(op, given, symbols, prefix):
        if id(op) not in copies:
            path = f"{prefix}{op.name}"
            if isinstance(op, keras.layers.Layer):
                new = renamed(op, free(legacy_name(path), taken))
            else:
                new = fresh_operation(op)
            copies[id(op)], paths[id(new)] = (op, new), path
        args, kwargs = given
        return copies[id(op)][1](*args, **kwargs)

    graph = graph_of(model)
    inputs = fresh_inputs(graph)
    flat = keras.Model(inputs, run(graph, inputs, use), name=model.name)
    for old, new in copies.values():
        for source, target in zip(getattr(old, "variables", ()), getattr(new, "variables", ()), strict=True):
            target.assign(source)
    return flat, paths


def renamed(layer, name, **changes):
    """A layer from the config of `layer`, under another name."""
    new = type(layer).from_config({**layer.get_config(), "name": name, **changes})
    if new.trainable != layer.trainable:
        new.trainable = layer.trainable
    return new


def free(name, taken):
    """`name`, or with a number behind it if that is taken; takes it."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _kind(op, name):
    if name == "Activation":
        return ACTIVATIONS.get(called(op.activation), "output")
    kinds = {"kernel": _KERNELS, "pass": _PASSES, "range": _ROUNDED, "fixed": _FIXED}
    return next((kind for kind, names in kinds.items() if name in names), "output")


def _of_images(use):
    """Does a Normalization have one mean and variance for each channel of images?

    The columns of a table may differ so much that one range of eight bits for all of them would lose the small ones.
    """
    op, shape = use.op, use.outputs[0].shape
    return len(shape) == 4 and not op.invert and math.prod(op.mean.shape) in (1, op.mean.shape[-1])


def called(activation):
    """Keras' own name of an activation, or "" if it is not one of Keras' own functions."""
    name = getattr(activation, "__name__", "")
    return name if getattr(keras.activations, name, None) is activation else ""


def is_relu(use):
    """ReLU and ReLU6, which LiteRT runs as one with what is before."""
    op, name = use.op, type(use.op).__name__
    if name == "ReLU":
        return op.max_value in (None, 6) and not op.negative_slope and not op.threshold
    return name in ("Relu", "Relu6") or (name == "Activation" and called(op.activation) in ("relu", "relu6"))
