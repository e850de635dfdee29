"""What is measured of a model, and how."""

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _data, _models
from .._check import TEXT, Rule, Whole, checked, require
from .._keras import keras
from .._typing import Data
from ._score import score
from ._speed import latency
from ._subject import Subject, is_lite
from ._table import Row, Table

if TYPE_CHECKING:
    from ..quantize import LiteModel

BATCH = 256
MODELS = Rule("a dict {name: model} or a list of models, not empty",
              lambda value: isinstance(value, dict | list | tuple) and len(value) > 0
              and (not isinstance(value, dict) or all(isinstance(name, str) for name in value)))


@checked(name=TEXT, runs=Whole(low=1))
def measure(model: "keras.Model | LiteModel", data: Data | None = None, *, name: str | None = None,
            runs: int = 100) -> Row:
    """Evaluation of one model: size, multiply-accumulates, latency and, on data, accuracy.

    What each column means, and how it is measured, stands under `compare`, which several models should share.

    Args:
      model: a built Keras model or a `quantize.LiteModel`.
      data: `(x, y)` as `fit` takes it; None leaves the accuracy out.
      name: what the row is called; None for the model's own name.
      runs: timed calls, >= 1.

    Returns:
      A row whose attributes are the columns of `compare`.

    Raises:
      ValueError: see `compare`.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
      >>> row = measure(model, runs=1)
      >>> row.parameters, row.nonzeros, row.macs, row.bytes        # 4*8 + 8 + 8*3 + 3; biases start at zero
      (67, 56, 56, 268)
    """
    return _compare({name or _name_of(model): model}, data, "", runs, "report.measure").rows[0]


@checked(models=MODELS, title=TEXT, runs=Whole(low=1))
def compare(models: "dict[str, keras.Model | LiteModel] | list[keras.Model | LiteModel]", data: Data | None = None, *,
            title: str = "", runs: int = 100) -> Table:
    """Evaluation of models side by side: size, multiply-accumulates, latency and accuracy in one table.

    | column | meaning |
    |---|---|
    | `parameters` | numbers in `model.weights`, statistics of normalization included; of a LiteModel: its kernels |
    | `nonzeros` | those that are not 0 |
    | `macs` | multiply-accumulates for one example: products of matrices, convolutions, recurrences, attention |
    | `bytes` | the weights' arrays end to end, as in memory, without a file format; the whole file of a LiteModel |
    | `gzip` | the same bytes through gzip at its default level, 6 |
    | `integer_ops` | share of a LiteModel's operations that compute in integers |
    | `latency_ms` | median milliseconds for one example; `latency_low_ms`, `latency_high_ms`: quartiles |
    | `accuracy` | share of right predictions; `low`, `high`: Wilson's 95% interval |
    | `mae` | mean absolute error, where the labels are no classes; `low`, `high`: its 95% interval (normal) |
    | `examples` | how many the accuracy or error was seen on |
    | `notes` | what could not be measured, and why |

    Where a model has several outputs, accuracy or error, interval and examples stand in columns of each output:
    `<output>_accuracy`, `<output>_low` and so on, also in `row.outputs`.

    Timed calls take turns between the models, so that a busy moment hits all of them alike, and follow untimed ones, so
    that each model is warm. A Keras model runs as a compiled graph with TensorFlow's threads, a LiteModel in LiteRT
    with one thread. The models are left as they were, random states included.

    Args:
      models: `{name: model}` or a list of models, which are called by their names: built Keras models and
        `quantize.LiteModel`s. In a subclassed model the multiply-accumulates are counted on `data`.
      data: `(x, y)` as `fit` takes it: arrays, tables, dicts or lists of them for several inputs and outputs, a
        tf.data.Dataset or PyDataset of batches; sample weights are not used. Labels may be integers (also one per
        position), one-hot, 0/1 for a model with one output, or 0/1 for each of many outputs (then all must be right).
        Whether one output is a logit (threshold 0) or a probability (0.5) says the compiled loss, else a sigmoid at the
        end, else the Keras models beside it, else its range. Any other labels are taken as numbers: `mae`.
      title: stands above the table and in its figure: what data this is.
      runs: timed calls of each model, >= 1.

    Returns:
      A table: `.frame` (pandas), `.markdown()`, `.plot(path)`, `.rows`; prints as text, shows as HTML in a notebook.

    Raises:
      TypeError: a model is none of Keras 3.
      ValueError: a model is not built, its weights or outputs are not finite, or the data do not fit it.

    Example:
      >>> small, large = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(n), keras.layers.Dense(2)])
      ...                 for n in (2, 64))
      >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
      >>> table = compare({"small": small, "large": large}, (x, x[:, 0] > 0), runs=1)
      >>> table.frame[["parameters", "macs", "examples"]]
             parameters  macs  examples
      model
      small          16    12       100
      large         450   384       100

    Reference:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927.
      https://doi.org/10.1080/01621459.1927.10502953
    """
    return _compare(models, data, title, runs, "report.compare")


