"""Does a search survive? SIGKILL at random moments, damaged records, memory and disk over 100 trials, workers that die.

    python benchmarks/verify/tune.py [kills] [damage] [growth] [workers]

Each row is appended to docs/measured/tune.csv when it is done, so an interrupted run goes on where it stopped. The
problem is scikit-learn's Iris. For `kills` the models train step by step without a graph: what is asked is whether the
resumed study has exactly the trials and scores of the uninterrupted one, not how fast it is. The children are forked
before TensorFlow has computed anything, so that they share its import.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import pandas as pd
from sklearn.datasets import load_iris

from tfopt import tune

MEASURED = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "tune.csv"
ALGORITHMS = ("random", "grid", "bayesian", "hyperband", "tpe", "tpe+asha")
STUDIES, KILLS, TRIALS, EPOCHS, BATCH, SEED = 5, 5, 5, 2, 38, 0


def append(check, case, result, **numbers):
    MEASURED.parent.mkdir(exist_ok=True)
    row = {"check": check, "case": case, "result": result, "numbers": json.dumps(numbers) if numbers else ""}
    pd.DataFrame([row]).to_csv(MEASURED, mode="a", header=not MEASURED.exists(), index=False)
    print(row, flush=True)


def done(check, case):
    if not MEASURED.exists():
        return False
    table = pd.read_csv(MEASURED)
    return bool(((table["check"] == check) & (table["case"] == case)).any())


def data():
    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def build(hp, eager=True):
    model = keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(hp.Int("units", 2, 16, step=2), activation="relu"),
        keras.layers.Dropout(hp.Choice("dropout", [0.0, 0.2])), keras.layers.Dense(3)])
    optimizer = hp.Choice("optimizer", ["sgd", "adam"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        momentum = hp.Float("momentum", 0.0, 0.9, step=0.3)
    rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
    model.compile(keras.optimizers.SGD(rate, momentum) if optimizer == "sgd" else keras.optimizers.Adam(rate),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"],
                  run_eagerly=eager, jit_compile=False)
    return model


def search(folder, algorithm, trials=TRIALS):
    return tune.Search(build, "val_loss", algorithm=algorithm, max_trials=trials, directory=folder, seed=SEED)


def run(folder, algorithm):
    """Three epochs are the least with which Hyperband promotes a trial."""
    epochs = 3 if algorithm == "hyperband" else EPOCHS
    return search(folder, algorithm).run(*data(), epochs=epochs, batch_size=BATCH, verbose=0)


def scores(folder, algorithm):
    """What two studies must agree on to the last bit."""
    frame = search(folder, algorithm).frame.drop(columns="seconds")
    return json.loads(frame.to_json(orient="index", double_precision=15))


# SIGKILL


def die_at(moment):
    """This process kills itself at the `moment`-th event: a write, a rename, a removal, a step, a draw.

    A write is killed half-way: the disk then holds half of the bytes. Counts only, if `moment` is None.
    """
    count = [0]

    def passing(half=None):
        count[0] += 1
        if count[0] == moment:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name):
        real = getattr(owner, name)

        def before(*args, **kwargs):
            if name == "write":
                passing(lambda: real(args[0], args[1][:len(args[1]) // 2]))
            else:
                passing()
            return real(*args, **kwargs)
        setattr(owner, name, before)

    for name in ("write", "fsync", "replace", "unlink"):
        around(os, name)
    around(shutil, "rmtree")
    around(keras.callbacks.CallbackList, "on_train_batch_end")
    around(keras.callbacks.CallbackList, "on_epoch_end")
    around(keras.callbacks.CallbackList, "on_train_end")
    return count


def child(work, *args):
    """Runs `work` in a forked process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        warnings.simplefilter("ignore")
        work(*args)
        code = 0
    finally:
        os._exit(code)


def wait(pid):
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def killed(folder, algorithm, moment):
    die_at(moment)
    run(folder, algorithm)


def counted(folder, algorithm, path):
    count = die_at(None)
    run(folder, algorithm)
    pathlib.Path(path).write_text(str(count[0]))


def kill_often(algorithm, moments, at):
    """(does the study end as the uninterrupted one, at how many of the moments it was killed).

    It is killed again and again, each time it has been resumed, and then left alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        codes = [wait(child(killed, folder, algorithm, moment)) for moment in moments]
        assert set(codes) <= {-signal.SIGKILL, 0}, f"exit codes {codes} at {moments}"
        assert wait(child(run, folder, algorithm)) == 0, f"did not resume after {moments}"
        return scores(folder, algorithm) == at, codes.count(-signal.SIGKILL)


def whole(algorithm):
    """(scores, number of events) of an uninterrupted study."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "count"
        assert wait(child(counted, f"{folder}/study", algorithm, path)) == 0
        return scores(f"{folder}/study", algorithm), int(path.read_text())


def kills():
    for algorithm in ALGORITHMS:
        expected, draw = None, random.Random(f"{SEED} {algorithm}")
        for n in range(STUDIES):
            shares = [draw.random() for _ in range(KILLS)]
            if done("kill", f"{algorithm} {n}"):
                continue
            if expected is None:
                expected, events = whole(algorithm)
                assert whole(algorithm) == (expected, events), "two uninterrupted studies differ"
            moments = [1 + int(share * 2 * events / (KILLS + 1)) for share in shares]
            same, times = kill_often(algorithm, moments, expected)
            append("kill", f"{algorithm} {n}", "same" if same else "different", events=events, moments=moments,
                   killed=times)


# Damage


