"""Does a smaller form of a model lose more under corrupted images? Float, pruned and int8 on Fashion-MNIST.

    python benchmarks/verify/robustness.py [directory]

Prints the tables and writes docs/measured/robustness.csv and explain.csv; with a directory also the figures. Needs
Fashion-MNIST where `keras.datasets.fashion_mnist.load_data()` finds it; some minutes on 2 cores. Float and pruned model
come from one that was trained for three epochs, and are trained for three more.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pandas as pd

from tfopt import prune, quantize, report

MEASURED = pathlib.Path(__file__).parents[2] / "docs" / "measured"
EPOCHS, BATCH, EXAMPLES, SPARSITY = 3, 128, 2000, 0.8


def network():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Conv2D(16, 3, activation="relu"),
        layers.MaxPooling2D(), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(10)], name="float")


def trained(model, x, y, seed):
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras.utils.set_random_seed(seed)
    model.fit(x, y, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    return model


def main(directory=None):
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = x[..., None], x_test[..., None]
    keras.utils.set_random_seed(0)
    base = trained(network(), x, y, 0)
    steps = EPOCHS * -(-len(x) // BATCH)
    pruned = prune.strip(trained(prune.wrap(base, SPARSITY, end=steps // 2), x, y, 1))
    model = trained(base, x, y, 1)
    calibration = x[:500].astype("float32")
    models = {"float": model, "pruned": pruned, "int8": quantize.convert(model, "int8", calibration=calibration),
              "pruned int8": quantize.convert(pruned, "int8", calibration=calibration)}
    found = report.robustness(models, (x_test[:EXAMPLES], y_test[:EXAMPLES]), severities=(1, 2, 3, 4, 5))
    print(found)
    summary = found.summary[["mean", "relative", "difference", "low", "high"]].T.rename_axis("corruption")
    table = pd.concat([found.frame.reset_index(), summary.reset_index()])
    table.astype({"severity": "Int64"}).round(4).to_csv(MEASURED / "robustness.csv", index=False)
    maps = {method: report.explain(models if method == "occlusion" else {"float": model, "pruned": pruned},
                                   x_test[:100], method=method) for method in ("gradcam", "integrated", "occlusion")}
    table = pd.concat({method: result.frame for method, result in maps.items()}, names=["method"])
    print(table)
    table.round(3).to_csv(MEASURED / "explain.csv")
    if directory:
        folder = pathlib.Path(directory)
        found.plot(folder / "robustness.png")
        found.preview(folder / "corruptions.png")
        for method, result in maps.items():
            result.plot(folder / f"{method}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
