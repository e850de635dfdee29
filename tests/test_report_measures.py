"""Measures: each equal to scikit-learn or to NumPy, of Keras models and LiteRT files; intervals, tests, meanings."""

import functools

import keras
import numpy as np
import pytest
from keras import layers as L
from scipy.special import expit, softmax
from sklearn import metrics

from tfopt import quantize, report
from tfopt.report import _intervals, _measures, _task
from tfopt.report._task import Kind

EXACT = dict(rtol=1e-12, atol=1e-12)
CE = keras.losses.SparseCategoricalCrossentropy
BCE = keras.losses.BinaryCrossentropy
N = 200


def handing_on(shape, activation=None, loss=None):
    """A model that returns what it gets, through an activation."""
    inputs = keras.Input(shape)
    layer = L.Dense(shape[-1], activation, kernel_initializer="identity")
    model = keras.Model(inputs, layer(inputs))
    if loss is not None:
        model.compile(loss=loss)
    return model


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(N, *shape)).astype("float32")


def classes(k, *shape, seed=1):
    y = np.random.default_rng(seed).integers(0, k, (N, *shape))
    y.flat[:k] = range(k)
    return y


def calibration_error(p, y):
    """Guo et al., written as a loop: bins (0, 1/15], (1/15, 2/15], ..."""
    confidence, right, error = p.max(axis=1), p.argmax(axis=1) == y, 0.
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def of_classes(y, p, k):
    """{measure: value} by scikit-learn, of classes y and probabilities p [n, k]."""
    hat, every = p.argmax(axis=1), dict(labels=range(k), zero_division=0)
    found = {"accuracy": metrics.accuracy_score(y, hat), "balanced_accuracy": metrics.balanced_accuracy_score(y, hat),
             "roc_auc": metrics.roc_auc_score(y, p if k > 2 else p[:, 1], multi_class="ovr"),
             "average_precision": metrics.average_precision_score(y, p if k > 2 else p[:, 1]),
             "log_loss": metrics.log_loss(y, p), "expected_calibration_error": calibration_error(p, y),
             "brier_score": metrics.brier_score_loss(y, p if k > 2 else p[:, 1]),
             "iou": metrics.jaccard_score(y, hat, average="macro" if k > 2 else "binary"),
             "dice": metrics.f1_score(y, hat, average="macro" if k > 2 else "binary")}
    if k > 5:
        found["top_5_accuracy"] = metrics.top_k_accuracy_score(y, p, k=5)
    for name, score in {"precision": metrics.precision_score, "recall": metrics.recall_score,
                        "f1": metrics.f1_score}.items():
        found |= {f"{name}_{average}": score(y, hat, average=average, zero_division=0)
                  for average in ("macro", "weighted")}
        found |= {f"{name}_{c}": value for c, value in enumerate(score(y, hat, average=None, **every))}
        if k == 2:
            found[name] = score(y, hat, zero_division=0)
    return found


def names_of(columns):
    """What was asked for, to get these columns."""
    return list(dict.fromkeys(f"{name[:-1]}per_class" if name[-2] == "_" and name[-1].isdigit() else name
                              for name in columns))


def multiclass():
    z = 3 * numbers(7)
    expected = of_classes(classes(7), softmax(z.astype(float), 1), 7)
    return handing_on((7,), loss=CE(from_logits=True)), z, classes(7), expected


def ending_in_softmax():
    model, z = handing_on((4,), "softmax"), 3 * numbers(4)
    p = model.predict(z, verbose=0).astype(float)
    return model, z, np.eye(4)[classes(4)], of_classes(classes(4), p / p.sum(axis=1, keepdims=True), 4)


def two_classes():
    z = numbers(2)
    expected = of_classes(classes(2), softmax(z.astype(float), 1), 2)
    return handing_on((2,), loss=CE(from_logits=True)), z, classes(2), expected


def binary_logits():
    z = 60 * numbers(1)                                   # beyond 37 the probability is 1.0, and ranks no more
    p = expit(z.astype(float))
    reference = of_classes(classes(2), np.hstack([1 - p, p]), 2)
    reference |= {"roc_auc": metrics.roc_auc_score(classes(2), z), "average_precision":
                  metrics.average_precision_score(classes(2), z)}
    reference["log_loss"] = metrics.log_loss(classes(2), p)
    return handing_on((1,), loss=BCE(from_logits=True)), z, classes(2), reference


def binary_probabilities():
    model, z = handing_on((1,), "sigmoid"), numbers(1)
    p = model.predict(z, verbose=0).astype(float)
    return model, z, classes(2) == 1, of_classes(classes(2), np.hstack([1 - p, p]), 2)


