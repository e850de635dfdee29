"""One trial: build, measure, train, score. It can be killed anywhere and goes on where it was."""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import time
import traceback

import numpy as np

from .. import _files
from .._check import require
from .._keras import Fit, fresh_names, keras, seeded
from ..callbacks import Resume
from ..report._measure import facts_of
from . import _inputs, _oracles
from ._checkpoint import Best, Checkpoint, build, finite, inputs_of, plain, require_finite
from ._folds import is_bad, require_model, split
from ._pruning import Pruner
from ._scores import FACTS, Measured, Scorer, beyond, wanted
from ._study import StorageError


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
    """What all trials of a search share; without data for those who only ask for models."""

    build: object
    objectives: dict
    algorithm: str
    functions: dict                                      # {objective: function of (y, outputs)}
    limits: dict
    folds: int | None
    seed: int
    directory: pathlib.Path
    train: object = None
    val: object = None
    epochs: int = 1
    batch_size: int = 1
    executions: int = 1
    callbacks: object = None
    fit_arguments: dict = dataclasses.field(default_factory=dict)        # see `_inputs.FitArguments`

    @functools.cached_property
    def watched(self):
        """The first objective that training reports: it chooses the epoch."""
        return next((name, way) for name, way in self.objectives.items() if name not in FACTS)

    @functools.cached_property
    def wanted(self):
        """{log: what computes it, if training does not report it}."""
        return wanted([*self.objectives, *self.limits], self.functions)

    def model(self, hp):
        build = self.build.build if hasattr(self.build, "build") else self.build
        return require_model(build(hp), "tune.Search")

    @property
    def pruner(self):
        """"median", "asha" or ""."""
        return self.algorithm.partition("+")[2]

    @property
    def fits_itself(self):
        """Is `build` a HyperModel with a `fit` of its own, whose logs only it knows."""
        return getattr(type(self.build), "fit", None) not in (None, _oracles.keras_tuner.HyperModel.fit)

    def fit(self, hp, model, *args, **kwargs):
        fit = functools.partial(self.build.fit, hp, model) if self.fits_itself else model.fit
        return fit(*args, **kwargs)

    def parts(self, hp, model=None):
        """(training data, validation data or None) for these values; `model`: whose inputs they must fit."""
        endless, share = "steps_per_epoch" in self.fit_arguments, self.fit_arguments.get("validation_split")
        train = _inputs.read(self.train, hp, model, "train", endless=endless)
        if share:
            return _inputs.split_off(train, share)
        return train, _inputs.read(self.val, hp, model, "val", endless=False)

    @property
    def runs(self):
        """Names of the folders of the trainings that make a trial; None stands for the trial's own."""
        if self.folds:
            return [f"fold-{fold}" for fold in range(self.folds)]
        return [None, *(f"execution-{number}" for number in range(1, self.executions))]

    def checkpoint(self, number, run=None):
        """Where the weights of one training of a trial are."""
        folder, owner = f"trials/{number:06d}", f"tune.Search(seed={self.seed}), trial {number}"
        if run is not None:
            folder, owner = f"{folder}/{run}", f"{owner}, {run.replace('-', ' ')}"
        return Checkpoint(_files.inside(self.directory, folder), owner)

    def best(self, trial, run):
        """The model whose score was reported, with the weights of its best epoch."""
        checkpoint = self.checkpoint(trial.number, run)
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
        batches = self.fit_arguments.get("steps_per_epoch") or train.count(self.batch_of(hp))
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
    given, val = task.parts(hp)
    if task.folds is None:
        return _score(task, [_train(task, job, hp, run, given, val, alive) for run in task.runs])
    runs = []
    for run, parts in zip(task.runs, split(given.y, task.folds, task.seed), strict=True):
        train, val = map(given.rows, parts)
        runs.append(_train(task, job, hp, run, train, val, alive))
        values = [note["logs"][task.watched[0]] for note, _ in runs]
        if len(values) < task.folds and is_bad(values, job["best_folds"], task.watched[1]):
            return {**_score(task, runs), "status": "stopped",
                    "message": f"worse in folds 1 to {len(values)} than the best trial in its worst fold"}
    return _score(task, runs)


def task_seed(task, job, run=None):
    """What Hyperband promotes starts again from the weights it started from."""
    first = int(job["values"].get("tuner/trial_id", job["number"]))
    kind, _, number = (run or "").partition("-")
    more = {"": (), "fold": (int(number or 0),), "execution": (run,)}[kind]
    return _oracles.derived(task.seed, "trial", first, *more) % 2**31


