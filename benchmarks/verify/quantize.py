"""Whole architectures through quantization-aware training into int8 files: how much of each computes in integers.

Weights are random (pretrained ones need the internet), BatchNormalization has the statistics of the images, and the
images are patches of scikit-learn's two photographs. Each is wrapped, calibrated, trained for some steps, converted
and run in LiteRT. Appends one row an architecture to docs/measured/quantize.csv, so an interrupted run goes on where
it stopped. `python benchmarks/verify/quantize.py MobileNetV2` runs one.
"""

import pathlib
import sys
import time

import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_images

from tfopt import quantize

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "quantize.csv"
BANDS, IMAGES, STEPS = 5, 64, 6                               # classes: two photographs in five bands each


def small_cnn(input_shape, classes, **_):
    layers = keras.layers
    x = inputs = keras.Input(input_shape)
    for filters in (16, 32):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, use_bias=False)(x)))
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


ARCHITECTURES = {"small CNN": (small_cnn, 32), "MobileNetV2": (keras.applications.MobileNetV2, 96),
                 "MobileNetV3Small": (keras.applications.MobileNetV3Small, 96),
                 "ResNet50": (keras.applications.ResNet50, 64),
                 "EfficientNetB0": (keras.applications.EfficientNetB0, 96),
                 "DenseNet121": (keras.applications.DenseNet121, 64),
                 "ConvNeXtTiny": (keras.applications.ConvNeXtTiny, 64)}
SCALED = ("MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny")           # these take 0 ... 255, the others -1 ... 1


def patches(size, count, seed=0):
    """Squares of the photographs, and which photograph and band each is from."""
    random, photographs = np.random.default_rng(seed), load_sample_images().images
    x, y = np.empty((count, size, size, 3), "float32"), random.integers(2 * BANDS, size=count)
    for image, label in zip(x, y, strict=True):
        photograph = photographs[label // BANDS]
        height, width = (length - size for length in photograph.shape[:2])
        top, left = random.integers(height), int(width * (label % BANDS + random.random()) / BANDS)
        image[:] = photograph[top:top + size, left:left + size]
    return x, y


def learn_statistics(model, x):
    """Gives BatchNormalization the statistics of the images."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.5
    for _ in range(8):
        model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def timed(function, *args, **options):
    start = time.process_time()
    result = function(*args, **options)
    return result, round(time.process_time() - start, 1)


def measure(name):
    keras.utils.set_random_seed(0)
    build, size = ARCHITECTURES[name]
    x, y = patches(size, IMAGES)
    x = x if name in SCALED else x / 127.5 - 1
    model = build(input_shape=(size, size, 3), classes=2 * BANDS, weights=None)
    learn_statistics(model, x[:32])
    aware, wrapping = timed(quantize.wrap, model)
    _, calibrating = timed(quantize.calibrate, aware, x)
    aware.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    aware.fit(x, y, batch_size=IMAGES // 4, steps_per_epoch=STEPS // 2, epochs=2, verbose=0)
    lite, converting = timed(quantize.convert, aware, calibration=x)
    plan, report = lite.plan, lite.report
    left = plan[plan["status"] != "selected"]
    allowed = ", ".join(f"{count} {kind}" for kind, count in left["class"].value_counts().items())
    return {"model": name, "size": size, "weights": model.count_params(), "layers": len(plan),
            "layers_done": len(plan) - len(left), "not_done": allowed, "ops": len(lite.ops),
            "integer_ops": round(report["integer_ops"], 4), "integer_macs": round(report["integer_macs"], 4),
            "float_ops": sum(report["float_ops"].values()), "max_difference": round(report["max_difference"], 4),
            "agreement": report["agreement"], "kilobytes": lite.size // 1000, "cpu_seconds_wrap": wrapping,
            "cpu_seconds_calibrate": calibrating, "cpu_seconds_convert": converting}


def main():
    done = pd.read_csv(TABLE)["model"].tolist() if TABLE.exists() else []
    for name in sys.argv[1:] or ARCHITECTURES:
        if name not in done:
            row = measure(name)
            print(row, flush=True)
            pd.DataFrame([row]).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)


if __name__ == "__main__":
    main()
