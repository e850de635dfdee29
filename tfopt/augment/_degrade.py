"""What cameras and files do to images, and what is covered: each of these ends a run of color operations."""

import math
from collections.abc import Callable

from .._check import Number, require
from .._keras import tf
from . import _geometry
from ._op import PROBABILITY, TURN, Op, Range, Tensors, between, operation, per_image
from ._pixels import Compiled


@operation(length=Range(1, 101, number="both"), angle=Range(-1, 1, do=TURN), probability=PROBABILITY)
class MotionBlur(Compiled):
    """Blurs along a line: the mean of `length` places about each pixel, a pixel apart, each interpolated.

    The image is reflected about its outer edges.

    Args:
      length: of the line in pixels: a pair (low, high) of which each image draws one, or one number; brought to
        an odd whole number; 1 to 101.
      angle: fraction of a full turn, counter-clockwise, 0 along the rows: a pair (low, high), or f for (-f, f).
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or the line is longer than the images.

    Example:
      >>> from tfopt import augment
      >>> moved = augment.Pipeline([augment.MotionBlur((3, 3), angle=0)])
      >>> image = tf.constant([[[[0.0], [90.0], [0.0], [0.0]]] * 4])
      >>> moved.apply(image, epoch=0, index=[0])[0, 0, :, 0].numpy().tolist()
      [30.0, 30.0, 30.0, 0.0]
    """

    length: float | tuple[float, float] = (1.0, 7.0)
    angle: float | tuple[float, float] = (-0.5, 0.5)
    probability: float = 1.0
    draws = 3

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        require(self.length[1] <= min(shape[:2]), "augment.MotionBlur: `length` must fit into the images",
                length=self.length, images=shape[:2], do="Lower `length`.")
        reach = tf.floor(between(u[:, 1], self.length) / 2)   # to each side
        return reach, between(u[:, 2], self.angle) * (2 * math.pi)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        reach, angle = parameters
        most, total = int(self.length[1] / 2), tf.zeros_like(images)
        one, zero = tf.ones_like(angle), tf.zeros_like(angle)
        size = tuple(map(int, images.shape[1:3]))

        def add(step, total):
            matrix = tf.stack([one, zero, step * tf.cos(angle), zero, one, -step * tf.sin(angle)], axis=1)
            counts = tf.cast(abs(step) <= reach, tf.float32)
            return step + 1, total + per_image(counts) * _geometry.resample(images, matrix, size)

        _, total = tf.while_loop(lambda step, total: step < most + 1, add, (tf.constant(-float(most)), total))
        return total / per_image(2 * reach + 1)


@operation(quality=Range(1, 100, number="both", whole=True), probability=PROBABILITY)
class JPEG(Op):
    """Compresses images as JPEG does and decodes them again; their values become 256 levels of the value range.

    Args:
      quality: 1 (worst) to 100: a pair (low, high) of which each image draws a whole number, or one number.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or images have neither 1 nor 3 channels.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.JPEG((30, 60))])
      >>> views.apply(tf.fill((2, 16, 16, 3), 128.0), epoch=0, index=[0, 1]).numpy().max()
      np.float32(128.0)
    """

    quality: int | tuple[int, int] = (30, 100)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        require(shape[2] in (1, 3), "augment.JPEG needs images of 1 or 3 channels", channels=shape[2])
        return (tf.cast(tf.floor(between(u[:, 1], (self.quality[0], self.quality[1] + 1))), tf.int32),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        levels = tf.saturate_cast(tf.round((images - low) * (255 / (high - low))), tf.uint8)
        color = images.shape[3] == 3

        def again(pair):
            image, quality = pair
            wide = image if color else tf.repeat(image, 3, axis=2)        # the kernel takes three channels alone
            wide = tf.image.adjust_jpeg_quality(wide, quality)
            return tf.ensure_shape(wide if color else wide[..., :1], images.shape[1:])

        done = tf.map_fn(again, (levels, *parameters), fn_output_signature=tf.uint8)
        return low + tf.cast(done, tf.float32) * ((high - low) / 255)


@operation(size=Range(0.02, 1, number="both"), ratio=Number(above=0, below=1), fill_value=Number(),
           probability=PROBABILITY)
class GridMask(Compiled):
    """Covers a grid of squares, at a place that each image draws. Masks and boxes stay as they are.

    Args:
      size: from one square to the next, as a fraction of the shorter side: a pair (low, high) of which each image draws
        one, or one number; 0.02 to 1.
      ratio: side of a square as a fraction of that; between 0 and 1.
      fill_value: what covers them, within the value range.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> holes = augment.Pipeline([augment.GridMask(0.5, ratio=0.5)])
      >>> float(tf.reduce_mean(holes.apply(tf.fill((1, 8, 8, 1), 100.0), epoch=0, index=[0])))
      75.0

    Reference: Chen et al. 2020, GridMask Data Augmentation. https://arxiv.org/abs/2001.04086
    """

    size: float | tuple[float, float] = (0.2, 0.6)
    ratio: float = 0.5
    fill_value: float = 0.0
    probability: float = 1.0
    draws = 4

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        pitch = tf.maximum(tf.round(between(u[:, 1], self.size) * min(shape[:2])), 2.0)
        return pitch, tf.floor(u[:, 2] * pitch), tf.floor(u[:, 3] * pitch)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        pitch, *starts = map(per_image, parameters)
        side = tf.clip_by_value(tf.round(pitch * self.ratio), 1.0, pitch - 1)
        covered = True
        for axis, start in zip((1, 2), starts, strict=True):
            place = tf.range(images.shape[axis], dtype=tf.float32)
            place = place[None, :, None, None] if axis == 1 else place[None, None, :, None]
            covered &= tf.math.floormod(place + start, pitch) < side
        return tf.where(covered, float(self.fill_value), images)
