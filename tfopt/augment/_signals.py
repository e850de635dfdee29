"""Pipelines of what is no image: waveforms, spectrograms and token sequences, of any length."""

import dataclasses

from .._check import require
from .._keras import tf
from . import _op, _random
from ._elements import Element, tensors


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the operations of a pipeline work on.

    Args:
      method: of the operations, by which they are known.
      text: what a batch is.
      ranks: its numbers of axes; inside, it has the largest.
      whole: whole numbers, else floating ones.
    """

    method: str
    text: str
    ranks: tuple[int, ...]
    whole: bool = False

    def fits(self, leaf):
        return isinstance(leaf, tf.Tensor) and leaf.shape.rank in self.ranks \
            and (leaf.dtype.is_integer if self.whole else leaf.dtype.is_floating)

    def element(self, parts):
        """The Element of (inputs), (inputs, targets) or (inputs, targets, weights), of which one input is a batch."""
        parts = tensors(tuple(parts))
        leaves, inputs = tf.nest.flatten(parts), tf.nest.flatten(parts[0])
        found = [place for place, leaf in enumerate(inputs) if self.fits(leaf)]
        require(len(found) == 1, f"it needs exactly one input that is {self.text}",
                received=[f"{leaf.dtype.name} {tuple(leaf.shape)}" if isinstance(leaf, tf.Tensor) else leaf
                          for leaf in inputs],
                do="Call `batch` before `map`, and map over a data set of this input and its targets alone."
                   + (' A model takes whole numbers with keras.Input(..., dtype="int32").' if self.whole else ""))
        return Element(tf.nest.pack_sequence_as(parts, range(len(leaves))), leaves, found[0], mixable=False)


KINDS = {kind.method: kind for kind in (
    Kind(_op.WAVES, "waveforms: floats [batch, samples] or [batch, samples, channels]", (2, 3)),
    Kind(_op.SPECTRA, "spectrograms: floats [batch, frequencies, times], or with an axis of channels more", (3, 4)),
    Kind(_op.TOKENS, "tokens: whole numbers [batch, length]", (2,), whole=True))}


def kind_of(ops):
    """The Kind of a pipeline, None for images; all its operations must be of one."""
    found = {_op.kind(op) if _op.kind(op) in KINDS else None for op in ops} or {None}
    require(len(found) == 1, "all operations of a pipeline work on the same: images, waveforms, spectrograms or tokens",
            ops=[type(op).__name__ for op in ops], do="Make a pipeline of each.")
    return KINDS.get(found.pop())


class SignalProgram:
    """The operations in their order, one compiled function where the size is known: as `_program.Program`."""

    def __init__(self, ops, settings, shape, kind):
        self.ops, self.seed, self.kind = ops, settings["seed"], kind
        self.compute = tf.function(self._run, jit_compile=True, autograph=False) \
            if settings["jit_compile"] and None not in shape else self._run

    def __call__(self, signals, epoch, index, rows, *, maps=(), points=()):
        return self.compute(signals, epoch, index)[:rows], [], []

    def _run(self, given, epoch, index):
        keys = _random.example_keys(self.seed, epoch, index)
        numbers = _random.uniform(keys, {place: op.draws for place, op in enumerate(self.ops)})
        flat = given.shape.rank < self.kind.ranks[-1]
        signals = tf.cast(given[..., None] if flat else given, tf.int64 if self.kind.whole else tf.float32)
        for place, op in enumerate(self.ops):
            changed = getattr(op, self.kind.method)(
                signals, numbers[place], lambda shape, place=place: _random.pixel_noise(keys, shape, place))
            require(changed.shape.is_compatible_with(signals.shape),
                    f"augment.{type(op).__name__}.{self.kind.method} must keep the shape", given=tuple(signals.shape),
                    returned=tuple(changed.shape))
            acts = tf.reshape(op.acts(numbers[place]), (-1,) + (1,) * (signals.shape.rank - 1))
            signals = tf.where(acts, tf.cast(changed, signals.dtype), signals)
        return tf.ensure_shape(tf.cast(signals[..., 0] if flat else signals, given.dtype), given.shape)


def length(signals, axis):
    """The size of an axis: a number, or a tensor where it is not known yet."""
    return tf.shape(signals)[axis] if signals.shape[axis] is None else signals.shape[axis]


def column(values, rank):
    """[batch] -> [batch, 1, ...], of that rank."""
    return tf.reshape(values, (-1,) + (1,) * (rank - 1))
