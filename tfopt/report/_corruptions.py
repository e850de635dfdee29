"""Corruptions of images at five severities, as operations of `augment`.

The first seven have the strengths that Hendrycks and Dietterich published for images of 32 (CIFAR-10-C), 64 (Tiny
ImageNet-C) and 224 pixels (ImageNet-C); the shorter side of the images says which. Their fog comes from the
diamond-square algorithm, here it is a sum of octaves of noise that decay alike; they brighten the V of HSV, here all
channels. Rotation and translation are those of MNIST-C, the angles halved; occlusion is our own.
"""

import dataclasses
import math
from collections.abc import Callable

from .. import augment
from .._keras import tf

_PUBLISHED = {                                            # below which shorter side: {name: severities 1 to 5}
    48: {"noise": (.04, .06, .08, .09, .10), "blur": (.4, .6, .7, .8, 1), "brightness": (.05, .1, .15, .2, .3),
         "contrast": (.75, .5, .4, .3, .15), "jpeg": (80, 65, 58, 50, 40), "pixelate": (.95, .9, .85, .75, .65),
         "fog": ((.2, 3), (.5, 3), (.75, 2.5), (1, 2), (1.5, 1.75))},
    128: {"noise": (.04, .08, .12, .15, .18), "blur": (.5, .75, 1, 1.25, 1.5), "brightness": (.1, .2, .3, .4, .5),
          "contrast": (.4, .3, .2, .1, .05), "jpeg": (65, 58, 50, 40, 25), "pixelate": (.9, .8, .7, .6, .5),
          "fog": ((.4, 3), (.7, 3), (1, 2.5), (1.5, 2), (2, 1.75))},
    math.inf: {"noise": (.08, .12, .18, .26, .38), "blur": (1, 2, 3, 4, 6), "brightness": (.1, .2, .3, .4, .5),
               "contrast": (.4, .3, .2, .1, .05), "jpeg": (25, 18, 15, 10, 7), "pixelate": (.6, .5, .4, .3, .25),
               "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))},
}
_ANY_SIZE = {"rotation": (.1, .2, .3, .4, .5), "translation": (1 / 28, 2 / 28, 3 / 28, 4 / 28, 5 / 28),
             "occlusion": (.04, .08, .12, .18, .25)}


class _Rotate(augment.Rotate):
    """By one of the two ends of its range."""

    def matrix(self, u, old):
        return super().matrix(tf.round(u), old)


class _Translate(augment.Translate):
    """To one of the four corners of its range."""

    def matrix(self, u, old):
        return super().matrix(tf.round(u), old)


@dataclasses.dataclass(frozen=True)
class _Jpeg(augment.Op):
    """JPEG, encoded and decoded: the bits are Pillow's."""

    quality: int
    draws = 1

    def change(self, images, parameters, *, noise, low, high):
        levels = tf.cast(tf.round((images - low) * (255 / (high - low))), tf.uint8)
        return low + tf.cast(_compressed(levels, tf.constant(self.quality)), tf.float32) * ((high - low) / 255)


@tf.function(autograph=False)                              # image by image, which is 20 times slower eagerly
def _compressed(levels, quality):
    return tf.map_fn(lambda image: tf.image.adjust_jpeg_quality(image, quality, "INTEGER_ACCURATE"), levels)


@dataclasses.dataclass(frozen=True)
class _Pixelate(augment.Op):
    """Averages over larger pixels, `scale` times as many on each side."""

    scale: float
    draws = 1

    def change(self, images, parameters, *, noise, low, high):
        size = images.shape[1:3]
        coarse = tf.image.resize(images, [max(1, int(side * self.scale)) for side in size], "area")
        return tf.image.resize(coarse, size, "nearest")


@dataclasses.dataclass(frozen=True)
class _Fog(augment.Op):
    """Adds clouds of 0 to `density` times the range, scaled back by the image's lightest value."""

    density: float
    decay: float
    draws = 1

    def change(self, images, parameters, *, noise, low, high):
        share = (images - low) / (high - low)
        lightest = tf.reduce_max(share, axis=(1, 2, 3), keepdims=True)
        foggy = (share + self.density * clouds(noise()[..., 0], self.decay)) * lightest / (lightest + self.density)
        return low + foggy * (high - low)


def clouds(noise, decay):
    """float32[batch, height, width, 1] in [0, 1]: octaves of smooth noise, each `decay` ** 2 weaker than the coarser.

    `noise` is uniform, [batch, height, width].
    """
    size = tuple(map(int, noise.shape[1:3]))
    numbers, total, weight, grid = tf.reshape(noise, (-1, size[0] * size[1])), 0.0, 1.0, 2
    while grid <= min(size) and grid * grid <= int(numbers.shape[1]):
        octave, numbers = numbers[:, :grid * grid], numbers[:, grid * grid:]
        total += weight * tf.image.resize(tf.reshape(octave, (-1, grid, grid, 1)), size)
        weight, grid = weight / decay ** 2, 2 * grid - 1
    total -= tf.reduce_min(total, axis=(1, 2, 3), keepdims=True)
    return total / tf.reduce_max(total, axis=(1, 2, 3), keepdims=True)


_OPERATIONS: dict[str, Callable] = {
    "noise": lambda strength, gray: augment.Noise((strength, strength)),
    "blur": lambda strength, gray: augment.Blur((strength, strength)),
    "brightness": lambda strength, gray: augment.Brightness((strength, strength)),
    "contrast": lambda strength, gray: augment.Contrast((strength - 1, strength - 1)),
    "jpeg": lambda strength, gray: _Jpeg(strength),
    "fog": lambda strength, gray: _Fog(*strength),
    "pixelate": lambda strength, gray: _Pixelate(strength),
    "rotation": lambda strength, gray: _Rotate((-strength / (2 * math.pi), strength / (2 * math.pi))),
    "translation": lambda strength, gray: _Translate((-strength, strength)),
    "occlusion": lambda strength, gray: augment.Erase((strength, strength), ratio=(1, 1), fill_value=gray),
}
NAMES = tuple(_OPERATIONS)


def pipeline(name, severity, size, *, value_range, seed):
    """The augment.Pipeline of one corruption for images of a size (height, width); severity 0 changes nothing."""
    operations = []
    if severity:
        published = next(table for limit, table in _PUBLISHED.items() if min(size) < limit)
        operations = [_OPERATIONS[name]((published | _ANY_SIZE)[name][severity - 1], sum(value_range) / 2)]
    return augment.Pipeline(operations, seed=seed, value_range=value_range, jit_compile=False)    # made for few batches
