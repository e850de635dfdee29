"""AutoAugment: policies that a search found on ImageNet and CIFAR-10."""

from collections.abc import Callable

import numpy as np

from .._check import OneOf
from .._keras import tf
from ._op import operation
from ._policies import LIMITS, NAMES, Policy

# Sub-policies as the paper's appendix lists them: two operations, each with its probability in tenths and its strength
# in ninths of the strongest.
_FOUND = {
    "imagenet": """
        posterize 4 8, rotate 6 9 | solarize 6 5, autocontrast 6 | equalize 8, equalize 6 | posterize 6 7, posterize 6 6
        equalize 4, solarize 2 4 | equalize 4, rotate 8 8 | solarize 6 3, equalize 6 | posterize 8 5, equalize 10
        rotate 2 3, solarize 6 8 | equalize 6, posterize 4 6 | rotate 8 8, saturation 4 0 | rotate 4 9, equalize 6
        equalize 0, equalize 8 | invert 6, equalize 10 | saturation 6 4, contrast 10 8 | rotate 8 8, saturation 10 2
        saturation 8 8, solarize 8 7 | sharpness 4 7, invert 6 | shear_x 6 5, equalize 10 | saturation 4 0, equalize 6
        equalize 4, solarize 2 4 | solarize 6 5, autocontrast 6 | invert 6, equalize 10 | saturation 6 4, contrast 10 8
        equalize 8, equalize 6""",
    "cifar10": """
        invert 1, contrast 2 6 | rotate 7 2, translate_x 3 9 | sharpness 8 1, sharpness 9 3
        shear_y 5 8, translate_y 7 9 | autocontrast 5, equalize 9 | shear_y 2 7, posterize 3 7
        saturation 4 3, brightness 6 7 | sharpness 3 9, brightness 7 9 | equalize 6, equalize 5
        contrast 6 7, sharpness 6 5 | saturation 7 7, translate_x 5 8 | equalize 3, autocontrast 4
        translate_y 4 3, sharpness 2 6 | brightness 9 6, saturation 2 8 | solarize 5 2, invert 0
        equalize 2, autocontrast 6 | equalize 2, equalize 6 | saturation 9 9, equalize 6
        autocontrast 8, solarize 2 8 | brightness 1 3, saturation 7 0
        solarize 4 5, autocontrast 9 | translate_y 9 9, translate_y 7 9 | autocontrast 9, solarize 8 3
        equalize 8, invert 1 | translate_y 7 9, autocontrast 9"""}


def sub_policies(name):
    """[((operation, probability, strength), (the same))] of a policy, strengths as fractions of the strongest."""
    pairs = [pair.split(",") for line in _FOUND[name].strip().splitlines() for pair in line.split("|")]
    words = [[(*one.split(), "0")[:3] for one in pair] for pair in pairs]
    return [tuple((name, int(tenths) / 10, int(ninths) / 9) for name, tenths, ninths in pair) for pair in words]


@operation(policy=OneOf(*_FOUND))
class AutoAugment(Policy):
    """Each image draws one of 25 pairs of operations that a search found, each with its own probability and strength.

    The operations are RandAugment's and Invert, strongest: shear 0.3, shift 0.45 of the size, 30 degrees, colors by 0.9
    up or down, posterize to 4 bits, solarize all. The geometry of a pair comes first, as one resample. Contrast turns
    about the mean of each channel.

    Args:
      policy: what it was searched on, "imagenet" or "cifar10" (small images).

    Raises:
      ValueError: an unknown policy.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.Flip(), augment.AutoAugment("cifar10")])
      >>> views.apply(tf.zeros((4, 32, 32, 3), tf.uint8), epoch=0, index=range(4)).shape
      TensorShape([4, 32, 32, 3])

    Reference: Cubuk et al. 2018, AutoAugment. https://arxiv.org/abs/1805.09501
    """

    policy: str = "imagenet"
    rounds = 2
    limits = LIMITS
    inverts = True

    @property
    def draws(self) -> int:
        return 1 + 2 * self.rounds

    def drawn(self, u: tf.Tensor, turn: int) -> tuple[Callable[[str], tf.Tensor], tf.Tensor, tf.Tensor]:
        names, probabilities, strengths = zip(*(pair[turn] for pair in sub_policies(self.policy)), strict=True)
        which = tf.cast(tf.floor(u[:, 0] * len(names)), tf.int32)

        def of(column, dtype):
            return tf.gather(np.array(column, dtype), which)

        choice = of([NAMES.index(name) for name in names], "int32")
        choice = tf.where(u[:, 1 + 2 * turn] < of(probabilities, "float32"), choice, NAMES.index("identity"))
        sign = tf.where(u[:, 2 + 2 * turn] < 0.5, -1.0, 1.0)
        return (lambda name: choice == NAMES.index(name)), of(strengths, "float32"), sign
