"""Two images become one, and so do their labels."""

import dataclasses
import functools
import math
import typing

import numpy as np

from .._check import Number, Whole, require
from .._keras import tf
from ._op import PROBABILITY, Op, operation, per_image
from ._pixels import inside_rectangle


@functools.cache
def beta_quantiles(alpha, steps=1024):
    """Quantiles of Beta(alpha, alpha), float32[steps + 1]: looked up by a uniform number, they draw it.

    They stand at (1 - cos(pi k / steps)) / 2, so closer together at the ends, where they change fast.
    """
    wanted = (1 - np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    low, high = np.zeros(steps + 1), np.ones(steps + 1)
    with tf.init_scope():
        parameter = tf.fill((steps + 1,), tf.constant(alpha, tf.float64))
        for _ in range(50):
            middle = (low + high) / 2
            below = tf.math.betainc(parameter, parameter, tf.constant(middle)).numpy() < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(wanted == 1, 1, low).astype("float32")


def partners(key):
    """int32[batch]: each example's partner, the next one around a circle in the order of uint32[batch] keys.

    It depends on which examples the batch holds, not on their order; nobody is its own partner but a lone example.
    """
    order = tf.argsort(tf.cast(key, tf.int64), stable=True)
    return tf.scatter_nd(order[:, None], tf.roll(order, -1, axis=0), tf.shape(order))


def mix_labels(labels, partner, share):
    """share * labels + (1 - share) * the partner's labels, float32; `share` is float32[batch]."""
    share = tf.reshape(share, (-1,) + (1,) * (labels.shape.rank - 1))
    return share * labels + (1 - share) * tf.gather(labels, partner)


@dataclasses.dataclass(frozen=True)
class Mix(Op):
    alpha: float = 0.2
    num_classes: int | None = None
    probability: float = 1.0
    draws = 4

    def soft(self, labels: typing.Any) -> tf.Tensor:
        """Labels as float32 that can be mixed; whole numbers become one-hot."""
        name = f"augment.{type(self).__name__}"
        require(labels is not None, f"{name} needs labels, since it mixes them", labels=None,
                do="Pass (images, labels).")
        labels = tf.convert_to_tensor(labels)
        require(labels.shape.rank is not None and labels.shape.rank >= 1, f"{name} needs one label per image",
                shape=tuple(labels.shape))
        if labels.dtype.is_floating or (labels.shape.rank == 2 and labels.shape[1] != 1):
            require(self.num_classes is None or labels.shape[-1] in (self.num_classes, None),
                    f"{name}: `num_classes` must fit the labels", num_classes=self.num_classes,
                    shape=tuple(labels.shape))
            return tf.cast(labels, tf.float32)
        require(self.num_classes is not None, f"{name} needs `num_classes` to mix whole-number labels",
                dtype=labels.dtype.name, do=f"Write {name}(num_classes=...), or pass one-hot labels.")
        labels = tf.cast(tf.reshape(labels, (-1,)), tf.int32)
        known = tf.reduce_all((labels >= 0) & (labels < self.num_classes))
        message = f"{name}: labels must be within 0 .. num_classes - 1"
        if tf.executing_eagerly():
            require(known, message, labels=labels.numpy().tolist(), num_classes=self.num_classes)
        else:
            tf.debugging.Assert(known, [message, labels])
        return tf.one_hot(labels, self.num_classes)

    def share(self, u: tf.Tensor) -> tf.Tensor:
        """float32[batch]: how much of itself each image keeps, from Beta(alpha, alpha); 1 where it is left alone."""
        table = beta_quantiles(self.alpha)
        place = tf.acos(1 - 2 * u) * ((len(table) - 1) / math.pi)
        lower = tf.floor(place)
        at = tf.minimum(tf.cast(lower, tf.int32), len(table) - 2)
        return tf.gather(table, at) + (place - lower) * (tf.gather(table, at + 1) - tf.gather(table, at))

    def mix(self, images: tf.Tensor, labels: tf.Tensor, u: tf.Tensor,
            key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(images, labels) of a whole batch from float32 images, soft labels, numbers and keys of each example."""
        raise NotImplementedError


@operation(alpha=Number(above=0, high=100), num_classes=Whole(low=2), probability=PROBABILITY)
class MixUp(Mix):
    """Blends each image with another of its batch, and their labels alike: share * x + (1 - share) * partner.

    Args:
      alpha: `share` is drawn for each image from Beta(alpha, alpha); > 0. Small: hardly mixed.
      num_classes: number of classes, needed to mix whole-number labels; they become one-hot.
      probability: that an image is mixed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, labels are missing, or are whole numbers without `num_classes`.

    Example:
      >>> from tfopt import augment
      >>> mixed = augment.Pipeline([augment.MixUp(num_classes=2)])
      >>> _, labels = mixed.apply(tf.zeros((4, 8, 8, 3)), [0, 1, 0, 1], epoch=0, index=range(4))
      >>> labels.shape, round(float(tf.reduce_sum(labels)), 3)
      (TensorShape([4, 2]), 4.0)

    Reference: Zhang et al. 2017, mixup. https://arxiv.org/abs/1710.09412
    """

    def mix(self, images: tf.Tensor, labels: tf.Tensor, u: tf.Tensor,
            key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        partner = partners(key)
        share = tf.where(self.acts(u), self.share(u[:, 1]), 1.0)
        blend = per_image(share)
        return blend * images + (1 - blend) * tf.gather(images, partner), mix_labels(labels, partner, share)


@operation(alpha=Number(above=0, high=100), num_classes=Whole(low=2), probability=PROBABILITY)
class CutMix(Mix):
    """Pastes a rectangle of another image of the batch into each image; labels by the area that was in fact pasted.

    Args:
      alpha: the share of the image that stays is drawn from Beta(alpha, alpha), > 0; the rectangle has the image's
        shape, its center is anywhere, and what hangs over the edge is cut off.
      num_classes: number of classes, needed to mix whole-number labels; they become one-hot.
      probability: that an image is mixed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, labels are missing, or are whole numbers without `num_classes`.

    Example:
      >>> from tfopt import augment
      >>> mixed = augment.Pipeline([augment.CutMix(num_classes=2)])
      >>> images = tf.concat([tf.zeros((1, 8, 8, 1)), tf.fill((1, 8, 8, 1), 1.0)], 0)
      >>> images, labels = mixed.apply(images, [0, 1], epoch=0, index=[0, 1])
      >>> bool(tf.reduce_all(tf.reduce_mean(images, (1, 2, 3)) == labels[:, 1]))
      True

    Reference: Yun et al. 2019, CutMix. https://arxiv.org/abs/1905.04899
    """

    alpha: float = 1.0

    def mix(self, images: tf.Tensor, labels: tf.Tensor, u: tf.Tensor,
            key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        height, width = map(int, images.shape[1:3])
        partner = partners(key)
        side = tf.sqrt(1 - tf.where(self.acts(u), self.share(u[:, 1]), 1.0))
        ends = []
        for middle, size in ((u[:, 2], height), (u[:, 3], width)):
            start = tf.round((middle - side / 2) * size)
            stop = start + tf.round(side * size)
            ends.append((tf.clip_by_value(start, 0, size), tf.clip_by_value(stop, 0, size)))
        (top, bottom), (left, right) = ends
        pasted = inside_rectangle((top, left, bottom, right), (height, width))
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return tf.where(pasted, tf.gather(images, partner), images), mix_labels(labels, partner, share)
