"""A search: every algorithm, honest scores, limits, folds, several objectives, what it refuses."""

import json
import math

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
import tensorflow as tf
from sklearn.datasets import load_iris

from tfopt import tune
from tfopt.tune import _folds, _importance, _oracles, _study
from tfopt.tune._study import Trial

ALGORITHMS = ("tpe", "random", "grid", "bayesian", "hyperband")


def iris():
    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    return (x[::2], y[::2]), (x[1::2], y[1::2])


TRAIN, VAL = iris()


def build(hp):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Int("units", 2, 16), activation="relu"),
                              keras.layers.Dropout(0.1), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(hp.Float("rate", 1e-3, 1.0, sampling="log")), metrics=["accuracy"],
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model


class Quick(keras_tuner.HyperModel):
    """Trains nothing: the score is a function of the values."""

    def __init__(self, make=build, score=lambda values: abs(values["rate"] - 0.1) + values["units"] / 100):
        super().__init__()
        self.make, self.score = make, score

    def build(self, hp):
        return self.make(hp)

    def fit(self, hp, model, *args, **kwargs):
        return {"val_loss": self.score(hp.values)}


def search(folder, build=build, objective="val_loss", **given):
    given = {"algorithm": "random", "max_trials": 3, "directory": folder, **given}
    return tune.Search(build, objective, **given)


def run(folder, *args, train=TRAIN, val=VAL, epochs=1, batch_size=25, callbacks=None, **given):
    return search(folder, *args, **given).run(train, val, epochs=epochs, batch_size=batch_size, callbacks=callbacks,
                                              verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_reports_what_it_hands_out(tmp_path, algorithm):
    found = run(tmp_path, algorithm=algorithm, max_trials=3)
    assert (found.frame.status == "completed").all()
    assert len(found.frame) == 3
    best = found.frame.val_loss.idxmin()
    scored = found.best().evaluate(*VAL, verbose=0, return_dict=True)
    assert scored["loss"] == pytest.approx(found.frame.val_loss[best], rel=1e-5)
    assert found.best().layers[0].units == found.frame.units[best]
    other = found.best(rank=1).evaluate(*VAL, verbose=0, return_dict=True)["loss"]
    assert other == pytest.approx(sorted(found.frame.val_loss)[1], rel=1e-5)
    assert scored["loss"] < other


@pytest.mark.slow
def test_a_trial_is_what_its_seed_makes_it(tmp_path):
    """The score is that of a plain fit with the trial's seed, on the same batches, best epoch of all."""
    from tfopt import data

    found = run(tmp_path, max_trials=2, epochs=3)
    for number, row in found.frame.iterrows():
        seed = _oracles.derived(0, "trial", number) % 2**31
        keras.utils.set_random_seed(seed)
        model = build(_oracles.space_from([], {"units": int(row.units), "rate": row.rate}))
        losses = model.fit(data.arrays(*TRAIN, 25, seed=seed), validation_data=VAL, epochs=3, verbose=0, shuffle=False,
                           ).history["val_loss"]
        assert row.val_loss == pytest.approx(min(losses), rel=1e-5)
        assert row.epoch == int(np.argmin(losses))


@pytest.mark.slow
def test_the_randomness_and_the_names_of_the_user_are_left_alone(tmp_path):
    keras.layers.Dense(1)                                            # from now on such names have a number
    keras.utils.set_random_seed(7)
    expected = np.random.random(), float(tf.random.uniform(())), keras.layers.Dense(1).name
    keras.utils.set_random_seed(7)
    run(tmp_path, max_trials=1)
    found = np.random.random(), float(tf.random.uniform(())), keras.layers.Dense(1).name
    assert found[:2] == expected[:2]
    assert int(found[2].split("_")[1]) == int(expected[2].split("_")[1]) + 1


@pytest.mark.slow
def test_more_trials_later_are_those_of_one_long_search(tmp_path):
    run(tmp_path / "twice", Quick(), max_trials=2)
    twice = run(tmp_path / "twice", Quick(), max_trials=4).frame
    once = run(tmp_path / "once", Quick(), max_trials=4).frame
    assert twice.drop(columns="seconds").equals(once.drop(columns="seconds"))


@pytest.mark.slow
def test_only_the_best_stay_on_the_disk(tmp_path):
    found = run(tmp_path, Quick(), max_trials=5, keep_weights=2)
    kept = {int(path.parent.name) for path in tmp_path.rglob("*.weights.h5")}
    assert kept == set(found.frame.val_loss.nsmallest(2).index)
    assert not list(tmp_path.rglob("resume"))
    with pytest.raises(ValueError, match="`rank` must name a trial that was kept"):
        found.best(rank=2)


@pytest.mark.slow
def test_damaged_weights_are_refused(tmp_path):
    found = run(tmp_path, Quick(), max_trials=1)
    path, = tmp_path.rglob("*.weights.h5")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"trained\.weights\.h5 .* is not as it was written"):
        found.best()


