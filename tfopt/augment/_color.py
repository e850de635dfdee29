"""What pixels become, where that is linear: a run of color operations is one affine map per image.

Each is a map of the color x (one value per channel) and of the mean color m of the whole image,

    x -> M x + N m + o

and so is any run of them: with the run so far  x -> A x + D m + b,  the mean is now (A + D) m + b, hence

    A' = M A,   D' = M D + N (A + D),   b' = (M + N) b + o
"""

import math

from .._check import FLAG, ListOf, Number, require
from .._keras import tf
from ._op import PROBABILITY, TURN, Op, Range, Tensors, between, operation

LUMA = (0.299, 0.587, 0.114)             # Rec. 601


def compose(maps):
    """One (A, D, b) from several (M, N, o); [batch, c, c] twice and [batch, c]."""
    (a, d, b), *rest = maps
    for m, n, o in rest:
        a, d, b = m @ a, m @ d + n @ (a + d), tf.linalg.matvec(m + n, b) + o
    return a, d, b


def select(acts, affine):
    """`affine` where an operation acts, else the identity."""
    still = identity(tf.shape(acts)[0], affine[2].shape[1])
    return tuple(tf.where(tf.reshape(acts, (-1,) + (1,) * (part.shape.rank - 1)), part, same)
                 for part, same in zip(affine, still, strict=True))


def identity(batch, channels):
    eye = tf.eye(channels, batch_shape=(batch,))
    return eye, tf.zeros_like(eye), tf.zeros((batch, channels))


def recolor(images, affine, *, mixing, centering):
    """x -> A x + D m + b for float32[batch, height, width, channels].

    Args:
      images: see above.
      affine: (A, D, b); see the module.
      mixing: A is not diagonal.
      centering: D is not zero.
    """
    a, d, b = affine
    if centering:
        b += tf.linalg.matvec(d, tf.reduce_mean(tf.reduce_mean(images, axis=2), axis=1))
    if not mixing:
        return images * tf.linalg.diag_part(a)[:, None, None] + b[:, None, None]
    terms = [images[..., k:k + 1] * a[:, None, None, :, k] for k in range(images.shape[3])]
    return sum(terms[1:], terms[0]) + b[:, None, None]


def brightness(delta, channels, low, high, multiply=False):
    eye, zero, _ = identity(tf.shape(delta)[0], channels)
    shift = -low * delta if multiply else (high - low) * delta
    eye = eye * (1 + delta)[:, None, None] if multiply else eye
    return eye, zero, tf.repeat(shift[:, None], channels, axis=1)


def contrast(scale, channels):
    eye, _, zero = identity(tf.shape(scale)[0], channels)
    scale = scale[:, None, None]
    return scale * eye, (1 - scale) * eye, zero


def saturation(scale, channels):
    eye, zero, none = identity(tf.shape(scale)[0], channels)
    if channels == 1:
        return eye, zero, none
    return eye + (scale[:, None, None] - 1) * _chroma(), zero, none


def hue(angle, channels):
    eye, zero, none = identity(tf.shape(angle)[0], channels)
    if channels == 1:
        return eye, zero, none
    angle = angle[:, None, None]
    return eye + (tf.cos(angle) - 1) * _chroma() + tf.sin(angle) * _quarter_turn(), zero, none


def negative(like, channels, low, high):
    eye, zero, none = identity(tf.shape(like)[0], channels)
    return -eye, zero, none + (low + high)


def _chroma():
    """What is left of a color without its luma."""
    return tf.eye(3) - tf.constant([LUMA] * 3)


