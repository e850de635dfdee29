"""The model that is trained: the same function in layers the 8-bit scheme knows, with a Range where it rounds."""

import numpy as np

from .. import _models
from .._keras import fresh_inputs, fresh_operation, graph_of, keras
from ._graph import ACTIVATIONS, Value, called, free
from ._layers import FOUR_BITS, ROUNDED, Range, RoundedKernel

layers = keras.layers
_values = keras.ops.convert_to_numpy
_ONE_D = {"Conv1D": "Conv2D", "DepthwiseConv1D": "DepthwiseConv2D"}
_MOST_VALUES = 256                                         # more different values in a kernel are not shared ones


class _Tensor:
    """A tensor of the new graph: as it is made, as it is handed on, and whether that is rounded to eight bits.

    Attributes:
      given: name of the model's input, if it is that.
    """

    def __init__(self, raw, rounded=False, given=None):
        self.raw, self.current, self.rounded, self.given = raw, raw, rounded, given


class Prepared:
    """The new model, with the user's inputs, outputs and weights.

    Args:
      graph: a `Graph`.
      preserve: as for `wrap`.

    Attributes:
      inputs, outputs: KerasTensors, nested as the user nested them.
    """

    def __init__(self, graph, preserve=None):
        self.graph, self.preserve = graph, preserve
        self.taken, self.made, self.tensors, self.weights, self.copies = set(), {}, {}, [], []
        original = graph_of(graph.model)
        self.inputs = fresh_inputs(original)
        for value, new in zip(graph.inputs, keras.tree.flatten(self.inputs), strict=True):
            self.taken.add(new.name)
            self.tensors[id(value)] = _Tensor(new, given=new.name)
        for use in graph.uses:
            for value, new in zip(use.outputs, self.apply(use), strict=True):
                self.tensors[id(value)] = new
        self.outputs = keras.tree.pack_sequence_as(
            original.output, [self.tensors[id(value)].current for value in graph.outputs])

    def fill(self):
        """Gives the layers the user's weights, and starts the rounding of the kernels from them."""
        for old, new in self.copies:
            _models.transfer(old, new, dtype="float32")
        for layer, weights in self.weights:
            for target, source in zip(layer.variables, weights, strict=not isinstance(layer, RoundedKernel)):
                target.assign(source)
            if isinstance(layer, RoundedKernel):
                layer.start_rounding()

    def apply(self, use):
        for x in use.inputs:
            if use.kind not in ("fold", "pass", "float"):
                self.demand(use, x)
        args, kwargs = keras.tree.map_structure(
            lambda x: self.taken_by(use, x) if isinstance(x, Value) else x, (use.args, use.kwargs))
        special = {"kernel": self.kernel, "fold": self.fold, "lone": self.lone, "norm": self.norm, "scale": self.scale}
        if use.kind in special:
            return [special[use.kind](use, keras.tree.flatten((args, kwargs))[0])]
        outputs = keras.tree.flatten(self.plain(use)(*args, **kwargs))
        if use.kind == "float":
            return [_Tensor(x) for x in outputs]
        if use.kind in ("fixed", "pass"):
            return [_Tensor(outputs[0], rounded=use.kind == "fixed" or self.tensors[id(use.inputs[0])].rounded)]
        return [self.round_if(use, outputs[0])]

    def taken_by(self, use, x):
        tensor = self.tensors[id(x)]
        return tensor.raw if tensor.given and (use.kind == "float" or _wants_raw(use, tensor)) else tensor.current

    def demand(self, use, x):
        """Sees to it that an input of `use` is rounded."""
        tensor = self.tensors[id(x)]
        joined = x.maker is not None and self.graph.joined(x.maker) is use
        if not tensor.rounded and not joined and x.is_float and not _wants_raw(use, tensor):
            kind = "all" if tensor.given else "mean"
            tensor.current = self.round(tensor.current, tensor.given or _name(x.maker), kind)
            tensor.rounded = True

    def round(self, x, name, kind="mean"):
        return Range(kind, name=free(f"{name}_range", self.taken))(x)

    def round_if(self, use, x):
        tensor = _Tensor(x)
        if self.graph.rounds(use):
            tensor.current, tensor.rounded = self.round(x, _name(use)), True
        return tensor

    def on_four_axes(self, use, function, x):
        """`function` of images, applied to a sequence or a vector as to an image of height 1 (and width 1)."""
        if len(x.shape) == 4:
            return function(x)
        vector, name = len(x.shape) == 2, _name(use)
        row = (1, 1, x.shape[1]) if vector else (1, x.shape[1] or -1, x.shape[2])
        y = function(layers.Reshape(row, name=free(f"{name}_row", self.taken))(x))
        back = y.shape[3:] if vector else (y.shape[2] or -1, y.shape[3])
        return layers.Reshape(back, name=free(f"{name}_back", self.taken))(y)

    def layer(self, use, part, make, weights=()):
        """The layer `part` of a use's operation, made by `make(name)` when it is first asked for."""
        key = id(use.op), part
        if key not in self.made:
            self.made[key] = make(free(f"{_name(use)}_{part}" if part else _name(use), self.taken))
            if weights:
                self.weights.append((self.made[key], weights))
        return self.made[key]

    def rounded(self, use, part, kind, config, weights):
        """The same for a layer of class `kind` whose kernel, the first of `weights`, is rounded."""
        trains = use.op.trainable and config.get("trainable", True)
        bits = self.graph.bits if kind in FOUR_BITS else 8

        def make(name):
            kept = preserved(_values(weights[0]), self.preserve if trains else None)
            layer = ROUNDED[kind].from_config(
                {**config, **kept, "bits": bits, "name": name, "dtype": "float32"})
            layer.trainable = trains
            return layer

        return self.layer(use, part, make, weights)

    def plain(self, use):
        """The operation itself, again; a layer in float32."""
        def make(name):
            if not isinstance(use.op, keras.layers.Layer):
                return fresh_operation(use.op)
            new = _models.recreate(use.op, dtype="float32", name=name)
            self.copies.append((use.op, new))
            return new

        return self.layer(use, "", make)

    def fold(self, use, x):
        return self.round_if(use, self.on_four_axes(use, self.plain(use), x))

    def lone(self, use, x):
        """BatchNormalization alone folds into a depthwise convolution that changes nothing."""
        return self.round_if(use, self.on_four_axes(
            use, lambda x: self.plain(use)(self.same(use, x.shape[-1])(x)), x))

    def same(self, use, channels):
        return self.rounded(use, "same", "DepthwiseConv2D", {"kernel_size": 1, "use_bias": False, "trainable": False},
                            [np.ones((1, 1, channels, 1), "float32")])

    def norm(self, use, x):
        """(x - mean) / deviation is a BatchNormalization that has learned its statistics."""
        op, count = use.op, x.shape[-1]
        deviation = np.maximum(np.sqrt(_values(op.variance)), keras.config.epsilon())
        norm = self.layer(use, "", lambda name: layers.BatchNormalization(
            epsilon=0.0, center=False, scale=False, trainable=False, name=name),
            [np.broadcast_to(value.reshape(-1), count) for value in (_values(op.mean), deviation ** 2)])
        return self.round_if(use, norm(self.same(use, count)(x)))

    def scale(self, use, x):
        """LiteRT multiplies and adds in integers if what is between them is rounded."""
        op = use.op
        if np.any(np.asarray(op.offset)):
            x = self.layer(use, "factor", lambda name: layers.Rescaling(op.scale, name=name))(x)
            x = self.round(x, f"{_name(use)}_factor")
            x = self.layer(use, "offset", lambda name: layers.Rescaling(1.0, op.offset, name=name))(x)
        else:
            x = self.plain(use)(x)
        return self.round_if(use, x)

    def kernel(self, use, x):
        op, activation = use.op, called(use.op.activation)
        split = self.graph.splits(use)
        config = {**op.get_config(), "activation": op.activation}
        y = self.convolve(use, x, {**config, "activation": None, "activity_regularizer": None} if split else config)
        if not split:
            return self.round_if(use, y)
        if activation != "relu6":
            y = self.round(y, _name(use))
        y = self.layer(use, "activation", lambda name: layers.Activation(
            op.activation, activity_regularizer=op.activity_regularizer, name=name))(y)
        if ACTIVATIONS.get(activation) == "fixed":
            return _Tensor(y, rounded=True)
        return _Tensor(self.round(y, _name(use)), rounded=True)

    def convolve(self, use, x, config):
        op, kind = use.op, type(use.op).__name__
        bias = [op.bias] if op.use_bias else []
        if kind in ("SeparableConv1D", "SeparableConv2D"):
            return self.separable(use, x, config, bias)
        if kind == "Dense" and self.graph.reshapes(use):
            config = {key: value for key, value in config.items() if key not in (
                "units", "lora_rank", "lora_alpha", "quantization_config")}
            layer = self.rounded(use, "", "Conv2D", {**config, "filters": op.units, "kernel_size": 1},
                                 [_values(op.kernel)[None, None], *bias])
            return self.on_four_axes(use, layer, x)
        if kind in _ONE_D:
            return self.flat(use, "", _ONE_D[kind], x, config, [_values(op.kernel)[None], *bias])
        return self.rounded(use, "", kind, config, [op.kernel, *bias])(x)

    def flat(self, use, part, kind, x, config, weights):
        """A one-dimensional convolution as one over a row of height 1."""
        (size,), (step,), (spread,) = (np.atleast_1d(config[key]).tolist()
                                       for key in ("kernel_size", "strides", "dilation_rate"))
        if config["padding"] == "causal":
            x = layers.ZeroPadding1D((spread * (size - 1), 0), name=free(f"{_name(use)}_past", self.taken))(x)
            config = {**config, "padding": "valid"}
        config = {**config, "kernel_size": (1, size), "dilation_rate": (1, spread),
                  "strides": (step, step) if kind == "DepthwiseConv2D" else (1, step)}
        return self.on_four_axes(use, self.rounded(use, part, kind, config, weights), x)

    def separable(self, use, x, config, bias):
        """A depthwise convolution and one of size 1."""
        op, flat = use.op, type(use.op).__name__ == "SeparableConv1D"
        deep = {key: config[key] for key in (
            "data_format", "kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier",
            "depthwise_initializer", "depthwise_regularizer", "depthwise_constraint")} | {"use_bias": False}
        wide = {key: config[key] for key in (
            "data_format", "filters", "activation", "use_bias", "bias_initializer", "bias_regularizer",
            "bias_constraint", "activity_regularizer")}
        wide |= {f"kernel_{key}": config[f"pointwise_{key}"] for key in ("initializer", "regularizer", "constraint")}
        wide |= {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid"}
        steps = (("depthwise", "DepthwiseConv2D", deep, [op.depthwise_kernel]),
                 ("", "Conv2D", wide, [op.pointwise_kernel, *bias]))
        for part, kind, config, weights in steps:
            if flat:
                x = self.flat(use, part, kind, x, config, [_values(weights[0])[None], *weights[1:]])
            else:
                x = self.rounded(use, part, kind, config, weights)(x)
            if part:
                x = self.round(x, f"{_name(use)}_{part}")
        return x


def preserved(kernel, preserve):
    """What a RoundedKernel is to keep of a kernel: its zeros, its shared values; neither where there are none."""
    zeros = preserve in ("sparsity", "both") and bool((kernel == 0).any())
    return {"zeros": zeros, "centroids": _shared(kernel) if preserve in ("clusters", "both") else None}


def _shared(kernel):
    """Shape of the table of a kernel's shared values: (n,), or (channels, n) if each channel has its own; or None."""
    whole = len(np.unique(kernel))
    counts = [len(np.unique(kernel[..., channel])) for channel in range(kernel.shape[-1])]
    if kernel.ndim == 4 and len(counts) > 1 and whole > sum(counts) / 2:
        most = max(counts)
        return [len(counts), most] if most <= min(_MOST_VALUES, kernel.size // len(counts) // 2) else None
    return [whole] if whole <= min(_MOST_VALUES, kernel.size // 2) else None


def _name(use):
    """The name of a use's layer in the new model, where nested models are opened: `outer.inner` for `outer/inner`."""
    return use.path.replace("/", ".")


def _wants_raw(use, tensor):
    """Does it compute in float on what eight bits would change: indices, or columns of very different size?"""
    return use.kind == "output" and (
        tensor.given is not None or isinstance(use.op, layers.Embedding | layers.Normalization))