# Honest results


def test_a_wrong_objective_is_found_before_a_trial_is_spent(tmp_path):
    steps = []
    with pytest.raises(ValueError, match=r"objective=\['val_auc'\], logs=.*val_accuracy") as caught:
        run(tmp_path, objective="val_auc", callbacks=lambda hp: [
            keras.callbacks.LambdaCallback(on_train_begin=lambda logs: steps.append(1))])
    assert "\n" not in str(caught.value)
    assert not steps
    assert search(tmp_path, objective="val_auc").frame.empty


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_fails_the_trial(tmp_path, value):
    quick = Quick(score=lambda values: value if values["units"] > 8 else 1.0)
    found = run(tmp_path, quick, ("val_loss", "max"), max_trials=6).frame
    assert set(found.status) == {"failed", "completed"}
    assert (found.units[found.status == "failed"] > 8).all()
    assert (found.val_loss[found.status == "completed"] == 1).all()
    assert found.message[found.status == "failed"].str.contains("a score must be finite").all()


def test_a_search_of_failures_raises_the_first_error(tmp_path):
    def broken(hp):
        hp.Int("units", 1, 9)
        if '"start"' in (tmp_path / "record.jsonl").read_text():
            raise ZeroDivisionError("the first of all")
        return build(hp)

    with pytest.raises(RuntimeError, match=r"All 3 trials of the search failed\. The first error: ZeroDivisionError"):
        run(tmp_path, Quick(broken))
    assert (search(tmp_path).frame.status == "failed").all()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband", "tpe"])
def test_a_model_beyond_the_limits_is_neither_trained_nor_counted(tmp_path, algorithm):
    found = run(tmp_path, Quick(), limits={"params": 60, "macs": 50, "bytes": 240}, algorithm=algorithm, max_trials=4)
    counts = found.frame.status.value_counts()
    assert counts["completed"] == 4
    assert counts["rejected"] >= 1
    done = found.frame[found.frame.status == "completed"]
    assert (done.units <= 7).all()
    assert (done.params == 4 * done.units + done.units + 3 * done.units + 3).all()
    assert (done.macs == 7 * done.units).all()
    assert (found.frame[found.frame.status == "rejected"].units > 7).all()
    assert found.frame.message.str.contains("macs .* > 50").any()


@pytest.mark.slow
def test_limits_that_nothing_meets_end_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(_study, "IN_A_ROW", 5)
    with pytest.raises(RuntimeError, match="`limits` rejected each of 5 models"):
        run(tmp_path, Quick(), limits={"params": 3})


@pytest.mark.slow
def test_a_crash_inside_a_model_is_one_failed_trial(tmp_path):
    def some(hp):
        model = build(hp)
        if hp.values["units"] > 8:
            model.compile("sgd", lambda y, p: tf.reshape(p, (17, 19)), metrics=["accuracy"], run_eagerly=True)
        return model

    found = run(tmp_path, some, max_trials=4).frame
    assert set(found.status) == {"failed", "completed"}
    assert (found.units[found.status == "failed"] > 8).all()


# What the parameters may choose


@pytest.mark.slow
def test_epochs_batch_and_data_may_depend_on_the_parameters(tmp_path):
    seen = []

    def some(hp):
        hp.Choice("batch_size", [5, 15])
        hp.Int("epochs", 1, 2)
        seen.append(hp.steps())
        return build(hp)

    def train(hp):
        return TRAIN[0] * hp.Choice("scale", [1.0, 2.0]), TRAIN[1]

    found = run(tmp_path, Quick(some), train=train, max_trials=4)
    expected = [math.ceil(75 / row.batch_size) * row.epochs for row in found.frame.itertuples()]
    assert seen[-4:] == expected
    assert len(set(expected)) > 1
    assert set(found.frame.scale) == {1.0, 2.0}
    assert not math.isnan(found.frame.scale[0])


