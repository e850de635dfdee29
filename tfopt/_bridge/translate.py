"""One layer's config, from Keras 3 to tf_keras."""

import inspect

import numpy as np
import tf_keras

from .._keras import keras, tf
from .embed import dump, load

_SAME = {"Add", "Average", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
         "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D",
         "Conv3DTranspose", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D",
         "Dot", "Dropout", "ELU", "EinsumDense", "Embedding", "Flatten", "GaussianDropout", "GaussianNoise",
         "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
         "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GroupNormalization", "Identity", "LayerNormalization",
         "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum",
         "Multiply", "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape",
         "SeparableConv1D", "SeparableConv2D", "Softmax", "SpatialDropout1D", "SpatialDropout2D",
         "SpatialDropout3D", "Subtract", "UnitNormalization", "UpSampling1D", "UpSampling3D",
         "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"}
_OTHER_MASKS = {"Add", "Average", "Concatenate", "Dot", "GroupNormalization", "Identity", "Maximum", "Minimum",
                "Multiply", "Rescaling", "Softmax", "Subtract"}              # these treat masks in another way
_ACTIVATIONS = {"elu", "exponential", "gelu", "linear", "relu", "selu", "sigmoid", "softmax", "softplus", "softsign",
                "tanh"}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_NO_MATTER = {"seed", "use_cudnn"}       # of no consequence for what is computed
_BASE = {"name", "dtype", "trainable", "activity_regularizer", "zero_output_for_mask"}


class _Carried:
    """A Keras 3 object that tf_keras calls and saves."""

    def __init__(self, carried):
        self.carried, self.inner = carried, load(carried)

    def __call__(self, x):
        return self.inner(tf.convert_to_tensor(x))

    def get_config(self):
        return {"carried": self.carried}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@tf_keras.saving.register_keras_serializable("tfopt")
class CarriedActivation(_Carried):
    """An activation tf_keras does not have, or has with another meaning."""

    @property
    def __name__(self):
        return getattr(self.inner, "__name__", type(self.inner).__name__)


@tf_keras.saving.register_keras_serializable("tfopt")
class CarriedRegularizer(_Carried, tf_keras.regularizers.Regularizer):
    """A Keras 3 regularizer."""


@tf_keras.saving.register_keras_serializable("tfopt")
class CarriedConstraint(_Carried, tf_keras.constraints.Constraint):
    """A Keras 3 constraint."""


def layer_counterpart(layer, name, dtype=None, masked=False):
    """The tf_keras layer that computes what `layer` computes, without its weights; None if there is none.

    Args:
      layer: a Keras 3 layer.
      name: of the counterpart.
      dtype: name of its dtype policy in place of the layer's own.
      masked: its inputs carry masks.
    """
    kind = type(layer).__name__
    if masked and kind in _OTHER_MASKS:
        return None
    if (type(layer) is not getattr(keras.layers, kind, None) or "float" not in layer.dtype_policy.name
            or layer.quantization_mode is not None or getattr(layer, "data_format", None) == "channels_first"):
        return None
    base = {"name": name, "dtype": dtype or layer.dtype_policy.name, "trainable": layer.trainable}
    if kind in _SPECIAL:
        return _SPECIAL[kind](layer, base, masked)
    return _same(layer, base) if kind in _SAME else None


def operation_counterpart(op, args, kwargs, name, dtype=None):
    """The tf_keras layer for `keras.ops` that are layers by another name; None if there is none.

    Only for floating tensors of one dtype and, where two meet, of one shape: the layers broadcast otherwise.
    """
    tensors = keras.tree.flatten((args, kwargs))
    if not all(isinstance(x, keras.KerasTensor) and "float" in x.dtype for x in tensors) or (
            len({x.dtype for x in tensors}) > 1 or not type(op).__module__.startswith("keras.")):
        return None
    base, kind = {"name": name, "dtype": dtype or tensors[0].dtype}, type(op).__name__
    if kind == "Concatenate":
        return tf_keras.layers.Concatenate(axis=op.axis, **base)
    if kind in ("Add", "Maximum", "Minimum", "Multiply", "Subtract") and len({x.shape for x in tensors}) == 1:
        return getattr(tf_keras.layers, kind)(**base)
    if kind == "Relu":
        return tf_keras.layers.ReLU(**base)
    if kind in ("Sigmoid", "Tanh"):
        return tf_keras.layers.Activation(kind.lower(), **base)
    return None


