"""Which kernel of a LiteRT file is which kernel of the Keras model, found by its values."""

import numpy as np

_ALIKE, _ALIKE_FOUR = 0.98, 0.9    # median cosine of the channels of one kernel, float and int8, float and int4


def find(kernel, entries):
    """The entry of `file.kernels` that holds `kernel`, or None.

    A converter may scale each output channel (BatchNormalization folded in, one scale a channel), never mix weights of
    a channel; so channels are compared by direction.

    Args:
      kernel: weight of a Dense, convolution, depthwise or transposed convolution layer, as Keras shapes it.
      entries: as `file.kernels` lists them.

    Example:
      >>> kernel = np.array([[1., 2.], [3., 4.], [5., -6.]])
      >>> stored = ("FULLY_CONNECTED", "a", "b", np.array([[25, 76, 127], [42, 85, -127]], "int8"))
      >>> find(kernel, [stored]) is stored, find(-kernel[::-1], [stored])
      (True, None)
    """
    found = pair(kernel, entries)
    return found and found[0]


def pair(kernel, entries):
    """The same entry, and both kernels as (output channels, weights of each): (entry, stored, own), or None."""
    kernel = np.asarray(kernel)
    best, found = 0.0, None
    for entry in entries:
        stored = channels(*entry[::3])
        least = _ALIKE_FOUR if stored.dtype == np.int8 and np.abs(stored).max() <= 8 else _ALIKE
        for rows in _layouts(kernel):
            if rows.shape == stored.shape:
                a, b = rows.astype("float64"), stored.astype("float64")
                product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                cosine = (a * b).sum(axis=1)[product > 0] / product[product > 0]
                alike = float(np.median(np.abs(cosine))) if len(cosine) else 0.
                if alike > max(best, least):
                    best, found = alike, (entry, stored, rows)
    return found


def channels(op, values):
    """A kernel of the file as (output channels, weights of each)."""
    return values.reshape(-1, values.shape[-1]).T if op == "DEPTHWISE_CONV_2D" else values.reshape(len(values), -1)


def _layouts(kernel):
    """A Keras kernel likewise: of Dense and convolutions, of heads, of a depthwise and of a transposed one."""
    yield np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    if kernel.ndim == 3:                                   # the heads of an attention layer are one axis in the file
        yield kernel.reshape(len(kernel), -1).T
    if kernel.ndim == 4:
        yield kernel.reshape(kernel.shape[0] * kernel.shape[1], -1).T
        yield np.moveaxis(kernel, 2, 0).reshape(kernel.shape[2], -1)
