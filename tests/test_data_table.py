import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from tfopt import data

SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, None: lambda: "passthrough"}


@pytest.fixture
def frame(rng):
    """Numbers of very different size, text, bool, missing values and outliers; the target is the number of the row."""
    count = 200
    frame = pd.DataFrame({
        "age": rng.normal(40, 10, count).round(),
        "income": rng.lognormal(10, 1, count),
        "time": 1.6e9 + rng.normal(0, 30, count),
        "city": rng.choice(["Rome", "Oslo", "Lima"], count, p=[0.6, 0.3, 0.1]),
        "member": rng.random(count) < 0.3,
        "row": np.arange(count, dtype=float)})
    frame.loc[rng.choice(count, 30, replace=False), "age"] = np.nan
    frame.loc[rng.choice(count, 20, replace=False), "income"] = np.nan
    frame.loc[rng.choice(count, 25, replace=False), "city"] = None
    return frame


def rows_of(dataset):
    """(x, y) of a whole dataset."""
    parts = [(x.numpy(), y.numpy()) for x, y in dataset]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


NUMBERS = ["age", "income", "time", "member"]


@pytest.mark.parametrize("scale", SCALERS)
@pytest.mark.parametrize("missing", ["median", "mean", "mode", 7.5])
def test_equals_scikit_learn_fitted_on_the_training_rows_alone(frame, missing, scale):
    train, validation, fitted = data.table(frame, "row", 32, missing=missing, scale=scale, shuffle=False, seed=3)
    (x, y), (x_val, y_val) = rows_of(train), rows_of(validation)
    assert sorted([*y, *y_val]) == list(range(200))
    assert len(y_val) == 40

    strategy = {"strategy": {"mode": "most_frequent"}.get(missing, missing)} if isinstance(missing, str) else {
        "strategy": "constant", "fill_value": missing}
    reference = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(**strategy), SCALERS[scale]()), NUMBERS),
        ("names", make_pipeline(SimpleImputer(strategy="most_frequent"),
                                OneHotEncoder(handle_unknown="ignore", sparse_output=False)), ["city"])])
    raw = frame.astype({"city": object, "member": float}).where(frame.notna(), np.nan)
    reference.fit(raw.iloc[y.astype(int)])
    tolerance = {"atol": 2e-5} if scale else {"rtol": 1e-6}
    np.testing.assert_allclose(x, reference.transform(raw.iloc[y.astype(int)]), **tolerance)
    np.testing.assert_allclose(x_val, reference.transform(raw.iloc[y_val.astype(int)]), **tolerance)
    if scale == "standard":
        leaking = reference.fit(raw).transform(raw.iloc[y.astype(int)])
        assert np.abs(x - leaking).max() > 1e-3, "negative control: fitting on all rows is seen"
    assert fitted.frame.loc["city", "missing"] == frame["city"].iloc[y.astype(int)].isna().sum()


def test_validation_rows_have_no_influence_on_what_is_fitted(frame):
    options = {"outliers": "iqr", "shuffle": False}
    train, validation, fitted = data.table(frame, "row", 32, **options)
    other = frame.copy()
    other.loc[rows_of(validation)[1].astype(int), ["age", "income", "time", "city"]] = [1e6, -1e9, 0., "Rome"]
    train_2, _, fitted_2 = data.table(other, "row", 32, **options)
    pd.testing.assert_frame_equal(fitted.frame, fitted_2.frame)
    np.testing.assert_array_equal(rows_of(train)[0], rows_of(train_2)[0])


