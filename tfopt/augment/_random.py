"""Random numbers without a state: each is a hash of the seed, the epoch, the example's index and what it is for."""

import functools
import operator

from .._keras import tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds: two uint32 tensors from two keys and two counters, which broadcast.

    Reference: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3. https://doi.org/10.1145/2063384.2063405

    Example:
      >>> zero = tf.constant(0, tf.uint32)
      >>> [hex(int(word)) for word in threefry((zero, zero), (zero, zero))]
      ['0x6b200159', '0x99ba4efe']
    """
    keys = (*key, key[0] ^ key[1] ^ tf.constant(_PARITY, tf.uint32))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for turn in _ROTATIONS[block % 2]:
            x += y
            y = tf.bitwise.left_shift(y, _word(turn)) | tf.bitwise.right_shift(y, _word(32 - turn))
            y ^= x
        x += keys[(block + 1) % 3]
        y += keys[(block + 2) % 3] + _word(block + 1)
    return x, y


def example_keys(seed, epoch, index):
    """Two uint32[batch] that name a view: `seed` is a whole number, `epoch` and `index` are int64[batch]."""
    seeds = _word(seed & 0xFFFFFFFF), _word(seed >> 32 & 0xFFFFFFFF)
    return threefry(threefry(seeds, _halves(epoch)), _halves(index))


def uniform(keys, streams):
    """{stream: float32[batch, count] in [0, 1)} for {stream: count}: each operation has a stream of its own."""
    lanes = [stream * 4096 + lane for stream, count in streams.items() for lane in range(count)]
    if not lanes:
        return {stream: tf.zeros((tf.shape(keys[0])[0], 0)) for stream in streams}
    x, _ = threefry((keys[0][:, None], keys[1][:, None]), (tf.constant([lanes], tf.uint32), _word(1)))
    return dict(zip(streams, tf.split(_unit(x), list(streams.values()), axis=1), strict=True))


def pixel_noise(keys, shape, stream):
    """float32[batch, *shape] in [0, 1), one number per value: a cheaper hash, since there are many of them."""
    size = functools.reduce(operator.mul, shape)
    start, _ = threefry(keys, (_word(stream), _word(2)))
    places = tf.cast(tf.range(size), tf.uint32)[None] * _word(0x9E3779B9)
    return tf.reshape(_unit(_mix((places ^ start[:, None]) + keys[1][:, None])), (-1, *shape))


def fingerprint(images, compiled=True):
    """int64[batch] >= 0: a hash of each image's bytes."""
    known = images.shape[1:].is_fully_defined()
    size = (images.shape[1:].num_elements() if known else tf.reduce_prod(tf.shape(images)[1:])) * images.dtype.size
    octets = tf.reshape(tf.bitcast(images, tf.uint8), (-1, size))
    if not known or size % 256:
        octets = tf.pad(octets, ((0, 0), (0, -size % 256)))
    words = tf.bitcast(tf.reshape(octets, (-1, -(-size // 256), 64, 4)), tf.int32)      # free here, a copy inside XLA
    return (_compiled_digest if compiled and known else _digest)(words)


def _digest(words):
    """int64[batch] of int32[batch, n, 64]: sums that wrap around, so in any order, then a thorough mix of the 64.

    Zeros at the end change nothing: a sequence that is padded to another length keeps its name.
    """
    if words.shape[1] is None:
        weights = _weights(tf.shape(words)[1])
    else:
        with tf.init_scope():                                  # else XLA computes them anew for every word
            weights = _weights(words.shape[1]).numpy()
    sums = tf.bitcast(tf.reduce_sum(words * weights, axis=1), tf.uint32)
    places = tf.cast(tf.range(64), tf.uint32)
    mixed = (_mix(sums ^ _mix(places + _word(salt))) for salt in (64, 128))
    high, low = (tf.reduce_sum(tf.cast(part, tf.int64), axis=1) for part in mixed)
    return tf.bitwise.left_shift(high & 0x7FFFFFFF, tf.constant(32, tf.int64)) | (low & 0xFFFFFFFF)


def _weights(count):
    return tf.reshape(tf.bitcast(_mix(tf.cast(tf.range(count * 64), tf.uint32)), tf.int32) | 1, (1, -1, 64))


_compiled_digest = tf.function(_digest, jit_compile=True, autograph=False)


def _mix(x):
    """The finalizer of MurmurHash3: each bit of the input changes each bit of the output with probability 1/2."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ tf.bitwise.right_shift(x, _word(shift))) * _word(factor)
    return x ^ tf.bitwise.right_shift(x, _word(16))


def _word(value):
    return tf.constant(value, tf.uint32)


def _halves(value):
    value = tf.cast(value, tf.int64)
    return tf.cast(value & 0xFFFFFFFF, tf.uint32), tf.cast(tf.bitwise.right_shift(value, tf.constant(32, tf.int64))
                                                           & 0xFFFFFFFF, tf.uint32)


def _unit(x):
    return tf.cast(tf.cast(tf.bitwise.right_shift(x, _word(8)), tf.int32), tf.float32) * 2.0**-24
