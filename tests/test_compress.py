"""The stages keep what they promise: the accuracy, the zeros, the shared values, the user's model, and a killed run."""

import contextlib
import json
import math
import random

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from tfopt import _data, _files, compress, data, quantize
from tfopt.compress import _record, _run, _stages

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STAGES = {"distill": (), "shrink": (0.75, 0.02), "prune": (0.5, 0.99), "cluster": (12,),
         "quantize": ("int8 trained",)}
PROGRAM = """
import os, pathlib, signal, sys
import keras, numpy as np
from tfopt import compress
from tfopt.compress import _record

folder, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
append = _record.Record._append

def cut(self, event):
    global kills
    kills -= 1
    if kills < 0:                                          # half a line, and then nothing
        with open(self.lines.path, "a") as file:
            file.write(str(event)[:20])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, event)

_record.Record._append = cut
model = keras.models.load_model(folder / "model.keras")
with np.load(folder / "digits.npz") as file:
    train, val, test = [(file[part + "_x"], file[part + "_y"]) for part in ("train", "val", "test")]
compress.run(model, train, val, test=test, directory=folder / "tried", **eval(sys.argv[3]))
"""
OPTIONS = {"stages": STAGES, "max_drop": 0.04, "epochs": 2}


@pytest.fixture(scope="module")
def parts():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order]
    return [(x[rows], y[rows]) for rows in (slice(0, 1000), slice(1000, 1400), slice(1400, None))]


@pytest.fixture(scope="module")
def model(parts):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.1),
                              keras.layers.Dense(32, "relu"), keras.layers.Dense(10)], name="digits")
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 600)), LOSS,
                  metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])
    model.fit(*parts[0], batch_size=32, epochs=15, verbose=0)
    return model


@pytest.fixture(scope="module")
def states(model):
    """What must not change, before and after."""
    def now():
        return ([w.copy() for w in model.get_weights()], [v.numpy() for v in model.optimizer.variables],
                keras.tree.flatten(keras.random.normal((1,), seed=3)), np.random.get_state()[1].tolist(),
                random.getstate(), [layer.trainable for layer in model.layers], model.optimizer, model.loss)
    return now


@pytest.fixture(scope="module")
def compressed(model, parts, states):
    before = states()
    result = compress.run(model, *parts[:2], test=parts[2], **OPTIONS)
    return result, before, states()


def right(model, examples):
    return float((model.predict(examples[0]).argmax(-1) == examples[1]).mean())


@pytest.mark.slow
def test_each_stage_is_as_strong_as_allowed(compressed, parts):
    result, _, _ = compressed
    assert [row.name for row in result.table.rows] == [
        "original", "shrink 0.75", "prune 0.5", "12 values", "original, int8", "int8 trained"]
    kept = result.tried[result.tried.kept]
    assert list(kept.stage) == ["original", "shrink", "prune", "cluster", "quantize"]
    assert list(kept.epochs) == [0, 2, 4, 6, 8]
    assert (kept["drop"][1:] <= 0.04 * np.array([1, 2, 3, 4]) / 4 + 1e-9).all()
    assert set(result.tried.strength.astype(str)) >= {"0.02", "0.99"}, "the strongest were tried"
    assert not result.tried.kept[result.tried.strength.isin([0.02, 0.99])].any()
    small, large = result.table.rows[-1], result.table.rows[0]
    assert small.gzip < large.gzip / 5


@pytest.mark.slow
def test_accuracies_are_those_of_the_data_they_are_said_to_be_of(compressed, model, parts):
    result, _, _ = compressed
    rows = {row.name: row for row in result.table.rows}
    assert rows["original"].accuracy == pytest.approx(right(model, parts[2]))
    assert rows["12 values"].accuracy == pytest.approx(right(result.best, parts[2]))
    assert rows["int8 trained"].accuracy == pytest.approx(right(result.lite, parts[2]))
    assert {row.examples for row in rows.values()} == {397}
    kept = result.tried[result.tried.kept].set_index("stage")
    assert kept.accuracy["cluster"] == pytest.approx(right(result.best, parts[1]))
    assert kept["drop"]["quantize"] == pytest.approx(right(model, parts[1]) - right(result.lite, parts[1]))


@pytest.mark.slow
def test_zeros_and_shared_values_are_in_the_model_and_in_the_file(compressed):
    result, _, _ = compressed
    kernels = [layer.kernel.numpy() for layer in result.best.layers if hasattr(layer, "kernel")]
    size = sum(kernel.size for kernel in kernels)
    assert sum((kernel == 0).sum() for kernel in kernels) == pytest.approx(size / 2, abs=len(kernels))
    assert all(np.unique(kernel).size <= 12 for kernel in kernels)
    stored = list(result.lite.kernels.values())
    assert len(stored) == len(kernels)
    assert sum((kernel == 0).sum() for kernel in stored) >= size / 2 - len(kernels)
    assert all(len(np.unique(row)) <= 12 for kernel in stored for row in kernel)


