"""What the converter computes badly in integers, written as operations that it computes well."""

import collections
import math

from .._keras import tf
from .._keras.lite import of_graph

_SCALE, _ALPHA = 1.0507009873554805, 1.6732632423543772    # of SELU
_ONE_SCALE = ("Minimum", "Maximum", "Select", "SelectV2")  # in and out
_NOTHING = 1e-30                                           # a sum with zero would be taken out


def for_integers(function, mode):
    """A concrete function of the same values whose parts keep a small range, or `function` if they do anyway.

    The converter computes softplus (so Mish and the log of a sigmoid) and SELU by exponentials of what may be large,
    and gives a sum the range of its terms in int16x8. And what an operation of one scale reads, a minimum for instance,
    gets the range of its output: where others read that as well, the operation reads a copy.
    """
    graph = function.graph.as_graph_def()
    nodes = {node.name: node for node in graph.node}

    def origin(source):
        while nodes[source.split(":")[0]].op == "Identity":
            source = nodes[source.split(":")[0]].input[0]
        return source

    readers = collections.Counter(origin(source) for node in graph.node if node.op != "Identity"
                                  for source in node.input if not source.startswith("^"))
    count = len(graph.node)
    for node in list(graph.node):
        if node.attr["T"].type != tf.float32.as_datatype_enum:
            continue
        if node.op in _RULES:
            _become(node, _add(graph, node, 0, _RULES[node.op]))
        elif node.op == "Sum" and mode == "int16x8":
            if (rule := _as_mean(function.graph.get_operation_by_name(node.name))) is not None:
                _become(node, _add(graph, node, 0, rule))
        elif node.op in _ONE_SCALE:
            floats = range(len(node.input) - 2, len(node.input))
            read = [nodes[origin(node.input[place]).split(":")[0]] for place in floats]
            if node.op == "Maximum" and any(map(_is_zero, read)):
                continue                                   # ReLU: LiteRT has an operation of its own
            for place, source in zip(floats, read, strict=True):
                if source.op != "Const" and readers[origin(node.input[place])] > 1:
                    node.input[place] = _add(graph, node, place, _copy)
    return of_graph(graph, function) if len(graph.node) > count else function


def _is_zero(node):
    return node.op == "Const" and not tf.make_ndarray(node.attr["value"].tensor).any()


def _softplus(x):
    return tf.nn.relu(x) - tf.math.log(tf.sigmoid(tf.abs(x)))


def _selu(x):
    return _SCALE * tf.nn.relu(x) + _SCALE * _ALPHA * tf.nn.elu(tf.minimum(_copy(x), 0.0))


def _copy(x):
    return x + _NOTHING


_RULES = {"Softplus": _softplus, "Selu": _selu}


def _as_mean(op):
    """A sum as its number of terms times their mean; None where that number is open."""
    x, axes = op.inputs
    axes = tf.get_static_value(axes)
    if axes is None or x.shape.rank is None or None in (sizes := [x.shape[axis] for axis in axes.flat]):
        return None
    return lambda x: math.prod(sizes) * tf.reduce_mean(x, axes, op.get_attr("keep_dims"))


def _add(graph, node, place, function):
    """The name of `function` of what the node reads there, new in the graph."""
    with tf.Graph().as_default() as part:
        result = function(tf.compat.v1.placeholder(tf.float32, name="x")).op.name
    made, prefix = part.as_graph_def().node, f"{node.name}/for_integers{place}/"
    for inner in made:
        inner.input[:] = [node.input[place] if source == "x" else prefix + source for source in inner.input]
        inner.name = prefix + inner.name
    graph.node.extend(inner for inner in made if inner.name != f"{prefix}x")
    return prefix + result


def _become(node, source):
    node.op, node.input[:] = "Identity", [source]
    for name in set(node.attr) - {"T"}:
        del node.attr[name]