class Hyper(keras_tuner.HyperModel):
    def build(self, hp):
        return build(hp)


@pytest.mark.slow
def test_a_hypermodel_that_passes_everything_on_is_scored_by_its_epochs(tmp_path):
    class Passes(Hyper):
        def fit(self, hp, model, *args, **kwargs):
            return model.fit(*args, **{**kwargs, "epochs": hp.Int("rounds", 1, 3)})

    found = run(tmp_path, Passes(), epochs=99, max_trials=2)
    assert (found.frame.status == "completed").all()
    assert (found.frame.epoch < found.frame.rounds).all()


@pytest.mark.slow
@pytest.mark.parametrize("returned", ["number", "dict", "own name", "after callbacks"])
def test_what_a_hypermodel_returns_is_its_score(tmp_path, returned):
    """Another trial wins than the epochs' logs would choose, and its weights are those that were scored."""
    objective = ("money", "min") if returned == "own name" else "val_loss"

    class Own(Hyper):
        def fit(self, hp, model, *args, **kwargs):
            if returned == "after callbacks":
                model.fit(*args, **kwargs)
            for variable in model.weights:
                variable.assign(keras.ops.full(variable.shape, float(hp.values["units"])))
            score = float(hp.values["units"])
            return {"number": score, "dict": {"val_loss": score}, "own name": {"money": score}}.get(returned, score)

    found = run(tmp_path, Own(), objective=objective, epochs=2)
    name = objective[0] if returned == "own name" else objective
    assert (found.frame[name] == found.frame.units).all()
    assert (found.best().layers[0].get_weights()[0] == found.frame.units.min()).all()


@pytest.mark.slow
def test_a_loop_of_ones_own_may_call_the_callbacks(tmp_path):
    class Loop(Hyper):
        def fit(self, hp, model, train, validation_data=None, callbacks=(), **kwargs):
            for callback in callbacks:
                callback.set_model(model)
            for epoch in range(2):
                for x, y in train:
                    model.train_on_batch(x, y)
                logs = {"val_loss": model.evaluate(*validation_data, verbose=0)[0]}
                for callback in callbacks:
                    callback.on_epoch_end(epoch, logs)

    class Listed(Loop):
        def fit(self, hp, model, train, callbacks=(), **kwargs):
            listed = keras.callbacks.CallbackList(callbacks, model=model)
            listed.on_train_begin()
            super().fit(hp, model, train, callbacks=[listed], **kwargs)
            listed.on_train_end()

    for name, kind in (("loop", Loop), ("list", Listed)):
        found = run(tmp_path / name, kind(), max_trials=1)
        assert found.frame.status.tolist() == ["completed"], found.frame.message.tolist()
        assert found.best().evaluate(*VAL, verbose=0)[0] == pytest.approx(found.frame.val_loss[0], rel=1e-5)


@pytest.mark.slow
def test_a_hypermodel_that_returns_nothing_is_told_so(tmp_path):
    class Nothing(Hyper):
        def fit(self, hp, model, train, **kwargs):
            pass

    with pytest.raises(RuntimeError, match=r"HyperModel\.fit must return the objective"):
        run(tmp_path, Nothing(), max_trials=1)


@pytest.mark.slow
def test_a_history_without_callbacks_is_that_of_the_last_epoch(tmp_path):
    class Forgetful(Hyper):
        def fit(self, hp, model, train, **kwargs):
            return model.fit(train, epochs=2, verbose=0, validation_data=VAL)

    assert (run(tmp_path, Forgetful(), max_trials=1).frame.status == "completed").all()


