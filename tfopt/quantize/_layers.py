"""The layers of a model that trains in few bits: ranges of activations, and layers whose kernel is rounded."""

import contextlib
import contextvars

from .._keras import ConfigFromArguments, keras, serializable, tf
from .._toolkit.quantization import ActivationQuantizer, KernelQuantizer

_observer = contextvars.ContextVar("observer", default=None)      # called in place of every Range, see `observing`
_exact = contextvars.ContextVar("exact", default=False)           # kernels are used as they are


@contextlib.contextmanager
def observing(note):
    """While it lasts, ranges round nothing in eager calls: `note(range, x)` gets what runs through each."""
    token = _observer.set(note)
    try:
        yield
    finally:
        _observer.reset(token)


@contextlib.contextmanager
def unrounded():
    """While it lasts, a model computes in float in eager calls: neither activations nor kernels are rounded."""
    token = _exact.set(True)
    try:
        with observing(lambda layer, x: None):
            yield
    finally:
        _exact.reset(token)


@serializable
class Range(ConfigFromArguments, keras.layers.Layer):
    """Rounds a tensor to eight bits: `scale * round(x / scale)`, with a range that it learns in training.

    Args:
      kind: "mean" for the moving averages (decay 0.999) of the smallest and the largest value of each batch; "all"
        for the smallest and the largest of all values seen.
    """

    def __init__(self, kind="mean", **kwargs):
        super().__init__(**kwargs)
        self.kind, self.supports_masking = kind, True
        self._quantizer = ActivationQuantizer(kind)

    def build(self, shape):
        self.low, self.high = (
            self.add_weight((), keras.initializers.Constant(value), trainable=False, aggregation="mean", name=name)
            for name, value in zip(("low", "high"), self._quantizer.start, strict=True))

    def call(self, x, training=None):
        x = keras.ops.cast(x, self.compute_dtype)          # lookups say float, and make int64
        observer = _observer.get()
        if observer is not None and tf.executing_eagerly():
            observer(self, x)
            return x
        return self._quantizer(x, bool(training), self.low.value, self.high.value)

    def compute_output_shape(self, shape):
        return shape


class RoundedKernel:
    """Mixin before a Keras layer: its kernel is rounded at each call, with gradients straight through.

    Args:
      bits: 8 or 4.
      zeros, centroids: what of the kernel is preserved, see `KernelQuantizer`.
    """

    layout = "tensor"

    def __init__(self, *args, bits=8, zeros=False, centroids=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits, self.zeros, self.centroids = bits, zeros, centroids
        self._quantizer = KernelQuantizer(self.layout, zeros, centroids, bits)

    def build(self, shape):
        super().build(shape)
        variables = self._quantizer.variables(tuple(self.kernel.shape))
        for name, (shape, dtype, trains) in variables.items():        # as attributes: tf.train.Checkpoint finds these
            setattr(self, f"_{name}", self.add_weight(
                shape, "zeros", dtype, trainable=trains, name=name,
                aggregation="only_first_replica" if dtype == "int32" else "mean"))
        self._names = tuple(variables)

    @property
    def preserves(self):
        """Are zeros or shared values of the kernel kept?"""
        return bool(self.zeros or self.centroids)

    def start_rounding(self):
        """Takes range, zeros and shared values from the kernel as it is now."""
        self._quantizer.start(keras.ops.convert_to_numpy(self.kernel), self._values(), self.bias)

    def kernels(self):
        """The kernel as the model computes with it, before and after rounding: two arrays."""
        before = self._quantizer.kernel(tf.convert_to_tensor(self.kernel.value), self._values())
        return (keras.ops.convert_to_numpy(before),
                keras.ops.convert_to_numpy(self._quantizer(self.kernel.value, False, self._values())))

    def call(self, inputs, training=None):
        if _exact.get() and tf.executing_eagerly():
            return super().call(inputs)
        rounded = self._quantizer(self.kernel.value, bool(training), self._values(), self.bias)
        with keras.StatelessScope([(self.kernel, rounded)], initialize_variables=False):
            return super().call(inputs)

    def _values(self):
        return {name: getattr(self, f"_{name}").value for name in self._names}

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)            # those of Dense and Conv2D save two by name

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), "bits": self.bits, "zeros": self.zeros, "centroids": self.centroids}


@serializable
class QuantizedDense(RoundedKernel, keras.layers.Dense):
    """keras.layers.Dense with a kernel of eight or four bits, one scale for all of it."""


@serializable
class QuantizedConv2D(RoundedKernel, keras.layers.Conv2D):
    """keras.layers.Conv2D with a kernel of eight or four bits, one scale an output channel."""

    layout = "channels"


@serializable
class QuantizedConv2DTranspose(RoundedKernel, keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose with a kernel of eight bits, one scale for all of it."""

    layout = "transposed"


@serializable
class QuantizedDepthwiseConv2D(RoundedKernel, keras.layers.DepthwiseConv2D):
    """keras.layers.DepthwiseConv2D with a kernel of eight bits, one scale an output channel."""

    layout = "depthwise"


ROUNDED = {"Conv2D": QuantizedConv2D, "Conv2DTranspose": QuantizedConv2DTranspose, "Dense": QuantizedDense,
           "DepthwiseConv2D": QuantizedDepthwiseConv2D}
FOUR_BITS = ("Conv2D", "Dense")                            # the classes whose kernels LiteRT takes in four bits