def _train(task, job, hp, run, train, val, alive):
    """(note of the best epoch, facts of the model) of one training: the trial, a fold or an execution of it."""
    seed = task_seed(task, job, run)
    keras.utils.set_random_seed(seed)
    hp.count = functools.partial(task.steps_of, train=task.parts(hp)[0] if task.folds else train)
    model = task.model(hp)
    batches = _inputs.batches_of(train, task.batch_of(hp), seed)
    build(model, lambda: _inputs.example_of(batches))
    facts = measured(model, batches, {*task.limits, *task.objectives})
    if over := beyond(task.limits, facts):
        raise TooLargeError("; ".join(over))
    checkpoint = task.checkpoint(job["number"], run)
    checkpoint.open(job["values"])
    if not checkpoint.note.get("over"):
        pruner = Pruner(task.pruner, task.watched[1], job["curves"]) if task.pruner else None
        best = Best(checkpoint, *task.watched, inputs=inputs_of(batches), alive=alive, pruner=pruner,
                    own_fit=task.fits_itself)
        _fit(task, hp, model, batches, val, best)
    return checkpoint.note, facts


def _fit(task, hp, model, batches, val, best):
    given = list(task.callbacks(hp)) if task.callbacks else []
    if task.wanted and val is not None:
        given.insert(0, Measured(Scorer(task.wanted, val)))
    more = {name: value for name, value in task.fit_arguments.items() if name != "validation_split"}
    result = task.fit(hp, model, batches, epochs=task.epochs_of(hp), verbose=0, shuffle=False, callbacks=[
        *given, best, Restart(best.checkpoint.folder / "resume")], **_inputs.scored_on(val), **more)
    if task.fits_itself:
        logs = own_logs(result, task.watched[0], best.checkpoint.note)
        if logs is not None:                                         # it scored the model as it is now
            best.checkpoint.save(model, None, finite(logs), best.inputs)
        best.checkpoint.finish(**best.course)


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
    found = {name: _values(name, notes, facts) for name in [*task.objectives, *task.limits]}
    scores = {name: float(np.mean(values)) for name, values in found.items()}
    spread = {name: float(np.std(found[name], ddof=1)) for name in task.objectives if len(found[name]) > 1}
    require_finite(scores)
    over = beyond({name: limit for name, limit in task.limits.items() if name not in FACTS}, scores)
    status, message = ("rejected" if over else "completed"), "; ".join(over)
    if notes[0].get("pruned"):
        status, message = "stopped", f"{task.pruner}: too bad after epoch {len(notes[0]['curve'])}"
    return {"status": status, "message": message, "spread": spread, "curve": notes[0].get("curve", []),
            "scores": {name: scores[name] for name in task.objectives}, "epoch": notes[0]["epoch"] if len(notes) == 1
            else None, "runs": found[task.watched[0]] if len(notes) > 1 else [],
            "facts": {**facts, **{name: scores[name] for name in task.limits if name not in FACTS}}}


def _values(name, notes, facts):
    """What a score is the mean of: one number a training, or a fact of the model."""
    if name in FACTS:
        return [facts[name]]
    missing = any(name not in note["logs"] for note in notes)
    require(not missing, "an objective must be among the logs of training", objective=name,
            logs=sorted(notes[0]["logs"]), error=KeyError)
    return [note["logs"][name] for note in notes]


def measured(model, batches, wanted):
    """{name: number} of what limits and objectives ask about the model, and `params` in any case."""
    facts = {"params": sum(int(np.prod(w.shape)) for w in model.weights)}
    wanted = {name for name in wanted if name in FACTS} - {"params"}
    if not wanted:
        return facts
    found, uncounted = facts_of(model, _inputs.example_of(batches), runs=50 if "latency_ms" in wanted else 0)
    facts.update({name: found.get(FACTS[name]) for name in wanted})
    require(all(facts[name] is not None for name in wanted) and not ("macs" in wanted and uncounted),
            "tune.Search cannot measure what limits and objectives ask of this model", asked=sorted(wanted),
            model=type(model).__name__, not_counted=uncounted,
            do="Leave `macs` out, or use layers without loops of their own.")
    return {name: value if name == "latency_ms" else int(value) for name, value in facts.items()}
