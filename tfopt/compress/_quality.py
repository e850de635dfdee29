"""How good a candidate is on the validation data, and in what its drop is measured."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from .. import _models, report
from .._check import refusal, require, said
from .._keras import keras, tf
from ..quantize import LiteModel
from ..report._measure import evaluate
from ..report._measures import MEASURES


class Quality:
    """`quality(model, row) -> float`, higher is better, of Keras models and LiteRT files alike.

    Args:
      model: the compiled original.
      val: `Arrays` that choose among candidates.
      arguments: of the original's `compile`.
      measure: the user's, `(y, outputs) -> float`, or the name of one of `report.compare`; None for the accuracy of
        classes, else for 1 - loss / loss of the original.

    Attributes:
      scored: are there labels that `report` can score?
    """

    def __init__(self, model: keras.Model, val: Any, arguments: dict[str, Any],
                 measure: Callable[[Any, Any], float] | str | None):
        self.original, self.val, self.arguments, self.measure = model, val, arguments, measure
        self.names, self.scored, accuracy = getattr(model, "output_names", None), val.y is not None, None
        if self.scored:
            try:
                accuracy = report.measure(model, (val.x, val.y), runs=1).accuracy
            except ValueError as error:                    # e.g. labels of CTC, which are of another length
                self.scored = False
                warnings.warn("compress.run: no accuracy can be told of these labels and outputs: the table has none. "
                              + str(error), stacklevel=4)
        self.accuracy = measure is None and accuracy is not None
        if measure is None and not self.accuracy:
            require(arguments.get("loss") is not None, "a model without a compiled loss needs a `measure`",
                    measure=None, do="Pass measure=lambda y, outputs: ..., higher is better.")
            try:
                self.own = self._loss(outputs_of(model, val.x))
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise refusal("the compiled loss must be defined on `val`", evaluate=said(error),
                              do="`model.evaluate` must take the data.") from error
            require(np.isfinite(self.own) and self.own > 0,
                    "the loss of the model on `val` must be finite and above 0, as drops are shares of it",
                    loss=self.own, do="Pass measure=lambda y, outputs: ..., higher is better.")

    def __call__(self, model: keras.Model | LiteModel, row: report.Row) -> float:
        if self.accuracy:
            return float(cast("float", row.accuracy))
        if isinstance(self.measure, str):
            return self._named(model, self.measure)
        outputs = outputs_of(model, self.val.x)
        if self.measure is None:
            return 1 - self._loss(outputs) / self.own
        found = np.asarray(self.measure(self.val.y, outputs))
        require(found.ndim == 0 and found.dtype.kind in "biuf", "`measure` must return a number", returned=found)
        return float(found)

    def _named(self, model, name):
        """A measure of `report.compare`, turned so that higher is better."""
        found = evaluate(model, (self.val.x, self.val.y), (name,), "compress.run", like=self.original)
        require(list(found) == [name], "a `measure` by name needs a model with one output", measures=list(found),
                do="Pass a function of (y, outputs).")
        return found[name] if MEASURES[name].direction == "max" else -found[name]

    def _loss(self, outputs):
        """The compiled loss of outputs that are there already, without penalties on weights."""
        return _models.evaluate_outputs(outputs, self.val.y, self.val.sample_weight, names=self.names,
                                        loss=self.arguments["loss"],
                                        loss_weights=self.arguments.get("loss_weights"))["loss"]


def outputs_of(model: keras.Model | LiteModel, x: Any) -> Any:
    """NumPy outputs, nested as the model nests them."""
    outputs = model.predict(x) if isinstance(model, LiteModel) else model.predict(x, verbose=0)
    return keras.tree.map_structure(np.asarray, outputs)
