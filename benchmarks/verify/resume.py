"""Does a training that is killed end as one that is not? Real SIGKILLs and real damage, row by row.

    python benchmarks/verify/resume.py            all rows that docs/measured/resume.csv does not hold yet (minutes)

Real digits, a convolutional network with dropout, batch normalization and augmentation, Adam, ReduceLROnPlateau,
EarlyStopping that restores the best weights, and SWA. Each run writes down a checksum of all its weights after every
batch; a run that was killed and restarted must have written the same ones, and in the end the same history.
"""

import argparse
import collections
import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "resume.csv"
BATCH, BATCHES, EPOCHS, EVERY = 20, 10, 6, 4
OPTIONS = {"folder": None, "log": None, "kill": None, "kill_sync": None, "every": EVERY, "patience": 4,
           "epochs": EPOCHS, "data": "arrays"}
FORKS = False                                                          # main() may: it has nothing but imported


def build(args):
    """The model, compiled, and its data; made anew in every process."""
    import contextlib

    import keras
    import numpy as np
    import sklearn.datasets
    import tensorflow as tf

    from tfopt import augment, data, distribute

    strategy = distribute.strategy("multi_worker") if args.data == "workers" else None
    if args.data != "unseeded":
        keras.utils.set_random_seed(7)
    digits = sklearn.datasets.load_digits()
    x, y = digits.images[:BATCH * BATCHES, ..., None].astype("float32") / 16, digits.target[:BATCH * BATCHES]
    pipeline = augment.Pipeline([augment.Translate(), augment.Brightness()], value_range=(0, 1), jit_compile=False)
    batches = {
        "arrays": lambda: dict(x=x, y=y, batch_size=BATCH),
        "workers": lambda: dict(x=x, y=y, batch_size=BATCH),
        "unseeded": lambda: dict(x=x, y=y, batch_size=BATCH),
        "data.arrays": lambda: dict(x=data.arrays(x, y, BATCH, augment=pipeline)),
        "tf.data": lambda: dict(x=tf.data.Dataset.from_tensor_slices((x, y)).shuffle(99, seed=3).batch(BATCH)),
        "tf.data map": lambda: dict(x=tf.data.Dataset.from_tensor_slices((x, y)).enumerate().shuffle(99, seed=3)
                                    .batch(BATCH).map(pipeline.map)),
        "tf.data repeat": lambda: dict(x=tf.data.Dataset.from_tensor_slices((x, y)).shuffle(99, seed=3).repeat()
                                       .batch(BATCH), steps_per_epoch=BATCHES - 1),
    }[args.data]()
    layers = keras.layers
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = keras.Sequential([
            keras.Input((8, 8, 1)),
            augment.Pipeline([augment.Rotate(), augment.Contrast()], value_range=(0, 1), jit_compile=False),
            layers.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(1)),
            layers.BatchNormalization(synchronized=bool(strategy)),
            layers.ReLU(), layers.Flatten(), layers.Dropout(0.3, seed=5),
            layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(2))])
        model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"])
    return model, {**batches, "validation_data": (np.asarray(x), np.asarray(y))}


def train(args):
    """One process of a training, which may kill itself: what the table is made of."""
    import keras

    from tfopt import average, callbacks

    model, batches = build(args)
    worker = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    victim = 1 if args.data == "workers" else 0

    class Watch(keras.callbacks.Callback):
        """Writes down each batch, and kills the process after one of them."""

        def on_train_batch_end(self, batch, logs=None):
            step, check = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations.value)), 0
            for variable in self.model.variables:
                check = zlib.crc32(keras.ops.convert_to_numpy(variable.value).tobytes(), check)
            if not worker:
                with open(args.log, "a") as file:
                    file.write(f"{step} {check}\n")
            if step == args.kill and worker == victim:
                os.kill(os.getpid(), signal.SIGKILL)

    if args.kill_sync:
        _kill_at_sync(args.kill_sync)
    history = model.fit(**batches, epochs=args.epochs, verbose=0, callbacks=[
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.3),
        callbacks.Resume(args.folder, every=args.every), Watch(),
        average.SWA(start=20, every=5, data=batches["validation_data"][0]),
        keras.callbacks.EarlyStopping("val_loss", patience=args.patience, restore_best_weights=True)])
    check = 0
    for variable in [*model.variables, *model.optimizer.variables]:
        check = zlib.crc32(keras.ops.convert_to_numpy(variable.value).tobytes(), check)
    if worker:
        return
    with open(args.log, "a") as file:
        file.write(json.dumps({"weights": check, "history": history.history, "epoch": history.epoch}) + "\n")