def several_labels():
    z, y = numbers(3), classes(2, 3)
    p, hat = expit(z.astype(float)), (z > 0).astype(int)
    each = [(y[:, k], p[:, k]) for k in range(3)]
    found = {"accuracy": metrics.accuracy_score(y, hat), "roc_auc": metrics.roc_auc_score(y, z),
             "average_precision": metrics.average_precision_score(y, z),
             "iou": metrics.jaccard_score(y, hat, average="macro"), "dice": metrics.f1_score(y, hat, average="macro"),
             "log_loss": np.mean([metrics.log_loss(*of) for of in each]),
             "brier_score": np.mean([metrics.brier_score_loss(*of) for of in each]),
             "expected_calibration_error": calibration_error(np.stack([1 - p.ravel(), p.ravel()], 1), y.ravel())}
    for name, score in {"precision": metrics.precision_score, "recall": metrics.recall_score,
                        "f1": metrics.f1_score}.items():
        found |= {f"{name}_{average}": score(y, hat, average=average) for average in ("macro", "weighted")}
        found |= {f"{name}_{k}": value for k, value in enumerate(score(y, hat, average=None))}
    return handing_on((3,), loss=BCE(from_logits=True)), z, y, found


def real_numbers():
    x, y = numbers(2), 10 + numbers(2, seed=3)
    pair = y.astype(float), x.astype(float)
    return handing_on((2,), loss="mse"), x, y, {
        "mean_absolute_error": metrics.mean_absolute_error(*pair), "r2": metrics.r2_score(*pair),
        "root_mean_squared_error": metrics.root_mean_squared_error(*pair)}


def of_masks(y, hat, k):
    """{measure: value} in NumPy: of each class over all pixels, then the mean; of two classes that of class 1."""
    both = [((y == c) & (hat == c)).sum() for c in range(k)]
    sizes = [((y == c).sum(), (hat == c).sum()) for c in range(k)]
    iou = [part / (a + b - part) for part, (a, b) in zip(both, sizes, strict=True)]
    dice = [2 * part / (a + b) for part, (a, b) in zip(both, sizes, strict=True)]
    return {"iou": iou[1] if k == 2 else np.mean(iou), "dice": dice[1] if k == 2 else np.mean(dice)}


def masks():
    z, y = numbers(4, 5, 3), classes(3, 4, 5)
    flat, p = y.ravel(), softmax(z.astype(float), -1).reshape(-1, 3)
    reference = of_classes(flat, p, 3) | of_masks(y, z.argmax(-1), 3)
    return handing_on((4, 5, 3), loss=CE(from_logits=True)), z, y, {
        name: value for name, value in reference.items() if name not in ("roc_auc", "average_precision")}


def binary_masks():
    z, y = numbers(4, 5, 1), classes(2, 4, 5)
    p = expit(z.astype(float)).reshape(-1, 1)
    reference = of_classes(y.ravel(), np.hstack([1 - p, p]), 2) | of_masks(y, z[..., 0] > 0, 2)
    return handing_on((4, 5, 1), loss=BCE(from_logits=True)), z, y[..., None], {
        name: value for name, value in reference.items() if name not in ("roc_auc", "average_precision")}


CASES = [multiclass, ending_in_softmax, two_classes, binary_logits, binary_probabilities, several_labels, real_numbers,
         masks, binary_masks]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_measure_equals_scikit_learn_of_models_and_files(case):
    model, x, y, expected = case()
    lite = quantize.convert(model, "float32")
    if case in (ending_in_softmax, binary_probabilities):                # LiteRT's exp differs in the last bit
        np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-6)
    table = report.compare({"model": model, "file": lite}, (x, y), measures=names_of(expected), runs=1)
    first, second = (row.measures for row in table.rows)
    for name, value in expected.items():
        np.testing.assert_allclose(first[name], value, err_msg=name, **EXACT)
        if case in (ending_in_softmax, binary_probabilities):
            assert second[name] == pytest.approx(value, abs=1e-5)
        else:
            np.testing.assert_allclose(second[name], value, err_msg=name, **EXACT)
            assert second[f"{name}_difference"] == pytest.approx(0, abs=1e-12)
            assert second[f"{name}_p"] == 1
        assert first[f"{name}_low"] <= first[name] <= first[f"{name}_high"]
    if case is multiclass:
        assert set(table.frame.columns) >= set(second)


