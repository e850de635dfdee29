"""What `report` times, beside `model.predict`: one example through a small network.

Prints one ratio: milliseconds of `predict` by those of the compiled graph, medians of interleaved calls (wall clock:
that is what a user waits for).
"""

import time

import keras
import numpy as np

from tfopt import report

x = np.zeros((1, 784), "float32")
model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
model.predict(x, verbose=0)
predicted, measured = [], []
for _ in range(15):
    start = time.perf_counter()
    model.predict(x, verbose=0)
    predicted.append(1e3 * (time.perf_counter() - start))
    measured.append(report.measure(model, runs=5).latency_ms)
predicted, measured = np.median(predicted), np.median(measured)
print(f"model.predict / report's latency: {predicted / measured:.0f}x   ({predicted:.1f} ms, {measured:.2f} ms)")
