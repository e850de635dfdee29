"""What pixels become, where that is not linear: each of these ends a run of color operations."""

import dataclasses
import math
from collections.abc import Callable

from .._check import Number, require
from .._keras import in_xla, tf
from ._op import PROBABILITY, Op, Range, Tensors, between, operation, per_image


def posterize(images, bits, low, high):
    """Keeps the upper `bits` (int32[batch], 8 changes nothing) of the 8-bit value of each pixel."""
    step = tf.cast(tf.bitwise.left_shift(1, 8 - bits), tf.float32)[:, None, None, None]
    kept = tf.floor(_levels(images, low, high) / step) * step
    return tf.where(step == 1, images, low + kept * ((high - low) / 255))


def solarize(images, threshold, low, high):
    """Inverts the values from `threshold` (float32[batch], in units of the range) on."""
    return tf.where(images >= per_image(threshold), low + high - images, images)


def autocontrast(images, low, high):
    """Stretches each channel of each image to the whole range; a flat channel stays as it is."""
    darkest = tf.reduce_min(images, axis=(1, 2), keepdims=True)
    lightest = tf.reduce_max(images, axis=(1, 2), keepdims=True)
    scale = (high - low) / tf.where(lightest > darkest, lightest - darkest, 1.0)
    return tf.where(lightest > darkest, low + (images - darkest) * scale, images)


def equalize(images, low, high):
    """Gives each channel of each image a flat histogram of 256 levels."""
    height, width, channels = images.shape[1:]
    levels = tf.cast(_levels(images, low, high), tf.int32)
    rows = tf.reshape(tf.transpose(levels, (0, 3, 1, 2)), (-1, height * width))
    counts = _histograms(rows)
    below = tf.cumsum(counts, axis=1, exclusive=True)
    last = tf.reduce_sum(tf.where(below + counts == height * width, counts, 0), axis=1, keepdims=True)
    step = (height * width - last) // 255                      # `last`: how many pixels have the lightest level
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, table, tf.range(256)[None])
    flat = tf.gather(table, rows, batch_dims=1)
    levels = tf.transpose(tf.reshape(flat, (-1, channels, height, width)), (0, 2, 3, 1))
    return low + tf.cast(levels, tf.float32) * ((high - low) / 255)


def _histograms(rows):
    """int32[rows, 256]: how many of the pixels of a row have each level."""
    if not in_xla():                                           # which has no bincount
        return tf.math.bincount(rows, minlength=256, maxlength=256, axis=-1)
    count = tf.shape(rows)[0]
    places = rows + 256 * tf.range(count)[:, None]
    flat = tf.math.unsorted_segment_sum(tf.ones_like(places), places, 256 * count)
    return tf.reshape(flat, (count, 256))


