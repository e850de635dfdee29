"""What a search trains on and is scored by: arguments of fit, generators, executions, measures; and after a kill."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from tfopt import data, tune
from tfopt.tune import _oracles

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype("float32")
Y = (X[:, 0] + RNG.normal(size=60) > .8).astype("int32")
VAL = X[:30] + .1, Y[:30]


def build(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(hp.Int("units", 2, 8), "relu"),
                              keras.layers.Dropout(.1), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(hp.Float("rate", 1e-2, 1., sampling="log")), run_eagerly=True,
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def search(folder, objective="val_loss", build=build, **given):
    return tune.Search(build, objective, **{"algorithm": "random", "max_trials": 2, "directory": folder, **given})


def run(folder, train=(X, Y), val=VAL, objective="val_loss", limits=None, algorithm="random", trials=2, **given):
    return search(folder, objective, limits=limits, algorithm=algorithm, max_trials=trials).run(
        train, val, **{"epochs": 2, "batch_size": 16, "verbose": 0, **given})


def plain_fit(row, number, train, *, run=(), **given):
    """The losses of Keras' own fit, from the seed of a trial."""
    seed = _oracles.derived(0, "trial", number, *run) % 2**31
    keras.utils.set_random_seed(seed)
    model = build(_oracles.space_from([], {"units": int(row.units), "rate": row.rate}))
    given = {"epochs": 2, "validation_data": VAL, **given}
    return min(model.fit(train(seed), verbose=0, shuffle=False, **given).history["val_loss"])


