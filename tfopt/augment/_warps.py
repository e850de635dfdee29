"""Geometry that is not affine: perspective (nine numbers instead of six) and elastic (a field of shifts)."""

import math
from collections.abc import Callable

import numpy as np

from .._check import Number
from .._keras import tf
from ._geometry import adjugate, compose
from ._op import PROBABILITY, Op, Range, Tensors, between, operation


@operation(factor=Number(low=0, high=0.3), probability=PROBABILITY)
class Perspective(Op):
    """Shows images as if seen from aside: each corner moves inwards, in x and y by itself.

    It joins the one resample of its neighbors. Masks, boxes and keypoints move too.

    Args:
      factor: how far corners go at most, as a fraction of the height and width; 0 to 0.3. 0.25 is the 0.5 of others
        who count from the middle.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.Perspective(0.2)], fill_mode="constant")
      >>> seen = views.apply(tf.fill((2, 32, 32, 1), 200.0), epoch=0, index=[0, 1])
      >>> [bool(edge) for edge in (seen[0, 0, 0, 0] == 0, seen[0, 16, 16, 0] == 200)]
      [True, True]
    """

    factor: float = 0.15
    probability: float = 1.0
    draws = 9

    def matrix(self, u: tf.Tensor, old: tuple[int, int]) -> Tensors:
        inwards = tf.unstack(u[:, 1:] * self.factor, axis=1)
        sides = ((0, 0), (1, 0), (1, 1), (0, 1))                                # of the unit square, in a circle
        xs, ys = ([side + (1 - 2 * side) * inwards[2 * k + axis] for k, side in enumerate(ends)]
                  for axis, ends in enumerate(zip(*sides, strict=True)))
        height, width = old
        nothing, one = tf.zeros_like(u[:, 0]), tf.ones_like(u[:, 0])
        to_pixels = (width * one, nothing, nothing - width / 2, nothing, height * one, nothing - height / 2)
        to_unit = (one / width, nothing, nothing + 0.5, nothing, one / height, nothing + 0.5)
        matrix = compose(compose(to_pixels, adjugate(_square_to(xs, ys))), to_unit)
        return tuple(part / matrix[8] for part in matrix)


def _square_to(xs, ys):
    """The nine numbers that bring (0, 0), (1, 0), (1, 1), (0, 1) to four corners."""
    (x0, x1, x2, x3), (y0, y1, y2, y3) = xs, ys
    x_sum, y_sum = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3                         # 0 for a parallelogram
    area = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    g = (x_sum * (y3 - y2) - (x3 - x2) * y_sum) / area
    h = ((x1 - x2) * y_sum - x_sum * (y1 - y2)) / area
    return (x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h, tf.ones_like(x0))


@operation(factor=Range(0, 0.2, number="up"), scale=Number(low=0.02, high=1), probability=PROBABILITY)
class Elastic(Op):
    """Bends images by a smooth random field of shifts.

    White noise, smoothed by a Gaussian: neighboring pixels move alike. It ends its resample: put it after the other
    geometric operations, then all of them share one. Masks, boxes (around their bent edges) and keypoints move too.

    Args:
      factor: standard deviation of the shifts as a fraction of the shorter side: a pair (low, high) of which each image
        draws one, or f for (0, f); 0 to 0.2. More than half of `scale` folds the image.
      scale: sigma of the Gaussian as a fraction of the shorter side; 0.02 to 1. Small: many small dents.
      probability: that an image is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> stripes = tf.repeat(tf.constant([[[[0.0], [200.0]] * 16]]), 32, axis=1)
      >>> bent = augment.Pipeline([augment.Elastic(0.05)]).apply(stripes, epoch=0, index=[0])
      >>> bool(tf.reduce_any(bent[0, 1:] != bent[0, :-1]))
      True

    Reference: Simard et al. 2003, Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis.
    https://doi.org/10.1109/ICDAR.2003.1227801
    """

    factor: float | tuple[float, float] = (0.0, 0.03)
    scale: float = 0.1
    probability: float = 1.0

    def shifts(self, u: tf.Tensor, noise: Callable[[tuple[int, int, int]], tf.Tensor],
               old: tuple[int, int]) -> tf.Tensor:
        sigma = self.scale * min(old)
        rows, columns = (_smoothing(size, sigma) for size in old)
        white = math.sqrt(12) * (noise((rows.shape[1], columns.shape[1], 2)) - 0.5)          # of variance 1
        field = tf.einsum("yr,brcd,xc->byxd", rows, white, columns)
        return field * (between(u[:, 1], self.factor) * min(old))[:, None, None, None]


def _smoothing(size, sigma):
    """float32[size, n]: weights of noise at places a sigma apart, by which it becomes smooth and keeps its variance.

    At this distance the sum of Gaussians is even to 1e-4: the noise need not be as dense as the pixels.
    """
    centers = np.arange(-3, math.ceil(size / sigma) + 4) * sigma
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] + 0.5 - centers) / sigma) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype("float32")
