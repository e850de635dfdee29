"""Rounding by error compensation: which integer each weight becomes, and what the biases make up for.

Nearest rounding makes each weight's error small. What counts is the error of a layer's output, `(w - q) x`. Its mean
over the calibration data goes into the bias (empirical bias correction). Its variance is `(w - q)' H (w - q)`, with `H`
the covariance of the layer's inputs; it is made small by choosing the integers one after another, each making up for
the errors of those before it (GPTQ), and then by changing one at a time (coordinate descent). The layers are taken in
order, each with the inputs that the layers rounded before it produce. The scales of kernels of 8 bits and the size of
the file stay; activations may get other ranges first, see `_ranges`.
"""

import collections

import numpy as np

from .._litert import file
from .._litert.segments import Segments
from . import _ranges

_POSITIONS = 4096           # places of an image, over all samples, that a layer's statistics are taken from
_DAMPING = 0.3              # share of the mean variance that is added to every variance
_PASSES, _BLOCK = 2, 64
_HIGHEST = {8: 127, 4: 7}
_LARGEST = {8: 2.0 ** 30, 4: 2.0 ** 26}  # of a bias in integers; XNNPACK counts in 16ths with kernels of 4 bits
_MEMORY = 2 ** 29           # bytes that the samples' largest tensor may take
_SHARED = 256               # more different values are not shared ones


def rounded(exact, model, samples, bits=8, compensate=True, narrow=False):
    """Puts other integers into the kernels of a file, and other biases.

    Args:
      exact: the float32 file of the same model, parsed.
      model: the int8, int16x8 or dynamic-range file the converter made, parsed; it is changed.
      samples: calibration inputs, an array (samples, ...) for each input of the model.
      bits: 8; or 4 for the kernels of convolutions and dense layers, depthwise ones apart.
      compensate: with False each weight becomes the nearest integer, and biases stay.
      narrow: give activations of an int8 file the ranges of least squared error first.

    Returns:
      {name of a kernel: what was done}; empty if the two files do not have the same kernels.
    """
    pairs, samples = _pairs(exact, model), _fitting(samples, exact)
    if not pairs:
        return {}
    file.separate_biases(model)
    batch = max(int(file.inputs(exact)[0].shape[0]), 1)
    inputs = [[_batches(array, tensor, batch) for array, tensor in zip(samples, file.inputs(one), strict=True)]
              for one in (exact, model)]
    if narrow:
        _ranges.narrow(exact, model, inputs[0])
    walks = [Segments(one, [pair[side] for pair in pairs], inputs[side]) for side, one in enumerate((exact, model))]
    done = {}
    for pair in pairs:
        for walk in walks:
            walk.run()
        layer = _Layer(exact, model, pair, bits, compensate)
        done[layer.name] = layer.round(*(walk.values[x] for walk, x in zip(walks, layer.x, strict=True)))
    return done


