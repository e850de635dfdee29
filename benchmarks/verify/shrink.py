"""Is a shrunk model exact, and what does it cost in accuracy? Sweeps over architectures, random graphs, Fashion-MNIST.

    python benchmarks/verify/shrink.py [architectures] [graphs] [accuracy] [widths] [latency]

Each row is appended to docs/measured/shrink_*.csv when it is done, so an interrupted run goes on where it stopped.
What a shrunk model must compute is found by tests/graphs.py, without any bookkeeping of `shrink`. Accuracy needs
Fashion-MNIST where `keras.datasets.fashion_mnist.load_data()` finds it. "widths" measures which numbers of channels the
LiteRT kernels of this processor like, "latency" what a target came to.
"""

import os
import pathlib
import subprocess
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PROJECT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from graphs import gap, leaves, random_model, randomize, silenced  # noqa: E402

from tfopt import distill, quantize, report, shrink  # noqa: E402

MEASURED = PROJECT / "docs" / "measured"
ARCHITECTURES = [
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "ResNet50", "ResNet50V2", "DenseNet121",
    "EfficientNetB0", "EfficientNetV2B0", "VGG16", "Xception", "InceptionV3", "InceptionResNetV2", "NASNetMobile",
    "ConvNeXtTiny", "ResNet101V2", "VGG19"]
GRAPHS, SEEDS, WORK = 200, 3, PROJECT / "results" / "shrink"
FIRST, LATER, BATCH = 3, 2, 128


def append(topic, **row):
    path = MEASURED / f"shrink_{topic}.csv"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
    print(topic, row, flush=True)


def done(topic, *columns):
    path = MEASURED / f"shrink_{topic}.csv"
    return set(pd.read_csv(path)[list(columns)].itertuples(index=False, name=None)) if path.exists() else set()


# Architectures


def architectures():
    for name in ARCHITECTURES:
        if (name,) not in done("architectures", "model"):          # in a process of its own, for its memory
            subprocess.run([sys.executable, "-P", __file__, "architecture", name], check=False)


