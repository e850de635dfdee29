"""Where pixels come from: every geometric operation is a 3x3 matrix, a run of them one product and one resample.

A matrix maps a place in the new image to a place in the old one, in pixels from the center of each, x to the right and
y down; only its upper two rows are kept, as six tensors of shape [batch] (a, b, c, d, e, f):

    x_old = a x + b y + c,   y_old = d x + e y + f

A perspective has all nine, and both are divided by w = g x + h y + i. What is no matrix (elastic) is a field of shifts,
added to the places of the new image before the matrix: it comes last in its resample.
"""

import math

from .._check import OneOf, Whole, require
from .._keras import tf
from ._op import PROBABILITY, TURN, Op, Range, Tensors, between, operation

FILL_MODES = ("reflect", "constant", "nearest", "wrap")
HORIZON = 0.05                          # the least w: beyond lies what a perspective cannot show


def identity(batch):
    one, zero = tf.ones(batch), tf.zeros(batch)
    return one, zero, zero, zero, one, zero


def full(matrix: Tensors) -> Tensors:
    """All nine of six or nine."""
    one, zero = tf.ones_like(matrix[0]), tf.zeros_like(matrix[0])
    return matrix if len(matrix) == 9 else (*matrix, zero, zero, one)


def compose(first: Tensors, second: Tensors) -> Tensors:
    """The matrix of `first`, then `second`, acting on an image; exact where one of them is the identity."""
    if len(first) == len(second) == 6:
        a, b, c, d, e, f = first
        g, h, i, j, k, m = second
        return a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f
    first, second = full(first), full(second)
    return tuple(a * second[column] + b * second[3 + column] + c * second[6 + column]
                 for a, b, c in (first[:3], first[3:6], first[6:]) for column in range(3))


def adjugate(matrix: Tensors) -> Tensors:
    """The inverse of nine numbers times their determinant, which a perspective does not see."""
    a, b, c, d, e, f, g, h, i = matrix
    return (e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f,
            d * h - e * g, b * g - a * h, a * e - b * d)


def select(acts, matrix):
    """`matrix` where an operation acts, else the identity."""
    still = full(identity(tf.shape(acts)))[:len(matrix)]
    return tuple(tf.where(acts, m, one) for m, one in zip(matrix, still, strict=True))


def sources(matrix, shifts, old, new):
    """Columns and rows in an image of size `old` from which the pixels of size `new` come: float32[batch, *new]."""
    a, b, c, d, e, f, *bottom = tf.unstack(matrix[..., None, None], axis=1)
    x = (tf.range(new[1], dtype=tf.float32) - (new[1] - 1) / 2)[None, None]
    y = (tf.range(new[0], dtype=tf.float32) - (new[0] - 1) / 2)[None, :, None]
    if shifts is not None:
        x, y = x + shifts[..., 0], y + shifts[..., 1]
    if not bottom:
        return a * x + b * y + (c + (old[1] - 1) / 2), d * x + e * y + (f + (old[0] - 1) / 2)
    g, h, i = bottom
    w = tf.maximum(g * x + h * y + i, HORIZON)
    return (a * x + b * y + c) / w + (old[1] - 1) / 2, (d * x + e * y + f) / w + (old[0] - 1) / 2


def resample(images, matrix, new, *, shifts=None, fill_mode="reflect", fill_value=0.0, nearest=False):
    """Bilinear (or nearest) values of `images` at the places a matrix and shifts say.

    Args:
      images: [batch, height, width, channels], any number dtype.
      matrix: float32[batch, 6] or [batch, 9], see the module.
      new: (height, width) of the result.
      shifts: float32[batch, *new, 2], to the right and down in pixels, or None.
      fill_mode: what lies outside: "reflect" (d c b a | a b c d | d c b a), "constant", "nearest" or "wrap".
      fill_value: the value outside for "constant".
      nearest: take the nearest pixel, keeping the dtype: for masks.

    Returns:
      float32[batch, *new, channels], or the dtype of `images` if `nearest`.
    """
    columns, rows = sources(matrix, shifts, images.shape[1:3], new)
    return sample(images, columns, rows, fill_mode=fill_mode, fill_value=fill_value, nearest=nearest)


