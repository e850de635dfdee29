"""Walks a Keras 3 graph and makes the tf_keras counterpart of each layer and operation in it."""

import re
import zlib

import tf_keras

from .. import _models
from .._check import refusal, require
from .._keras import graph_of, keras, mask_of, parts_of, producer, uses_for
from . import translate
from .embed import Embedded


def legacy_name(path):
    """The name of the tf_keras layer for the Keras 3 layer at `path`, e.g. `outer.inner` for `outer/inner`.

    A name that TensorFlow would not take as a scope is spelled otherwise and marked with a checksum of its own.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w-]*(/[\w-]+)*", path, re.ASCII):
        return path.replace("/", ".")
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', path).strip('_') or 'layer'}.{zlib.crc32(path.encode()):08x}"


def is_embedded(layer):
    """Whether a layer of a counterpart carries its original as a black box."""
    return isinstance(layer, Embedded)


def run(graph, inputs, use, masks=False):
    """Runs `inputs` through `graph` and the graphs in it: `use(op, given, symbols, prefix) -> outputs` at each step.

    `given` is `(args, kwargs)` of the operation, `symbols` the same with the KerasTensors of the graph. What no output
    of the whole depends on is left out. `masks` as in `uses_for`.
    """

    def visit(graph, inputs, prefix, wanted):
        steps, needed = uses_for(graph, wanted, masks)
        values = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for op, args, kwargs, outputs in steps:
            given = keras.tree.map_structure(lambda x: values.get(id(x)) if isinstance(x, keras.KerasTensor) else x,
                                             (args, kwargs))
            inner = graph_of(op)
            if inner is None:
                results = keras.tree.flatten(use(op, given, (args, kwargs), prefix))
            else:
                ends = [x for x, y in zip(inner.outputs, outputs, strict=True) if id(y) in needed]
                found = visit(inner, enter(op, given, (args, kwargs), prefix), f"{prefix}{op.name}/", ends)
                results = [found.get(id(x)) for x in inner.outputs]
            values.update(zip(map(id, outputs), results, strict=True))
        return values

    def enter(op, given, symbols, prefix):
        """The inputs of a nested graph, in the dtypes it declares."""
        given, symbols, starts = keras.tree.flatten(given), keras.tree.flatten(symbols), graph_of(op).inputs
        require(len(given) == len(starts), "a nested model must be called with its inputs alone", model=op.name,
                do="Let the masks of its inputs come from Masking or Embedding layers.")
        for x, symbol, start in zip(given, symbols, starts, strict=True):
            if x is None or symbol.dtype == start.dtype or ("float" in symbol.dtype and "float" in start.dtype):
                yield x
            else:
                cast = producer(keras.ops.cast(symbol, start.dtype))[0]
                yield use(cast, ((x,), {}), ((symbol,), {}), f"{prefix}{op.name}/")

    values = visit(graph, keras.tree.flatten(inputs), "", graph.outputs)
    return keras.tree.map_structure(lambda x: values[id(x)], graph.output)


def in_use(graph, wanted):
    """The ids of the operations in `graph`, and in the graphs in it, that the outputs `wanted` depend on."""
    steps, needed = uses_for(graph, wanted)
    found = set()
    for op, _, _, outputs in steps:
        found.add(id(op))
        if graph_of(op) is not None:
            ends = [x for x, y in zip(graph_of(op).outputs, outputs, strict=True) if id(y) in needed]
            found |= in_use(graph_of(op), ends)
    return found


class Builder:
    """Makes the counterpart of each layer and operation of a model at its first use."""

    def __init__(self, model, caller, dtype):
        self.caller, self.dtype = caller, dtype
        self.names = {id(layer): legacy_name(path) for path, layer in _models.layers(model).items()}
        self.taken = set(self.names.values())
        # Attention takes the masks off its inputs, for all that run after it: there only the recorded masks are left.
        self.masks = any(isinstance(part, keras.layers.MultiHeadAttention)
                         for layer in _models.layers(model).values() for part in parts_of(layer))
        self.counterparts = {}                                     # id of a layer or operation -> (it, its counterpart)

    def input(self, x):
        """The tf_keras input for an input of the graph."""
        layer = producer(x)[0]
        require(not (x.sparse or x.ragged), f"{self.caller} needs dense inputs", input=x.name)
        return tf_keras.Input(batch_shape=x.shape, dtype=x.dtype,
                              name=self.names.get(id(layer)) or legacy_name(layer.name))

    def use(self, op, given, symbols, prefix):
        """Calls the counterpart of `op` as `op` is called."""
        tensors = [x for x, symbol in zip(*map(keras.tree.flatten, (given, symbols)), strict=True)
                   if isinstance(symbol, keras.KerasTensor)]
        if id(op) not in self.counterparts:
            self.counterparts[id(op)] = op, self._make(op, tensors, symbols, prefix)
        counterpart = self.counterparts[id(op)][1]
        require(not is_embedded(counterpart) or counterpart.fits(*symbols),
                f"{self.caller} needs a layer that is carried as it is to be called with the same constants everywhere",
                layer=op.name, do="Use a layer for each kind of call.")
        if is_embedded(counterpart) or not isinstance(op, keras.layers.Layer):
            return counterpart(tensors[0] if len(tensors) == 1 else tensors)
        return counterpart(*given[0], **given[1])

    def _make(self, op, tensors, symbols, prefix):
        name = self._name(op, prefix)
        masked = any(mask_of(x) is not None for x in tensors)
        if isinstance(op, keras.layers.Layer):
            counterpart = translate.layer_counterpart(op, name, self.dtype, masked)
        else:
            counterpart = None if masked else translate.operation_counterpart(op, *symbols, name, self.dtype)
        try:
            return counterpart or Embedded.of(op, *symbols, name=name, dtype=self.dtype)
        except (NotImplementedError, TypeError, ValueError) as reason:
            problem = reason
        raise refusal(f"{self.caller} carries the layer {op.name} ({type(op).__name__}) as it is, and for that it "
                             "must be made again from its config", reason=str(problem).strip().split("\n")[0],
                      do="Give its class a get_config() with the arguments of its constructor.")

    def _name(self, op, prefix):
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
        for op, counterpart in self.counterparts.values():
            if not isinstance(op, keras.layers.Layer):
                continue
            if is_embedded(counterpart):
                for source, target in zip(op.variables, counterpart.inner.variables, strict=True):
                    target.assign(source)
            elif counterpart.weights:
                counterpart.set_weights(op.get_weights())