def test_a_file_with_softmax_equals_scikit_learn_on_what_it_returns():
    model, x, y, expected = ending_in_softmax()
    lite = quantize.convert(model, "int8", calibration=x)
    p = lite.predict(x).astype(float)
    found = report.measure(lite, (x, y), measures=names_of(expected), runs=1).measures
    assert abs(p.sum(axis=1) - 1).max() > 1e-3                            # the control: it does not add up to 1
    for name, value in of_classes(classes(4), p / p.sum(axis=1, keepdims=True), 4).items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **EXACT)


# ---- the second form, for intervals

SAMPLES = {
    "binary": lambda: _task.sample_of(classes(2), np.round(numbers(1), 1), Kind(_task.LABELED, True), ""),
    "multiclass": lambda: _task.sample_of(classes(7), np.round(numbers(7), 1), Kind("multiclass", True), ""),
    "multilabel": lambda: _task.sample_of(classes(2, 3), np.round(numbers(3), 1), Kind(_task.LABELED, True), ""),
    "regression": lambda: _task.sample_of(numbers(2), numbers(2, seed=3), Kind("regression"), ""),
}


def repeated(sample, counts):
    return _measures.Sample(sample.task, **{name: np.repeat(part, counts, axis=0) for name, part in vars(sample).items()
                                            if isinstance(part, np.ndarray)})


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in SAMPLES for name, measure in
                                            _measures.MEASURES.items() if task in measure.tasks])
def test_the_drawn_values_equal_those_of_the_repeated_examples(task, name):
    """scikit-learn on a sample in which each example stands as often as its weight says."""
    sample = SAMPLES[task]()
    weights = np.random.default_rng(0).integers(0, 3, (2, N))
    weights[:, :20] += 1                                                  # so that every class is there
    drawn = _measures.MEASURES[name].draw(sample)(weights.astype(float))
    if isinstance(drawn, tuple):
        drawn = drawn[0] / drawn[1]
    for got, counts in zip(drawn, weights, strict=True):
        np.testing.assert_allclose(got, _measures.value(name, repeated(sample, counts)), **EXACT)
    assert not np.allclose(drawn[0], drawn[1], rtol=1e-9)                 # the control: weights matter


@pytest.mark.slow
def test_an_interval_equals_scipys_bootstrap_up_to_chance():
    from scipy.stats import bootstrap

    model, x, y, _ = two_classes()
    row = report.measure(model, (x, y), measures=("f1", "log_loss"), runs=1).measures
    p = softmax(x.astype(float), 1)
    for name, score in {"f1": lambda i: metrics.f1_score(y[i], p[i].argmax(1)),
                        "log_loss": lambda i: metrics.log_loss(y[i], p[i])}.items():
        interval = bootstrap((np.arange(N),), score, n_resamples=400, vectorized=False, method="percentile",
                             rng=0).confidence_interval
        width = interval.high - interval.low
        assert row[f"{name}_low"] == pytest.approx(interval.low, abs=.15 * width)
        assert row[f"{name}_high"] == pytest.approx(interval.high, abs=.15 * width)


def test_shares_have_wilsons_interval():
    from scipy.stats import binomtest

    model, x, y, _ = multiclass()
    measures = "accuracy", "recall_per_class", "precision_per_class"
    row, hat = report.measure(model, (x, y), measures=measures, runs=1).measures, x.argmax(1)
    both = (hat == 2) & (y == 2)
    for name, right, of in (("accuracy", hat == y, y >= 0), ("recall_2", both, y == 2),
                            ("precision_2", both, hat == 2)):
        interval = binomtest(int(right.sum()), int(of.sum())).proportion_ci(.95, "wilson")
        np.testing.assert_allclose((row[f"{name}_low"], row[f"{name}_high"]), interval, atol=1e-9)


# ---- paired tests

def test_mcnemars_test_by_its_definition():
    from math import comb

    def two_sided(lost, won):
        n = lost + won
        return min(1, 2 * sum(comb(n, k) for k in range(min(lost, won) + 1)) / 2 ** n)

    for lost, won in ((0, 0), (0, 1), (3, 3), (2, 11), (15, 4)):
        assert _intervals.mcnemar(lost, won) == pytest.approx(two_sided(lost, won))


