"""A LiteRT file that is being measured."""

import contextlib
import functools

import numpy as np

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
        return run.caller(self.model.content)

    def unchanged(self):
        return contextlib.nullcontext()
