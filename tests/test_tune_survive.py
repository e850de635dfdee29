"""A search that is killed, in one process or in several: a small sample of benchmarks/verify/tune.py."""

import json
import pathlib
import shutil
import sys

import keras
import keras_tuner
import numpy as np
import pytest

from tfopt import _files, tune
from tfopt.tune import _processes
from tfopt.tune._checkpoint import Checkpoint

VERIFY = pathlib.Path(__file__).parent.parent / "benchmarks" / "verify" / "tune.py"
LOAD = """
import importlib.util, json, pathlib, sys
spec = importlib.util.spec_from_file_location("verify", sys.argv[1])
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)
"""

KILLS = LOAD + """
expected, events = verify.whole("tpe")
assert 100 < events < 1000, events
print(json.dumps([*verify.kill_often("tpe", [60, 47], expected), len(expected)]))
"""

WORKERS = LOAD + """
import tempfile, time
with tempfile.TemporaryDirectory() as folder:
    processes = verify.start(folder, "random", lease=8, dies="tuner0", at=15)
    codes = {name: process.wait(240) for name, process in processes.items()}
    frame = verify.search(f"{folder}/study", "random").frame
    print(json.dumps([codes, frame.status.tolist()]))
"""

ISOLATED = """
import os, pathlib, signal, sys, warnings
from sklearn.datasets import load_iris
import keras
from tfopt import tune

def build(hp):
    if hp.Choice("kind", ["good", "deadly"]) == "deadly" and "TFOPT_TUNE_ISOLATED" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model

with open("starts", "a") as file:
    file.write("x")
data = load_iris(return_X_y=True)
first = tune.Search(build, "val_loss", algorithm="random", max_trials=1, directory="first")
first.run(data, data, epochs=1, isolate=True, verbose=0)
search = tune.Search(build, "val_loss", algorithm="grid", max_trials=2, directory="study")
search.run(data, data, epochs=1, isolate=True, verbose=0)
print(search.frame[["kind", "status", "message"]].to_json(orient="values"))
"""

ELSEWHERE = """
import tempfile
import keras
import numpy as np
from tfopt import tune

def build(hp):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(hp.Int("units", 1, 2))])
    model.compile("sgd", "mse", run_eagerly=True)
    return model

with open("starts", "a") as file:
    file.write("x")
x = np.ones((4, 1), "float32")
tune.Search(build, "loss", algorithm="random", max_trials=3, directory=tempfile.mkdtemp(dir=".")).run(
    (x, x), isolate=True)
"""


@pytest.mark.slow
def test_a_killed_search_ends_as_if_nothing_had_happened(run_python):
    assert json.loads(run_python(KILLS, VERIFY, fork=False)) == [True, 2, 5]    # same, killed twice, five trials


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_finished_by_the_other(run_python):
    codes, statuses = json.loads(run_python(WORKERS, VERIFY, fork=False).splitlines()[-1])
    assert codes == {"chief": 0, "tuner0": -9, "tuner1": 0}
    assert statuses == ["completed"] * 5


@pytest.mark.slow
def test_two_searches_in_one_script_have_a_process_for_each_trial(run_python, tmp_path):
    """A trial that kills its process is one failed trial; processes of the second search pass the finished first."""
    rows = json.loads(run_python(ISOLATED, fork=False).splitlines()[-1])
    assert [row[:2] for row in rows] == [["good", "completed"], ["deadly", "failed"]]
    assert rows[1][2] == "its process ended with exit code -9"       # and not what TensorFlow wrote before
    assert len((tmp_path / "starts").read_text()) == 1 + 1 + 2
    assert not list(tmp_path.rglob("token"))


@pytest.mark.slow
def test_a_process_that_meets_another_search_first_ends(run_python, tmp_path):
    """Such scripts once started processes without end."""
    done = run_python(ELSEWHERE, fork=False, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "a process for a trial ended before it reached `run`" in last
    assert "a script must run its searches in the same order, in the same directories, each time" in last
    assert len((tmp_path / "starts").read_text()) == 2


def test_a_process_for_a_trial_starts_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    monkeypatch.setenv("TFOPT_TUNE_ISOLATED", str(tmp_path))
    with pytest.raises(RuntimeError, match="a process that was started for one trial starts no others"):
        _processes.isolated(None, tmp_path)


# Storage


def build(hp):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(hp.Int("units", 1, 4))])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def run(folder, callbacks=None):
    x = np.ones((4, 1), "float32")
    return tune.Search(build, "loss", algorithm="random", max_trials=3, directory=folder).run(
        (x, x), epochs=2, verbose=0, callbacks=callbacks)


