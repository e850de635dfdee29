"""Cross-layer equalization: channels of very different ranges are scaled alike, and the model computes the same.

Where a layer's output reaches one other layer through nothing but normalization, ReLU and pooling, its channel `c` can
be divided by any `s_c > 0` and the kernel that reads it multiplied by `s_c`. With `s_c = sqrt(r1_c / r2_c)`, the ranges
of channel `c` in both kernels, the ranges of both become `sqrt(r1_c r2_c)`.

Reference: Nagel et al., Data-free quantization through weight equalization and bias correction, 2019,
https://arxiv.org/abs/1906.04721
"""

import dataclasses
import math

import numpy as np

from .. import _models
from .._keras import graph_of, keras, uses

_SWEEPS, _WORTH = 10, 16.0
_KERNELS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_LINEAR = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D,
           keras.layers.GlobalMaxPooling2D, keras.layers.ZeroPadding2D, keras.layers.Dropout)


@dataclasses.dataclass
class _Pair:
    """A layer, the BatchNormalization behind it if there is one, and the layer that reads its channels."""

    first: keras.layers.Layer
    norm: keras.layers.Layer | None
    second: keras.layers.Layer


def equalized(model):
    """A copy of a graph model with equalized kernels, or None where there is nothing to gain.

    It is worth it where the factors of a pair's channels differ by more than a factor of 16.
    """
    spread = max((np.ptp(np.log(_factors(pair))) for pair in _pairs(model)), default=0.0)
    if spread < math.log(_WORTH):
        return None
    copy = _models.copy(model)
    pairs = _pairs(copy)
    for _ in range(_SWEEPS):
        factors = [_apply(pair) for pair in pairs]
        if max(np.abs(np.log(found)).max() for found in factors) < 0.01:
            break
    return copy


def _pairs(model):
    """The pairs of a model, in order. A layer that is used twice, or read by two, is in none."""
    steps = uses(graph_of(model))
    counts, readers = {}, {}
    for op, args, kwargs, _ in steps:
        counts[id(op)] = counts.get(id(op), 0) + 1
        for tensor in keras.tree.flatten((args, kwargs)):
            readers.setdefault(id(tensor), []).append(op)
    outputs = {id(op): made for op, _, _, made in steps}
    ends = {id(tensor) for tensor in graph_of(model).outputs}
    pairs = []
    for op, *_ in steps:
        if _has_kernel(op) and counts[id(op)] == 1:
            pair = _followed(op, outputs, readers, counts, ends)
            pairs += [pair] if pair is not None else []
    return pairs


def _followed(first, outputs, readers, counts, ends):
    op, norm, bent = first, None, _bends(first)
    while True:
        made = keras.tree.flatten(outputs[id(op)])
        next_ops = [reader for tensor in made for reader in readers.get(id(tensor), ())]
        if len(next_ops) != 1 or any(id(tensor) in ends for tensor in made) or counts[id(next_ops[0])] != 1:
            return None
        op = next_ops[0]
        if _has_kernel(op):
            return _Pair(first, norm, op)
        if type(op) is keras.layers.BatchNormalization and norm is None and not bent and op.scale and op.center and (
                op.axis in (-1, len(made[0].shape) - 1)):
            norm = op
        elif _is_relu(op):
            bent = True
        elif type(op) not in _LINEAR or getattr(op, "data_format", "channels_last") != "channels_last":
            return None


def _has_kernel(op):
    return type(op) in _KERNELS and getattr(op, "groups", 1) == 1 and _homogeneous(op.activation) and not (
        getattr(op, "lora_enabled", False) or getattr(op, "quantization_mode", None)) and (
        getattr(op, "data_format", "channels_last") == "channels_last")


def _homogeneous(activation):
    return activation in (keras.activations.linear, keras.activations.relu)


def _bends(layer):
    return layer.activation is keras.activations.relu


def _is_relu(op):
    if type(op) is keras.layers.Activation:
        return op.activation is keras.activations.relu
    return type(op) is keras.layers.ReLU and op.max_value is None and not op.threshold


def _ranges(kernel, axes):
    return np.abs(kernel).max(axis=axes)


def _outgoing(pair):
    """Range of each output channel of the first kernel, as it is once the normalization is folded into it."""
    kernel = np.asarray(pair.first.kernel)
    if type(pair.first) is keras.layers.DepthwiseConv2D:
        found = _ranges(kernel, (0, 1)).reshape(-1)
    else:
        found = _ranges(kernel, tuple(range(kernel.ndim - 1)))
    if pair.norm is not None:
        found = found * np.abs(np.asarray(pair.norm.gamma)) / np.sqrt(
            np.asarray(pair.norm.moving_variance) + pair.norm.epsilon)
    return found


def _incoming(pair):
    """Range of each input channel of the second kernel."""
    kernel = np.asarray(pair.second.kernel)
    axis = 0 if kernel.ndim == 2 else 2
    return _ranges(kernel, tuple(other for other in range(kernel.ndim) if other != axis))


def _factors(pair):
    """What each channel is divided by; 1 for channels that do nothing."""
    first, second = _outgoing(pair), _incoming(pair)
    alive = (first > 1e-8) & (second > 1e-8)
    return np.sqrt(np.where(alive, first, 1.0) / np.where(alive, second, 1.0))


def _apply(pair):
    factors = _factors(pair)
    scaled = [pair.norm.gamma, pair.norm.beta] if pair.norm is not None else [
        variable for variable in (pair.first.kernel, pair.first.bias) if variable is not None]
    for variable in scaled:
        by = factors
        if type(pair.first) is keras.layers.DepthwiseConv2D and len(variable.shape) == 4:
            by = factors.reshape(variable.shape[2:])
        variable.assign(np.asarray(variable) / by)
    pair.second.kernel.assign(np.asarray(pair.second.kernel) * factors[:, None])
    return factors
