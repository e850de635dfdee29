"""What is measured of a model, and how."""

import contextlib
import functools
import operator
import time

import numpy as np

from .. import _models
from .._check import require, require_number
from .._keras import fresh_inputs, graph_of, keras, tf
from . import _macs, _traced
from ._score import score
from ._size import packed_size
from ._table import Row, Table

BATCH = 256
WARM_UP = 5


def measure(model, data=None, *, name=None, runs=100):
    """Measures one model: size, work, speed and, on data, accuracy.

    What each column means, and how it is measured, stands under `compare`, which several models should share.

    Args:
      model: a built Keras model or a `quantize.LiteModel`.
      data: `(x, y)` arrays or a tf.data.Dataset of such batches; None leaves the accuracy out.
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
    return _compare({name or getattr(model, "name", "model"): model}, data, "", runs, "report.measure").rows[0]


def compare(models, data=None, *, title="", runs=100):
    """Measures models side by side, in one table.

    | column | meaning |
    |---|---|
    | `parameters` | numbers in `model.weights`, statistics of normalisation included; of a LiteModel: its kernels |
    | `nonzeros` | those that are not 0 |
    | `macs` | multiply-accumulates for one example: products of matrices, convolutions, recurrences, attention |
    | `bytes` | the weights' arrays end to end, as in memory, without a file format; the whole file of a LiteModel |
    | `gzip` | the same bytes through gzip at its default level, 6 |
    | `integer_ops` | share of a LiteModel's operations that compute in integers |
    | `latency_ms` | median milliseconds for one example; `latency_low_ms`, `latency_high_ms`: quartiles |
    | `accuracy` | share of right answers; `low`, `high`: Wilson's 95% interval |
    | `mae` | mean absolute error, where the labels are no classes; `low`, `high`: its 95% interval (normal) |
    | `examples` | how many the accuracy or error was seen on |
    | `notes` | what could not be measured, and why |

    Timed calls take turns between the models, so that a busy moment hits all of them alike. A Keras model runs as a
    compiled graph with TensorFlow's threads, a LiteModel in LiteRT with one thread. The models are left as they were,
    random states included.

    Args:
      models: `{name: model}`, not empty: built Keras models and `quantize.LiteModel`s. Functional and Sequential models
        are measured whole; in a subclassed one the multiply-accumulates cannot be counted, which stands in the notes.
      data: `(x, y)` arrays or a tf.data.Dataset of such batches, finite and not empty. Labels may be integers (also
        one per position), one-hot, 0/1 for a model with one output (a probability, or a logit if any answer leaves
        0..1), or 0/1 for each of many outputs (then all must be right). Any others are taken as numbers: `mae`.
      title: stands above the table and in its picture: what data this is.
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


def _compare(models, data, title, runs, caller):
    require(isinstance(models, dict) and models, f"{caller} needs {{name: model}}, not empty", models=models)
    require_number("runs", runs, low=1, integer=True)
    batches = _batches(data, caller)
    example = _first(batches) if batches else None
    subjects = {name: _subject(model, name, example, caller) for name, model in models.items()}
    with contextlib.ExitStack() as stack:
        for subject in subjects.values():
            stack.enter_context(subject.unchanged())
        facts = {name: subject.facts() for name, subject in subjects.items()}
        speeds = _latency({name: subject.call for name, subject in subjects.items() if subject.call}, runs)
        scores = _scores(subjects, batches, caller) if batches else {}
    return Table([Row(name=name, **facts[name], **speeds.get(name, {}), **scores.get(name, {})) for name in models],
                 title)


def _subject(model, name, example, caller):
    if _comes_from(model, "tfopt.quantize._lite"):
        from ._lite import LiteSubject
        return LiteSubject(model)
    return Subject(model, name, example, caller)


def _comes_from(model, module):
    """Is of a class of `module`, without importing that: TFMOT would come along."""
    return any(f"{kind.__module__}.".startswith(f"{module}.") for kind in type(model).__mro__)


