"""What a search finds, and what it costs, beside KerasTuner itself. Real data: scikit-learn's digits.

Found: a classifier of 600 digits, scored on 600 others, five parameters; every search gets as many trials, every seed
all searches. Cost: CPU time of a trial of a small Keras network, less the bare `build` and `fit` of the same network.
"""

import contextlib
import functools
import gc
import io
import statistics
import tempfile
import time
import warnings

import keras
import keras_tuner
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from tfopt import tune

SEEDS, TRIALS, ROUNDS = range(8), 30, 8


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    return (x[:600], y[:600]), (x[600:1200], y[600:1200])


# Found


def ask(hp):
    hp.Float("width", 1e-2, 1e1, sampling="log")
    hp.Int("features", 20, 400, sampling="log")
    hp.Float("penalty", 1e-7, 1e-1, sampling="log")
    hp.Float("rate", 1e-4, 1.0, sampling="log")
    hp.Choice("loss", ["log_loss", "hinge", "modified_huber"])


@functools.cache
def accuracy(width, features, penalty, rate, loss):
    """Random Fourier features and a linear classifier trained by SGD: as hard to tune as a network, in milliseconds."""
    (x, y), (x_val, y_val) = digits()
    rng = np.random.default_rng(0)
    waves, shift = rng.normal(size=(64, 400))[:, :features] * width, rng.uniform(0, 2 * np.pi, 400)[:features]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SGDClassifier(loss=loss, alpha=penalty, learning_rate="constant", eta0=rate, max_iter=5, random_state=0)
        model.fit(np.cos(x @ waves + shift), y)
    return float(model.score(np.cos(x_val @ waves + shift), y_val))


class Ours(keras_tuner.HyperModel):
    def build(self, hp):
        ask(hp)
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    def fit(self, hp, model, *args, **kwargs):
        return {"val_accuracy": accuracy(**hp.values)}


class Theirs:
    """A trial of a tuner of KerasTuner that returns the score at once."""

    def run_trial(self, trial, *args, **kwargs):
        ask(trial.hyperparameters)
        return {"val_accuracy": accuracy(**trial.hyperparameters.values)}


class TheirRandom(Theirs, keras_tuner.RandomSearch):
    pass


class TheirBayesian(Theirs, keras_tuner.BayesianOptimization):
    pass


def ours(algorithm, seed, folder):
    search = tune.Search(Ours(), "val_accuracy", algorithm=algorithm, max_trials=TRIALS, directory=folder, seed=seed)
    return search.run(*digits(), verbose=0).frame.val_accuracy.max()


def theirs(kind, seed, folder):
    space = keras_tuner.HyperParameters()
    ask(space)
    tuner = kind(objective=keras_tuner.Objective("val_accuracy", "max"), max_trials=TRIALS, seed=seed + 1,
                 hyperparameters=space, directory=folder)
    with contextlib.redirect_stdout(io.StringIO()):
        tuner.search()
    return tuner.oracle.get_best_trials()[0].score


def found():
    searches = {"tfopt tpe": functools.partial(ours, "tpe"), "tfopt random": functools.partial(ours, "random"),
                "KerasTuner random": functools.partial(theirs, TheirRandom),
                "KerasTuner Bayesian": functools.partial(theirs, TheirBayesian)}
    best = {name: [] for name in searches}
    for seed in SEEDS:
        for name, search in searches.items():
            with tempfile.TemporaryDirectory() as folder:
                best[name].append(search(seed, folder))
    for name, scores in best.items():
        print(f"best of {TRIALS} trials, mean of {len(scores)} seeds: {name:20} {statistics.mean(scores):.4f}  "
              f"(lowest {min(scores):.4f}, highest {max(scores):.4f})", flush=True)


# Cost


def network(hp):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(hp.Int("units", 8, 64), activation="relu"),
                              keras.layers.Dense(10)])
    model.compile(keras.optimizers.Adam(hp.Float("rate", 1e-4, 1e-1, sampling="log")), metrics=["accuracy"],
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def bare(folder, trials):
    for _ in range(trials):
        network(keras_tuner.HyperParameters()).fit(*digits()[0], validation_data=digits()[1], epochs=2, verbose=0)


def our_trials(folder, trials):
    tune.Search(network, "val_accuracy", algorithm="random", max_trials=trials, directory=folder).run(
        *digits(), epochs=2, verbose=0)


def their_trials(folder, trials):
    tuner = keras_tuner.RandomSearch(network, "val_accuracy", max_trials=trials, directory=folder, seed=1)
    with contextlib.redirect_stdout(io.StringIO()):
        tuner.search(*digits()[0], validation_data=digits()[1], epochs=2, verbose=0)


def cost():
    """CPU seconds a trial; what a search does once is in none of them: four trials less two."""
    kinds = {"bare": bare, "tfopt": our_trials, "KerasTuner": their_trials}
    seconds = {name: [] for name in kinds}
    for turn in range(-1, ROUNDS):
        for name, run in kinds.items():
            spent = []
            for trials in (1, 3):
                with tempfile.TemporaryDirectory() as folder:
                    gc.collect()
                    start = time.process_time()
                    run(folder, trials)
                    spent.append(time.process_time() - start)
            if turn >= 0:
                seconds[name].append((spent[1] - spent[0]) / 2)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print("CPU seconds a trial: " + ", ".join(f"{name} {value:.2f}" for name, value in median.items()))
    mine, stock = (median[name] - median["bare"] for name in ("tfopt", "KerasTuner"))
    print(f"overhead a trial: tfopt {mine:.2f} s, KerasTuner {stock:.2f} s, ratio {mine / stock:.2f}", flush=True)


# Seeds


def seeds():
    """How many of ten values of one parameter two seeds share."""
    def mine(seed):
        with tempfile.TemporaryDirectory() as folder:
            search = tune.Search(Ours(), "val_accuracy", algorithm="random", max_trials=10, directory=folder, seed=seed)
            return set(search.run(*digits(), verbose=0).frame.width)

    def stock(seed):
        space = keras_tuner.HyperParameters()
        ask(space)
        with tempfile.TemporaryDirectory() as folder:
            tuner = TheirRandom(objective=keras_tuner.Objective("val_accuracy", "max"), max_trials=10, seed=seed,
                                hyperparameters=space, directory=folder)
            with contextlib.redirect_stdout(io.StringIO()):
                tuner.search()
            return [trial.hyperparameters.values for trial in tuner.oracle.trials.values()]

    print(f"values of a parameter that seeds 1 and 2 share: tfopt {len(mine(1) & mine(2))} of 10", flush=True)
    draws = [{round(np.log(values["width"] / 1e-2) / np.log(1e3), 9) for values in stock(seed)} |
             {round(np.log(values["penalty"] / 1e-7) / np.log(1e6), 9) for values in stock(seed)} for seed in (1, 3)]
    print(f"random numbers behind two parameters that seeds 1 and 3 share: KerasTuner {len(draws[0] & draws[1])} of 20",
          flush=True)


if __name__ == "__main__":
    seeds()
    cost()
    found()