def sharpen(images, scale):
    """s + scale * (x - s) with s the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    middle = images[:, 1:-1, 1:-1]
    weights = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None, None] / 13
    smooth = tf.nn.depthwise_conv2d(images, tf.repeat(weights, images.shape[3], axis=2), [1, 1, 1, 1], "VALID")
    middle += per_image(scale - 1) * (middle - smooth)
    middle = tf.concat([images[:, 1:-1, :1], middle, images[:, 1:-1, -1:]], axis=2)
    return tf.concat([images[:, :1], middle, images[:, -1:]], axis=1)


def blur(images, sigma, radius):
    """Gaussian of `sigma` pixels (float32[batch]), cut at `radius`, the image reflected about its outer edges."""
    places = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (places / tf.maximum(sigma, 1e-3)[:, None])**2)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    for axis in (1, 2):
        size, pad = images.shape[axis], [[0, 0]] * 4
        pad[axis] = [radius, radius]
        padded = tf.pad(images, pad, "SYMMETRIC")
        shifted = (tf.gather(padded, tf.range(k, k + size), axis=axis) for k in range(2 * radius + 1))
        images = sum(part * per_image(weights[:, k]) for k, part in enumerate(shifted))
    return images


def normal(numbers):
    """Uniform numbers made normal, of mean 0 and deviation 1, cut at 4.2."""
    place = tf.clip_by_value(2 * numbers - 1, 2.0**-15 - 1, 1 - 2.0**-15)         # beyond, erfinv loses its digits
    return math.sqrt(2) * tf.math.erfinv(place)


def _levels(images, low, high):
    """Values as whole numbers 0 .. 255."""
    return tf.round((images - low) * (255 / (high - low)))


@dataclasses.dataclass(frozen=True)
class Compiled(Op):
    compiled = True                      # XLA gains; for the others plain kernels are as good, on chosen images alone


@operation(bits=Range(1, 8, number="both", whole=True), probability=PROBABILITY)
class Posterize(Compiled):
    """Reduces the number of gray levels per channel to 2 ** bits.

    Args:
      bits: how many of 8 bits stay: a whole number, or a pair (low, high) of which each image draws one; 1 to 8.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> coarse = augment.Pipeline([augment.Posterize(2)])
      >>> coarse.apply(tf.constant([[[[0], [70], [255]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [0, 64, 192]
    """

    bits: int | tuple[int, int] = (4, 4)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        return (tf.cast(tf.floor(between(u[:, 1], (self.bits[0], self.bits[1] + 1))), tf.int32),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return posterize(images, *parameters, low, high)


@operation(threshold=Range(0, 1, number="both"), probability=PROBABILITY)
class Solarize(Compiled):
    """Inverts all values from a threshold on.

    Args:
      threshold: fraction of the value range: a pair (low, high) of which each image draws one, or one number; 0 to 1.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> negative = augment.Pipeline([augment.Solarize(0.5)])
      >>> negative.apply(tf.constant([[[[100], [200]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [100, 55]
    """

    threshold: float | tuple[float, float] = (0.0, 1.0)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        return (between(u[:, 1], self.threshold),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return solarize(images, low + parameters[0] * (high - low), low, high)


@operation(probability=PROBABILITY)
class AutoContrast(Compiled):
    """Stretches each channel of each image to the whole value range; a flat channel stays as it is.

    Args:
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: the probability is out of range.

    Example:
      >>> from tfopt import augment
      >>> full = augment.Pipeline([augment.AutoContrast()])
      >>> full.apply(tf.constant([[[[100], [150], [200]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [0, 128, 255]
    """

    probability: float = 1.0

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return autocontrast(images, low, high)


@operation(probability=PROBABILITY)
class Equalize(Op):
    """Spreads the gray levels of each channel evenly (histogram equalization on 256 levels, as Pillow does).

    Args:
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: the probability is out of range.

    Example:
      >>> from tfopt import augment
      >>> ramp = tf.reshape(tf.range(100, 164), (1, 8, 8, 1))
      >>> ramp = tf.cast(tf.repeat(ramp, 8, axis=1), tf.uint8)
      >>> even = augment.Pipeline([augment.Equalize()]).apply(ramp, epoch=0, index=[0])
      >>> int(tf.reduce_min(even)), int(tf.reduce_max(even))
      (0, 255)
    """

    probability: float = 1.0

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return equalize(images, low, high)


@operation(factor=Range(-1, 10, relative=True), probability=PROBABILITY)
class Sharpness(Op):
    """Sharpens (factor > 0) or smooths (factor < 0): s + (1 + factor) * (x - s), with s the smoothed image, as Pillow.

    Args:
      factor: a pair (low, high), or f for (-f, f); -1 (smoothed) to 10.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> smooth = augment.Pipeline([augment.Sharpness((-1, -1))])
      >>> dot = tf.pad(tf.fill((1, 1, 1, 1), 130.0), ((0, 0), (1, 1), (1, 1), (0, 0)))
      >>> round(smooth.apply(dot, epoch=0, index=[0])[0, 1, 1, 0].numpy().item(), 3)
      50.0
    """

    factor: float | tuple[float, float] = (-0.5, 0.5)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        return (1 + between(u[:, 1], self.factor),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return sharpen(images, *parameters)


@operation(sigma=Range(0, 20, number="up"), probability=PROBABILITY)
class Blur(Op):
    """Blurs with a Gaussian, cut at three times the largest sigma.

    Args:
      sigma: standard deviation in pixels: a pair (low, high), or s for (0, s); 0 to 20.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or the Gaussian is wider than the images.

    Example:
      >>> from tfopt import augment
      >>> soft = augment.Pipeline([augment.Blur((1.0, 1.0))])
      >>> dot = tf.pad(tf.fill((1, 1, 1, 1), 100.0), ((0, 0), (3, 3), (3, 3), (0, 0)))
      >>> round(soft.apply(dot, epoch=0, index=[0])[0, 3, 3, 0].numpy().item(), 1)
      15.9
    """

    sigma: float | tuple[float, float] = (0.0, 1.0)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        require(math.ceil(3 * self.sigma[1]) <= min(shape[:2]),
                "augment.Blur: three times `sigma` must fit into the images", sigma=self.sigma, images=shape[:2],
                do="Lower `sigma`.")
        return (between(u[:, 1], self.sigma),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return blur(images, *parameters, math.ceil(3 * self.sigma[1]))


@operation(stddev=Range(0, 1, number="up"), probability=PROBABILITY)
class Noise(Compiled):
    """Adds Gaussian noise, drawn for each value by itself (cut at 4.2 standard deviations).

    Args:
      stddev: standard deviation as a fraction of the value range: a pair (low, high), or s for (0, s); 0 to 1.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> noisy = augment.Pipeline([augment.Noise((0.1, 0.1))], value_range=(0, 1))
      >>> views = noisy.apply(tf.fill((1, 64, 64, 3), 0.5), epoch=0, index=[0])
      >>> round(float(tf.math.reduce_std(views)), 2)
      0.1
    """

    stddev: float | tuple[float, float] = (0.0, 0.05)
    probability: float = 1.0

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        return (between(u[:, 1], self.stddev),)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        return images + per_image(parameters[0] * (high - low)) * normal(noise())


@operation(scale=Range(0, 1, number="up"), ratio=Range(0.1, 10, number="both"), fill_value=Number(),
           probability=PROBABILITY)
class Erase(Compiled):
    """Covers a rectangle of each image (random erasing, cutout). Masks and boxes stay as they are.

    Args:
      scale: area of the rectangle as a fraction of the image's: a pair (low, high), or s for (0, s); 0 to 1.
      ratio: its height over its width: a pair (low, high), drawn evenly in the logarithm; 0.1 to 10.
      fill_value: what covers it, within the value range; None for noise, uniform over the range.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> holes = augment.Pipeline([augment.Erase((0.25, 0.25), ratio=(1, 1), fill_value=0)])
      >>> float(tf.reduce_mean(holes.apply(tf.fill((1, 8, 8, 1), 100.0), epoch=0, index=[0])))
      75.0

    Reference: Zhong et al. 2017, Random Erasing Data Augmentation. https://arxiv.org/abs/1708.04896
    """

    scale: float | tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill_value: float | None = None
    probability: float = 1.0
    draws = 5

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        area = between(u[:, 1], self.scale) * (shape[0] * shape[1])
        ratio = tf.exp(between(u[:, 2], [math.log(end) for end in self.ratio]))
        return place_rectangle(tf.sqrt(area * ratio), tf.sqrt(area / ratio), u[:, 3], u[:, 4], shape)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        cover = low + noise() * (high - low) if self.fill_value is None else float(self.fill_value)
        return tf.where(inside_rectangle(parameters, images.shape[1:3]), cover, images)


def place_rectangle(tall, wide, u_top, u_left, shape):
    """(top, left, bottom, right) in whole pixels, float32[batch], of a rectangle of that size at a random place."""
    tall = tf.clip_by_value(tf.round(tall), 1.0, float(shape[0]))
    wide = tf.clip_by_value(tf.round(wide), 1.0, float(shape[1]))
    top, left = tf.floor(u_top * (shape[0] - tall + 1)), tf.floor(u_left * (shape[1] - wide + 1))
    return top, left, top + tall, left + wide


def inside_rectangle(rectangle, size):
    """bool[batch, height, width, 1]."""
    top, left, bottom, right = map(per_image, rectangle)
    row = tf.range(size[0], dtype=tf.float32)[None, :, None, None]
    column = tf.range(size[1], dtype=tf.float32)[None, None, :, None]
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)
