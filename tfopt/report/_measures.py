"""Measures of quality, each by the name it has in scikit-learn, in one table: `MEASURES`.

A value is scikit-learn's. An interval needs a thousand values, on resampled examples: for those each measure has a
second form, `draw(sample) -> (weights -> values)`, which is fast and equal to scikit-learn's with that `sample_weight`.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from sklearn import metrics

BINS = 15                                                            # of confidence, as in Guo et al.
BINARY, MULTICLASS, MULTILABEL, REGRESSION = "binary", "multiclass", "multilabel", "regression"
CLASSES = (BINARY, MULTICLASS)
LABELS = (*CLASSES, MULTILABEL)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Labels and predictions of one output, examples first; P positions an example, 1 unless it is a sequence or map.

    Args:
      task: "binary", "multiclass", "multilabel" or "regression".
      labels: [n, P] classes; of multilabel [n, P, L] zeros and ones; of regression [n, D] numbers.
      predicted: the same, as the model says.
      probabilities: of class 1 [n, P], of each class [n, P, K], of each label [n, P, L]; None of regression.
      margins: what ranks examples from class 0 to class 1, of each label: logits if the model returns them.
    """

    task: str
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None = None
    margins: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """Number of classes, or of labels."""
        return 2 if self.task == BINARY else self.probabilities.shape[-1]

    def flat(self, array: np.ndarray) -> np.ndarray:
        """Positions one after the other, as scikit-learn takes them."""
        return array.reshape(-1, *array.shape[2:])


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure.

    Args:
      tasks: that it is defined for.
      direction: "max" or "min".
      value: `sample -> value`, or one value a class, by scikit-learn.
      draw: `sample -> (weights [draws, n] -> [draws] or [draws, classes])`; of a share of examples the pair it is the
        ratio of, (right ones, all).
      hits: `sample -> [n]`, which share of an example is right; None if it is no mean of such.
      one: True if it needs one label an example.
      every: True if it needs an example of each class.
      biased: True if a sample's value is on average above that of all data, and a resample's above the sample's.
    """

    tasks: tuple[str, ...]
    direction: str
    value: Callable[[Sample], Any]
    draw: Callable[[Sample], Callable[[np.ndarray], Any]]
    hits: Callable[[Sample], np.ndarray] | None = None
    one: bool = False
    every: bool = False
    biased: bool = False


def value(name: str, sample: Sample) -> Any:
    """The measure `name` of a sample: a number, or an array of one a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                              # what is undefined is 0 here, and no news
        return MEASURES[name].value(sample)


# ---- shares of what is right

def _right(sample):
    right = sample.labels == sample.predicted
    return (right.all(axis=-1) if sample.task == MULTILABEL else right).mean(axis=1)


def _in_top_5(sample):
    best = np.argsort(sample.probabilities, axis=-1, kind="mergesort")[..., -5:]         # ties as scikit-learn has them
    return (best == sample.labels[..., None]).any(axis=-1).mean(axis=1)


def _share(hits):
    def draw(sample):
        right = hits(sample)
        return lambda weights: (weights @ right, weights.sum(axis=1))

    return draw


def _top_5(sample):
    return metrics.top_k_accuracy_score(sample.labels.ravel(), sample.flat(sample.probabilities), k=5,
                                        labels=range(sample.classes))


# ---- what a confusion matrix holds

def counts(sample):
    """`weights -> (true positives, predicted, in the labels)`, each [draws, classes]."""
    if sample.task == MULTILABEL:
        parts = sample.labels * sample.predicted, sample.predicted, sample.labels
        tables = [part.sum(axis=1, dtype=float) for part in parts]
    else:
        rows = np.repeat(np.arange(len(sample.labels)), sample.labels.shape[1])
        right = (sample.labels == sample.predicted).ravel()
        columns = (sample.labels.ravel()[right], sample.predicted.ravel(), sample.labels.ravel())
        tables = [scipy.sparse.csr_matrix((np.ones(len(column)), (row, column)),
                                          (len(sample.labels), sample.classes))
                  for row, column in zip((rows[right], rows, rows), columns, strict=True)]
    return lambda weights: [weights @ table for table in tables]


