"""What half the multiply-accumulates are worth: LiteRT latency of a shrunk model against its original's.

    python benchmarks/shrink.py [--runs 40] [--only "ResNet50 int8"]

Batch 1, one thread, CPU time of `invoke` alone, the models in turn; medians. Weights are random: latency does not
depend on them. What widths the kernels like depends on the processor: the model is shrunk to multiples of 8, 32 and 64.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt import quantize, shrink

CASES = [("ResNet50", 96, "float32", 0.60), ("ResNet50", 96, "int8", 0.60),
         ("MobileNetV2", 160, "float32", 0.58), ("MobileNetV2", 160, "int8", 0.68)]
WIDTHS = [8, 32, 64]


def runner(model, mode, x):
    """Calls the interpreter once; returns its CPU time."""
    lite = quantize.convert(model, mode, calibration=x if mode == "int8" else None)
    interpreter = Interpreter(model_content=lite.content, num_threads=1)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], x[:1].astype(entry["dtype"]))

    def run():
        start = time.process_time()
        interpreter.invoke()
        return time.process_time() - start
    return run


def main(runs=40, only=""):
    for name, size, mode, claim in CASES:
        if only not in f"{name} {mode}":
            continue
        keras.utils.set_random_seed(0)
        x = np.random.default_rng(0).normal(size=(8, size, size, 3)).astype("float32")
        model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
        models = [model, *(shrink.channels(model, macs=0.5, round_to=width) for width in WIDTHS)]
        runners = [runner(one, mode, x) for one in models]
        times = [[run() for run in runners] for _ in range(runs + 5)][5:]
        before, *after = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name} at {size} px, {mode}, half the MACs: {before:.2f} ms, " + ", ".join(
            f"round_to={width}: x{found / before:.2f}" for width, found in zip(WIDTHS, after, strict=True))
            + f" (claimed: best <= x{claim:.2f})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--only", default="", help="part of a network's name and mode")
    main(**vars(parser.parse_args()))
