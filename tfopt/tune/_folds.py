"""Folds: who is trained on and who is scored, when a trial is given up, cross-validation without a search."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from .. import _data, data
from .._check import BATCH_SIZE, EPOCHS, FUNCTION, SEED, Whole, checked, refusal, require, said
from .._keras import fresh_names, keras, seeded, tf
from .._tables import Frame
from ._oracles import derived


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


@checked(build=FUNCTION, folds=Whole(low=2), epochs=EPOCHS, batch_size=BATCH_SIZE, seed=SEED)
def cross_validate(build: Callable[[], keras.Model], x: Any, y: Any, *, folds: int = 5, epochs: int = 10,
                   batch_size: int = 32, seed: int = 0) -> pd.DataFrame:
    """K-fold cross-validation: trains a new model for each fold and scores it on the rows it has not seen.

    Labels that are whole numbers are stratified. What is reported is the model after the last epoch: an epoch chosen
    on the fold that it is scored on would flatter.

    Args:
      build: `() -> compiled model`.
      x: array [n, ...], or a dict of arrays.
      y: array [n, ...].
      folds: 2 .. n.
      epochs, batch_size: of each training, >= 1.
      seed: whole number >= 0, of the folds, the weights and the order of the rows.
    Returns:
      A pandas table of what `evaluate` returns, a line for each fold; report `.mean()` and `.std()`.
    Raises:
      ValueError: an argument is out of range, x and y differ in length or do not fit the model, or `build` returns no
        compiled model.
    Example:
      >>> def build():
      ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      ...     model.compile("sgd", "mse")
      ...     return model
      >>> x = np.random.default_rng(0).normal(size=(20, 2))
      >>> list(cross_validate(build, x, x[:, :1], folds=4, epochs=1).index)
      [0, 1, 2, 3]
    """
    found, rows = _data.read((x, y), name="x, y", targets="required").whole(), []
    require(hasattr(found.y, "shape"), "`y` must be one array", y=y)
    for fold, (inside, outside) in enumerate(split(found.y, folds, seed)):
        fold_seed = derived(seed, "fold", fold) % 2**31
        with seeded(fold_seed), fresh_names():
            model = require_model(build(), "tune.cross_validate")
            _data.read((x, y), model, name="x, y", targets="required")
            train, val = found.rows(inside), found.rows(outside)
            try:
                model.fit(data.arrays(train.x, train.y, batch_size, seed=fold_seed), epochs=epochs, shuffle=False,
                          verbose=0)
                rows.append(model.evaluate(**val.fit_arguments(256), verbose=0, return_dict=True))
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise refusal("the model must train on `x` and `y`", fold=fold, fit=said(error),
                              do="`model.fit` must take the data.") from error
    return Frame(rows).rename_axis("fold")