class Turning(keras.utils.PyDataset):
    """Batches that are turned around at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.order = np.arange(60)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        rows = self.order[16 * i:16 * i + 16]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        self.order = self.order[::-1]


def turned():
    """Two epochs of `Turning`. (Keras may end an epoch more, while it builds a model.)"""
    many = tf.data.Dataset.from_tensor_slices
    return many((X, Y)).batch(16).concatenate(many((X[::-1], Y[::-1])).batch(16))


def forever():
    for i in range(10**9):
        rows = np.arange(10 * i, 10 * i + 10) % 60
        yield X[rows], Y[rows]


def of_generator(steps):
    return tf.data.Dataset.from_generator(forever, output_signature=(
        tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int32))).take(steps)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "expected"), [
    (dict(class_weight={0: 1, 1: 7.}),
     lambda row, n: plain_fit(row, n, lambda seed: data.arrays(
         X, Y, 16, seed=seed, sample_weight=np.where(Y == 1, 7., 1.).astype("float32")))),
    (dict(val=None, validation_split=.3),
     lambda row, n: plain_fit(row, n, lambda seed: data.arrays(X[:42], Y[:42], 16, seed=seed),
                              validation_data=(X[42:], Y[42:]))),
    (dict(steps_per_epoch=2),
     lambda row, n: plain_fit(row, n, lambda seed: data.arrays(X, Y, 16, seed=seed), steps_per_epoch=2)),
    (dict(train=lambda hp: forever(), steps_per_epoch=3),
     lambda row, n: plain_fit(row, n, lambda seed: of_generator(6), steps_per_epoch=3)),
    (dict(train=of_generator(100).repeat(), steps_per_epoch=3),
     lambda row, n: plain_fit(row, n, lambda seed: of_generator(6), steps_per_epoch=3)),
    (dict(train=lambda hp: Turning()),
     lambda row, n: plain_fit(row, n, lambda seed: turned(), steps_per_epoch=4)),
], ids=["class_weight", "validation_split", "steps_per_epoch", "generator", "endless", "PyDataset"])
def test_what_fit_takes_is_what_fit_does(tmp_path, given, expected):
    frame = run(tmp_path, **given).frame
    assert frame.status.tolist() == ["completed"] * 2, frame.message.tolist()
    for number, row in frame.iterrows():
        assert row.val_loss == pytest.approx(expected(row, number), rel=1e-5)
    plain = run(tmp_path / "plain", **({"val": VAL} if "validation_split" in given else {})).frame
    assert not np.allclose(plain.val_loss, frame.val_loss, rtol=1e-4)          # negative control


@pytest.mark.slow
def test_executions_are_trainings_from_other_seeds(tmp_path):
    found = run(tmp_path / "three", executions=3)
    for number, row in found.frame.iterrows():
        losses = [plain_fit(row, number, lambda seed: data.arrays(X, Y, 16, seed=seed), run=more)
                  for more in ((), ("execution-1",), ("execution-2",))]
        assert row.val_loss == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["val_loss ±"] == pytest.approx(np.std(losses, ddof=1), rel=1e-4)
        if row.val_loss == found.frame.val_loss.min():
            assert found.best().evaluate(*VAL, verbose=0) == pytest.approx(min(losses), rel=1e-5)
    with pytest.raises(ValueError, match="executions='2, recorded 3'"):
        run(tmp_path / "three", executions=2)
    with pytest.raises(ValueError, match="executions='None, recorded 3'"):
        run(tmp_path / "three")


# Measures


def cost(y, outputs):
    """Five for each that is missed, one for each false alarm."""
    found = np.argmax(outputs, axis=-1)
    return np.sum(5 * (found < y)) + np.sum(found > y)


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda *arrays: arrays,
                                  lambda *arrays: tf.data.Dataset.from_tensor_slices(arrays).batch(7)])
def test_measures_of_report_and_of_ones_own_are_objectives(tmp_path, form):
    def patient(hp):
        return [keras.callbacks.EarlyStopping("val_f1", mode="max", patience=1)]          # knows the name too

    found = run(tmp_path, objective=["val_f1", "val_roc_auc", (cost, "min")], val=form(*VAL), epochs=4,
                callbacks=patient)
    assert found.frame.status.tolist() == ["completed"] * 2, found.frame.message.tolist()
    assert found.objectives == {"val_f1": "max", "val_roc_auc": "max", "val_cost": "min"}
    best = found.frame.loc[found._ranked()[0].number]
    outputs = found.best().predict(VAL[0], verbose=0)
    assert best.val_f1 == metrics.f1_score(VAL[1], outputs.argmax(1))
    assert best.val_roc_auc == metrics.roc_auc_score(VAL[1], outputs[:, 1].astype(float) - outputs[:, 0])
    matrix = metrics.confusion_matrix(VAL[1], outputs.argmax(1))
    assert best.val_cost == 5 * matrix[1, 0] + matrix[0, 1]


@pytest.mark.slow
def test_a_measure_of_one_of_several_outputs(tmp_path):
    def two(hp):
        x = inputs = keras.Input((3,))
        outputs = {"a": keras.layers.Dense(hp.Int("units", 2, 3), name="a")(x), "b": keras.layers.Dense(1, name="b")(x)}
        model = keras.Model(inputs, outputs)
        model.compile("sgd", {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"})
        return model

    both = X, {"a": Y, "b": X[:, 1:2]}
    found = search(tmp_path, "val_b_r2", two, max_trials=1).run(both, both, epochs=1, verbose=0)
    predicted = found.best().predict(X, verbose=0)["b"]
    assert found.frame.val_b_r2[0] == pytest.approx(metrics.r2_score(X[:, 1:2], predicted), abs=1e-6)
    with pytest.raises(ValueError, match="`measures` must name outputs of the model"):
        search(tmp_path / "other", "val_c_r2", two).run(both, both, epochs=1, verbose=0)


@pytest.mark.slow
def test_a_limit_on_a_measure_rejects_what_was_trained(tmp_path):
    """It counts, cannot be the best, and the algorithm is told to keep away."""
    free = run(tmp_path / "free", objective=["val_loss", "val_recall", "val_brier_score"]).frame
    low, high = sorted(free.val_recall)
    assert low < high
    brier = float(free.val_brier_score[free.val_recall == high].max())
    for limits in ({"val_recall": high}, {"val_brier_score": brier}):
        found = run(tmp_path / next(iter(limits)), limits=limits)
        assert found.frame.status.tolist() == ["completed" if recall == high else "rejected"
                                               for recall in free.val_recall]
        np.testing.assert_array_equal(found.frame.val_loss, free.val_loss)
        assert found._ranked()[0].number == free.val_recall.idxmax()
    assert f"val_recall {low:,} < {high:,}" in search(tmp_path / "val_recall").frame.message.tolist()


@pytest.mark.parametrize(("given", "words"), [
    ({"objective": "val_r2"}, "`r2` is for regression, this output is binary"),
    ({"objective": [("val_loss", "min"), (cost, None)]}, r'Pass \(cost, "min"\) or \(cost, "max"\)'),
    ({"objective": (lambda y, outputs: 0, "max")}, "a function with a name"),
    ({"limits": {"val_flops": 3.}}, "`limits` knows params, .*, and measures of report.compare"),
    ({"validation_split": .5}, "with `validation_split` a search takes no `val`"),
    ({"val": None, "validation_split": .99}, "must leave an example on each side"),
    ({"val": None, "validation_split": 1.5}, "`validation_split` must be a number > 0 and < 1"),
    ({"class_weight": {"a": 1}}, "`class_weight` must be a dict of classes from 0"),
    ({"train": (X, Y, X[:, 0] ** 2), "class_weight": {0: 1., 1: 2.}}, "`class_weight` or a sample_weight, not both"),
    ({"train": of_generator(9).repeat()}, "`train` must end"),
    ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number >= 1"),
    ({"executions": 0}, "`executions` must be"),
])
def test_what_does_not_fit_is_refused_before_a_trial(tmp_path, given, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        run(tmp_path, **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("trials/*"))


@pytest.mark.parametrize(("name", "words"), [("validation_data", "Did you mean `val`"), ("clas_weight", "class_weight"),
                                             ("workers", "The arguments are train, val, epochs")])
def test_an_argument_that_fit_alone_knows_is_refused(tmp_path, name, words):
    with pytest.raises(TypeError, match=rf"^tune\.Search\.run: there is no argument `{name}`.*{words}"):
        search(tmp_path).run((X, Y), VAL, **{name: None})


# After a kill


class Stopped(BaseException):
    """No exception that a search would call a failed trial."""


def same(frame):
    return json.loads(frame.drop(columns="seconds").to_json(orient="index", double_precision=15))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [
    dict(class_weight={0: 1, 1: 7.}, executions=2, objective="val_f1_macro", limits={"val_log_loss": 5.}),
    dict(train=lambda hp: forever(), steps_per_epoch=3), dict(train=lambda hp: Turning()),
    dict(train=(X, Y, X[:, 0] ** 2), val=None, validation_split=.3, steps_per_epoch=3),
    dict(algorithm="tpe+asha", trials=6, batch_size=60),
], ids=["measures", "generator", "PyDataset", "weights", "asha"])
def test_an_interrupted_search_ends_as_if_nothing_had_happened(tmp_path, given):
    expected = same(run(tmp_path / "whole", epochs=3, **given).frame)
    assert {row["status"] for row in expected.values()} == {"completed", *(["stopped"] if "trials" in given else [])}
    for moment in (2, 5, 4):
        count = [0]

        def stop(batch, logs=None, count=count, moment=moment):
            count[0] += 1
            if count[0] == moment:
                raise Stopped

        with pytest.raises(Stopped):
            run(tmp_path / "study", epochs=3, callbacks=lambda hp, stop=stop: [
                keras.callbacks.LambdaCallback(on_train_batch_end=stop)], **given)
    assert same(run(tmp_path / "study", epochs=3, **given).frame) == expected


DISTRIBUTED = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
import test_tune_fit
test_tune_fit.run(sys.argv[1], class_weight={0: 1, 1: 7.}, executions=2, objective="val_f1_macro",
                  limits={"val_log_loss": 5.}, val=None, validation_split=.4)
"""


@pytest.mark.slow
def test_a_worker_reports_what_one_process_does(tmp_path, run_python):
    import pathlib
    import subprocess
    import sys

    script = tmp_path / "search.py"
    script.write_text(DISTRIBUTED)
    subprocess.run([sys.executable, "-P", "-m", "tfopt.distribute", "--search", "1", str(script), str(tmp_path / "two"),
                    str(pathlib.Path(__file__).parent)], check=True, cwd=tmp_path, capture_output=True, timeout=300)
    run(tmp_path / "one", class_weight={0: 1, 1: 7.}, executions=2, objective="val_f1_macro",
        limits={"val_log_loss": 5.}, val=None, validation_split=.4)
    assert same(search(tmp_path / "two", "val_f1_macro").frame) == same(search(tmp_path / "one", "val_f1_macro").frame)
    assert not math.isnan(search(tmp_path / "two", "val_f1_macro").frame.val_f1_macro[0])
