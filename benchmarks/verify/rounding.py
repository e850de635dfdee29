"""Files in 8 and 4 bits, made after training and in training, of three networks trained on Fashion-MNIST.

    python benchmarks/verify/rounding.py

Each network learns from 20,000 images for five epochs, and from there for three more with the rounding in the loop.
The channels of the separable one are scaled apart after the five epochs, by factors around e, and the layers that read
them are scaled back: the same function, which rounding finds hard. All accuracies are on the 10,000 test images. The
rows of each network are added to docs/measured/rounding.csv as they are measured; what is there is not made again.
litert-quantizer's files are made of the same float file; without it (see beside.py) these rows are left out.
"""

import gzip
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import beside
import keras
import numpy as np
import pandas as pd
from keras import layers

from tfopt import quantize

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "rounding.csv"
IMAGES, BATCH, EPOCHS, MORE = 20_000, 100, 5, 3
LAST = "int4 in training"                                  # of the files of a network


def data():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (images[..., None] / np.float32(255) for images in (x, x_test))
    return (x[:IMAGES], y[:IMAGES]), (x_test, y_test)


def conv(x, filters, size=3, strides=1, relu=True):
    x = layers.BatchNormalization()(layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x))
    return layers.ReLU()(x) if relu else x


def depthwise(x, strides=1):
    x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def plain(inputs):
    x = conv(conv(inputs, 16, strides=2), 32, strides=2)
    return layers.Dense(48, activation="relu")(layers.Flatten()(layers.MaxPooling2D(2)(x)))


def separable(inputs):
    x = conv(inputs, 24, strides=2)
    for filters, strides in ((48, 2), (64, 1), (96, 2)):
        x = conv(depthwise(x, strides), filters, 1)
    return layers.GlobalAveragePooling2D()(x)


def residual(inputs):
    x = conv(inputs, 16, strides=2)
    for filters in (24, 48):
        x = conv(x, filters, strides=2)
        y = conv(conv(x, filters // 2, 1), filters, relu=False)
        x = layers.ReLU()(layers.Add()([x, y]))
    return layers.GlobalAveragePooling2D()(x)


def fit(model, train, epochs, rate):
    schedule = keras.optimizers.schedules.CosineDecay(rate, len(train[0]) // BATCH * epochs)
    model.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def scale_apart(model, rng):
    """Multiplies the channels behind each BatchNormalization by exp(normal), and divides what reads them."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            following = next(iter(consumer for consumer in model.layers[model.layers.index(layer) + 1:]
                                  if isinstance(consumer, layers.Conv2D | layers.DepthwiseConv2D)), None)
            if following is None:
                return
            factors = np.exp(rng.normal(size=layer.gamma.shape)).astype("float32")
            layer.gamma.assign(layer.gamma * factors)
            layer.beta.assign(layer.beta * factors)
            following.kernel.assign(following.kernel / factors[:, None])


def files(model, train):
    """(name, file, CPU seconds it took) of each way to make one."""
    ways = [(f"{mode} {name}", lambda mode=mode, rounding=rounding: quantize.convert(
        model, mode, calibration=train[0][:256], rounding=rounding))
        for mode in ("int8", "int4") for name, rounding in (("nearest", "nearest"), ("after training", "auto"))]
    if beside.installed():
        ways += [(f"int{bits} litert-quantizer", lambda bits=bits: beside.litert_quantizer(model, train[0][:256], bits))
                 for bits in (8, 4)]
    ways += [(f"int{bits} in training", lambda bits=bits: quantize.convert(fit(quantize.calibrate(
        quantize.wrap(model, bits=bits), train[0][:256]), train, MORE, 1e-3))) for bits in (8, 4)]
    for name, make in ways:
        start = time.process_time()
        lite = make()
        yield name, lite, time.process_time() - start


def main(networks=(plain, separable, residual), seeds=3):
    train, (x, y) = data()
    rows = pd.read_csv(TABLE, keep_default_na=False).to_dict("records") if TABLE.exists() else []
    for build in networks:
        for seed in range(seeds):
            if any((row["network"], row["seed"], row["file"]) == (build.__name__, seed, LAST) for row in rows):
                continue
            keras.utils.set_random_seed(seed)
            inputs, start = keras.Input((28, 28, 1)), time.process_time()
            model = fit(keras.Model(inputs, layers.Dense(10)(build(inputs))), train, EPOCHS, 3e-3)
            seconds = time.process_time() - start
            if build is separable:
                before = model.predict(x[:256], verbose=0)
                scale_apart(model, np.random.default_rng(seed))
                np.testing.assert_allclose(model.predict(x[:256], verbose=0), before, rtol=1e-3, atol=1e-3)
            first = {"network": build.__name__, "seed": seed, "parameters": model.count_params()}
            same = quantize.convert(model, "float32", calibration=x[:16])
            for name, lite, cpu in (("float32", same, seconds), *files(model, train)):
                start = time.process_time()
                right = lite.predict(x, verbose=0).argmax(1) == y
                rows.append({**first, "file": name, "accuracy": round(100 * right.mean(), 2), "bytes": lite.size,
                             "gzip": len(gzip.compress(lite.content, 6)),
                             "way": "" if "litert" in name else lite.report.get("rounding", ""),
                             "us_an_image": round((time.process_time() - start) / len(x) * 1e6, 1),
                             "cpu_seconds": round(cpu, 1)})
                print(*rows[-1].values(), flush=True)
                pd.DataFrame(rows).to_csv(TABLE, index=False)
    means = pd.DataFrame(rows).groupby(["network", "file"], sort=False)[["accuracy", "gzip", "us_an_image"]].mean()
    print(means.round(2).to_string())


if __name__ == "__main__":
    main()