def _fitting(samples, exact):
    """As many samples as memory holds of the largest tensor."""
    largest = max(4 * int(np.prod(np.abs(tensor.shape))) for tensor in exact.subgraphs[0].tensors
                  if tensor.shape is not None)
    return [array[:max(_MEMORY // largest, 16, int(file.inputs(exact)[0].shape[0]))] for array in samples]


def _pairs(exact, model):
    """[(place in the float file, place in the other)] of the operations whose kernels are rounded, in order."""
    found = [[place for place, op in enumerate(one.subgraphs[0].operators) if file.kind_of(one, op) in _PATCHES
              and file.constant(one, op.inputs[1]) is not None] for one in (exact, model)]
    kernels = [[file.constant(one, one.subgraphs[0].operators[place].inputs[1]).shape for place in places]
               for one, places in zip((exact, model), found, strict=True)]
    if kernels[0] != kernels[1]:
        return []
    ops = [model.subgraphs[0].operators[place] for place in found[1]]
    counts = collections.Counter(_buffer(model, op) for op in ops)
    return [pair for pair, op in zip(zip(*found, strict=True), ops, strict=True)
            if file.tensor(model, op.inputs[1]).type == file.INT8 and counts[_buffer(model, op)] == 1
            and not _grouped(model, op)]


def _buffer(model, op):
    """Where a kernel lies: layers that share theirs keep it as the converter made it."""
    return file.tensor(model, op.inputs[1]).buffer


def _grouped(model, op):
    return file.kind_of(model, op) == "CONV_2D" and (
        file.tensor(model, op.inputs[0]).shape[-1] != file.tensor(model, op.inputs[1]).shape[-1])


def _batches(array, tensor, batch):
    """Batches of an input as the file's tensor holds it: (batches, batch, ...)."""
    value = file.stored(array, tensor)
    return value[:len(value) // batch * batch].reshape(-1, batch, *value.shape[1:])


class _Layer:
    """One operation with a kernel, in the float file and in the other."""

    def __init__(self, exact, model, places, bits, compensate):
        self.model, self.compensate = model, compensate
        ops = [one.subgraphs[0].operators[place] for one, place in zip((exact, model), places, strict=True)]
        self.x = [int(op.inputs[0]) for op in ops]
        self.op, self.kind = ops[1], file.kind_of(model, ops[1])
        self.kernel = file.constant(exact, ops[0].inputs[1]).astype("float64")
        self.bias = file.constant(exact, ops[0].inputs[2]) if len(ops[0].inputs) > 2 else None
        self.tensor = file.tensor(model, self.op.inputs[1])
        self.name = self.tensor.name.decode()
        self.bits = 8 if self.kind == "DEPTHWISE_CONV_2D" else bits

    def round(self, x_float, x):
        """Puts the integers and the bias into the file; returns what was done."""
        x = file.real(x, file.tensor(self.model, self.op.inputs[0]))
        flat = x.reshape(-1, *x.shape[2:])
        rows, back = _as_rows(self.kind, self.kernel)
        scale = np.broadcast_to(np.asarray(self.tensor.quantization.scale, "float64"), len(rows))
        integers, _ = _as_rows(self.kind, file.constant(self.model, self.op.inputs[1]).astype("float64"))
        done = "shared values kept"
        if self.bits == 4 or not holds_shared_values(rows):
            h = self._covariance(_PATCHES[self.kind](self.op, self.kernel.shape, flat, _POSITIONS), rows)
            scale = scale if self.bits == 8 else np.maximum(_four_bit_scales(rows, h), self._least_scale())
            integers = _chosen(rows / scale[:, None], h, rows == 0, _HIGHEST[self.bits], self.compensate)
            self._write(back(integers), scale)
            done = f"rounded to {self.bits} bits"
        if self._set_bias(rows, integers * scale[:, None], x_float.reshape(-1, *x_float.shape[2:]), flat, scale):
            done += ", bias corrected"
        return done

    def _write(self, integers, scale):
        if self.bits == 8:
            file.set_constant(self.model, self.op.inputs[1], integers.astype("int8"))
            return
        file.set_four_bits(self.model, self.op.inputs[1], integers.astype("int8"), scale)
        if self._has_integer_bias():
            file.set_scale(file.tensor(self.model, self.op.inputs[2]), scale * self._step())

    def _has_integer_bias(self):
        return self._has_bias() and file.tensor(self.model, self.op.inputs[2]).type != file.FLOAT32

    def _has_bias(self):
        return self.bias is not None and len(self.op.inputs) > 2 and self.op.inputs[2] >= 0

    def _least_scale(self):
        """Of each row: with less, as where all weights are zero, the bias in integers would be too large."""
        return 2 * np.abs(self.bias) / (_LARGEST[self.bits] * self._step()) if self._has_integer_bias() else 0.0

    def _step(self):
        return file.tensor(self.model, self.op.inputs[0]).quantization.scale[0]

    def _covariance(self, samples, rows):
        """Of the values that a row of the kernel meets: (K, K), or (rows, K, K) if each row has values of its own."""
        if samples.ndim == 2:
            centered = samples - samples.mean(0)
            h = (centered.T @ centered).astype("float64") / len(samples)
        else:                                              # depthwise: (n, channels, K)
            samples = np.repeat(samples, len(rows) // samples.shape[1], axis=1).swapaxes(0, 1)
            weight = self._passing(samples @ rows[:, :, None].astype("float32"))
            weight /= weight.sum(1, keepdims=True)
            centered = samples - (weight * samples).sum(1, keepdims=True)
            h = ((weight * centered).swapaxes(1, 2) @ centered).astype("float64")
        damping = _DAMPING * np.trace(h, axis1=-2, axis2=-1)[..., None, None] / h.shape[-1] + 1e-12
        return h + damping * np.eye(h.shape[-1])

    def _passing(self, outputs):
        """1 where the activation lets an output through, little elsewhere: (channels, n, 1)."""
        low, high = file.activation_range(self.op)
        outputs = outputs + (0.0 if self.bias is None else self.bias[:, None, None])
        return np.where((outputs > low) & (outputs < high), np.float32(1), np.float32(0.01))

    def _set_bias(self, rows, rounded, x_float, x, scale):
        """Makes the mean of the outputs that of the float file; a bias of another scale is written anew in any case."""
        if not self._has_bias() or not (self.compensate or self.bits == 4):
            return False
        before, after = (_means(self.kind, self.op, self.kernel.shape, values, len(rows)) for values in (x_float, x))
        correction = (rows * before).sum(1) - (rounded * after).sum(1) if self.compensate else 0.0
        wanted = self.bias + correction
        if not self._has_integer_bias():
            file.set_constant(self.model, self.op.inputs[2], wanted.astype("float32"))
            return True
        steps = scale * self._step()
        old, new = file.constant(self.model, self.op.inputs[2]), np.round(wanted / steps)
        new = np.where(np.abs(new) < _LARGEST[self.bits], new, old)   # in 8 bits: a channel without weights has no room
        file.set_constant(self.model, self.op.inputs[2], new.astype(old.dtype))
        return True


def holds_shared_values(rows):
    """Has a kernel (channels, K), or each channel of it, few values but zero, each at least twice on the average?"""
    def few(weights):
        weights = weights[weights != 0]
        return np.unique(weights).size <= min(_SHARED, weights.size // 2)

    return few(rows) or all(map(few, rows))


# Which values a row of a kernel meets


def _as_rows(kind, kernel):
    """The kernel as (output channels, values that each meets), and the way back."""
    if kind == "DEPTHWISE_CONV_2D":
        return kernel.reshape(-1, kernel.shape[-1]).T, lambda rows: rows.T.reshape(kernel.shape)
    return kernel.reshape(len(kernel), -1), lambda rows: rows.reshape(kernel.shape)


def _windows(op, shape, x):
    """View (samples, height, width, channels, kernel height, kernel width) of what a convolution meets."""
    options = op.builtinOptions
    sizes, strides = shape[1:3], (options.strideH, options.strideW)
    dilations = options.dilationHFactor, options.dilationWFactor
    spans = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
    if options.padding == 0:                               # SAME
        totals = [max((-(-length // stride) - 1) * stride + span - length, 0)
                  for length, stride, span in zip(x.shape[1:3], strides, spans, strict=True)]
        x = np.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(1, 2))
    return view[:, ::strides[0], ::strides[1], :, ::dilations[0], ::dilations[1]]


def _some(view, count):
    """(count, ...) of the windows at random places, always the same."""
    places = view.shape[:3]
    total = int(np.prod(places))
    chosen = np.random.default_rng(0).permutation(total)[:count] if total > count else np.arange(total)
    return view[np.unravel_index(chosen, places)]


def _conv_patches(op, shape, x, count):
    some = _some(_windows(op, shape, x), count)            # (n, channels, height, width)
    return some.transpose(0, 2, 3, 1).reshape(len(some), -1)


def _depthwise_patches(op, shape, x, count):
    some = _some(_windows(op, shape, x), count // 4)
    return some.reshape(*some.shape[:2], -1)


def _dense_patches(op, shape, x, count):
    flat = x.reshape(-1, shape[-1])
    return flat if len(flat) <= count else flat[np.random.default_rng(0).permutation(len(flat))[:count]]


_PATCHES = {"CONV_2D": _conv_patches, "DEPTHWISE_CONV_2D": _depthwise_patches, "FULLY_CONNECTED": _dense_patches}


def _means(kind, op, shape, x, rows):
    """Mean of each value that a row of the kernel meets, over all places: (rows or 1, K)."""
    if kind == "FULLY_CONNECTED":
        return x.reshape(-1, shape[-1]).mean(0, dtype="float64")[None]
    view = _windows(op, shape, x.mean(0, dtype="float64", keepdims=True))
    means = view.mean((0, 1, 2))                           # (channels, height, width)
    if kind == "CONV_2D":
        return means.transpose(1, 2, 0).reshape(1, -1)
    return np.repeat(means.reshape(len(means), -1), rows // len(means), axis=0)


# Which integers


def _four_bit_scales(rows, h):
    """The scale of each row that makes its error smallest when it is rounded to -7..7; large weights may be cut off."""
    importance = np.diagonal(h, axis1=-2, axis2=-1)
    candidates = np.abs(rows).max(1)[:, None] * np.linspace(0.5, 1.0, 11) / 7 + 1e-30          # (rows, 11)
    steps = candidates[:, :, None]
    errors = np.clip(np.round(rows[:, None] / steps), -7, 7) * steps - rows[:, None]
    best = (importance * errors ** 2).sum(-1).argmin(1)
    return np.take_along_axis(candidates, best[:, None], 1)[:, 0]


def _chosen(w, h, zeros, highest, compensate):
    """Integers up to `highest` near `w` (rows, K) that make `(w - q)' H (w - q)` small for each row; zeros stay zeros.

    Args:
      w: weights in units of their scale.
      h: (K, K), or (rows, K, K).
      zeros: (rows, K), which weights are held at zero.
    """
    if not compensate:
        return np.clip(np.round(w), -highest, highest)
    order = np.argsort(-np.diagonal(h)) if h.ndim == 2 else np.arange(w.shape[1])
    w, zeros, h = w[:, order], zeros[:, order], h[..., order, :][..., order]
    q = _compensated(w.copy(), h, zeros, highest)
    for _ in range(_PASSES):
        q = _descended(w, q, h, zeros, highest)
    return q[:, np.argsort(order)]


def _compensated(w, h, zeros, highest):
    """Each column is rounded, and the columns after it make up for its error."""
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), -1, -2)
    q = np.zeros_like(w)
    for start, stop in _blocks(h):
        errors = np.zeros((len(w), stop - start))
        for j in range(start, stop):
            q[:, j] = np.where(zeros[:, j], 0, np.clip(np.round(w[:, j]), -highest, highest))
            errors[:, j - start] = (w[:, j] - q[:, j]) / upper[..., j, j]
            w[:, j:stop] -= errors[:, j - start, None] * upper[..., j, j:stop]
        if stop < w.shape[1]:
            w[:, stop:] -= errors @ upper[start:stop, stop:]
    return q


def _descended(w, q, h, zeros, highest):
    """Each integer in turn takes its best value while the others stay."""
    q = q.copy()
    slope = (w - q) @ h if h.ndim == 2 else np.einsum("rk,rkl->rl", w - q, h)
    for start, stop in _blocks(h):
        steps = np.zeros((len(w), stop - start))
        for j in range(start, stop):
            best = np.clip(q[:, j] + np.round(slope[:, j] / h[..., j, j]), -highest, highest)
            steps[:, j - start] = step = np.where(zeros[:, j], 0, best - q[:, j])
            q[:, j] += step
            moved = step.nonzero()[0]                      # few of the rows
            slope[moved, start:stop] -= step[moved, None] * (h if h.ndim == 2 else h[moved])[..., j, start:stop]
        if stop < w.shape[1]:
            slope[:, stop:] -= steps @ h[start:stop, stop:]
    return q


def _blocks(h):
    """(start, stop) of the columns that are treated one by one; those after them follow all at once."""
    size = h.shape[-1]
    step = _BLOCK if h.ndim == 2 else size                 # a `h` for each row has no product for all of them
    return [(start, min(start + step, size)) for start in range(0, size, step)]
