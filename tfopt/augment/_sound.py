"""Waveforms and spectrograms: noise, gain, shift and speed; masks over times and frequencies."""

import dataclasses
import math
import typing

from .._check import FLAG, Number, OneOf, Whole
from .._keras import tf
from ._op import PROBABILITY, Noise, Op, Range, between, operation
from ._pixels import normal
from ._signals import column, length


@operation(snr_db=Range(-60, 120, number="both"), probability=PROBABILITY)
class AddNoise(Op):
    """Adds white Gaussian noise to waveforms, at a signal-to-noise ratio.

        10 log10(sum signal^2 / sum noise^2) = snr_db

    It holds exactly, for the noise that was drawn, over the whole row: silence that fills a row up counts too. A silent
    row stays silent. Nothing is clipped.

    Args:
      snr_db: in decibels: a pair (low, high) of which each example draws its own, or one number; -60 to 120.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> waves = tf.sin(tf.range(1000.0))[None]
      >>> views = augment.Pipeline([augment.AddNoise(20)]).apply(waves, epoch=0, index=[0])
      >>> round(float(tf.reduce_sum(waves**2) / tf.reduce_sum((views - waves)**2)), 2)
      100.0
    """

    snr_db: float | tuple[float, float] = (5.0, 40.0)
    probability: float = 1.0

    def waves(self, waves: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        added = normal(noise((length(waves, 1), length(waves, 2))))
        power, unit = (tf.reduce_sum(tf.square(part), axis=(1, 2)) for part in (waves, added))
        ratio = tf.exp(between(u[:, 1], self.snr_db) * (-math.log(10) / 20))
        return waves + column(ratio * tf.sqrt(power / tf.maximum(unit, 1e-30)), 3) * added


@operation(gain_db=Range(-120, 120), probability=PROBABILITY)
class Gain(Op):
    """Makes waveforms louder or softer: they are multiplied by 10 ** (gain_db / 20). Nothing is clipped.

    Args:
      gain_db: in decibels: a pair (low, high) of which each example draws its own, or g for (-g, g); -120 to 120.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> tenth = augment.Pipeline([augment.Gain((-20, -20))])
      >>> tenth.apply(tf.constant([[0.5, -1.0]]), epoch=0, index=[0]).numpy().round(4).tolist()
      [[0.05000000074505806, -0.10000000149011612]]
    """

    gain_db: float | tuple[float, float] = (-6.0, 6.0)
    probability: float = 1.0

    def waves(self, waves: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        return waves * column(tf.exp(between(u[:, 1], self.gain_db) * (math.log(10) / 20)), 3)


@operation(factor=Range(-1, 1), wrap=FLAG, probability=PROBABILITY)
class TimeShift(Op):
    """Moves waveforms to a later time (factor > 0) or an earlier one, by whole samples.

    Args:
      factor: fraction of the length: a pair (low, high), or f for (-f, f); -1 to 1.
      wrap: what leaves at one end comes in at the other; False: silence comes in.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> later = augment.Pipeline([augment.TimeShift((0.25, 0.25))])
      >>> later.apply(tf.constant([[1.0, 2.0, 3.0, 4.0]]), epoch=0, index=[0]).numpy().tolist()
      [[0.0, 1.0, 2.0, 3.0]]
    """

    factor: float | tuple[float, float] = (-0.1, 0.1)
    wrap: bool = False
    probability: float = 1.0

    def waves(self, waves: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        size = length(waves, 1)
        shift = tf.cast(tf.round(between(u[:, 1], self.factor) * tf.cast(size, tf.float32)), tf.int32)
        place = tf.range(size)[None] - shift[:, None]
        if self.wrap:
            return tf.gather(waves, place % size, axis=1, batch_dims=1)
        inside = (place >= 0) & (place < size)
        moved = tf.gather(waves, tf.clip_by_value(place, 0, size - 1), axis=1, batch_dims=1)
        return tf.where(inside[..., None], moved, 0.0)


@operation(factor=Range(-0.9, 3, relative=True), probability=PROBABILITY)
class Speed(Op):
    """Plays waveforms faster (factor > 0) or slower, by resampling: pitch and tempo change together.

        y(n) = sum over k of x(k) h((1 + factor) n - k),   h(d) = c sinc(c d) cos(pi c d / (2 R)) ** 2,   |c d| < R = 6

    with c = min(1, 1 / (1 + factor)): frequencies that a faster one cannot hold are left out, not folded back. It
    begins with the first sample and keeps the length: a faster one ends with silence, of a slower one the end is cut
    off.

    Args:
      factor: added to 1: a pair (low, high), or f for (-f, f); -0.9 to 3. (-0.1, 0.1) is 0.9 to 1.1 times as fast.
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> double = augment.Pipeline([augment.Speed((1, 1))])
      >>> slow, fast = tf.sin(tf.range(1000.0) / 10)[None], tf.sin(tf.range(1000.0) / 5)[None]
      >>> error = double.apply(slow, epoch=0, index=[0]) - fast
      >>> bool(tf.reduce_max(abs(error[:, 20:480])) < 1e-3)
      True

    Reference: Ko et al. 2015, Audio Augmentation for Speech Recognition.
    https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html
    """

    factor: float | tuple[float, float] = (-0.1, 0.1)
    probability: float = 1.0
    zeros: typing.ClassVar[int] = 6                    # R: of the sinc, to each side

    def waves(self, waves: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        size, bits = length(waves, 1), 24              # whole numbers: float32 is too coarse for places in long rows
        speed = 1 + between(u[:, 1], self.factor)
        step = tf.cast(tf.round(speed * 2.0**bits), tf.int64)[:, None]
        place = tf.range(tf.cast(size, tf.int64))[None] * step
        whole = tf.bitwise.right_shift(place, tf.constant(bits, tf.int64))
        rest = tf.cast(place & (2**bits - 1), tf.float32) * 2.0**-bits
        whole = tf.cast(tf.minimum(whole, 2 * tf.cast(size, tf.int64) + 1024), tf.int32)       # far behind the end
        cutoff = tf.minimum(1.0, 1 / speed)[:, None]
        reach = math.ceil(self.zeros * max(1.0, 1 + self.factor[1]))
        turns = _turn(rest * cutoff), _turn(rest * cutoff / (2 * self.zeros))

        def add(tap, total):
            at, back = whole + tap, cutoff * tf.cast(tap, tf.float32)
            angle = math.pi * (rest * cutoff - back)
            sine, window = _turned(turns[0], back)[0], _turned(turns[1], back / (2 * self.zeros))[1]
            near = abs(angle) < 0.02                                     # where too few digits of the sine are left
            sinc = tf.where(near, 1 - angle * angle / 6, sine / tf.where(near, 1.0, angle))
            counts = (at >= 0) & (at < size) & (abs(angle) < math.pi * self.zeros)
            weight = tf.where(counts, cutoff * sinc * window * window, 0.0)[..., None]
            return tap + 1, total + weight * tf.gather(waves, tf.clip_by_value(at, 0, size - 1), axis=1, batch_dims=1)

        _, total = tf.while_loop(lambda tap, total: tap < reach + 2, add, (-reach, tf.zeros_like(waves)))
        return total


def _turn(angle):
    """(sin, cos) of so many half turns."""
    return tf.sin(math.pi * angle), tf.cos(math.pi * angle)


def _turned(turn, back):
    """(sin, cos) of what is so many half turns less: far cheaper than to compute them for each tap."""
    (sine, cosine), (less, more) = turn, _turn(back)
    return sine * more - cosine * less, cosine * more + sine * less


_MASK = {"width": Whole(low=1), "count": Whole(low=1, high=100), "fraction": Number(above=0, high=1),
         "fill_value": Number(), "axis": OneOf(1, 2), "probability": PROBABILITY}


@dataclasses.dataclass(frozen=True)
class _Mask(Op):
    """`count` masks along one axis, each 0 to `width` wide."""

    width: int = 27
    count: int = 2
    fraction: float = 1.0
    fill_value: float | None = None
    axis: int = 1
    probability: float = 1.0

    @property
    def draws(self) -> int:
        return 1 + 2 * self.count

    def spectra(self, spectra: tf.Tensor, u: tf.Tensor, noise: Noise) -> tf.Tensor:
        size = tf.cast(length(spectra, self.axis), tf.float32)
        most = tf.minimum(float(self.width), tf.floor(self.fraction * size + 1e-3))
        wide = tf.floor(u[:, 1:1 + self.count] * (most + 1))
        start = tf.floor(u[:, 1 + self.count:] * (size - wide + 1))
        place = tf.range(size)[None, None]
        covered = tf.reduce_any((place >= start[..., None]) & (place < (start + wide)[..., None]), axis=1)
        covered = tf.reshape(covered, (-1, 1, length(spectra, 2), 1) if self.axis == 2
                             else (-1, length(spectra, 1), 1, 1))
        fill = tf.reduce_mean(spectra, axis=(1, 2), keepdims=True) \
            if self.fill_value is None else float(self.fill_value)
        return tf.where(covered, fill, spectra)


@operation(**_MASK)
class FrequencyMask(_Mask):
    """Covers bands of neighboring frequencies of spectrograms (SpecAugment).

    Each mask draws its width f evenly from 0, 1, ... `width`, then its first of n frequencies evenly from 0 ... n - f.

    Args:
      width: F of the paper: frequencies that a mask covers at most.
      count: masks of each example, 1 to 100; they may overlap.
      fraction: p of the paper: a mask covers at most this fraction of all frequencies.
      fill_value: what covers them; None: the mean of this spectrogram (and channel), which is the paper's 0 where
        spectrograms are normalized.
      axis: where the frequencies are: 1 as keras.layers.MelSpectrogram has it, 2 for [batch, times, frequencies].
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.FrequencyMask(27, fill_value=0)]).apply(
      ...     tf.ones((100, 80, 50)), epoch=0, index=range(100))
      >>> bool(tf.reduce_all(views == views[:, :, :1])), bool(tf.reduce_all(views == 1))
      (True, False)

    Reference: Park et al. 2019, SpecAugment. https://arxiv.org/abs/1904.08779
    """


@operation(**_MASK)
class TimeMask(_Mask):
    """Covers stretches of neighboring times of spectrograms (SpecAugment).

    Each mask draws its width t evenly from 0, 1, ... `width`, then its first of n times evenly from 0 ... n - t.

    Args:
      width: T of the paper: times that a mask covers at most.
      count: masks of each example, 1 to 100; they may overlap.
      fraction: p of the paper: a mask covers at most this fraction of all times.
      fill_value: what covers them; None: the mean of this spectrogram (and channel), which is the paper's 0 where
        spectrograms are normalized.
      axis: where the times are: 2 as keras.layers.MelSpectrogram has it, 1 for [batch, times, frequencies].
      probability: that an example is changed at all, 0 to 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from tfopt import augment
      >>> views = augment.Pipeline([augment.TimeMask(100, fraction=0.2, fill_value=0)]).apply(
      ...     tf.ones((100, 80, 50)), epoch=0, index=range(100))
      >>> bool(tf.reduce_all(views == views[:, :1])), bool(tf.reduce_all(views == 1))
      (True, False)

    Reference: Park et al. 2019, SpecAugment. https://arxiv.org/abs/1904.08779
    """

    width: int = 100
    axis: int = 2