def _over(top, bottom):
    """top / bottom, 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


OF_COUNTS = {
    "precision": lambda right, predicted, true: (right, predicted),
    "recall": lambda right, predicted, true: (right, true),
    "f1": lambda right, predicted, true: (2 * right, predicted + true),
    "iou": lambda right, predicted, true: (right, predicted + true - right),
}
SHARES = ("precision", "recall")                                     # of examples, so that Wilson's interval holds
_SCIKIT = {"precision": metrics.precision_score, "recall": metrics.recall_score, "f1": metrics.f1_score,
           "iou": metrics.jaccard_score}


def _by_class(kind, average, tasks):
    """Measure of a class (`average` "binary": class 1; None: each), or a mean over those that are seen."""

    def scikit(sample):
        mean = "macro" if average == "mean" and sample.task != BINARY else "binary" if average == "mean" else average
        labels = range(sample.classes) if mean is None and sample.task != MULTILABEL else None
        return _SCIKIT[kind](sample.flat(sample.labels), sample.flat(sample.predicted), labels=labels, average=mean,
                             zero_division=0)

    def draw(sample):
        of, everything = counts(sample), np.ones((1, len(sample.labels)))
        _, predicted, true = of(everything)
        seen = (predicted + true > 0)[0] if sample.task != MULTILABEL else np.ones(sample.classes, bool)

        def values(weights):
            right, predicted, true = of(weights)
            top, bottom = OF_COUNTS[kind](right, predicted, true)
            if average == "binary" or (average == "mean" and sample.task == BINARY):
                top, bottom = top[:, 1], bottom[:, 1]
            elif average is not None:
                each = _over(top, bottom)
                share = true if average == "weighted" else np.broadcast_to(seen.astype(float), true.shape)
                top, bottom = (each * share).sum(axis=1), share.sum(axis=1)
            return (top, bottom) if average in ("binary", None) and kind in SHARES else _over(top, bottom)

        return values

    return Measure(tasks, "max", scikit, draw)


def _balanced(sample):
    of = counts(sample)

    def values(weights):
        right, _, true = of(weights)
        return _over(right, true).sum(axis=1) / (true > 0).sum(axis=1)

    return values


# ---- ranking

def ranked_columns(sample):
    """[(0 or 1 [n], margins [n])], one a class or label."""
    if sample.task == BINARY:
        return [(sample.labels[:, 0], sample.margins[:, 0])]
    labels, margins = sample.labels[:, 0], sample.margins[:, 0]
    return [(labels == k if sample.task == MULTICLASS else labels[:, k], margins[:, k]) for k in range(sample.classes)]


def _ranked(area):
    """`draw` of the mean over classes of `area(positive, negative)`, weights by rising margin, ties together."""

    def draw(sample):
        columns = []
        for labels, margins in ranked_columns(sample):
            order = np.argsort(margins)
            starts = np.flatnonzero(np.diff(margins[order], prepend=-np.inf))
            columns.append((order, labels[order].astype(float), starts))

        def values(weights):
            total = 0.
            for order, labels, starts in columns:
                ranked = weights[:, order]
                total += area(*(np.add.reduceat(ranked * part, starts, axis=1) for part in (labels, 1 - labels)))
            return total / len(columns)

        return values

    return draw


def _roc_area(positive, negative):
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):                              # a draw without one of the classes has no area
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _precision_area(positive, negative):
    positive, negative = positive[:, ::-1], negative[:, ::-1]
    found = np.cumsum(positive, axis=1)
    precision = _over(found, found + np.cumsum(negative, axis=1))
    with np.errstate(invalid="ignore"):
        return (positive * precision).sum(axis=1) / positive.sum(axis=1)


def _roc(sample):
    labels, margins = sample.labels[:, 0], sample.margins[:, 0]
    return metrics.roc_auc_score(labels, margins, **({"multi_class": "ovr"} if sample.task == MULTICLASS else {}))


# ---- probabilities

def _mean(loss):
    """`draw` of a mean over examples of `loss(sample)`, [n, P] or [n, P, L]."""

    def draw(sample):
        losses = loss(sample).reshape(len(sample.labels), -1).mean(axis=1)
        return lambda weights: weights @ losses / weights.sum(axis=1)

    return draw


def _each_label(function):
    """`value` by scikit-learn's `function(labels, probabilities, labels=...)`; of several labels the mean."""

    def value(sample):
        labels, found = sample.flat(sample.labels), sample.flat(sample.probabilities)
        if sample.task != MULTILABEL:
            return function(labels, found, labels=list(range(sample.classes)))
        return np.mean([function(labels[:, k], found[:, k], labels=[0, 1]) for k in range(sample.classes)])

    return value


def of_label(sample):
    """The probability that the model gave to what is right."""
    if sample.task == MULTICLASS:
        return np.take_along_axis(sample.probabilities, sample.labels[..., None], -1)[..., 0]
    return np.where(sample.labels == 1, sample.probabilities, 1 - sample.probabilities)


