"""Searches that are broken off inside a trial and go on: as if nothing had happened, whatever the models are."""

import functools
import json

import keras
import keras_tuner
import numpy as np
import pytest
from sklearn.datasets import load_iris

from tfopt import tune
from tfopt.tune import _oracles, _processes
from tfopt.tune._study import Study

X, Y = load_iris(return_X_y=True)
X, Y = ((X - X.mean(axis=0)) / X.std(axis=0)).astype("float32")[::3], Y[::3]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def plain(hp, **optimizer):
    units = hp.Int("units", 2, 64, step=2, sampling="log")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dropout(0.2),
                              keras.layers.Dense(3)])
    rate = hp.Float("rate", 1e-2, 1.0, sampling="log")
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, **optimizer), LOSS, metrics=["accuracy"], run_eagerly=True)
    return model


def accumulating(hp):
    """Gradients of three batches make one step; an epoch has five, so that each ends between two steps."""
    return plain(hp, gradient_accumulation_steps=3)


@keras.saving.register_keras_serializable("test_tune_restart")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out = keras.layers.Dense(units, "relu"), keras.layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))


def subclassed(hp):
    model = Subclassed(hp.Int("units", 2, 9))
    model.compile(keras.optimizers.Adam(0.05), LOSS, metrics=["accuracy"], run_eagerly=True)
    return model


def search(folder, build, objective="val_loss", **given):
    return tune.Search(build, objective, **{"algorithm": "random", "max_trials": 2, "directory": folder, **given})


def run(made, callbacks=None):
    return made.run((X, Y), (X, Y), epochs=2, batch_size=10, verbose=0, callbacks=callbacks)


def broken_off(made, after):
    """Runs until so many epochs have begun, in whatever trial."""
    begun = []

    def count(epoch, logs):
        begun.append(epoch)
        if len(begun) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, lambda hp: [keras.callbacks.LambdaCallback(on_epoch_begin=count)])


@pytest.mark.slow
@pytest.mark.parametrize(("build", "objective", "algorithm"), [
    (plain, ["val_loss", "params"], "tpe"), (plain, ["params", ("val_accuracy", "max")], "random"),
    (accumulating, "val_loss", "random")], ids=["two objectives", "measured first", "gradient accumulation"])