@pytest.mark.parametrize("rule", ["iqr", "zscore"])
def test_outliers_are_clipped_to_bounds_of_the_training_rows(frame, rule):
    frame.loc[5, "age"], frame.loc[7, "income"] = 900., 1e9
    train, validation, fitted = data.table(frame, "row", 32, outliers=rule, scale=None, missing=-1, shuffle=False)
    (x, y), (x_val, y_val) = rows_of(train), rows_of(validation)
    rows = frame.iloc[y.astype(int)][["age", "income", "time"]]
    if rule == "iqr":
        low, high = (np.nanpercentile(rows, q, axis=0) for q in (25, 75))
        low, high = low - 1.5 * (high - low), high + 1.5 * (high - low)
    else:
        low, high = (np.nanmean(rows, axis=0) + sign * 3 * np.nanstd(rows, axis=0) for sign in (-1, 1))
    for got, chosen in ((x, y), (x_val, y_val)):
        wanted = frame.iloc[chosen.astype(int)][["age", "income", "time"]].to_numpy()
        np.testing.assert_allclose(got[:, :3], np.where(np.isnan(wanted), -1, np.clip(wanted, low, high)), rtol=1e-5)
    beyond = ((rows < low) | (rows > high)).to_numpy().sum(axis=0)
    assert fitted.frame.loc[rows.columns, "outliers"].tolist() == beyond.tolist()
    assert beyond.sum() > 0
    assert len(y) == 160


def test_dropping_outliers_drops_training_rows_only(frame):
    train, validation, fitted = data.table(frame, "row", 32, outliers=("iqr", "drop"), shuffle=False)
    kept, y_val = rows_of(train)[1].astype(int), rows_of(validation)[1].astype(int)
    training = np.setdiff1d(np.arange(200), y_val)
    rows = frame.iloc[training][["age", "income", "time"]]
    low, high = rows.quantile(0.25), rows.quantile(0.75)
    beyond = ((rows < low - 1.5 * (high - low)) | (rows > high + 1.5 * (high - low))).any(axis=1)
    assert kept.tolist() == training[~beyond].tolist()
    assert fitted.dropped == beyond.sum() > 0
    assert len(y_val) == 40
    assert fitted.frame.loc["income", "fill"] == frame.iloc[kept]["income"].median()


def test_a_column_without_spread_keeps_its_values():
    frame = pd.DataFrame({"rare": [0.] * 18 + [1.] * 2, "same": [5.] * 20, "y": np.arange(20.)})
    train, _, fitted = data.table(frame, "y", 20, outliers="iqr", scale=None, validation_split=0, shuffle=False)
    np.testing.assert_array_equal(rows_of(train)[0], frame[["rare", "same"]])
    train, _, _ = data.table(frame, "y", 20, validation_split=0)
    assert (rows_of(train)[0][:, 1] == 0).all()
    assert fitted.frame.loc["rare", "outliers"] == 0


def test_missing_by_column(frame):
    _, _, fitted = data.table(frame, "row", 32, missing={"age": "mean", "income": 0, "city": "nowhere"},
                              validation_split=0)
    assert fitted.frame.loc["age", "fill"] == pytest.approx(frame["age"].mean())
    assert fitted.frame.loc["income", "fill"] == 0
    assert fitted.frame.loc["time", "fill"] == frame["time"].median()
    assert fitted.frame.loc["city", "categories"] == ["Lima", "Oslo", "Rome", "nowhere"]


@pytest.mark.parametrize(("target", "classes", "dtype"), [
    (["b", "a", "c", "a"] * 10, ["a", "b", "c"], "int32"), ([True, False] * 20, ["False", "True"], "int32"),
    (pd.Categorical([3, 1] * 20), ["1", "3"], "int32"), ([3, 1] * 20, None, "int64"), ([0.5, 1] * 20, None, "float32")])
def test_targets(target, classes, dtype):
    frame = pd.DataFrame({"x": np.arange(40.), "y": target})
    train, validation, fitted = data.table(frame, "y", 8, scale=None, shuffle=False)
    assert fitted.classes == classes
    for x, y in (rows_of(train), rows_of(validation)):
        expected = frame["y"].iloc[x[:, 0].astype(int)]
        assert y.dtype == dtype
        assert ([classes[k] for k in y] == expected.astype(str)).all() if classes else (y == expected).all()


