"""Latency: how long one example takes, warm, with the models taking turns."""

import gc
import time
from collections.abc import Callable

import numpy as np

BLOCKS = 10                 # turns of each model, so that a busy moment hits all alike
WARM_UP = 0.02              # seconds of untimed calls before each turn: a call after another model's is 3 times slower


def latency(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, dict[str, float]]:
    """{name: median and quartiles in ms} of `runs` timed calls of each."""
    seconds = {name: [] for name in calls}
    for size in (len(part) for part in np.array_split(np.arange(runs), min(runs, BLOCKS))):
        for name, call in calls.items():
            _warm_up(call)
            seconds[name] += _timed(call, size)
    columns = "latency_low_ms", "latency_ms", "latency_high_ms"
    return {name: dict(zip(columns, map(float, 1e3 * np.quantile(spent, [.25, .5, .75])), strict=True))
            for name, spent in seconds.items()}


def _warm_up(call):
    end = time.perf_counter() + WARM_UP
    call()
    call()
    while time.perf_counter() < end:
        call()


def _timed(call, runs):
    spent, collecting = [], gc.isenabled()
    gc.disable()
    try:
        for _ in range(runs):
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return spent
