"""Cross-validation: beside loops of scikit-learn and Keras, nothing of a held-out row is seen, tables, groups."""

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn import compose, impute, model_selection, pipeline, preprocessing

from tfopt import data, tune
from tfopt.tune import _folds, _oracles

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(40, 3)) * [1, 10, 100] + [0, 5, -50]).astype("float32")
X[3] *= 50                                                           # whoever scales with this row scales otherwise
Y = (RNG.normal(size=40) > 0).astype("int64")
GROUPS = np.array([f"patient {n}" for n in RNG.integers(0, 9, 40)])


def fixed(inputs, features):
    """A model that trains at a rate of 0: what it says is a known sum of its features."""
    def weights(shape, dtype=None):
        return np.arange(1, 1 + np.prod(shape), dtype="float32").reshape(shape)

    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=weights)(features))
    model.compile(keras.optimizers.SGD(0.), "mse", run_eagerly=True)
    return model


def summed(features):
    return features @ np.arange(1, 1 + features.shape[1])[:, None]


def pairs(found):
    """(train, test) of each fold, as scikit-learn takes them."""
    return [(np.flatnonzero(found.folds != fold), np.flatnonzero(found.folds == fold))
            for fold in range(found.folds.max() + 1)]


@pytest.mark.slow
def test_scaling_is_fitted_inside_each_fold():
    def build(rows):
        scale = keras.layers.Normalization()
        scale.adapt(rows[0])
        inputs = keras.Input((3,))
        return fixed(inputs, scale(inputs))

    found = tune.cross_validate(build, X, Y, folds=4, epochs=1, verbose=0)
    scaled = np.zeros((40, 1))
    for inside, outside in pairs(found):
        steps = pipeline.Pipeline([("scale", preprocessing.StandardScaler())]).fit(X[inside].astype(float))
        scaled[outside] = summed(steps.transform(X[outside].astype(float)))
    np.testing.assert_allclose(found.predictions, scaled, rtol=1e-4, atol=1e-4)
    leaked = summed(preprocessing.StandardScaler().fit_transform(X.astype(float)))          # negative control
    assert np.abs(leaked - scaled).max() > 1
    folds = model_selection.StratifiedKFold(4)
    assert sorted(np.bincount(found.folds)) == sorted(len(test) for _, test in folds.split(X, Y))


