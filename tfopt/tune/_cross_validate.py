"""Cross-validation without a search: each fold cleans, scales and trains on its own rows alone."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from .. import _data
from .._check import BATCH_SIZE, EPOCHS, FUNCTION, SEED, VERBOSE, Whole, checked, refusal, require, said
from .._keras import fresh_names, graph_of, keras, seeded, tf
from .._tables import Frame
from .._typing import Verbose
from ..data._arrays import View, batches
from ..data._table import encode_target, raw_columns
from ._folds import require_model, split
from ._inputs import CLASS_WEIGHT
from ._oracles import derived


@dataclasses.dataclass(frozen=True, repr=False)
class CrossValidation:
    """What `cross_validate` returns; prints as its table, with mean and standard deviation.

    Args:
      frame: pandas table of what `evaluate` returned, a line for each fold.
      models: the trained models, fold by fold; `average.outputs(models)` makes one of them.
      predictions: of each row, in the order of the data, by the model that has not seen it; nested as the outputs.
      folds: int[n], the fold in which each row was held out.

    Example:
      >>> CrossValidation(Frame({"loss": [1., 2., 3.]}), [], np.zeros((4, 1)), np.array([0, 1, 2, 0]))
            loss
      0      1.0
      1      2.0
      2      3.0
      mean   2.0
      std    1.0
    """

    frame: pd.DataFrame
    models: list[keras.Model]
    predictions: Any
    folds: np.ndarray

    def __repr__(self) -> str:
        return repr(self._summary())

    def _repr_html_(self) -> Any:
        return self._summary()._repr_html_()

    def _summary(self):
        return Frame(pd.concat([self.frame, self.frame.agg(["mean", "std"])]))


@checked(build=FUNCTION, folds=Whole(low=2), epochs=EPOCHS, batch_size=BATCH_SIZE, class_weight=CLASS_WEIGHT, seed=SEED,
         verbose=VERBOSE)
def cross_validate(  # noqa: PLR0913 - those of keras.Model.fit, and the folds
        build: Callable[..., keras.Model], x: Any, y: Any, *, folds: int = 5, groups: Any = None, epochs: int = 10,
        batch_size: int = 32, class_weight: dict[int, float] | None = None, seed: int = 0,
        verbose: Verbose = "auto") -> CrossValidation:
    """K-fold cross-validation: trains a new model for each fold and scores it on the rows it has not seen.

    Labels that are whole numbers are stratified. What is reported is the model after the last epoch: an epoch chosen
    on the fold that it is scored on would flatter. What is fitted to data, such as the filling of gaps, scaling or
    `Normalization.adapt`, belongs into `build`: it sees the rows that the fold trains on and no other.

    Args:
      build: `() -> compiled model`, or `training rows -> compiled model`; they come as a table where `y` is the name of
        a column, else as `(x, y)`.
      x: array [n, ...], a table, or a dict of them. A model whose input is a dict of the columns of a table, such as
        one that begins with `data.table(rows, ...)[2].model`, gets them as they are.
      y: array [n, ...]; or the name of the column of the table `x` that is the target: text, bool and categories become
        0, 1, ... in sorted order.
      folds: 2 .. n.
      groups: array [n] of words or numbers, or None; the rows of a group are held out together.
      epochs, batch_size: of each training, >= 1.
      class_weight: {class: weight in the loss}, or None.
      seed: whole number >= 0, of the folds, the weights and the order of the rows.
      verbose: 0 is silent, 1, 2 and "auto" show a progress bar of the folds.
    Returns:
      A `CrossValidation`: `.frame` of scores, `.models`, `.predictions` of all rows out of their fold, `.folds`.
    Raises:
      ValueError: an argument is out of range, the data differ in length or do not fit the model, there are fewer groups
        than folds, or `build` returns no compiled model.
    Example:
      >>> def build(rows):
      ...     x, _ = rows
      ...     scale = keras.layers.Normalization()
      ...     scale.adapt(x)
      ...     model = keras.Sequential([keras.Input((2,)), scale, keras.layers.Dense(1)])
      ...     model.compile("sgd", "mse")
      ...     return model
      >>> x = np.random.default_rng(0).normal(5, 3, size=(20, 2))
      >>> found = cross_validate(build, x, x[:, :1], folds=4, epochs=1, verbose=0)
      >>> len(found.models), found.predictions.shape
      (4, (20, 1))
    """
    rows = _Rows(x, y)
    fold_of = np.empty(rows.length, int)
    scores, models, predictions = [], [], None
    bar = keras.utils.Progbar(folds, verbose=1 if verbose == "auto" else verbose, unit_name="fold")
    for fold, (inside, outside) in enumerate(_parts(rows.y, folds, groups, seed)):
        fold_of[outside] = fold
        fold_seed = derived(seed, "fold", fold) % 2**31
        with seeded(fold_seed), fresh_names():
            model = require_model(build(rows.given(inside)) if _takes_rows(build) else build(), "tune.cross_validate")
            found = rows.of(model)
            try:
                model.fit(found(inside, batch_size, fold_seed), epochs=epochs, shuffle=False, verbose=0,
                          class_weight=class_weight)
                scores.append(model.evaluate(found(outside, 256), verbose=0, return_dict=True))
                outputs = keras.tree.map_structure(np.asarray, model.predict(found(outside, 256), verbose=0))
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise refusal("the model must train on `x` and `y`", fold=fold, fit=said(error),
                              do="`model.fit` must take the data.") from error
        models.append(model)
        if predictions is None:
            predictions = keras.tree.map_structure(lambda part: np.empty((rows.length, *part.shape[1:]), part.dtype),
                                                   outputs)
        keras.tree.map_structure(lambda whole, part, at=outside: whole.__setitem__(at, part), predictions, outputs)
        bar.update(fold + 1)
    return CrossValidation(Frame(scores).rename_axis("fold"), models, predictions, fold_of)


def _takes_rows(build):
    """Must it be called with an argument."""
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
               for p in inspect.signature(build).parameters.values())


def _parts(y, folds, groups, seed):
    """[(rows to train on, rows to score on)] of each fold."""
    if groups is None:
        return split(y, folds, seed)
    groups = _one(groups, "groups")
    require(groups.shape == (len(y),), "`groups` must name the group of each row", groups=groups, rows=len(y),
            do="Pass one word or number a row.")
    require(folds <= len(np.unique(groups)), "`folds` must be at most the number of groups", folds=folds,
            groups=len(np.unique(groups)))
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    labels = y.reshape(len(y), -1)
    stratified = labels.shape[1] == 1 and np.issubdtype(y.dtype, np.integer)
    kind = StratifiedGroupKFold if stratified else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                              # of classes that are not in every fold
        return list(kind(folds, shuffle=True, random_state=seed).split(labels, labels[:, 0], groups))


class _Rows:
    """The rows of the data, as the user's `build` and as a model takes them."""

    def __init__(self, x, y):
        self.table = x if isinstance(y, str) else None
        if self.table is None:
            self.x, self.y = x, _one(y, "y")
        else:
            require(isinstance(x, pd.DataFrame) and y in x, "`y` must be an array, or the name of a column of the "
                    "table `x`", y=y, x=list(x) if isinstance(x, pd.DataFrame) else x)
            self.x, (self.y, _) = x.drop(columns=y), encode_target(x[y])
        self.length = len(self.y)
        if not isinstance(self.x, pd.DataFrame):
            self.x = _data.read((self.x, self.y), name="x, y", targets="required").x
        require(_length(self.x) == self.length, "`x` and `y` must be of one length", x=_length(self.x), y=self.length)

    def given(self, chosen):
        """Some rows in the form of the data."""
        if self.table is not None:
            return self.table.iloc[chosen]
        return tuple(_some(part, chosen) for part in (self.x, self.y))

    def of(self, model):
        """`(rows, batch_size, seed or None) -> batches` for a model."""
        graph = graph_of(model)
        if isinstance(self.x, pd.DataFrame) and graph is not None and isinstance(graph.input, dict):
            x = raw_columns(self.x, model)
        else:
            x = _data.read((self.x, self.y), model, name="x, y", targets="required").x
        parts = _data.in_tuples((x, self.y))
        with tf.device("CPU"):
            tensors = keras.tree.map_structure(tf.convert_to_tensor, parts)

        def batched(chosen, batch_size, seed=None):
            return batches(len(chosen), batch_size, lambda rows: keras.tree.map_structure(
                lambda tensor: tf.gather(tensor, tf.gather(chosen, rows)), tensors),
                view=View(lambda element, epoch, rows: element), shuffle=seed is not None, seed=seed or 0)

        return batched


def _one(part, name):
    """One array."""
    found = _data.read(list(part) if isinstance(part, tuple) else part, name=name, finite=True).x
    require(hasattr(found, "shape"), f"`{name}` must be one array", **{name: found})
    return found


def _length(part):
    return len(part if hasattr(part, "iloc") else keras.tree.flatten(part)[0] if isinstance(part, dict) else part)


def _some(part, chosen):
    if hasattr(part, "iloc"):
        return part.iloc[chosen]
    return keras.tree.map_structure(lambda array: array[chosen], part)