def sample(images, columns, rows, *, fill_mode, fill_value=0.0, nearest=False):
    """Values of `images` at float32[batch, height, width] columns and rows; see `resample`."""
    old, channels = tuple(images.shape[1:3]), images.shape[3]
    new = [tf.shape(columns)[axis] if columns.shape[axis] is None else columns.shape[axis] for axis in (1, 2)]
    pixels = tf.reshape(images, (-1, old[0] * old[1]) + (channels,) * (channels > 1))     # an axis of 1 costs time
    columns, rows = _fold(columns, old[1], fill_mode), _fold(rows, old[0], fill_mode)

    def flat(plane):
        return tf.reshape(plane, (-1, new[0] * new[1]))

    def spread(plane):
        return flat(plane)[..., None] if channels > 1 else flat(plane)

    def take(row, column):
        """Pixels at whole places up to one outside of the image."""
        at = _inside(row, old[0], fill_mode) * old[1] + _inside(column, old[1], fill_mode)
        values = tf.gather(pixels, flat(at), batch_dims=1)
        values = values if nearest else tf.cast(values, tf.float32)
        if fill_mode == "constant":
            out = (row < 0) | (row >= old[0]) | (column < 0) | (column >= old[1])
            values = tf.where(spread(out), tf.cast(fill_value, values.dtype), values)
        return values

    if nearest:
        result = take(*(tf.cast(tf.floor(place + 0.5), tf.int32) for place in (rows, columns)))
    else:
        left, top = tf.floor(columns), tf.floor(rows)
        right_part, low_part = spread(columns - left), spread(rows - top)
        x, y = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
        upper, lower = take(y, x), take(y + 1, x)
        upper += right_part * (take(y, x + 1) - upper)
        lower += right_part * (take(y + 1, x + 1) - lower)
        result = upper + low_part * (lower - upper)
    return tf.reshape(result, (-1, *new, channels))


def resample_without_xla(images, matrix, new, *, shifts=None, fill_mode="reflect", fill_value=0.0):
    """`resample` by TensorFlow's own kernel, where it has the fill mode and the map."""
    if fill_mode == "wrap" or shifts is not None or matrix.shape[1] == 9:     # "wrap": not across the seam
        return resample(images, matrix, new, shifts=shifts, fill_mode=fill_mode, fill_value=fill_value)
    a, b, c, d, e, f = tf.unstack(matrix, axis=1)
    x, y = (new[1] - 1) / 2, (new[0] - 1) / 2
    zero = tf.zeros_like(a)
    rows = a, b, c - a * x - b * y + (images.shape[2] - 1) / 2, d, e, f - d * x - e * y + (images.shape[1] - 1) / 2
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32), transforms=tf.stack([*rows, zero, zero], 1), output_shape=new,
        fill_value=fill_value, interpolation="BILINEAR", fill_mode=fill_mode.upper())


def _fold(place, size, fill_mode):
    """Real places brought near the image, so that whole numbers made of them are small."""
    if fill_mode == "reflect":                  # a triangle wave with its turning points at the outer edges
        place = _modulo(place + 0.5, 2.0 * size)
        return tf.clip_by_value(tf.minimum(place, 2.0 * size - place) - 0.5, 0.0, size - 1.0)
    if fill_mode == "nearest":
        return tf.clip_by_value(place, 0.0, size - 1.0)
    if fill_mode == "wrap":
        return _modulo(place, float(size))
    return tf.clip_by_value(place, -2.0, size + 1.0)


def _modulo(place, period):
    return place - period * tf.floor(place * (1 / period))      # several times faster than floormod on floats


def _inside(place, size, fill_mode):
    if fill_mode == "wrap":
        return tf.where(place < 0, place + size, tf.where(place >= size, place - size, place))
    place = tf.minimum(place, size - 1)
    return tf.maximum(place, 0) if fill_mode == "constant" else place


@operation(mode=OneOf("horizontal", "vertical", "horizontal_and_vertical"), probability=PROBABILITY)
class Flip(Op):
    """Mirrors images.

    Args:
      mode: "horizontal", "vertical" or "horizontal_and_vertical" (each way drawn by itself).
      probability: of each way, 0 to 1.

    Raises:
      ValueError: an unknown mode, or a probability outside 0 .. 1.

    Example:
      >>> from tfopt import augment
      >>> flip = augment.Pipeline([augment.Flip(probability=1.0)])
      >>> image = tf.constant([[[[1], [2], [3]]]], tf.uint8)
      >>> flip.apply(image, epoch=0, index=[0])[0, 0, :, 0].numpy().tolist()
      [3, 2, 1]
    """

    mode: str = "horizontal"
    probability: float = 0.5

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        return u[:, 0] < 1                                    # each way decides for itself

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        one, zero = tf.ones_like(u[:, 0]), tf.zeros_like(u[:, 0])
        mirrored = [tf.where(u[:, axis] < self.probability, -one, one) if way in self.mode else one
                    for axis, way in enumerate(("horizontal", "vertical"))]
        return mirrored[0], zero, zero, zero, mirrored[1], zero


