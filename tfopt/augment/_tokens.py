"""Sequences of token ids: some are dropped, masked or swapped; padding and protected ids stay."""

import dataclasses

from .._check import NO, ListOf, Number, Rule, Whole
from .._keras import tf
from ._op import PROBABILITY, Noise, Op, operation
from ._signals import length

_IDS = Rule("a list of whole numbers", lambda ids: ListOf(Whole(), low=0)(ids) is not NO,
            lambda ids: tuple(map(int, ids)))
_TOKENS = {"rate": Number(low=0, high=1), "padding_id": Whole(), "protected_ids": _IDS, "probability": PROBABILITY}


@dataclasses.dataclass(frozen=True)
class _Tokens(Op):
    rate: float = 0.1
    padding_id: int = 0
    protected_ids: tuple[int, ...] = ()
    probability: float = 1.0
    draws = 1

    def free(self, tokens: tf.Tensor) -> tf.Tensor:
        """bool[batch, length]: which tokens may be changed."""
        free = tf.ones_like(tokens, tf.bool)
        for one in {self.padding_id, *self.protected_ids}:
            free &= tokens != one
        return free


@operation(**_TOKENS)
class TokenDrop(_Tokens):
    """Leaves tokens out; those behind move up, and padding fills the end (the beginning, where padding stands there).

    Each token is left out with the same probability, by itself; but of those that may go, one always stays.

    Args:
      rate: probability of each token, 0 to 1.
      padding_id: what fills sequences up; it stays.
      protected_ids: ids that stay as well, such as those of the begin and end of a sentence.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> fewer = augment.Pipeline([augment.TokenDrop(1.0, protected_ids=[1, 2])])
      >>> views = fewer.apply(tf.constant([[1, 7, 7, 7, 2, 0]]), epoch=0, index=[0])
      >>> views.numpy().tolist()
      [[1, 7, 2, 0, 0, 0]]

    Reference: Wei and Zou 2019, EDA: Easy Data Augmentation. https://arxiv.org/abs/1901.11196
    """

    def tokens(self, tokens: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        number, free = noise((length(tokens, 1),)), self.free(tokens)
        stays = tf.argmax(tf.where(free, number, -1.0), axis=1, output_type=tf.int32)[:, None]
        dropped = free & (number < self.rate) & (tf.range(length(tokens, 1))[None] != stays)
        padding = tokens == self.padding_id
        before = padding[:, :1] & tf.logical_not(padding[:, -1:])
        order = tf.argsort(tf.where(dropped, tf.where(before, -1, 1), 0), axis=1, stable=True)
        return tf.gather(tf.where(dropped, tf.cast(self.padding_id, tokens.dtype), tokens), order, batch_dims=1)


@operation(**_TOKENS, mask_id=Whole())
class TokenMask(_Tokens):
    """Replaces tokens by one id: that of a mask, or of unknown words.

    Each token is replaced with the same probability, by itself.

    Args:
      rate: probability of each token, 0 to 1.
      mask_id: the id that stands in their place.
      padding_id: what fills sequences up; it stays.
      protected_ids: ids that stay as well.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> hidden = augment.Pipeline([augment.TokenMask(1.0, mask_id=9, protected_ids=[1])])
      >>> hidden.apply(tf.constant([[1, 5, 6, 0]]), epoch=0, index=[0]).numpy().tolist()
      [[1, 9, 9, 0]]
    """

    mask_id: int = dataclasses.field(kw_only=True)

    def tokens(self, tokens: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        masked = self.free(tokens) & (noise((length(tokens, 1),)) < self.rate)
        return tf.where(masked, tf.cast(self.mask_id, tokens.dtype), tokens)


@operation(**_TOKENS)
class TokenSwap(_Tokens):
    """Swaps pairs of tokens, wherever in the sequence they stand.

    All tokens that may move are paired at random (an odd one is left over), and each pair is swapped with the same
    probability: no token is in two swaps.

    Args:
      rate: probability of each pair, and so of each token, 0 to 1.
      padding_id: what fills sequences up; it stays.
      protected_ids: ids that stay as well.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> swapped = augment.Pipeline([augment.TokenSwap(1.0)])
      >>> swapped.apply(tf.constant([[5, 6, 0, 0]]), epoch=0, index=[0]).numpy().tolist()
      [[6, 5, 0, 0]]

    Reference: Wei and Zou 2019, EDA: Easy Data Augmentation. https://arxiv.org/abs/1901.11196
    """

    def tokens(self, tokens: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        size = length(tokens, 1)
        numbers, free = noise((size, 2)), self.free(tokens)
        order = tf.argsort(tf.where(free, numbers[..., 0], 2.0), axis=1, stable=True)       # free ones in random order
        rank = tf.range(size)[None]
        first, count = rank // 2 * 2, tf.reduce_sum(tf.cast(free, tf.int32), axis=1, keepdims=True)
        swapped = (first + 1 < count) & (tf.gather(numbers[..., 1], first[0], axis=1) < self.rate)
        partner = tf.gather(order, tf.where(swapped, rank ^ 1, rank), batch_dims=1)
        return tf.gather(tokens, tf.gather(partner, tf.argsort(order, axis=1), batch_dims=1), batch_dims=1)
