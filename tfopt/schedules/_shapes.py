"""Schedules as Keras objects; the formula of each is its `_rate`, in float64 and exact at any step."""

import inspect
import itertools
import math
import numbers

from .._check import require, require_number
from .._keras import keras, serializable, tf

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


class _Schedule(LearningRateSchedule):
    """Casts the step to float64 and the rate to Keras' float type; the config is the constructor's arguments."""

    def __call__(self, step):
        return tf.cast(self._rate(tf.cast(step, tf.float64)), keras.config.floatx())

    def get_config(self):
        return {name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


@serializable
class Constant(_Schedule):
    """Stays at one rate.

        rate(t) = rate

    Args:
      rate: the rate, >= 0.

    Raises:
      ValueError: `rate` is out of range.

    Example:
      >>> float(Constant(0.5)(10_000_000))
      0.5
    """

    def __init__(self, rate):
        require_number("rate", rate, low=0)
        self.rate = float(rate)

    def _rate(self, t):
        return self.rate * tf.ones_like(t)


@serializable
class Linear(_Schedule):
    """Goes in a straight line from `start` to `end` and stays there.

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

    def __init__(self, start, total, *, end=0.0):
        require_number("start", start, low=0)
        require_number("total", total, low=1, integer=True)
        require_number("end", end, low=0)
        self.start, self.total, self.end = float(start), int(total), float(end)

    def _rate(self, t):
        return self.start + (self.end - self.start) * tf.minimum(t / self.total, 1)


@serializable
class Step(_Schedule):
    """Multiplies the rate by `factor` after every `every` steps.

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

    def __init__(self, start, *, factor, every):
        require_number("start", start, low=0)
        require_number("factor", factor, above=0)
        require_number("every", every, low=1, integer=True)
        self.start, self.factor, self.every = float(start), float(factor), int(every)

    def _rate(self, t):
        return self.start * self.factor ** tf.floor(t / self.every)


@serializable
class OneCycle(_Schedule):
    """Rises along half a cosine to a peak, then falls along half a cosine to almost nothing, as in fastai.

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

    def __init__(self, peak, total, *, warmup=None, start=None, end=None):
        require_number("peak", peak, above=0)
        require_number("total", total, low=2, integer=True)
        if warmup is not None:
            require_number("warmup", warmup, low=1, below=total, integer=True)
        for name, value in (("start", start), ("end", end)):
            if value is not None:
                require_number(name, value, low=0, high=peak)
        self.peak, self.total = float(peak), int(total)
        self.warmup = max(self.total // 4, 1) if warmup is None else int(warmup)
        self.start = self.peak / 25 if start is None else float(start)
        self.end = self.peak / 1e5 if end is None else float(end)

    def _rate(self, t):
        rise = _half_cosine(self.start, self.peak, t / self.warmup)
        fall = _half_cosine(self.peak, self.end, (t - self.warmup) / (self.total - self.warmup))
        return tf.where(t < self.warmup, rise, fall)


def _half_cosine(begin, end, fraction):
    return begin + (end - begin) * tf.sin(math.pi / 2 * tf.clip_by_value(fraction, 0, 1)) ** 2


@serializable
class Knee(_Schedule):
    """Rises to a peak, explores there, then falls in a straight line to zero.

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

    def __init__(self, peak, total, *, warmup=0, explore=0):
        require_number("peak", peak, above=0)
        require_number("total", total, low=1, integer=True)
        require_number("warmup", warmup, low=0, integer=True)
        require_number("explore", explore, low=0, integer=True)
        require(warmup + explore <= total, "`warmup + explore` must be at most `total`", warmup=warmup, explore=explore,
                total=total, do="Shorten one of them.")
        self.peak, self.total = float(peak), int(total)
        self.warmup, self.explore = int(warmup), int(explore)

    def _rate(self, t):
        fraction = (self.total - t) / max(self.total - self.warmup - self.explore, 1)
        if self.warmup:
            fraction = tf.minimum(fraction, t / self.warmup)
        return self.peak * tf.clip_by_value(fraction, 0, 1)


@serializable
class InverseSqrt(_Schedule):
    """Rises in a straight line, then falls as one over the square root of the step; needs no end.

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

    def __init__(self, peak, *, warmup):
        require_number("peak", peak, above=0)
        require_number("warmup", warmup, low=1, integer=True)
        self.peak, self.warmup = float(peak), int(warmup)

    def _rate(self, t):
        return self.peak * tf.minimum(t / self.warmup, tf.sqrt(self.warmup / tf.maximum(t, self.warmup)))


@serializable
class Cyclic(_Schedule):
    """Runs from `low` up to `high` and back in straight lines, again and again.

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

    def __init__(self, low, high, *, every):
        require_number("low", low, low=0)
        require_number("high", high, above=low)
        require_number("every", every, low=2, integer=True)
        self.low, self.high, self.every = float(low), float(high), int(every)

    def _rate(self, t):
        return self.low + (self.high - self.low) * (1 - tf.abs(2 * tf.math.mod(t, self.every) / self.every - 1))


@serializable
class Warmup(_Schedule):
    """Rises in a straight line from zero to where another schedule begins, then follows it.

        rate(t) = after(0) * t / steps     t < steps
        rate(t) = after(t - steps)         t >= steps

    The clock of `after` starts when the warm-up ends: a decay over `total` steps ends at `steps + total`.

    Args:
      after: a LearningRateSchedule, or a rate >= 0 that is kept.
      steps: optimizer steps of the rise, >= 1.

    Raises:
      ValueError: an argument is out of range.
      TypeError: `after` is neither a schedule nor a number.

    Example:
      >>> rate = Warmup(Linear(0.1, total=90), steps=10)
      >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 55, 100)]
      [0.0, 0.05, 0.1, 0.05, 0.0]

    Reference:
      Goyal et al., Accurate, Large Minibatch SGD, 2017. https://arxiv.org/abs/1706.02677
    """

    def __init__(self, after, steps):
        require_number("steps", steps, low=1, integer=True)
        self.after, self.steps = _schedule("after", after), int(steps)

    def __call__(self, step):
        t = tf.cast(step, tf.int64)
        followed = self.after(tf.maximum(t - self.steps, 0))
        rise = tf.cast(tf.minimum(t / self.steps, 1), followed.dtype)
        return followed * rise


@serializable
class Join(_Schedule):
    """Follows one schedule after another, each with a clock that starts at its own boundary.

        rate(t) = schedules[i](t - boundaries[i - 1])     boundaries[i - 1] <= t < boundaries[i]

    Args:
      schedules: two or more LearningRateSchedules, or rates >= 0 that are kept.
      boundaries: the steps at which the next schedule takes over, rising, >= 1; one fewer than `schedules`.

    Raises:
      ValueError: the boundaries do not rise, or their number does not fit.
      TypeError: no lists, or an element of `schedules` is neither a schedule nor a number.

    Example:
      >>> rate = Join([0.1, Linear(0.1, total=10)], [5])
      >>> [round(float(rate(t)), 3) for t in (0, 4, 5, 10, 15)]
      [0.1, 0.1, 0.1, 0.05, 0.0]
    """

    def __init__(self, schedules, boundaries):
        for name, value in (("schedules", schedules), ("boundaries", boundaries)):
            require(isinstance(value, list | tuple), f"`{name}` must be a list", error=TypeError, **{name: value})
        require(len(schedules) == len(boundaries) + 1 >= 2,
                "`schedules` must have one element more than `boundaries`, and these at least one",
                schedules=len(schedules), boundaries=boundaries)
        for boundary in boundaries:
            require_number("boundaries", boundary, low=1, integer=True)
        require(all(a < b for a, b in itertools.pairwise(boundaries)), "`boundaries` must rise",
                boundaries=boundaries, do="Sort them together with their schedules.")
        self.schedules = [_schedule("schedules", schedule) for schedule in schedules]
        self.boundaries = [int(boundary) for boundary in boundaries]

    def __call__(self, step):
        t = tf.cast(step, tf.int64)
        rate = self.schedules[0](t)
        for begin, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            rate = tf.where(t < begin, rate, tf.cast(schedule(tf.maximum(t - begin, 0)), rate.dtype))
        return rate


@serializable
class Scaled(_Schedule):
    """Multiplies another schedule by a factor that can be changed while a model trains.

        rate(t) = factor * schedule(t)

    `factor` is kept in a variable, so that setting it reaches a training step that is already traced. `Plateau` uses
    it; it also scales a schedule with the batch size. A saved model keeps the factor of the moment.

    Args:
      schedule: a LearningRateSchedule, or a rate >= 0 that is kept.
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

    def __init__(self, schedule, factor=1.0):
        require_number("factor", factor, low=0)
        self.schedule = _schedule("schedule", schedule)
        self._factor = keras.Variable(factor, trainable=False, dtype="float32", aggregation="only_first_replica",
                                      name="factor")

    @property
    def factor(self):
        return float(self._factor.numpy())

    @factor.setter
    def factor(self, value):
        require_number("factor", value, low=0)
        self._factor.assign(value)

    def __call__(self, step):
        rate = self.schedule(step)
        return rate * tf.cast(self._factor.value, rate.dtype)


def _schedule(name, value):
    if isinstance(value, LearningRateSchedule):
        return value
    require(isinstance(value, numbers.Real), f"`{name}` must be a LearningRateSchedule or a number", error=TypeError,
            do="Pass e.g. schedules.Linear(0.1, total=1000).", **{name: value})
    return Constant(value)


_NAMED = {
    "fixed": lambda rate, total: Constant(rate),
    "linear": lambda rate, total: Linear(rate, total),
    "exponential": lambda rate, total: keras.optimizers.schedules.ExponentialDecay(rate, total, 0.01),
    "step": lambda rate, total: Step(rate, factor=0.1, every=max(total // 3, 1)),
    "cosine": lambda rate, total: keras.optimizers.schedules.CosineDecay(rate, total),
    "one_cycle": lambda rate, total: OneCycle(rate, total),
    "knee": lambda rate, total: Knee(rate, total, explore=total // 2),
}


def get(name, rate, total):
    """A schedule by its name, with usual settings: for a search, a command line or a comparison.

        fixed         rate                          exponential   falls to rate / 100 in `total` steps
        linear        falls to 0                    step          falls by 10 after each third of `total`
        cosine        falls to 0                    one_cycle     rises for a quarter of `total`, falls to 0
        knee          stays for half of `total`, then falls to 0

    Args:
      name: one of the names above.
      rate: highest rate, > 0.
      total: optimizer steps of the training, >= 2.

    Returns:
      A LearningRateSchedule.

    Raises:
      ValueError: the name is not known, or a number is out of range.

    Example:
      >>> [round(float(get(name, 0.1, 90)(60)), 3) for name in ("fixed", "linear", "exponential", "step", "cosine")]
      [0.1, 0.033, 0.005, 0.001, 0.025]
    """
    require(name in _NAMED, f"`name` must be one of {', '.join(_NAMED)}", name=name)
    require_number("rate", rate, above=0)
    require_number("total", total, low=2, integer=True)
    return _NAMED[name](float(rate), int(total))
