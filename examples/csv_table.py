"""A CSV with missing values: from the file to a saved model that takes raw rows.

    python examples/csv_table.py [--quick] [--save DIR]

The table is scikit-learn's breast cancer set (569 real rows, 30 numbers each), written to two CSVs: training and, a
fifth of each class, test. One value in ten is then left out at random, which the original set is not missing. What
fills and scales is fitted on the training rows alone, and becomes part of the model that is saved, loaded and asked
about the raw test rows. For comparison the same network is trained on the complete values.
"""

import argparse
import pathlib

import keras
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from tfopt import data, report, schedules

BATCH = 32


def write_tables(folder):
    """{name: (training CSV, test CSV)} of the values as they are, and with one in ten left out."""
    loaded = load_breast_cancer(as_frame=True)
    values, kind = loaded.data, loaded.target.map(dict(enumerate(map(str, loaded.target_names))))
    holes = values.mask(np.random.default_rng(0).random(values.shape) < 0.1)
    train, test = train_test_split(values.index, test_size=0.2, stratify=kind, random_state=0)
    paths = {}
    for name, frame in {"complete": values, "with holes": holes}.items():
        paths[name] = tuple(folder / f"cancer {name} {part}.csv" for part in ("train", "test"))
        for path, rows in zip(paths[name], (train, test), strict=True):
            frame.assign(diagnosis=kind).loc[rows].to_csv(path, index=False)
    return paths


def main(quick=False, save="results"):
    """Trains on both tables; prints the accuracies, saves the models and the curves; returns {name: test accuracy}."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    epochs, histories, accuracies = (20 if quick else 100), {}, {}
    for name, (training, testing) in write_tables(folder).items():
        keras.utils.set_random_seed(0)
        train, validation, fitted = data.table(training, "diagnosis", BATCH, missing="median", outliers="iqr")
        net = keras.Sequential([keras.Input(fitted.model.output.shape[1:]),
                                keras.layers.Dense(32, activation="relu", kernel_regularizer="l2"),
                                keras.layers.Dense(len(fitted.classes))])
        steps = epochs * len(train)
        rate = schedules.Warmup(schedules.CosineDecay(0.01, steps - steps // 10), steps // 10)
        net.compile(keras.optimizers.Adam(rate),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        stop = keras.callbacks.EarlyStopping("val_loss", patience=10, restore_best_weights=True)
        histories[name] = net.fit(train, validation_data=validation, epochs=epochs, callbacks=[stop], verbose=0)

        path = folder / f"cancer {name}.keras"
        keras.Model(fitted.model.input, net(fitted.model.output)).save(path)
        loaded = keras.models.load_model(path)
        predicted = loaded.predict(data.raw_features(testing, loaded), verbose=0).argmax(axis=1)
        truth = np.concatenate([y for _, y in fitted.dataset(testing, BATCH)])
        accuracies[name] = float(np.mean(predicted == truth))
        print(f"{name:10}  {fitted.frame['missing'].sum():4} values missing in training, "
              f"{fitted.frame['outliers'].sum():.0f} outliers clipped, {len(histories[name].epoch):3} epochs:  "
              f"{accuracies[name]:.1%} of {len(truth)} test rows right", flush=True)

    print("\nWhat was fitted on the training rows with holes, the first five columns:\n")
    print(fitted.frame.drop(columns=["kind", "categories"]).head().to_string(float_format="{:.4g}".format))
    report.curves(histories).savefig(folder / "csv_table_curves.png", dpi=120)
    print(f"\npicture: {folder / 'csv_table_curves.png'}; models that take raw rows: {folder}/cancer *.keras")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 epochs at most in place of 100")
    parser.add_argument("--save", default="results", metavar="DIR", help="where tables, models and pictures go")
    main(**vars(parser.parse_args()))
