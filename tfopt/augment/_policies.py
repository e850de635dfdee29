"""Policies: each image draws its own few operations from a list of fourteen; their geometry is still one resample."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping

from .._check import Number, Whole
from .._keras import in_xla, tf
from . import _color, _geometry, _pixels
from ._op import Op, Tensors, only, operation, per_image

OPS = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast",
       "sharpness", "posterize", "solarize", "autocontrast", "equalize")
NAMES = (*OPS, "invert")                                # which only AutoAugment draws

# The strongest an operation gets; shifts are (fraction of the size, None) or (None, pixels).
LIMITS = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": (0.45, None), "translate_y": (0.45, None), "rotate": 30,
           "brightness": 0.9, "saturation": 0.9, "contrast": 0.9, "sharpness": 0.9, "posterize": 4, "solarize": 1}
_WIDE = {"shear_x": 0.99, "shear_y": 0.99, "translate_x": (None, 32), "translate_y": (None, 32), "rotate": 135,
         "brightness": 0.99, "saturation": 0.99, "contrast": 0.99, "sharpness": 0.99, "posterize": 6, "solarize": 1}


@dataclasses.dataclass(frozen=True)
class Policy(Op):
    """Base of the policies: `rounds` operations per image, of strengths up to `limits`."""

    inverts: typing.ClassVar[bool] = False

    @property
    def draws(self) -> int:
        return 3 * self.rounds

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(u[:, 0], tf.bool)

    def parts(self) -> list[Op]:
        """What the pipeline carries out: first all geometry, then the colors round by round."""
        parts: list[Op] = [_Moves(self)]
        for turn in range(self.rounds):
            parts += [part(self, turn) for part in (_Colors, _Tones, _Rest)]
        return parts

    def drawn(self, u: tf.Tensor, turn: int) -> tuple[Callable[[str], tf.Tensor], tf.Tensor, tf.Tensor]:
        """What an image does in one round: `chosen(name)` -> bool[batch], strength 0 to 1 and sign, float32[batch]."""
        choice = tf.cast(tf.floor(u[:, 3 * turn] * len(OPS)), tf.int32)
        sign = tf.where(u[:, 3 * turn + 1] < 0.5, -1.0, 1.0)
        return (lambda name: choice == NAMES.index(name)), self.strength(u[:, 3 * turn + 2]), sign


@dataclasses.dataclass(frozen=True)
class _Part(Op):
    policy: Policy
    turn: int = 0

    @property
    def draws(self) -> int:
        return self.policy.draws

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        return self.policy.acts(u)

    def signed(self, u: tf.Tensor, name: str) -> tf.Tensor:
        """float32[batch]: how far an image goes with an operation that has two directions; 0 if it did not draw it."""
        chosen, strength, sign = self.policy.drawn(u, self.turn)
        return tf.where(chosen(name), sign * strength * self.policy.limits[name], 0.0)


@dataclasses.dataclass(frozen=True)
class _Moves(_Part):
    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        matrices = [_Move(self.policy, turn).matrix(u, old) for turn in range(self.policy.rounds)]
        for second in matrices[1:]:
            matrices[0] = _geometry.compose(matrices[0], second)
        return matrices[0]


@dataclasses.dataclass(frozen=True)
class _Move(_Part):
    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        angle = self.signed(u, "rotate") * (math.pi / 180)
        cos, sin = tf.cos(angle), tf.sin(angle)
        return (cos, self.signed(u, "shear_x") - sin, self.shift(u, "translate_x", old[1]),
                self.signed(u, "shear_y") + sin, cos, self.shift(u, "translate_y", old[0]))

    def shift(self, u, name, size):
        fraction, pixels = self.policy.limits[name]
        chosen, strength, sign = self.policy.drawn(u, self.turn)
        return tf.where(chosen(name), sign * strength * (min(pixels, size) if pixels else fraction * size), 0.0)


@dataclasses.dataclass(frozen=True)
class _Colors(_Part):
    def affine(self, u: tf.Tensor, channels: int, low: float, high: float) -> Tensors:
        _color.require_colors(self.policy, channels)
        maps = [_color.brightness(self.signed(u, "brightness"), channels, low, high, multiply=True),
                _color.saturation(1 + self.signed(u, "saturation"), channels),
                _color.contrast(1 + self.signed(u, "contrast"), channels)]
        if self.policy.inverts:
            inverted = self.policy.drawn(u, self.turn)[0]("invert")
            maps.append(_color.select(inverted, _color.negative(u, channels, low, high)))
        return _color.compose(maps)


@dataclasses.dataclass(frozen=True)
class _Tones(_Part):
    compiled = True

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        chosen, strength, _ = self.policy.drawn(u, self.turn)
        bits = 8 - tf.cast(tf.round(strength * self.policy.limits["posterize"]), tf.int32)
        threshold = 1 - strength * self.policy.limits["solarize"]
        return tf.where(chosen("posterize"), bits, 8), tf.where(chosen("solarize"), threshold, 2.0)

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        bits, threshold = parameters
        return _pixels.solarize(_pixels.posterize(images, bits, low, high), low + threshold * (high - low), low, high)


@dataclasses.dataclass(frozen=True)
class _Rest(_Part):
    """What looks at other pixels too, done on the few images that drew it."""

    names = ("autocontrast", "equalize", "sharpness")

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        chosen = self.policy.drawn(u, self.turn)[0]
        return chosen(self.names[0]) | chosen(self.names[1]) | chosen(self.names[2])

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        chosen = self.policy.drawn(u, self.turn)[0]
        return chosen("autocontrast"), chosen("equalize"), 1 + self.signed(u, "sharpness")

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float) -> tf.Tensor:
        stretched, equalized, scale = parameters
        images = only(stretched, lambda some: _pixels.autocontrast(some, low, high), images)
        images = only(equalized, lambda some: _pixels.equalize(some, low, high), images)
        return only(scale != 1, lambda some, scale: _pixels.sharpen(some, scale), images, scale)


@operation(num_ops=Whole(low=1, high=8), factor=Number(low=0, high=1))
class RandAugment(Policy):
    """Each image draws `num_ops` operations of one fixed strength.

    From fourteen: identity, shear and shift in x and y, rotate, brightness, saturation, contrast, sharpness, posterize,
    solarize, autocontrast, equalize; brightness multiplies, as in the paper. What an image draws is its own (not the
    batch's). The geometry of all rounds comes first, as one resample; the colors follow in the order they were drawn.

    Args:
      num_ops: operations per image, 1 to 8.
      factor: strength from 0 (nothing) to 1: shear 0.3, shift 0.45 of the size, 30 degrees, colors by 0.9,
        posterize to 4 bits, solarize all. 0.3 is the paper's 9 of 30.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.RandAugment(num_ops=2, factor=0.3)])
      >>> views.apply(tf.zeros((4, 32, 32, 3), tf.uint8), epoch=0, index=range(4)).shape
      TensorShape([4, 32, 32, 3])

    Reference: Cubuk et al. 2019, RandAugment. https://arxiv.org/abs/1909.13719
    """

    num_ops: int = 2
    factor: float = 0.3
    limits = LIMITS

    @property
    def rounds(self) -> int:
        return self.num_ops

    def strength(self, u: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(u) * self.factor


@operation()
class TrivialAugment(Policy):
    """Each image draws one operation and its strength: nothing to tune.

    The fourteen operations of RandAugment in their wide ranges: shear 0.99, shift 32 pixels, 135 degrees, colors by
    0.99, posterize to 2 bits, solarize all; the strength is uniform from 0 to these.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.TrivialAugment()])
      >>> views.apply(tf.zeros((4, 32, 32, 3), tf.uint8), epoch=0, index=range(4)).shape
      TensorShape([4, 32, 32, 3])

    Reference: Mueller and Hutter 2021, TrivialAugment. https://arxiv.org/abs/2103.10158
    """

    rounds = 1
    limits = _WIDE

    def strength(self, u: tf.Tensor) -> tf.Tensor:
        return u


@operation(width=Whole(low=1, high=8), depth=Whole(low=1, high=4), factor=Number(low=0, high=1))
class AugMix(Op):
    """Mixes each image with chains of operations on it: accuracy under corruptions that were not trained on.

    Each of `width` chains draws 1 to `depth` of nine operations (autocontrast, equalize, posterize, rotate, solarize,
    shear and shift in x and y: none that looks like noise, blur or weather), each with its strength. The chains are
    mixed with weights from Dirichlet(1), and the mix with the image with a share that is uniform in 0 .. 1. What moves
    in is as the pipeline's `fill_mode` says. It is for classification: masks and boxes stay. The paper adds a loss that
    pulls three views of an image together; that is for the user's `train_step`.

    Args:
      width: number of chains, 1 to 8.
      depth: operations of a chain at most, 1 to 4.
      factor: how strong they get, 0 to 1: 1 is shear 0.3, shift a third, 30 degrees, 4 bits; 0.3 is the paper's 3 of
        10.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.AugMix()])
      >>> views.apply(tf.zeros((4, 32, 32, 3), tf.uint8), epoch=0, index=range(4)).shape
      TensorShape([4, 32, 32, 3])

    Reference: Hendrycks et al. 2020, AugMix. https://arxiv.org/abs/1912.02781
    """

    width: int = 3
    depth: int = 3
    factor: float = 0.3
    moving: typing.ClassVar[bool] = True
    names: typing.ClassVar[tuple[str, ...]] = (
        "autocontrast", "equalize", "posterize", "solarize", "rotate", "shear_x", "shear_y", "translate_x",
        "translate_y")                                                   # the last five move
    limits: typing.ClassVar[Mapping[str, float]] = types.MappingProxyType(
        {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 1 / 3, "translate_y": 1 / 3, "rotate": 30, "posterize": 4})

    @property
    def draws(self) -> int:
        return 1 + self.width * (2 + 3 * self.depth)

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(u[:, 0], tf.bool)

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        weights = -tf.math.log1p(-u[:, 1:1 + self.width])                # exponential: Dirichlet(1) once they sum to 1
        weights *= u[:, :1] / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1e-30)
        depths = 1 + tf.floor(u[:, 1 + self.width:1 + 2 * self.width] * self.depth)
        turns = tf.reshape(u[:, 1 + 2 * self.width:], (-1, self.width, self.depth, 3))
        choices = tf.cast(tf.floor(turns[..., 0] * len(self.names)), tf.int32)
        drawn = tf.range(self.depth, dtype=tf.float32)[None, None] < depths[..., None]
        return weights, tf.where(drawn, choices, -1), (2 * turns[..., 1] - 1) * self.factor, turns[..., 2] * self.factor

    def change(self, images: tf.Tensor, parameters: Tensors, *, noise: Callable[[], tf.Tensor],
               low: float, high: float, settings: Mapping[str, typing.Any]) -> tf.Tensor:
        weights, *drawn = parameters
        compiled = settings["jit_compile"]
        once = _tones_and_moves(low, high, settings["fill_mode"], settings["fill_value"], compiled)
        views = tf.concat([images] * self.width, 0)                       # the chains side by side
        drawn = [tf.concat(tf.unstack(part, axis=1), 0) for part in drawn]
        for choice, signed, strength in zip(*(tf.unstack(part, axis=1) for part in drawn), strict=True):
            views = only(choice == self.names.index("equalize"), lambda some: _pixels.equalize(some, low, high), views)
            views = once(views, *self._settings(choice, signed, strength, images.shape[1:3]))
        chains = tf.stack(tf.split(views, self.width), axis=1)
        mixed = tf.reduce_sum(chains * weights[:, :, None, None, None], axis=1)
        return images * per_image(1 - tf.reduce_sum(weights, axis=1)) + mixed

    def _settings(self, choice, signed, strength, size):
        """What one operation of each image is, but for equalize; `signed` (-factor to factor) has two directions."""

        def amount(name):
            return tf.where(choice == self.names.index(name), signed * self.limits[name], 0.0)

        bits = 8 - tf.cast(tf.round(strength * self.limits["posterize"]), tf.int32)
        bits = tf.where(choice == self.names.index("posterize"), bits, 8)
        threshold = tf.where(choice == self.names.index("solarize"), 1 - strength, 2.0)
        angle = amount("rotate") * (math.pi / 180)
        matrix = tf.stack([tf.cos(angle), amount("shear_x") - tf.sin(angle), amount("translate_x") * size[1],
                           amount("shear_y") + tf.sin(angle), tf.cos(angle), amount("translate_y") * size[0]], axis=1)
        return choice == self.names.index("autocontrast"), bits, threshold, matrix, \
            choice >= self.names.index("rotate")


@functools.cache
def _tones_and_moves(low, high, fill_mode, fill_value, compiled):
    """What AugMix does to images but for equalize, compiled: as single kernels it takes several times as long.

    Tones and moves by themselves: in one, XLA computes the tones anew for each of the four pixels that a move reads.
    """

    def tones(images, stretched, bits, threshold):
        images = tf.where(stretched[:, None, None, None], _pixels.autocontrast(images, low, high), images)
        images = _pixels.posterize(images, bits, low, high)
        return _pixels.solarize(images, low + threshold * (high - low), low, high)

    def moves(images, matrix, moved):
        resample = _geometry.resample if compiled or in_xla() else _geometry.resample_without_xla
        seen = resample(images, matrix, tuple(map(int, images.shape[1:3])), fill_mode=fill_mode, fill_value=fill_value)
        return tf.where(moved[:, None, None, None], seen, images)

    if compiled:
        tones, moves = (tf.function(part, jit_compile=True, autograph=False) for part in (tones, moves))
    return lambda images, stretched, bits, threshold, *move: moves(tones(images, stretched, bits, threshold), *move)
