"""Does distillation help? Full Fashion-MNIST, a student of at most 100,000 parameters, equal epochs, several seeds.

    python benchmarks/verify/distill.py [--epochs 8] [--seeds 3] [method ...]

Each row is appended to docs/measured/distill.csv when it is done, so an interrupted run goes on where it stopped;
models that later rows start from are kept in results/distill. The table of means is printed at the end. The teacher,
the mean of four networks, is trained once. Fashion-MNIST comes from where
`keras.datasets.fashion_mnist.load_data()` finds it.
"""

import argparse
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd

from tfopt import augment, average, data, distill, prune, quantize

PROJECT = pathlib.Path(__file__).parents[2]
TABLE, WORK = PROJECT / "docs" / "measured" / "distill.csv", PROJECT / "results" / "distill"
BATCH, TUNE, MEMBERS, TEACHER_EPOCHS = 128, 3, 4, 10            # TUNE: epochs for pruned and quantized students
TEMPERATURE, STUDENT_WEIGHT = 2.0, 0.5
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FLIPS = augment.Pipeline([augment.Flip()], seed=1)


def student(seed):
    """Two convolutions with batch normalization, 52,414 parameters."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255)]
    for width in (16, 32):
        layers += [keras.layers.Conv2D(width, 3, padding="same", use_bias=False), keras.layers.BatchNormalization(),
                   keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(30, use_bias=False), keras.layers.BatchNormalization(),
               keras.layers.ReLU(), keras.layers.Dense(10)]
    return keras.Sequential(layers, name="student")


def compiled(model, steps, rate=4e-3):
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), CROSS_ENTROPY,
                  metrics=["accuracy"])
    return model


def accuracy(model, x, y):
    quiet = {"verbose": 0} if isinstance(model, keras.Model) else {}                  # a LiteRT file shows nothing
    return round(float((np.argmax(model.predict(x.astype("float32"), **quiet), -1) == y).mean()), 4)


class Bench:
    """The data, the teacher, and one method per name; each returns a trained model with `predict`."""

    def __init__(self, epochs):
        (x, y), (self.x_test, self.y_test) = keras.datasets.fashion_mnist.load_data()
        self.x, self.y, self.x_test = x[..., None], y.astype("int64"), self.x_test[..., None]
        self.epochs, self.steps = epochs, -(-len(x) // BATCH)
        WORK.mkdir(parents=True, exist_ok=True)

    def member(self, number):
        path = WORK / f"member_{number}.keras"
        if not path.exists():
            data_set = data.arrays(self.x, self.y, BATCH, seed=number, augment=FLIPS)
            model = self.fit(student(100 + number), TEACHER_EPOCHS, data_set)
            print(f"member {number} of the teacher: {accuracy(model, self.x_test, self.y_test)}", flush=True)
            model.save(path)
        return keras.saving.load_model(path)

    def teacher(self, seed=0):
        """The mean of networks like the student that saw flipped images too; one for all seeds."""
        path = WORK / "teacher.keras"
        if not path.exists():
            model = average.outputs([self.member(number) for number in range(MEMBERS)])
            print(f"teacher: {accuracy(model, self.x_test, self.y_test)}", flush=True)
            model.save(path)
        return keras.saving.load_model(path)

    def fit(self, model, epochs=None, data_set=None, rate=4e-3):
        epochs = epochs or self.epochs
        compiled(model, epochs * self.steps, rate)
        model.fit(data.arrays(self.x, self.y, BATCH) if data_set is None else data_set, epochs=epochs, verbose=0)
        return model

    def distilled(self, seed, losses, model=None, live=False, **options):
        """Learns from cached logits, or `live` from the teacher itself: the same to the last digits."""
        made = distill.Distiller(self.teacher() if live else None, model or student(seed), losses,
                                 student_loss_weight=STUDENT_WEIGHT)
        return self.fit(made, data_set=None if live else self.cached(), **options).student

    def cached(self, views=1):
        path = WORK / f"logits_{views}"
        options = {"augment": FLIPS, "views": views} if views > 1 else {}
        return distill.cache_teacher(self.teacher(), (self.x, self.y), directory=path, batch_size=BATCH, **options)

    def alone(self, seed):
        model = self.fit(student(seed))
        model.save(WORK / f"alone_{self.epochs}_{seed}.keras")
        return model

    def alone_augmented(self, seed):
        return self.fit(student(seed), data_set=data.arrays(self.x, self.y, BATCH, augment=FLIPS))

    def of_keras(self, seed, loss):
        made = keras.distillation.Distiller(self.teacher(), student(seed), loss, student_loss_weight=STUDENT_WEIGHT)
        return self.fit(made).student

    def keras_default(self, seed):
        return self.of_keras(seed, keras.distillation.LogitsDistillation())

    def keras_kl(self, seed):
        divergence = keras.losses.KLDivergence()
        return self.of_keras(seed, keras.distillation.LogitsDistillation(TEMPERATURE, loss=divergence))

    def live(self, seed):
        return self.distilled(seed, distill.Logits(TEMPERATURE), live=True)

    def cached_logits(self, seed):
        return self.distilled(seed, distill.Logits(TEMPERATURE))

    def cached_views(self, seed):
        """Four views in one pass: a quarter of the passes is as many steps."""
        views = 4
        made = distill.Distiller(None, student(seed), distill.Logits(TEMPERATURE), student_loss_weight=STUDENT_WEIGHT)
        compiled(made, self.epochs * self.steps)
        made.fit(self.cached(views), epochs=max(self.epochs // views, 1), verbose=0)
        return made.student

    def decoupled(self, seed):
        return self.distilled(seed, distill.DecoupledKD(TEMPERATURE, others=2.0))

    def start(self, seed):
        path = WORK / f"alone_{self.epochs}_{seed}.keras"
        return keras.saving.load_model(path) if path.exists() else self.alone(seed)

    def tuned(self, wrapped, seed, distilled):
        options = {"epochs": TUNE, "rate": 1e-3}
        if distilled:
            return self.distilled(seed, distill.Logits(TEMPERATURE), wrapped, **options)
        return self.fit(wrapped, **options)

    def prune80(self, seed, distilled=False):
        every = max(self.steps // 10, 1)                           # the last epoch trains with all the zeros in place
        wrapped = prune.wrap(self.start(seed), 0.8, end=10 * (TUNE - 1) * every, every=every)
        return prune.strip(self.tuned(wrapped, seed, distilled))

    def prune80_distilled(self, seed):
        return self.prune80(seed, distilled=True)

    def int8(self, seed, distilled=False):
        wrapped = self.tuned(quantize.wrap(self.start(seed)), seed, distilled)
        return quantize.convert(wrapped, "int8", calibration=self.x[:500].astype("float32"))

    def int8_distilled(self, seed):
        return self.int8(seed, distilled=True)


METHODS = ["teacher", "alone", "cached_logits", "decoupled", "prune80", "prune80_distilled", "int8", "int8_distilled",
           "alone_augmented", "cached_views", "live", "keras_kl", "keras_default"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="keras")
    bench = Bench(arguments.epochs)
    TABLE.parent.mkdir(exist_ok=True)
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            if TABLE.exists() and (pd.read_csv(TABLE)[["method", "seed", "epochs"]]
                                   == [method, seed, arguments.epochs]).all(axis=1).any():
                continue
            start = time.process_time()
            model = getattr(bench, method)(seed)
            row = {"method": method, "seed": seed, "epochs": arguments.epochs,
                   "accuracy": accuracy(model, bench.x_test, bench.y_test),
                   "cpu_seconds": round(time.process_time() - start)}
            pd.DataFrame([row]).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
            print(row, flush=True)
            keras.backend.clear_session()
    table = pd.read_csv(TABLE).query("epochs == @arguments.epochs")
    print(table.groupby("method", sort=False).accuracy.agg(["mean", "std", "count"]).round(4).to_string())


if __name__ == "__main__":
    main()