class Subject:
    """A Keras model that is being measured."""

    def __init__(self, model, name, example, caller):
        _models.require_model(model, caller)
        self.model, self.name, self.notes = model, name, []
        bridged = _comes_from(model, "tfopt._bridge")
        self.graph = graph = graph_of(model.base if bridged else model)
        if bridged or _comes_from(model, "tfopt.quantize._train"):
            self.notes.append("still wrapped, its masks and ranges are counted: measure what strip or convert returns")
        self.weights = [np.asarray(w) for w in model.weights]
        require(all(np.isfinite(w.astype("float32")).all() for w in self.weights), f"{caller} needs finite weights",
                model=name, do="It diverged: train it again with a smaller learning rate.")
        if example is not None and graph is not None:
            _require_fit(graph, example, name, caller)
        self.example = example if example is not None else _zeros(graph)
        if self.example is None:
            self.notes.append("latency and macs need `data`: the input's shape is not fixed")

    @functools.cached_property
    def macs(self):
        """(multiply-accumulates or None, names of what they leave out)."""
        if self.example is None:
            return None, ()
        if self.graph is not None:
            return _macs.count(self.graph, self.example)
        total, left = _traced.count(lambda x: self.model(x, training=False), self.example)
        return total, (type(self.model).__name__,) if left else ()

    def facts(self):
        macs, unknown = self.macs
        notes = [*self.notes, *(f"macs leave out {name}: a loop or an unknown shape" for name in unknown)]
        raw, packed = packed_size(self.weights)
        return dict(parameters=sum(w.size for w in self.weights), macs=macs, bytes=raw, gzip=packed,
                    nonzeros=sum(int(np.count_nonzero(w)) for w in self.weights), notes=tuple(notes))

    @functools.cached_property
    def predict(self):
        """Compiled `batch -> outputs` for any size of batch."""
        return self._compiled(None)

    @functools.cached_property
    def call(self):
        """`() -> None`: one example through the compiled graph, until its answer is there; None without an example."""
        if self.example is None:
            return None
        run, inputs = self._compiled(1), keras.tree.map_structure(tf.constant, self.example)
        return lambda: [np.asarray(y) for y in keras.tree.flatten(run(inputs))]

    @contextlib.contextmanager
    def unchanged(self):
        """Puts back what running a model may move: random states and the memory of stateful layers."""
        weights = {id(w) for w in self.model.weights}
        states = [(v, np.asarray(v).copy()) for v in self.model.variables if id(v) not in weights]
        try:
            yield
        finally:
            for variable, value in states:
                variable.assign(value)

    def _compiled(self, batch):
        """`inputs -> outputs`, traced at once: of models that are traced by their first call TensorFlow warns."""
        spec = keras.tree.map_structure(lambda x: tf.TensorSpec([batch, *x.shape[1:]], x.dtype), self.example)
        run = tf.function(lambda x: self.model(x, training=False), input_signature=[spec]).get_concrete_function()
        return lambda x: run(*map(tf.convert_to_tensor, keras.tree.flatten(x)))


def facts_of(model, example, *, runs, caller):
    """({column: value} of size, work and, if there are `runs`, latency; names of what the multiply-accumulates leave
    out) of a model, for a limit or an objective."""
    subject = Subject(model, model.name, example, caller)
    with subject.unchanged():
        facts = subject.facts()
        speed = _latency({"": subject.call}, runs).get("", {}) if runs and subject.call else {}
    return {**facts, **speed}, subject.macs[1]


def _latency(calls, runs):
    """{name: median and quartiles in ms}, the calls taking turns."""
    seconds = {name: [] for name in calls}
    for turn in range(-WARM_UP, runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    columns = "latency_low_ms", "latency_ms", "latency_high_ms"
    return {name: dict(zip(columns, map(float, 1e3 * np.quantile(spent, [.25, .5, .75])), strict=True))
            for name, spent in seconds.items()}


def _scores(subjects, batches, caller):
    labels, outputs = [], {name: [] for name in subjects}
    for x, y in batches():
        labels.append(np.asarray(y))
        for name, subject in subjects.items():
            answers = keras.tree.flatten(subject.predict(x))
            require(len(answers) == 1, f"{caller} scores models with one output", model=name, outputs=len(answers),
                    do="Leave `data` out, or pass keras.Model(model.input, one_output).")
            outputs[name].append(np.asarray(answers[0], "float32"))
    labels = np.concatenate(labels)
    return {name: score(np.concatenate(parts), labels, name, caller) for name, parts in outputs.items()}


def _batches(data, caller):
    """`() -> iterator of (x, y) batches`, or None without data."""
    if data is None:
        return None
    if isinstance(data, tf.data.Dataset):
        require(isinstance(data.element_spec, tuple) and len(data.element_spec) == 2,
                f"{caller}: `data` must yield (x, y)", element_spec=data.element_spec,
                do="Use data.map to leave the rest out.")
        require(data.cardinality() != tf.data.INFINITE_CARDINALITY, f"{caller}: `data` must end",
                data="an infinite dataset", do="Use data.take(n).")
        require(next(iter(data), None) is not None, f"{caller}: `data` must not be empty", data="0 batches")
        return lambda: iter(data)
    require(isinstance(data, tuple | list) and len(data) == 2,
            f"{caller}: `data` must be (x, y) arrays or a tf.data.Dataset", data=type(data).__name__)
    x, y = keras.tree.map_structure(np.asarray, data[0]), np.asarray(data[1])
    lengths = {len(a) if a.ndim else 0 for a in [*keras.tree.flatten(x), y]}
    require(len(lengths) == 1, f"{caller}: x and y must be of one length", lengths=sorted(lengths))
    count = lengths.pop()
    require(count, f"{caller}: `data` must not be empty", x=np.shape(data[0]), y=y.shape)
    parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    return lambda: ((keras.tree.map_structure(operator.itemgetter(part), x), y[part]) for part in parts)


def _first(batches):
    return keras.tree.map_structure(lambda a: np.asarray(a)[:1], next(batches())[0])


def _zeros(graph):
    """One example of zeros, or None where the shape is not known."""
    inputs = fresh_inputs(graph) if graph is not None else None
    if inputs is None or any(None in x.shape[1:] for x in keras.tree.flatten(inputs)):
        return None
    return keras.tree.map_structure(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), inputs)


def _require_fit(graph, example, name, caller):
    wanted = [tuple(x.shape[1:]) for x in graph.inputs]
    given = [tuple(x.shape[1:]) for x in keras.tree.flatten(example)]
    fits = len(wanted) == len(given) and all(
        len(w) == len(g) and all(a in (None, b) for a, b in zip(w, g, strict=True))
        for w, g in zip(wanted, given, strict=True))
    require(fits, f"{caller}: x must have the shape of the model's inputs", model=name, inputs=wanted, x=given,
            do="Batches are counted in front: (examples, *shape).")