@operation(factor=Range(-1, 1, do=TURN), probability=PROBABILITY)
class Rotate(Op):
    """Turns images about their center.

    Args:
      factor: fraction of a full turn, counter-clockwise, -1 to 1: a pair (low, high), or f for (-f, f).
        15 degrees are 15 / 360.
      probability: that an image is turned at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> quarter = augment.Pipeline([augment.Rotate((0.25, 0.25))])
      >>> image = tf.constant([[[[1], [2]], [[3], [4]]]], tf.uint8)
      >>> quarter.apply(image, epoch=0, index=[0])[0, :, :, 0].numpy().tolist()
      [[2, 4], [1, 3]]
    """

    factor: float | tuple[float, float] = (-15 / 360, 15 / 360)
    probability: float = 1.0

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        angle = between(u[:, 1], self.factor) * (2 * math.pi)
        cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
        return cos, -sin, zero, sin, cos, zero


@operation(height_factor=Range(-0.99, 10, relative=True), width_factor=Range(-0.99, 10, relative=True),
           probability=PROBABILITY)
class Zoom(Op):
    """Zooms in and out about the center.

    Args:
      height_factor: the new image shows 1 + factor of the old height: positive zooms out, negative in. A pair
        (low, high), or f for (-f, f); above -1. A range around 1, such as (0.8, 1.2), is refused: write (-0.2, 0.2).
      width_factor: the same for the width; None keeps the aspect ratio.
      probability: that an image is zoomed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> halved = augment.Pipeline([augment.Zoom((1.0, 1.0))], fill_mode="constant")
      >>> halved.apply(tf.fill((1, 4, 4, 1), 100.0), epoch=0, index=[0])[0, :, 1, 0].numpy().tolist()
      [0.0, 100.0, 100.0, 0.0]
    """

    height_factor: float | tuple[float, float] = (-0.2, 0.2)
    width_factor: float | tuple[float, float] | None = None
    probability: float = 1.0
    draws = 3

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        tall = 1 + between(u[:, 1], self.height_factor)
        wide = tall if self.width_factor is None else 1 + between(u[:, 2], self.width_factor)
        zero = tf.zeros_like(tall)
        return wide, zero, zero, zero, tall, zero


@operation(height_factor=Range(-1, 1), width_factor=Range(-1, 1), probability=PROBABILITY)
class Translate(Op):
    """Shifts images.

    Args:
      height_factor: shift down, as a fraction of the height: a pair (low, high), or f for (-f, f); -1 to 1.
      width_factor: shift to the right, as a fraction of the width; None takes the range of `height_factor`.
      probability: that an image is shifted at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> half = augment.Pipeline([augment.Translate(0, (0.5, 0.5))], fill_mode="constant")
      >>> image = tf.constant([[[[1.0], [2.0], [3.0], [4.0]]]])
      >>> half.apply(image, epoch=0, index=[0])[0, 0, :, 0].numpy().tolist()
      [0.0, 0.0, 1.0, 2.0]
    """

    height_factor: float | tuple[float, float] = (-0.1, 0.1)
    width_factor: float | tuple[float, float] | None = None
    probability: float = 1.0
    draws = 3

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        down = between(u[:, 1], self.height_factor) * old[0]
        right = between(u[:, 2], self.width_factor or self.height_factor) * old[1]
        one, zero = tf.ones_like(down), tf.zeros_like(down)
        return one, zero, -right, zero, one, -down


@operation(x_factor=Range(-2, 2), y_factor=Range(-2, 2), probability=PROBABILITY)
class Shear(Op):
    """Slants images about their center.

    Args:
      x_factor: pixels to the right for each pixel down: a pair (low, high), or f for (-f, f); -2 to 2.
      y_factor: pixels down for each pixel to the right, after the slant in x.
      probability: that an image is slanted at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> slant = augment.Pipeline([augment.Shear((1.0, 1.0))], fill_mode="constant")
      >>> image = tf.constant([[[[0.0], [9.0], [0.0]]] * 3])
      >>> slant.apply(image, epoch=0, index=[0])[0, :, :, 0].numpy().tolist()
      [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    """

    x_factor: float | tuple[float, float] = (-0.1, 0.1)
    y_factor: float | tuple[float, float] = (0.0, 0.0)
    probability: float = 1.0
    draws = 3

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        x, y = between(u[:, 1], self.x_factor), between(u[:, 2], self.y_factor)
        one, zero = tf.ones_like(x), tf.zeros_like(x)
        return compose((one, -x, zero, zero, one, zero), (one, zero, zero, -y, one, zero))