def test_validation_rows_come_from_each_class_alike():
    frame = pd.DataFrame({"x": np.arange(100.), "y": ["rare"] * 10 + ["common"] * 90})
    _, validation, _ = data.table(frame, "y", 10, validation_split=0.3)
    assert np.bincount(rows_of(validation)[1]).tolist() == [27, 3]


def test_the_seed_chooses_rows_and_order(frame):
    def order(seed):
        return [rows_of(part)[1].tolist() for part in data.table(frame, "row", 32, seed=seed)[:2]]

    assert order(0) == order(0)
    assert order(0)[1] != order(1)[1]


@pytest.fixture
def whole(frame):
    """A trained model from raw columns to predictions, and what it was made of."""
    train, _, fitted = data.table(frame, "row", 32, outliers="iqr")
    net = keras.Sequential([keras.Input(fitted.model.output.shape[1:]), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    net.fit(train, epochs=1, verbose=0)
    return keras.Model(fitted.model.input, net(fitted.model.output)), fitted, net


def test_saved_with_the_model_and_reused_on_new_data(frame, whole, tmp_path, run_python):
    """In a process that knows nothing of tfopt."""
    model, fitted, net = whole
    model.save(tmp_path / "whole.keras")
    new = frame.sample(50, random_state=1).drop(columns="row")
    expected = net(next(iter(fitted.dataset(new, 50)))).numpy().ravel()
    np.testing.assert_allclose(model.predict(data.raw_features(new, model), verbose=0).ravel(), expected, rtol=1e-5)
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(loaded.predict(data.raw_features(new, loaded), verbose=0).ravel(), expected, rtol=1e-5)
    new.to_json(tmp_path / "new.json", orient="records")
    printed = run_python("""
import sys, json, keras, tensorflow as tf
model = keras.models.load_model("whole.keras")
rows = json.load(open("new.json"))
raw = {name: [[("" if x.dtype == "string" else float("nan")) if row[name] is None else row[name]] for row in rows]
       for name, x in model.input.items()}
raw = {name: tf.constant(values, tf.string if model.input[name].dtype == "string" else tf.float64)
       for name, values in raw.items()}
assert not any(name.startswith("tfopt") for name in sys.modules)
print(model(raw).numpy().ravel().tolist())
""")
    np.testing.assert_allclose(eval(printed.splitlines()[-1]), expected, rtol=1e-5)


def test_columns_keep_the_digits_that_predict_would_lose(frame, whole):
    _, fitted, _ = whole
    inner = fitted.model
    exact = inner.predict(data.raw_features(frame, inner), verbose=0)[:, 2]
    raw = next(iter(data.raw_features(frame, inner, batch_size=200)))
    lossy = inner.predict(raw, verbose=0)[:, 2]
    assert np.abs(exact).max() < 10
    assert np.abs(exact - lossy).max() > 0.5, "negative control: Keras rounds a dict of arrays to float32"


def test_new_data_are_treated_row_by_row(frame, whole):
    _, fitted, _ = whole
    together = next(iter(fitted.dataset(frame, 200)))[0]
    one = next(iter(fitted.dataset(frame.iloc[[17]], 1)))[0]
    np.testing.assert_array_equal(one[0], together[17])


def test_an_unknown_category_is_all_zeros_and_told(frame, whole):
    _, fitted, _ = whole
    new = frame.iloc[:3].assign(city=["Rome", "Atlantis", None])
    with pytest.warns(UserWarning, match="column 'city': 1 rows hold categories that no training row had: Atlantis"):
        x, _ = next(iter(fitted.dataset(new, 3)))
    np.testing.assert_array_equal(x[:, 4:], [[0, 0, 1], [0, 0, 0], [0, 0, 1]])         # Lima, Oslo, Rome


def test_numbers_as_categories_read_as_floats_later():
    frame = pd.DataFrame({"zip": pd.Categorical([1, 2, 1, 2]), "y": [1., 2., 3., 4.]})
    _, _, fitted = data.table(frame, "y", 4, validation_split=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = next(iter(fitted.dataset(pd.DataFrame({"zip": [2., np.nan, 1.]}), 3)))
    np.testing.assert_array_equal(x, [[0, 1], [1, 0], [1, 0]])


def test_from_a_file_as_from_a_frame_and_the_frame_stays(frame, tmp_path):
    before = frame.copy()
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, other = (rows_of(data.table(source, "row", 32, outliers="iqr")[0]) for source in (frame, tmp_path / "t.csv"))
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)
    np.testing.assert_array_equal(one[1], other[1])
    pd.testing.assert_frame_equal(frame, before)


def test_nullable_columns_and_any_index():
    frame = pd.DataFrame({"a": pd.array([1, None, 3, 4], "Int64"), "b": pd.array([True, None, False, True], "boolean"),
                          "c": pd.array(["x", None, "y", "x"], "string"), "d": [True, None, False, True],
                          "y": [1., 2., 3., 4.]}, index=[7, 7, 0, -1])
    train, _, _ = data.table(frame, "y", 4, validation_split=0, scale=None, shuffle=False)
    np.testing.assert_array_equal(
        rows_of(train)[0], [[1, 1, 1, 1, 0], [3, 1, 1, 1, 0], [3, 0, 0, 0, 1], [4, 1, 1, 1, 0]])


@pytest.mark.parametrize("options", [
    {"scale": "robust"}, {"missing": "zero"}, {"missing": float("nan")}, {"missing": {"nope": 0}}, {"outliers": "mad"},
    {"missing": {"age": "oldest"}}, {"missing": {"city": 0}}, {"outliers": ("iqr", "ignore")}, {"validation_split": 1},
    {"validation_split": 0.001}, {"target": "nope"}, {"target": "age"}, {"batch_size": 0}, {"seed": -1}])
def test_arguments_out_of_range(frame, options):
    arguments = {"target": "row", "batch_size": 8} | options
    with pytest.raises(ValueError, match="Received: "):
        data.table(frame, **arguments)


@pytest.mark.parametrize(("column", "rule"), [
    (pd.date_range("2020", periods=40), "numbers or categories"), ([np.inf] + [1.] * 39, "finite"),
    (["?"] + ["12"] * 39, "must not mix numbers and text"), ([np.nan] * 40, "needs a value"),
    ([None] * 40, "needs a value"), ([f"id{i}" for i in range(40)], "at most 30")])
def test_columns_with_nothing_to_fit(column, rule, monkeypatch):
    monkeypatch.setattr("tfopt.data._table.MANY", 30)
    with pytest.raises(ValueError, match=rule):
        data.table(pd.DataFrame({"a": column, "y": np.arange(40.)}), "y", 8)


@pytest.mark.parametrize("names", [["a/b", "y"], [0, "y"], ["a", "a", "y"], ["y"]])
def test_names_of_columns(names):
    with pytest.raises(ValueError, match="column"):
        data.table(pd.DataFrame(np.ones((9, len(names))), columns=names), "y", 8)


def test_new_data_that_do_not_fit(frame, whole):
    model, fitted, net = whole
    with pytest.raises(ValueError, match=r"absent=\['age'\]"):
        fitted.dataset(frame.drop(columns="age"), 8)
    with pytest.raises(ValueError, match="that was numbers must be numbers"):
        data.raw_features(frame.assign(age="old"), model)
    with pytest.raises(ValueError, match="must take a dict of columns"):
        data.raw_features(frame, net)
    with pytest.raises(TypeError, match=r"must be a path \(str or os.PathLike\) or a DataFrame"):
        data.table(np.zeros((3, 3)), "y", 8)


def test_a_class_that_no_training_row_had():
    frame = pd.DataFrame({"x": [1., 2., 3.], "y": ["a", "b", "a"]})
    _, _, fitted = data.table(frame, "y", 3, validation_split=0)
    with pytest.raises(ValueError, match=r"unknown=\['c'\]"):
        fitted.dataset(frame.assign(y="c"), 3)
