"""Two processes train one network on scikit-learn's digits, and end with the weights of one device.

    python examples/multi_worker.py [--quick] [--save DIR]

trains on one device, and then starts itself twice with `python -m tfopt.distribute --workers 2`: as it is, and with
Keras' own strategy alone, which does not run. Several machines run the same script: `--hosts a,b` in place of
`--workers 2` prints the commands.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tfopt import distribute, schedules

BATCH = 48                                                    # of all workers together; 30 of them are an epoch


def samples():
    x, y = load_digits(return_X_y=True)
    return train_test_split((x / 16).astype("float32"), y, test_size=357, stratify=y, random_state=0)


def build():
    return keras.Sequential([
        keras.Input((64,)), keras.layers.Dense(64, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-4)),
        keras.layers.BatchNormalization(synchronized=True), keras.layers.ReLU(), keras.layers.Dense(10)])


def train(strategy, epochs):
    """The same lines on one device, several GPUs, several machines."""
    keras.utils.set_random_seed(0)                            # all workers draw the same weights and the same order
    x, x_test, y, y_test = samples()
    with strategy.scope():
        model = build()
        rate = schedules.OneCycle(0.01, len(x) // BATCH * epochs)
        model.compile(distribute.GlobalBatchOptimizer(keras.optimizers.Adam(rate, global_clipnorm=1.)),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model.get_weights(), model.evaluate(x_test, y_test, batch_size=BATCH, verbose=0, return_dict=True)


def main(quick=False, save="results"):
    """Prints what each way gave; returns the largest difference between weights of one device and of two workers."""
    epochs = 2 if quick else 10
    weights, seen = train(distribute.strategy("one"), epochs)
    print(f"one device                  {seen}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.npz"

        def workers(*options):
            launch = [sys.executable, "-P", "-m", "tfopt.distribute", "--workers", "2", __file__]
            return subprocess.run([*launch, "--worker", str(path), "--epochs", str(epochs), *options], text=True,
                                  capture_output=True)

        stock = workers("--stock")
        print(f"two workers, Keras alone    exit code {stock.returncode}: {stock.stderr.strip().splitlines()[-1]}")
        ours = workers()
        print(ours.stdout, end="")
        if ours.returncode:
            raise SystemExit(ours.stderr)
        with np.load(path) as found:
            difference = max(float(np.abs(weight - found[f"arr_{place}"]).max())
                             for place, weight in enumerate(weights))
    print(f"largest difference between the weights of one device and of two workers: {difference:.1e}")
    return difference


def worker(path, epochs, stock):
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if stock else distribute.strategy()
    weights, seen = train(strategy, epochs)
    print(f"two workers, through tfopt  {seen}")
    if strategy.cluster_resolver.task_id == 0:                # one of them writes
        np.savez(path, *weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs")
    parser.add_argument("--save", default="results", metavar="DIR", help="not used: this example saves no picture")
    parser.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stock", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.epochs, options.stock)
    else:
        main(options.quick, options.save)
