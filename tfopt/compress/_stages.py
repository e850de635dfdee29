"""The stages: each takes a model and a strength, and gives a smaller model that was trained again."""

import itertools

import numpy as np

from .. import _data, _models, cluster, data, distill, prune, quantize, schedules, shrink
from .._check import refusal, require, said
from .._keras import compile_arguments, keras, schedule_of, tf
from .._litert import file, match
from .._toolkit.kernels import units

BATCH = 32
# From the weakest to the strongest.
STRENGTHS = {
    "shrink": (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125),          # share of the channels that stay
    "prune": (0.4, 0.5, 0.6, 0.7, 0.8, 0.875, 0.95),                  # share of zeros
    "cluster": (128, 64, 32, 24, 16, 12, 8),                          # values in a kernel
    "quantize": ("float16", "int16x8", "int8 trained", "int8", "int4 trained", "int4"),         # forms of the file
}
# Of the user's own rate.
_RATES = {"shrink": 1 / 3, "prune": 1 / 3, "cluster": 1 / 10, "int8 trained": 1 / 10, "int4 trained": 1 / 3}
_SMALL = 0.02                        # the smallest kernels, together this share of the weights, are not worth a loss


class Training:
    """How every candidate is trained: as the user compiled the model, for some epochs, distilled from it or not.

    Args:
      model: the compiled original.
      source: training data, as `_data.read` gives them.
      epochs: of each training.
      distilled: is the original the teacher?
      seed: of the order of arrays.
    """

    def __init__(self, model, source, epochs, distilled, seed):
        self.source, self.epochs, self.seed, self.teacher = source, epochs, seed, model if distilled else None
        self.steps = (source.count(BATCH) or sum(1 for _ in source.batches())) * epochs
        self.optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self.arguments = {name: value for name, value in compile_arguments(model).items() if name != "optimizer"}
        self.peak = max(map(peak, _inside(self.optimizer)))
        self.sample = source.head(256).x
        if distilled:
            self._distiller(_models.copy(model))              # refuses now what cannot be distilled

    def data(self):
        """tf.data.Dataset of an epoch's batches."""
        if not isinstance(self.source, _data.Arrays):
            return self.source.dataset().apply(tf.data.experimental.assert_cardinality(self.steps // self.epochs))
        return data.arrays(self.source.x, self.source.y, BATCH, sample_weight=self.source.sample_weight, seed=self.seed)

    def check(self, model):
        """Refuses now the data that no candidate could be trained on."""
        learner = self._compiled(_models.copy(model), 1)
        try:
            learner.fit(self.data().take(1), shuffle=False, verbose=0)
            _require_finite(learner)
        except Exception as error:                         # of the user's data or loss
            raise refusal("a candidate must train on `train`", error=RuntimeError, fit=said(error),
                          do="`model.fit` must take the data, and stay finite.") from error

    def fit(self, model, rate):
        """Trains `model` in place; the rate falls along a cosine from `rate` times the user's highest to zero."""
        learner = self._compiled(model, rate)
        loss = learner.fit(self.data(), epochs=self.epochs, shuffle=False, verbose=0).history["loss"][-1]
        require(np.isfinite(loss), "the loss must stay finite", loss=loss, error=FloatingPointError)
        _require_finite(model)

    def _compiled(self, model, rate):
        optimizer = type(self.optimizer).from_config(self.optimizer.get_config())
        for new, old in zip(_inside(optimizer), _inside(self.optimizer), strict=True):
            new.learning_rate = schedules.CosineDecay(peak(old) * rate, self.steps)
        learner = model if self.teacher is None else self._distiller(model)
        learner.compile(optimizer, **{key: _fresh(value) for key, value in self.arguments.items()})
        return learner

    def _distiller(self, student):
        return distill.Distiller(self.teacher, student, _soft_losses(student, self.arguments.get("loss")))


def _require_finite(model):
    require(all(np.isfinite(weight).all() for weight in model.get_weights()), "the weights must stay finite",
            error=FloatingPointError)


def _soft_losses(model, loss):
    """What an output learns from the teacher's: `Logits` of classes as the compiled loss has them, else `Values`."""
    names = getattr(model, "output_names", None) or [None]
    losses = loss if isinstance(loss, dict) else dict(zip(names, loss if isinstance(loss, list | tuple) else
                                                          [loss] * len(names), strict=False))
    found = [_soft_loss(one, name if len(names) > 1 else None) for name, one in losses.items() if one is not None]
    return found or distill.Logits(temperature=4.0)


def _soft_loss(loss, output):
    loss = keras.losses.get(loss)
    word = getattr(loss, "__name__", type(loss).__name__).lower().replace("_", "")
    if loss is not None and "crossentropy" not in word:
        return distill.Values(output=output)
    binary = "sigmoid" if word.startswith("binary") else None
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return distill.Logits(temperature=4.0, activation=binary, from_logits=config.get("from_logits"), output=output)


def _inside(optimizer):
    """The optimizers inside a MultiOptimizer; any other alone."""
    return getattr(optimizer, "optimizers", [optimizer])


def peak(optimizer):
    """The highest learning rate of an optimizer, that of its first million steps if it follows a schedule."""
    schedule = schedule_of(optimizer)
    if schedule is None:
        return float(optimizer.learning_rate)
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return float(schedule())
    return max(float(schedule(int(step))) for step in (0, *np.unique(np.logspace(0, 6, 150).astype(int))))


def large(plan):
    """Paths of the layers that a `plan` would do, without the smallest. May be empty."""
    done = plan[plan["status"] == "selected"].sort_values("affected", kind="stable")
    return list(done["layer"][done["affected"].cumsum() > _SMALL * done["affected"].sum()])


def _some(layers, stage):
    require(layers, f"{stage}.plan finds no kernel that it can work on", layers=layers)
    return layers


def shrunk(model, keep, training):
    small = shrink.channels(model, keep)
    training.fit(small, _RATES["shrink"])
    return small


def pruned(model, sparsity, training):
    every = max(training.steps // 100, 1)
    shares = prune.allocate(model, sparsity, where=_some(large(prune.plan(model)), "prune"))
    wrapped = prune.wrap(model, shares, end=max(training.steps // 2 // every, 1) * every, every=every)
    training.fit(wrapped, _RATES["prune"])
    return prune.strip(wrapped)


def clustered(model, clusters, training, zeros):
    options = {"preserve_sparsity": zeros}
    wrapped = cluster.wrap(model, clusters, **options,
                           where=_some(large(cluster.plan(model, clusters, **options)), "cluster"))
    training.fit(wrapped, _RATES["cluster"])
    return cluster.strip(wrapped)


def quantized(model, form, training, preserve):
    """The file, and {path with dots: kernel} of what it was trained to hold; {} of a file made after training."""
    if form not in _RATES:
        return quantize.convert(model, form, calibration=training.sample), {}
    wrapped = quantize.wrap(model, bits=4 if form.startswith("int4") else 8, preserve=preserve)
    aware = quantize.calibrate(wrapped, training.sample)
    training.fit(aware, _RATES[form])
    return (quantize.convert(aware, calibration=training.sample),
            {name: layer.kernels()[0] for name, layer in aware.rounded().items()})


def start(model, seed):
    """A copy of the original whose dropout depends on `seed` alone: Keras does not save how far it had come."""
    numbers = itertools.count()

    def value(variable):
        return np.array([seed, next(numbers)]) if variable.name == "seed_generator_state" else variable

    return _models.copy(model, value=value)


def structure(step, strength, model):
    """A model that has the structure of what a step makes of `model`, for the variables of a saved candidate."""
    return shrink.channels(model, strength) if step == "shrink" else _models.copy(model)


def kernels(model, paths):
    """{path: kernel} of layers."""
    found = {path: [np.asarray(w) for w in layer.weights if len(w.shape) > 1]
             for path, layer in units(model).items() if path in paths}
    return {path: max(arrays, key=np.size) for path, arrays in found.items()}


def require_kept(step, before, after, zeros, values, trained=None):
    """Refuses a candidate that lost zeros of the layers `zeros`, or shared values of the layers `values`.

    A file that was trained on is searched for the kernels it was `trained` to hold, as `quantized` gives them.
    """
    old = kernels(before, {*zeros, *values})
    if isinstance(after, quantize.LiteModel):
        entries, rows = file.kernels(after.parsed), units(before)
        old = {path: kernel for path, kernel in old.items()          # a table is looked up, or folded into a constant
               if not isinstance(rows[path], keras.layers.Embedding)}
        sought = {path: (trained or {}).get(path.replace("/", "."), kernel) for path, kernel in old.items()}
        stored = {path: match.find(kernel, entries) for path, kernel in sought.items()}
        pairs = {path: (match.channels(*entry[::3]), None) for path, entry in stored.items() if entry}
        lost = {path: "its kernel is not in the file" for path in old if path not in pairs}
        lost |= {path: "zeros" for path in pairs if path in zeros
                 and (pairs[path][0] == 0).sum() < (old[path] == 0).sum()}
        lost |= {path: "shared values" for path in pairs if path in values
                 and max(len(np.unique(row)) for row in pairs[path][0]) > len(np.unique(old[path]))}
    else:
        new = kernels(after, old)
        lost = {path: "zeros" for path in zeros if (new[path][old[path] == 0] != 0).any()}
        lost |= {path: "shared values" for path in values if len(np.unique(new[path])) > len(np.unique(old[path]))}
    require(not lost, f"compress.run: {step} must keep what the steps before it made", lost=lost, error=RuntimeError)


def _fresh(value):
    """`value` with its metrics made anew: they count."""
    return keras.tree.map_structure(
        lambda one: type(one).from_config(one.get_config()) if isinstance(one, keras.metrics.Metric) else one, value)
