"""The learning-rate range test on a compiled model, which is afterwards as it was."""

import contextlib
import dataclasses
import math

import matplotlib.figure
import numpy as np
import pandas as pd

from .. import _data, _plots
from .._check import BATCH_SIZE, MODEL, PATH, VERBOSE, Number, Whole, checked, refusal, require, said
from .._keras import keras, optimizers_in, same_randomness, serializable, tf
from .._models import describe, scope_of
from .._typing import Data, PathLike, Verbose
from ._shapes import _Schedule

_EDGE = 3                                                  # points, where a line is fitted to one side alone
_NOT_FINITE = "the data of schedules.find must be finite"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of a learning-rate range test.

    Args:
      rate: the suggested rate: the one called `steep`.
      rates: the rates of all suggestions by name. `steep`: where the smoothed loss falls fastest; `valley`: two thirds
        along its longest descent (lower, for caution); `minimum`: a tenth of the rate at which it is lowest.
      curve: pandas.DataFrame, one row a step: `rate`, `loss` of that batch before the update, `smooth` loss.

    Example:
      >>> curve = pd.DataFrame({"rate": [0.1, 1.0], "loss": [2.0, 1.0], "smooth": [1.9, 1.1]})
      >>> Finding(0.3, {"steep": 0.3}, curve)
      Finding(rate=0.3, rates={'steep': 0.3})
    """

    rate: float
    rates: dict[str, float]
    curve: pd.DataFrame = dataclasses.field(repr=False)

    @checked(path=PATH)
    def plot(self, path: PathLike | None = None) -> matplotlib.figure.Figure:
        """Draws the curve with the suggestions.

        Args:
          path: where to save the picture, if anywhere.

        Returns:
          A matplotlib Figure.
        """
        figure, ((axes,),) = _plots.canvas(7, 4)
        axes.plot(self.curve.rate, self.curve.loss, color=_plots.BLUE, alpha=0.25, linewidth=1, label="loss of a batch")
        axes.plot(self.curve.rate, self.curve.smooth, color=_plots.BLUE, label="smoothed")
        heights = np.interp(np.log(list(self.rates.values())), np.log(self.curve.rate), self.curve.smooth)
        for (name, rate), height, mark in zip(self.rates.items(), heights, "ovs", strict=False):
            color = _plots.ORANGE if rate == self.rate else _plots.INK
            axes.plot(rate, height, mark, color=color, label=f"{name}: {rate:.2g}")
        low, high = min(self.curve.loss.min(), self.curve.smooth.min()), self.curve.smooth.max()
        margin = 0.1 * (high - low)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin))
        _plots.title(axes, f"Learning-rate range test: {self.rate:.2g}")
        axes.legend()
        return _plots.save(figure, path)


@checked(model=MODEL, low=Number(above=0), high=Number(above=0), steps=Whole(low=20), batch_size=BATCH_SIZE,
         verbose=VERBOSE)
def find(model: keras.Model, data: Data, *, low: float = 1e-7, high: float = 10.0, steps: int = 100,
         batch_size: int = 32, verbose: Verbose = "auto") -> Finding:
    """Learning-rate range test: trains for a few steps at rising rates and suggests the one where the loss falls.

        rate(t) = low * (high / low) ** (t / (steps - 1))

    The model is used and put back exactly: its weights, seeds and metrics, and the random states of Python, NumPy,
    TensorFlow and Keras, also when the test is interrupted. Its optimizer is not used at all: the test runs on a new
    one of the same settings, so it does not matter what the optimizer has done or whether it holds a schedule. The test
    ends when the averaged loss passes four times its best value or is no longer a number.

    Args:
      model: a built and compiled keras.Model of any kind that trains with `fit`, a Distiller included.
      data: arrays (x, y) or (x, y, sample_weight), or a tf.data.Dataset or keras.utils.PyDataset of such batches; x
        alone for a model that trains on it. Finite numbers.
      low: first rate, > 0.
      high: last rate, > `low`.
      steps: optimizer steps, >= 20.
      batch_size: for arrays, >= 1.
      verbose: 0 hides the progress bar.

    Returns:
      A Finding with `.rate`, `.rates`, `.curve` and `.plot(path)`. Its rates lie inside the sweep, never at an end.

    Raises:
      ValueError: the model is not built or not compiled, does not train with its optimizer or reports no `loss`; it has
        several optimizers with rates of their own (those of finetune.rates share one), or one that averages weights
        (ScheduleFreeAdamW), of which a sweep measures nothing; an argument is out of range; the data are empty or hold
        NaN; the loss is not a number from the start, never falls out of its scatter, or falls fastest at an end of the
        sweep.

    Example:
      >>> import keras
      >>> x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
      >>> model.compile("sgd", "mse")
      >>> finding = find(model, (x, x @ np.ones((4, 1))), verbose=0)
      >>> 0.001 < finding.rate < 1
      True

    Reference:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2017. https://arxiv.org/abs/1506.01186
    """
    require(high > low, "`high` must be more than `low`", low=low, high=high)
    _require_trainable(model)
    batches = _read(data, model, batch_size)
    sweep = _Sweep(_Exponential(low, high, steps), verbose)
    with same_randomness(), _same_state(model):
        with scope_of(model):
            model.optimizer = _counterpart(model.optimizer, sweep.rates)
        model.train_function, model.steps_per_execution = None, 1
        try:
            model.fit(**batches, epochs=steps, verbose=0, callbacks=[sweep])
        except (ValueError, TypeError, tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if getattr(error, "unnamed", False):           # a refusal of the sweep itself
                raise
            if _NOT_FINITE in str(error):
                raise refusal("`data` must be finite", data=f"NaN or infinity in batch {len(sweep.losses)} or after it",
                              do="Leave these rows out, or fill in what is missing.") from None
            raise refusal("the model cannot be trained on `data`", fit=said(error),
                          do="`model.fit` must take the data before a rate can be found.") from error
        updates = int(model.optimizer.iterations)
    require(sweep.losses, "`data` must hold at least one batch", data=data)
    require(updates or not math.isfinite(sweep.losses[-1]), "the model's train_step must use `self.optimizer`",
            model=describe(model))
    return _judge(sweep.curve())


def _require_trainable(model):
    require(model.compiled and model.optimizer is not None, "the model must be compiled", model=describe(model),
            do="Call model.compile(optimizer, loss) first.")
    require(model.built or (model.layers and all(layer.built for layer in model.layers)), "the model must be built",
            model=describe(model), do="Start it with keras.Input(shape), or call it once on a batch.")
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    require(hasattr(optimizer, "learning_rate"), "the optimizer must have one rate that can be set: a sweep has one",
            optimizer=type(optimizer).__name__, do="Compile it with a single one, or with finetune.rates.")
    require(not any(isinstance(part, keras.optimizers.ScheduleFreeAdamW) for part in optimizers_in(optimizer)),
            "the optimizer must not average the weights of all rates: the loss would be that of the average",
            optimizer=type(optimizer).__name__, do="Compile the model with keras.optimizers.AdamW for the test.")


def _read(data, model, batch_size):
    """Keyword arguments of `fit`; data sets break off at the first batch with NaN, which is no divergence."""
    stream = isinstance(data, tf.data.Dataset | keras.utils.PyDataset)
    found = _data.read(data, model, finite=not stream)
    if not stream:
        return found.fit_arguments(batch_size)

    def finite(part):
        return tf.debugging.assert_all_finite(part, _NOT_FINITE) if part.dtype.is_floating else part

    return {"x": found.dataset().map(lambda *parts: keras.tree.map_structure(finite, parts if parts[1:] else parts[0]))}


@serializable
class _Exponential(_Schedule):
    def __init__(self, low, high, steps):
        self.low, self.high, self.steps = float(low), float(high), int(steps)

    def _rate(self, t):
        return self.low * (self.high / self.low) ** (t / (self.steps - 1))


class _Sweep(keras.callbacks.Callback):
    """Keeps the loss of each batch, shows progress, and ends the test."""

    AVERAGED = 0.1         # weight of the newest loss in the running average
    DIVERGED = 4           # times the best running average

    def __init__(self, rates, verbose):
        super().__init__()
        self.rates, self.losses, self.average, self.best = rates, [], 0.0, math.inf
        self.bar = keras.utils.Progbar(rates.steps, verbose=1 if verbose == "auto" else verbose,
                                       stateful_metrics=["rate", "loss"])

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()                         # else the loss is a mean over the batches so far

    def on_train_batch_end(self, batch, logs=None):
        require("loss" in (logs or {}), "the model's train_step must return a `loss`", logs=sorted(logs or {}))
        step, loss = len(self.losses), float(logs["loss"])
        self.losses.append(loss)
        self.average += self.AVERAGED * (loss - self.average)
        average = self.average / (1 - (1 - self.AVERAGED) ** (step + 1))
        self.best = min(self.best, average)
        diverged = not math.isfinite(loss) or average > self.best + (self.DIVERGED - 1) * abs(self.best)
        self.model.stop_training = diverged or step + 1 == self.rates.steps
        self.bar.update(step + 1, [("rate", float(self.rates(step))), ("loss", loss)],
                        finalize=self.model.stop_training)

    def curve(self):
        return pd.DataFrame({"rate": self.rates(np.arange(len(self.losses))).numpy().astype(float),
                             "loss": self.losses})


def _counterpart(optimizer, rates):
    """An unused optimizer of the same settings with another rate."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:                                  # keras.optimizers.LossScaleOptimizer
        config = {name: value for name, value in optimizer.get_config().items() if name != "inner_optimizer"}
        return type(optimizer)(_counterpart(inner, rates), **config)
    config = optimizer.get_config()
    unused = type(optimizer).from_config(config | ({"learning_rate": 0.0} if "learning_rate" in config else {}))
    unused.learning_rate = rates
    return unused


