"""The search: its arguments, its course, its results."""

import contextlib
import functools
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Unpack

import pandas as pd

from .. import _data, _files, _plots
from .._check import (
    BATCH_SIZE,
    EPOCHS,
    FLAG,
    PATH,
    VERBOSE,
    DictOf,
    Number,
    OneOf,
    Rule,
    Whole,
    checked,
    refusal,
    require,
    said,
)
from .._keras import fresh_names, keras, seeded, tf
from .._tables import Frame
from .._typing import PathLike, Verbose
from . import _figures, _inputs, _oracles, _processes, _service, _tensorboard, _trial
from ._folds import split
from ._importance import importance_of
from ._oracles import keras_tuner
from ._scores import FACTS, Scorer, measure_of, objectives_of
from ._study import Study, front, is_event, ranked, space_of, trials_of

Objective: TypeAlias = str | Callable[[Any, Any], float]
BUILD = Rule("a function of `hp` or a keras_tuner.HyperModel",
             lambda value: not isinstance(value, keras.Model) and callable(getattr(value, "build", value)))
CALLBACKS = Rule("a function of `hp` that returns new callbacks for each trial", callable)
OBJECTIVE = Rule("a name, (name, 'min' or 'max'), or a list of them, not empty",
                 lambda value: (isinstance(value, str | list | tuple) and bool(value)) or hasattr(value, "direction"))


