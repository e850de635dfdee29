"""One trial: build, measure, train, score. It can be killed anywhere and goes on where it was."""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import time
import traceback

import numpy as np

from .. import _data, _files, data
from .._check import require
from .._keras import Fit, fresh_names, keras, seeded, tf
from ..callbacks import Resume
from ..report._measure import facts_of
from . import _oracles
from ._checkpoint import Best, Checkpoint, build, finite, inputs_of, plain, require_finite
from ._folds import is_bad, require_model, split
from ._study import StorageError

MEASURED = {"params": "parameters", "macs": "macs", "bytes": "bytes", "gzip": "gzip", "latency_ms": "latency_ms"}


class TooLargeError(Exception):
    """The model is beyond the limits."""


class LostError(Exception):
    """The trial belongs to another worker now."""


class Restart(Resume):
    """`Resume` inside `model.fit`; in a training loop of the user's own, which it cannot restart, it does nothing."""

    active = False

    def on_train_begin(self, logs=None):
        with contextlib.suppress(ValueError):
            self.active = bool(Fit(self.model))
        if self.active:
            super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        if self.active:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.active:
            super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if self.active:
            super().on_train_end(logs)


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
        return require_model(build(hp), "tune.Search")

    @property
    def fits_itself(self):
        """Is `build` a HyperModel with a `fit` of its own, whose logs only it knows."""
        return getattr(type(self.build), "fit", None) not in (None, _oracles.keras_tuner.HyperModel.fit)

    def fit(self, hp, model, *args, **kwargs):
        fit = functools.partial(self.build.fit, hp, model) if self.fits_itself else model.fit
        return fit(*args, **kwargs)

    def data(self, which, hp, model=None):
        """Training or validation data as the user means them for these values; `model`: whose inputs they must fit."""
        given = getattr(self, which)
        given = given(hp) if callable(given) and not isinstance(given, tf.data.Dataset) else given
        return None if given is None else _data.read(given, model, name=which)

    def checkpoint(self, number, fold=None):
        """Where the weights of a trial, or of one of its folds, are."""
        folder, owner = f"trials/{number:06d}", f"tune.Search(seed={self.seed}), trial {number}"
        if fold is not None:
            folder, owner = f"{folder}/fold-{fold}", f"{owner}, fold {fold}"
        return Checkpoint(_files.inside(self.directory, folder), owner)

    def best(self, trial, fold):
        """The model whose score was reported, with the weights of its best epoch."""
        checkpoint = self.checkpoint(trial.number, fold)
        try:
            checkpoint.read()
        except ValueError as error:
            raise ValueError(f"tune.Search.best: {error} Ask for another rank, or train the values anew.") from None
        with seeded(self.seed % 2**31), fresh_names():
            hp = _oracles.space_from([], trial.values)
            hp.count = lambda hp: 1
            return checkpoint.load(self.model(hp))

    def require_storage(self, error):
        """Raises StorageError if an exception is no fault of the trial: the directory is full, read-only or gone."""
        if isinstance(error, StorageError):
            raise error
        if not (self.directory / "record.jsonl").exists():
            raise StorageError(f"tune.Search stopped: its directory {self.directory} is gone. Bring it back, or start "
                               "in another one.") from error
        if _files.out_of_space(error):
            raise StorageError(f"tune.Search stopped: its directory {self.directory} cannot be written ({error}). Make "
                               "room and run the same call again: it goes on with this trial.") from error

    def epochs_of(self, hp):
        return int(hp.values.get("tuner/epochs", hp.values.get("epochs", self.epochs)))

    def batch_of(self, hp):
        return int(hp.values.get("batch_size", self.batch_size))

    def steps_of(self, hp, train):
        """Optimizer steps of a whole trial, None if the data do not say."""
        if self.folds:
            train = train.head(train.length - train.length // self.folds)
        batches = train.count(self.batch_of(hp))
        return batches and batches * self.epochs_of(hp)


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
            task.require_storage(error)
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
    if task.folds is None:
        train, val = task.data("train", hp), task.data("val", hp)
        return _score(task, [_train(task, job, hp, None, train, val, alive)])
    given, runs = task.data("train", hp), []
    for fold, parts in enumerate(split(given.y, task.folds, task.seed)):
        train, val = map(given.rows, parts)
        runs.append(_train(task, job, hp, fold, train, val, alive))
        values = [note["logs"][task.watched[0]] for note, _ in runs]
        if len(values) < task.folds and is_bad(values, job["best_folds"], task.watched[1]):
            return {**_score(task, runs), "status": "stopped",
                    "message": f"worse in folds 1 to {len(values)} than the best trial in its worst fold"}
    return _score(task, runs)


def task_seed(task, job, *more):
    """What Hyperband promotes starts again from the weights it started from."""
    first = int(job["values"].get("tuner/trial_id", job["number"]))
    return _oracles.derived(task.seed, "trial", first, *more) % 2**31


def _train(task, job, hp, fold, train, val, alive):
    """(note of the best epoch, facts of the model) of one training: the trial, or one fold of it."""
    seed = task_seed(task, job, *([] if fold is None else [fold]))
    keras.utils.set_random_seed(seed)
    hp.count = functools.partial(task.steps_of, train=train if fold is None else task.data("train", hp))
    model = task.model(hp)
    batches = batches_of(train, task.batch_of(hp), seed)
    build(model, lambda: example_of(batches))
    facts = measured(model, batches, {*task.limits, *task.objectives})
    over = [f"{name} {facts[name]:,} > {limit:,}" for name, limit in task.limits.items() if facts[name] > limit]
    if over:
        raise TooLargeError("; ".join(over))
    checkpoint = task.checkpoint(job["number"], fold)
    checkpoint.open(job["values"])
    if not checkpoint.note.get("over"):
        _fit(task, hp, model, batches, val, checkpoint, alive)
    return checkpoint.note, facts


def _fit(task, hp, model, batches, val, checkpoint, alive):
    best = Best(checkpoint, *task.watched, inputs=inputs_of(batches), alive=alive, own_fit=task.fits_itself)
    given = list(task.callbacks(hp)) if task.callbacks else []
    scored, size = val, {}
    if isinstance(val, _data.Arrays):
        scored = (val.x, val.y) if val.sample_weight is None else (val.x, val.y, val.sample_weight)
        size = {"validation_batch_size": 256}
    elif val is not None:
        scored = val.dataset()
    result = task.fit(hp, model, batches, validation_data=scored, epochs=task.epochs_of(hp), verbose=0, shuffle=False,
                      callbacks=[*given, best, Restart(checkpoint.folder / "resume")], **size)
    if task.fits_itself:
        logs = own_logs(result, task.watched[0], checkpoint.note)
        if logs is not None:                                         # it scored the model as it is now
            checkpoint.save(model, None, finite(logs), best.inputs)
        checkpoint.finish()


def own_logs(result, objective, note):
    """The logs that a `HyperModel.fit` returned; None if they are those of its callbacks: it returned a History."""
    if isinstance(result, keras.callbacks.History):
        if "logs" in note:
            return None
        result = {name: values[-1] for name, values in result.history.items()}
    if result is None and "logs" in note:
        return None
    logs = plain(result) if isinstance(result, dict) else {} if result is None else plain({objective: result})
    require(objective in logs, "HyperModel.fit must return the objective: a number, a dict of logs or a History",
            objective=objective, returned=sorted(logs) or type(result).__name__, error=KeyError)
    require_finite({objective: logs[objective]})
    return logs


def _score(task, runs):
    notes, facts = [note for note, _ in runs], runs[0][1]
    scores, spread = {}, {}
    for name in task.objectives:
        missing = name not in MEASURED and any(name not in note["logs"] for note in notes)
        require(not missing, "an objective must be among the logs of training", objective=name,
                logs=sorted(notes[0]["logs"]), error=KeyError)
        values = [facts[name]] if name in MEASURED else [note["logs"][name] for note in notes]
        scores[name] = float(np.mean(values))
        if len(values) > 1:
            spread[name] = float(np.std(values, ddof=1))
    require_finite(scores)
    folds = [note["logs"][task.watched[0]] for note in notes] if task.folds else []
    return {"status": "completed", "scores": scores, "spread": spread, "folds": folds, "facts": facts,
            "epoch": notes[0]["epoch"] if not task.folds else None}


def batches_of(train, batch, seed):
    """A data set as it is; arrays in an order that (seed, epoch) decides, which `Resume` brings back."""
    if isinstance(train, _data.Arrays):
        return data.arrays(train.x, train.y, batch, sample_weight=train.sample_weight, seed=seed)
    return train.dataset()


def example_of(batches):
    """The inputs of the first example."""
    element = next(iter(batches.take(1)))
    return keras.tree.map_structure(lambda part: part[:1], element[0] if isinstance(element, tuple) else element)


def measured(model, batches, wanted):
    """{name: number} of what limits and objectives ask about the model, and `params` in any case."""
    facts = {"params": sum(int(np.prod(w.shape)) for w in model.weights)}
    wanted = {name for name in wanted if name in MEASURED} - {"params"}
    if not wanted:
        return facts
    found, uncounted = facts_of(model, example_of(batches), runs=50 if "latency_ms" in wanted else 0)
    facts.update({name: found.get(MEASURED[name]) for name in wanted})
    require(all(facts[name] is not None for name in wanted) and not ("macs" in wanted and uncounted),
            "tune.Search cannot measure what limits and objectives ask of this model", asked=sorted(wanted),
            model=type(model).__name__, not_counted=uncounted,
            do="Leave `macs` out, or use layers without loops of their own.")
    return {name: value if name == "latency_ms" else int(value) for name, value in facts.items()}