def damage():
    """The record of a half-done study is damaged; the search goes on and ends like the whole one, or says no."""
    for algorithm in ("tpe", "grid"):
        expected = None
        for kind in ("nothing", "cut in the last line", "cut in the middle", "cut to the first line", "zero bytes",
                     "missing", "bit in the last line", "bit in the middle", "bit in the first line"):
            case = f"{algorithm}, {kind}"
            if done("damage", case):
                continue
            if expected is None:
                expected, events = whole(algorithm)
            with tempfile.TemporaryDirectory() as folder:
                wait(child(killed, folder, algorithm, events // 2))
                record = pathlib.Path(folder) / "record.jsonl"
                harm(record, kind)
                said = pathlib.Path(folder) / "said"
                code = wait(child(told, folder, algorithm, said))
                sentence = said.read_text()
                if code == 0:
                    found = scores(folder, algorithm)
                    result = "same" if found == expected else f"resumed, {len(found)} trials"
                else:
                    result = "refused"
                append("damage", case, result, said=sentence[:160].replace(folder, "study"))


def told(folder, algorithm, path):
    """Runs, and writes down the warning or the refusal."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(folder, algorithm)
            path.write_text("; ".join(str(w.message) for w in caught if "cannot be read" in str(w.message)))
        except (ValueError, RuntimeError) as error:
            path.write_text(str(error))
            os._exit(3)


def harm(record, kind):
    content = bytearray(record.read_bytes())
    lines = content.splitlines(keepends=True)
    if kind == "missing":
        record.unlink()
        return
    if kind.startswith("cut"):
        where = {"cut in the last line": len(content) - len(lines[-1]) // 2, "cut in the middle": len(content) // 2,
                 "cut to the first line": len(lines[0])}[kind]
        content = content[:where]
    elif kind == "zero bytes":
        content = b""
    elif kind.startswith("bit"):
        where = {"bit in the last line": len(content) - len(lines[-1]) // 2, "bit in the middle": len(content) // 2,
                 "bit in the first line": len(lines[0]) // 2}[kind]
        content[where] ^= 4
    record.write_bytes(bytes(content))


# Memory and disk


def growth():
    """Resident memory of the one process, and bytes on the disk, after 10 trials and after 100."""
    if done("growth", "one process"):
        return
    with tempfile.TemporaryDirectory() as folder:
        said = pathlib.Path(folder) / "said"
        assert wait(child(grow, f"{folder}/study", said)) == 0
        append("growth", "one process", "measured", **json.loads(said.read_text()))


def grow(folder, said):
    seen = {}
    for trials in (10, 100):
        tune.Search(lambda hp: build(hp, eager=False), "val_loss", algorithm="random", max_trials=trials,
                    directory=folder).run(*data(), epochs=2, batch_size=BATCH, verbose=0)
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        disk = sum(path.stat().st_size for path in pathlib.Path(folder, "trials").rglob("*") if path.is_file())
        seen[str(trials)] = {"memory MB": round(resident / 1e6, 1), "weights kB": round(disk / 1e3, 1)}
    ratio = seen["100"]["memory MB"] / seen["10"]["memory MB"]
    said.write_text(json.dumps({**seen, "memory ratio": round(ratio, 3)}))


# Chief and workers


PROGRAM = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("verify", sys.argv[1])
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)
import keras
from tfopt import tune
from tfopt.tune import _service
_service.LEASE = float(sys.argv[4])
me, dies = os.environ["KERASTUNER_TUNER_ID"], os.environ["DIES"]
if me == dies:
    verify.die_at(int(os.environ["DIES_AT"]))
while dies not in ("None", me) and me != "chief" and not verify.begun(sys.argv[2]):
    time.sleep(0.05)                                    # the one that is to die must have a trial to die in
verify.run(sys.argv[2], sys.argv[3])
"""


def start(folder, algorithm, lease=5., dies=None, at=0, workers=2):
    """Popen objects of a chief and its workers on loopback, by name."""
    script = pathlib.Path(folder) / "program.py"
    script.write_text(PROGRAM)
    port = free_port()
    common = {**os.environ, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port),
              "DIES": str(dies), "DIES_AT": str(at)}
    return {name: subprocess.Popen(
        [sys.executable, "-P", str(script), __file__, f"{folder}/study", algorithm, str(lease)],
        env={**common, "KERASTUNER_TUNER_ID": name}, stderr=subprocess.PIPE, text=True)
        for name in ("chief", *(f"tuner{n}" for n in range(workers)))}


def begun(folder):
    record = pathlib.Path(folder) / "record.jsonl"
    return record.exists() and b'"kind":"start"' in record.read_bytes()


def free_port():
    import socket
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def workers():
    """Chief and two workers; then the same, and one of them is killed in the middle of a trial."""
    for algorithm in ALGORITHMS:
        for case, at in ((f"{algorithm}, nobody dies", 0), (f"{algorithm}, a worker dies", 15)):
            if done("workers", case):
                continue
            with tempfile.TemporaryDirectory() as folder:
                processes = start(folder, algorithm, dies="tuner0" if at else None, at=at)
                died = None
                while processes["chief"].poll() is None:
                    if died is None and at and processes["tuner0"].poll() is not None:
                        died = time.monotonic()
                    time.sleep(0.1)
                after = time.monotonic() - died if died else None
                codes = {name: process.wait() for name, process in processes.items()}
                frame = search(f"{folder}/study", algorithm).frame
                good = codes["chief"] == 0 and (frame.status == "completed").all() and len(frame) == TRIALS
                append("workers", case, "all completed" if good else "incomplete", trials=len(frame), codes=codes,
                       chief_returned_after_seconds=after and round(after, 1))


if __name__ == "__main__":
    for name in sys.argv[1:] or ("kills", "damage", "growth", "workers"):
        {"kills": kills, "damage": damage, "growth": growth, "workers": workers}[name]()
