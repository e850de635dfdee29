"""What runs at the same time or starts other processes: threads, two writers of one directory, trials of their own."""

import concurrent.futures
import json
import subprocess
import sys
import time

import keras
import numpy as np
import test_tune_record as record
import test_tune_survive as survive

from tfopt import callbacks, compress, distill, quantize
from tfopt.distill._shards import Folder

from . import contents, fault, said

TRAINS = """
import pathlib, sys, time, keras, numpy as np
from tfopt import callbacks
folder = pathlib.Path(sys.argv[1])

def wait(epoch, logs):
    (folder / "began").touch()
    while epoch == 1 and not (folder / "go").exists():
        time.sleep(0.05)

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
found = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=[
    keras.callbacks.LambdaCallback(on_epoch_begin=wait), callbacks.Resume(folder / "states")])
print(len(found.history["loss"]))
"""


def script(folder, program):
    """Runs a program as a user does; returns the ended process."""
    path = folder / "script.py"
    path.write_text(program)
    return subprocess.run([sys.executable, "-P", str(path)], cwd=folder, text=True, capture_output=True, check=False)


@fault("at once", "tune", "a script with two searches under isolate=True, one trial of which kills its process")
def two_searches(folder):
    done = script(folder, survive.ISOLATED)
    rows = json.loads(done.stdout.splitlines()[-1])
    starts = len((folder / "starts").read_text())
    yield rows[1][2], {"the trials": [row[:2] for row in rows] == [["good", "completed"], ["deadly", "failed"]],
                       "the number of processes": starts == 1 + 1 + 2, "the token": not list(folder.rglob("token"))}


@fault("at once", "tune", "under isolate=True a search that has another directory each time: once 44 processes")
def search_elsewhere(folder):
    done = script(folder, survive.ELSEWHERE)
    yield done.stderr.strip().splitlines()[-1], {
        "the end": done.returncode == 1, "the number of processes": len((folder / "starts").read_text()) == 2}


@fault("at once", "callbacks", "two processes train with Resume in one directory")
def two_trainings(folder):
    (folder / "program.py").write_text(TRAINS)
    with subprocess.Popen([sys.executable, "-P", str(folder / "program.py"), str(folder)], stdout=subprocess.PIPE,
                          text=True) as first:
        while not (folder / "began").exists() and first.poll() is None:
            time.sleep(0.05)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        text, found = said(model.fit, np.ones((4, 2)), np.ones((4, 1)), verbose=0,
                           callbacks=[callbacks.Resume(folder / "states")])
        (folder / "go").touch()
        printed, _ = first.communicate(timeout=200)
    yield text, {"the lock": found is None, "the first training": printed.split() == ["3"]}


@fault("at once", "tune", "a second process opens the study of a running search")
def two_studies(folder):
    study = record.open_study(folder, trials=2)
    before = contents(folder)
    text, found = said(record.open_study, folder, trials=2)
    yield text, {"the lock": found is None, "the record": contents(folder) == before}
    study.record.close()


@fault("at once", "compress", "a second run, or cache_teacher, in a directory that is being written")
def two_runs(folder):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.zeros(32, "int32")
    heard = []
    with Folder(folder / "outputs", {}):
        text, found = said(distill.cache_teacher, model, x, directory=folder / "outputs", verbose=0)
    yield text, {"the lock": found is None, "the outputs": not list((folder / "outputs").glob("*.npy"))}

    def measure(network, data):
        if not heard:
            heard.append(said(compress.run, model, (x, y), (x, y), directory=folder / "run", stages={"prune": (0.5,)},
                              epochs=1, max_drop=1.))
        return 1.

    compress.run(model, (x, y), (x, y), directory=folder / "run", stages={"prune": (0.5,)}, epochs=1, max_drop=1.,
                 measure=measure)
    yield heard[0][0], {"the lock": heard[0][1] is None}


@fault("at once", "quantize", "eight threads use one LiteModel")
def threads(folder):
    x = np.random.default_rng(0).normal(size=(400, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(4)])
    for mode in ("float32", "int8"):
        lite = quantize.convert(model, mode, calibration=x)
        expected = lite.predict(x)
        batches = [x[start:start + 10] for start in range(0, 400, 10)] * 3
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lite.predict, batches))
        yield "(they take turns)", {"the outputs": np.array_equal(np.concatenate(parts), np.tile(expected, (3, 1)))}
