"""Pruned, clustered and quantized on full Fashion-MNIST, each beside a control trained for as many epochs.

Every stage starts from a saved model and appends its rows to docs/measured/toolkit.csv, so an interrupted run goes on
where it stopped. Needs Fashion-MNIST where `keras.datasets.fashion_mnist.load_data()` finds it.
"""

import argparse
import pathlib

import keras
import numpy as np
import pandas as pd

from tfopt import cluster, prune, quantize, report

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "toolkit.csv"
BATCH, BASE, FIRST, LATER = 128, 8, 3, 2                      # epochs: before, in the first stage, in each later one


def data():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    shape = (-1, 28, 28, 1)
    return (x.reshape(shape) / np.float32(255), y), (x_test.reshape(shape) / np.float32(255), y_test)


def cnn():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(32, activation="relu"), layers.Dense(10)])


def fit(model, train, epochs, rate=1e-3):
    steps = len(train[0]) // BATCH * epochs
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=2)
    return model


def pruned(model, train, sparsity):
    steps = len(train[0]) // BATCH * FIRST
    end = steps * 2 // 3 // 20 * 20
    return prune.strip(fit(prune.wrap(model, sparsity, end=end, every=20), train, FIRST))


def clustered(model, train, epochs, **options):
    return cluster.strip(fit(cluster.wrap(model, 16, **options), train, epochs, rate=2e-4))


def trained_int8(model, train, epochs, preserve=None):
    """The LiteRT file after quantization-aware training, at the control's rate; shared values want a smaller one."""
    aware = quantize.calibrate(quantize.wrap(model, preserve=preserve), train[0][:1000])
    fit(aware, train, epochs, rate=2e-4 if preserve in ("clusters", "both") else 1e-3)
    return quantize.convert(aware, "int8")


def after_training_int8(model, train):
    return quantize.convert(model, "int8", calibration=train[0][:1000])


# stage: (what it starts from, epochs in all, how it is made). A name that ends in "int8" is a LiteRT file.
STAGES = {
    "base": (None, BASE, lambda _, train: fit(cnn(), train, BASE)),
    "control 1": ("base", BASE + FIRST, lambda model, train: fit(model, train, FIRST)),
    "control 2": ("control 1", BASE + FIRST + LATER, lambda model, train: fit(model, train, LATER)),
    "control 3": ("control 2", BASE + FIRST + 2 * LATER, lambda model, train: fit(model, train, LATER)),
    "sparsity 50%": ("base", BASE + FIRST, lambda model, train: pruned(model, train, 0.5)),
    "sparsity 80%": ("base", BASE + FIRST, lambda model, train: pruned(model, train, 0.8)),
    "sparsity 90%": ("base", BASE + FIRST, lambda model, train: pruned(model, train, 0.9)),
    "16 clusters": ("base", BASE + FIRST, lambda model, train: clustered(model, train, FIRST)),
    "80%, 16 clusters": ("sparsity 80%", BASE + FIRST + LATER,
                         lambda model, train: clustered(model, train, LATER, preserve_sparsity=True)),
    "control 1, int8": ("control 1", BASE + FIRST, after_training_int8),
    "sparsity 80%, int8": ("sparsity 80%", BASE + FIRST, after_training_int8),
    "16 clusters, int8": ("16 clusters", BASE + FIRST, after_training_int8),
    "QAT, int8": ("base", BASE + FIRST, lambda model, train: trained_int8(model, train, FIRST)),
    "PQAT, int8": ("sparsity 80%", BASE + FIRST + LATER,
                   lambda model, train: trained_int8(model, train, LATER, "sparsity")),
    "CQAT, int8": ("16 clusters", BASE + FIRST + LATER,
                   lambda model, train: trained_int8(model, train, LATER, "clusters")),
    "PCQAT, int8": ("80%, 16 clusters", BASE + FIRST + 2 * LATER,
                    lambda model, train: trained_int8(model, train, LATER, "both")),
}


def kernels(model):
    """The weights that prune and cluster work on, as the model or the file itself holds them."""
    if isinstance(model, quantize.LiteModel):
        return list(model.kernels.values())
    return [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]


def measured(seed, stage, model, test):
    row = report.measure(model, test, name=stage)
    weights = kernels(model)
    size = sum(kernel.size for kernel in weights)
    return {"seed": seed, "model": stage, "epochs": STAGES[stage][1], "accuracy": row.accuracy, "bytes": row.bytes,
            "gzip": row.gzip,
            "zeros": sum(int((kernel == 0).sum()) for kernel in weights) / size,
            "values": max(np.unique(kernel).size for kernel in weights)}


def seen():
    return pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["seed", "model"])


def place(folder, seed, stage):
    return folder / f"{seed}-{stage}{'.tflite' if stage.endswith('int8') else '.keras'}".replace(" ", "_")


def load(folder, seed, stage):
    path = place(folder, seed, stage)
    return quantize.load(path) if path.suffix == ".tflite" else keras.models.load_model(path)


def run(stage, seed, folder, train, test):
    path, rows = place(folder, seed, stage), seen()
    if path.exists() and ((rows.seed == seed) & (rows.model == stage)).any():
        return
    source = STAGES[stage][0]
    keras.utils.set_random_seed(seed)
    model = STAGES[stage][2](source and load(folder, seed, source), train)
    row = measured(seed, stage, model, test)
    print(row, flush=True)
    TABLE.parent.mkdir(exist_ok=True)
    pd.concat([seen(), pd.DataFrame([row])]).to_csv(TABLE, index=False, float_format="%.6g")
    model.save(path)


def clock(folder, seed, stages):
    """Latencies of one seed's models, all in one run that goes round them."""
    models = {stage: load(folder, seed, stage) for stage in stages}
    rows = seen()
    speeds = report.compare(models, runs=300).frame.latency_ms
    rows["latency_ms"] = rows.model.map(speeds).where(rows.seed == seed)
    rows.to_csv(TABLE, index=False, float_format="%.6g")


def summary():
    """Means over the seeds; `control` is the float model of as many epochs."""
    rows = seen()
    means = rows.groupby("model", sort=False).mean(numeric_only=True)
    controls = means[means.index.str.match(r"control \d$")].set_index("epochs").accuracy
    means["control"] = means.epochs.map(controls)
    means["difference"] = means.accuracy - means.control
    return means.drop(columns="seed").round(4)


def main(seeds=(0, 1), folder="results/verify/toolkit", stages=tuple(STAGES)):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = data()
    for seed in seeds:
        for stage in stages:
            run(stage, seed, folder, train, test)
    clock(folder, seeds[0], stages)
    means = summary()
    means.to_csv(TABLE.with_name("toolkit_means.csv"), float_format="%.6g")
    print(means.to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--folder", default="results/verify/toolkit")
    main(**vars(parser.parse_args()))
