"""TFMOT's quantisers, on a tf_keras graph."""

import contextlib

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quant_ops,
    quantize_layer,
    quantize_wrapper,
    quantizers,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
    default_8bit_quantizers,
)

from .._keras import tf

_EIGHT_BITS = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}


def quantize(twin, kernels, ranges, inputs):
    """`twin` with quantisers in it.

    Args:
      twin: tf_keras model.
      kernels: {name of a layer: what of its kernel is preserved, see `Preserving`}.
      ranges, inputs: names of the Identity layers that round to a range learned as a moving average, or as the
        smallest and largest value seen.
    """
    def wrap(layer):
        if layer.name in kernels:
            return quantize_wrapper.QuantizeWrapperV2(layer, _KernelConfig(layer, kernels[layer.name]))
        if layer.name in inputs or layer.name in ranges:
            kind = quantizers.AllValuesQuantizer if layer.name in inputs else quantizers.MovingAverageQuantizer
            new = quantize_layer.QuantizeLayer(kind(**_EIGHT_BITS), name=layer.name)
            new.supports_masking = True
            return new
        return layer

    model = tf_keras.models.clone_model(twin, clone_function=wrap)
    for layer in wrapped(model).values():
        (weight, quantizer, variables), = layer._weight_vars
        quantizer(weight, True, variables)                 # the range of the kernel, where TFMOT starts at +-6
        if not layer.layer.trainable:                      # TFMOT would train a frozen kernel
            layer._non_trainable_weights.extend(layer._trainable_weights)
            layer._trainable_weights = []
    return model


def wrapped(model):
    """{name: wrapper} of the layers whose kernel is rounded."""
    return {layer.layer.name: layer for layer in model.layers if isinstance(layer, quantize_wrapper.QuantizeWrapper)}


def kernel(wrapper):
    """The kernel of a wrapped layer as the model computes with it, before and after rounding: two arrays."""
    (weight, quantizer, variables), = wrapper._weight_vars
    before = quantizer.kernel(tf.convert_to_tensor(weight), variables)
    return np.array(before), np.array(quantizer(weight, False, variables))


@contextlib.contextmanager
def observing():
    """While it lasts, ranges round nothing; yields a list that fills with the extremes of what runs through them."""
    seen = []

    def observe(kind):
        def note(x, low, high, *args, **kwargs):
            seen.append((kind, low, high, min(float(tf.reduce_min(x)), 0), max(float(tf.reduce_max(x)), 0)))
            return x
        return note

    kept = quant_ops.MovingAvgQuantize, quant_ops.AllValuesQuantize
    try:
        quant_ops.MovingAvgQuantize, quant_ops.AllValuesQuantize = observe("mean"), observe("all")
        yield seen
    finally:
        quant_ops.MovingAvgQuantize, quant_ops.AllValuesQuantize = kept


def set_ranges(evaluated, trained):
    """Gives each range the mean of the extremes of all batches, that of an input the extremes of all.

    Args:
      evaluated, trained: what `observing` saw of the model in inference and in training. The latter is taken where it
        is over twice as wide, as behind a BatchNormalization that has not learned its statistics: narrow ranges would
        clip nearly all of what such a layer makes in training, and the gradients explode.
    """
    wide = _extremes(trained)
    for key, (low, high, *found) in _extremes(evaluated).items():
        _, _, *other = wide[key]
        if np.ptp(other) > 2 * np.ptp(found):
            found = other
        low.assign(found[0])
        high.assign(found[1])


def _extremes(seen):
    grouped = {}
    for kind, low, high, *values in seen:
        grouped.setdefault(id(low), (kind, low, high, []))[-1].append(values)
    return {key: (low, high, *(np.mean(values, 0) if kind == "mean" else (np.min(values), np.max(values))))
            for key, (kind, low, high, values) in grouped.items()}


class _KernelConfig(default_8bit_quantize_configs.NoOpQuantizeConfig):
    """Rounds the kernel of a layer and nothing else; the ranges around it are layers of their own."""

    def __init__(self, layer, preserved):
        kind = type(layer)
        self.attribute = "depthwise_kernel" if kind is tf_keras.layers.DepthwiseConv2D else "kernel"
        by_channel = kind in (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D)
        transposed = kind is tf_keras.layers.Conv2DTranspose
        self.quantizer = Preserving(by_channel, transposed, **preserved)

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, self.attribute), self.quantizer)]

    def set_quantize_weights(self, layer, quantize_weights):
        setattr(layer, self.attribute, quantize_weights[0])


