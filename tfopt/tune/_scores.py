"""What a trial is scored by: logs of training, facts of its model, measures of `report`, functions of the user's."""

import numpy as np

from .._check import require
from .._keras import keras, same_randomness
from ..report._measure import watch
from ..report._measures import MEASURES
from ..report._quality import evaluate

FACTS = {"params": "parameters", "macs": "macs", "bytes": "bytes", "gzip": "gzip", "latency_ms": "latency_ms"}
LESS = ("loss", "error", "mse", "mae", "rmse", "mape", "entropy", "divergence", "perplexity", "deviance")
MORE = ("acc", "auc", "precision", "recall", "f1", "iou", "dice", "r2", "score", "similarity")


def objectives_of(objective):
    """({name: "min" or "max"}, {name: function}) of what the user calls an objective.

    Example:
      >>> objectives_of(["val_accuracy", ("val_money", "max"), "bytes"])
      ({'val_accuracy': 'max', 'val_money': 'max', 'bytes': 'min'}, {})
    """
    if isinstance(objective, tuple) and len(objective) == 2 and isinstance(objective[1], str) and (
            objective[1] in ("min", "max")):
        objective = [objective]
    found, functions = {}, {}
    for one in objective if isinstance(objective, list | tuple) else [objective]:
        name, way = one if isinstance(one, tuple) and len(one) == 2 else (
            getattr(one, "name", one), getattr(one, "direction", None))
        shown = getattr(name, "__name__", f'"{name}"')
        if callable(name) and shown.isidentifier():
            functions[f"val_{name.__name__}"] = name
            name = f"val_{name.__name__}"
        require(isinstance(name, str), "an objective must be a name, a function with a name, or (one of them, 'min' or "
                "'max')", objective=objective, error=TypeError)
        way = way or way_of(name)
        require(way in ("min", "max"), "it must be known which way an objective is better", objective=name,
                do=f'Pass ({shown}, "min") or ({shown}, "max").')
        found[name] = way
    require(found, "a search needs an objective", objective=objective)
    return found, functions


def way_of(name):
    """"min" or "max": which way is better, None if the name does not tell."""
    if measure := measure_of(name):
        return MEASURES[measure[1]].direction
    less, more = (any(part in name.lower() for part in parts) for parts in (LESS, MORE))
    return "min" if name in FACTS or less else "max" if more else None


def measure_of(name):
    """(output or None, measure of `report`) that a log's name asks for, None if it asks for none.

    Example:
      >>> measure_of("val_f1_macro"), measure_of("val_head_log_loss"), measure_of("val_loss")
      ((None, 'f1_macro'), ('head', 'log_loss'), None)
    """
    rest = name.removeprefix("val_")
    fits = [known for known in MEASURES if f"_{rest}".endswith(f"_{known}") and not known.endswith("_per_class")]
    if rest == name or not fits:
        return None
    known = max(fits, key=len)
    return rest.removesuffix(known).rstrip("_") or None, known


def wanted(names, functions):
    """{name: function or (output, measure)} of those names that `Epochs` can add to the logs."""
    found = {name: functions.get(name) or measure_of(name) for name in names}
    return {name: what for name, what in found.items() if what}


class Scorer:
    """Measures on the validation data of a model that is trained on; its graph is traced once.

    Args:
      names: as `wanted` returns them.
      val: `Arrays` or a `Stream`.
    """

    def __init__(self, names, val):
        self.names, self.val, self.look = names, val, None

    def __call__(self, model, names=None):
        """{name: value} of some of the names."""
        if self.look is None:
            source = (self.val.x, self.val.y) if self.val.length else self.val.source
            with same_randomness():
                self.look = watch(model, source, "tune.Search")
        subjects, outputs, labels = self.look()
        return {name: self._score(self.names[name], subjects, outputs, labels) for name in names or self.names}

    def _score(self, what, subjects, outputs, labels):
        if callable(what):
            found, = outputs.values()
            y, = labels.values()
            one = len(found) == 1
            score = np.asarray(what(*((next(iter(part.values())) if one else part) for part in (y, found))))
            require(score.ndim == 0 and score.dtype.kind in "biuf", "an objective must return a number of (y, outputs)",
                    objective=what.__name__, returned=score)
            return float(score)
        output, measure = what
        choice = (measure,) if output is None else {output: (measure,)}
        found = evaluate(subjects, outputs, labels, choice)
        require(len(found) == 1, "of several outputs an objective must name one", objective=f"val_{measure}",
                do=f"There are {', '.join(f'val_{name}' for name in found)}.")
        return float(next(iter(found.values())))


class Measured(keras.callbacks.Callback):
    """Adds to the logs of each epoch what `scorer` knows and training does not report. Called before all others."""

    def __init__(self, scorer):
        super().__init__()
        self.scorer = scorer

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None and (missing := [name for name in self.scorer.names if name not in logs]):
            logs.update(self.scorer(self.model, missing))


def beyond(limits, found):
    """What is beyond its limit, in words: facts and what should be small above it, what should be large below it."""
    signs = {name: ">" if way_of(name) == "min" else "<" for name in limits}
    return [f"{name} {found[name]:,} {signs[name]} {limit:,}" for name, limit in limits.items() if name in found and (
        found[name] > limit if signs[name] == ">" else found[name] < limit)]
