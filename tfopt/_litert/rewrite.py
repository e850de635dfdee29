"""What the converter computes badly in integers, written as operations that it computes well."""

import collections
import math

from .._keras import tf
from .._keras.lite import of_graph

_SCALE, _ALPHA = 1.0507009873554805, 1.6732632423543772    # of SELU
_FLOAT = tf.float32.as_datatype_enum
_NOTHING = 1e-30                                           # a sum with zero would be taken out


def for_integers(function, mode):
    """A concrete function of the same values whose parts keep a small range, or `function` if they do anyway.

    The converter computes softplus (so Mish and the log of a sigmoid) and SELU by exponentials of what may be large.
    What an operation of one scale reads, a minimum for instance, gets the range of its output: where others read that
    as well, the operation reads a copy. In int16x8 a sum has the range of its terms, a bound out of the range of what
    it bounds becomes another number, and there is no squared difference, as in normalization.
    """
    graph = function.graph.as_graph_def()
    reads, operation = _reads(graph), function.graph.get_operation_by_name
    ends = [output.op.name for output in function.outputs]
    readers = collections.Counter(source for name, read in reads.items() for source, _ in read
                                  if name in ends or operation(name).type != "Identity")
    changes = [(node, places, formula) for node in graph.node if "T" in node.attr and node.attr["T"].type == _FLOAT
               for places, formula in _changes(operation(node.name), reads[node.name], readers, mode)]
    for number, (node, places, formula) in enumerate(changes, 2):
        prefix, sources = f"{node.name}/for_integers{places[0]}/", [node.input[place] for place in places]
        if formula is _copy:
            node.input[places[0]] = _add(graph, prefix, sources, lambda x, number=number: _copy(x, number))
        else:
            node.op, node.input[:] = "Identity", [_add(graph, prefix, sources, formula)]
            for name in set(node.attr) - {"T"}:
                del node.attr[name]
    return of_graph(graph, function) if changes else function


def _reads(graph):
    """{name of a node: [(tensor, node that makes it)] of what it reads, seen through identities}."""
    nodes = {node.name: node for node in graph.node}

    def origin(source):
        node = nodes[source.split(":")[0]]
        return origin(node.input[0]) if node.op == "Identity" else (source, node)

    return {name: [origin(source) for source in node.input if source[0] != "^"] for name, node in nodes.items()}


def _changes(op, read, readers, mode):
    """[(places, formula)]: the operation becomes the formula of what it reads there; or it reads `_copy` of that."""
    if op.type in ("Softplus", "Selu"):
        return [([0], {"Softplus": _softplus, "Selu": _selu}[op.type])]
    if op.type in ("Square", "SquaredDifference") and mode == "int16x8":
        return [(range(len(op.inputs)), _squared)]
    if op.type == "Sum" and mode == "int16x8" and (formula := _as_mean(op)) is not None:
        return [([0], formula)]
    if op.type not in ("Minimum", "Maximum", "Select", "SelectV2"):
        return []
    places = range(len(read) - 2, len(read))
    bounds = {place: tf.make_ndarray(read[place][1].attr["value"].tensor)
              for place in places if read[place][1].op == "Const"}
    if op.type == "Maximum" and any(not bound.any() for bound in bounds.values()):
        return []                                          # LiteRT has an operation of its own for ReLU
    if len(bounds) == 1 and mode == "int16x8" and op.type in ("Minimum", "Maximum"):
        (place, bound), = bounds.items()
        return [([places[0] + places[1] - place], lambda x: _bounded(x, bound, op.type))]
    return [([place], _copy) for place in places if place not in bounds and readers[read[place][0]] > 1]


def _softplus(x):
    return tf.nn.relu(x) - tf.math.log(tf.sigmoid(tf.abs(x)))


def _selu(x):
    return _SCALE * tf.nn.relu(x) + _SCALE * _ALPHA * tf.nn.elu(tf.minimum(_copy(x), 0.0))


def _squared(x, y=None):
    difference = x if y is None else x - y
    return difference * difference


def _copy(x, number=1):
    """The converter makes one tensor of two copies with the same number."""
    return x + number * _NOTHING


def _bounded(x, bound, kind):
    return x - tf.nn.relu(x - bound) if kind == "Minimum" else x + tf.nn.relu(bound - x)


def _as_mean(op):
    """A sum as its number of terms times their mean; None where that number is open."""
    x, axes = op.inputs
    axes = tf.get_static_value(axes)
    if axes is None or x.shape.rank is None or None in (sizes := [x.shape[axis] for axis in axes.flat]):
        return None
    return lambda x: math.prod(sizes) * tf.reduce_mean(x, axes, op.get_attr("keep_dims"))


def _add(graph, prefix, sources, formula):
    """The name of the formula of some tensors, which is new in the graph."""
    with tf.Graph().as_default() as part:
        result = formula(*[tf.compat.v1.placeholder(tf.float32, name=f"x{place}") for place in range(len(sources))])
    given = {f"x{place}": source for place, source in enumerate(sources)}
    made = [node for node in part.as_graph_def().node if node.name not in given]
    for node in made:
        node.name = prefix + node.name
        node.input[:] = [given.get(name, prefix + name) for name in node.input]
    graph.node.extend(made)
    return prefix + result.op.name
