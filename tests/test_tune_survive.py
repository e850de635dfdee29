"""A search that is killed, in one process or in several: a small sample of benchmarks/verify/tune.py."""

import json
import pathlib

import numpy as np
import pytest

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

data = load_iris(return_X_y=True)
search = tune.Search(build, "val_loss", algorithm="grid", max_trials=2, directory="study")
search.run(data, data, epochs=1, isolate=True, verbose=0)
print(search.frame[["kind", "status", "message"]].to_json(orient="values"))
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
def test_a_trial_that_kills_its_process_is_one_failed_trial(run_python):
    rows = json.loads(run_python(ISOLATED, fork=False).splitlines()[-1])
    assert [row[:2] for row in rows] == [["good", "completed"], ["deadly", "failed"]]
    assert "its process ended with exit code -9" in rows[1][2]


def test_isolation_needs_a_script(tmp_path, monkeypatch):
    import sys

    import keras

    from tfopt import tune

    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    def build(hp):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(hp.Int("units", 1, 2))])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    with pytest.raises(ValueError, match="`isolate=True` runs the script again"):
        tune.Search(build, "loss", algorithm="random", max_trials=1, directory=tmp_path).run(
            (np.ones((4, 1)), np.ones((4, 1))), isolate=True)