def _name_of(model):
    return getattr(model, "name", None) or "model"


def _named(models):
    """{name: model}; models of one name are numbered."""
    if isinstance(models, dict):
        return models
    names = [_name_of(model) for model in models]
    return {f"{name} {names[:i].count(name) + 1}" if names.count(name) > 1 else name: model
            for i, (name, model) in enumerate(zip(names, models, strict=True))}


def _compare(models, data, title, runs, caller):
    models = _named(models)
    for model in models.values():
        if not is_lite(model):
            _models.require_model(model, caller)
    source = None if data is None else _data.read(data, _first_inputs(models), targets="required")
    example = None if source is None else source.head(1).x
    subjects = {name: _subject(model, name, example) for name, model in models.items()}
    with contextlib.ExitStack() as stack:
        for subject in subjects.values():
            stack.enter_context(subject.unchanged())
        facts = {name: subject.facts() for name, subject in subjects.items()}
        speeds = latency({name: subject.call for name, subject in subjects.items() if subject.call}, runs)
        scores = {} if source is None else _scores(subjects, source)
    return Table([Row(name=name, **facts[name], **speeds.get(name, {}), **scores.get(name, {})) for name in models],
                 title)


def _first_inputs(models):
    """The inputs of the first model that says what they are, nested as it takes them."""
    for model in models.values():
        if is_lite(model):
            return model.inputs
        if (graph := Subject.graph_in(model)) is not None:
            return graph.input
    return None


def _subject(model, name, example):
    if is_lite(model):
        from ._lite import LiteSubject
        return LiteSubject(model)
    return Subject(model, name, example)


def facts_of(model: keras.Model, example: Any, *, runs: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """({column: value} of size, work and, if there are `runs`, latency; what the multiply-accumulates leave out)."""
    subject = Subject(model, model.name, example)
    with subject.unchanged():
        facts = subject.facts()
        speed = latency({"": subject.call}, runs)[""] if runs and subject.call else {}
    return {**facts, **speed}, subject.macs[1]


def _scores(subjects, source):
    """{name: columns of accuracy or error} of all models on the same batches."""
    labels, outputs = {}, {name: {} for name in subjects}
    for x, y, _ in source.batches(BATCH):
        for name, subject in subjects.items():
            for output, values in _by_output(subject.predict(x), subject.output_names).items():
                outputs[name].setdefault(output, []).append(np.asarray(values, "float32"))
            for output, values in _by_output(y, subject.output_names or list(outputs[name])).items():
                labels.setdefault((name, output), []).append(np.asarray(values))
    logits = [subject.logits for subject in subjects.values() if subject.logits is not None]
    found = {}
    for name, subject in subjects.items():
        middle = subject.logits if subject.logits is not None else logits[0] if len(set(logits)) == 1 else None
        parts = _scores_of(name, outputs[name], {out: rows for (of, out), rows in labels.items() if of == name}, middle)
        found[name] = next(iter(parts.values())) if len(parts) == 1 else {"outputs": parts}
    return found


def _scores_of(name, outputs, labels, logits):
    if len(outputs) == len(labels) == 1:
        labels = dict(zip(outputs, labels.values(), strict=True))
    require(set(labels) == set(outputs), "y must hold labels for each output of the model", model=name,
            outputs=sorted(outputs), labels=sorted(labels), do="Pass y as a dict by output, or a list in their order.")
    several = len(outputs) > 1
    return {output: score(np.concatenate(parts), np.concatenate(labels[output]),
                          f"{name}, output {output}" if several else name, None if several else logits)
            for output, parts in outputs.items()}


def _by_output(values, names):
    """{output: array}: a dict as it is, a list by the names of the outputs."""
    if isinstance(values, dict):
        return {key: part for key, part in values.items() if part is not None}
    parts = list(values) if isinstance(values, list | tuple) else [values]
    known = names if len(names) == len(parts) else [f"output_{i}" for i in range(len(parts))]
    return dict(zip(known, parts, strict=True))