def test_a_search_that_is_broken_off_in_a_trial_ends_as_one_that_is_not(tmp_path, build, objective, algorithm):
    whole = run(search(tmp_path / "whole", build, objective, algorithm=algorithm))
    for after in (1, 2):                                          # in the first trial, and then in the second
        broken_off(search(tmp_path / "parts", build, objective, algorithm=algorithm), after)
    parts = run(search(tmp_path / "parts", build, objective, algorithm=algorithm))
    assert parts.frame.drop(columns="seconds").equals(whole.frame.drop(columns="seconds"))
    assert parts.pareto().index.equals(whole.pareto().index)
    for one, other in zip(parts.best().get_weights(), whole.best().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def numbers():
    hp = keras_tuner.HyperParameters()
    for name in ("x", "y"):
        hp.Float(name, 0, 1, step=0.05)
    return hp


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_a_study_of_two_objectives_reopened_after_each_trial_takes_the_same_course(tmp_path, algorithm):
    """The record sorts its keys: scores must be told to the oracle in the order of the objectives."""
    def space():
        return _oracles.space_from(_oracles.space_config(numbers()))

    def go_on(folder, ends):
        study = Study(tmp_path / folder, {"algorithm": algorithm, "seed": 0, "epochs": 1}, {"z": "max", "a": "min"},
                      max_trials=16, keep_weights=1, space=space)
        while ends and (trial := study.next()) is not None:
            scores = {"z": trial.values["x"] - trial.values["y"], "a": trial.values["x"] + 10}
            study.end(trial.number, {"status": "completed", "scores": scores, "values": trial.values, "space": []})
            ends -= 1
        study.record.close()
        return [trial.values for trial in study.trials.values()]

    for _ in range(4):
        parts = go_on("parts", 4)
    assert parts == go_on("whole", 99)
    assert len(parts) == 16


@pytest.mark.parametrize("objectives", [{"z": "max", "a": "min"}, {"a": "min", "z": "max"}])
def test_the_line_of_a_trial_names_the_best_by_the_first_objective(tmp_path, capsys, objectives):
    """After a restart too, when the scores come from a record that sorts its keys."""
    for trials in (1, 2):
        study = Study(tmp_path, {"algorithm": "random", "seed": 0, "epochs": 1}, objectives, max_trials=trials,
                      keep_weights=1, space=lambda: _oracles.space_from(_oracles.space_config(numbers())))
        study.heard = functools.partial(_processes.say, study)
        while (trial := study.next()) is not None:
            study.end(trial.number, {"status": "completed", "scores": {"z": 5. + trial.number, "a": 7. + trial.number},
                                     "values": trial.values, "space": []})
        study.record.close()
    told = {"z": "z 6, a 8   best: trial 1, z 6", "a": "a 8, z 6   best: trial 0, a 7"}
    assert capsys.readouterr().out.splitlines()[-1].endswith(told[next(iter(objectives))])


@pytest.mark.parametrize("targets", [Y + 3, Y - 1, Y * np.nan, Y.astype(str)], ids=["beyond", "below", "nan", "text"])
def test_targets_that_the_model_cannot_train_on_cost_no_trial(tmp_path, targets):
    with pytest.raises(ValueError, match=r"^tune.Search.run: the model must train on `train`") as caught:
        search(tmp_path, plain, "loss").run((X, targets), epochs=1, verbose=0)
    assert "\n" not in str(caught.value)
    assert search(tmp_path, plain, "loss").frame.empty


def test_cross_validation_needs_as_many_targets_as_examples():
    with pytest.raises(ValueError, match=r"^tune.cross_validate: .*of one length"):
        tune.cross_validate(lambda: plain(keras_tuner.HyperParameters()), X, Y[:40], folds=2, epochs=1)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid", "bayesian", "hyperband"])
def test_a_whole_number_on_a_log_scale_with_a_step(tmp_path, algorithm):
    """KerasTuner lists such values as floats, which no layer takes as its size."""
    def space():
        hp = keras_tuner.HyperParameters()
        hp.Int("units", 3, 100, step=2, sampling="log")
        hp.Float("rate", 1e-3, 1, sampling="log")
        return _oracles.space_from(_oracles.space_config(hp))

    def go_on(folder, ends):
        study = Study(tmp_path / folder, {"algorithm": algorithm, "seed": 0, "epochs": 9}, {"score": "max"},
                      max_trials=4 if algorithm == "bayesian" else 12, keep_weights=1, space=space)
        while ends and (trial := study.next()) is not None:
            score = -abs(trial.values["units"] - 24) - trial.values["rate"]
            study.end(trial.number, {"status": "completed", "scores": {"score": score}, "values": trial.values,
                                     "space": []})
            ends -= 1
        study.record.close()
        return [trial.values for trial in study.trials.values()]

    for _ in range(4):
        parts = go_on("parts", 3)
    assert parts == go_on("whole", 99)
    found = [values["units"] for values in parts]
    assert all(type(units) is int for units in found)
    assert set(found) <= {3, 6, 12, 24, 48, 96}
    assert len(set(found)) >= {"grid": 1, "bayesian": 2}.get(algorithm, 3)


LOADS = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("test_tune_restart", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
made = module.search(sys.argv[2], module.subclassed)
print(json.dumps([made.best(rank).predict(module.X, verbose=0).tolist() for rank in (0, 1)]))
"""


@pytest.mark.slow
def test_the_best_of_subclassed_models_loads_and_predicts_here_and_in_a_new_process(tmp_path, run_python):
    made = run(search(tmp_path / "study", subclassed))
    here = [made.best(rank) for rank in (0, 1)]
    scores = sorted(made.frame.val_loss)
    for model, score in zip(here, scores, strict=False):
        assert isinstance(model, Subclassed)
        assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(score, rel=1e-5)
    there = json.loads(run_python(LOADS, __file__, tmp_path / "study").splitlines()[-1])
    for model, outputs in zip(here, there, strict=True):
        np.testing.assert_allclose(outputs, model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
