"""What the numbers of an output mean: the task, and whether they are logits or probabilities."""

import dataclasses

import numpy as np

from .._check import refusal, require
from .._keras import compile_arguments, keras, producer
from ._measures import BINARY, MULTICLASS, MULTILABEL, REGRESSION, Sample
from ._score import fitted

LABELED = "labels"                                                   # one output or several, each 0 or 1
_LOSSES = {
    LABELED: "binarycrossentropy binaryfocalcrossentropy",
    MULTICLASS: "categoricalcrossentropy categoricalfocalcrossentropy categoricalgeneralizedcrossentropy "
                "sparsecategoricalcrossentropy",
    REGRESSION: "meansquarederror meanabsoluteerror meanabsolutepercentageerror meansquaredlogarithmicerror huber "
                "logcosh poisson",
}
_TASK_OF = {name: task for task, names in _LOSSES.items() for name in names.split()}
_DO = ("The compiled loss decides: call model.compile(loss=...), with `from_logits` as it is; of a LiteRT file that of "
       "the Keras models beside it.")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of an output before its numbers are looked at; None: nothing.

    Args:
      task: LABELED, "multiclass" or "regression".
      logits: True for logits, False for probabilities.
    """

    task: str | None = None
    logits: bool | None = None


def kinds_of(model, graph):
    """[Kind] of the outputs of a Keras model, in their order."""
    outputs = [] if graph is None else keras.tree.flatten(graph.output)
    losses = _losses(model, list(getattr(graph, "output_names", [])))
    found = []
    for loss, output in zip(losses, outputs or [None] * len(losses), strict=True):
        activation = None if output is None else activation_of(output)
        names = [loss.__name__] if hasattr(loss, "__name__") else [kind.__name__ for kind in type(loss).__mro__]
        task = next((_TASK_OF[name] for name in (name.lower().replace("_", "") for name in names)
                     if name in _TASK_OF), None)
        known = task if task in (LABELED, MULTICLASS) and activation is None else None
        logits = getattr(loss, "from_logits", False) if known else None
        if activation is not None:
            task, logits = (MULTICLASS if activation == "softmax" else task or LABELED), False
        found.append(Kind(task, logits))
    return found


def _losses(model, names):
    """The compiled loss of each output, None where there is none."""
    loss = compile_arguments(model).get("loss") if model.compiled else None
    if isinstance(loss, dict):
        loss = [loss.get(name) for name in names] if names else list(loss.values())
    losses = list(loss) if isinstance(loss, list | tuple) else [loss] * max(1, len(names))
    return [keras.losses.get(item) if isinstance(item, str) else item for item in losses]


def activation_of(output):
    """"softmax" or "sigmoid" if that is what made a tensor of a graph, else None."""
    name = activation_of_layer(producer(output)[0])
    return name if name in ("softmax", "sigmoid") else None


def activation_of_layer(layer):
    """The name of its activation, None if it has none."""
    return "softmax" if isinstance(layer, keras.layers.Softmax) else getattr(
        getattr(layer, "activation", None), "__name__", None)


def sample_of(labels, outputs, kind, name):
    """The `Sample` of float32 `outputs` and `labels`, examples first."""
    whole = labels.dtype.kind in "biu"
    outputs, labels = fitted(outputs.astype("float64"), labels, name)
    n, width = len(outputs), outputs.shape[-1]
    task = kind.task or _told_by(labels, outputs, whole, name)
    if task == REGRESSION:
        require(labels.shape == outputs.shape, "numbers must have the shape of the outputs", model=name,
                labels=labels.shape, outputs=outputs.shape, do=_DO)
        return Sample(task, labels.reshape(n, -1), outputs.reshape(n, -1))
    if task == MULTICLASS:
        require(width > 1, "a model of classes needs an output for each", model=name, outputs=outputs.shape, do=_DO)
        labels = labels[..., 0] if labels.shape[-1] == 1 else labels.argmax(axis=-1)
        known = (labels == labels.round()) & (labels >= 0) & (labels < width)
        require(known.all(), "labels must be whole numbers below the number of outputs", model=name, outputs=width,
                wrong=labels[~known][:3].tolist())
    else:
        require(labels.shape == outputs.shape and np.isin(labels, (0, 1)).all(), "labels must be 0 or 1, one an output",
                model=name, labels=labels.shape, outputs=outputs.shape, do=_DO)
    logits = kind.logits if kind.logits is not None else _are_logits(outputs, task, name)
    require(logits or (outputs.min() >= 0 and outputs.max() <= 1), "probabilities must be from 0 to 1", model=name,
            outputs=[float(outputs.min()), float(outputs.max())], do=_DO)
    labels = labels.reshape(n, -1) if task == MULTICLASS or width == 1 else labels.reshape(n, -1, width)
    outputs = outputs.reshape(n, -1) if width == 1 else outputs.reshape(n, -1, width)
    return classified(labels.astype("int64"), outputs, task, logits, name)


def classified(labels, raw, task, logits, name):
    """The Sample of labels [n, P] or [n, P, L] and outputs [n, P], [n, P, K] or [n, P, L]."""
    if task != MULTICLASS:
        found = _sigmoid(raw) if logits else raw
        predicted = (raw > (0. if logits else .5)).astype("int64")
        return Sample(BINARY if labels.ndim == 2 else MULTILABEL, labels, predicted, found, raw)
    if logits:
        grown = np.exp(raw - raw.max(axis=-1, keepdims=True))
        found = grown / grown.sum(axis=-1, keepdims=True)
    else:
        total = raw.sum(axis=-1, keepdims=True)
        require((total > 0).all(), "the probabilities of an example must not all be 0", model=name,
                examples=int((total == 0).sum()), do="Convert the model without its softmax, or not to integers.")
        found = raw / total                                          # float32 and integers miss 1 by a little
    predicted = raw.argmax(axis=-1)
    if raw.shape[-1] > 2:
        return Sample(task, labels, predicted, found, found)
    return Sample(BINARY, labels, predicted, found[..., 1], raw[..., 1] - raw[..., 0] if logits else found[..., 1])


def _sigmoid(z):
    half = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, half) / (1 + half)


def _told_by(labels, outputs, whole, name):
    """The task by shape, dtype (`whole`: integers or bool) and values; refused where two are possible."""
    if labels.shape != outputs.shape:
        return MULTICLASS                                            # one number an example, several outputs
    ones = labels.shape[-1] > 1 and (labels >= 0).all() and np.allclose(labels.sum(axis=-1), 1, atol=1e-3)
    if np.isin(labels, (0, 1)).all() and (ones or whole):
        return MULTICLASS if ones else LABELED
    require(not ones and not np.isin(labels, (0, 1)).all(), "these labels may be classes or numbers", model=name,
            labels=labels.shape, do=_DO)
    return REGRESSION


def _are_logits(outputs, task, name):
    """By their range, for a model that does not say."""
    if outputs.min() < 0 or outputs.max() > 1:
        return True
    sums = outputs.sum(axis=-1)
    if task == MULTICLASS:
        return not np.allclose(sums, 1, atol=.01)
    raise refusal("outputs between 0 and 1 may be logits or probabilities", model=name, do=_DO,
                  outputs=[float(outputs.min()), float(outputs.max())])
