"""What a LiteRT file says about itself, read and written through its own schema."""

import json

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .._tables import Frame

_METADATA = b"tfopt"
_OPS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_BORDER = ("QUANTIZE", "DEQUANTIZE")                       # where numbers are re-coded and nothing is computed
_ITEM = {"int8": np.int8, "int16": np.int16, "int32": np.int32, "float32": np.float32, "float16": np.float16}


def parse(content):
    """The bytes of a file as an object of its schema, which the other functions here take."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def read_note(model):
    """The JSON object that `sign` left in the file, or {}."""
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            return json.loads(bytes(model.buffers[entry.buffer].data))
    return {}


def sign(model, *, inputs, outputs, note):
    """Names the inputs and outputs, adds a signature "serving_default" of these names, and a note in JSON."""
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = [_named(graph, *pair) for pair in zip(graph.inputs, inputs, strict=True)]
    signature.outputs = [_named(graph, *pair) for pair in zip(graph.outputs, outputs, strict=True)]
    model.signatureDefs = [signature]
    model.metadata = [entry for entry in model.metadata or () if entry.name != _METADATA]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(note).encode(), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = _METADATA, len(model.buffers) - 1
    model.metadata.append(entry)


def open_batch(model):
    """Lets reshapes of one sample take any number: a first size of 1 that is the batch becomes "what is left"."""
    for graph in model.subgraphs:
        for op in graph.operators:
            if _kind(model, op) != "RESHAPE" or len(op.inputs) < 2:
                continue
            buffer = model.buffers[graph.tensors[op.inputs[1]].buffer]
            shape = np.frombuffer(bytes(buffer.data), np.int32) if buffer.data is not None else ()
            if len(shape) > 1 and shape[0] == 1 and -1 not in shape and graph.tensors[op.inputs[0]].shape[0] == 1:
                buffer.data = np.frombuffer(np.int32([-1, *shape[1:]]).tobytes(), np.uint8)


def pack(model):
    """The bytes of a file."""
    builder = flatbuffers.Builder(65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _named(graph, index, name):
    graph.tensors[index].name = name.encode()
    pair = schema.TensorMapT()
    pair.name, pair.tensorIndex = name.encode(), index
    return pair


def operations(model):
    """One row per operation: op, name of its output, type of its activations, type of its weights, MACs per run.

    The body of a loop (an RNN's step) stands once, and counts once.
    """
    rows = []
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = _kind(model, op)
            inputs = [graph.tensors[index] for index in op.inputs if index >= 0]
            outputs = [graph.tensors[index] for index in op.outputs]
            constants = [tensor for tensor in inputs if _is_constant(model, tensor)]
            moving = [_TYPES[tensor.type] for tensor in [*inputs, *outputs] if not _is_constant(model, tensor)]
            weights = max(constants, key=lambda tensor: np.prod(tensor.shape), default=None)
            rows.append({"op": kind, "name": outputs[0].name.decode() if outputs else "",
                         "dtype": next((dtype for dtype in moving if dtype in _FLOATS), moving[-1] if moving else ""),
                         "weights": _TYPES[weights.type] if weights is not None else "",
                         "macs": _macs(kind, inputs, outputs)})
    return Frame(rows, columns=["op", "name", "dtype", "weights", "macs"])


def integer(table):
    """Which rows of `operations` compute in integers; those that only re-code numbers are neither."""
    return ~table["dtype"].isin(_FLOATS) & ~table["op"].isin(_BORDER)


def computing(table):
    return ~table["op"].isin(_BORDER)


def kernels(model):
    """[(op, name of the kernel, name of the output, array of integers or floats)] of every operation with a kernel.

    A kernel's output channels are its first axis; a depthwise kernel's are its last.
    """
    found = []
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = _kind(model, op)
            if kind not in _KERNEL and kind != "TRANSPOSE_CONV":
                continue
            tensor = graph.tensors[op.inputs[1]]
            if _is_constant(model, tensor) and _TYPES[tensor.type] in _ITEM:
                values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), _ITEM[_TYPES[tensor.type]])
                found.append((kind, tensor.name.decode(), graph.tensors[op.outputs[0]].name.decode(),
                              values.reshape(tensor.shape)))
    return found


def _kind(model, op):
    code = model.operatorCodes[op.opcodeIndex]
    return _OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _is_constant(model, tensor):
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


# Multiply-accumulates of one run, from the shapes of the kernel and of what moves.
_KERNEL = {
    "CONV_2D": lambda x, kernel, y: np.prod(y) * np.prod(kernel[1:]),
    "DEPTHWISE_CONV_2D": lambda x, kernel, y: np.prod(y) * np.prod(kernel[1:3]),
    "CONV_3D": lambda x, kernel, y: np.prod(y) * np.prod(kernel[:4]),
    "FULLY_CONNECTED": lambda x, kernel, y: np.prod(y) * kernel[-1],
}


def _macs(kind, inputs, outputs):
    if kind in _KERNEL:
        return int(_KERNEL[kind](*(np.int64(tensor.shape) for tensor in (inputs[0], inputs[1], outputs[0]))))
    if kind == "TRANSPOSE_CONV":                           # output shape, kernel, input
        kernel, x = np.int64(inputs[1].shape), np.int64(inputs[2].shape)
        return int(np.prod(x[:3]) * np.prod(kernel))
    if kind == "BATCH_MATMUL":
        return int(np.prod(np.int64(outputs[0].shape)) * inputs[0].shape[-1])
    return 0
