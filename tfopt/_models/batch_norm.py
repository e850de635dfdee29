"""The one update of batch normalization: the moments of data under a model's present weights."""

import contextlib
import math

import numpy as np

from .._check import require
from .._keras import keras, parts_of
from .describe import array_of


def batch_normalizations(model, *, frozen=False):
    """The batch normalizations of a model, also those inside other layers; frozen ones only if asked for."""
    return [layer for layer in parts_of(model)
            if isinstance(layer, keras.layers.BatchNormalization) and (frozen or layer.trainable)]


def batch_moments(model, batches, *, frozen=False):
    """{id(variable): float64 array} of the moving means and variances that `batches` of inputs give.

    Each layer normalizes by the moments of the batch, as in training; everything else runs as in inference. The
    moments of the batches are pooled, each by its number n of values for a channel:

        mean = sum n_b mean_b / sum n_b,      variance = sum n_b (variance_b + mean_b^2) / sum n_b - mean^2

    Args:
      model: a built model; nothing in it has changed when this returns.
      batches: batches of inputs as the model takes them.
      frozen: frozen normalizations are measured too.
    """
    totals, layers = {}, batch_normalizations(model, frozen=frozen)
    kept = [(variable, array_of(variable)) for layer in layers
            for variable in (layer.moving_mean, layer.moving_variance)]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [variable.assign(value) for variable, value in kept])
        for layer in layers:
            stack.enter_context(_measured(layer, totals))
        for x in batches:
            model(x, training=False)
    require(totals or not layers, "`data` must reach the batch normalization of the model", layers=len(layers))
    found = {}
    for layer in layers:
        if id(layer) in totals:                            # an unused branch has seen nothing and keeps its moments
            count, mean, square = totals[id(layer)]
            found[id(layer.moving_mean)] = mean / count
            found[id(layer.moving_variance)] = np.maximum(square / count - (mean / count) ** 2, 0)
    return found


@contextlib.contextmanager
def _measured(layer, totals):
    """While it lasts, `layer` normalizes by the moments of the batch, and its `totals` are added up."""
    own, momentum, trainable = layer.call, layer.momentum, layer.trainable

    def call(inputs, training=None, mask=None):
        outputs = own(inputs, training=True, mask=mask)
        axis = layer.axis % len(inputs.shape)
        count = math.prod(size for place, size in enumerate(inputs.shape) if place != axis)
        if mask is not None:                               # one flag for each place, which may stand for several values
            count = int(np.sum(mask)) * count // math.prod(mask.shape)
        mean, variance = (array_of(v).astype("float64") for v in (layer.moving_mean, layer.moving_variance))
        seen = totals.get(id(layer), (0, 0., 0.))
        totals[id(layer)] = tuple(a + count * b for a, b in zip(seen, (1, mean, variance + mean ** 2), strict=True))
        return outputs

    layer.call, layer.momentum, layer.trainable = call, 0., True
    try:
        yield
    finally:
        del layer.call
        layer.momentum, layer.trainable = momentum, trainable
