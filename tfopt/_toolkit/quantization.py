"""TFMOT's quantizers, on variables that a Keras 3 layer owns."""

import numpy as np
from tensorflow_model_optimization.python.core.quantization.keras import quantizers

from .._keras import tf

_ACTIVATIONS = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}
_LEAST = 2.0 ** -14, 2.0 ** -10  # of a channel's range, of the largest weight and of its own bias
_FLOAT_STARTS = {"mean": (-6.0, 6.0), "all": (0.0, 0.0)}   # TFMOT's own


class ActivationQuantizer:
    """TFMOT's quantizer of activations: one range a tensor.

    It differs from TFMOT's where a batch in training reaches over twice as far as a moving average: the range then
    becomes that of the batch at once. TFMOT would clip nearly all of what such a layer makes, as behind a
    BatchNormalization that has not learned its statistics yet, and the gradients explode.

    Args:
      kind: "mean" for a moving average of the smallest and largest values, "all" for those of all values seen.
    """

    def __init__(self, kind):
        self.jumps, self.start = kind == "mean", _FLOAT_STARTS[kind]
        self._round = {"mean": quantizers.MovingAverageQuantizer, "all": quantizers.AllValuesQuantizer}[kind](
            **_ACTIVATIONS)

    def __call__(self, x, training, low, high):
        if training and self.jumps:
            first, last = tf.reduce_min(x), tf.reduce_max(x)
            low.assign(tf.where(first < 2 * low, first, low))
            high.assign(tf.where(last > 2 * high, last, high))
        return self._round(x, training, {"min_var": low, "max_var": high})


class KernelQuantizer(quantizers.LastValueQuantizer):
    """TFMOT's quantizer of kernels, that keeps the zeros and the shared values a kernel has at the start.

    It follows TFMOT's prune-preserving, cluster-preserving and both-preserving quantizers, with five differences. A
    depthwise kernel has one scale for each output channel, as in LiteRT (TFMOT has one for all, since its last axis is
    the depth multiplier). A channel whose weights are all but zero has a range nevertheless: LiteRT counts its bias in
    steps of that range, and has no more than 2 ** 31 of them. What is preserved lies in variables, so that it is saved
    with the model. A centroid is held at zero only if it is zero (TFMOT does it with the smallest of every channel,
    which wipes out 1x1 convolutions). And whether values are shared by channel or by the whole kernel is given, not
    guessed (a wrong guess multiplies the number of values).

    Args:
      layout: "channels" for one scale an output channel (the last axis), "depthwise" for one each of the last two axes,
        "tensor" for one in all, "transposed" for one in all of a Conv2DTranspose.
      zeros: keep the zeros.
      centroids: shape of the table of shared values, (n,) or (channels, n), or None.
      bits: 8 (integers -127..127) or 4 (-7..7).
    """

    def __init__(self, layout, zeros=False, centroids=None, bits=8):
        super().__init__(num_bits=bits, per_axis=layout in ("channels", "depthwise"), symmetric=True, narrow_range=True)
        self.layout, self.zeros, self.centroids = layout, zeros, centroids

    def variables(self, shape):
        """{name: (shape, dtype, does it train)} of the variables for a kernel of this shape."""
        scales = {"channels": shape[-1:], "depthwise": (int(np.prod(shape[-2:])),)}.get(self.layout, ())
        found = {"min_var": (scales, "float32", False), "max_var": (scales, "float32", False)}
        if self.zeros:
            found["kept"] = shape, "float32", False
        if self.centroids:
            found |= {"centroids": (tuple(self.centroids), "float32", True), "indices": (shape, "int32", False)}
            if self.zeros:
                found["nonzero"] = tuple(self.centroids), "float32", False
        return found

    def start(self, value, variables, bias=None):
        """Sets the variables by the kernel `value`: its range (where TFMOT starts at +-6), zeros and shared values."""
        if self.zeros:
            variables["kept"].assign((value != 0).astype("float32"))
        if self.centroids:
            table = centroids_of(value, tuple(self.centroids))
            variables["centroids"].assign(table)
            variables["indices"].assign(np.abs(value[..., None] - table).argmin(-1).astype("int32"))
            if self.zeros:
                variables["nonzero"].assign((table != 0).astype("float32"))
        self(value, True, variables, bias)

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

    def __call__(self, inputs, training, weights, bias=None):
        value = self.kernel(tf.convert_to_tensor(inputs), weights, training)
        if self.layout == "depthwise":
            flat = super().__call__(tf.reshape(value, (*value.shape[:2], 1, -1)), training, weights)
            rounded = tf.reshape(flat, value.shape)
        elif self.layout == "transposed":
            turned = super().__call__(tf.transpose(value, (0, 1, 3, 2)), training, weights)
            rounded = tf.transpose(turned, (0, 1, 3, 2))
        else:
            rounded = super().__call__(value, training, weights)
        if training:
            self._widen(value, weights, bias)
        return rounded

    def _widen(self, value, weights, bias):
        low, high = weights["min_var"], weights["max_var"]
        least = _LEAST[0] * tf.reduce_max(tf.abs(value))
        if bias is not None:
            bias = tf.abs(tf.convert_to_tensor(bias))
            least = tf.maximum(least, _LEAST[1] * (bias if low.shape.rank else tf.reduce_max(bias)))
        low.assign(tf.minimum(low, -least))
        high.assign(tf.maximum(high, least))


def centroids_of(value, shape):
    """The table of the different values in an array."""
    table = np.zeros(shape, "float32")
    channels = np.moveaxis(value, -1, 0) if len(shape) == 2 else value[None]
    for row, channel in zip(table.reshape(-1, shape[-1]), channels, strict=True):
        found = np.unique(channel)
        row[:len(found)] = found
        row[len(found):] = found[-1]
    return table
