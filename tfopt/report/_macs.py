"""Multiply-accumulates of one example, summed over every use of every layer of a model's graph.

Counted is what multiplies a kernel, or one activation with another, and sums: products of matrices, convolutions,
attention. Additions of biases, normalization, activations, pooling and look-ups are not, as is the custom of the field.
"""

import inspect
import math

import numpy as np

from .._keras import graph_of, keras, replay
from . import _traced

L = keras.layers


def count(graph, inputs):
    """(multiply-accumulates, names of what could not be counted) of `graph` on `inputs`, the arrays of one example."""
    total, unknown = 0, []

    def traced(op, args, kwargs):
        """What has no formula is traced; what no trace counts is named."""
        nonlocal total
        found, left = _traced.count(lambda _: op(*args, **kwargs), np.zeros(()))
        if left:
            unknown.append(f"{op.name} ({type(op).__name__})")
        else:
            total += found

    def visit(op, *args, **kwargs):
        nonlocal total
        if graph_of(op) is not None:
            return replay(graph_of(op), args[0], wrap)
        outputs = op(*args, **kwargs)
        parts, formula = _parts(op, args), _formula(op)
        if parts:
            for part, inputs in parts:
                visit(part, inputs)
        elif formula:
            total += formula(op, _shapes(op, args, kwargs), tuple(keras.tree.flatten(outputs)[0].shape))
        elif not _is_keras(op) or type(op).__name__ in PRODUCTS or any(len(w.shape) > 1 for w in _weights(op)):
            traced(op, args, kwargs)
        return outputs

    def wrap(op):
        return lambda *args, **kwargs: visit(op, *args, **kwargs)

    inputs = [keras.ops.cast(x, wanted.dtype) if "string" not in wanted.dtype else x
              for x, wanted in zip(keras.tree.flatten(inputs), graph.inputs, strict=True)]
    with keras.StatelessScope():                                     # what the run would change is thrown away
        replay(graph, inputs, wrap)
    return total, tuple(dict.fromkeys(unknown))


def _parts(op, args):
    """[(layer inside the wrapper `op`, what it is called with)]."""
    if isinstance(op, L.Bidirectional):
        return [(op.forward_layer, args[0]), (op.backward_layer, args[0])]
    if isinstance(op, L.TimeDistributed):
        return [(op.layer, keras.ops.reshape(args[0], (-1, *args[0].shape[2:])))]
    return [(op.layer, args[0])] if isinstance(op, L.SpectralNormalization) else []


def _is_keras(op):
    return type(op).__module__.startswith("keras.")


def _weights(op):
    return getattr(op, "weights", [])


def _formula(op):
    """`(op, input shapes, output shape) -> MACs` of Keras' own layers and operations and what descends from them."""
    if isinstance(op, L.RNN) and not _knows(op.cell):
        return None
    if type(op).__name__ == "Einsum" and not ("->" in op.subscripts and op.subscripts.count(",") == 1):
        return None
    return next((FORMULAS[kind.__name__] for kind in type(op).__mro__
                 if kind.__module__.startswith("keras.") and kind.__name__ in FORMULAS), None)


def _shapes(op, args, kwargs):
    """Shapes of the tensors that `op` computes with, in the order of its signature."""
    given = inspect.signature(op.call).bind_partial(*args, **kwargs).arguments
    tensors = keras.tree.flatten([x for name, x in given.items() if "mask" not in name and "state" not in name])
    return [tuple(x.shape) for x in tensors if hasattr(x, "shape")]


def _free(layer, inputs, output):
    return 0


def _dense(layer, inputs, output):
    return math.prod(output) * inputs[0][-1]


def _einsum(equation, kernel, output):
    """Every output is a sum over the letters of the kernel that the output has lost."""
    operands, result = equation.replace(" ", "").split("->")
    head, _, tail = operands.split(",")[1].partition("...")
    sizes = dict(zip(head, kernel, strict=False)) | dict(zip(reversed(tail), reversed(kernel), strict=False))
    return math.prod(output) * math.prod(size for letter, size in sizes.items() if letter not in result)


