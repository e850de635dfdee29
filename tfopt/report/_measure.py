"""What is measured of a model, and how."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _data, _models
from .._check import TEXT, Rule, Whole, checked, require
from .._keras import keras
from .._speed import latency
from .._typing import Data
from . import _quality
from ._measures import Sample
from ._score import score
from ._subject import Subject, is_lite
from ._table import Row, Table

Measures: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]
Measured: TypeAlias = "keras.Model | LiteModel"
if TYPE_CHECKING:
    from ..quantize import LiteModel

MODELS = Rule("a dict {name: model} or a list of models, not empty",
              lambda value: isinstance(value, dict | list | tuple) and len(value) > 0
              and (not isinstance(value, dict) or all(isinstance(name, str) for name in value)))


@checked(name=TEXT, runs=Whole(low=1), measures=_quality.CHOICE)
def measure(model: "keras.Model | LiteModel", data: Data | None = None, *, name: str | None = None,
            runs: int = 100, measures: Measures | None = None) -> Row:
    """Evaluation of one model: size, multiply-accumulates, latency and, on data, accuracy.

    What each column means, and how it is measured, stands under `compare`, which several models should share.

    Args:
      model: a built Keras model or a `quantize.LiteModel`.
      data: `(x, y)` as `fit` takes it; None leaves the accuracy out.
      name: what the row is called; None for the model's own name.
      runs: timed calls, >= 1.
      measures: names of measures, see `compare`.

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
    return _compare({name or _name_of(model): model}, data, "", runs, measures, "report.measure").rows[0]


