"""Files after training: made in several ways, judged on samples that none of them has seen, and the best one kept."""

import numpy as np

from .._check import refusal, require
from .._keras import graph_of
from .._litert import file, run
from . import _rounding
from ._equalize import equalized

_NARROWED = "compensated, narrowed ranges"
_RISK = 0.5                 # dB that such ranges must win: they cut off what is larger
_FEW = 16                   # with fewer samples all of them serve to round and to judge


def best(model, content, expected, samples, mode, rounding, to_file):
    """The best file of a model, and what the report says of it.

    Args:
      model: plain float32 model.
      content: the converter's file, in 8 bits.
      expected: the model's outputs for all samples, a list of arrays.
      samples: calibration inputs, a list of arrays.
      mode: "int8", "int4", "int16x8" or "dynamic".
      rounding: "auto" or "nearest".
      to_file: `(model, mode) -> bytes`, the converter.

    Returns:
      `(content, {"rounding": name of the way, "sqnr_db": {way: signal-to-noise ratio of its outputs}})`.
    """
    bits = 4 if mode == "int4" else 8
    count, batch = len(samples[0]), max(int(file.inputs(file.parse(content))[0].shape[0]), 1)
    share = count if count < max(_FEW, 2 * batch) else count * 3 // 4 // batch * batch
    known = [array[:share] for array in samples]
    start = 0 if share == count else share
    unseen, wanted = [array[start:] for array in samples], [array[start:] for array in expected]
    found, levels = {}, {}
    floats = to_file(model, "float32") if rounding == "auto" or bits == 4 else None

    def judge(way, made):
        if made is not None:
            try:
                outputs = run.batches(run.interpreter(made), unseen)
            except (RuntimeError, ValueError) as error:
                raise cannot_run(error) from None
            levels[way], found[way] = round(_level(wanted, outputs), 2), made

    judge("nearest", content if bits == 8 else _made(floats, content, known, 4, False))
    if rounding == "auto":
        ways = {"compensated": False} | ({_NARROWED: True} if mode in ("int8", "int4") else {})
        for way, narrow in ways.items():
            judge(way, _made(floats, content, known, bits, True, narrow))
        other = equalized(model) if graph_of(model) is not None and mode != "dynamic" else None
        if other is not None:
            way = max(ways, key=lambda way: levels.get(way, -np.inf))
            made = to_file(other, "float32"), to_file(other, mode)
            judge(f"equalized, {way}", _made(*made, known, bits, True, ways[way]))
    require(levels, "int4 needs a kernel that one layer alone uses", mode=mode,
            do="Choose int8: layers that are called several times keep 8 bits.")
    way = max(levels, key=lambda way: levels[way] - _RISK * way.endswith(_NARROWED))
    return found[way], {"rounding": way, "sqnr_db": levels}


def cannot_run(error):
    """The refusal of a file that was made and does not run."""
    return refusal(f"LiteRT cannot run this model in this mode ({run.reason(error)})", do="Choose another mode.")


def _made(floats, content, samples, bits, compensate, narrow=False):
    """The file with other integers, or None where the float file has other kernels."""
    exact, parsed = file.parse(floats), file.parse(content)
    return file.pack(parsed) if _rounding.rounded(exact, parsed, samples, bits, compensate, narrow) else None


def _level(expected, found):
    """Signal-to-quantization-noise ratio in dB: median of the samples, mean of the outputs."""
    levels = []
    for a, b in zip(expected, found, strict=True):
        a, noise = a.reshape(len(a), -1).astype("float64"), (a - b).reshape(len(a), -1).astype("float64")
        levels.append(np.median(10 * np.log10(((a ** 2).sum(1) + 1e-30) / ((noise ** 2).sum(1) + 1e-30))))
    return float(np.mean(levels))
