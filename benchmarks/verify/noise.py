"""Training with noise, and sharpness-aware minimization (SAM): what do they buy? Fashion-MNIST, a small network.

    python benchmarks/verify/noise.py

All trainings see 20,000 images, flipped at random, with SGD and OneCycle on one thread; accuracies are on the 10,000
test images, three seeds. Part "noise": eight epochs with smoothed labels, noisy images or noisy weights; then the
accuracy with noise in the weights, in files of 8 and 4 bits (the nearest integers), and under corrupted images (the
first 2,000, and the first seed alone).
Part "sharpness": SAM and ASAM take two gradients a step, so they get as many epochs as fit into the CPU time of plain
training. The rows of each seed are added to docs/measured/noise.csv as they are measured; what is there is not made
again.
"""

import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers

from tfopt import augment, data, quantize, regularizers, report, schedules

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "noise.csv"
IMAGES, BATCH, PEAK, SEEDS, DRAWS = 20_000, 100, 0.05, 3, 5


class Perturbed(keras.Model):
    """Takes the gradient at weights nearby, and applies it to the weights.

    Args:
      move: `(model, x, y) -> how far away`, a tensor for each trainable variable.
    """

    def __init__(self, *args, move, **kwargs):
        super().__init__(*args, **kwargs)
        self.move = move

    def gradients(self, x, y):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        return loss, tape.gradient(loss, self.trainable_weights)

    def train_step(self, batch):
        x, y = batch
        weights = self.trainable_variables
        kept = [tf.identity(weight.value) for weight in weights]
        for weight, start, far in zip(weights, kept, self.move(self, x, y), strict=True):
            weight.assign(start + far)
        loss, found = self.gradients(x, y)
        for weight, start in zip(weights, kept, strict=True):
            weight.assign(start)
        self.optimizer.apply(found, weights)
        return {"loss": loss}


def sam(rho):
    """Steepest ascent by a distance: rho * g / |g|."""
    def move(model, x, y):
        gradients = model.gradients(x, y)[1]
        scale = rho / (tf.linalg.global_norm(gradients) + 1e-12)
        return [scale * gradient for gradient in gradients]
    return move


def asam(rho, eta=0.01):
    """The same with distances relative to the weights: rho * T^2 g / |T g|, T = |w| + eta for kernels, 1 for biases."""
    def move(model, x, y):
        sizes = [tf.abs(weight.value) + eta if len(weight.shape) > 1 else tf.ones_like(weight.value)
                 for weight in model.trainable_variables]
        scaled = [size * gradient for size, gradient in zip(sizes, model.gradients(x, y)[1], strict=True)]
        scale = rho / (tf.linalg.global_norm(scaled) + 1e-12)
        return [scale * size * gradient for size, gradient in zip(sizes, scaled, strict=True)]
    return move


def trained(seed, train, *, epochs, move=None, smoothing=0.0, image_noise=0.0, weight_noise=0.0):
    """A network, and the CPU seconds that its training took."""
    keras.utils.set_random_seed(seed)
    start, inputs = time.process_time(), keras.Input((28, 28, 1))
    x = inputs
    for filters in (24, 48):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(64, activation="relu")(layers.Flatten()(layers.MaxPooling2D()(x)))
    x = layers.Dense(10)(x)
    model = keras.Model(inputs, x) if move is None else Perturbed(inputs, x, move=move)
    if weight_noise:
        model = regularizers.weight_noise(model, weight_noise, seed=seed)
    operations = [augment.Flip(), *([augment.Noise(image_noise)] if image_noise else [])]
    pipeline = augment.Pipeline(operations, value_range=(0, 1), seed=seed)
    rate = schedules.OneCycle(PEAK, total=len(train[0]) // BATCH * epochs)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True), loss, jit_compile=False)
    model.fit(data.arrays(*train, BATCH, augment=pipeline, seed=seed), epochs=epochs, verbose=0)
    seconds = round(time.process_time() - start, 1)
    return regularizers.strip(model) if weight_noise else model, seconds


def accuracy(model, x, y):
    """In %."""
    return 100 * (model.predict(x, batch_size=500, verbose=0).argmax(1) == y).mean()


def under_weight_noise(model, x, y, share, seed):
    """Accuracy with Gaussian noise in all kernels, a share of each one's largest weight; the mean of some draws."""
    kernels = [weight for weight in model.weights if len(weight.shape) > 1]
    kept, rng, found = [kernel.numpy() for kernel in kernels], np.random.default_rng(seed), []
    for _ in range(DRAWS):
        for kernel, start in zip(kernels, kept, strict=True):
            kernel.assign(start + rng.normal(size=start.shape) * share * abs(start).max())
        found.append(accuracy(model, x, y))
    for kernel, start in zip(kernels, kept, strict=True):
        kernel.assign(start)
    return np.mean(found)


TRAININGS = {                                              # name: (part, arguments of `trained`)
    "as usual": ("noise", {"epochs": 8}),
    "label smoothing 0.1": ("noise", {"epochs": 8, "smoothing": 0.1}),
    "image noise 0.1": ("noise", {"epochs": 8, "image_noise": 0.1}),
    "weight noise 0.05": ("noise", {"epochs": 8, "weight_noise": 0.05}),
    "weight noise 0.1": ("noise", {"epochs": 8, "weight_noise": 0.1}),
    "plain": ("sharpness", {"epochs": 20}),
    "SAM 0.05": ("sharpness", {"epochs": 12, "move": sam(0.05)}),
    "SAM 0.1": ("sharpness", {"epochs": 12, "move": sam(0.1)}),
    "ASAM 0.5": ("sharpness", {"epochs": 12, "move": asam(0.5)}),
}


def measures(model, x, y, calibration, seed):
    """What noise does to a model, without the corruptions."""
    row = {f"weights_{share}": under_weight_noise(model, x, y, share, seed) for share in (0.05, 0.1, 0.2)}
    for mode in ("int8", "int4"):
        row[mode] = accuracy(quantize.convert(model, mode, calibration=calibration, rounding="nearest"), x, y)
    return row


def main():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (images[..., None] / np.float32(255) for images in (x, x_test))
    train = x[:IMAGES], keras.utils.to_categorical(y[:IMAGES], 10)
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    for seed in range(SEEDS):
        made = {row["training"] for row in rows if row["seed"] == seed}
        models, new = {}, {}
        for name, (part, arguments) in TRAININGS.items():
            if name in made:
                continue
            model, seconds = trained(seed, train, **arguments)
            new[name] = {"part": part, "training": name, "seed": seed, "epochs": arguments["epochs"],
                         "cpu_seconds": seconds, "accuracy": accuracy(model, x_test, y_test)}
            if part == "noise":
                models[name] = model
                new[name] |= measures(model, x_test, y_test, x[:256], seed)
            print(*new[name].values(), flush=True)
        if models and seed == 0:
            found = report.robustness(models, (x_test[:2000], y_test[:2000]), severities=(1, 3, 5), verbose=0,
                                      value_range=(0, 1))
            for name in models:
                new[name] |= {"images_noise": 100 * found.by_corruption.loc["noise", name],
                              "images_all": 100 * found.summary.loc[name, "mean"]}
        rows += new.values()
        pd.DataFrame(rows).round(2).to_csv(TABLE, index=False)
    table = pd.DataFrame(rows).drop(columns="seed")
    print(table.groupby(["part", "training"], sort=False).mean().round(2).to_string())
    print("CPU seconds:", round(time.process_time()))


if __name__ == "__main__":
    main()
