"""A row a class, and the confusion matrix."""

import numpy as np
import pandas as pd
from sklearn import metrics

from .. import _plots
from .._check import TEXT, ListOf, checked, require
from .._plots import BLUE, GRAY, INK, Figure, canvas
from .._tables import Frame
from .._typing import Data, PathLike
from ._intervals import measured
from ._measure import Measured, sample_of_model
from ._measures import LABELS, MULTILABEL

KINDS = ("precision", "recall", "f1")


class ClassReport:
    """Precision, recall and F1 score of each class, and the confusion matrix. Made by `classes`.

    Attributes:
      frame: pandas DataFrame, one line a class: `precision`, `recall`, `f1`, each with `_low` and `_high`; `support`.
      confusion: pandas DataFrame of counts, lines are the labels, columns the predictions; None of several labels an
        example.

    Args:
      frame, confusion: as above.

    Example:
      >>> ClassReport(pd.DataFrame({"support": [2]}, index=["cat"]), None)
           support
      cat        2
    """

    def __init__(self, frame: pd.DataFrame, confusion: pd.DataFrame | None) -> None:
        self.frame: pd.DataFrame = Frame(frame)
        self.confusion: pd.DataFrame | None = confusion

    def __repr__(self) -> str:
        return repr(self.frame.round(3))

    def _repr_html_(self) -> str:
        return self.frame.round(3).to_html()

    @checked()
    def plot(self, path: PathLike | None = None) -> Figure:
        """Draws the confusion matrix: counts, shaded by their share of the line, which is the recall on the diagonal.

        Args:
          path: where the figure is saved (.png, .svg, .pdf); None saves nothing.

        Returns:
          The matplotlib Figure.

        Raises:
          ValueError: an example has several labels, so that there is no such matrix.
        """
        require(self.confusion is not None, "a confusion matrix needs one class an example",
                do="The frame has the figures of each label.")
        counts, names = self.confusion.to_numpy(), list(map(str, self.confusion.index))
        total = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
        size = max(3.2, 1.2 + .48 * len(names)) if len(names) <= 30 else 9
        figure, ((axes,),) = canvas(size + .8, size)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        drawn = axes.imshow(shares, cmap=_plots.shades(BLUE), vmin=0, vmax=1)
        every = 1 if len(names) <= 30 else len(names) // 20
        at = range(0, len(names), every)
        long = max(map(len, names)) > 3
        axes.set_xticks(at, [names[i] for i in at], rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(at, [names[i] for i in at])
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", color=INK)
        axes.set_ylabel("label", color=INK)
        if len(names) <= 30:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8,
                              color="white" if shares[row, column] > .5 else INK)
        bar = figure.colorbar(drawn, ax=axes, shrink=.8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=GRAY, labelsize=8, length=0)
        bar.set_label("share of the label", color=INK)
        return _plots.save(figure, path)


@checked(names=ListOf(TEXT), output=TEXT)
def classes(model: Measured, data: Data, *, names: list[str] | tuple[str, ...] | None = None,
            output: str | None = None) -> ClassReport:
    """Precision, recall, F1 score and support of each class, with 95% intervals, and the confusion matrix.

        precision = right / predicted;    recall = right / support;    F1 = 2 right / (predicted + support)

    The intervals are Wilson's of precision and recall, and the bootstrap's of the F1 score, as under `compare`; where
    an example has several positions, all are the bootstrap's. What was never predicted has the precision 0.

    Args:
      model: a built Keras model or a `quantize.LiteModel`.
      data: (x, y) as for `compare`; what the outputs mean is told as there.
      names: of the classes, in the order of their numbers; None for the numbers.
      output: which one, of a model with several.

    Returns:
      A `ClassReport`: `.frame`, `.confusion`, `.plot(path)`.

    Raises:
      ValueError: the labels are no classes, the names do not fit, or see `compare`.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("softmax")])
      >>> x = np.eye(3, dtype="float32")[[0, 1, 1, 2]]
      >>> found = classes(model, (x, np.array([0, 1, 2, 2])), names=["ant", "bee", "cat"])
      >>> found.frame[["precision", "recall", "support"]]
           precision  recall  support
      ant        1.0     1.0        1
      bee        0.5     1.0        1
      cat        1.0     0.5        2

    Reference:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927.
      https://doi.org/10.1080/01621459.1927.10502953
    """
    sample = sample_of_model(model, data, "report.classes", output)
    require(sample.task in LABELS, "classes need labels that are classes", labels=sample.task,
            do="report.compare(measures=) has the measures of numbers.")
    count = sample.classes
    require(names is None or len(names) == count, "`names` must be one a class", names=names, classes=count)
    index = list(names or range(count))
    found = measured({"": sample}, [f"{kind}_per_class" for kind in KINDS])[""]
    columns = {f"{kind}{end}": [found[f"{kind}_{k}{end}"] for k in range(count)]
               for kind in KINDS for end in ("", "_low", "_high")}
    labels, predicted = sample.flat(sample.labels), sample.flat(sample.predicted)
    if sample.task == MULTILABEL:
        return ClassReport(pd.DataFrame({**columns, "support": labels.sum(axis=0)}, index=index), None)
    confusion = metrics.confusion_matrix(labels, predicted, labels=range(count))
    return ClassReport(pd.DataFrame({**columns, "support": confusion.sum(axis=1)}, index=index),
                       Frame(confusion, index=pd.Index(index, name="label"), columns=pd.Index(index, name="predicted")))
