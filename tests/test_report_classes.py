"""The rows of classes, temperature scaling, and the model card."""

import keras
import numpy as np
import pytest
import yaml
from keras import layers as L
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn import metrics

from tfopt import quantize, report

CE, BCE = keras.losses.SparseCategoricalCrossentropy, keras.losses.BinaryCrossentropy


def classified(n=400, k=4, seed=0):
    """(a model that returns what it gets, logits, labels drawn from the softmax of a third of them)."""
    rng = np.random.default_rng(seed)
    z = 3 * rng.normal(size=(n, k)).astype("float32")
    y = (softmax(z / 3, 1).cumsum(1) > rng.random((n, 1))).argmax(1)
    model = keras.Sequential([keras.Input((k,)), L.Dense(k, kernel_initializer="identity", name="last")])
    model.compile(loss=CE(from_logits=True))
    return model, z, y


# ---- classes

def test_classes_equal_scikit_learns_report():
    model, z, y = classified()
    found = report.classes(model, (z, y), names=["a", "b", "c", "d"])
    expected = metrics.classification_report(y, z.argmax(1), target_names=list("abcd"), output_dict=True)
    for name in "abcd":
        ours = tuple(found.frame.loc[name, ["precision", "recall", "f1", "support"]])
        assert ours == pytest.approx(tuple(expected[name].values()), rel=1e-12)
        for kind in ("precision", "recall", "f1"):
            low, value, high = found.frame.loc[name, [f"{kind}_low", kind, f"{kind}_high"]]
            assert low < value < high
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(y, z.argmax(1)))
    lite = report.classes(quantize.convert(model, "float32"), (z, y))
    np.testing.assert_array_equal(lite.confusion, found.confusion)
    assert list(lite.frame.index) == [0, 1, 2, 3]
    assert "precision_low" in repr(found)
    assert "<table" in found._repr_html_()


def test_a_class_that_never_comes_has_a_row():
    model, z, y = classified()
    z[:, 3] = -9
    frame = report.classes(model, (z[y < 3], y[y < 3])).frame
    assert tuple(frame.loc[3, ["precision", "recall", "f1", "support"]]) == (0, 0, 0, 0)


@pytest.mark.parametrize("k", [2, 40])
def test_the_confusion_matrix_is_drawn(tmp_path, k):
    model, z, y = classified(k=k)
    figure = report.classes(model, (z, y)).plot(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5_000
    image, = figure.axes[0].images
    counts = metrics.confusion_matrix(y, z.argmax(1), labels=range(k))
    np.testing.assert_allclose(image.get_array(), counts / counts.sum(1, keepdims=True))
    written = {tuple(map(int, text.get_position())): int(text.get_text()) for text in figure.axes[0].texts}
    assert written == ({} if k == 40 else {(j, i): counts[i, j] for i in range(k) for j in range(k)})


def test_several_labels_have_rows_and_no_matrix():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(3, "sigmoid", kernel_initializer="identity")(inputs))
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(200, 3)), rng.integers(0, 2, (200, 3))
    found = report.classes(model, (z, y), names=["red", "green", "blue"])
    np.testing.assert_allclose(found.frame["f1"], metrics.f1_score(y, z > 0, average=None), rtol=1e-12)
    np.testing.assert_array_equal(found.frame["support"], y.sum(0))
    with pytest.raises(ValueError, match="needs one class an example"):
        found.plot()


def test_refusals_of_classes():
    model, z, y = classified()
    with pytest.raises(ValueError, match=r"report.classes: `names` must be one a class"):
        report.classes(model, (z, y), names=["a", "b"])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=r"report.classes: classes need labels that are classes"):
        report.classes(model, (z, z))
    inputs = keras.Input((4,))
    two = keras.Model(inputs, {"a": L.Softmax(name="a")(inputs), "b": L.Softmax(name="b")(inputs[:, :3])})
    data = z, {"a": y, "b": y % 3}
    with pytest.raises(ValueError, match=r"`output` must be one of the model's several"):
        report.classes(two, data)
    assert len(report.classes(two, data, output="b").frame) == 3


# ---- temperature

