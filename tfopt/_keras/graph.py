"""Graphs of Functional and Sequential models: what they are made of, and running them with other operations."""

import contextlib
import functools
import typing

import keras
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope


def graph_of(model):
    """The functional graph of a built Functional or Sequential model, else None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, Functional) else None


def fresh_inputs(graph, shape=lambda x: x.shape):
    """New keras.Inputs like those of `graph` (see `graph_of`), in the same nesting; `shape(input)` with the batch."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=shape(x), dtype=x.dtype, sparse=x.sparse, name=producer(x)[0].name),
        graph._inputs_struct)


def fresh_operation(op):
    """The same operation, or layer without variables, in no graph yet; what it holds is shared."""
    new = object.__new__(type(op))
    vars(new).update(vars(op), _inbound_nodes=[], _outbound_nodes=[])
    return new


def replay(graph, inputs, operation, call=None):
    """Runs `inputs` through `graph` (see `graph_of`), with `operation(op)` in place of each operation.

    Each is called as `call(operation(op), *args, **kwargs)` if `call` is given. Nested graph models are operations too.
    """
    calls = None if call is None else (
        lambda op, *args, **kwargs: (op if graph_of(op) is not None else functools.partial(call, op))(*args, **kwargs))
    return graph._run_through_graph(inputs, operation_fn=operation, call_fn=calls)


class NotALayer:
    """Mixin of what users may take for a layer: `Sequential` and calls refuse it with the sentence `not_a_layer()`."""

    @property
    def _keras_history(self) -> typing.NoReturn:           # the first thing that Sequential.add asks for
        raise TypeError(self.not_a_layer())

    def __call__(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        raise TypeError(self.not_a_layer())

    def not_a_layer(self) -> str:
        """What to do with it instead."""
        raise NotImplementedError


def producer(tensor):
    """The operation that made a tensor of a graph, and the tensors that went into that use of it."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].input_tensors


def uses(graph):
    """[(operation, args, kwargs, outputs)] of each use of an operation in `graph` (see `graph_of`), in order.

    The arguments are those the user gave: Keras also records the masks that belong to the tensors and a `training`
    that the call of the model overrules. What no output depends on, such as the making of those masks, is left out.
    """
    return uses_for(graph, graph.outputs)[0]


def uses_for(graph, wanted, masks=False):
    """The `uses` that some of the outputs of `graph` depend on, and the ids of all KerasTensors on the way.

    With `masks`, the masks Keras recorded count as given by the user.
    """
    nodes = [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]
             if not node.is_input]
    needed, steps = set(map(id, wanted)), []
    for node in reversed(nodes):
        if needed.isdisjoint(map(id, node.outputs)):
            continue
        op, args, kwargs = node.operation, node.arguments.args, _given(node, masks)
        tensors, inner = keras.tree.flatten((args, kwargs)), graph_of(op)
        if inner is not None and len(tensors) == len(inner.inputs):
            ends = [x for x, y in zip(inner.outputs, node.outputs, strict=True) if id(y) in needed]
            entered = uses_for(inner, ends, masks)[1]
            tensors = [x for x, start in zip(tensors, inner.inputs, strict=True) if id(start) in entered]
        needed.update(map(id, tensors))
        steps.append((op, args, kwargs, node.outputs))
    return steps[::-1], needed


def _given(node, masks):
    """The keyword arguments of a use, see `uses_for`."""
    if not isinstance(node.operation, keras.layers.Layer):
        return node.arguments.kwargs
    keep = masks and graph_of(node.operation) is None
    own = {id(mask_of(x)) for x in node.arguments.keras_tensors}

    def recorded(key, value):
        values = [x for x in keras.tree.flatten(value) if x is not None]
        return key == "training" or (
            key.endswith("mask") and all(id(x) in own for x in values) and not (keep and values))

    return {key: value for key, value in node.arguments.kwargs.items() if not recorded(key, value)}


def mask_of(tensor):
    """The mask that goes with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor, mask):
    tensor._keras_mask = mask


def parts_of(layer):
    """A layer and all layers inside it; an operation alone."""
    return layer._flatten_layers() if isinstance(layer, keras.layers.Layer) else [layer]


@contextlib.contextmanager
def lambdas_allowed():
    """While it lasts, Keras makes Python functions out of configs: for layers of this process alone."""
    with SafeModeScope(False):
        yield
