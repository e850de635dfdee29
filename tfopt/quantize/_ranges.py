"""Ranges of activations by least squared error: rare large values are cut off where that makes the rest better.

The converter takes the smallest and the largest value of the calibration data. A narrower range has smaller steps; of
ranges that are 0.4 to 1 times as wide, each tensor gets the one whose rounding has the least mean squared error.
"""

import collections

import numpy as np

from .._litert import file
from .._litert.segments import Segments

_RATIOS = np.linspace(0.4, 1.0, 13)
_VALUES = 100_000           # of a tensor, at random places
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_MAKERS, _TAKERS = (*_KERNELS, "ADD"), (*_KERNELS, "ADD", "MEAN")       # each side has a scale of its own
_BORDER = ("QUANTIZE", "DEQUANTIZE")


def narrow(exact, model, batches):
    """Sets the ranges of what moves between operations, and the scales of the biases, in an int8 file.

    Args:
      exact: the float32 file of the same model, parsed.
      model: the int8 file, parsed; it is changed, if it has the operations of `exact` in the same order.
      batches: one array (batches, ...) for each input of `exact`.
    """
    ops, others = _computing(exact), _computing(model)
    if [file.kind_of(exact, op) for op in ops] != [file.kind_of(model, op) for op in others]:
        return
    free = _free(model)
    pair_of = {id(op): other for op, other in zip(ops, others, strict=True) if int(other.outputs[0]) in free}
    operators, random = exact.subgraphs[0].operators, np.random.default_rng(0)
    walk = Segments(exact, list(range(1, len(operators))), batches)
    for op in operators:
        walk.run()
        values, other = walk.values.get(int(op.outputs[0])), pair_of.get(id(op))
        if values is not None and other is not None:
            held = file.tensor(model, other.outputs[0])
            some = values.reshape(-1)[random.integers(0, values.size, _VALUES)].astype("float64")
            scale, zero = best(some, float(held.quantization.scale[0]), int(held.quantization.zeroPoint[0]))
            file.set_scale(held, np.array([scale]), zero)
    for op in others:
        if _has_integer_bias(model, op):
            _rescale_bias(model, op)


def best(values, scale, zero):
    """(scale, zero point) of the range, so many times the one of `scale` and `zero`, that rounds `values` best."""
    found = []
    for ratio in _RATIOS:
        step = scale * ratio                               # low and high shrink alike, so the zero point stays
        integers = np.clip(np.round(values / step) + zero, -128, 127)
        found.append(np.mean(((integers - zero) * step - values) ** 2))
    return scale * _RATIOS[int(np.argmin(found))], zero


def _computing(model):
    return [op for op in model.subgraphs[0].operators if file.kind_of(model, op) not in _BORDER]


def _free(model):
    """The int8 tensors that may have any range: neither made nor read where two tensors must share theirs."""
    readers, makers = collections.defaultdict(list), {}
    for op in model.subgraphs[0].operators:
        for index in op.inputs:
            readers[int(index)].append(op)
        makers[int(op.outputs[0])] = op
    ends = set(map(int, model.subgraphs[0].outputs))
    return {index for index, op in makers.items() if file.kind_of(model, op) in _MAKERS and index not in ends
            and file.tensor(model, index).type == file.INT8 and readers[index] and all(
                file.kind_of(model, op) in _TAKERS for op in readers[index])}


def _has_integer_bias(model, op):
    return file.kind_of(model, op) in _KERNELS and len(op.inputs) > 2 and op.inputs[2] >= 0 and (
        file.tensor(model, op.inputs[2]).type != file.FLOAT32)


def _rescale_bias(model, op):
    x, kernel, bias = (file.tensor(model, index) for index in op.inputs[:3])
    old = np.asarray(bias.quantization.scale, "float64")
    new = np.asarray(kernel.quantization.scale, "float64") * x.quantization.scale[0]
    if np.allclose(old, new, rtol=1e-6, atol=0):
        return
    integers = file.constant(model, op.inputs[2])
    limits = np.iinfo(integers.dtype)
    file.set_constant(model, op.inputs[2], np.clip(np.round(integers * (old / new)), limits.min, limits.max).astype(
        integers.dtype))
    file.set_scale(bias, new)