@pytest.mark.slow
def test_nothing_of_the_users_is_changed(compressed):
    _, before, after = compressed
    keras.tree.map_structure(np.testing.assert_array_equal, before[:3], after[:3])
    assert before[3:] == after[3:]


@pytest.mark.slow
def test_the_test_data_choose_nothing(compressed, model, parts):
    """Other labels there change the table alone."""
    result, _, _ = compressed
    other = parts[2][0], (parts[2][1] + 1) % 10
    steps = {**STAGES, "quantize": ("float16",)}
    again = compress.run(model, *parts[:2], test=other, **{**OPTIONS, "stages": steps})
    same = ["name", "accuracy", "gzip", "kept", "values"]
    count = len(again.tried) - 1
    pd.testing.assert_frame_equal(again.tried[same][:count], result.tried[same][:count])
    keras.tree.map_structure(np.testing.assert_array_equal, again.best.get_weights(), result.best.get_weights())
    assert again.table.rows[0].accuracy < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4])
def test_a_killed_run_goes_on(compressed, model, parts, tmp_path, run_python, kills):
    """After SIGKILL in the middle of a line the run ends as the one that nothing stopped; what was tried stays."""
    result, _, _ = compressed
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "digits.npz", **{f"{name}_{part}": array for name, pair in zip(
        ("train", "val", "test"), parts, strict=True) for part, array in zip("xy", pair, strict=True)})
    done = run_python(PROGRAM, tmp_path, kills, repr(OPTIONS), check=False, fork=False)
    assert done.returncode == -9, done.stderr[-2000:]
    lines = (tmp_path / "tried" / "tried.jsonl").read_text().split("\n")
    assert len(lines) == kills + 1
    with pytest.warns(UserWarning, match="cannot be read and was left out"):
        again = compress.run(model, *parts[:2], test=parts[2], directory=tmp_path / "tried", **OPTIONS)
    assert (tmp_path / "tried" / "tried.jsonl").read_text().split("\n")[:kills] == lines[:kills]
    varying = ["seconds", "latency_ms", "bytes", "gzip"]                   # a LiteRT file holds how long it took
    pd.testing.assert_frame_equal(again.tried.drop(columns=varying), result.tried.drop(columns=varying))
    assert list(again.tried.gzip[:-1]) == list(result.tried.gzip[:-1])
    keras.tree.map_structure(np.testing.assert_array_equal, again.best.get_weights(), result.best.get_weights())
    np.testing.assert_array_equal(again.lite.predict(parts[2][0]), result.lite.predict(parts[2][0]))

    before = {path.name: path.read_bytes() for path in (tmp_path / "tried").iterdir()}
    once_more = compress.run(model, *parts[:2], test=parts[2], directory=tmp_path / "tried", **OPTIONS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tried").iterdir()} == before
    pd.testing.assert_frame_equal(once_more.tried[1:], again.tried[1:])        # the original is timed anew
    with pytest.raises(ValueError, match=r"hold the same run.*differs=\['epochs'\]"):
        compress.run(model, *parts[:2], directory=tmp_path / "tried", test=parts[2], stages=STAGES, epochs=3)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [lambda content: content[:-100], lambda content: b"",
                                   lambda content: content[:2000] + b"?" + content[2001:]])
def test_a_damaged_file_is_named_and_its_candidate_made_again(tmp_path, model, spoil):
    record = _record.Record(tmp_path, {"seed": 0})
    record.keep({"name": "a"}, model)
    record.keep({"name": "b"})
    copy = record.restore("a", lambda: keras.models.clone_model(model))
    keras.tree.map_structure(np.testing.assert_array_equal, copy.get_weights(), model.get_weights())
    assert record.restore("b", None) is None
    place, = tmp_path.glob("*.npz")
    place.write_bytes(spoil(place.read_bytes()))
    with pytest.warns(UserWarning, match=r"is not as it was written.*made again"):
        assert record.restore("a", lambda: keras.models.clone_model(model)) is None
    place.unlink()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert record.restore("a", lambda: keras.models.clone_model(model)) is None
    record.close()


