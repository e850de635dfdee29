"""What a step of distillation costs, against Keras' own Distiller with the same models, side by side in one run."""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from tfopt import distill

BATCH, STEPS, ROUNDS = 64, 100, 9


def dense(units, seed):
    """Small, so that what a distiller adds to a step is not lost in the noise of matrix products."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(units, "relu"),
                             keras.layers.Dense(10)])


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH * STEPS, 28, 28)).astype("float32"), rng.integers(0, 10, BATCH * STEPS)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache()


def compiled(model):
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def medians(candidates, batches):
    """Median CPU seconds of an epoch for each candidate; the rounds are interleaved."""
    for model in candidates.values():
        model.fit(batches, epochs=2, verbose=0)                                  # traced and warm
    spent = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, model in candidates.items():
            start = time.process_time()
            model.fit(batches, verbose=0)
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def main():
    kl = keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())
    cost = medians({
        "student": compiled(dense(32, 0)),
        "live": compiled(distill.Distiller(dense(64, 1), dense(32, 0), distill.Logits(4.0))),
        "keras": compiled(keras.distillation.Distiller(dense(64, 1), dense(32, 0), kl)),
    }, data())
    print(f"distill: step of Distiller / keras.distillation.Distiller = {cost['live'] / cost['keras']:.3f}")
    print(f"distill: step of Distiller / the student alone = {cost['live'] / cost['student']:.2f}")


if __name__ == "__main__":
    main()