def _quarter_turn():
    """The chroma turned by 90 degrees in the plane of I and Q (NTSC), the luma left out."""
    to_yiq = [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    turn = tf.constant([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], tf.float64)
    to_yiq = tf.constant(to_yiq, tf.float64)
    return tf.cast(tf.linalg.solve(to_yiq, turn @ to_yiq), tf.float32)


@operation(factor=Range(-1, 1, do="For 0.8 to 1.2 times write (0.2, multiply=True)."), probability=PROBABILITY,
           multiply=FLAG)
class Brightness(Op):
    """Brightness: adds factor * (high - low of the value range), or multiplies by 1 + factor.

        x + factor (high - low),   with `multiply`: low + (1 + factor) (x - low)

    Args:
      factor: a pair (low, high), or f for (-f, f); -1 to 1.
      probability: that an image is changed at all, 0 to 1.
      multiply: False adds, as keras.layers.RandomBrightness; True multiplies, as Pillow, torchvision and
        ImageDataGenerator: their (0.8, 1.2) is `Brightness(0.2, multiply=True)`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> lighter = augment.Pipeline([augment.Brightness((0.2, 0.2))])
      >>> lighter.apply(tf.fill((1, 1, 1, 1), 100.0), epoch=0, index=[0]).numpy().item()
      151.0
    """

    factor: float | tuple[float, float] = (-0.2, 0.2)
    probability: float = 1.0
    multiply: bool = False
    mixing = centering = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        return brightness(between(u[:, 1], self.factor), channels, low, high, self.multiply)


@operation(factor=Range(-1, 10, relative=True), probability=PROBABILITY)
class Contrast(Op):
    """Stretches or squeezes colors about each channel's mean m: m + (1 + factor) * (x - m).

    Args:
      factor: a pair (low, high), or f for (-f, f); -1 (flat) to 10.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> halved = augment.Pipeline([augment.Contrast((-0.5, -0.5))])
      >>> halved.apply(tf.constant([[[[100.0], [200.0]]]]), epoch=0, index=[0]).numpy().ravel().tolist()
      [125.0, 175.0]
    """

    factor: float | tuple[float, float] = (-0.2, 0.2)
    probability: float = 1.0
    mixing = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        return contrast(1 + between(u[:, 1], self.factor), channels)


@operation(factor=Range(-1, 10, relative=True), probability=PROBABILITY)
class Saturation(Op):
    """Moves colors away from or towards their gray g (Rec. 601): g + (1 + factor) * (x - g).

    Needs 3 channels; an image of 1 channel is gray already and stays as it is.

    Args:
      factor: a pair (low, high), or f for (-f, f); -1 (gray) to 10.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or images have neither 1 nor 3 channels.

    Example:
      >>> from tfopt import augment
      >>> gray = augment.Pipeline([augment.Saturation((-1, -1))])
      >>> gray.apply(tf.constant([[[[200, 0, 0]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [60, 60, 60]
    """

    factor: float | tuple[float, float] = (-0.2, 0.2)
    probability: float = 1.0
    centering = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        require_colors(self, channels)
        return saturation(1 + between(u[:, 1], self.factor), channels)


@operation(factor=Range(-1, 1, do=TURN), probability=PROBABILITY)
class Hue(Op):
    """Turns colors about the gray axis, in the I-Q plane of NTSC: gray and luma stay.

    A linear map, so it shares the one color matrix; not the (non-linear) hue of HSV. Needs 3 channels; an image of
    1 channel stays as it is.

    Args:
      factor: fraction of a full turn: a pair (low, high), or f for (-f, f); -1 to 1.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or images have neither 1 nor 3 channels.

    Example:
      >>> from tfopt import augment
      >>> turned = augment.Pipeline([augment.Hue((0.5, 0.5))])
      >>> turned.apply(tf.constant([[[[120, 100, 80]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [87, 107, 127]
    """

    factor: float | tuple[float, float] = (-0.05, 0.05)
    probability: float = 1.0
    centering = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        require_colors(self, channels)
        return hue(between(u[:, 1], self.factor) * (2 * math.pi), channels)


@operation(probability=PROBABILITY)
class Grayscale(Op):
    """Turns images gray (Rec. 601 luma), with as many channels as before.

    Needs 3 channels; an image of 1 channel is gray already and stays as it is.

    Args:
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: the probability is out of range, or images have neither 1 nor 3 channels.

    Example:
      >>> from tfopt import augment
      >>> gray = augment.Pipeline([augment.Grayscale(probability=1.0)])
      >>> gray.apply(tf.constant([[[[200, 0, 0]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [60, 60, 60]
    """

    probability: float = 0.5
    centering = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        require_colors(self, channels)
        return saturation(tf.zeros_like(u[:, 0]), channels)


@operation(probability=PROBABILITY)
class Invert(Op):
    """Turns images into their negatives: low + high - x.

    Args:
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: the probability is out of range.

    Example:
      >>> from tfopt import augment
      >>> negative = augment.Pipeline([augment.Invert(probability=1.0)])
      >>> negative.apply(tf.constant([[[[200, 0, 5]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [55, 255, 250]
    """

    probability: float = 0.5
    mixing = centering = False

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        return negative(u, channels, low, high)


@operation(brightness=Range(-1, 1, relative=True), contrast=Range(-1, 10, relative=True),
           saturation=Range(-1, 10, relative=True), hue=Range(-1, 1, do=TURN), probability=PROBABILITY)
class ColorJitter(Op):
    """Brightness (multiplying), contrast, saturation and hue in this order, as one color matrix.

    torchvision draws the order too; here it is fixed, as in keras.layers.RandomColorJitter. Needs 1 or 3 channels.

    Args:
      brightness, contrast, saturation: added to 1: a pair (low, high), or f for (-f, f). A range around 1, such as
        (0.8, 1.2), is refused: write 0.2.
      hue: fraction of a full turn: a pair (low, high), or f for (-f, f); -1 to 1.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range, or images have neither 1 nor 3 channels.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.ColorJitter(brightness=(-0.5, -0.5), contrast=0, saturation=0)])
      >>> views.apply(tf.constant([[[[200, 100, 50]]]], tf.uint8), epoch=0, index=[0]).numpy().ravel().tolist()
      [100, 50, 25]
    """

    brightness: float | tuple[float, float] = (-0.2, 0.2)
    contrast: float | tuple[float, float] = (-0.2, 0.2)
    saturation: float | tuple[float, float] = (-0.2, 0.2)
    hue: float | tuple[float, float] = (0.0, 0.0)
    probability: float = 1.0
    draws = 5

    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        require_colors(self, channels)
        turn = between(u[:, 4], self.hue) * (2 * math.pi)
        return compose([brightness(between(u[:, 1], self.brightness), channels, low, high, multiply=True),
                        contrast(1 + between(u[:, 2], self.contrast), channels),
                        saturation(1 + between(u[:, 3], self.saturation), channels), hue(turn, channels)])


def require_colors(op, channels):
    require(channels in (1, 3), f"augment.{type(op).__name__} needs images of 3 channels (or 1, which is gray already)",
            channels=channels, do="Leave it out, or convert the images to RGB.")


@operation(mean=Number() | ListOf(Number()), std=Number(above=0) | ListOf(Number(above=0)))
class Normalize(Op):
    """Turns the finished image into (x - mean) / std, also when not training; comes after all other operations.

    Args:
      mean, std: a number, or one for each channel, in the units of the images; std > 0.

    Raises:
      ValueError: `std` is not positive, or the lengths do not fit the channels.

    Example:
      >>> from tfopt import augment
      >>> standard = augment.Pipeline([augment.Normalize(mean=[120, 110, 100], std=50)])
      >>> standard(tf.constant([[[[170, 110, 0]]]], tf.uint8)).numpy().ravel().tolist()
      [1.0, 0.0, -2.0]
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    draws = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(map(float, value if isinstance(value, tuple | list) else (value,))))

    def apply(self, images: tf.Tensor) -> tf.Tensor:
        """(x - mean) / std of float32[batch, height, width, channels]."""
        channels = images.shape[3]
        require({len(self.mean), len(self.std)} <= {1, channels},
                "augment.Normalize needs one number, or one for each channel", mean=self.mean, std=self.std,
                channels=channels)
        return (images - tf.constant(self.mean)) * (1 / tf.constant(self.std))
