"""One trial: build, measure, train, score. It can be killed anywhere and goes on where it was."""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import os
import pathlib
import shutil
import time
import traceback
import warnings

import numpy as np

from .. import data, report
from .._check import require
from .._keras import fresh_names, keras, seeded, tf
from ..callbacks import Resume
from ..report._measure import Subject
from . import _oracles
from ._study import require_finite

MEASURED = {"params": "parameters", "macs": "macs", "bytes": "bytes", "gzip": "gzip", "latency_ms": "latency_ms"}


class TooLargeError(Exception):
    """The model is beyond the limits."""


class LostError(Exception):
    """The trial belongs to another worker now."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What all trials of a search share."""

    build: object
    train: object
    val: object
    objectives: dict
    epochs: int
    batch_size: int
    callbacks: object
    limits: dict
    folds: int | None
    seed: int
    directory: pathlib.Path

    @functools.cached_property
    def watched(self):
        """The first objective that training reports: it chooses the epoch."""
        return next((name, way) for name, way in self.objectives.items() if name not in MEASURED)

    def model(self, hp):
        build = self.build.build if hasattr(self.build, "build") else self.build
        model = build(hp)
        require(isinstance(model, keras.Model) and model.compiled, "`build(hp)` must return a compiled keras.Model",
                returned=type(model).__name__)
        return model

    @property
    def fits_itself(self):
        """Is `build` a HyperModel with a `fit` of its own, whose logs only it knows."""
        return getattr(type(self.build), "fit", None) not in (None, _oracles.keras_tuner.HyperModel.fit)

    def fit(self, hp, model, *args, **kwargs):
        fit = functools.partial(self.build.fit, hp, model) if self.fits_itself else model.fit
        return fit(*args, **kwargs)

    def data(self, which, hp):
        """Training or validation data as the user means them for these values."""
        given = getattr(self, which)
        return given(hp) if callable(given) and not isinstance(given, tf.data.Dataset) else given

    def epochs_of(self, hp):
        return int(hp.values.get("tuner/epochs", hp.values.get("epochs", self.epochs)))

    def batch_of(self, hp):
        return int(hp.values.get("batch_size", self.batch_size))

    def steps_of(self, hp, train):
        """Optimizer steps of a whole trial, None if the data do not say."""
        if isinstance(train, tf.data.Dataset):
            batches = int(train.cardinality())
            return batches * self.epochs_of(hp) if batches > 0 else None
        examples = len(keras.tree.flatten(train[0])[0])
        if self.folds:
            examples -= examples // self.folds
        return -(-examples // self.batch_of(hp)) * self.epochs_of(hp)


class Best(keras.callbacks.Callback):
    """Keeps the weights and the logs of the best epoch on the disk, and says when training is over.

    The weights come first and the note about them last, so that a note is never wrong.
    """

    def __init__(self, folder, name, way, alive):
        super().__init__()
        self.folder, self.name, self.sign, self.alive = folder, name, 1 if way == "max" else -1, alive
        self.note = read_note(folder)

    def on_train_batch_end(self, batch, logs=None):
        self.alive()

    def on_epoch_end(self, epoch, logs=None):
        logs = {key: float(np.mean(value)) for key, value in (logs or {}).items()}
        require(self.name in logs, "the objective must be among the logs of training", objective=self.name,
                logs=sorted(logs), error=KeyError)
        require_finite({self.name: logs[self.name]})
        self.alive()
        if self.note.get("epoch", -1) < epoch and (
                "logs" not in self.note or self.sign * logs[self.name] > self.sign * self.note["logs"][self.name]):
            self.keep(epoch, logs)

    def on_train_end(self, logs=None):
        write_note(self.folder, {**self.note, "over": True})

    def keep(self, epoch, logs):
        self.folder.mkdir(parents=True, exist_ok=True)
        new, old = f"epoch-{epoch}.weights.h5", self.note.get("file")
        self.model.save_weights(self.folder / "new.weights.h5")
        os.replace(self.folder / "new.weights.h5", self.folder / new)
        logs = {key: value for key, value in logs.items() if np.isfinite(value)}
        self.note = {"epoch": epoch, "logs": logs, "file": new, "sha256": checksum(self.folder / new),
                     "build": json.loads(json.dumps(self.model.get_build_config()))}
        write_note(self.folder, self.note)
        if old and old != new:
            (self.folder / old).unlink(missing_ok=True)


def run(task, job, alive=lambda: None):
    """The result of a trial, as `Study.end` takes it.

    Args:
      task: what all trials share.
      job: dict of number, values, space, best_folds.
      alive: called in every step; raises `LostError` when the trial was given to another worker.
    """
    start = time.perf_counter()
    hp = _oracles.space_from(job["space"], job["values"])
    with seeded(task_seed(task, job)), fresh_names():
        try:
            result = _run(task, job, hp, alive)
        except TooLargeError as error:
            result = {"status": "rejected", "message": str(error)}
        except LostError:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({pathlib.Path(where.filename).name}, line {where.lineno})"
            result = {"status": "failed", "message": message[-2000:]}
    gc.collect()                                                     # cheap: see `frozen`
    return {**result, "values": dict(hp.values), "space": _oracles.space_config(hp),
            "seconds": round(time.perf_counter() - start, 3)}


@contextlib.contextmanager
def frozen():
    """Lets the garbage collector look past what was imported: TensorFlow's million objects cost it half a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(task, job, hp, alive):
    folder = claim(task, job)
    if task.folds is None:
        train, val = task.data("train", hp), task.data("val", hp)
        return _score(task, hp, [_train(task, hp, folder, train, val, task_seed(task, job), alive)])
    x, y = task.data("train", hp)
    runs = []
    for fold, (inside, outside) in enumerate(split(y, task.folds, task.seed)):
        parts = [(keras.tree.map_structure(lambda a, rows=rows: np.asarray(a)[rows], x), np.asarray(y)[rows])
                 for rows in (inside, outside)]
        runs.append(_train(task, hp, folder / f"fold-{fold}", *parts, task_seed(task, job, fold), alive))
        values = [note["logs"][task.watched[0]] for note, _ in runs]
        if len(values) < task.folds and is_bad(values, job["best_folds"], task.watched[1]):
            return {**_score(task, hp, runs), "status": "stopped",
                    "message": f"worse in folds 1 to {len(values)} than the best trial in its worst fold"}
    return _score(task, hp, runs)


def task_seed(task, job, *more):
    """What Hyperband promotes starts again from the weights it started from."""
    first = int(job["values"].get("tuner/trial_id", job["number"]))
    return _oracles.derived(task.seed, "trial", first, *more) % 2**32


def is_bad(values, best, way):
    """After two folds or more: is each worse than the worst fold of the best trial."""
    worst, values = (min(best, default=0), values) if way == "max" else (-max(best, default=0), [-v for v in values])
    return bool(best) and len(values) >= 2 and max(values) < worst


def _train(task, hp, folder, train, val, seed, alive):
    """(note of the best epoch, facts of the model)."""
    keras.utils.set_random_seed(seed)
    hp.steps = functools.partial(task.steps_of, hp, train if task.folds is None else task.data("train", hp))
    model = task.model(hp)
    batches = batches_of(train, task.batch_of(hp), seed)
    built(model, batches)
    facts = measured(model, {*task.limits, *task.objectives})
    over = [f"{name} {facts[name]:,} > {limit:,}" for name, limit in task.limits.items() if facts[name] > limit]
    if over:
        raise TooLargeError("; ".join(over))
    note = read_note(folder)
    if note.get("over"):
        return note, facts
    folder.mkdir(parents=True, exist_ok=True)
    best = Best(folder, *task.watched, alive)
    given = list(task.callbacks(hp)) if task.callbacks else []
    result = task.fit(hp, model, batches, validation_data=val, epochs=task.epochs_of(hp), verbose=0,
                      shuffle=False, callbacks=[*given, best, Resume(folder / "resume")],
                      **({} if val is None or isinstance(val, tf.data.Dataset) else {"validation_batch_size": 256}))
    if "logs" not in best.note:                                      # a `fit` of the user's own that called no callback
        if isinstance(result, keras.callbacks.History):
            result = {name: values[-1] for name, values in result.history.items()}
        logs = result if isinstance(result, dict) else {task.watched[0]: result}
        best.set_model(model)
        best.on_epoch_end(0, logs)
        best.on_train_end()
    return best.note, facts


def _score(task, hp, runs):
    notes, facts = [note for note, _ in runs], runs[0][1]
    scores, spread = {}, {}
    for name in task.objectives:
        values = [facts[name]] if name in MEASURED else [note["logs"].get(name, np.nan) for note in notes]
        scores[name] = float(np.mean(values))
        if len(values) > 1:
            spread[name] = float(np.std(values, ddof=1))
    require_finite(scores)
    folds = [note["logs"][task.watched[0]] for note in notes] if task.folds else []
    return {"status": "completed", "scores": scores, "spread": spread, "folds": folds, "facts": facts,
            "epoch": notes[0]["epoch"] if not task.folds else None}


def batches_of(train, batch, seed):
    """A data set as it is; arrays in an order that (seed, epoch) decides, which `Resume` brings back."""
    return train if isinstance(train, tf.data.Dataset) else data.arrays(*train, batch, seed=seed)


def built(model, batches):
    """Builds a model that has seen no data yet."""
    if not model.built:
        x = next(iter(batches.take(1)))[0]
        model(keras.tree.map_structure(lambda t: t[:1], x))


def measured(model, wanted):
    """{name: number} of what limits and objectives ask about the model, and `params` in any case."""
    facts = {"params": sum(int(np.prod(w.shape)) for w in model.weights)}
    wanted = {name for name in wanted if name in MEASURED} - {"params"}
    if "latency_ms" in wanted:
        row = report.measure(model, runs=50)
        facts.update({name: getattr(row, MEASURED[name]) for name in wanted})
    elif wanted:
        found = Subject(model, model.name, None, "tune").facts()
        facts.update({name: found[MEASURED[name]] for name in wanted})
    unknown = [name for name in wanted if facts[name] is None]
    require(not unknown, f"`{', '.join(unknown)}` needs a functional or Sequential model of fixed input shape",
            model=type(model).__name__, do="Rebuild it with keras.Model(inputs, outputs).")
    return {name: value if name == "latency_ms" else int(value) for name, value in facts.items()}


def split(y, folds, seed):
    """[(rows to train on, rows to score on)] of each fold; classes are dealt out evenly if `y` are whole numbers.

    Example:
      >>> [outside.tolist() for _, outside in split(np.array([0, 0, 0, 1, 1, 1]), 3, seed=0)]
      [[2, 3], [0, 5], [1, 4]]
    """
    y = np.asarray(y)
    require(2 <= folds <= len(y), "`folds` must be at least 2 and at most the number of examples", folds=folds,
            examples=len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    labels = y.reshape(len(y), -1)
    if labels.shape[1] == 1 and np.issubdtype(y.dtype, np.integer):
        order = order[np.argsort(labels[order, 0], kind="stable")]
    fold_of = np.empty(len(y), int)
    fold_of[order] = np.arange(len(y)) % folds
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(folds)]


def claim(task, job):
    """The trial's folder, emptied if what lies there is of another trial: other values or another seed."""
    folder = task.directory / "trials" / f"{job['number']:06d}"
    mark = {"key": f"{_oracles.derived(task.seed, job['number'], sorted(job['values'].items())):x}"}
    if read_note(folder, "trial.json") != mark:
        shutil.rmtree(folder, ignore_errors=True)
        write_note(folder, mark, "trial.json")
    return folder


def read_note(folder, name="best.json"):
    """A small JSON file, {} if it is not there or not whole."""
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return {}


def write_note(folder, note, name="best.json"):
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{name}.new"
    with open(new, "w") as file:
        file.write(json.dumps(note))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / name)


def checksum(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def load(task, trial, folder):
    """The model whose score was reported, with the weights of its best epoch."""
    note = read_note(folder)
    path = folder / note.get("file", "")
    require(note.get("file") and path.exists() and checksum(path) == note["sha256"],
            "the weights of a trial must be as they were written", trial=trial.number, file=str(path),
            do="Ask for another rank, or train the values anew.")
    with seeded(task.seed % 2**32), fresh_names():
        hp = _oracles.space_from([], trial.values)
        hp.steps = lambda: 1
        model = task.model(hp)
        if not model.built:
            model.build_from_config(note["build"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                          # the state of the optimizer stays behind
            model.load_weights(path)
    return model