class Search:
    """Hyperparameter search over what `build(hp)` makes; it survives being killed and reports what it can return.

    Each trial is one line in `directory/record.jsonl` when it starts and one when it ends, checksummed and forced to
    the disk. A search that was killed is started again with the same call: ended trials are known, the algorithm is
    where it was, and the interrupted trial goes on from its last epoch (`callbacks.Resume`). Trial n trains with a seed
    that is a hash of (seed, n), so the resumed study has the trials and scores of one that was never interrupted.

    Rules: the score of a trial is that of its best epoch, whose weights are kept. A score that is not finite fails the
    trial. A model that is rejected before training does not count. With `folds` or `executions` the score is the mean
    over them; a trial that in two folds or more is worse than the best trial in its worst fold is stopped.

    `build` may choose `batch_size` and `epochs` through `hp` (parameters of these names are what `run` trains with),
    and `train` may be a function of `hp` (augmentation). `hp.steps()` are the optimizer steps of the trial.

    Args:
      build: `hp -> compiled model`, `hp` a keras_tuner.HyperParameters; or a keras_tuner.HyperModel.
      objective: name in the logs of training (`"val_accuracy"`), or `(name, "min" or "max")`; or `"val_"` and a measure
        of `report.compare` (`"val_f1_macro"`; of several outputs `"val_<output>_f1_macro"`), or `(function of (y,
        outputs), "min" or "max")`, on the validation data after each epoch, without weights; or a fact of the model:
        "params", "macs", "bytes", "gzip", "latency_ms". A list of them asks for a Pareto front; then the first one
        that is no fact chooses the epoch.
      algorithm: "tpe" (Optuna), "random", "grid", "bayesian" or "hyperband" (KerasTuner); for several objectives "tpe",
        "random" or "grid". Hyperband trains what it promotes anew with more epochs. "tpe+median", "tpe+asha",
        "random+median" and "random+asha" stop bad trials early, by Optuna's median rule or successive halving.
      max_trials: trials that count, >= 1. May be raised later: the study goes on.
      directory: of this study alone; on several machines one that all of them see.
      limits: {fact of the model: the most that is allowed}, checked before training; {"val_" and a measure: the most,
        or where more is better the least}, in the best epoch.
      folds: None, or K >= 2 for cross-validation inside each trial; then `run` takes arrays and no `val`.
      seed: whole number >= 0; other seeds share no points.
      keep_weights: of how many trials the weights stay on the disk, >= 1.

    Attributes:
      frame: pandas table, a line for each trial; readable while the search runs.

    Raises:
      ValueError: an argument is out of range, or `run` finds another study in the directory.
      ImportError: "tpe" without Optuna, "bayesian" without scikit-learn.
      RuntimeError: all trials failed (with the first error), or no worker is left.

    Example:
      >>> import tempfile
      >>> def build(hp):
      ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      ...     model.compile(keras.optimizers.SGD(hp.Float("rate", 1e-3, 1e-1, sampling="log")), "mse")
      ...     return model
      >>> x = keras.random.normal((64, 2), seed=0).numpy()
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     search = Search(build, "val_loss", algorithm="random", max_trials=2, directory=folder)
      ...     search = search.run((x, x[:, :1]), (x, x[:, :1]), epochs=1, verbose=0)
      ...     print(search.frame.status.tolist(), search.best().count_params())
      ['completed', 'completed'] 3
    """

    @checked(build=BUILD, objective=OBJECTIVE, algorithm=OneOf(*_oracles.ALGORITHMS), max_trials=Whole(low=1),
             directory=PATH, limits=DictOf(Number(above=0)), folds=Whole(low=2), seed=Whole(low=0),
             keep_weights=Whole(low=1))
    def __init__(self, build: Callable[[Any], keras.Model] | keras_tuner.HyperModel,
                 objective: str | tuple[Objective, str] | Sequence[str | tuple[Objective, str]], *,
                 algorithm: str = "tpe", max_trials: int, directory: PathLike, limits: dict[str, float] | None = None,
                 folds: int | None = None, seed: int = 0, keep_weights: int = 3):
        self.build: Callable[[Any], keras.Model] | keras_tuner.HyperModel = build
        self.directory: pathlib.Path = pathlib.Path(directory).resolve()
        self.objectives: dict[str, str]
        self.objectives, self._functions = objectives_of(objective)
        self.algorithm: str = algorithm
        self.limits: dict[str, float] = limits or {}
        self.max_trials: int = max_trials
        self.folds: int | None = folds
        self.seed: int = seed
        self.keep_weights: int = keep_weights
        require(len(self.objectives) == 1 or algorithm in ("tpe", "random", "grid"),
                "several objectives need algorithm 'tpe', 'random' or 'grid'", algorithm=algorithm,
                objectives=list(self.objectives))
        require(any(name not in FACTS for name in self.objectives),
                "one objective must be a log of training, which chooses the epoch", objective=objective,
                do='Pass a list such as ["val_accuracy", "bytes"].')
        require(all(name in FACTS or measure_of(name) for name in self.limits),
                f"`limits` knows {', '.join(FACTS)}, and measures of report.compare with val_ before", limits=limits)
        require(not folds or algorithm not in _oracles.PRUNED, "with `folds` no algorithm prunes", algorithm=algorithm,
                do="Folds stop bad trials themselves.")
        if algorithm.startswith("tpe") or algorithm in _oracles.PRUNED:
            _oracles.optuna_or_refuse()
        if algorithm == "bayesian":
            _oracles.scikit_or_refuse()

    @checked(epochs=EPOCHS, batch_size=BATCH_SIZE, executions=Whole(low=1), callbacks=CALLBACKS, logs=PATH,
             isolate=FLAG, verbose=VERBOSE)
    def run(self, train: Any, val: Any = None, *, epochs: int = 10, batch_size: int = 32, executions: int = 1,
            callbacks: Callable[[Any], list[keras.callbacks.Callback]] | None = None, logs: PathLike | None = None,
            isolate: bool = False, verbose: Verbose = "auto", **fit: Unpack[_inputs.FitArguments]) -> "Search":
        """Searches until `max_trials` have ended; goes on where an earlier call stopped.

        In a process that `python -m tfopt.distribute --search` started as a worker, this trains what the chief lends
        and then ends the process: what follows in the script is the chief's.

        Args:
          train: `(x, y)` or `(x, y, sample_weight)` arrays, shuffled by (seed, epoch); or a tf.data.Dataset or
            keras.utils.PyDataset of batches, which is taken as it is and should yield the same each time; or `hp ->`
            one of them, or `hp -> generator` of batches, called anew for each epoch.
          val: the same for validation; None only if the objective needs none, and with `folds` or `validation_split`.
          epochs: of a trial, unless `hp` has an "epochs"; for Hyperband the most.
          batch_size: of arrays, unless `hp` has a "batch_size".
          executions: how often a trial is trained, >= 1, with seeds of their own, the first with that of a single one;
            scores are means, with their standard deviation in `frame`.
          callbacks: `hp -> list of new Keras callbacks`, such as early stopping.
          logs: folder of this study alone, for TensorBoard's HParams: values and scores of the trials that ended.
          isolate: each trial in a process of its own that runs this script up to here: memory comes back, a crash is
            one failed trial; costs an import of TensorFlow a trial.
          verbose: 0 is silent, all others write a line for each trial.
          **fit: of Keras' `fit`: `validation_split`, the share of arrays, their last rows, to validate on;
            `class_weight`, {class: weight}; `steps_per_epoch`, for data without an end (of a generator the first
            batches of each pass).
        Returns:
          The search itself.
        Raises:
          ValueError, RuntimeError: see the class.
        """
        known = [name for name in inspect.signature(self.run).parameters if name != "fit"]
        given = _inputs.fit_arguments(fit, known)
        self._require_data(train, val, given)
        require(executions == 1 or self.algorithm not in _oracles.PRUNED, "with `executions` no algorithm prunes",
                algorithm=self.algorithm, executions=executions)
        require(executions == 1 or not self.folds, "a trial has `folds` or `executions`", folds=self.folds,
                executions=executions)
        task = self._task(train=train, val=val, epochs=epochs, batch_size=batch_size, executions=executions,
                          callbacks=callbacks, fit_arguments=given)
        role, child_of = _service.role(), os.environ.get(_processes.ISOLATED)
        if child_of not in (None, str(self.directory)):
            _processes.require_finished(self.directory, self._trials(), child_of)
            return self
        require(not (isolate and role and not child_of), "`isolate=True` is for a search in one process",
                KERASTUNER_TUNER_ID=os.environ.get("KERASTUNER_TUNER_ID"), do="Workers are processes of their own.")
        if role and "chief" not in str(role[0]):
            client = _service.Client(role[1], role[0], self.seed, functools.partial(_service.token_in, self.directory))
            with _trial.frozen():
                _service.work(client, functools.partial(_trial.run, task), only_one=child_of is not None)
            sys.exit(0)
        identity = {"version": 1, "algorithm": self.algorithm, "limits": self.limits, "folds": self.folds,
                    "objectives": [list(item) for item in self.objectives.items()], "seed": self.seed,
                    "epochs": task.epochs, "batch_size": task.batch_size, **_identity_of(task)}
        study = Study(self.directory, identity, self.objectives, max_trials=self.max_trials,
                      keep_weights=self.keep_weights, space=lambda: first_look(task))
        with contextlib.ExitStack() as stack:
            stack.callback(study.record.close)
            heard = [functools.partial(_processes.say, study)] if verbose else []
            if logs is not None:
                heard.append(_tensorboard.Board(logs, study).add)
            study.heard = lambda trial: [hear(trial) for hear in heard]
            if role:
                _processes.distributed(study, self.directory, role[1])
            elif isolate:
                _processes.isolated(study, self.directory)
            else:
                _processes.alone(study, task)
            study.finish()
        return self

    @property
    def frame(self) -> pd.DataFrame:
        """A line for each trial: status, scores, values, facts of its model, epoch, seconds, message.

        A value is missing where the conditions of its parameter did not hold.
        """
        objectives = list(self.objectives)
        rows = [{"trial": trial.number, "status": trial.status, **{name: trial.scores.get(name) for name in objectives},
                 **({f"{name} ±": value for name, value in trial.spread.items()}), **trial.values,
                 **{name: value for name, value in trial.facts.items() if name not in objectives},
                 "epoch": trial.epoch, "seconds": trial.seconds, "message": trial.message} for trial in self._trials()]
        columns = ["trial", "status", *objectives, "message"]
        return (Frame(rows) if rows else Frame(columns=columns)).set_index("trial")

    @checked(rank=Whole(low=0))
    def best(self, rank: int = 0) -> Any:
        """Builds the model of a trial and loads the weights whose score was reported.

        Args:
          rank: 0 for the best trial, 1 for the next; below `keep_weights`. With several objectives the front comes
            first, in the order of the first objective.
        Returns:
          The compiled model, of several `executions` that of the best one; with `folds` the list of the models of the
          folds, whose mean was reported (`average.outputs` makes one of them).
        Raises:
          ValueError: there is no such trial, or its file is not as it was written.
        """
        order = self._ranked()
        require(rank < min(len(order), self.keep_weights),
                "`rank` must name a trial that was kept", rank=rank, completed=len(order),
                keep_weights=self.keep_weights)
        trial, task = order[rank], self._task()
        if self.folds:
            return [task.best(trial, run) for run in task.runs]
        scores = [value if self.objectives[task.watched[0]] == "max" else -value for value in trial.runs]
        best = scores.index(max(scores)) if scores else 0
        return task.best(trial, f"execution-{best}" if best else None)

    def pareto(self) -> pd.DataFrame:
        """The lines of `frame` that no other beats: as good in all objectives and better in one."""
        best = front(self._ranked(), self.objectives)
        return self.frame.loc[[trial.number for trial in best]]

    def importance(self) -> pd.DataFrame:
        """How much each parameter has to do with a trial being among the best: Optuna's PED-ANOVA.

        The best are a tenth of the completed trials, at least five and at most half; with fewer than some thirty trials
        the shares say little. A parameter that only some trials had counts in those.

        Returns:
          A pandas table, a line for each parameter: its share for each objective, which add up to 1 (0 if all scores
          are the same), and in how many trials it was. The largest of the first objective comes first.
        Raises:
          ValueError: fewer than two trials have been completed.
        Reference:
          Watanabe et al., PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary subspaces, 2023,
          https://arxiv.org/abs/2304.10255; for conditional parameters https://arxiv.org/abs/2601.20800
        """
        return importance_of(self._trials(), space_of(self._events()), self.objectives)

    @checked(path=PATH)
    def plot(self, path: PathLike | None = None) -> _plots.Figure:
        """Draws the scores in order, what they depend on, all values of each trial, and the Pareto front.

        Args:
          path: where the picture is saved; None saves nothing.
        Returns:
          The matplotlib Figure.
        Raises:
          ValueError: no trial has been completed yet.
        """
        return _plots.save(_figures.draw(self._trials(), space_of(self._events()), self.objectives), path)

    def __repr__(self) -> str:
        trials = self._trials()
        done = sum(trial.status == "completed" for trial in trials)
        return (f"Search({' and '.join(f'{way} {name}' for name, way in self.objectives.items())}, {self.algorithm}, "
                f"{done} of {self.max_trials} trials completed, {str(self.directory)!r})")

    def _task(self, **given):
        return _trial.Task(self.build, self.objectives, self.algorithm, self._functions, self.limits, self.folds,
                           self.seed, self.directory, **given)

    def _events(self):
        return _files.read_lines(self.directory / "record.jsonl", is_event)[0]

    def _trials(self):
        return list(trials_of(self._events()).values())

    def _ranked(self):
        return ranked({trial.number: trial for trial in self._trials()}, self.objectives)

    def _require_data(self, train, val, given):
        share = given.get("validation_split")
        needed = [name for name in [*self.objectives, *self.limits] if name.startswith("val_")]
        for name, value in (("folds", self.folds), ("validation_split", share)):
            require(not value or val is None, f"with `{name}` a search takes no `val`", val=type(val).__name__,
                    do="Leave it out: the rows for validation come from `train`.")
        require(not self.folds or not share, "a search has `folds` or a `validation_split`", folds=self.folds,
                validation_split=share)
        require(self.folds or share or val is not None or not needed, "this objective needs validation data",
                objective=needed, do="Pass `val`, or `folds`.")
        for name, data in (("train", train), ("val", val)):
            if data is None or _inputs.is_function(data):
                continue
            found = _data.read(data, name=name, endless=name == "train" and "steps_per_epoch" in given)
            arrays = isinstance(found, _data.Arrays)
            require(not self.folds or (arrays and found.y is not None),
                    "with `folds` a search takes arrays (x, y)", train=type(train).__name__,
                    do="Pass arrays: the rows are dealt out to the folds.")
            require(name != "train" or "class_weight" not in given or not arrays or found.sample_weight is None,
                    "Keras takes `class_weight` or a sample_weight, not both", class_weight=given.get("class_weight"),
                    do="Multiply them into the sample_weight.")
            if name == "train" and share:
                _inputs.split_off(found, share)