def ending(kind):
    """A model of 4 inputs whose logits are three times too large."""
    inputs = keras.Input((4,))
    units = 1 if "binary" in kind else 4
    kernel = keras.initializers.Constant(np.eye(4)[:, :units] if units == 1 else np.eye(4))
    last = {"logits": L.Dense(4, kernel_initializer=kernel, name="last"),
            "softmax": L.Dense(4, "softmax", kernel_initializer=kernel, name="last"),
            "binary": L.Dense(1, "sigmoid", kernel_initializer=kernel, name="last"),
            "binary logit": L.Dense(1, kernel_initializer=kernel, name="last")}.get(
                kind, L.Dense(4, kernel_initializer=kernel, name="last"))
    x = last(inputs)
    if kind == "softmax layer":
        x = L.Softmax()(x)
    if kind == "activation":
        x = L.Activation("softmax", dtype="float32")(x)
    model = keras.Model(inputs, x)
    if kind == "nested":
        model = keras.Sequential([keras.Input((4,)), L.Identity(), model])
    loss = BCE(from_logits=kind == "binary logit") if units == 1 else CE(
        from_logits=kind in ("logits", "nested"))
    model.compile(loss=loss)
    return model


@pytest.mark.parametrize("kind", ["logits", "softmax", "softmax layer", "activation", "nested", "binary",
                                  "binary logit"])
def test_the_temperature_is_the_best_one_wherever_the_logits_are(kind):
    _, z, y = classified(2000)
    if "binary" in kind:
        y = (np.random.default_rng(5).random(2000) < expit(z[:, 0] / 3)).astype(int)
    model = ending(kind)
    before, given = model.get_weights(), model.predict(z, verbose=0)
    calibrated = report.temperature(model, (z, y))

    def loss(t):
        p = expit(z[:, 0] / t) if "binary" in kind else softmax(z.astype(float) / t, 1)
        return metrics.log_loss(y, p)

    best = minimize(loss, 2., method="Nelder-Mead").x[0]
    assert 2 < best < 4
    inner = calibrated.layers[-1] if kind == "nested" else calibrated
    np.testing.assert_allclose(inner.get_layer("last").kernel, before[0] / best, rtol=1e-3)
    logits = z[:, :1] / best if "binary" in kind else z / best
    final = {"logits": np.copy, "nested": np.copy, "binary logit": np.copy, "binary": expit}
    expected = final.get(kind, lambda z: softmax(z, 1))(logits)
    np.testing.assert_allclose(calibrated.predict(z, verbose=0), expected, rtol=1e-3, atol=1e-4)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))        # the user's: untouched
    np.testing.assert_array_equal(model.predict(z, verbose=0), given)
    assert model.compiled


