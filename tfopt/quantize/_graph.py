"""What quantization does to each layer of a model: read from its graph, nothing is built.

TFMOT's 8-bit scheme says where a tensor is rounded to eight bits: the input, every kernel, and the output of what
computes, but not between the parts that LiteRT runs as one operation (a convolution with the BatchNormalization and
the ReLU behind it, an addition with its ReLU, what is concatenated). `_prepare` puts `Range` layers at these places.
"""

import dataclasses
import math

from .._check import require
from .._keras import graph_of, keras, mask_of, producer, uses_for

layers = keras.layers

_KERNELS = {"Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D",
            "SeparableConv2D"}
_FOUR_BITS = {**dict.fromkeys(("Conv1D", "Conv2D", "Dense"), "kernel in 4 bits"),
              **dict.fromkeys(("Conv2DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"),
                              "kernel in 8 bits: LiteRT takes none of 4 here"),
              **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), "depthwise kernel in 8 bits, the other in 4")}
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
class Value:
    """A tensor of a model whose nested models are opened.

    Attributes:
      symbol: a KerasTensor of the same rank, dtype and channels.
      masked: does a mask go with it?
    """

    symbol: object
    maker: "Use | None" = None
    masked: bool = False
    takers: list = dataclasses.field(default_factory=list)

    @property
    def shape(self):
        return self.symbol.shape

    @property
    def dtype(self):
        return self.symbol.dtype

    @property
    def is_float(self):
        return "float" in self.symbol.dtype


@dataclasses.dataclass(eq=False)
class Use:
    """One use of a layer or operation."""

    op: object
    path: str
    args: tuple                    # with Values in place of tensors
    kwargs: dict
    outputs: list = dataclasses.field(default_factory=list)
    kind: str = ""                 # kernel, fold, lone, norm, scale, range, fixed, pass, output or float
    why: str = ""

    @property
    def inputs(self):
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, Value)]


class Graph:
    """The uses of layers and operations in a model, in order, and what quantization does to each.

    Args:
      model: built graph model; it is only read.
      chosen: paths of the layers to quantize, or None for all that can be. The BatchNormalization and the ReLU that
        LiteRT runs as one with a chosen layer go with it.
      bits: 8 or 4, of the kernels that can have four.

    Attributes:
      uses: list of `Use`.
      inputs, outputs: the model's own, as flat lists of `Value`.
    """

    def __init__(self, model, chosen=None, bits=8):
        self.model, self.chosen, self.bits, self.uses = model, chosen, bits, []
        graph = graph_of(model)
        self.inputs = [Value(x, masked=mask_of(x) is not None) for x in graph.inputs]
        self.outputs = self._walk(graph, self.inputs, "", graph.outputs)
        self.ends = set(map(id, self.outputs))
        for use in self.uses:
            self._judge(use)

    def _walk(self, graph, inputs, prefix, wanted):
        """Notes the uses in `graph` on which the tensors `wanted` depend; returns the Values of its outputs."""
        values = dict(zip(map(id, graph.inputs), inputs, strict=True))
        steps, needed = uses_for(graph, wanted, masks=True)
        for op, args, kwargs, outputs in steps:
            args, kwargs = keras.tree.map_structure(
                lambda x: values.get(id(x)) if isinstance(x, keras.KerasTensor) else x, (args, kwargs))
            inner = graph_of(op)
            if inner is None:
                found = self._note(op, f"{prefix}{op.name}", args, kwargs, outputs)
            else:
                given = self._enter(inner, op, keras.tree.flatten((args, kwargs)), prefix)
                found = self._walk(inner, given, f"{prefix}{op.name}/", [
                    x for x, y in zip(inner.outputs, outputs, strict=True) if id(y) in needed])
            values.update(zip(map(id, outputs), found, strict=True))
        return [values.get(id(x)) for x in graph.outputs]

    def _enter(self, inner, op, given, prefix):
        """The inputs of a nested model, in the dtypes it declares."""
        require(len(given) == len(inner.inputs), "a nested model must be called with its inputs alone",
                model=op.name, do="Let the masks of its inputs come from Masking or Embedding layers.")
        for x, start in zip(given, inner.inputs, strict=True):
            if x is None or x.dtype == start.dtype or (x.is_float and "float" in start.dtype):
                yield x
            else:
                symbol = keras.ops.cast(x.symbol, start.dtype)
                yield self._note(producer(symbol)[0], f"{prefix}{op.name}/cast", (x,), {}, [symbol])[0]

    def _note(self, op, path, args, kwargs, outputs):
        use = Use(op, path, args, kwargs)
        passes = getattr(op, "supports_masking", False) and any(x.masked for x in use.inputs)
        use.outputs = [Value(x, use, passes or mask_of(x) is not None) for x in outputs]
        for x in use.inputs:
            x.takers.append(use)
        self.uses.append(use)
        return use.outputs

    def only_taker(self, use):
        """The one use that takes this one's only output, if there is just one and the model does not return it."""
        takers = use.outputs[0].takers
        return takers[0] if len(takers) == 1 and id(use.outputs[0]) not in self.ends else None

    def maker_of(self, use):
        """The use that made the first input of this one; None if the model's input is that."""
        return use.inputs[0].maker if use.inputs else None

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
        if not use.outputs[0].is_float:
            return "float", f"makes {use.outputs[0].dtype}"
        if isinstance(op, _LOOPS):
            return "float", "recurrent: the toolkit has no scheme for it"
        if getattr(op, "lora_enabled", False) or getattr(op, "quantization_mode", None):
            return "float", "has LoRA weights, or is quantized by Keras"
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
        kind = _kind(op, name)
        return kind, _OUTPUT if kind == "output" else _FOUR_BITS.get(name, "") if self.bits == 4 else ""

    def _able_norm(self, use):
        maker = self.maker_of(use)
        rank = len(use.outputs[0].shape)
        if use.inputs[0].masked:
            return "output", f"its statistics leave out what is masked: {_OUTPUT}"
        if use.op.axis not in (-1, rank - 1) or rank > 4:
            return "output", f"normalizes another axis than the last: {_OUTPUT}"
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
        """Rows for `_models.table` of every use, a shared one once."""
        rows = {}
        for use in self.uses:
            if not isinstance(use.op, keras.layers.Layer) and not use.outputs[0].is_float:
                continue                                       # such as the making of masks
            parameters = [math.prod(weight.shape) for weight in getattr(use.op, "weights", ())]
            affected = sum(math.prod(kernel.shape) for kernel in kernels_of(use.op)) if use.kind == "kernel" else 0
            status = "skipped" if use.kind in ("float", "output") else "selected"
            rows.setdefault(use.path, {"layer": use.path, "class": type(use.op).__name__, "parameters": sum(parameters),
                                       "affected": affected, "status": status, "why": use.why})
            if self.splits(use) and called(use.op.activation) not in ACTIVATIONS:
                path = f"{use.path} (its activation)"
                name = getattr(use.op.activation, "__name__", type(use.op.activation).__name__)
                rows.setdefault(path, {"layer": path, "class": name, "parameters": 0, "affected": 0, "why": _OUTPUT})
        return list(rows.values())


def kernels_of(layer):
    """The kernels of a layer that are rounded."""
    names = ("depthwise_kernel", "pointwise_kernel") if "Separable" in type(layer).__name__ else ("kernel",)
    return [getattr(layer, name) for name in names]


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
