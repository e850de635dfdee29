"""Trials that are stopped early, and what TensorBoard is told."""

import keras
import keras_tuner
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from tfopt import tune
from tfopt.tune import _oracles

EPOCHS = 9


def build(hp):
    hp.Float("level", 0, 1), hp.Float("slope", 0, 1), hp.Choice("kind", ["a", "b"])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def curve(values):
    """Lines that cross: who is good at first need not be in the end."""
    return [values["level"] - values["slope"] * epoch / EPOCHS for epoch in range(EPOCHS)]


class Drawn(keras_tuner.HyperModel):
    """Trains nothing: the logs of an epoch are a function of the values."""

    def build(self, hp):
        return build(hp)

    def fit(self, hp, model, train, callbacks=(), **kwargs):
        for callback in callbacks:
            callback.set_params({"epochs": EPOCHS})
            callback.set_model(model)
        for epoch, loss in enumerate(curve(hp.values)):
            for callback in callbacks:
                callback.on_epoch_end(epoch, {"val_loss": loss, "val_good": -loss})
            if model.stop_training:
                break


def search(folder, algorithm, objective="val_loss", trials=14, **given):
    x = np.ones((2, 1), "float32")
    found = tune.Search(Drawn(), objective, algorithm=algorithm, max_trials=trials, directory=folder)
    return found.run((x, x), (x, x), epochs=EPOCHS, verbose=0, **given)


def median(curves):
    """{trial: epochs trained} by the median rule, written anew: after 5 whole trials, worse than their median."""
    whole, found = [], {}
    for number, line in curves.items():
        stop = next((epoch for epoch in range(1, EPOCHS) if len(whole) >= 5 and min(line[:epoch]) > np.median(
            [other[epoch - 1] for other in whole])), EPOCHS)
        found[number] = stop
        whole += [line] if stop == EPOCHS else []
    return found


def asha(curves):
    """The same by successive halving: at epochs 1, 4, 16 on only the best quarter of those that came so far."""
    rungs, found = {1: [], 4: []}, {}
    for number, line in curves.items():
        found[number] = EPOCHS
        for epoch, seen in rungs.items():
            seen.append(line[epoch - 1])
            if line[epoch - 1] > sorted(seen)[max(len(seen) // 4, 1) - 1]:
                found[number] = epoch
                break
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "rule"), [("random+median", median), ("random+asha", asha)])
@pytest.mark.parametrize("objective", ["val_loss", ("val_good", "max")])
def test_who_is_stopped_and_when(tmp_path, algorithm, rule, objective):
    found = search(tmp_path, algorithm, objective)
    lines = {number: curve(row) for number, row in found.frame.iterrows()}
    expected, sign = rule(lines), 1 if objective == "val_loss" else -1
    assert {trial.number: len(trial.curve) for trial in found._trials()} == expected
    assert (found.frame.status == ["stopped" if expected[n] < EPOCHS else "completed" for n in lines]).all()
    assert len(set(expected.values())) > 1
    best = [min(lines[number][:epochs]) * sign for number, epochs in expected.items()]
    np.testing.assert_allclose(found.frame.iloc[:, 1].astype(float), best, rtol=1e-6)
    stopped = found.frame.message[found.frame.status == "stopped"]
    assert stopped.str.contains(f"{algorithm[7:]}: too bad after epoch").all()


@pytest.mark.slow
def test_random_points_are_the_same_and_tpe_learns_of_what_was_stopped(tmp_path, monkeypatch):
    values = ["level", "slope", "kind"]
    plain = search(tmp_path / "plain", "random", trials=6).frame
    assert search(tmp_path / "asha", "random+asha", trials=6).frame[values].equals(plain[values])
    told, tell = [], _oracles.Tpe.tell
    monkeypatch.setattr(_oracles.Tpe, "tell", lambda self, number, scores, space, curve=(): (
        told.append(list(curve)), tell(self, number, scores, space, curve)))
    found = search(tmp_path / "tpe", "tpe+asha", trials=6)
    assert told == [trial.curve if trial.status == "stopped" else [] for trial in found._trials()]
    assert any(told)


@pytest.mark.parametrize(("given", "words"), [
    ({"folds": 2}, "with `folds` no algorithm prunes"),
    ({"objective": ["val_loss", "bytes"]}, "several objectives need algorithm"),
])
def test_pruning_is_for_one_training_and_one_objective(tmp_path, given, words):
    given = {"objective": "val_loss", **given}
    with pytest.raises(ValueError, match=words):
        tune.Search(build, algorithm="tpe+asha", max_trials=2, directory=tmp_path, **given)
    with pytest.raises(ValueError, match="with `executions` no algorithm prunes"):
        search(tmp_path, "tpe+median", executions=2)


# TensorBoard


def plugin(folder):
    """{tag: what the HParams plugin finds under it}, {tag: scalar}."""
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    found = events.PluginTagToContent(metadata.PLUGIN_NAME)
    return found, {tag: events.Tensors(tag)[0] for tag in events.Tags()["tensors"] if tag not in found}


@pytest.mark.slow
def test_tensorboard_reads_the_trials(tmp_path):
    search(tmp_path / "study", "random+asha", trials=2, logs=tmp_path / "logs")
    before = {path: path.read_bytes() for path in (tmp_path / "logs").glob("trial-*/*")}
    found = search(tmp_path / "study", "random+asha", trials=5, logs=tmp_path / "logs")
    assert all(path.read_bytes() == content for path, content in before.items())            # each is written once
    experiment = metadata.parse_experiment_plugin_data(
        plugin(tmp_path / "logs" / "space")[0][metadata.EXPERIMENT_TAG])
    infos = {info.name: info for info in experiment.hparam_infos}
    assert (infos["level"].domain_interval.min_value, infos["level"].domain_interval.max_value) == (0, 1)
    assert [value.string_value for value in infos["kind"].domain_discrete.values] == ["a", "b"]
    assert [info.name.tag for info in experiment.metric_infos] == ["val_loss"]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"space", *(f"trial-00000{i}" for i in range(5))}
    for number, row in found.frame.iterrows():
        tags, scalars = plugin(tmp_path / "logs" / f"trial-{number:06d}")
        start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
        assert start.hparams["level"].number_value == row.level
        assert start.hparams["kind"].string_value == row.kind
        end = metadata.parse_session_end_info_plugin_data(tags[metadata.SESSION_END_INFO_TAG])
        assert end.status == api_pb2.STATUS_SUCCESS
        assert end.end_time_secs - start.start_time_secs == pytest.approx(row.seconds, abs=1e-3)
        assert scalars["val_loss"].step == row.epoch
        assert scalars["val_loss"].tensor_proto.float_val[0] == pytest.approx(row.val_loss, rel=1e-6)
