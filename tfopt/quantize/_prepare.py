"""The model that is trained: the same function in layers the 8-bit scheme knows, with Identity layers as ranges."""

import numpy as np

from .._bridge import legacy_name
from .._keras import fresh_inputs, fresh_operation, keras
from ._graph import ACTIVATIONS, called, free, renamed

layers = keras.layers
_values = keras.ops.convert_to_numpy
_ONE_D = {"Conv1D": "Conv2D", "DepthwiseConv1D": "DepthwiseConv2D"}


class _Value:
    """A tensor of the new graph: as it is made, as it is handed on, and whether that is rounded to eight bits."""

    def __init__(self, raw, rounded=False, given=None):
        self.raw, self.current, self.rounded, self.given = raw, raw, rounded, given


class Prepared:
    """The new model and the names of its layers that the toolkit treats.

    Attributes:
      model: keras.Model with the user's inputs, outputs and weights.
      kernels: names of the layers whose kernel is rounded.
      ranges, inputs: names of the Identity layers that round what runs through them; those of `inputs` directly
        behind an input, where the range is that of all values seen.
    """

    def __init__(self, graph):
        self.graph, self.kernels, self.ranges, self.inputs = graph, [], [], []
        self.taken, self.made, self.values = set(), {}, {}
        inputs = fresh_inputs(graph.graph)
        for old, new in zip(graph.graph.inputs, keras.tree.flatten(inputs), strict=True):
            self.taken.add(new.name)
            self.values[id(old)] = _Value(new, given=new.name)
        for use in graph.uses:
            outputs = self.apply(use)
            for old, new in zip(use.outputs, outputs, strict=True):
                self.values[id(old)] = new
        outputs = keras.tree.map_structure(lambda x: self.values[id(x)].current, graph.graph.output)
        self.model = keras.Model(inputs, outputs, name=graph.model.name)

    def apply(self, use):
        for x in use.inputs:
            if use.kind not in ("fold", "pass", "float"):
                self.demand(use, x)
        args, kwargs = keras.tree.map_structure(
            lambda x: self.taken_by(use, x) if isinstance(x, keras.KerasTensor) else x, (use.args, use.kwargs))
        special = {"kernel": self.kernel, "fold": self.fold, "lone": self.lone, "norm": self.norm, "scale": self.scale}
        if use.kind in special:
            return [special[use.kind](use, args[0])]
        outputs = keras.tree.flatten(self.plain(use)(*args, **kwargs))
        if use.kind == "float":
            return [_Value(x) for x in outputs]
        if use.kind in ("fixed", "pass"):
            return [_Value(outputs[0], rounded=use.kind == "fixed" or self.values[id(use.inputs[0])].rounded)]
        return [self.round_if(use, outputs[0])]

    def taken_by(self, use, x):
        value = self.values[id(x)]
        return value.raw if value.given and (use.kind == "float" or _wants_raw(use)) else value.current

    def demand(self, use, x):
        """Sees to it that an input of `use` is rounded."""
        value, maker = self.values[id(x)], self.graph.maker.get(id(x))
        joined = maker is not None and self.graph.joined(maker) is use
        if not value.rounded and not joined and "float" in x.dtype and not _wants_raw(use):
            value.current = self.round(value.current, value.given or legacy_name(maker.path),
                                       self.inputs if value.given else self.ranges)
            value.rounded = True

    def round(self, x, name, names):
        layer = layers.Identity(name=free(f"{name}_range", self.taken))
        names.append(layer.name)
        return layer(x)

    def on_four_axes(self, use, function, x):
        """`function` of images, applied to a sequence or a vector as to an image of height 1 (and width 1)."""
        if len(x.shape) == 4:
            return function(x)
        vector, name = len(x.shape) == 2, legacy_name(use.path)
        row = (1, 1, x.shape[1]) if vector else (1, x.shape[1] or -1, x.shape[2])
        y = function(layers.Reshape(row, name=free(f"{name}_row", self.taken))(x))
        back = y.shape[3:] if vector else (y.shape[2] or -1, y.shape[3])
        return layers.Reshape(back, name=free(f"{name}_back", self.taken))(y)

    def round_if(self, use, x):
        value = _Value(x)
        if self.graph.rounds(use):
            value.current, value.rounded = self.round(x, legacy_name(use.path), self.ranges), True
        return value

    def layer(self, use, part, make, kernel=False, weights=()):
        """The layer `part` of a use's operation, made when it is first asked for."""
        key = id(use.op), part
        if key not in self.made:
            name = legacy_name(use.path)
            self.made[key] = use.op, make(free(f"{name}_{part}" if part else name, self.taken))
            if kernel:
                self.kernels.append(self.made[key][1].name)
        layer = self.made[key][1]
        return _Filled(layer, weights) if weights else layer

    def plain(self, use):
        if not isinstance(use.op, keras.layers.Layer):
            return self.layer(use, "", lambda name: fresh_operation(use.op))
        return self.layer(use, "", lambda name: renamed(use.op, name), weights=use.op.variables)

    def fold(self, use, x):
        return self.round_if(use, self.on_four_axes(use, self.plain(use), x))

    def lone(self, use, x):
        """BatchNormalization alone folds into a depthwise convolution that changes nothing."""
        return self.round_if(use, self.on_four_axes(use, lambda x: self.plain(use)(self.same(use)(x)), x))

    def same(self, use):
        return self.layer(use, "same", lambda name: layers.DepthwiseConv2D(
            1, use_bias=False, trainable=False, depthwise_initializer="ones", name=name), kernel=True)

    def norm(self, use, x):
        """(x - mean) / deviation is a BatchNormalization that has learned its statistics."""
        op, count = use.op, x.shape[-1]
        deviation = np.maximum(np.sqrt(_values(op.variance)), keras.config.epsilon())
        norm = self.layer(use, "", lambda name: layers.BatchNormalization(
            epsilon=0.0, center=False, scale=False, trainable=False, name=name),
            weights=[np.broadcast_to(value.reshape(-1), count) for value in (_values(op.mean), deviation ** 2)])
        return self.round_if(use, norm(self.same(use)(x)))

    def scale(self, use, x):
        """LiteRT multiplies and adds in integers if what is between them is rounded."""
        op, name = use.op, legacy_name(use.path)
        if np.any(np.asarray(op.offset)):
            x = self.layer(use, "factor", lambda name: layers.Rescaling(op.scale, name=name))(x)
            x = self.round(x, f"{name}_factor", self.ranges)
            x = self.layer(use, "offset", lambda name: layers.Rescaling(1.0, op.offset, name=name))(x)
        else:
            x = self.plain(use)(x)
        return self.round_if(use, x)

    def kernel(self, use, x):
        op, activation = use.op, called(use.op.activation)
        split = self.graph.splits(use)
        changes = {"activation": "linear", "activity_regularizer": None} if split else {}
        y = self.convolve(use, x, changes)
        if not split:
            return self.round_if(use, y)
        name = legacy_name(use.path)
        if activation != "relu6":
            y = self.round(y, name, self.ranges)
        config = {key: op.get_config().get(key) for key in ("activation", "activity_regularizer", "dtype")}
        y = self.layer(use, "activation", lambda name: layers.Activation.from_config({**config, "name": name}))(y)
        if ACTIVATIONS.get(activation) == "fixed":
            return _Value(y, rounded=True)
        return _Value(self.round(y, name, self.ranges), rounded=True)

    def convolve(self, use, x, changes):
        op, kind = use.op, type(use.op).__name__
        if kind in ("SeparableConv1D", "SeparableConv2D"):
            return self.separable(use, x, changes, flat=kind == "SeparableConv1D")
        if kind == "Dense" and self.graph.reshapes(use):
            config = {key: value for key, value in op.get_config().items() if key not in (
                "units", "lora_rank", "lora_alpha", "quantization_config")}
            kernel = _values(op.kernel)[None, None]
            layer = self.layer(use, "", lambda name: layers.Conv2D.from_config(
                {**config, **changes, "filters": op.units, "kernel_size": 1, "name": name}), kernel=True,
                weights=[kernel, *([op.bias] if op.use_bias else [])])
            return self.on_four_axes(use, layer, x)
        if kind not in _ONE_D:
            return self.layer(use, "", lambda name: renamed(op, name, **changes), kernel=True,
                              weights=op.variables)(x)
        values = [_values(op.kernel)[None], *([op.bias] if op.use_bias else [])]
        return self.flat(use, "", getattr(layers, _ONE_D[kind]), x, {**op.get_config(), **changes}, values)

    def flat(self, use, part, cls, x, config, weights):
        """A one-dimensional convolution as one over a row of height 1."""
        (size,), (step,), (spread,) = (np.atleast_1d(config[key]).tolist()
                                       for key in ("kernel_size", "strides", "dilation_rate"))
        if config["padding"] == "causal":
            name = free(f"{legacy_name(use.path)}_past", self.taken)
            x = layers.ZeroPadding1D((spread * (size - 1), 0), name=name)(x)
            config = {**config, "padding": "valid"}
        config.update(kernel_size=(1, size), dilation_rate=(1, spread),
                      strides=(step, step) if cls is layers.DepthwiseConv2D else (1, step))
        layer = self.layer(use, part, lambda name: cls.from_config({**config, "name": name}), kernel=True,
                           weights=weights)
        return self.on_four_axes(use, layer, x)

    def separable(self, use, x, changes, flat):
        op, config = use.op, {**use.op.get_config(), **changes}
        shared = {key: config[key] for key in ("data_format", "dtype", "trainable")}
        deep = {**shared, **{key: config[key] for key in (
            "kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier", "depthwise_initializer",
            "depthwise_regularizer", "depthwise_constraint")}, "use_bias": False}
        wide = {**shared, **{key: config[key] for key in (
            "filters", "activation", "use_bias", "bias_initializer", "bias_regularizer", "bias_constraint",
            "activity_regularizer")}, **{f"kernel_{key}": config[f"pointwise_{key}"] for key in (
                "initializer", "regularizer", "constraint")}, "kernel_size": 1, "strides": 1, "dilation_rate": 1}
        first, second = [op.depthwise_kernel], [op.pointwise_kernel, *([op.bias] if op.use_bias else [])]
        if flat:
            x = self.flat(use, "depthwise", layers.DepthwiseConv2D, x, deep, [_values(first[0])[None]])
            x = self.round(x, f"{legacy_name(use.path)}_depthwise", self.ranges)
            return self.flat(use, "", layers.Conv2D, x, {**wide, "padding": "valid"},
                             [_values(second[0])[None], *second[1:]])
        x = self.layer(use, "depthwise", lambda name: layers.DepthwiseConv2D.from_config({**deep, "name": name}),
                       kernel=True, weights=first)(x)
        x = self.round(x, f"{legacy_name(use.path)}_depthwise", self.ranges)
        return self.layer(use, "", lambda name: layers.Conv2D.from_config({**wide, "name": name}), kernel=True,
                          weights=second)(x)


class _Filled:
    """A layer that takes these weights when its first call has built it."""

    def __init__(self, layer, weights):
        self.layer, self.weights = layer, weights

    def __call__(self, *args, **kwargs):
        outputs = self.layer(*args, **kwargs)
        for target, source in zip(self.layer.variables, self.weights, strict=True):
            target.assign(source)
        return outputs


def _wants_raw(use):
    """Indices, and columns of very different size, would not survive eight bits."""
    return use.kind == "output" and isinstance(use.op, layers.Embedding | layers.Normalization)