def log_losses(sample):
    """-log of the probability that the model gave to what is right, of each label."""
    least = np.finfo(float).eps
    return -np.log(np.clip(of_label(sample), least, 1 - least))


def _squares(sample):
    if sample.task != MULTICLASS:
        return (sample.labels - sample.probabilities) ** 2
    own = of_label(sample)
    return (sample.probabilities ** 2).sum(axis=-1) - own ** 2 + (1 - own) ** 2


def calibration(sample):
    """`weights -> (predictions, sum of confidences, right ones)`, each [draws, bins].

    The confidence is the probability of the predicted class; the bins are of one width, closed above.
    """
    found = sample.probabilities
    confidence = found.max(axis=-1) if sample.task == MULTICLASS else np.maximum(found, 1 - found)
    right = (sample.labels == sample.predicted).astype(float)
    n = len(confidence)
    rows = np.repeat(np.arange(n), confidence.size // n)
    bins = np.clip(np.ceil(confidence.ravel() * BINS).astype(int) - 1, 0, BINS - 1)
    tables = [scipy.sparse.csr_matrix((part.ravel(), (rows, bins)), (n, BINS))
              for part in (np.ones_like(confidence), confidence, right)]
    return lambda weights: [weights @ table for table in tables]


def _calibration_error(sample):
    of = calibration(sample)

    def values(weights):
        total, confidence, right = of(weights)
        return np.abs(confidence - right).sum(axis=1) / total.sum(axis=1)

    return values


# ---- numbers

def _root_mean_squares(sample):
    squares = (sample.labels - sample.predicted) ** 2
    return lambda weights: np.sqrt(weights @ squares / weights.sum(axis=1, keepdims=True)).mean(axis=1)


def _r2(sample):
    centered = sample.labels - sample.labels.mean(axis=0)            # so that the difference of sums keeps its digits
    squares = (sample.labels - sample.predicted) ** 2

    def values(weights):
        total = weights @ centered ** 2 - (weights @ centered) ** 2 / weights.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (1 - weights @ squares / total).mean(axis=1)

    return values


def _whole(draw):
    """`value` of what scikit-learn does not have: the draw of every example once."""
    return lambda sample: draw(sample)(np.ones((1, len(sample.labels))))[0]


def _plain(function):
    return lambda sample: function(sample.flat(sample.labels) if sample.task != REGRESSION else sample.labels,
                                   sample.flat(sample.predicted) if sample.task != REGRESSION else sample.predicted)


MEASURES = {
    "accuracy": Measure(LABELS, "max", _plain(metrics.accuracy_score), _share(_right), hits=_right),
    "top_5_accuracy": Measure((MULTICLASS,), "max", _top_5, _share(_in_top_5), hits=_in_top_5),
    "balanced_accuracy": Measure(CLASSES, "max", _plain(metrics.balanced_accuracy_score), _balanced),
    **{kind: _by_class(kind, "binary", (BINARY,)) for kind in ("precision", "recall", "f1")},
    **{f"{kind}_{average}": _by_class(kind, average, LABELS) for kind in ("precision", "recall", "f1")
       for average in ("macro", "weighted")},
    **{f"{kind}_per_class": _by_class(kind, None, LABELS) for kind in ("precision", "recall", "f1")},
    "iou": _by_class("iou", "mean", LABELS),
    "dice": _by_class("f1", "mean", LABELS),
    "roc_auc": Measure(LABELS, "max", _roc, _ranked(_roc_area), one=True, every=True),
    "average_precision": Measure(LABELS, "max", lambda s: metrics.average_precision_score(
        s.labels[:, 0], s.margins[:, 0]), _ranked(_precision_area), one=True, every=True),
    "log_loss": Measure(LABELS, "min", _each_label(metrics.log_loss), _mean(log_losses)),
    "brier_score": Measure(LABELS, "min", _each_label(metrics.brier_score_loss), _mean(_squares)),
    "expected_calibration_error": Measure(LABELS, "min", _whole(_calibration_error), _calibration_error,
                                          biased=True),
    "mean_absolute_error": Measure((REGRESSION,), "min", _plain(metrics.mean_absolute_error),
                                   _mean(lambda s: np.abs(s.labels - s.predicted))),
    "root_mean_squared_error": Measure((REGRESSION,), "min", _plain(metrics.root_mean_squared_error),
                                       _root_mean_squares),
    "r2": Measure((REGRESSION,), "max", _plain(metrics.r2_score), _r2),
}