@pytest.mark.slow
def test_conditions_are_found_and_drawn(tmp_path):
    def some(hp):
        kind = hp.Choice("kind", ["a", "b"])
        with hp.conditional_scope("kind", ["b"]):
            deeper = hp.Choice("deeper", ["c", "d"])
            if kind == "b":
                with hp.conditional_scope("deeper", ["d"]):
                    hp.Float("deepest", 0, 1)
        assert (deeper is None) == (kind == "a")
        return build(hp)

    found = run(tmp_path, Quick(some), algorithm="tpe", max_trials=10).frame
    assert (found.status == "completed").all()
    assert (found.deeper.isna() == (found.kind == "a")).all()
    assert (found.deepest.isna() == (found.deeper != "d")).all()
    assert found.deepest.notna().any()


# Folds


@pytest.mark.slow
def test_folds_give_mean_and_spread_of_real_models(tmp_path):
    found = run(tmp_path, train=TRAIN, val=None, folds=3, max_trials=2)
    row = found.frame.loc[found.frame.val_loss.idxmin()]
    models = found.best()
    scores = [model.evaluate(TRAIN[0][outside], TRAIN[1][outside], verbose=0, return_dict=True)["loss"]
              for model, (_, outside) in zip(models, _folds.split(TRAIN[1], 3, 0), strict=True)]
    assert row.val_loss == pytest.approx(np.mean(scores), rel=1e-5)
    assert row["val_loss ±"] == pytest.approx(np.std(scores, ddof=1), rel=1e-5)


def test_folds_share_nothing_and_hold_every_class():
    y = np.repeat([0, 1, 2], [30, 20, 7])
    parts = _folds.split(y, 4, seed=3)
    assert sorted(np.concatenate([outside for _, outside in parts])) == list(range(57))
    for inside, outside in parts:
        assert not set(inside) & set(outside)
        assert len(inside) + len(outside) == 57
        assert np.all(np.abs(np.bincount(y[outside], minlength=3) - np.array([7.5, 5, 1.75])) < 1)
    assert any((a != b).any() for (_, a), (_, b) in zip(parts, _folds.split(y, 4, seed=4), strict=True)
               if len(a) == len(b))


@pytest.mark.slow
def test_a_bad_trial_is_stopped_after_two_folds(tmp_path):
    def some(hp):
        model = build(hp)
        model.optimizer.learning_rate = 1.0 if hp.Boolean("good", default=True) else 0.0
        return model

    found = run(tmp_path, some, val=None, folds=3, max_trials=4, epochs=2).frame
    assert set(found.status) == {"completed", "stopped"}
    assert not found.good[found.status == "stopped"].any()
    assert found.message[found.status == "stopped"].str.contains("worse in folds 1 to 2").all()


def test_what_a_bad_fold_is():
    assert _folds.is_bad([.1, .2], [.5, .3], "max")
    assert not _folds.is_bad([.1, .4], [.5, .3], "max")
    assert not _folds.is_bad([.1], [.5, .3], "max")
    assert not _folds.is_bad([.1, .2], [], "max")
    assert _folds.is_bad([.9, .8], [.5, .3], "min")
    assert not _folds.is_bad([.9, .4], [.5, .3], "min")


# Several objectives


@pytest.mark.slow
def test_several_objectives_give_a_front(tmp_path):
    found = run(tmp_path, Quick(), ["val_loss", "params"], algorithm="tpe", max_trials=12)
    table, front = found.frame, found.pareto()
    for number, row in table.iterrows():
        beaten = ((table.val_loss <= row.val_loss) & (table.params <= row.params)
                  & ((table.val_loss < row.val_loss) | (table.params < row.params))).any()
        assert (number in front.index) == (not beaten)
    assert found.best().count_params() in set(front.params)
    assert len(found.plot(tmp_path / "p.png").axes) == 4
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_the_front_is_ranked_before_what_it_beats():
    trials = {n: Trial(n, {}, "completed", {"a": a, "b": b}) for n, (a, b) in
              enumerate([(1, 9), (2, 5), (3, 6), (4, 1), (5, 5)])}
    order = _study.ranked(trials, {"a": "min", "b": "min"})
    assert [trial.number for trial in order] == [0, 1, 3, 2, 4]
    assert _study.ranked(trials, {"a": "max"})[0].number == 4


# The picture


