"""What distillation costs, against Keras' own Distiller and the student alone, side by side in one run."""

import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from tfopt import distill

BATCH, STEPS, ROUNDS = 128, 40, 7


def dense(units, seed):
    """Small, so that what a distiller adds to a step is not lost in the noise of matrix products."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(units, "relu"),
                             keras.layers.Dense(10)])


def convolutional(width, seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(width, 3, strides=2, activation="relu"),
              keras.layers.Conv2D(2 * width, 3, strides=2, activation="relu"),
              keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Reshape((28, 28, 1)), *layers])


def compiled(model):
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def medians(candidates):
    """Median CPU seconds of an epoch of each {name: (model, data)}; the rounds are interleaved."""
    for model, data in candidates.values():
        model.fit(data, epochs=2, verbose=0)                                     # traced and warm
    spent = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, (model, data) in candidates.items():
            start = time.process_time()
            model.fit(data, verbose=0)
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def shuffled(x, y):
    """What `cache_teacher` does with arrays, without the outputs."""
    rows = tf.data.Dataset.range(len(x)).shuffle(len(x)).batch(BATCH)
    x, y = tf.constant(x), tf.constant(y)
    return rows.map(lambda index: (tf.gather(x, index), tf.gather(y, index)), tf.data.AUTOTUNE).prefetch(2)


def main():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH * STEPS, 28, 28)).astype("float32"), rng.integers(0, 10, BATCH * STEPS)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache()
    kl = keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())

    live = medians({
        "student": (compiled(dense(32, 0)), batches),
        "live": (compiled(distill.Distiller(dense(64, 1), dense(32, 0), distill.Logits(4.0))), batches),
        "keras": (compiled(keras.distillation.Distiller(dense(64, 1), dense(32, 0), kl)), batches)})
    print(f"distill: step of Distiller / keras.distillation.Distiller = {live['live'] / live['keras']:.3f}")
    print(f"distill: step of Distiller / the student alone = {live['live'] / live['student']:.2f}")

    teacher, student = convolutional(112, 1), lambda: convolutional(16, 0)
    told = distill.cache_teacher(teacher, (x, y), top_k=5, batch_size=BATCH, verbose=0)
    cost = medians({
        "student": (compiled(student()), shuffled(x, y)),
        "cached": (compiled(distill.Distiller(None, student(), distill.Logits(4.0))), told),
        "keras": (compiled(keras.distillation.Distiller(teacher, student(), kl)), shuffled(x, y))})
    forward = (cost["keras"] - cost["student"]) / cost["student"]
    print(f"distill: a batch of the teacher's outputs / a step of the student = {forward:.1f}")
    print(f"distill: epoch with cached outputs / the student alone = {cost['cached'] / cost['student']:.3f}")
    print(f"distill: epoch of Keras' Distiller / with cached outputs = {cost['keras'] / cost['cached']:.2f}")

    with tempfile.TemporaryDirectory() as folder:
        thousand = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(1000)])
        distill.cache_teacher(thousand, x, directory=folder, top_k=10, verbose=0)
        size = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir())
    print(f"distill: disk for the 10 first of 1000 classes = {size / len(x):.1f} bytes per example")


if __name__ == "__main__":
    main()
