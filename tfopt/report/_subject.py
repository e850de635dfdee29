"""A Keras model that is being measured."""

import contextlib
import functools

import numpy as np

from .._check import require
from .._keras import compile_arguments, fresh_inputs, graph_of, is_wrapped, keras, producer, tf
from . import _macs, _traced
from ._size import packed_size


def is_lite(model):
    """Is it a `quantize.LiteModel`; asked without importing that: TFMOT would come along."""
    return _comes_from(model, "tfopt.quantize._lite")


def _comes_from(model, module):
    return any(f"{kind.__module__}.".startswith(f"{module}.") for kind in type(model).__mro__)


class Subject:
    """A Keras model that is being measured.

    Args:
      model: a built model.
      name: what its row is called.
      example: inputs of one example, None if there are no data.
    """

    def __init__(self, model, name, example):
        self.model, self.name, self.notes, self.graph = model, name, [], self.graph_in(model)
        if is_wrapped(model):
            self.notes.append("still wrapped, its masks and ranges are counted: measure what strip or convert returns")
        self.weights = [np.asarray(w) for w in model.weights]
        require(all(np.isfinite(w.astype("float32")).all() for w in self.weights), "a model needs finite weights",
                model=name, do="It diverged: train it again with a smaller learning rate.")
        if example is not None and self.graph is not None:
            _require_fit(self.graph, example, name)
        self.example = example if example is not None else _zeros(self.graph)
        if self.example is None:
            self.notes.append("latency and macs need `data`: the input's shape is not fixed")

    @staticmethod
    def graph_in(model):
        """The graph of a model, None of a subclassed one."""
        return graph_of(model)

    @property
    def output_names(self):
        return [] if self.graph is None else list(getattr(self.graph, "output_names", []))

    @functools.cached_property
    def logits(self):
        """Is the one output a logit (True) or a probability (False); None if model and loss do not say."""
        outputs = [] if self.graph is None else keras.tree.flatten(self.graph.output)
        if len(outputs) == 1 and getattr(producer(outputs[0])[0], "activation", None) is keras.activations.sigmoid:
            return False
        loss = compile_arguments(self.model).get("loss") if self.model.compiled else None
        if isinstance(loss, dict | list | tuple) and len(loss) == 1:
            loss, = loss.values() if isinstance(loss, dict) else loss
        if loss in ("binary_crossentropy", "binary_focal_crossentropy", keras.losses.binary_crossentropy,
                    keras.losses.binary_focal_crossentropy):
            return False
        return getattr(loss, "from_logits", None)

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
        """{column: value} of size and work."""
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
        """`() -> None`: one example through the compiled graph, until its output is there; None without an example."""
        if self.example is None:
            return None
        run, inputs = self._compiled(1), keras.tree.map_structure(tf.constant, self.example)
        return lambda: [np.asarray(y) for y in keras.tree.flatten(run(inputs))]

    @contextlib.contextmanager
    def unchanged(self):
        """Puts back what running a model may move: random states, the memory of stateful layers, counters."""
        trained = {id(w) for w in self.model.trainable_weights}
        states = [(v, np.asarray(v).copy()) for v in self.model.variables if id(v) not in trained]
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


def _zeros(graph):
    """One example of zeros, or None where the shape is not known."""
    inputs = fresh_inputs(graph) if graph is not None else None
    if inputs is None or any(None in x.shape[1:] for x in keras.tree.flatten(inputs)):
        return None
    return keras.tree.map_structure(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), inputs)


def _require_fit(graph, example, name):
    wanted = [tuple(x.shape[1:]) for x in graph.inputs]
    given = [tuple(x.shape[1:]) for x in keras.tree.flatten(example)]
    fits = len(wanted) == len(given) and all(
        len(w) == len(g) and all(a in (None, b) for a, b in zip(w, g, strict=True))
        for w, g in zip(wanted, given, strict=True))
    require(fits, "x must have the shape of the model's inputs", model=name, inputs=wanted, x=given,
            do="Batches are counted in front: (examples, *shape).")