def _same(layer, base):
    kind = type(layer).__name__
    cls = getattr(tf_keras.layers, kind)
    known, usual = _arguments(cls) | _BASE, _defaults(type(layer))
    config = {}
    for key, value in layer.get_config().items():
        key = _RENAMED.get(kind, {}).get(key, key)
        if key in known:
            config[key] = _value(layer, key, value)
        elif key not in _NO_MATTER and value not in (usual.get(key, value), "channels_last"):
            return None                              # asks for what the counterpart cannot do
    return cls(**{**config, **base})


def _value(layer, key, value):
    """One entry of the config in terms of tf_keras. Weights are assigned later, so all start at zero."""
    if value is None:
        return None
    if key.endswith("initializer"):
        return "zeros"
    if key.endswith("activation"):
        return activation(keras.activations.get(value))
    if key.endswith("regularizer"):
        frozen = not layer.trainable and key != "activity_regularizer"       # Keras 3 asks no penalty of frozen weights
        return None if frozen else CarriedRegularizer(dump(keras.regularizers.get(value)))
    if key.endswith("constraint"):
        return CarriedConstraint(dump(keras.constraints.get(value)))
    return value


def activation(function):
    """The tf_keras name of a Keras 3 activation, or the activation itself to be carried."""
    name = getattr(function, "__name__", "")
    if function is getattr(keras.activations, name, None):
        if name == "silu":
            return "swish"
        if name in _ACTIVATIONS:
            return name
    return CarriedActivation(dump(function))


def _activation_layer(layer, base, masked):
    function, penalty = activation(layer.activation), layer.activity_regularizer
    return tf_keras.layers.Activation(
        function, activity_regularizer=penalty and CarriedRegularizer(dump(penalty)), **base) if (
            isinstance(function, str)) else None


def _batch_normalization(layer, base, masked):
    rank = layer.input_spec.ndim
    usual = layer.axis in (-1, rank - 1) and not (masked and rank > 3)       # what the fused kernel can do
    return _same(layer, base) if usual else None


def _recurrent(layer, base, masked):
    return None if layer.stateful else _same(layer, base)


def _normalization(layer, base, masked):
    """Adapted statistics become constants: they are derived state, which assigning weights would not renew."""
    mean, variance = (layer.input_mean, layer.input_variance) if layer.input_mean is not None else (
        layer.adapt_mean, layer.adapt_variance)
    return tf_keras.layers.Normalization(axis=layer.axis, invert=layer.invert, mean=np.asarray(mean).tolist(),
                                         variance=np.asarray(variance).tolist(), **base)


def _upsampling(layer, base, masked):
    return _same(layer, base) if layer.interpolation == "nearest" else None


def _time_distributed(layer, base, masked):
    inner = layer_counterpart(layer.layer, layer.layer.name, base["dtype"])
    return inner and tf_keras.layers.TimeDistributed(inner, **base)


def _bidirectional(layer, base, masked):
    halves = [layer_counterpart(half, half.name, base["dtype"]) for half in (layer.forward_layer, layer.backward_layer)]
    if None in halves:
        return None
    return tf_keras.layers.Bidirectional(halves[0], merge_mode=layer.merge_mode, backward_layer=halves[1], **base)


_SPECIAL = {"Activation": _activation_layer, "BatchNormalization": _batch_normalization,
            "Bidirectional": _bidirectional, "GRU": _recurrent, "LSTM": _recurrent, "Normalization": _normalization,
            "SimpleRNN": _recurrent, "TimeDistributed": _time_distributed, "UpSampling2D": _upsampling}


def _arguments(cls):
    """Names that the constructor of a class takes, its bases included as far as it passes **kwargs on."""
    names = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {p.name for p in parameters}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


def _defaults(cls):
    return {p.name: p.default for base in reversed(cls.__mro__) if "__init__" in vars(base)
            for p in inspect.signature(base.__init__).parameters.values()}
