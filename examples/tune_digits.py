"""A search over a small classifier of digits: accuracy against size, with a schedule and a penalty from tfopt.

    python examples/tune_digits.py [--quick] [--save DIR]

Optuna's TPE looks for the front of two objectives: accuracy on the validation digits, and bytes. The last 500 of
scikit-learn's 1,797 digits are kept apart as the test set. Stop it whenever you like, and start it again: it goes on.
"""

import argparse
import pathlib

import keras
from sklearn.datasets import load_digits

from tfopt import regularizers, tune


def build(hp):
    layers = [keras.layers.Dense(hp.Int("units", 8, 128, sampling="log"), activation="relu")
              for _ in range(hp.Int("depth", 1, 2))]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dropout(hp.Float("dropout", 0, 0.5)),
                              keras.layers.Dense(10)])
    penalty = tune.regularizer(hp)
    if penalty:
        model = regularizers.add(model, penalty)
    model.compile(keras.optimizers.Adam(tune.schedule(hp, low=1e-3)), metrics=["accuracy"],
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def main(quick=False, save="results"):
    """Searches; prints the front, saves the picture; returns the front."""
    save = pathlib.Path(save)
    save.mkdir(parents=True, exist_ok=True)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    search = tune.Search(build, ["val_accuracy", "bytes"], max_trials=4 if quick else 40, limits={"bytes": 60_000},
                         directory=save / ("tune_digits_quick" if quick else "tune_digits"))
    search.run((x[:900], y[:900]), (x[900:1297], y[900:1297]), epochs=2 if quick else 15)
    front = search.pareto()
    print(f"\nthe front:\n{front[['val_accuracy', 'bytes', 'units', 'depth', 'schedule', 'peak_rate']].to_string()}\n")
    accuracy = search.best().evaluate(x[1297:], y[1297:], verbose=0, return_dict=True)["accuracy"]
    print(f"the most accurate of them on 500 test digits: {accuracy:.1%}")
    search.plot(save / "tune_digits.png")
    print(f"picture: {save / 'tune_digits.png'}")
    return front


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 trials of 2 epochs in place of 40 of 15")
    parser.add_argument("--save", default="results", metavar="DIR", help="where search and picture go")
    main(**vars(parser.parse_args()))
