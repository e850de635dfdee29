"""What a LiteRT file says about itself, read and written through its own schema."""

import collections
import copy
import hashlib
import json
import re

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .._tables import Frame

_METADATA = b"tfopt"
_FORMAT = 1                                                # of the note
_SEAL = re.compile(rb'\{"format": %d, "sha256": "(.{64})"' % _FORMAT, re.DOTALL)         # how the note begins
_BLANK = "0" * 64                                          # in the place of the checksum while it is computed
_OPS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_BORDER = ("QUANTIZE", "DEQUANTIZE")                       # where numbers are re-coded and nothing is computed
_ITEM = {"bool": np.bool_, "uint8": np.uint8, "int4": np.int8, "int8": np.int8, "int16": np.int16, "int32": np.int32,
         "int64": np.int64, "float32": np.float32, "float16": np.float16, "float64": np.float64,
         "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}
_KERNEL_TYPES = ("int4", "int8", "int16", "float32", "float16")
FLOAT32, INT4, INT8 = (getattr(schema.TensorType, name) for name in ("FLOAT32", "INT4", "INT8"))


def parse(content):
    """The bytes of a file as an object of its schema, which the other functions here take."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def read_note(model):
    """The JSON object that `sign` left in the file, or {}."""
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            note = json.loads(bytes(model.buffers[entry.buffer].data))
            if note.get("format") != _FORMAT or "sha256" not in note:
                raise ValueError(f"its note is of format {note.get('format')}, not {_FORMAT}")
            return note
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
    buffer.data = np.frombuffer(json.dumps({"format": _FORMAT, "sha256": _BLANK, **note}).encode(), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = _METADATA, len(model.buffers) - 1
    model.metadata.append(entry)


def seal(content):
    """The bytes of a signed file with their checksum in its note."""
    start, end = _SEAL.search(content).span(1)
    return content[:start] + _sum(content) + content[end:]


def is_sealed(content):
    """Is a file as it was sealed, or of another making, which has no seal."""
    found = _SEAL.search(content)
    return found is None or found[1] == _sum(content)


def _sum(content):
    """SHA-256, in hex, of a file whose own checksum is blank."""
    start, end = _SEAL.search(content).span(1)
    return hashlib.sha256(content[:start] + _BLANK.encode() + content[end:]).hexdigest().encode()


def open_batch(model):
    """Lets reshapes of one sample take any number: a first size of 1 that is the batch becomes "what is left"."""
    for graph in model.subgraphs:
        for op in graph.operators:
            if kind_of(model, op) != "RESHAPE" or len(op.inputs) < 2:
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
            kind = kind_of(model, op)
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
        halves = {op.outputs[0]: op.inputs[0] for op in graph.operators if kind_of(model, op) == "DEQUANTIZE"}
        for op in graph.operators:
            kind = kind_of(model, op)
            if kind not in _KERNEL and kind != "TRANSPOSE_CONV":
                continue
            tensor = graph.tensors[halves.get(op.inputs[1], op.inputs[1])]       # float16 is widened before it is used
            if _is_constant(model, tensor) and _TYPES[tensor.type] in _KERNEL_TYPES:
                found.append((kind, tensor.name.decode(), graph.tensors[op.outputs[0]].name.decode(),
                              _values(model, tensor)))
    return found


def kind_of(model, op):
    """Name of an operation, such as CONV_2D."""
    code = model.operatorCodes[op.opcodeIndex]
    return _OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]


# Single tensors of the main graph


def tensor(model, index):
    return model.subgraphs[0].tensors[index]


def inputs(model):
    return [tensor(model, index) for index in model.subgraphs[0].inputs]


def constant(model, index):
    """The array that a tensor holds in the file, or None."""
    held = tensor(model, index) if index >= 0 else None
    return _values(model, held) if held is not None and _is_constant(model, held) else None


def set_constant(model, index, array):
    """Puts another array of the same dtype and shape into the file."""
    model.buffers[tensor(model, index).buffer].data = np.frombuffer(array.tobytes(), np.uint8)


def separate_biases(model):
    """Gives each operation with a kernel a bias of its own: the converter keeps equal constants only once."""
    readers = collections.Counter((number, int(index)) for number, graph in enumerate(model.subgraphs)
                                  for op in graph.operators for index in op.inputs)
    holders = collections.Counter(held.buffer for graph in model.subgraphs for held in graph.tensors)
    for number, graph in enumerate(model.subgraphs):
        for op in graph.operators:
            index = int(op.inputs[2]) if kind_of(model, op) in _KERNEL and len(op.inputs) > 2 else -1
            if index < 0 or not _is_constant(model, graph.tensors[index]):
                continue
            if readers[number, index] > 1:
                readers[number, index] -= 1
                graph.tensors.append(copy.deepcopy(graph.tensors[index]))
                holders[graph.tensors[index].buffer] += 1
                op.inputs = np.array([*op.inputs[:2], len(graph.tensors) - 1, *op.inputs[3:]], "int32")
            held = graph.tensors[op.inputs[2]]
            if holders[held.buffer] > 1:
                holders[held.buffer] -= 1
                model.buffers.append(copy.copy(model.buffers[held.buffer]))
                held.buffer = len(model.buffers) - 1


def spread_biases(model):
    """Counts a bias that is the same for all channels in steps of each channel: the converter takes those of the first.

    It does so where it knows the ranges from training, with a bias that is one number repeated.
    """
    for held in (held for graph in model.subgraphs for held in graph.tensors):
        if held.type != schema.TensorType.INT32 or not _has_scale(held) or not _is_constant(model, held):
            continue
        values, scale = _values(model, held), held.quantization.scale
        if values.shape == scale.shape and len(scale) > 1 and (values == values[0]).all():
            model.buffers[held.buffer].data = np.frombuffer(
                np.round(values[0] * (scale[0] / scale)).astype("int32").tobytes(), np.uint8)


def widen_squared_differences(model):
    """Gives squared differences that are all but zero, as in the norm of one feature, a scale that LiteRT can use.

    It shifts them by 14 bits, and ends the whole process where a step of the result is smaller than that of the shift.
    """
    for graph in model.subgraphs:
        for op in (op for op in graph.operators if kind_of(model, op) == "SQUARED_DIFFERENCE"):
            *sources, result = (graph.tensors[index] for index in (*op.inputs, op.outputs[0]))
            if all(map(_has_scale, (*sources, result))):
                least = 1.01 * (2 * max(held.quantization.scale[0] for held in sources)) ** 2 / 2 ** 14
                if result.quantization.scale[0] < least:
                    set_scale(result, np.array([least]), result.quantization.zeroPoint[0])


def set_four_bits(model, index, array, scale):
    """Makes a tensor one of integers -8..7, two in a byte, with these scales of its channels (its first axis)."""
    held, flat = tensor(model, index), array.reshape(-1)
    nibbles = np.pad(flat, (0, flat.size % 2)).astype(np.uint8) & 15
    held.type, held.quantization.quantizedDimension = INT4, 0
    set_scale(held, scale)
    model.buffers[held.buffer].data = nibbles[::2] | (nibbles[1::2] << 4)


def set_scale(held, scale, zero=0):
    """Gives a tensor these scales, and one zero point."""
    held.quantization.scale = scale.astype("float32")
    held.quantization.zeroPoint = np.full(len(scale), zero, np.int64)


def real(array, held):
    """Integers of a tensor as the numbers they stand for, float32."""
    if array.dtype.kind == "f" or not _has_scale(held):
        return array
    values = array.astype("float32")
    values -= np.float32(held.quantization.zeroPoint[0])
    values *= np.float32(held.quantization.scale[0])
    return values


def stored(array, held):
    """Numbers as a tensor of the file holds them: the reverse of `real`."""
    dtype = np.dtype(_ITEM[_TYPES[held.type]])
    if dtype.kind == "f" or not _has_scale(held):
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    integers = np.round(array / held.quantization.scale[0]) + held.quantization.zeroPoint[0]
    return np.clip(integers, limits.min, limits.max).astype(dtype)


def activation_range(op):
    """What the activation that is fused to an operation lets through."""
    kinds = schema.ActivationFunctionType
    return {kinds.RELU: (0.0, np.inf), kinds.RELU6: (0.0, 6.0), kinds.RELU_N1_TO_1: (-1.0, 1.0)}.get(
        op.builtinOptions.fusedActivationFunction, (-np.inf, np.inf))


def _has_scale(held):
    return held.quantization is not None and held.quantization.scale is not None and len(held.quantization.scale) > 0


def _values(model, held):
    data = bytes(model.buffers[held.buffer].data)
    if held.type != INT4:
        return np.frombuffer(data, _ITEM[_TYPES[held.type]]).reshape(held.shape)
    pairs = np.frombuffer(data, np.uint8)
    nibbles = np.stack([pairs & 15, pairs >> 4], -1).reshape(-1)[:int(np.prod(held.shape))].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(held.shape)


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