@contextlib.contextmanager
def _same_state(model):
    """On leaving, the model's variables and what `fit` leaves on it are what they were on entering."""
    names = ("optimizer", "train_function", "steps_per_execution", "stop_training", "history")
    attributes = {name: getattr(model, name) for name in names if hasattr(model, name)}
    parts = [part for variable in [*model.variables, *model.metrics_variables]
             for part in model.distribute_strategy.experimental_local_results(variable.value)]
    values = [part.numpy() for part in parts]
    try:
        yield
    finally:
        for part, value in zip(parts, values, strict=True):
            part.assign(value)
        for name in names:
            if name in attributes:
                setattr(model, name, attributes[name])
            elif hasattr(model, name):
                delattr(model, name)


def _judge(curve):
    """Smooths the curve and reads the suggestions off it."""
    require(math.isfinite(curve.loss[0]), "the loss must be a number at the lowest rate", loss=float(curve.loss[0]),
            do="Look for NaN in the data and the weights.")
    curve = curve[np.isfinite(curve.loss)]
    start = curve.loss[: max(len(curve) // 10, 1)].max()
    smooth, slope = _smooth(curve.loss.clip(upper=start).to_numpy())     # how high it flies at the end says nothing
    curve = curve.assign(smooth=smooth)
    lowest = int(smooth.argmin())
    descent = curve[: lowest + 1]
    fall, scatter = smooth[0] - smooth[lowest], float((descent.loss - descent.smooth).abs().median())
    require(lowest >= 2 * _EDGE and fall > scatter / 4,    # the smoothed loss scatters about a third as much
            "the loss must fall out of its scatter somewhere between `low` and `high`",
            fall=float(fall), scatter=scatter, steps=len(curve),
            do="Lower `low`, raise `high` or `steps`, or pass larger batches.")
    steepest = int(slope[: lowest + 1].argmin())
    rates = descent.rate.to_numpy()
    require(steepest >= _EDGE and rates[-1] > 10 * rates[0],
            "the loss must fall fastest inside the sweep, not at `low`",
            steepest=float(rates[steepest]), low=float(rates[0]), do="Lower `low`.")
    require(steepest < len(curve) - _EDGE, "the loss must fall fastest inside the sweep, not at its end",
            steepest=float(rates[steepest]), high=float(curve.rate.iloc[-1]), do="Raise `high`.")
    suggestions = {"steep": rates[steepest], "valley": rates[max(_valley(smooth[: lowest + 1]), 1)],
                   "minimum": rates[-1] / 10}
    suggestions = {name: float(rate) for name, rate in suggestions.items()}
    return Finding(suggestions["steep"], suggestions, curve)


def _smooth(losses, width=3.0):
    """Value and slope of a straight line fitted around each point, with Gaussian weights `width` points wide."""
    offset = np.arange(len(losses)) - np.arange(len(losses))[:, None]
    weight = np.exp(-0.5 * (offset / width) ** 2)
    weight /= weight.sum(1, keepdims=True)
    center, mean = (weight * offset).sum(1), weight @ losses
    spread = (weight * offset**2).sum(1) - center**2
    slope = ((weight * offset) @ losses - center * mean) / spread
    return mean - slope * center, slope


def _valley(losses):
    """Index two thirds along the longest falling subsequence."""
    length, first = np.ones(len(losses), int), np.arange(len(losses))
    for i in range(1, len(losses)):
        above = np.flatnonzero(losses[:i] > losses[i])
        if len(above):
            best = above[length[above].argmax()]
            length[i], first[i] = length[best] + 1, first[best]
    end = length.argmax()
    return int(first[end] + (end - first[end]) * 2 // 3)