def branched(hp):
    """"a" decides in the half where "kind" is "x", "b" in the other, where it matters less; "none" nowhere."""
    kind, _ = hp.Choice("kind", ["x", "y"]), hp.Float("none", 0, 1)
    with hp.conditional_scope("kind", ["x"]):
        hp.Float("a", 0, 1)
    with hp.conditional_scope("kind", ["y"]):
        hp.Float("b", 1e-3, 1, sampling="log")
    return kind


def trials_on_record(count):
    draw, trials = np.random.default_rng(0), []
    for n in range(count):
        kind, none, value = draw.choice(["x", "y"]), draw.uniform(), draw.uniform()
        values = {"kind": str(kind), "none": none, **({"a": value} if kind == "x" else {"b": 10 ** (3 * value - 3)})}
        trials.append(Trial(n, values, "completed", {"good": value if kind == "x" else .5 + .1 * value, "same": 1.}))
    return trials


def test_importance_is_that_of_optuna():
    """Of a study of Optuna's own; a parameter that no score depends on has next to nothing."""
    hp, trials, kind = keras_tuner.HyperParameters(), trials_on_record(100), optuna.distributions
    branched(hp)
    kinds = {"kind": kind.CategoricalDistribution([0, 1]), "none": kind.FloatDistribution(0, 1),
             "a": kind.FloatDistribution(0, 1), "b": kind.FloatDistribution(1e-3, 1, log=True)}
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        values = {**trial.values, "kind": "xy".index(trial.values["kind"])}
        study.add_trial(optuna.create_trial(value=trial.scores["good"], params=values,
                                            distributions={name: kinds[name] for name in values}))
    expected = optuna.importance.get_param_importances(study)
    found = _importance.importance_of([*trials, Trial(100, {}, "failed")], hp, {"good": "max", "same": "min"})
    assert list(found.index) == list(expected)
    np.testing.assert_allclose(found.good, list(expected.values()), rtol=1e-12)
    assert found.index[0] == "a"
    assert found.good["none"] < .1 < found.good["a"]
    assert (found.same == 0).all()
    assert found.trials.to_dict() == {"kind": 100, "none": 100, "a": sum("a" in t.values for t in trials),
                                      "b": sum("b" in t.values for t in trials)}
    with pytest.raises(ValueError, match="importance needs two completed trials"):
        _importance.importance_of(trials[:1], hp, {"good": "max"})