@pytest.mark.slow
def test_a_full_disk_stops_the_search_and_fails_no_trial(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    expected = run(tmp_path / "whole").frame
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", full)
        with pytest.raises(OSError, match=r"cannot be written .*No space left on device.* goes on with this trial"):
            run(tmp_path / "study")
    left = tune.Search(build, "loss", algorithm="random", max_trials=3, directory=tmp_path / "study").frame
    assert left.status.tolist() == ["running"]
    assert not list((tmp_path / "study").rglob(".part-*"))
    found = run(tmp_path / "study").frame
    assert found.drop(columns="seconds").equals(expected.drop(columns="seconds"))


@pytest.mark.slow
def test_a_record_that_does_not_fit_stops_the_search(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    real = _files.Lines.append

    def full(self, event):
        if event["kind"] == "end":
            raise OSError(28, "No space left on device")
        real(self, event)

    monkeypatch.setattr(_files.Lines, "append", full)
    with pytest.raises(OSError, match=r"its record .* cannot be written \(No space left on device\)"):
        run(tmp_path / "study")


def test_a_directory_that_vanishes_stops_the_search(tmp_path):
    def vanish(epoch, logs):
        shutil.rmtree(tmp_path / "study")

    with pytest.raises(OSError, match=r"its directory .* is gone"):
        run(tmp_path / "study", lambda hp: [keras.callbacks.LambdaCallback(on_epoch_begin=vanish)])
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["../../../outside.weights.h5", "/outside.weights.h5", "../../outside.weights.h5"])
def test_a_note_leads_to_no_file_outside(tmp_path, name):
    """`best.json` that comes from a stranger once made a search delete what it named."""
    outside = tmp_path / "outside.weights.h5"
    outside.write_text("mine")
    name = str(outside) if name.startswith("/") else name
    checkpoint = Checkpoint(tmp_path / "study" / "trials" / "0", "trial 0")
    checkpoint.open({})
    checkpoint.note = {**checkpoint.note, "file": name, "logs": {}, "sha256": _files.checksum(outside)}
    with pytest.raises(ValueError, match="leads out of"):
        checkpoint.save(build(keras_tuner.HyperParameters()), 0, {}, {})
    _files.write_json(tmp_path / "study" / "trials" / "0" / "best.json", checkpoint.note, kind=checkpoint.kind)
    with pytest.raises(ValueError, match="leads out of"):
        checkpoint.read()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("harm", ["note", "weights", "no note", "other trial", "path outside", "other types"])
def test_damage_of_a_running_trial_costs_its_epochs_alone(tmp_path, harm):
    values, model = {"units": 3}, build(keras_tuner.HyperParameters())
    checkpoint = Checkpoint(tmp_path / "0", "trial 0")
    checkpoint.open(values)
    checkpoint.save(model, 1, {"loss": 1.}, {})
    again = Checkpoint(tmp_path / "0", "trial 0")
    again.open(values)
    assert again.note == checkpoint.note                             # without harm it goes on
    if harm == "note":
        (tmp_path / "0" / "best.json").write_text("{")
    elif harm == "weights":
        checkpoint.weights.write_bytes(checkpoint.weights.read_bytes()[:-1])
    elif harm == "no note":
        (tmp_path / "0" / "best.json").unlink()
    elif harm in ("path outside", "other types"):                    # of somebody who knows how a checksum is made
        note = {**again.note, "file": "../a"} if harm == "path outside" else [1]
        _files.write_json(tmp_path / "0" / "best.json", note, kind=again.kind)
    else:
        values = {"units": 4}
    with pytest.warns(UserWarning, match="This trial is trained from its start"):
        again.open(values)
    assert again.note == {"values": values}
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["best.json"]


def test_isolation_needs_a_script(tmp_path, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    with pytest.raises(ValueError, match="`isolate=True` runs the script again"):
        tune.Search(build, "loss", algorithm="random", max_trials=1, directory=tmp_path).run(
            (np.ones((4, 1)), np.ones((4, 1))), isolate=True)