def test_a_damaged_line_costs_its_candidate_and_a_lost_head_the_run(tmp_path):
    with contextlib.closing(_record.Record(tmp_path, {"seed": 0})) as record:
        record.keep({"name": "a"})
        record.keep({"name": "b"})
        with pytest.raises(ValueError, match="another run writes to"):
            _record.Record(tmp_path, {"seed": 0})
    path = tmp_path / "tried.jsonl"
    head, first, last = path.read_text().splitlines()
    path.write_text("\n".join([head, first.replace('"a"', '"c"'), last]) + "\n")
    with pytest.warns(UserWarning, match=r"line 2 of .*left out"), contextlib.closing(
            _record.Record(tmp_path, {"seed": 0})) as record:
        assert list(record.rows) == ["b"]
    for event in ({}, {"row": 3}, {"row": {"name": 3}}, {"run": 3}):                    # with a sound checksum
        path.write_bytes(f"{head}\n{last}\n".encode() + _files.line_of(event))
        with pytest.warns(UserWarning, match=r"line 3 of .*left out"), contextlib.closing(
                _record.Record(tmp_path, {"seed": 0})) as record:
            assert list(record.rows) == ["b"]
    path.write_text(last + "\n")
    with pytest.raises(ValueError, match="hold the same run"):
        _record.Record(tmp_path, {"seed": 0})


def test_a_run_is_the_same_whatever_keras_calls_its_optimizer():
    """The second `compile("sgd")` of a process was another run once, which its directory refused."""
    same = [_run._described(keras.optimizers.SGD(name=name)) for name in ("sgd", "sgd_1")]
    assert same[0] == same[1] != _run._described(keras.optimizers.SGD(0.5, name="sgd"))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_it_goes_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    x, y = np.zeros((32, 64), "float32"), np.zeros(32, "int32")
    model, given = untrained(optimizer="sgd", loss=LOSS), {"stages": {"prune": (0.5,)}, "epochs": 1, "max_drop": 1}
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"compress.run stopped: .*No space left.*goes on with what is recorded"):
            compress.run(model, (x, y), (x, y), directory=tmp_path, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["tried.jsonl"]
    compress.run(model, (x, y), (x, y), directory=tmp_path, **given)
    again = compress.run(model, (x, y), (x, y), directory=tmp_path, **given)
    assert again.tried.kept.tolist() == [True, True]


@pytest.mark.slow
def test_it_saves_and_loads(compressed, parts, tmp_path):
    result, _, _ = compressed
    result.save(tmp_path / "out")
    loaded = keras.models.load_model(tmp_path / "out" / "best.keras")
    np.testing.assert_array_equal(loaded.predict(parts[2][0], verbose=0), result.best.predict(parts[2][0], verbose=0))
    assert quantize.load(tmp_path / "out" / "best.tflite").content == result.lite.content
    assert "12 values" in (tmp_path / "out" / "table.md").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "tried.csv")) == len(result.tried)
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 5000
    assert json.loads(pd.read_csv(tmp_path / "out" / "table.csv").to_json())


@pytest.mark.slow
def test_datasets_and_a_val_without_test(model, parts):
    """A Dataset does as well as arrays; half of `val` reports; what refuses is told, and what fails is left out."""
    batches = data.arrays(*parts[0], 50)
    result = compress.run(model, batches, data.arrays(*parts[1], 64, shuffle=False), epochs=1, max_drop=0,
                          stages={"prune": (0.99,), "cluster": (6000, 5000)})
    assert result.best is not model
    keras.tree.map_structure(np.testing.assert_array_equal, result.best.get_weights(), model.get_weights())
    assert result.lite is None
    assert [row.name for row in result.table.rows] == ["original"]
    assert result.table.rows[0].examples == 200
    assert not result.tried.kept[1:].any()
    assert list(result.tried.strength.iloc[2:]) == [6000, 5000], "too many values: fewer were tried"
    assert result.tried.why.iloc[2:].str.contains("cluster").all()


# The pieces


def test_bisection_finds_the_last_that_passes():
    for count in range(1, 20):
        for last in range(-1, count):
            tried = []
            assert _run.bisect(count, lambda i, last=last, tried=tried: tried.append(i) or i <= last) == last
            assert len(tried) <= math.ceil(math.log2(count + 1))


def test_the_halves_have_nothing_in_common():
    first, second = _run._halves(_data.Arrays({"a": np.arange(101)}, np.arange(101) * 2), 5)
    assert sorted([*first.x["a"], *second.x["a"]]) == list(range(101))
    assert all((part.y == 2 * part.x["a"]).all() for part in (first, second))
    assert abs(np.median(first.x["a"]) - 50) < 20, "drawn from all of it"


