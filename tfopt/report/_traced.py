"""Multiply-accumulates of a TensorFlow graph, for what has no formula: custom layers, subclassed models.

    product of matrices    outputs * length of the sum         convolution    outputs * numbers in one filter
    einsum                 product of the sizes of all letters

The graph is traced with one example. What is inside a loop runs an unknown number of times and is not counted.
"""

import math

from .._keras import keras, tf


def count(function, inputs):
    """(multiply-accumulates of `function(inputs)`, are there products in loops or of unknown shape)."""
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    graph = tf.function(function).get_concrete_function(specs).graph.as_graph_def(add_shapes=True)
    bodies = {body.signature.name: body.node_def for body in graph.library.function}
    return _count(graph.node, bodies)


def _count(nodes, bodies):
    total, unknown, shapes = 0, False, {}
    for node in nodes:
        shapes[node.name] = [_shape(shape) for shape in node.attr["_output_shapes"].list.shape]
    for node in nodes:
        if node.op in FORMULAS:
            inputs = [_of(shapes, name) for name in node.input if not name.startswith("^")]
            try:
                total += FORMULAS[node.op](node, inputs, shapes[node.name][0])
            except TypeError:                                        # a size is None
                unknown = True
        for name in (function.func.name for function in node.attr.values() if function.HasField("func")):
            inner, loops = _count(bodies.get(name, ()), bodies)
            called = "PartitionedCall" in node.op
            total += inner if called else 0
            unknown |= loops or (not called and inner > 0)
    return total, unknown


def _shape(shape):
    return None if shape.unknown_rank else tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)


def _of(shapes, name):
    """The shape of an input, which is called "node:number" or, in a function, "node:output:number"."""
    node, _, number = name.partition(":")
    outputs = shapes.get(node)                                       # None: an argument of a function
    return outputs[int(number.rpartition(":")[2] or 0)] if outputs else None


def _product(node, inputs, output):
    adjoint = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return math.prod(output) * inputs[0][-2 if adjoint else -1]


def _conv(node, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:-1])


def _depthwise(node, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:-2])


def _transposed(node, inputs, output):
    return math.prod(inputs[2]) * math.prod(inputs[1][:-1])


def _einsum(node, inputs, output):
    sizes, terms = {}, node.attr["equation"].s.decode().split("->")[0].split(",")
    if len(terms) < 2:
        return 0                                                     # a sum or a transposition
    for term, shape in zip(terms, inputs, strict=True):
        head, _, tail = term.partition("...")
        sizes |= dict(zip(head, shape, strict=False))
        sizes |= dict(zip(reversed(tail), reversed(shape), strict=False))
        spread = len(shape) - len(head) - len(tail)
        sizes |= {("...", i): max(size, sizes.get(("...", i), 1))
                  for i, size in enumerate(reversed(shape[len(head):len(head) + spread]))}
    return math.prod(sizes.values())


FORMULAS = {**dict.fromkeys(["MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"], _product),
            **dict.fromkeys(["Conv2D", "Conv3D"], _conv), "DepthwiseConv2dNative": _depthwise, "Einsum": _einsum,
            **dict.fromkeys(["Conv2DBackpropInput", "Conv3DBackpropInputV2"], _transposed)}
