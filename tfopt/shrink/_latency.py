"""How many channels may stay for a share of the latency: measured, not counted."""

import math

from .._check import require
from .._litert import convert, run
from .._speed import latency

RUNS = 50                           # timed calls of each of the two files
CLOSE = 0.02                        # below the target: bisection ends


def timer(model, samples):
    """`smaller model -> its latency / that of model`, as float LiteRT files on one thread that take turns.

    Args:
      model: a built graph model.
      samples: arrays whose sizes its open inputs get, flat; None if it has none.
    """
    whole = run.caller(convert.in_float(model, samples, "data"))

    def share(small):
        found = latency({"model": whole, "small": run.caller(convert.in_float(small, samples, "data"))}, RUNS)
        return found["small"]["latency_ms"] / found["model"]["latency_ms"]
    return share


def within(target, steps, measure):
    """The largest number of steps whose measured latency fits: bisection.

    Args:
      target: share of the latency.
      steps: how many there are; after the last nothing has gone.
      measure: `number of steps -> share of the latency`.
    """
    found = measure(0)
    require(found <= target, "cannot reach this target", latency=target, least_possible=math.ceil(1000 * found) / 1000,
            do="Ask for more, lower `round_to`, or widen `where`.")
    low, high = 0, steps
    while high - low > 1 and found < target - CLOSE:
        middle = (low + high) // 2
        share = measure(middle)
        low, high, found = (middle, high, share) if share <= target else (low, middle, found)
    return low
