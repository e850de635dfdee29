"""Outputs and labels -> accuracy or error, with a 95% interval."""

import math

import numpy as np

from .._check import require

Z = 1.959963984540054                                                # 97.5% of the normal distribution lie below


def wilson(right, examples):
    """Wilson's 95% interval of a share: `right` of `examples`."""
    share, n = right / examples, examples
    center = share + Z * Z / (2 * n)
    reach = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0., (center - reach) / (1 + Z * Z / n)), min(1., (center + reach) / (1 + Z * Z / n))


def fitted(outputs, labels, name):
    """(outputs, float64 labels), both [n, ..., width], the labels' width perhaps 1; what does not fit is refused."""
    require(np.issubdtype(labels.dtype, np.number) or labels.dtype == bool, "labels must be numbers",
            dtype=str(labels.dtype), do="Use keras.layers.StringLookup or pandas.factorize.")
    labels = labels.astype("float64")
    require(np.isfinite(labels).all(), "labels must be finite", not_finite=int((~np.isfinite(labels)).sum()),
            of=labels.size)
    require(np.isfinite(outputs).all(), "a model needs finite outputs", model=name,
            not_finite=int((~np.isfinite(outputs)).sum()), of=outputs.size,
            do="Look for NaN in x, or for an overflow in float16.")
    if outputs.ndim == 1:
        outputs = outputs[:, None]
    if labels.ndim == outputs.ndim - 1:
        labels = labels[..., None]
    require(labels.shape[:-1] == outputs.shape[:-1] and labels.shape[-1] in (1, outputs.shape[-1]),
            "labels must fit the outputs", model=name, labels=labels.shape, outputs=outputs.shape,
            do="Pass integers, or one column per output.")
    return outputs, labels


def score(outputs, labels, name, logits=None):
    """{accuracy or mae, low, high, examples} of float32 `outputs`, first axis: examples; see `per_example`."""
    measure, values = per_example(outputs, labels, name, logits)
    mean, examples = float(values.mean()), len(values)
    if measure == "mae":
        reach = Z * values.std() / math.sqrt(examples)
        low, high = float(max(0, mean - reach)), float(mean + reach)
    else:
        low, high = wilson(mean * examples, examples)
    return {measure: mean, "low": low, "high": high, "examples": examples}


def per_example(outputs, labels, name, logits=None):
    """("accuracy" or "mae", [examples]): the share of right predictions, or the mean absolute error, of each example.

    `logits` says of a binary output whether it is a logit or a probability; None: its range decides.
    """
    outputs, labels = fitted(outputs, labels, name)
    hits = _hits(outputs, labels, outputs.shape[-1], name, logits)
    if hits is None:
        return "mae", np.abs(outputs - labels).reshape(len(labels), -1).mean(axis=1)
    return "accuracy", hits.reshape(len(hits), -1).mean(axis=1)       # positions of one example are no separate ones


def are_logits(outputs):
    """By its range: is a binary output a logit, not a probability."""
    return bool(outputs.min() < 0 or outputs.max() > 1)


def _hits(outputs, labels, classes, name, logits):
    """Which predictions are right, or None where the labels are no classes."""
    binary = np.isin(labels, (0, 1)).all()
    if classes == 1 or (labels.shape[-1] == classes and binary and not _shares(labels)):
        if logits is None:
            logits = are_logits(outputs)
        middle = 0. if logits else 0.5
        return ((outputs > middle) == labels).all(axis=-1) if binary else None
    if labels.shape[-1] == 1:
        known = (labels == labels.round()) & (labels >= 0) & (labels < classes)
        require(known.all(), "labels must be whole numbers below the number of outputs", model=name,
                outputs=classes, wrong=labels[~known][:3].tolist())
        return outputs.argmax(axis=-1) == labels[..., 0]
    return outputs.argmax(axis=-1) == labels.argmax(axis=-1) if _shares(labels) else None


def _shares(labels):
    """One-hot, or smoothed: every row adds up to one."""
    return (labels >= 0).all() and np.allclose(labels.sum(axis=-1), 1, atol=1e-3)