def _conv(layer, inputs, output):
    return math.prod(output) * math.prod(layer.kernel.shape[:-1])


def _depthwise(layer, inputs, output):
    return math.prod(output) * math.prod(layer.kernel.shape[:-2])


def _separable(layer, inputs, output):
    positions = math.prod(output) // layer.filters
    return positions * (math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape))


def _transposed(layer, inputs, output):
    return math.prod(inputs[0]) * math.prod(layer.kernel.shape[:-1])


def _knows(cell):
    return all(map(_knows, cell.cells)) if isinstance(cell, L.StackedRNNCells) else (
        type(cell).__module__.startswith("keras.") and hasattr(cell, "recurrent_kernel"))


def _step(cell):
    if isinstance(cell, L.StackedRNNCells):
        return sum(map(_step, cell.cells))
    return math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape)


def _recurrent(layer, inputs, output):
    return inputs[0][0] * inputs[0][1] * _step(layer.cell)


def _conv_recurrent(layer, inputs, output):
    rank = len(layer.cell.kernel.shape) - 2
    positions = output[-rank:] if layer.cell.data_format == "channels_first" else output[-rank - 1:-1]
    return _recurrent(layer, inputs, output) * math.prod(positions)


def _heads(layer, inputs, output):
    """Projections of query, key, value and output, and the two products of the attention itself."""
    config, (query, value, key) = layer.get_config(), (*inputs, inputs[1])[:3]
    if "num_heads" in config:
        heads = pairs = config["num_heads"]
        width, value_width = config["key_dim"], config["value_dim"]
    else:
        heads, pairs = config["num_query_heads"], config["num_key_value_heads"]
        width = value_width = config["head_dim"]
    axes = config.get("attention_axes") or range(1, len(query) - 1)
    attended = math.prod(value[axis] for axis in axes)
    queries, keys = math.prod(query[:-1]), math.prod(value[:-1])
    gate = query[-1] * value_width if config.get("use_gate") else 0
    return (queries * heads * (query[-1] * width + value_width * output[-1] + gate)
            + keys * pairs * (key[-1] * width + value[-1] * value_width)
            + queries * attended * heads * (width + value_width))


def _attention(layer, inputs, output):
    query, value = inputs[:2]
    return math.prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def _dot(layer, inputs, output):
    axes = getattr(layer, "axes", -1)                                # the layer says which, the operation has the last
    return math.prod(output) * inputs[0][axes if isinstance(axes, int) else axes[0]]


def _reversible(layer, inputs, output):
    return _dense(layer, inputs, output) if len(output) == len(inputs[0]) else 0


def _einsum_dense(layer, inputs, output):
    return _einsum(layer.equation, layer.kernel.shape, output)


def _einsum_op(op, inputs, output):
    return _einsum(op.subscripts, inputs[1], output)


FORMULAS = {
    **dict.fromkeys(["Embedding", "BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization",
                     "Normalization", "PReLU"], _free),              # they hold weights, yet multiply no kernel
    "Dense": _dense, "EinsumDense": _einsum_dense, "Dot": _dot, "ReversibleEmbedding": _reversible,
    **dict.fromkeys(["Conv1D", "Conv2D", "Conv3D"], _conv),
    **dict.fromkeys(["DepthwiseConv1D", "DepthwiseConv2D"], _depthwise),
    **dict.fromkeys(["SeparableConv1D", "SeparableConv2D"], _separable),
    **dict.fromkeys(["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"], _transposed),
    **dict.fromkeys(["ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"], _conv_recurrent), "RNN": _recurrent,
    **dict.fromkeys(["MultiHeadAttention", "GroupedQueryAttention"], _heads),
    **dict.fromkeys(["Attention", "AdditiveAttention"], _attention),
    "Matmul": _dense, "Einsum": _einsum_op,                           # keras.ops
}
PRODUCTS = {"Tensordot", "Inner", "Vdot", "Correlate", "Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose",
            "DotProductAttention", "Einsum"}                         # of keras.ops: traced