class Preserving(quantizers.LastValueQuantizer):
    """TFMOT's quantiser of kernels, that keeps the zeros and the shared values a kernel has at the start.

    It follows TFMOT's prune-preserving, cluster-preserving and both-preserving quantisers, with three differences. What
    is preserved lies in variables, so that it is saved with the model. A centroid is held at zero only if it is zero
    (TFMOT does it with the smallest of every channel, which wipes out 1x1 convolutions). And whether values are shared
    by channel or by the whole kernel is given, not guessed (a wrong guess multiplies the number of values).

    Args:
      by_channel: one scale for each output channel, as for convolutions.
      transposed: the kernel is that of a Conv2DTranspose.
      zeros: keep the zeros.
      centroids: shape of the table of shared values, (n,) or (channels, n), or None.
    """

    def __init__(self, by_channel, transposed=False, zeros=False, centroids=None):
        super().__init__(num_bits=8, per_axis=by_channel, symmetric=True, narrow_range=True)
        self.transposed, self.zeros, self.centroids = transposed, zeros, centroids

    def build(self, tensor_shape, name, layer):
        variables = self._ranges(tensor_shape, name, layer)
        value = np.array(tf.convert_to_tensor(layer.quantize_config.get_weights_and_quantizers(layer.layer)[0][0]))

        def add(part, start, **options):
            variables[part] = layer.add_weight(f"{name}_{part}", shape=start.shape, dtype=start.dtype,
                                               initializer=lambda shape, dtype=None: tf.constant(start), **options)

        if self.zeros:
            add("kept", (value != 0).astype("float32"), trainable=False)
        if self.centroids:
            table = centroids_of(value, tuple(self.centroids))
            add("centroids", table, trainable=layer.layer.trainable)
            if self.zeros:
                add("nonzero", (table != 0).astype("float32"), trainable=False)
            add("indices", np.abs(value[..., None] - table).argmin(-1).astype("int32"), trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        return variables

    def _ranges(self, tensor_shape, name, layer):
        if self.per_axis:
            return default_8bit_quantizers.Default8BitConvWeightsQuantizer.build(self, tensor_shape, name, layer)
        return super().build(tensor_shape, name, layer)

    def kernel(self, weight, variables, training=False):
        """The kernel before it is rounded. The gradient reaches the table and, straight through, the weights."""
        if self.zeros:
            weight = weight * variables["kept"]
        if not self.centroids:
            return weight
        table = variables["centroids"] * variables["nonzero"] if self.zeros else tf.convert_to_tensor(
            variables["centroids"])
        indices = tf.convert_to_tensor(variables["indices"])
        if training:
            indices = tf.argmin(tf.abs(weight[..., None] - tf.stop_gradient(table)), -1, output_type=tf.int32)
            variables["indices"].assign(indices)
        if len(self.centroids) == 2:
            count = self.centroids[1]
            indices += tf.range(self.centroids[0]) * count
            table = tf.reshape(table, [-1])
        shared = tf.gather(table, indices) + (weight - tf.stop_gradient(weight))
        return shared * variables["kept"] if self.zeros else shared

    def __call__(self, inputs, training, weights, **kwargs):
        value = self.kernel(tf.convert_to_tensor(inputs), weights, training)
        if not self.transposed:
            return super().__call__(value, training, weights, **kwargs)
        return tf.transpose(super().__call__(tf.transpose(value, (0, 1, 3, 2)), training, weights), (0, 1, 3, 2))


def centroids_of(value, shape):
    """The table of different values in an array, of this shape; zeros if there are more (a model that is loaded)."""
    table = np.zeros(shape, "float32")
    channels = np.moveaxis(value, -1, 0) if len(shape) == 2 else value[None]
    for row, channel in zip(table.reshape(-1, shape[-1]), channels, strict=True):
        found = np.unique(channel)
        if len(found) > len(row):
            return np.zeros(shape, "float32")
        row[:len(found)] = found
        row[len(found):] = found[-1]
    return table