@pytest.mark.parametrize(("rate", "expected"), [
    (0.25, 0.25), (keras.optimizers.schedules.CosineDecay(0.5, 100), 0.5),
    (keras.optimizers.schedules.CosineDecay(0., 500, warmup_target=0.125, warmup_steps=700), 0.125)])
def test_the_highest_rate_is_found(rate, expected):
    assert _stages.peak(keras.optimizers.SGD(rate)) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_the_users_settings_train_the_candidates(model, parts):
    training = _stages.Training(model, _data.read(parts[0]), 1, distilled=False, seed=0)
    student = keras.models.clone_model(model)
    training.fit(student, 0.1)
    assert type(student.optimizer) is keras.optimizers.Adam
    assert student.loss is LOSS
    assert student.optimizer.iterations == 32 == training.steps
    assert float(student.optimizer.learning_rate) == pytest.approx(0, abs=1e-8)
    names = [metric.name for metric in student.metrics]
    assert names == [metric.name for metric in model.metrics]
    assert not {id(metric) for metric in student.metrics} & {id(metric) for metric in model.metrics}


def test_the_smallest_kernels_are_left_out():
    plan = pd.DataFrame({"layer": list("abcd"), "affected": [980, 5, 10, 300],
                         "status": ["selected"] * 3 + ["skipped"]})
    assert _stages.large(plan) == ["a"]
    assert _stages.large(plan.assign(affected=[500, 300, 200, 9])) == ["c", "b", "a"]


@pytest.mark.slow
def test_losing_zeros_or_values_is_noticed(compressed, model, parts):
    """Negative controls of the check that every candidate passes."""
    result, _, _ = compressed
    paths = [layer.name for layer in result.best.layers if hasattr(layer, "kernel")]
    _stages.require_kept("cluster", result.best, result.best, paths, paths)
    _stages.require_kept("quantize", result.best, quantize.convert(result.best, calibration=parts[1][0]), paths, paths)
    for bias, value in ((0.01, 0.), (0., 0.02)):
        spoilt = keras.models.clone_model(result.best)
        spoilt.set_weights([w + bias + value * np.random.default_rng(0).normal(size=w.shape) * (w != 0)
                            for w in result.best.get_weights()])
        lost = "zeros" if bias else "shared values"
        for after in (spoilt, quantize.convert(spoilt, calibration=parts[1][0])):
            with pytest.raises(RuntimeError, match=lost):
                _stages.require_kept("a step", result.best, after, paths if bias else [], [] if bias else paths)


@pytest.mark.slow
def test_four_bits_in_training_keep_zeros_and_values(model, parts):
    """Its kernels move far from where they were: the file is searched for those it was trained to hold."""
    stages = {"prune": (0.75,), "cluster": (8,), "quantize": ("int4 trained",)}
    result = compress.run(model, parts[0], parts[1], test=parts[2], stages=stages, max_drop=1, epochs=8)
    assert result.tried.kept.all()
    assert result.lite.report["mode"] == "int4"
    kernels = list(result.lite.kernels.values())
    assert sum((kernel == 0).sum() for kernel in kernels) >= round(0.75 * sum(kernel.size for kernel in kernels)) - 3
    assert all(len(np.unique(kernel)) <= 8 and np.abs(kernel).max() <= 7 for kernel in kernels)
    assert right(result.lite, parts[2]) > right(model, parts[2]) - 0.1
    shares = [float((layer.kernel.numpy() == 0).mean()) for layer in result.best.layers if hasattr(layer, "kernel")]
    assert shares[0] > 0.75 > shares[2], "the wide layer has more zeros than the narrow one"

    paths = [layer.name for layer in model.layers if hasattr(layer, "kernel")]
    training = _stages.Training(model, _data.read(parts[0]), 8, distilled=False, seed=0)
    training.fit = lambda aware, rate: [layer.kernel.assign(layer.kernel.numpy()[::-1])
                                        for layer in aware.rounded().values()]
    made, trained = _stages.quantized(result.best, "int4 trained", training, None)
    with pytest.raises(RuntimeError, match="its kernel is not in the file"):
        _stages.require_kept("quantize", result.best, made, paths, [])
    _stages.require_kept("quantize", result.best, made, paths, [], trained)


