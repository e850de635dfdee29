"""Iris: a small network on a small table, trained plainly and then with a schedule, a penalty and early stopping.

    python examples/iris.py [--quick] [--save DIR]

Every seed draws its own stratified split (60% training, 20% validation, 20% test) and its own initial weights; both
recipes get the same ones and the same number of epochs at most. Standardization is learned on the training rows alone.
"""

import argparse
import pathlib

import keras
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

from tfopt import regularizers, report, schedules

EPOCHS, BATCH, PEAK = 60, 16, 0.05


def split(seed):
    """[(x, y)] of training, validation and test."""
    x, y = load_iris(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=30, stratify=y, random_state=seed)
    x, x_val, y, y_val = train_test_split(x, y, test_size=30, stratify=y, random_state=seed)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    return [((part - mean) / spread, labels) for part, labels in ((x, y), (x_val, y_val), (x_test, y_test))]


def build():
    return keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(3)])


def plain(model, train):
    return model, PEAK, []


def careful(model, train):
    """Warm-up and cosine, a penalty that empties whole units, the weights of the epoch that validated best."""
    steps = EPOCHS * -(-len(train[1]) // BATCH)
    rate = schedules.Warmup(schedules.CosineDecay(PEAK, steps - steps // 10), steps // 10)
    stop = keras.callbacks.EarlyStopping("val_cross_entropy", mode="min", patience=15, restore_best_weights=True)
    return regularizers.add(model, regularizers.GroupLasso(1e-3)), rate, [stop]


RECIPES = {"plain SGD": plain, "schedule + penalty + early stopping": careful}


def main(quick=False, save="results"):
    """Trains both recipes with several seeds; prints the table, saves the pictures; returns the table of all runs."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(2 if quick else 10)
    runs, models, histories = [], {}, {}
    for seed in seeds:
        train, validation, test = split(seed)
        for name, recipe in RECIPES.items():
            keras.utils.set_random_seed(seed)
            model, rate, callbacks = recipe(build(), train)
            entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")
            model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
                          keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy", entropy])
            history = model.fit(*train, batch_size=BATCH, epochs=EPOCHS, validation_data=validation,
                                callbacks=callbacks, verbose=0)
            seen = model.evaluate(*test, verbose=0, return_dict=True)
            runs.append({"recipe": name, "seed": seed, "epochs": len(history.epoch),
                         "test accuracy %": 100 * seen["accuracy"], "test cross-entropy": seen["cross_entropy"]})
            print(f"seed {seed}  {name:36} {len(history.epoch):3} epochs   test accuracy {seen['accuracy']:.1%}",
                  flush=True)
            models.setdefault(name, model), histories.setdefault(name, history)

    runs = pd.DataFrame(runs)
    print(f"\nIris, 30 test rows, {len(seeds)} seeds: mean and standard deviation\n")
    for name, part in runs.groupby("recipe", sort=False):
        cells = (f"{column} {part[column].mean():6.2f} ± {part[column].std():4.2f}"
                 for column in ("test accuracy %", "test cross-entropy", "epochs"))
        print(f"  {name:36} {'   '.join(cells)}")
    print(f"\n{report.compare(models, split(0)[2], title='Iris, the models of seed 0')}\n")
    curves = {name: {key: values for key, values in history.history.items() if "loss" not in key}
              for name, history in histories.items()}
    report.curves(curves).savefig(folder / "iris_curves.png", dpi=120)
    print(f"pictures: {folder / 'iris_curves.png'}")
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the pictures go")
    main(**vars(parser.parse_args()))