@pytest.mark.slow
def test_the_picture_shows_every_trial(tmp_path):
    found = run(tmp_path, Quick(), max_trials=4)
    figure = found.plot()
    assert sorted(bar.get_width() for bar in figure.axes[1].patches) == sorted(found.importance().val_loss)
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["history", "importance"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 4
    assert len(figure.axes[-1].collections[0].get_segments()) == 4
    with pytest.raises(ValueError, match="needs a completed trial"):
        search(tmp_path / "none").plot()


# Spaces


def test_spaces_make_what_they_promise():
    from tfopt import augment, distill, schedules

    kinds = set()
    for shape in ("cosine", "constant", "one_cycle", "warmup_cosine"):
        hp = _oracles.space_from([], {"schedule": shape})
        hp.steps = lambda: 50
        rate = tune.schedule(hp)
        assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        assert 0 <= float(rate(49)) <= hp.values["peak_rate"] * 1.001
        kinds.add(type(rate))
    assert schedules.OneCycle in kinds
    for kind, made in (("l2", keras.regularizers.L2), ("hoyer", object), ("group_lasso", object)):
        assert isinstance(tune.regularizer(_oracles.space_from([], {"penalty": kind})), made)
    for kind in ("classic", "rand", "trivial"):
        views = tune.augmentation(_oracles.space_from([], {"augmentation": kind}), flip=kind == "rand")
        assert isinstance(views, augment.Pipeline)
    loss, weight = tune.distillation(_oracles.space_from([], {"temperature": 2.0, "student_loss_weight": 0.1}))
    assert isinstance(loss, distill.Logits)
    assert (loss.temperature, weight) == (2.0, 0.1)
    assert tune.sparsity(_oracles.space_from([], {"density": 0.1})) == pytest.approx(0.9)
    assert tune.shrink_ratio(_oracles.space_from([], {})) == 0.5
    with pytest.raises(ValueError, match="a schedule needs the number of optimizer steps"):
        tune.schedule(_oracles.space_from([], {}))


# Refusals


@pytest.mark.parametrize(("given", "words"), [
    ({"algorithm": "annealing"}, "`algorithm` must be 'tpe', 'random'"),
    ({"objective": "val_money"}, "which way an objective is better"),
    ({"objective": ["val_loss", "bytes"], "algorithm": "bayesian"}, "several objectives need algorithm"),
    ({"objective": "bytes"}, "one objective must be a log of training"),
    ({"objective": []}, "`objective` must be a name"),
    ({"max_trials": 0}, "`max_trials` must be a whole number >= 1"),
    ({"seed": -1}, "`seed` must be a whole number >= 0"),
    ({"keep_weights": 0}, "`keep_weights` must be a whole number >= 1"),
    ({"folds": 1}, "`folds` must be None or a whole number >= 2"),
    ({"limits": {"flops": 3}}, "`limits` knows params, macs"),
    ({"limits": {"params": 0}}, "each value a number > 0"),
])
def test_a_wrong_search_is_refused(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        search(tmp_path, **given)


def test_what_is_no_build_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`build` must be a function of `hp`"):
        tune.Search(3, "val_loss", max_trials=1, directory=tmp_path)
    with pytest.raises(TypeError, match="must be a name"):
        tune.Search(build, 3, max_trials=1, directory=tmp_path)
    with pytest.raises(ValueError, match=r"must return a compiled keras\.Model"):
        run(tmp_path, lambda hp: keras.Sequential([keras.layers.Dense(hp.Int("u", 1, 2))]))


@pytest.mark.parametrize(("given", "words"), [
    ({"val": None}, "this objective needs validation data"),
    ({"folds": 3}, "with `folds` a search takes no `val`"),
    ({"train": [1, 2, 3]}, "`train` must hold x of the shape"),
    ({"epochs": 0}, "`epochs` must be"),
    ({"batch_size": 0}, "`batch_size` must be"),
])
def test_wrong_data_are_refused(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **given)


def test_callbacks_must_be_made_anew(tmp_path):
    with pytest.raises(TypeError, match="a function of `hp` that returns new callbacks"):
        run(tmp_path, callbacks=[keras.callbacks.TerminateOnNaN()])


def test_another_study_in_the_directory_is_refused(tmp_path):
    run(tmp_path, Quick(), max_trials=1)
    with pytest.raises(ValueError, match=r"a directory holds one study.*seed=.2, recorded 0") as caught:
        run(tmp_path, Quick(), max_trials=1, seed=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="recorded 1"):
        run(tmp_path, Quick(), max_trials=1, epochs=2)


def test_without_optuna_tpe_says_what_to_install(tmp_path, monkeypatch):
    import builtins
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("optuna", "sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install optuna"):
        search(tmp_path, algorithm="tpe")
    with pytest.raises(ImportError, match="pip install scikit-learn scipy"):
        search(tmp_path, algorithm="bayesian")


def test_the_record_is_plain_json(tmp_path):
    run(tmp_path, Quick(), max_trials=1)
    lines = (tmp_path / "record.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"]["kind"] for line in lines] == ["study", "space", "start", "end"]


class Batches(keras.utils.PyDataset):
    """(x, y, weights) in batches of 8."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[0]) // 8

    def __getitem__(self, i):
        return tuple(array[8 * i:8 * i + 8] for array in self.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda *arrays: arrays, Batches])
def test_what_weighs_nothing_changes_no_score(tmp_path, form):
    """Weights reach training and the score: rows of weight 0 may hold anything."""
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    weights, found = (np.arange(32) < 24).astype("float32"), []

    def small(hp):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(hp.Choice("rate", [0.1, 0.01])), "mse", weighted_metrics=["mae"])
        return model

    for name, spoil in (("a", 0.0), ("b", 99.0)):
        samples = form(x, x[:, :1] + spoil * (1 - weights[:, None]), weights)
        search = tune.Search(small, "val_mae", algorithm="grid", max_trials=2, directory=tmp_path / name)
        found.append(search.run(samples, samples, epochs=2, verbose=0).frame.drop(columns="seconds"))
    assert found[0].status.tolist() == ["completed"] * 2
    np.testing.assert_allclose(found[0].val_mae, found[1].val_mae, rtol=1e-6)