def untrained(**compiled):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)], name="small")
    if compiled:
        model.compile(**compiled)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("change", "words"), [
    ({"model": keras.Sequential([keras.layers.Dense(3)])}, "needs a built"),
    ({"model": untrained()}, "needs a model that was compiled with a loss"),
    ({"stages": ("prune", "shrink")}, "in this order"),
    ({"stages": ("distill",)}, "not distill alone"),
    ({"stages": ("melt",)}, "`stages` must be some of"),
    ({"stages": {"prune": ()}}, "needs strengths"),
    ({"stages": {"quantize": ("int2",)}}, "the forms of quantize"),
    ({"max_drop": -0.1}, "`max_drop`"), ({"epochs": 0}, "`epochs`"),
    ({"seed": -1}, "`seed`"),
    ({"val": np.zeros(3)}, "`val` must hold targets"), ({"test": None}, "`test`|two examples"),
    ({"train": iter([])}, "`train` must be")])
def test_refusals(change, words):
    x, y = np.zeros((4, 64), "float32"), np.arange(4)
    given = {"model": untrained(optimizer="sgd", loss=LOSS), "train": (x, y), "val": (x[:1], y[:1]), "test": (x, y)}
    with pytest.raises((ValueError, TypeError), match=words):
        compress.run(**{**given, **change})


def test_what_cannot_be_trained_is_an_error_and_what_diverges_a_candidate_that_failed(monkeypatch):
    x, y = np.ones((40, 64), "float32"), np.arange(40) % 10
    model = untrained(optimizer="sgd", loss=LOSS)
    given = {"test": (x, y), "epochs": 1, "stages": {"prune": (0.5,)}}
    with pytest.raises(RuntimeError, match="a candidate must train on `train`"):
        compress.run(model, (x, np.zeros((40, 3, 2))), (x, y), **given)

    monkeypatch.setattr(_stages.Training, "fit", diverge)
    result = compress.run(model, (x, y), (x, y), **given)
    assert result.tried.why.iloc[1] == "FloatingPointError: the loss must stay finite. Received: loss=nan."
    assert len(result.table.rows) == 1


def diverge(self, model, rate):
    _stages.require(False, "the loss must stay finite", loss=np.nan, error=FloatingPointError)


@pytest.mark.slow
def test_numbers_are_judged_by_their_loss():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    numbers = x, x[:, :10] + 0.3
    model = untrained(optimizer="sgd", loss="mse")
    tried = compress.run(model, numbers, numbers, stages={"prune": (0.5,)}, max_drop=1e3, epochs=1).tried
    assert tried.kept.tolist() == [True, True]
    assert np.isfinite(tried["drop"]).all()


@pytest.mark.slow
def test_ones_own_measure_decides():
    x, y = np.zeros((32, 64), "float32"), np.zeros(32, "int32")
    model = untrained(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    seen = []
    tried = compress.run(model, (x, y), (x, y), stages={"prune": (0.5,)}, epochs=1, max_drop=0.5,
                         measure=lambda y, outputs: seen.append(outputs.shape) or -float(len(seen))).tried
    assert seen == [(16, 10)] * 2
    assert tried["drop"].tolist() == [0, 1]
    assert tried.kept.tolist() == [True, False]


@pytest.mark.slow
def test_a_candidate_that_fails_is_a_line_and_the_run_goes_on(monkeypatch):
    x, y = np.zeros((32, 64), "float32"), np.zeros(32, "int32")
    model = untrained(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    monkeypatch.setattr(_stages, "pruned", lambda *given: 1 / 0)
    tried = compress.run(model, (x, y), (x, y), stages={"prune": (0.5,), "cluster": (4,)}, epochs=1, max_drop=1).tried
    assert tried.why.tolist()[1] == "ZeroDivisionError: division by zero"
    assert tried.kept.tolist() == [True, False, True]


class Block(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.embedding, self.hidden = keras.layers.Embedding(64, 8), keras.layers.Dense(units, "relu")

    def call(self, x):
        return self.hidden(x + self.embedding(keras.ops.arange(x.shape[1])))


@pytest.mark.slow
def test_kernels_inside_layers_keep_their_zeros_and_values_in_the_file():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 64, 8)).astype("float32"), rng.integers(0, 10, 48)
    inputs = keras.Input((64, 8))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(Block(32)(inputs))))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = compress.run(model, (x, y), (x, y), epochs=1, max_drop=1, stages={
        "prune": (0.5,), "cluster": (4,), "quantize": ("float16",)})
    assert found.tried.why.fillna("").eq("").all()
    zeros, = (values for values in found.lite.kernels.values() if values.shape == (32, 8))
    trained, = (values for values in found.best.get_weights() if values.shape == (8, 32))
    np.testing.assert_array_equal(zeros == 0, trained.T == 0)
    assert (zeros == 0).mean() > 0.3                                       # a half of all kernels
    assert max(len(np.unique(row)) for row in zeros) <= 4
    assert zeros.dtype == "float16"