def architecture(name, size=96):
    """Random weights, and batch-norm statistics that fit them up to some noise: the outputs depend on the input."""
    rng = np.random.default_rng(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=100, classifier_activation=None)
    randomize(model, rng)
    x = rng.normal(size=(8, size, size, 3)).astype("float32")
    if name.startswith(("MobileNetV3", "Efficient", "ConvNeXt")):
        x = 127 + 64 * x                                            # they rescale by themselves
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        model = shrink.recalibrate(model, x)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_variance.assign(layer.moving_variance * rng.uniform(0.7, 1.4, layer.moving_mean.shape))
                layer.moving_mean.assign(layer.moving_mean + 0.1 * rng.normal(size=layer.moving_mean.shape)
                                         * np.sqrt(layer.moving_variance))
    start = time.process_time()
    small = shrink.channels(model, macs=0.5)
    seconds = time.process_time() - start
    shrunk = [path for path, layer in leaves(model).items() if "kernel" in "".join(w.name for w in layer.weights)
              and layer.weights[0].shape[-1] != leaves(small)[path].weights[0].shape[-1]]
    x, y = x[:2], model(x[:2]).numpy()
    before, after = (sum(work(layer) for layer in leaves(one).values()) for one in (model, small))
    planned = shrink.plan(small).macs.sum() / shrink.plan(model).macs.sum()
    append("architectures", model=name, difference=gap(silenced(model, small), small, x),
           control=gap(silenced(model, small, swap=shrunk[len(shrunk) // 2]), small, x),
           spread=float(y.std(0).mean() / np.abs(y).max()), macs_planned=round(planned, 4),
           macs_counted=round(after / before, 4), parameters=model.count_params(),
           parameters_left=small.count_params(), seconds=round(seconds, 1))


def work(layer):
    """Multiply-accumulates of a layer: elements of its kernels times places of its output."""
    places = np.prod([n for n in layer.output.shape[1:-1]], dtype=float)
    return places * sum(float(np.prod(w.shape)) for w in layer.weights if "kernel" in w.name)


# Random graphs


def graphs():
    for seed in range(GRAPHS):
        if (seed,) in done("graphs", "seed"):
            continue
        keras.backend.clear_session()
        rng, model = np.random.default_rng(seed), random_model(seed)
        shapes = [(4, *x.shape[1:]) for x in model.inputs]
        x = [rng.normal(size=shape).astype("float32") for shape in shapes]
        x = x if len(x) > 1 else x[0]
        options = {"keep": float(rng.choice([0.3, 0.5, 0.7])), "round_to": int(rng.choice([1, 4, 8])),
                   "importance": str(rng.choice(["l1", "l2", "fpgm", "random"]))}
        table = shrink.plan(model)
        row = {"seed": seed, **options, "layers": len(leaves(model)), "groups": table.group.max() + 1}
        if not row["groups"]:
            append("graphs", **row, difference=None, parameters=model.count_params(), parameters_left=None)
            continue
        small = shrink.channels(model, **options)
        append("graphs", **row, difference=gap(silenced(model, small), small, x), parameters=model.count_params(),
               parameters_left=small.count_params())


# Accuracy


def cnn(widths=(32, 64, 32)):
    layers = keras.layers
    conv, norm = {"padding": "same", "use_bias": False}, layers.BatchNormalization
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(widths[0], 3, **conv), norm(), layers.ReLU(), layers.MaxPooling2D(),
        layers.Conv2D(widths[1], 3, **conv), norm(), layers.ReLU(), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(widths[2], activation="relu"), layers.Dense(10)])


def fit(model, train, epochs, rate=1e-3):
    steps = -(-len(train[0]) // BATCH) * epochs
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def same_shape(model):
    """The small network with new weights."""
    return cnn([layer.filters if hasattr(layer, "filters") else layer.units for layer in model.layers
                if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)][:3])


def distilled(base, train):
    student = distill.Distiller(base, shrink.channels(base, macs=0.5), distill.Logits(4.0))
    return fit(student, train, LATER).student


def shuffled(seed):
    return lambda parts: np.random.default_rng(seed).permutation(len(next(iter(parts.values()))))


RUNS = {                             # name: (epochs after the base, made from the base model, the data and the seed)
    "base": (0, lambda base, train, seed: base),
    "dense control": (LATER, lambda base, train, seed: fit(base, train, LATER)),
    "shrunk, as it is": (0, lambda base, train, seed: shrink.channels(base, macs=0.5)),
    "shrunk, recalibrated": (0, lambda base, train, seed: shrink.recalibrate(
        shrink.channels(base, macs=0.5), train[0][:1000])),
    "shrunk, fine-tuned": (LATER, lambda base, train, seed: fit(shrink.channels(base, macs=0.5), train, LATER)),
    "ranked over all layers, recalibrated": (0, lambda base, train, seed: shrink.recalibrate(
        shrink.channels(base, macs=0.5, ranking="global"), train[0][:1000])),
    "ranked over all layers, fine-tuned": (LATER, lambda base, train, seed: fit(
        shrink.channels(base, macs=0.5, ranking="global"), train, LATER)),
    "random channels, fine-tuned": (LATER, lambda base, train, seed: fit(
        shrink.channels(base, macs=0.5, importance=shuffled(seed)), train, LATER)),
    "shrunk, distilled": (LATER, lambda base, train, seed: distilled(base, train)),
    "small from scratch": (LATER, lambda base, train, seed: fit(
        same_shape(shrink.channels(base, macs=0.5)), train, FIRST + LATER)),
}


def accuracy():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    train, test = (x[..., None] / np.float32(255), y), (x_test[..., None] / np.float32(255), y_test)
    WORK.mkdir(parents=True, exist_ok=True)
    for seed in range(SEEDS):
        path = WORK / f"base_{seed}.keras"
        for name, (epochs, make) in RUNS.items():
            if (seed, name) in done("accuracy", "seed", "model"):
                continue
            if not path.exists():
                keras.utils.set_random_seed(seed)
                fit(cnn(), train, FIRST).save(path)
            keras.utils.set_random_seed(seed)
            model = make(keras.models.load_model(path), train, seed)
            right = model.predict(test[0], batch_size=500, verbose=0).argmax(1) == test[1]
            append("accuracy", seed=seed, model=name, epochs=FIRST + epochs, accuracy=round(float(right.mean()), 4),
                   parameters=model.count_params(), macs=int(shrink.plan(model).macs.sum()))


# Widths


def widths(low=48, high=80, runs=100):
    """Time of a multiply-accumulate in a 3x3 and a 1x1 convolution of so many channels, next to that with 64."""
    for mode in ("float32", "int8"):
        files = {}
        for width in range(low, high + 1):
            if (mode, width) in done("widths", "mode", "width"):
                continue
            x = np.random.default_rng(0).normal(size=(8, 14, 14, width)).astype("float32")
            model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Conv2D(width, 3, padding="same"),
                                      keras.layers.Conv2D(width, 1)])
            files[str(width)] = quantize.convert(model, mode, calibration=x, rounding="nearest")
        rows = report.compare(files, runs=runs).rows if files else []
        each = {int(row.name): row.latency_ms / row.macs for row in rows}
        for row in rows:
            width = int(row.name)
            step = max(n for n in (1, 4, 8, 16, 32) if width % n == 0)
            append("widths", mode=mode, width=width, widths=f"multiples of {step}",
                   ms=round(row.latency_ms, 4), time_of_a_mac=round(each[width] / each[64], 3))
    print(pd.read_csv(MEASURED / "shrink_widths.csv").pivot_table("time_of_a_mac", "widths", "mode").round(2))


# Latency


def latency(targets=(0.7, 0.5, 0.3)):
    """What was asked for, and what files that are converted and measured anew take."""
    keras.utils.set_random_seed(0)
    model, x = cnn((64, 128, 64)), np.random.default_rng(0).random((8, 28, 28, 1)).astype("float32")
    for target in targets:
        for width in (8, 32):
            if (target, width) not in done("latency", "target", "round_to"):
                small = shrink.channels(model, latency=target, round_to=width)
                files = {name: quantize.convert(one, "float32", calibration=x)
                         for name, one in {"model": model, "small": small}.items()}
                before, after = (row.latency_ms for row in report.compare(files, runs=100).rows)
                append("latency", target=target, round_to=width, latency=round(after / before, 3), ms=round(before, 3),
                       macs=round(shrink.plan(small).macs.sum() / shrink.plan(model).macs.sum(), 3))


PARTS = {"architectures": architectures, "graphs": graphs, "accuracy": accuracy, "widths": widths,
         "latency": latency}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["architecture"]:
        architecture(sys.argv[2])
    else:
        for part in sys.argv[1:] or PARTS:
            PARTS[part]()
