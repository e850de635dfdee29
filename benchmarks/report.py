"""What `report` times: beside `model.predict`, and beside a tight loop of the LiteRT interpreter.

Prints ratios of medians over rounds in which both take turns (wall clock: that is what a user waits for). The first:
milliseconds of `predict` by those of the compiled graph, one example through a small network. The others: a LiteRT file
as `report` times it, alone and with its Keras model in one table, by what a loop of nothing but the interpreter takes.
"""

import time

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt import quantize, report

ROUNDS = 15


def milliseconds(call, runs):
    """Median of `runs` calls in a row."""
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - start))
    return np.median(spent)


def medians(*measurements):
    """The median of each over rounds in which they take turns."""
    return np.median([[measure() for measure in measurements] for _ in range(ROUNDS)], axis=0)


def tight_loop(content):
    """The interpreter, as LiteRT's own documentation calls it, again and again."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    zeros = np.zeros(entry["shape"], entry["dtype"])

    def call():
        interpreter.set_tensor(entry["index"], zeros)
        interpreter.invoke()
        interpreter.get_tensor(end["index"])

    milliseconds(call, 100)
    return milliseconds(call, 300)


def network(width):
    layers = keras.layers
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(width, 3, 2, activation="relu"),
                             layers.Conv2D(2 * width, 3, 2, activation="relu"), layers.Flatten(), layers.Dense(10)])


def main():
    x = np.zeros((1, 784), "float32")
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    model.predict(x, verbose=0)
    predicted, measured = medians(lambda: milliseconds(lambda: model.predict(x, verbose=0), 1),
                                  lambda: report.measure(model, runs=5).latency_ms)
    print(f"model.predict / report's latency: {predicted / measured:.0f}x   ({predicted:.1f} ms, {measured:.2f} ms)")

    calibration = np.random.default_rng(0).random((32, 28, 28, 1)).astype("float32")
    for width in (8, 64):
        model = network(width)
        for mode in ("float32", "int8"):
            lite = quantize.convert(model, mode, calibration=calibration if mode == "int8" else None)
            loop, alone, together = medians(
                lambda: tight_loop(lite.content),                                   # noqa: B023
                lambda: report.measure(lite, runs=300).latency_ms,                  # noqa: B023
                lambda: report.compare([model, lite], runs=300).rows[1].latency_ms) # noqa: B023
            print(f"{width:2} channels, {mode:7}: report's latency / a tight loop's: {alone / loop:.2f} alone, "
                  f"{together / loop:.2f} beside the Keras model   ({1e3 * loop:.0f} us)")


if __name__ == "__main__":
    main()
