"""Schedules as Keras objects; the formula of each is its `_rate`, in float64 and exact at any step."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from .._check import Instance, ListOf, Number, Whole, checked, did_you_mean, refusal, require
from .._keras import ConfigFromArguments, keras, serializable, tf

LearningRateSchedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule

_RATE, _PEAK, _STEPS = Number(low=0), Number(above=0), Whole(low=1)
_SCHEDULE = Instance(LearningRateSchedule, text="a LearningRateSchedule") | _RATE


class _Schedule(ConfigFromArguments, LearningRateSchedule):
    """Casts the step to float64 and the rate to Keras' float type; the config is the constructor's arguments."""

    def __call__(self, step: Any) -> Any:
        return tf.cast(self._rate(tf.cast(step, tf.float64)), keras.config.floatx())


@serializable
class Constant(_Schedule):
    """Constant learning rate.

        rate(t) = learning_rate

    Args:
      learning_rate: the rate of every step, >= 0.

    Raises:
      ValueError: `learning_rate` is out of range.

    Example:
      >>> float(Constant(0.5)(10_000_000))
      0.5
    """

    @checked(learning_rate=_RATE)
    def __init__(self, learning_rate: float):
        self.learning_rate = learning_rate

    def _rate(self, t):
        return self.learning_rate * tf.ones_like(t)


@serializable
class Linear(_Schedule):
    """Linear decay (or rise): a straight line from `start` to `end`, then constant.

        rate(t) = start + (end - start) * min(t / total, 1)

    Args:
      start: rate at step 0, >= 0.
      total: optimizer steps until `end` is reached, >= 1 (batches per epoch * epochs).
      end: last rate, >= 0.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rate = Linear(0.1, total=100)
      >>> [round(float(rate(t)), 3) for t in (0, 25, 100, 200)]
      [0.1, 0.075, 0.0, 0.0]
    """

    @checked(start=_RATE, total=_STEPS, end=_RATE)
    def __init__(self, start: float, total: int, *, end: float = 0.0):
        self.start, self.total, self.end = start, total, end

    def _rate(self, t):
        return self.start + (self.end - self.start) * tf.minimum(t / self.total, 1)


@serializable
class Step(_Schedule):
    """Step decay: the rate is multiplied by `factor` after every `every` steps.

        rate(t) = start * factor ** floor(t / every)

    Args:
      start: rate at step 0, >= 0.
      factor: what the rate is multiplied by, > 0; below 1 the rate falls.
      every: optimizer steps between two changes, >= 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rate = Step(0.1, factor=0.5, every=10)
      >>> [round(float(rate(t)), 3) for t in (0, 9, 10, 20)]
      [0.1, 0.1, 0.05, 0.025]
    """

    @checked(start=_RATE, factor=Number(above=0), every=_STEPS)
    def __init__(self, start: float, *, factor: float, every: int):
        self.start, self.factor, self.every = start, factor, every

    def _rate(self, t):
        return self.start * self.factor ** tf.floor(t / self.every)


@serializable
class OneCycle(_Schedule):
    """One-cycle policy: half a cosine up to a peak, half a cosine down to almost zero, as in fastai.

        rate(t) = start + (peak - start) * (1 - cos(pi * t / warmup)) / 2                          t < warmup
        rate(t) = end + (peak - end) * (1 + cos(pi * (t - warmup) / (total - warmup))) / 2         warmup <= t <= total

    Only the rate is cycled: Keras bakes an optimizer's momentum into the training graph as a Python number.

    Args:
      peak: highest rate, > 0; `find` suggests one.
      total: optimizer steps of the whole cycle, >= 2 (batches per epoch * epochs); afterwards the rate is `end`.
      warmup: steps of the rise, >= 1 and < `total`; None is a quarter of `total`.
      start: rate at step 0, >= 0; None is `peak / 25`.
      end: rate at `total`, >= 0; None is `peak / 100000`.

    Raises:
      ValueError: an argument is out of range, or `start` or `end` is above `peak`.

    Example:
      >>> rate = OneCycle(0.1, total=100)
      >>> [round(float(rate(t)), 4) for t in (0, 25, 62, 100)]
      [0.004, 0.1, 0.051, 0.0]

    Reference:
      Smith and Topin, Super-Convergence, 2018. https://arxiv.org/abs/1708.07120
    """

    @checked(peak=_PEAK, total=Whole(low=2), warmup=_STEPS, start=_RATE, end=_RATE)
    def __init__(self, peak: float, total: int, *, warmup: int | None = None, start: float | None = None,
                 end: float | None = None):
        self.peak, self.total = peak, total
        self.warmup = max(total // 4, 1) if warmup is None else warmup
        self.start = peak / 25 if start is None else start
        self.end = peak / 1e5 if end is None else end
        require(self.warmup < total, "`warmup` must be less than `total`", warmup=warmup, total=total)
        require(self.start <= peak, "`start` must be at most `peak`", start=start, peak=peak)
        require(self.end <= peak, "`end` must be at most `peak`", end=end, peak=peak)

    def _rate(self, t):
        rise = _half_cosine(self.start, self.peak, t / self.warmup)
        fall = _half_cosine(self.peak, self.end, (t - self.warmup) / (self.total - self.warmup))
        return tf.where(t < self.warmup, rise, fall)


def _half_cosine(begin, end, fraction):
    return begin + (end - begin) * tf.sin(math.pi / 2 * tf.clip_by_value(fraction, 0, 1)) ** 2


@serializable
class Knee(_Schedule):
    """Knee (explore-exploit) schedule: warm-up, a constant peak, then linear decay to zero.

        rate(t) = peak * clip(min(t / warmup, (total - t) / cool), 0, 1),   cool = total - warmup - explore

    Args:
      peak: highest rate, > 0.
      total: optimizer steps until the rate is zero, >= 1 (batches per epoch * epochs).
      warmup: steps of the rise, >= 0; with 0 the first step has the full rate.
      explore: steps at the peak, >= 0.

    Raises:
      ValueError: an argument is out of range, or `warmup + explore > total`.

    Example:
      >>> rate = Knee(peak=0.1, total=100, warmup=10, explore=50)
      >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 60, 80, 100)]
      [0.0, 0.05, 0.1, 0.1, 0.05, 0.0]

    Reference:
      Iyer et al., Wide-minima Density Hypothesis and the Explore-Exploit Learning Rate Schedule, 2020.
      https://arxiv.org/abs/2003.03977
    """

    @checked(peak=_PEAK, total=_STEPS, warmup=Whole(low=0), explore=Whole(low=0))
    def __init__(self, peak: float, total: int, *, warmup: int = 0, explore: int = 0):
        require(warmup + explore <= total, "`warmup + explore` must be at most `total`", warmup=warmup, explore=explore,
                total=total, do="Shorten one of them.")
        self.peak, self.total, self.warmup, self.explore = peak, total, warmup, explore

    def _rate(self, t):
        fraction = (self.total - t) / max(self.total - self.warmup - self.explore, 1)
        if self.warmup:
            fraction = tf.minimum(fraction, t / self.warmup)
        return self.peak * tf.clip_by_value(fraction, 0, 1)


@serializable
class InverseSqrt(_Schedule):
    """Inverse square root decay after a linear warm-up, as for the first Transformers; needs no end.

        rate(t) = peak * min(t / warmup, sqrt(warmup / t))

    Args:
      peak: highest rate, reached at step `warmup`, > 0.
      warmup: steps of the rise, >= 1.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rate = InverseSqrt(0.1, warmup=100)
      >>> [round(float(rate(t)), 3) for t in (0, 50, 100, 400, 10_000)]
      [0.0, 0.05, 0.1, 0.05, 0.01]

    Reference:
      Vaswani et al., Attention Is All You Need, 2017. https://arxiv.org/abs/1706.03762
    """

    @checked(peak=_PEAK, warmup=_STEPS)
    def __init__(self, peak: float, *, warmup: int):
        self.peak, self.warmup = peak, warmup

    def _rate(self, t):
        return self.peak * tf.minimum(t / self.warmup, tf.sqrt(self.warmup / tf.maximum(t, self.warmup)))


@serializable
class Cyclic(_Schedule):
    """Cyclical learning rate (triangular): from `low` up to `high` and back, again and again.

        rate(t) = low + (high - low) * (1 - |2 * (t mod every) / every - 1|)

    Args:
      low: rate at step 0 and at every multiple of `every`, >= 0.
      high: rate half-way between, > `low`.
      every: optimizer steps of one cycle, up and down, >= 2 (twice the paper's step size; 4 to 20 epochs).

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rate = Cyclic(0.1, 0.5, every=8)
      >>> [round(float(rate(t)), 3) for t in (0, 2, 4, 6, 8, 12)]
      [0.1, 0.3, 0.5, 0.3, 0.1, 0.5]

    Reference:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2017. https://arxiv.org/abs/1506.01186
    """

    @checked(low=_RATE, high=_RATE, every=Whole(low=2))
    def __init__(self, low: float, high: float, *, every: int):
        require(high > low, "`high` must be more than `low`", low=low, high=high)
        self.low, self.high, self.every = low, high, every

    def _rate(self, t):
        return self.low + (self.high - self.low) * (1 - tf.abs(2 * tf.math.mod(t, self.every) / self.every - 1))


@serializable
class Warmup(_Schedule):
    """Linear warm-up: from zero to where another schedule begins, which is then followed.

        rate(t) = schedule(0) * t / steps     t < steps
        rate(t) = schedule(t - steps)         t >= steps

    The steps of `schedule` are counted from the end of the warm-up: a decay over `total` steps ends at `steps + total`.

    Args:
      schedule: a LearningRateSchedule, or a constant rate >= 0.
      steps: optimizer steps of the rise, >= 1.

    Raises:
      ValueError: an argument is out of range.
      TypeError: `schedule` is neither a schedule nor a number.

    Example:
      >>> rate = Warmup(Linear(0.1, total=90), steps=10)
      >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 55, 100)]
      [0.0, 0.05, 0.1, 0.05, 0.0]

    Reference:
      Goyal et al., Accurate, Large Minibatch SGD, 2017. https://arxiv.org/abs/1706.02677
    """

    @checked(schedule=_SCHEDULE, steps=_STEPS)
    def __init__(self, schedule: float | LearningRateSchedule, steps: int):
        self.schedule, self.steps = _as_schedule(schedule), steps

    def __call__(self, step: Any) -> Any:
        t = tf.cast(step, tf.int64)
        followed = self.schedule(tf.maximum(t - self.steps, 0))
        rise = tf.cast(tf.minimum(t / self.steps, 1), followed.dtype)
        return followed * rise


@serializable
class Join(_Schedule):
    """Piecewise schedule: one schedule after another, each with steps counted from its own boundary.

        rate(t) = schedules[i](t - boundaries[i - 1])     boundaries[i - 1] <= t < boundaries[i]

    Args:
      schedules: two or more LearningRateSchedules, or constant rates >= 0.
      boundaries: the steps at which the next schedule takes over, rising, >= 1; one fewer than `schedules`.

    Raises:
      ValueError: the boundaries do not rise, or their number does not fit.
      TypeError: no lists, or an element of `schedules` is neither a schedule nor a number.

    Example:
      >>> rate = Join([0.1, Linear(0.1, total=10)], [5])
      >>> [round(float(rate(t)), 3) for t in (0, 4, 5, 10, 15)]
      [0.1, 0.1, 0.1, 0.05, 0.0]
    """

    @checked(schedules=ListOf(_SCHEDULE), boundaries=ListOf(_STEPS))
    def __init__(self, schedules: Sequence[float | LearningRateSchedule], boundaries: Sequence[int]):
        require(len(schedules) == len(boundaries) + 1, "`schedules` must have one element more than `boundaries`",
                schedules=len(schedules), boundaries=boundaries)
        require(all(a < b for a, b in itertools.pairwise(boundaries)), "`boundaries` must rise",
                boundaries=boundaries, do="Sort them together with their schedules.")
        self.schedules, self.boundaries = [_as_schedule(schedule) for schedule in schedules], list(boundaries)

    def __call__(self, step: Any) -> Any:
        t = tf.cast(step, tf.int64)
        rate = self.schedules[0](t)
        for begin, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            rate = tf.where(t < begin, rate, tf.cast(schedule(tf.maximum(t - begin, 0)), rate.dtype))
        return rate


@serializable
class Scaled(_Schedule):
    """Scaled schedule: another schedule times a factor that can be changed while a model trains.

        rate(t) = factor * schedule(t)

    `factor` is kept in a variable, so that setting it reaches a training step that is already traced. `Plateau` uses
    it; it also scales a schedule with the batch size. A saved model keeps the factor of the moment.

    Args:
      schedule: a LearningRateSchedule, or a constant rate >= 0.
      factor: >= 0.

    Raises:
      ValueError: `factor` is out of range.
      TypeError: `schedule` is neither a schedule nor a number.

    Example:
      >>> rate = Scaled(Linear(0.5, total=100), factor=0.5)
      >>> float(rate(0))
      0.25
      >>> rate.factor = 0.25
      >>> float(rate(0))
      0.125

    Reference:
      Goyal et al., Accurate, Large Minibatch SGD, 2017. https://arxiv.org/abs/1706.02677
    """

    @checked(schedule=_SCHEDULE, factor=_RATE)
    def __init__(self, schedule: float | LearningRateSchedule, factor: float = 1.0):
        self.schedule = _as_schedule(schedule)
        self._factor = keras.Variable(factor, trainable=False, dtype="float32", aggregation="only_first_replica",
                                      name="factor")

    @property
    def factor(self) -> float:
        return float(self._factor.numpy())

    @factor.setter
    @checked(factor=_RATE)
    def factor(self, factor: float) -> None:
        self._factor.assign(factor)

    def __call__(self, step: Any) -> Any:
        rate = self.schedule(step)
        return rate * tf.cast(self._factor.value, rate.dtype)


def _as_schedule(value):
    return value if isinstance(value, LearningRateSchedule) else Constant(value)


_NAMED = {
    "Constant": lambda rate, total: Constant(rate),
    "Linear": Linear,
    "Step": lambda rate, total: Step(rate, factor=0.1, every=max(total // 3, 1)),
    "OneCycle": OneCycle,
    "Knee": lambda rate, total: Knee(rate, total, explore=total // 2),
    "InverseSqrt": lambda rate, total: InverseSqrt(rate, warmup=max(total // 20, 1)),
    "Cyclic": lambda rate, total: Cyclic(rate / 10, rate, every=max(total // 4, 2)),
    "CosineDecay": lambda rate, total: keras.optimizers.schedules.CosineDecay(rate, total),
    "ExponentialDecay": lambda rate, total: keras.optimizers.schedules.ExponentialDecay(rate, total, 0.01),
    "PolynomialDecay": lambda rate, total: keras.optimizers.schedules.PolynomialDecay(rate, total, 0.0),
}
_SNAKE = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name)[1:]: name for name in _NAMED}


@checked(identifier=_SCHEDULE | Instance(str, dict, text="the name of a schedule, or the config of one"),
         learning_rate=_PEAK, total=Whole(low=2))
def get(identifier: str | float | dict[str, Any] | LearningRateSchedule, learning_rate: float | None = None,
        total: int | None = None) -> LearningRateSchedule:
    """A schedule by its name with usual settings, as `keras.optimizers.get`: for a search, a command line, a config.

        Constant      the rate                             CosineDecay        falls to 0
        Linear        falls to 0                           PolynomialDecay    falls to 0 (power 1)
        Step          falls by 10 after each third         ExponentialDecay   falls to a hundredth
        OneCycle      rises for a quarter, falls to 0      InverseSqrt        rises for a twentieth
        Knee          constant for half, falls to 0        Cyclic             4 cycles from a tenth of the rate

    Args:
      identifier: one of these names, also as `one_cycle`; or what needs no other argument: a schedule, which is
        returned as it is, a constant rate >= 0, or the dict that `keras.saving.serialize_keras_object` makes of one.
      learning_rate: highest rate, > 0. Needed with a name.
      total: optimizer steps of the training, >= 2. Needed with every name but "Constant".

    Returns:
      A LearningRateSchedule.

    Raises:
      ValueError: the name is not known, or a number is missing or out of range.

    Example:
      >>> names = ("Constant", "Linear", "ExponentialDecay", "Step", "cosine_decay")
      >>> [round(float(get(name, 0.1, 90)(60)), 3) for name in names]
      [0.1, 0.033, 0.005, 0.001, 0.025]
    """
    if not isinstance(identifier, str):
        return _from_object(identifier)
    name = _SNAKE.get(identifier, identifier)
    if name not in _NAMED:
        raise refusal(f"`identifier` must be one of {', '.join(_NAMED)}", identifier=identifier,
                      do=did_you_mean(identifier, list(_NAMED)))
    require(learning_rate is not None, "a schedule by its name needs `learning_rate`", learning_rate=None)
    require(total is not None or name == "Constant", "a schedule by its name needs `total`", total=None,
            do="Pass the optimizer steps of the training: batches per epoch * epochs.")
    return _NAMED[name](learning_rate, total)


def _from_object(identifier):
    if not isinstance(identifier, dict):
        return _as_schedule(identifier)
    try:
        made = keras.saving.deserialize_keras_object(identifier)
    except (TypeError, ValueError, KeyError) as error:
        raise refusal("`identifier` must be the config of a schedule", identifier=identifier,
                      do=f"Keras says: {' '.join(str(error).split())}") from None
    require(isinstance(made, LearningRateSchedule), "`identifier` must be the config of a schedule",
            identifier=identifier)
    return made
