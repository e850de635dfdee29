"""The learning-rate range test on a compiled model, which is afterwards as it was."""

import contextlib
import dataclasses
import math

import numpy as np
import pandas as pd

from .._check import require, require_number
from .._keras import keras, same_randomness, serializable, tf
from .._models import describe, scope_of
from ._shapes import _Schedule


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a learning-rate range test found.

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
    rates: dict
    curve: pd.DataFrame = dataclasses.field(repr=False)

    def plot(self, path=None):
        """Draws the curve with the suggestions.

        Args:
          path: where to save the picture, if anywhere.

        Returns:
          A matplotlib Figure.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.curve.rate, self.curve.loss, color="tab:blue", alpha=0.25, linewidth=1, label="loss of a batch")
        axes.plot(self.curve.rate, self.curve.smooth, color="tab:blue", label="smoothed")
        heights = np.interp(np.log(list(self.rates.values())), np.log(self.curve.rate), self.curve.smooth)
        for (name, rate), height, mark in zip(self.rates.items(), heights, "ovs", strict=False):
            colour = "tab:red" if rate == self.rate else "black"
            axes.plot(rate, height, mark, color=colour, label=f"{name}: {rate:.2g}")
        low, high = min(self.curve.loss.min(), self.curve.smooth.min()), self.curve.smooth.max()
        margin = 0.1 * (high - low)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin),
                 title=f"Learning-rate range test: {self.rate:.2g}")
        axes.grid(alpha=0.3)
        axes.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def find(model, data, *, low=1e-7, high=10.0, steps=100, batch=32, verbose="auto"):
    """Suggests a learning rate: trains for a few steps at rates from very low to very high and watches the loss.

        rate(t) = low * (high / low) ** (t / (steps - 1))

    The model is used and put back exactly: its weights, seeds and metrics, and the random states of Python, NumPy,
    TensorFlow and Keras, also when the test is interrupted. Its optimizer is not used at all: the test runs on a new
    one of the same settings, so it does not matter what the optimizer has done or whether it holds a schedule. The test
    ends when the averaged loss passes four times its best value or is no longer a number.

    Args:
      model: a built and compiled keras.Model of any kind that trains with `fit`, a Distiller included.
      data: tf.data.Dataset of batches as for `fit`, or a tuple of arrays (x, y) or (x, y, sample_weight).
      low: first rate, > 0.
      high: last rate, > `low`.
      steps: optimizer steps, >= 20.
      batch: batch size for arrays, >= 1.
      verbose: 0 hides the progress bar.

    Returns:
      A Finding with `.rate`, `.rates`, `.curve` and `.plot(path)`.

    Raises:
      TypeError: `model` is no Keras model, or `data` is neither a dataset nor a tuple of arrays.
      ValueError: the model is not built or not compiled, does not train with its optimizer or reports no `loss`; an
        argument is out of range; the data is empty; the loss is not a number from the start, or never falls.

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
    require_number("low", low, above=0)
    require_number("high", high, above=low)
    require_number("steps", steps, low=20, integer=True)
    require_number("batch", batch, low=1, integer=True)
    _require_trainable(model)
    sweep = _Sweep(_Exponential(low, high, steps), verbose)
    with same_randomness(), _same_state(model):
        with scope_of(model):
            model.optimizer = _twin(model.optimizer, sweep.rates)
        model.train_function, model.steps_per_execution = None, 1
        model.fit(**_as_fit_takes(data, batch), epochs=steps, verbose=0, callbacks=[sweep])
        updates = int(model.optimizer.iterations)
    require(sweep.losses, "find needs data with at least one batch", data=data)
    require(updates or not math.isfinite(sweep.losses[-1]),
            "find needs a model whose train_step uses `self.optimizer`", model=describe(model))
    return _judge(sweep.curve())


def _require_trainable(model):
    require(isinstance(model, keras.Model), "find needs a Keras 3 model", model=describe(model), error=TypeError,
            do="Pass a compiled keras.Model.")
    require(model.compiled and model.optimizer is not None, "find needs a compiled model", model=describe(model),
            do="Call model.compile(optimizer, loss) first.")
    require(model.built or (model.layers and all(layer.built for layer in model.layers)),
            "find needs a built model", model=describe(model),
            do="Start it with keras.Input(shape), or call it once on a batch.")
    require(not hasattr(model.optimizer, "optimizers"), "find needs a model with one optimizer",
            optimizer=type(model.optimizer).__name__, do="Compile it with a single one for the test.")


def _as_fit_takes(data, batch):
    if isinstance(data, tf.data.Dataset):
        return {"x": data}
    require(isinstance(data, tuple) and len(data) in (2, 3),
            "`data` must be a tf.data.Dataset or a tuple of arrays (x, y) or (x, y, sample_weight)",
            error=TypeError, data=type(data).__name__)
    return dict(zip(("x", "y", "sample_weight"), data, strict=False)) | {"batch_size": batch}


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
        require("loss" in (logs or {}), "find needs a train_step that returns a `loss`", logs=sorted(logs or {}))
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


def _twin(optimizer, rates):
    """An unused optimizer of the same settings with another rate."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:                                  # keras.optimizers.LossScaleOptimizer
        config = {name: value for name, value in optimizer.get_config().items() if name != "inner_optimizer"}
        return type(optimizer)(_twin(inner, rates), **config)
    twin = type(optimizer).from_config(optimizer.get_config() | {"learning_rate": 0.0})
    twin.learning_rate = rates
    return twin


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
    require(math.isfinite(curve.loss[0]), "find needs a loss that is a number at the lowest rate", loss=curve.loss[0],
            do="Look for NaN in the data and the weights.")
    curve = curve[np.isfinite(curve.loss)]
    start = curve.loss[: max(len(curve) // 10, 1)].max()
    smooth, slope = _smooth(curve.loss.clip(upper=start).to_numpy())     # how high it flies at the end says nothing
    curve = curve.assign(smooth=smooth)
    lowest = int(smooth.argmin())
    descent = curve[: lowest + 1]
    fall, scatter = smooth[0] - smooth[lowest], float((descent.loss - descent.smooth).abs().median())
    require(lowest >= 2 and fall > scatter / 4,            # the smoothed loss scatters about a third as much
            "find needs a loss that falls out of its scatter somewhere between `low` and `high`",
            fall=float(fall), scatter=scatter, steps=len(curve),
            do="Lower `low`, raise `high` or `steps`, or pass larger batches.")
    rates = descent.rate.to_numpy()
    suggestions = {"steep": rates[slope[: lowest + 1].argmin()], "valley": rates[_valley(smooth[: lowest + 1])],
                   "minimum": rates[-1] / 10}
    suggestions = {name: float(rate) for name, rate in suggestions.items()}
    return Finding(suggestions["steep"], suggestions, curve)


def _smooth(losses, width=3.0):
    """Value and slope of a straight line fitted around each point, with Gaussian weights `width` points wide."""
    offset = np.arange(len(losses)) - np.arange(len(losses))[:, None]
    weight = np.exp(-0.5 * (offset / width) ** 2)
    weight /= weight.sum(1, keepdims=True)
    centre, mean = (weight * offset).sum(1), weight @ losses
    spread = (weight * offset**2).sum(1) - centre**2
    slope = ((weight * offset) @ losses - centre * mean) / spread
    return mean - slope * centre, slope


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