@checked(models=MODELS, title=TEXT, runs=Whole(low=1), measures=_quality.CHOICE)
def compare(models: "dict[str, keras.Model | LiteModel] | list[keras.Model | LiteModel]", data: Data | None = None, *,
            title: str = "", runs: int = 100, measures: Measures | None = None) -> Table:
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

    Measures, with scikit-learn's definitions, over all classes, labels or numbers of an output:

    | task | measures |
    |---|---|
    | classes, labels | `accuracy`, `top_5_accuracy`, `balanced_accuracy`, `roc_auc` (one against the rest, mean over \
classes), `average_precision`, `log_loss`, `brier_score`, `expected_calibration_error` (15 bins of the predicted \
class' probability) |
    | two classes | `precision`, `recall`, `f1` of class 1 |
    | several | `precision_macro`, `precision_weighted`, `precision_per_class`, the same of `recall` and `f1` |
    | masks | `iou` (Jaccard index) and `dice` over all positions together: of class 1 if there are two, else the mean |
    | numbers | `mean_absolute_error`, `root_mean_squared_error`, `r2` |

    A measure `m` has the columns `m`, `m_low`, `m_high` and, of each model but the first, `m_difference` from the first
    with `m_difference_low`, `m_difference_high`, and `m_p`. Intervals are of 95%: Wilson's of shares of examples
    (accuracy, top 5, precision and recall of a class), of all others percentiles of 1,000 bootstrap samples of
    examples, drawn with seed 0 and the same for all models; of the calibration error, which is too high in a sample,
    the basic bootstrap's. `m_p` is the p-value of a paired test against the first
    model: McNemar's exact one where examples are right or wrong, else by the sign of the bootstrap's differences. What
    an output means is told by the compiled loss, a softmax or sigmoid at the end, the models beside it, else by shape
    and dtype of y; where two meanings are left, it is refused.

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
      measures: what else to measure on the data, names out of the list below; `{output: names}` for several outputs,
        of which plain names go to every output that they are defined for.

    Returns:
      A table: `.frame` (pandas), `.markdown()`, `.plot(path)`, `.rows`; prints as text, shows as HTML in a notebook.

    Raises:
      TypeError: a model is none of Keras 3.
      ValueError: a model is not built, its weights or outputs are not finite, or the data do not fit it.

    Example:
      >>> small, large = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(n), keras.layers.Dense(2)])
      ...                 for n in (2, 64))
      >>> import numpy as np
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
      McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
      https://doi.org/10.1007/BF02295996
      Guo et al., On calibration of modern neural networks (expected calibration error), 2017,
      https://arxiv.org/abs/1706.04599
    """
    return _compare(models, data, title, runs, measures, "report.compare")


def _name_of(model):
    return getattr(model, "name", None) or "model"


def _named(models):
    """{name: model}; models of one name are numbered."""
    if isinstance(models, dict):
        return models
    names = [_name_of(model) for model in models]
    return {f"{name} {names[:i].count(name) + 1}" if names.count(name) > 1 else name: model
            for i, (name, model) in enumerate(zip(names, models, strict=True))}


def _compare(models, data, title, runs, measures, caller):
    models = _named(models)
    require(measures is None or data is not None, "`measures` need `data`: (x, y)", data=data)
    _quality.require_known(measures)
    with contextlib.ExitStack() as stack:
        subjects, source = _opened(models, data, caller, stack)
        facts = {name: subject.facts() for name, subject in subjects.items()}
        speeds = latency({name: subject.call for name, subject in subjects.items() if subject.call}, runs)
        scores = {} if source is None else _scores(subjects, source, measures)
    return Table([Row(name=name, **facts[name], **speeds.get(name, {}), **scores.get(name, {})) for name in models],
                 title)


def _opened(models, data, caller, stack, argument="data"):
    """({name: subject}, the data or None); what running the models changes is put back when `stack` closes."""
    for model in models.values():
        if not is_lite(model):
            _models.require_model(model, caller)
    source = None if data is None else _data.read(data, _first_inputs(models), name=argument, targets="required")
    example = None if source is None else source.head(1).x
    subjects = {name: subject_of(model, name, example) for name, model in models.items()}
    known = next((subject.output_names for subject in subjects.values() if subject.output_names), ())
    for subject in subjects.values():
        if is_lite(subject.model):                                   # whose file does not name them
            subject.output_names = known
        stack.enter_context(subject.unchanged())
    return subjects, source


def outputs_on(models: dict[str, Measured], data: Data, caller: str, argument: str = "data") -> tuple[dict, dict, dict]:
    """({name: subject}, {name: {output: array}}, {name: {output: labels}}) of models on the same batches.

    `argument` is what the caller's own argument for `data` is called.
    """
    require(data is not None, "it needs data: (x, y)", data=data)
    with contextlib.ExitStack() as stack:
        subjects, source = _opened(models, data, caller, stack, argument)
        outputs, labels = _quality.collected(subjects, source)
    return subjects, outputs, labels


def watch(model: keras.Model, data: Data, caller: str) -> Callable[[], tuple[dict, dict, dict]]:
    """`() -> outputs_on({"": model}, data)` of a model that goes on training: its graph is traced once."""
    with contextlib.ExitStack() as stack:
        subjects, source = _opened({"": model}, data, caller, stack)

    def look():
        with contextlib.ExitStack() as stack:
            for subject in subjects.values():
                stack.enter_context(subject.unchanged())
            outputs, labels = _quality.collected(subjects, source)
        return subjects, outputs, labels

    return look


def sample_of_model(model: Measured, data: Data, caller: str, output: str | None = None) -> Sample:
    """What one output of a model says on data."""
    name = _name_of(model)
    found = _quality.samples(*outputs_on({name: model}, data, caller))[name]
    require(len(found) == 1 if output is None else output in found, "`output` must be one of the model's several",
            output=output, outputs=list(found))
    return next(iter(found.values())) if output is None else found[output]


def evaluate(model: Measured, data: Data, measures: Measures, caller: str, *,
             like: "Measured | None" = None) -> dict[str, float]:
    """{measure: value} without intervals; of several outputs {"<output>_<measure>": value}.

    For whoever asks often: `compress` and `tune`. `_measures.MEASURES[name].direction` says which way is better; `like`
    is a model with a compiled loss, which says what the outputs of another or of a file mean.
    """
    _quality.require_known(measures)
    models = {"": model} if like is None else {"": model, "like": like}
    return _quality.evaluate(*outputs_on(models, data, caller), measures)


def _first_inputs(models):
    """The inputs of the first model that says what they are, nested as it takes them."""
    for model in models.values():
        if is_lite(model):
            return model.inputs
        if (graph := Subject.graph_in(model)) is not None:
            return graph.input
    return next(filter(None, map(_data.inputs_of, models.values())), None)


def subject_of(model, name, example):
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


def _scores(subjects, source, measures):
    """{name: columns of accuracy or error, and of the measures} of all models on the same batches."""
    outputs, labels = _quality.collected(subjects, source)
    logits = [subject.logits for subject in subjects.values() if subject.logits is not None]
    found, more = {}, _quality.columns(subjects, outputs, labels, measures) if measures else {}
    for name, subject in subjects.items():
        middle = subject.logits if subject.logits is not None else logits[0] if len(set(logits)) == 1 else None
        several = len(outputs[name]) > 1
        parts = {output: score(values, labels[name][output], f"{name}, output {output}" if several else name,
                               None if several else middle) for output, values in outputs[name].items()}
        own = more.get(name, {})
        found[name] = {"outputs": {output: part | own.get(output, {}) for output, part in parts.items()}} if several \
            else {**next(iter(parts.values())), "measures": next(iter(own.values()), {})}
    return found