@operation(height=Whole(low=1), width=Whole(low=1), scale=Range(0.01, 1, number="up"))
class Crop(Op):
    """Cuts a window out of each image, at a random place; the middle one when not training.

    Args:
      height, width: size of the result in pixels.
      scale: None cuts a window of exactly this size. A pair (low, high) of fractions of the image's area cuts a window
        of that area and an aspect ratio of 3/4 to 4/3 times the result's, and resamples it to the size
        ("random resized crop"); when not training, the largest window of the right shape.

    Raises:
      ValueError: an argument is out of range, or the window is larger than the images.

    Example:
      >>> from tfopt import augment
      >>> image = tf.reshape(tf.range(25, dtype=tf.float32), (1, 5, 5, 1))
      >>> augment.Pipeline([augment.Crop(3, 3)])(image)[0, 0, :, 0].numpy().tolist()
      [6.0, 7.0, 8.0]
    """

    height: int
    width: int
    scale: tuple[float, float] | None = None
    draws = 5

    def size(self, old: tuple[int, int]) -> tuple[int, int]:
        require(self.scale or None in old or (self.height <= old[0] and self.width <= old[1]),
                "augment.Crop and CenterCrop: the window must fit into the images", window=(self.height, self.width),
                images=old, do="Crop less, or put augment.Resize before it.")
        return self.height, self.width

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        if self.scale is None:
            return self._window(*(tf.floor(u[:, 1 + axis] * (room + 1)) - room / 2
                                  for axis, room in enumerate((old[0] - self.height, old[1] - self.width))))
        area = between(u[:, 1], self.scale) * (old[0] * old[1])
        aspect = self.width / self.height * tf.exp(between(u[:, 2], (math.log(3 / 4), math.log(4 / 3))))
        tall = tf.minimum(tf.sqrt(area / aspect), float(old[0]))
        wide = tf.minimum(tf.sqrt(area * aspect), float(old[1]))
        return self._window((u[:, 3] - 0.5) * (old[0] - tall), (u[:, 4] - 0.5) * (old[1] - wide),
                            tall / self.height, wide / self.width)

    def still(self, batch: tf.Tensor, old: tuple[int, int]) -> Tensors:
        zero = tf.zeros(batch)
        if self.scale is None:
            return self._window(zero - (old[0] - self.height) % 2 / 2, zero - (old[1] - self.width) % 2 / 2)
        step = zero + min(old[0] / self.height, old[1] / self.width)
        return self._window(zero, zero, step, step)

    @staticmethod
    def _window(down, right, tall=1.0, wide=1.0):
        zero = tf.zeros_like(down)
        return zero + wide, zero, right, zero, zero + tall, down


@operation(height=Whole(low=1), width=Whole(low=1))
class Resize(Op):
    """Brings images to one size, with every other geometric operation around it in the same resample.

    It takes four neighbors per pixel (no anti-aliasing): to shrink photographs by more than a half, resize them when
    they are decoded.

    Args:
      height, width: size of the result in pixels.

    Raises:
      ValueError: a size is not a whole number >= 1.

    Example:
      >>> from tfopt import augment
      >>> augment.Pipeline([augment.Resize(8, 8)])(tf.zeros((1, 5, 5, 3))).shape
      TensorShape([1, 8, 8, 3])
    """

    height: int
    width: int

    def size(self, old: tuple[int, int]) -> tuple[int, int]:
        return self.height, self.width

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        return self.still(tf.shape(u)[:1], old)

    def still(self, batch: tf.Tensor, old: tuple[int, int]) -> Tensors:
        zero = tf.zeros(batch)
        return zero + old[1] / self.width, zero, zero, zero, zero + old[0] / self.height, zero


@operation(height=Whole(low=1), width=Whole(low=1))
class CenterCrop(Op):
    """Cuts the middle out of each image, in training and outside.

    Args:
      height, width: size of the result in pixels.

    Raises:
      ValueError: a size is not a whole number >= 1, or the window is larger than the images.

    Example:
      >>> from tfopt import augment
      >>> image = tf.reshape(tf.range(25, dtype=tf.float32), (1, 5, 5, 1))
      >>> augment.Pipeline([augment.CenterCrop(1, 3)])(image, training=True).numpy().ravel().tolist()
      [11.0, 12.0, 13.0]
    """

    height: int
    width: int

    def size(self, old: tuple[int, int]) -> tuple[int, int]:
        return Crop(self.height, self.width).size(old)

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        return self.still(tf.shape(u)[:1], old)

    def still(self, batch: tf.Tensor, old: tuple[int, int]) -> Tensors:
        return Crop(self.height, self.width).still(batch, old)
