"""Runs a LiteRT file: floats in, floats out."""

import contextlib
import os
import sys
import tempfile
import threading

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from .._check import refusal, require

_one_at_a_time = threading.RLock()


def interpreter(content, *, batch=None, **options):
    """An interpreter of the file, for `batch` samples at once; None for the file's own number."""
    with quiet():
        found = Interpreter(model_content=content, **options)
        for detail in found.get_input_details() if batch else ():
            found.resize_tensor_input(detail["index"], (batch, *map(int, detail["shape"][1:])))
        found.allocate_tensors()
    return found


def run(interpreter, arrays):
    """The outputs for one batch: lists of arrays of floats (integers where the model has them) in and out."""
    for array, detail in zip(arrays, interpreter.get_input_details(), strict=True):
        interpreter.set_tensor(detail["index"], store(array, detail))
    interpreter.invoke()
    return [restore(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()]


def batches(interpreter, arrays, *, each=run, tick=None):
    """The outputs for any number of samples: list of arrays.

    Args:
      interpreter: of a file; it takes as many samples at once as its inputs say. A last batch is filled up with its
        last sample, whose outputs are then left out.
      arrays: inputs, in the file's order.
      each: `(interpreter, batch) -> outputs`, list of arrays (batch, ...).
      tick: called after each batch.
    """
    size, count, parts = int(interpreter.get_input_details()[0]["shape"][0]), len(arrays[0]), []
    for start in range(0, count, size):
        batch = [array[start:start + size] for array in arrays]
        missing = size - len(batch[0])
        parts.append(each(interpreter, [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in batch]
                          if missing else batch))
        if tick:
            tick()
    require(all(len(output) == size for output in parts[0]), f"this file has outputs without one row a sample when it "
            f"takes {size} at once", do="Leave `batch_size` out.")
    return [np.concatenate(rows)[:count] for rows in zip(*parts, strict=True)]


def caller(content):
    """`() -> None` for measuring a file: inputs in, one run on one thread, outputs out."""
    made = interpreter(content, num_threads=1)
    inputs = [(detail["index"], np.zeros(detail["shape"], detail["dtype"])) for detail in made.get_input_details()]
    outputs = [detail["index"] for detail in made.get_output_details()]

    def once():
        for index, values in inputs:
            made.set_tensor(index, values)
        made.invoke()
        for index in outputs:
            made.get_tensor(index)

    try:
        once()
    except RuntimeError:                                   # zeros may be padding alone, which has no mean
        for _, values in inputs:
            values[...] = 1
        try:
            once()
        except RuntimeError as error:
            raise refusal(f"LiteRT cannot run this file on zeros or ones ({reason(error)})",
                          do="Convert the model in another mode.") from None
    return once


def reason(error):
    """What LiteRT complains of, without where."""
    return str(error).strip().splitlines()[0].split("Node number")[0].rstrip(". ")


def store(array, detail):
    """Floats as the integers of a tensor."""
    scale, zero = detail["quantization"]
    if scale == 0 or not np.issubdtype(detail["dtype"], np.integer):
        return np.ascontiguousarray(array, detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(np.float32(array) / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def restore(array, detail):
    """The integers of a tensor as floats."""
    scale, zero = detail["quantization"]
    return array if scale == 0 else np.float32(scale) * (array.astype(np.float32) - zero)


@contextlib.contextmanager
def quiet():
    """Keeps what C++ writes to the process's standard error out of sight; yields the file that gets it."""
    with _one_at_a_time, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)
