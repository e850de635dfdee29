"""Folds: who is trained on and who is scored, when a trial is given up."""

import numpy as np

from .._check import require
from .._keras import keras


def split(y, folds, seed):
    """[(rows to train on, rows to score on)] of each fold; classes are dealt out evenly if `y` are whole numbers.

    Example:
      >>> [outside.tolist() for _, outside in split(np.array([0, 0, 0, 1, 1, 1]), 3, seed=0)]
      [[2, 3], [0, 5], [1, 4]]
    """
    y = np.asarray(y)
    require(2 <= folds <= len(y), "`folds` must be at least 2 and at most the number of examples", folds=folds,
            examples=len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    labels = y.reshape(len(y), -1)
    if labels.shape[1] == 1 and np.issubdtype(y.dtype, np.integer):
        order = order[np.argsort(labels[order, 0], kind="stable")]
    fold_of = np.empty(len(y), int)
    fold_of[order] = np.arange(len(y)) % folds
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(folds)]


def is_bad(values, best, way):
    """After two folds or more: is each worse than the worst fold of the best trial."""
    worst, values = (min(best, default=0), values) if way == "max" else (-max(best, default=0), [-v for v in values])
    return bool(best) and len(values) >= 2 and max(values) < worst


def require_model(model, caller):
    require(isinstance(model, keras.Model) and model.compiled, f"{caller}: `build` must return a compiled keras.Model",
            returned=type(model).__name__)
    return model