def test_what_is_better_is_told_and_what_is_the_same_is_not():
    y, x = classes(3), numbers(3)
    good, noise = np.eye(3, dtype="float32")[y] + x, numbers(3, seed=9)
    models = {name: keras.Model(i := keras.Input((9,)), i[:, 3 * k:3 * k + 3]) for k, name in
              enumerate(("first", "worse", "same"))}
    for model in models.values():
        model.compile(loss=CE(from_logits=True))
    data = np.hstack([good, noise, good]), y
    table = report.compare(models, data, measures=("accuracy", "f1_macro", "log_loss"), runs=1)
    first, worse, same = (row.measures for row in table.rows)
    right, wrong = good.argmax(1) == y, noise.argmax(1) != y
    assert worse["accuracy_p"] == _intervals.mcnemar((right & wrong).sum(), (~right & ~wrong).sum()) < .01
    assert worse["f1_macro_p"] < .01
    assert worse["log_loss_p"] < .01
    assert worse["f1_macro_difference_high"] < 0 < worse["log_loss_difference_low"]
    assert worse["accuracy_difference"] == pytest.approx(worse["accuracy"] - first["accuracy"])
    assert same["accuracy_p"] == same["f1_macro_p"] == same["log_loss_p"] == 1
    assert "accuracy_p" not in first
    assert "p 0.002" in str(table)
    assert "f1_macro - first" in table._repr_html_()


@pytest.mark.slow
def test_without_a_difference_one_test_in_twenty_finds_one():
    random, found = np.random.default_rng(0), []
    draws = {name: _measures.MEASURES[name].draw for name in ("log_loss", "roc_auc")}
    for _ in range(200):
        y, both = random.integers(0, 2, 100), random.normal(size=(2, 100, 1))
        samples = [_task.sample_of(y, z, Kind(_task.LABELED, True), "") for z in both]
        drawn = _intervals._drawn({(i, name): draw(sample) for i, sample in enumerate(samples)
                                   for name, draw in draws.items()}, 100)
        found.append([_intervals.paired_bootstrap(drawn[1, name] - drawn[0, name])[0] < .05 for name in draws])
    assert (np.abs(np.mean(found, axis=0) - .05) < .045).all()           # three standard errors


def test_the_interval_of_the_calibration_error_moves_down():
    """Of a calibrated model the error of a sample is above 0; more than half of the intervals reach it, not none."""
    random, low = np.random.default_rng(0), {"interval": [], "percentiles": []}
    for _ in range(5):
        z = 2 * random.normal(size=(500, 1))
        sample = _task.sample_of((random.random((500, 1)) < expit(z)).astype(int), z, Kind(_task.LABELED, True), "")
        name = "expected_calibration_error"
        found = _intervals.measured({"a": sample}, [name])["a"]
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
        low["interval"].append(found[f"{name}_low"])
        low["percentiles"].append(np.percentile(_intervals._drawn(
            {"a": _measures.MEASURES[name].draw(sample)}, 500)["a"], 2.5))
    assert np.mean(np.array(low["interval"]) < .005) > .5
    assert min(low["percentiles"]) > .01


# ---- several outputs

def two_outputs():
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, {"kind": L.Activation("linear", name="kind")(inputs[:, :3]),
                                 "size": L.Activation("linear", name="size")(inputs[:, 3:])})
    model.compile(loss={"kind": CE(from_logits=True), "size": "mse"})
    return model, numbers(4), {"kind": classes(3), "size": numbers(1, seed=5)}


def test_several_outputs_have_a_block_each():
    model, x, y = two_outputs()
    table = report.compare({"a": model, "b": quantize.convert(model, "float32")}, (x, y),
                           measures=("f1_macro", "r2", "accuracy"), runs=1)
    frame = table.frame
    f1 = metrics.f1_score(y["kind"], x[:, :3].argmax(1), average="macro")
    np.testing.assert_allclose(frame["kind_f1_macro"], [f1, f1], **EXACT)
    np.testing.assert_allclose(frame["size_r2"], [metrics.r2_score(y["size"], x[:, 3:].astype(float))] * 2, **EXACT)
    assert "kind_r2" not in frame
    assert "size: r2" in table.markdown()
    chosen = report.measure(model, (x, y), measures={"kind": ("f1_macro",)}, runs=1).outputs
    assert chosen["kind"]["f1_macro"] == f1
    assert "r2" not in chosen["size"]
    for measures, words in (({"kind": ["r2"]}, "`r2` is for regression"), ({"sort": ["r2"]}, "outputs of the model"),
                            (["precision"], "`precision` is for binary")):
        with pytest.raises(ValueError, match=words):
            report.measure(model, (x, y), measures=measures, runs=1)


# ---- what an output means

def test_default_columns_stay_what_they_were():
    model, x, y, _ = two_classes()
    plain = report.compare({"a": model}, (x, y), runs=1)
    assert list(plain.frame) == ["parameters", "nonzeros", "macs", "bytes", "gzip", "integer_ops", "latency_ms",
                                 "latency_low_ms", "latency_high_ms", "accuracy", "mae", "low", "high", "examples",
                                 "notes"]
    more = report.compare({"a": model}, (x, y), runs=1, measures=("log_loss",))
    kept = [name for name in plain.frame if "latency" not in name]
    assert plain.frame[kept].equals(more.frame[kept])


