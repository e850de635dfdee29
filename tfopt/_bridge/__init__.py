"""The bridge: a Keras 3 graph becomes its tf_keras twin and comes back as a Keras 3 model."""

import re
import zlib

import tf_keras

from .. import _models
from .._check import require
from .._keras import graph_of, keras, producer, same_randomness, uses
from . import translate
from .embed import Embedded
from .parity import require_equal

__all__ = ["copy_back", "embedded", "is_embedded", "legacy_name", "to_legacy"]


def legacy_name(path):
    """The name of the tf_keras layer for the Keras 3 layer at `path`, e.g. `outer.inner` for `outer/inner`.

    A name that TensorFlow would not take as a scope is spelled otherwise and marked with a checksum of its own.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w-]*(/[\w-]+)*", path, re.ASCII):
        return path.replace("/", ".")
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', path).strip('_') or 'layer'}.{zlib.crc32(path.encode()):08x}"


def is_embedded(layer):
    """Whether a layer of a twin carries its original as a black box."""
    return isinstance(layer, Embedded)


def embedded(legacy):
    """The layers of a twin that are carried as black boxes."""
    return [layer for layer in legacy.layers if is_embedded(layer)]


def to_legacy(model, caller="to_legacy", dtype=None):
    """The tf_keras twin of a built Functional or Sequential Keras 3 model, with its weights.

    Args:
      model: it is only read.
      caller: public name of the function that was called, for the sentences.
      dtype: name of a floating dtype policy for all layers in place of their own.

    Raises:
      ValueError: `model` is no graph, or a layer of the twin computes something else than its original.
    """
    graph = _models.require_graph(model, caller)
    with same_randomness(), _models.scope_of(model):
        build = _Builder(model, caller, dtype)
        inputs = keras.tree.map_structure(build.input, graph.input)
        twin = tf_keras.Model(inputs, run(graph, inputs, build.use), name=legacy_name(model.name))
        build.copy_weights()
        require_equal(model, graph, twin, build.twins, caller, dtype)
    return twin


def copy_back(legacy, model, caller="copy_back"):
    """A new Keras 3 model like `model` with the weights of `legacy`, a twin of it or a rewritten twin.

    Raises:
      ValueError: a layer with weights has no counterpart of its name and shapes in `legacy`.
    """
    new, twins = _models.copy(model), {layer.name: layer for layer in legacy.layers}
    lost = []
    for path, layer in _models.layers(new).items():
        if layer.variables and not _take(layer, twins.get(legacy_name(path))):
            lost.append(path)
    require(not lost, f"{caller} needs the twin of every layer with weights", missing=lost)
    return new


def _take(layer, twin):
    """Gives `layer` the weights of its twin; False if they are not there or do not fit."""
    if is_embedded(twin):
        twin = twin.inner
        sources, targets = twin.variables, layer.variables
    elif twin is None:
        return not layer.weights
    else:
        sources, targets = twin.weights, layer.weights
    if [tuple(v.shape) for v in sources] != [tuple(v.shape) for v in targets]:
        return False
    for source, target in zip(sources, targets, strict=True):
        target.assign(keras.ops.convert_to_numpy(source))
    return True


def run(graph, inputs, use):
    """Runs `inputs` through `graph` and the graphs in it: `use(op, args, kwargs, prefix) -> outputs` at each step."""

    def visit(graph, inputs, prefix):
        values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        for op, args, kwargs, outputs in uses(graph):
            filled = keras.tree.map_structure(lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x,
                                              (args, kwargs))
            if graph_of(op) is not None:
                result = visit(graph_of(op), filled[0], f"{prefix}{op.name}/")
            else:
                result = use(op, *filled, (args, kwargs), prefix)
            values.update(zip(map(id, outputs), keras.tree.flatten(result), strict=True))
        return keras.tree.map_structure(lambda x: values[id(x)], graph.output)

    return visit(graph, inputs, "")


class _Builder:
    """Makes the twin of each layer and operation at its first use."""

    def __init__(self, model, caller, dtype):
        self.caller, self.dtype = caller, dtype
        self.names = {id(layer): legacy_name(path) for path, layer in _models.layers(model).items()}
        self.taken = set(self.names.values())
        self.twins = {}                                     # id of a layer or operation -> (it, its twin)

    def input(self, x):
        layer = producer(x)[0]
        return tf_keras.Input(batch_shape=x.shape, dtype=x.dtype, sparse=bool(x.sparse),
                              name=self.names.get(id(layer)) or legacy_name(layer.name))

    def use(self, op, args, kwargs, symbols, prefix):
        if id(op) not in self.twins:
            self.twins[id(op)] = op, self.make(op, symbols, prefix)
        twin = self.twins[id(op)][1]
        if is_embedded(twin):
            tensors = [value for value, x in zip(*map(keras.tree.flatten, ((args, kwargs), symbols)), strict=True)
                       if isinstance(x, keras.KerasTensor)]
            return twin(tensors[0] if len(tensors) == 1 else tensors)
        return twin(*args, **kwargs)

    def make(self, op, symbols, prefix):
        name = self.name(op, prefix)
        twin = translate.twin(op, name, self.dtype) if isinstance(op, keras.layers.Layer) else None
        return twin or Embedded.of(op, *symbols, name=name, dtype=self.dtype)

    def name(self, op, prefix):
        """That of a layer is fixed by its path; an operation takes one that is free."""
        if id(op) in self.names:
            return self.names[id(op)]
        name, number = legacy_name(f"{prefix}{op.name}"), 0
        while name in self.taken:
            number += 1
            name = legacy_name(f"{prefix}{op.name}-{number}")
        self.taken.add(name)
        return name

    def copy_weights(self):
        for op, twin in self.twins.values():
            if not isinstance(op, keras.layers.Layer):
                continue
            if is_embedded(twin):
                for source, target in zip(op.variables, twin.inner.variables, strict=True):
                    target.assign(source)
            elif op.weights:
                twin.set_weights(op.get_weights())
