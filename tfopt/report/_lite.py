"""A LiteRT file that is being measured."""

import contextlib
import functools

import numpy as np

from .._check import refusal
from .._litert import file, run
from ._size import packed_size


class LiteSubject:
    """A `quantize.LiteModel` that is being measured; a sibling of `Subject`."""

    output_names, logits = (), None                                  # the file does not say

    def __init__(self, model):
        self.model = model
        self.predict = model.predict

    def facts(self):
        ops = self.model.ops
        kernels = [array for *_, array in file.kernels(self.model.parsed)]
        raw, packed = packed_size([self.model.content])
        looped = ("macs count the body of a loop once",) if "WHILE" in set(ops["op"]) else ()
        return dict(parameters=sum(k.size for k in kernels), nonzeros=sum(int(np.count_nonzero(k)) for k in kernels),
                    macs=int(ops["macs"].sum()), bytes=raw, gzip=packed, notes=looped,
                    integer_ops=float(file.integer(ops)[file.computing(ops)].mean()))

    @functools.cached_property
    def call(self):
        """`() -> None`: inputs in, one run on one thread, outputs out."""
        interpreter = run.interpreter(self.model.content, num_threads=1)
        inputs = [(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
                  for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]

        def once():
            for index, values in inputs:
                interpreter.set_tensor(index, values)
            interpreter.invoke()
            for index in outputs:
                interpreter.get_tensor(index)

        try:
            once()
        except RuntimeError:                               # zeros may be padding alone, which has no mean
            for _, values in inputs:
                values[...] = 1
            try:
                once()
            except RuntimeError as error:
                raise refusal(f"LiteRT cannot run this file on zeros or ones ({run.reason(error)})",
                              do="Convert the model in another mode.") from None
        return once

    def unchanged(self):
        return contextlib.nullcontext()