AMBIGUOUS = {                                              # (outputs, y): two meanings are left without a loss
    "0 and 1 as float": (numbers(1), classes(2).astype("float32"), "may be classes or numbers"),
    "within 0 and 1": (expit(numbers(1)), classes(2), "may be logits or probabilities"),
    "adding up to 1": (numbers(3), softmax(numbers(3), 1), "may be classes or numbers"),
}
TOLD = {
    "bool": (numbers(1), classes(2) == 1, "binary"),
    "integers of 0 and 1": (numbers(1), classes(2), "binary"),
    "one integer for three outputs": (numbers(3), classes(3), "multiclass"),
    "one-hot": (numbers(3), np.eye(3)[classes(3)], "multiclass"),
    "several zeros and ones": (numbers(3), classes(2, 3), "multilabel"),
    "numbers": (numbers(1), numbers(1), "regression"),
    "whole numbers": (numbers(1), classes(9), "regression"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_may_mean_two_things_is_refused_until_the_loss_is_known(name):
    x, y, words = AMBIGUOUS[name]
    with pytest.raises(ValueError, match=f"report.measure: .*{words}.*The compiled loss decides"):
        report.measure(handing_on(x.shape[1:]), (x, y), measures=("accuracy", ), runs=1)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if x.shape[1] == 3 else BCE(from_logits=True)
    report.measure(handing_on(x.shape[1:], loss=loss), (x, y), measures=("accuracy", ), runs=1)
    report.measure(handing_on(x.shape[1:], loss="mae"), (x, y), measures=("r2", ), runs=1)


@pytest.mark.parametrize("name", TOLD)
def test_shape_and_dtype_tell_where_the_model_does_not(name):
    x, y, task = TOLD[name]
    assert _task.sample_of(y, x, Kind(), "").task == task


def test_a_model_that_does_not_say_is_read_as_the_one_beside_it():
    x, y = expit(numbers(1)), classes(2)
    silent, sure = handing_on((1,)), handing_on((1,), loss=BCE(from_logits=True))
    for models in ({"a": sure, "b": silent}, {"b": silent, "a": sure}):
        table = report.compare(models, (x, y), measures=("log_loss",), runs=1)
        assert {row.measures["log_loss"] for row in table.rows} == {metrics.log_loss(y, expit(x.astype(float)))}


@pytest.mark.parametrize("loss", ["binary_crossentropy", BCE(), keras.losses.BinaryFocalCrossentropy(), [BCE()],
                                  {"out": BCE()}])
def test_a_loss_of_probabilities_is_believed_in_every_form(loss):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, L.Activation("linear", name="out")(inputs))
    model.compile(loss=loss)
    x, y = expit(numbers(1)), classes(2)
    assert report.measure(model, (x, y), measures=("brier_score",), runs=1).measures["brier_score"] == pytest.approx(
        metrics.brier_score_loss(y, x[:, 0].astype(float)))
    with pytest.raises(ValueError, match=r"probabilities must be from 0 to 1.*from_logits"):
        report.measure(model, (4 * x, y), measures=("brier_score",), runs=1)


REFUSED = {
    "unknown": (multiclass, ("f1_makro",), "Did you mean `f1_macro`"),
    "far from any": (multiclass, ("zzz",), "There are accuracy, top_5_accuracy"),
    "without an average": (multiclass, ("f1",), "`f1` is for binary, this output is multiclass. For it there are acc"),
    "numbers of classes": (multiclass, ("r2",), "is for regression"),
    "few classes": (ending_in_softmax, ("top_5_accuracy",), "needs more than 5 classes, here are 4"),
    "positions": (masks, ("roc_auc",), "needs one label an example"),
    "no list": (multiclass, "accuracy", "`measures` must be None or a list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    case, measures, words = REFUSED[name]
    model, x, y, _ = case()
    with pytest.raises(ValueError, match=words):
        report.compare({"a": model}, (x, y), measures=measures, runs=1)


def test_more_refusals():
    model, x, y, _ = two_classes()
    measure = functools.partial(report.measure, model, runs=1)
    with pytest.raises(ValueError, match="`measures` need `data`"):
        measure(measures=("f1",))
    with pytest.raises(ValueError, match="`roc_auc` needs examples with and without each class"):
        measure((x, 0 * y), measures=("roc_auc",))
    numeric = handing_on((2,), loss="mse")
    with pytest.raises(ValueError, match="`r2` needs numbers that differ"):
        report.measure(numeric, (x, np.ones((N, 2))), measures=("r2",), runs=1)