def overfitted(seed):
    """(a network that is too sure, validation and test data): noisy classes learned by heart."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3300, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 3)) + 2 * rng.gumbel(size=(3300, 3))).argmax(1)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8,)), L.Dense(64, "relu"), L.Dense(3)])
    model.compile(keras.optimizers.Adam(.01), CE(from_logits=True))
    model.fit(x[:300], y[:300], epochs=60, batch_size=64, verbose=0)
    return model, (x[300:1300], y[300:1300]), (x[1300:], y[1300:])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_calibration_error_falls_on_data_not_seen_and_the_accuracy_stays(seed, tmp_path):
    model, val, test = overfitted(seed)
    calibrated = report.temperature(model, val)
    calibrated.save(tmp_path / "calibrated.keras")
    models = {"before": model, "after": keras.models.load_model(tmp_path / "calibrated.keras"),
              "int8": quantize.convert(calibrated, "int8", calibration=val[0][:100])}
    table = report.compare(models, test, measures=("expected_calibration_error", "log_loss", "accuracy"), runs=1)
    before, after, lite = (row.measures for row in table.rows)
    assert before["expected_calibration_error"] > .1                     # the control: there was something to do
    assert after["expected_calibration_error"] < .05 < .1 < before["expected_calibration_error"]
    assert after["expected_calibration_error_difference_high"] < 0
    assert after["log_loss_difference_high"] < 0
    assert after["accuracy"] == before["accuracy"]
    assert after["accuracy_p"] == 1
    assert lite["expected_calibration_error"] < .06
    assert abs(lite["accuracy"] - before["accuracy"]) < .02
    assert [w.shape for w in calibrated.weights] == [w.shape for w in model.weights]


def test_refusals_of_temperature():
    _, z, y = classified()
    inputs = keras.Input((4,))
    pooled = keras.Model(inputs, L.Softmax()(L.Rescaling(2.)(inputs)))
    with pytest.raises(ValueError, match=r"report.temperature: .*cannot reach the logits.*Rescaling.* in a Dense"):
        report.temperature(pooled, (z, y))
    curved = keras.Model(inputs, L.Softmax()(L.Dense(4, "tanh")(inputs)))
    with pytest.raises(ValueError, match="cannot reach the logits"):
        report.temperature(curved, (z, y))
    two = keras.Model(inputs, [L.Dense(4)(inputs), L.Dense(4)(inputs)])
    with pytest.raises(ValueError, match="needs a model with one output"):
        report.temperature(two, (z, [y, y]))
    model, z, _ = classified()
    with pytest.raises(ValueError, match="no temperature from"):
        report.temperature(model, (z, z.argmax(1)))                      # all right: the surer the better
    numbers = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    numbers.compile(loss="mse")
    with pytest.raises(ValueError, match="is for classes"):
        report.temperature(numbers, (z, z[:, :1]))


def test_a_layer_that_is_used_twice_is_refused_and_not_scaled_twice():
    shared = L.Dense(4, kernel_initializer="identity")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    model.compile(loss=CE(from_logits=True))
    _, z, y = classified()
    with pytest.raises(RuntimeError, match=r"report.temperature: the result computes something else"):
        report.temperature(model, (z, y))


# ---- card

def front_matter(path):
    text = path.read_text()
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1]), text


def test_the_card_says_what_the_table_says(tmp_path):
    model, z, y = classified()
    table = report.compare({'the "first"': model, "second": model}, (z, y), title="400 rows: made, not found",
                           measures=("f1_macro", "log_loss"), runs=1)
    report.card(table, tmp_path / "README.md", task="tabular-classification", license="apache-2.0")
    found, text = front_matter(tmp_path / "README.md")
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "keras"
    assert [entry["name"] for entry in found["model-index"]] == ['the "first"', "second"]
    result, = found["model-index"][1]["results"]
    assert result["task"] == {"type": "tabular-classification"}
    assert result["dataset"] == {"name": "400 rows: made, not found", "type": "400-rows-made-not-found"}
    row = table.rows[1]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": row.accuracy, "f1_macro": row.measures["f1_macro"], "log_loss": row.measures["log_loss"]}
    assert table.markdown() in text
    assert "400 examples" in text
    report.card(table, tmp_path / "README.md", dataset="other words")       # its own card is written anew
    assert front_matter(tmp_path / "README.md")[0]["model-index"][0]["results"][0]["dataset"]["name"] == "other words"


def test_the_card_of_several_outputs_and_of_numbers(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"kind": L.Softmax(name="kind")(inputs), "size": L.Dense(1, name="size")(inputs)})
    model.compile(loss={"kind": CE(), "size": "mse"})
    _, z, y = classified()
    table = report.compare({"a": model}, (z, {"kind": y, "size": z[:, :1]}), measures=("r2", "f1_macro"), runs=1)
    report.card(table, tmp_path / "card.md", dataset="d")
    metric = front_matter(tmp_path / "card.md")[0]["model-index"][0]["results"][0]["metrics"]
    assert sorted(part["type"] for part in metric) == ["kind_accuracy", "kind_f1_macro", "size_mean_absolute_error",
                                                       "size_r2"]


def test_refusals_of_the_card(tmp_path):
    model, z, y = classified()
    with pytest.raises(ValueError, match=r"report.card: a card needs measured values of each model"):
        report.card(report.compare([model], runs=1, title="t"), tmp_path / "a.md")
    table = report.compare([model], (z, y), runs=1)
    with pytest.raises(ValueError, match=r"report.card: a card needs a name of the data"):
        report.card(table, tmp_path / "a.md")
    (tmp_path / "mine.md").write_text("what I wrote")
    with pytest.raises(ValueError, match=r"report.card: `path` holds a file that report.card did not write"):
        report.card(table, tmp_path / "mine.md", dataset="d")
    assert (tmp_path / "mine.md").read_text() == "what I wrote"