def _identity_of(task):
    """What else belongs to a study, as JSON; what is left out does not stand in it."""
    given = dict(task.fit_arguments)
    if "class_weight" in given:
        given["class_weight"] = {str(label): weight for label, weight in given["class_weight"].items()}
    return {**({"executions": task.executions} if task.executions > 1 else {}),
            **({"fit_arguments": given} if given else {})}


def first_look(task):
    """The space, found by building; before any trial is spent, one step shows whether the objective exists."""
    with seeded(task.seed % 2**31), fresh_names():
        built = []

        def build(hp):
            hp.count = lambda hp: 1000
            if _inputs.is_function(task.train):
                task.train(hp)                                       # may choose too
            built.append((hp, task.model(hp)))

        space = _oracles.explore(build)
        if not task.fits_itself:
            require_objective(task, *built[0])
    return space


def require_objective(task, hp, model):
    hp.count = functools.partial(task.steps_of, train=task.parts(hp)[0])
    train, val = task.parts(hp, model)
    batch = _inputs.batches_of(train, task.batch_of(hp), 0).take(1)
    model.run_eagerly = True                                         # one step is not worth a graph
    try:
        logs = list(model.fit(batch, epochs=1, verbose=0, shuffle=False,
                              class_weight=task.fit_arguments.get("class_weight")).history)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise refusal("the model must train on `train`", fit=said(error),
                      do="`model.fit` must take the data.") from error
    if task.folds:
        val = train.rows(split(train.y, task.folds, task.seed)[0][1])
    names = [*logs, *(f"val_{name}" for name in logs if val is not None)]
    missing = [name for name in {**task.objectives, **task.limits} if name not in names and name not in FACTS]
    if missing and task.val is not None:
        names += [f"val_{name}" for name in model.evaluate(batch, verbose=0, return_dict=True)]
        missing = [name for name in missing if name not in names]
    if computed := {name: task.wanted[name] for name in missing if name in task.wanted}:
        Scorer(computed, val)(model)                                 # refuses what does not fit the model or the data
    missing = [name for name in missing if name not in computed]
    require(not missing, "tune.Search: an objective must be among the logs of training", objective=missing, logs=names,
            measured=list(FACTS), do="Compile the model with that metric, or choose one of these, or a measure of "
                                     "report.compare with val_ before it.")
