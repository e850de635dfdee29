"""The stages of `compress.run` on full Fashion-MNIST, on Iris, and on a folder of images.

    python benchmarks/verify/compress.py [fashion] [strong] [iris] [folder] [--folder results/verify/compress]

Fashion-MNIST: the network of 92,906 parameters is trained for 24 epochs, to where its rate is zero (50,000 images to
train on, 10,000 to choose by), then it is made smaller; the 10,000 test images are seen once, at the end. "control" is
the original trained on for as many epochs as the file has seen, at the rate of the first step, and not made smaller:
it tells what more epochs alone do. "strong" is the same for a file twenty times smaller: many zeros, then four bits in
training. The file and the control are compared with the original in pairs. Rows go to docs/measured/compress.csv. A
stopped run goes on where it was.

Fashion-MNIST comes from where `keras.datasets.fashion_mnist.load_data()` finds it; the folder is cut from
scikit-learn's photographs.
"""

import argparse
import logging
import pathlib
import time

import keras
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_iris, load_sample_images

from tfopt import compress, data, quantize, report

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "compress.csv"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PAIRED = {"accuracy_difference": "difference", "accuracy_difference_low": "difference_low",
          "accuracy_difference_high": "difference_high", "accuracy_p": "p"}            # from the original
COLUMNS = ["accuracy", "low", "high", "bytes", "gzip", "macs", "latency_ms", "examples"]


def fashion(folder):
    compressed("fashion", folder, {
        "distill": (), "shrink": (0.875, 0.75, 0.625), "prune": (0.5, 0.6, 0.7), "cluster": (12,),
        "quantize": ("int8 trained", "int8")}, epochs=8, max_drop=0.004)


def strong(folder):
    compressed("strong", folder, {"distill": (), "prune": (0.875,), "quantize": ("int8", "int4 trained")}, epochs=6,
               max_drop=0.01)


def compressed(task, folder, steps, epochs, max_drop, seed=0):
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (part[..., None] / np.float32(255) for part in (x, x_test))
    y, y_test = y.astype("int32"), y_test.astype("int32")
    train, val, test = (x[:50_000], y[:50_000]), (x[50_000:], y[50_000:]), (x_test, y_test)
    base = trained(folder / "base.keras", cnn(), train, val, 24, 1e-3, seed)
    result = compress.run(base, data.arrays(*train, 128, seed=seed), val, test=test, max_drop=max_drop, stages=steps,
                          epochs=epochs, directory=folder / f"{task}_tried", seed=seed)
    longer = int(result.tried[result.tried.kept].epochs.max())
    again = keras.models.clone_model(base)
    again.set_weights(base.get_weights())
    control = trained(folder / f"control_{longer}.keras", again, train, val, longer, 1e-3 / 3, seed)
    controls = report.compare({"control": control, "control, int8": quantize.convert(control, calibration=x[:256])},
                              test)
    file = {result.table.rows[-1].name: result.lite or result.best}
    paired = report.compare({"original": base, **file, "control": control}, test, runs=1, measures=("accuracy",)).frame
    finish(task, result, folder, controls.frame.assign(epochs=longer), paired.rename(columns=PAIRED))
    print(f"\n{controls}\n\n{paired.filter(like='accuracy').to_string()}")
    first, last = result.table.rows[0], result.table.rows[-1]
    print(f"\n{task}: {first.gzip:,} -> {last.gzip:,} bytes through gzip, {first.gzip / last.gzip:.1f} times smaller; "
          f"accuracy {first.accuracy:.4f} -> {last.accuracy:.4f}, "
          f"{100 * (first.accuracy - last.accuracy):.2f} points lost; "
          f"control of {longer} epochs {controls.rows[0].accuracy:.4f}")


def cnn():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(32, activation="relu"), layers.Dense(10)], name="cnn")


def trained(path, model, train, val, epochs, rate, seed):
    """The model trained with a rate that falls to zero, from `path` if it is there; a stopped training goes on."""
    if not path.exists():
        keras.utils.set_random_seed(seed)
        batches = data.arrays(*train, 128, seed=seed)
        schedule = keras.optimizers.schedules.CosineDecay(rate, len(batches) * epochs)
        model.compile(keras.optimizers.Adam(schedule), LOSS, metrics=["accuracy"])
        model.fit(batches, validation_data=val, epochs=epochs, verbose=2,
                  callbacks=[keras.callbacks.BackupAndRestore(path.with_suffix(".backup"))])
        model.save(path)
    return keras.models.load_model(path)


def iris(folder):
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = ((x - x.mean(axis=0)) / x.std(axis=0))[order], y[order]
    train, val, test = (x[:90], y[:90]), (x[90:120], y[90:120]), (x[120:], y[120:])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu"),
                              keras.layers.Dense(3)], name="dense")
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS, metrics=["accuracy"])
    model.fit(*train, batch_size=16, epochs=60, verbose=0)
    finish("iris", compress.run(model, train, val, test=test, epochs=20, directory=folder / "iris_tried"), folder)


def photographs(folder, side=32):
    """Patches of two photographs; the right quarter of each is the test, one in five of the others the validation."""
    place = folder / "photographs"
    if not place.exists():
        for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
            height, width, _ = photograph.shape
            for top in range(0, height - side + 1, side):
                for left in range(0, width - side + 1, side):
                    at = place / ("test" if left + side > 0.75 * width else "train") / name
                    at.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(photograph[top:top + side, left:left + side]).save(at / f"{top:03}_{left:03}.png")
    train, val = data.image_folder(place / "train", side, 32, validation_split=0.2)
    test = data.image_folder(place / "test", side, 32, shuffle=False)
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2((side, side, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
    inputs = keras.Input((side, side, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(base(scaled)), name="mobilenet")
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9                                      # few steps
    model.compile(keras.optimizers.Adam(1e-3), LOSS, metrics=["accuracy"])
    model.fit(train, epochs=30, verbose=0)
    steps = {"distill": (), "shrink": (0.9, 0.75), "prune": (0.3, 0.5), "cluster": (32,),
             "quantize": ("int8 trained", "int8")}
    finish("folder", compress.run(model, train, val, test=test, epochs=10, max_drop=0.03, stages=steps,
                                  directory=folder / "folder_tried"), folder)


def finish(task, result, folder, controls=None, paired=None):
    """Saves and prints a result, and puts its rows in the table, in place of older ones."""
    result.save(folder / task)
    kept = result.tried[result.tried.kept]
    rows = result.table.frame.assign(epochs=0)
    rows.loc[~rows.index.str.startswith("original"), "epochs"] = kept.epochs.iloc[1:].to_numpy()
    rows = pd.concat([rows, controls])[[*COLUMNS, "epochs"]]
    rows = rows if paired is None else rows.join(paired[list(PAIRED.values())])
    rows = rows.rename_axis("model").reset_index()
    rows.insert(0, "task", task)
    if TABLE.exists():
        seen = pd.read_csv(TABLE)
        rows = pd.concat([seen[seen.task != task], rows])
    TABLE.parent.mkdir(exist_ok=True)
    rows.to_csv(TABLE, index=False, float_format="%.6g")
    print(result.table, result.tried.round(4).to_string(), sep="\n\n", flush=True)


def main(tasks, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        start = time.process_time()
        {"fashion": fashion, "strong": strong, "iris": iris, "folder": photographs}[task](folder)
        print(f"{task}: {time.process_time() - start:.0f} CPU seconds in this process", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=["iris", "folder", "fashion", "strong"])
    parser.add_argument("--folder", default="results/verify/compress")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tfopt.compress").setLevel(logging.INFO)
    main(**vars(parser.parse_args()))
