"""What Resume costs: CPU time of the same epochs with and without it, in turns, median of the ratios of adjacent runs.

Two networks of a million parameters with Adam (its states hold three million numbers), batches of 32, a state every
100 batches.
"""

import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np

from tfopt import callbacks

BATCH, BATCHES, EPOCHS, ROUNDS, EVERY = 32, 200, 1, 14, 100


def dense():
    return [keras.Input((784,)), keras.layers.Dense(900, "relu"), keras.layers.Dense(320, "relu"),
            keras.layers.Dropout(0.2), keras.layers.Dense(10)]


def convolutional():
    return [keras.Input((28, 28, 1)), keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Flatten(),
            keras.layers.Dense(1100, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(110, "relu"),
            keras.layers.Dense(10)]


def main():
    for build in (dense, convolutional):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(build())
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH * BATCHES, *model.input_shape[1:])).astype("float32")
        y = rng.integers(0, 10, len(x))

        def spent(*extra, model=model, x=x, y=y):
            start = time.process_time()
            model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=list(extra))
            return time.process_time() - start

        ratios, plain = [], []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(ROUNDS + 1):
                sides = [], [callbacks.Resume(pathlib.Path(folder, str(number)), every=EVERY)]
                order = (0, 1) if number % 2 else (1, 0)
                cost = {side: spent(*sides[side]) for side in order}
                if number:                                                   # the first pair traces and compiles
                    plain.append(cost[0])
                    ratios.append(cost[1] / cost[0])
            size = sum(file.stat().st_size for file in max(pathlib.Path(folder, str(number)).iterdir()).iterdir())
        middle = statistics.quantiles(ratios)
        print(f"{build.__name__}, {model.count_params() / 1e6:.2f} M parameters, {size / 1e6:.1f} MB every {EVERY} "
              f"batches: x{middle[1]:.3f} the CPU time (half of the pairs: {middle[0]:.3f} to {middle[2]:.3f}); "
              f"a batch takes {1e3 * statistics.median(plain) / (BATCHES * EPOCHS):.1f} ms", flush=True)


if __name__ == "__main__":
    main()