@pytest.mark.slow
def test_a_table_is_cleaned_inside_each_fold():
    """Beside scikit-learn's imputer, scaler and one-hot encoder in a pipeline of each fold."""
    frame = pd.DataFrame(X.astype(float), columns=list("abc")).assign(
        kind=np.array(["x", "y", "z"])[RNG.integers(0, 3, 40)], label=np.where(Y, "yes", "no"))
    frame.loc[RNG.choice(40, 12, replace=False), "b"] = np.nan
    seen = []

    def build(rows):
        seen.append(rows.index.to_numpy())
        fitted = data.table(rows, "label", 8, validation_split=0)[2]
        return fixed(fitted.model.input, fitted.model.output)

    found = tune.cross_validate(build, frame, "label", folds=4, epochs=1, verbose=0)
    numbers = pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), preprocessing.StandardScaler())
    steps = compose.ColumnTransformer([
        ("numbers", numbers, ["a", "b", "c"]),
        ("kind", preprocessing.OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["kind"])])
    expected = np.zeros((40, 1))
    for (inside, outside), given in zip(pairs(found), seen, strict=True):
        np.testing.assert_array_equal(given, inside)                 # what `build` was shown
        expected[outside] = summed(steps.fit(frame.iloc[inside]).transform(frame.iloc[outside]))
    np.testing.assert_allclose(found.predictions, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(summed(steps.fit_transform(frame)) - expected).max() > 1                  # negative control
    losses = ((found.predictions[:, 0] - Y) ** 2)
    np.testing.assert_allclose(found.frame.loss, [losses[test].mean() for _, test in pairs(found)], rtol=1e-5)


def classifier():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dropout(.1),
                              keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"], run_eagerly=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_a_loop_over_folds(weighted):
    x = X / 100
    weights = np.where(Y == 1, 5., 1.).astype("float32")
    found = tune.cross_validate(classifier, x, Y, folds=3, epochs=2, batch_size=16, seed=1, verbose=0,
                                class_weight={0: 1, 1: 5} if weighted else None)
    assert list(found.frame.columns) == ["accuracy", "loss"]
    for fold, (inside, outside) in enumerate(_folds.split(Y, 3, 1)):
        np.testing.assert_array_equal(np.flatnonzero(found.folds == fold), outside)
        seed = _oracles.derived(1, "fold", fold) % 2**31
        keras.utils.set_random_seed(seed)
        model = classifier()
        model.fit(data.arrays(x[inside], Y[inside], 16, seed=seed,
                              sample_weight=weights[inside] if weighted else None), epochs=2, verbose=0, shuffle=False)
        assert found.frame.loss[fold] == pytest.approx(model.evaluate(x[outside], Y[outside], verbose=0)[0], rel=1e-5)
        np.testing.assert_allclose(found.predictions[outside], model.predict(x[outside], verbose=0), rtol=1e-4)
        np.testing.assert_allclose(found.models[fold].get_weights()[0], model.get_weights()[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("y", [Y, X[:, :2] / 100], ids=["classes", "numbers"])
def test_groups_stay_together(y, capsys):
    def build(rows):
        assert not set(rows[0][:, 0]) & held_out[len(calls)]
        calls.append(1)
        model = classifier()
        if y is not Y:
            model.compile("sgd", "mse", run_eagerly=True)
        return model

    calls, kind = [], model_selection.StratifiedGroupKFold if y is Y else model_selection.GroupKFold
    expected = list(kind(3, shuffle=True, random_state=2).split(X, y, GROUPS))
    held_out = [set(X[test, 0]) for _, test in expected]
    found = tune.cross_validate(build, X, y, folds=3, groups=GROUPS, epochs=1, seed=2)
    for fold, (_, test) in enumerate(expected):
        np.testing.assert_array_equal(np.flatnonzero(found.folds == fold), test)
    assert all(len(set(found.folds[group == GROUPS])) == 1 for group in GROUPS)
    plain = tune.cross_validate(classifier, X, Y, folds=3, epochs=1, seed=2, verbose=0).folds
    assert any(len(set(plain[group == GROUPS])) > 1 for group in GROUPS)                    # negative control
    assert "3/3" in capsys.readouterr().out
    tune.cross_validate(classifier, X, Y, folds=2, epochs=1, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_several_inputs_and_outputs():
    def build():
        a, b = keras.Input((2,), name="a"), keras.Input((1,), name="b")
        both = keras.layers.concatenate([a, b])
        model = keras.Model([a, b], {"one": keras.layers.Dense(1, name="one")(both),
                                     "two": keras.layers.Dense(2, name="two")(both)})
        model.compile("sgd", {"one": "mse"}, run_eagerly=True)
        return model

    x = {"a": X[:, :2] / 100, "b": X[:, 2:] / 100}
    found = tune.cross_validate(build, x, X[:, 0] / 100, folds=2, epochs=1, verbose=0)
    for name, width in (("one", 1), ("two", 2)):
        assert found.predictions[name].shape == (40, width)
        for fold, (_, outside) in enumerate(pairs(found)):
            own = found.models[fold].predict([part[outside] for part in x.values()], verbose=0)
            np.testing.assert_allclose(found.predictions[name][outside], own[name], rtol=1e-5)


@pytest.mark.parametrize(("given", "words"), [
    ({"folds": 41}, "`folds` must be at least 2 and at most"), ({"groups": GROUPS[:3]}, "the group of each row"),
    ({"groups": np.repeat([0, 1], 20)}, "at most the number of groups"), ({"y": "label"}, "the name of a column"),
    ({"y": Y[:5]}, "of one length|several lengths"), ({"x": pd.DataFrame(X), "y": "label"}, "the name of a column"),
    ({"x": X[:, :2]}, "of the shape of the model's inputs"),
])
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValueError, match=f"^tune.cross_validate: .*{words}"):
        tune.cross_validate(classifier, **{"x": X, "y": Y, "folds": 3, "epochs": 1, "verbose": 0, **given})