def _kill_at_sync(number):
    """The process is killed when it brings something to the disk for the n-th time: five times for a state."""
    own, seen = os.fsync, []

    def sync(handle):
        seen.append(handle)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        own(handle)

    os.fsync = sync


Run = collections.namedtuple("Run", "steps result error")


def run(folder, log, *, interrupt=None, **options):
    """One process of a training: ({step: checksum} of the batches it did, its result or None, its complaint).

    Args:
      folder: the directory of Resume.
      log: file the process writes to.
      interrupt: kill it from outside when it has done so many batches.
      **options: of the command line of `train`.
    """
    log.write_text("")
    errors = log.with_suffix(".errors")
    kill, wait = (forked if FORKS and options.get("data") != "workers" else started)(
        {**OPTIONS, **options, "folder": str(folder), "log": str(log)}, errors)
    while interrupt and log.read_text().count("\n") < interrupt:
        time.sleep(0.001)
    if interrupt:
        kill()
    wait()
    steps = log.read_text().splitlines()
    result = json.loads(steps.pop()) if steps and steps[-1].startswith("{") else None
    return Run(dict(map(int, step.split()) for step in steps), result, errors.read_text())


def started(options, errors):
    """A new process: how to kill it, and how to wait for it."""
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    launch = ["-m", "tfopt.distribute", "--workers", "2"] if options["data"] == "workers" else []
    with errors.open("w") as file:
        process = subprocess.Popen([sys.executable, "-P", *launch, __file__, *words], stderr=file,
                                   env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    return process.kill, lambda: process.wait(timeout=900)


def forked(options, errors):
    """As `started`, from this process, which has imported TensorFlow and computed nothing with it: twice as fast."""
    number = os.fork()
    if not number:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            train(argparse.Namespace(**options))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    return lambda: os.kill(number, signal.SIGKILL), lambda: os.waitpid(number, 0)


def judge(reference, before, after):
    """(batches done twice, "yes" if every batch and the result are those of the reference).

    Of several workers each holds a share of a metric's sum; a restart shares it out anew, which can round otherwise.
    """
    redone = len(set(before.steps) & set(after.steps))
    same = all(reference.steps[step] == check for step, check in after.steps.items())
    if same and after.result in (None, reference.result):
        return redone, "yes"
    ends = [list(itertools.chain(*result["history"].values())) for result in (after.result, reference.result) if result]
    far = max(abs(a - b) for a, b in zip(*ends, strict=True)) if same and len(ends) == 2 else math.inf
    return redone, f"weights yes, metrics to {far:.0e}" if far < 1e-6 else "NO"


def chain(data, faults, folder):
    """One training, killed again and again; a row for each time. The reference is never killed."""
    start, before = Run({}, None, ""), "SIGKILL at a batch"
    if data == "unseeded":                                      # the order is drawn in the first process: both have it
        start = run(folder / "chain", folder / "log", data=data, kill=EVERY + 1)
        shutil.copytree(folder / "chain", folder / "whole")
    reference = run(folder / "whole", folder / "log", data=data)
    if reference.result is None:
        raise RuntimeError(reference.error[-3000:])
    reference.steps.update((step, check) for step, check in start.steps.items() if step <= EVERY)
    last = start
    for fault, options in [*faults, ("the end", {})]:
        now = run(folder / "chain", folder / "log", data=data, **options)
        redone, same = judge(reference, last, now)
        if last.steps:
            yield {"fault": before, "data": data, "batch": max(last.steps), "redone": redone, "equal": same}
        if now.result is not None and options:
            raise RuntimeError(f"{fault} came too late: {options}")
        before, last = fault, now
    if last.result is None or last.result["weights"] != reference.result["weights"]:
        raise RuntimeError(f"{last.result} is not {reference.result}\n{last.error[-2000:]}")


def damaged(data, folder):
    """One training, killed once; then goes on beside a damaged newest state."""
    reference = run(folder / "whole", folder / "log", data=data)
    killed = run(folder / "killed", folder / "log", data=data, kill=35)
    newest = sorted(state.name for state in (folder / "killed").iterdir() if state.is_dir())[-1]
    for file in ("arrays.npz", "state.json", "manifest.json"):
        for fault, damage in DAMAGES.items():
            shutil.copytree(folder / "killed", folder / "copy")
            damage(folder / "copy" / newest / file)
            now = run(folder / "copy", folder / "log", data=data)
            redone, same = judge(reference, killed, now)
            told = any(f"{newest} is damaged" in line and file in line for line in now.error.splitlines())
            yield {"fault": f"{file} {fault}" + ("" if told else ", and nothing said"), "data": data, "batch": 35,
                   "redone": redone, "equal": same}
            shutil.rmtree(folder / "copy")
    shutil.copytree(folder / "killed", folder / "copy")
    for state in filter(pathlib.Path.is_dir, (folder / "copy").iterdir()):      # beside them lies the lock
        DAMAGES["empty"](state / "arrays.npz")
    now = run(folder / "copy", folder / "log", data=data)
    sentence = now.error.strip().splitlines()[-1]
    stopped = not now.steps and sentence.startswith("ValueError: callbacks.Resume finds no whole state")
    yield {"fault": "both states damaged", "data": data, "batch": 35, "redone": 0,
           "equal": "stopped with a sentence" if stopped else "NO"}


def _truncate(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


DAMAGES = {"cut in half": _truncate, "empty": lambda path: path.write_bytes(b""), "with a bit flipped": _flip,
           "missing": lambda path: path.unlink()}


def experiments():
    """{name: folder -> rows}"""
    draw = random.Random(0)
    points, found = draw.sample(range(1, BATCHES * EPOCHS), 24), {}
    for part in range(3):
        found[f"killed at a batch, {part + 1}"] = lambda folder, part=part: chain(
            "arrays", [("SIGKILL at a batch", {"kill": step}) for step in sorted(points[part::3])], folder)
    found["killed in a write"] = lambda folder: chain(
        "arrays", [("SIGKILL in a write", {"kill_sync": number}) for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)], folder)
    found["killed at any time"] = lambda folder: chain(
        "arrays", [("SIGKILL from outside", {"interrupt": count}) for count in (7, 8, 6, 9, 7)], folder)
    for data in ("unseeded", "data.arrays", "tf.data", "tf.data map", "tf.data repeat"):
        found[data] = lambda folder, data=data: chain(
            data, [("SIGKILL at a batch", {"kill": step}) for step in (13, 27, 44)], folder)
    found["one of two workers"] = lambda folder: chain(
        "workers", [("SIGKILL of worker 1", {"kill": step}) for step in (13, 27, 44)], folder)
    found["damaged"] = lambda folder: damaged("arrays", folder)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", help="experiments to do")
    for name, default in OPTIONS.items():
        number = isinstance(default, int) or "kill" in name
        parser.add_argument(f"--{name}", type=int if number else str, default=default)
    args = parser.parse_args()
    if args.folder:
        return train(args)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import pandas as pd

    import tfopt

    global FORKS
    FORKS = bool(tfopt.callbacks and tfopt.average and tfopt.augment and tfopt.data)
    done = set(pd.read_csv(TABLE)["experiment"]) if TABLE.exists() else set()
    for name, rows in experiments().items():
        if name in done or (args.only and name not in args.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            frame = pd.DataFrame([{"experiment": name, **row} for row in rows(pathlib.Path(folder))])
        print(frame.to_string(index=False), flush=True)
        frame.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)


if __name__ == "__main__":
    main()
