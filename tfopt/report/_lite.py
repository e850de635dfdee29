"""A LiteRT file that is being measured."""

import contextlib
import functools

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ..quantize import _file, _lite
from ._size import packed_size


class LiteSubject:
    """A `quantize.LiteModel` that is being measured; a sibling of `Subject`."""

    def __init__(self, model):
        self.model = model
        self.predict = model.predict

    def facts(self):
        ops = self.model.ops
        kernels = [array for *_, array in _file.kernels(self.model.content)]
        raw, packed = packed_size([self.model.content])
        looped = ("macs count the body of a loop once",) if "WHILE" in set(ops["op"]) else ()
        return dict(parameters=sum(k.size for k in kernels), nonzeros=sum(int(np.count_nonzero(k)) for k in kernels),
                    macs=int(ops["macs"].sum()), bytes=raw, gzip=packed, notes=looped,
                    integer_ops=float(_file.integer(ops)[_file.computing(ops)].mean()))

    @functools.cached_property
    def call(self):
        """`() -> None`: inputs in, one run on one thread, outputs out."""
        with _lite.quiet():
            interpreter = Interpreter(model_content=self.model.content, num_threads=1)
            interpreter.allocate_tensors()
        inputs = [(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
                  for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]

        def run():
            for index, zeros in inputs:
                interpreter.set_tensor(index, zeros)
            interpreter.invoke()
            for index in outputs:
                interpreter.get_tensor(index)

        return run

    def unchanged(self):
        return contextlib.nullcontext()
