"""A LiteRT file run a stretch at a time on many samples, so that what moves between its operations can be seen."""

import itertools

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from . import file, run


class Segments:
    """The main graph of a file, cut before each operation in `cuts`.

    Args:
      model: the parsed file. Buffers that are changed before a stretch runs count.
      cuts: places of operations in the main graph, rising.
      values: one array (samples, ...) for each input of the file, in the input's own dtype.

    Attributes:
      values: {tensor: array (samples, ...)} of what the stretches to come will read.
    """

    def __init__(self, model, cuts, values):
        self.model, self.graph = model, model.subgraphs[0]
        edges = [0, *cuts, len(self.graph.operators)]
        self._stretches = iter([range(*pair) for pair in itertools.pairwise(edges)])
        self.values = dict(zip(map(int, self.graph.inputs), values, strict=True))

    def run(self):
        """Runs the next stretch."""
        places = next(self._stretches)
        ops = [self.graph.operators[place] for place in places]
        later = {int(index) for op in self.graph.operators[places.stop:] for index in op.inputs}
        later |= set(map(int, self.graph.outputs))
        if ops:
            made = [int(index) for op in ops for index in op.outputs if int(index) in later]
            read = sorted({int(index) for op in ops for index in op.inputs} & set(self.values))
            self.values.update(self._computed(ops, read, made))
        self.values = {index: value for index, value in self.values.items() if index in later}

    def _computed(self, ops, read, made):
        interpreter = run.interpreter(part(self.model, ops, read, made))
        inputs = [detail["index"] for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]
        found = {index: [] for index in made}
        for sample in range(len(self.values[read[0]])):
            for place, index in zip(inputs, read, strict=True):
                interpreter.set_tensor(place, self.values[index][sample])
            interpreter.invoke()
            for place, index in zip(outputs, made, strict=True):
                found[index].append(interpreter.get_tensor(place))
        return {index: np.stack(parts) for index, parts in found.items()}


def part(model, ops, inputs, outputs):
    """The bytes of a file that holds `ops` of the main graph alone, with these tensors as its inputs and outputs."""
    graph = model.subgraphs[0]
    used = sorted({int(index) for op in ops for index in (*op.inputs, *op.outputs) if index >= 0} | set(inputs))
    places = {index: place for place, index in enumerate(used)} | {-1: -1}
    small, alone = schema.ModelT(), schema.SubGraphT()
    small.version, small.operatorCodes, small.buffers = model.version, model.operatorCodes, model.buffers
    alone.tensors = [graph.tensors[index] for index in used]
    alone.inputs, alone.outputs = [places[index] for index in inputs], [places[index] for index in outputs]
    alone.operators = [_moved(op, places) for op in ops]
    small.subgraphs = [alone, *model.subgraphs[1:]]
    if len(model.subgraphs) == 1:                          # the other graphs of a file may use any buffer
        small.buffers = [schema.BufferT()]
        alone.tensors = [_with_buffer(tensor, model, small.buffers) for tensor in alone.tensors]
    return file.pack(small)


def _moved(op, places):
    new = schema.OperatorT()
    vars(new).update(vars(op))
    new.inputs, new.outputs = ([places[int(index)] for index in indices] for indices in (op.inputs, op.outputs))
    new.intermediates = []
    return new


def _with_buffer(tensor, model, buffers):
    new = schema.TensorT()
    vars(new).update(vars(tensor))
    data = model.buffers[tensor.buffer].data
    new.buffer = 0
    if data is not None and len(data):
        buffers.append(model.buffers[tensor.buffer])
        new.buffer = len(buffers) - 1
    return new
