"""A study: what the record tells, who is next, which trials are the best."""

import dataclasses
import itertools
import math
import pathlib
import shutil
import warnings

from .. import _files, _plots
from .._check import require
from . import _oracles

IN_A_ROW = 100                                          # rejected draws after which there is nothing to be found


@dataclasses.dataclass
class Trial:
    """One trial, as the record tells it."""

    number: int
    values: dict
    status: str = "running"                             # completed, stopped (bad folds), failed, rejected (limits)
    scores: dict = dataclasses.field(default_factory=dict)       # {objective: value}
    spread: dict = dataclasses.field(default_factory=dict)       # {objective: standard deviation over the folds}
    folds: list = dataclasses.field(default_factory=list)        # the first objective, fold by fold
    facts: dict = dataclasses.field(default_factory=dict)        # what was measured of the model
    epoch: int | None = None                            # of the best score, from 0
    seconds: float = 0.
    message: str = ""


def trials_of(events):
    """{number: Trial} of a record. An end without a start (a line was lost) brings its values along."""
    trials, fields = {}, {field.name for field in dataclasses.fields(Trial)}
    for event in events:
        if event["kind"] == "start" and event["number"] not in trials:
            trials[event["number"]] = Trial(event["number"], event["values"])
        elif event["kind"] == "end" and trials.get(event["number"], Trial(-1, {})).status == "running":
            trials[event["number"]] = Trial(**{key: value for key, value in event.items() if key in fields})
    return dict(sorted(trials.items()))


def ranked(trials, objectives):
    """The completed trials, the best first: by the first objective, or front by front if there are several."""
    done = [trial for trial in trials.values() if trial.status == "completed"]
    first = sorted(done, key=lambda trial: (costs(trial, objectives)[0], trial.number))
    if len(objectives) == 1:
        return first
    order = []
    while first:
        best = front(first, objectives)
        order += best
        first = [trial for trial in first if trial not in best]
    return order


def front(trials, objectives):
    """Those that no other beats: as good in all objectives and better in one."""
    return [trials[i] for i in _plots.front([costs(trial, objectives) for trial in trials])] if trials else []


def costs(trial, objectives):
    """The scores as a tuple of which less is better."""
    return tuple(-trial.scores[name] if way == "max" else trial.scores[name] for name, way in objectives.items())


class Study:
    """The writer of a record, and the oracle that the record has told of everything.

    Args:
      directory: of the study.
      identity: dict of what makes two studies the same; compared with the record's.
      objectives: {name: "min" or "max"}.
      max_trials: trials that count, rejected ones do not.
      keep: of how many trials the weights are kept.
      space: `() -> HyperParameters`, called if the record has none.
    """

    def __init__(self, directory, identity, objectives, *, max_trials, keep, space):
        self.directory = pathlib.Path(directory)
        self.objectives, self.max_trials, self.keep = objectives, max_trials, keep
        path = self.directory / "record.jsonl"
        lost = (self.directory / "trials").is_dir() and (not path.exists() or path.stat().st_size == 0)
        require(not lost, "a study with trials needs its record", directory=str(self.directory),
                do="The file record.jsonl is gone or empty: put it back, or choose another directory.")
        self.record = _files.Lines(path, f"tune.Search: a study has one writer, and another process is running the one "
                                         f"in {self.directory}. Wait for it, or start a chief and workers (`python -m "
                                         f"tfopt.distribute --search`).")
        try:
            self._replay(identity, space)
        except BaseException:
            self.record.close()
            raise

    def _replay(self, identity, space):
        events = list(self.record.events)
        known = [event for event in events if event["kind"] == "study"]
        for event in known[:1]:
            other = {key: (event.get(key), value) for key, value in identity.items() if event.get(key) != value}
            require(not other, "a directory holds one study, and this is another one's", directory=str(self.directory),
                    **{key: f"{now!r}, recorded {then!r}" for key, (then, now) in other.items()},
                    do="Choose another directory, or ask for what is recorded.")
        if not known:
            self.record.append({"kind": "study", **identity})
        self.oracle = _oracles.oracle(identity["algorithm"], self.objectives, identity["seed"], identity["epochs"])
        spaces = [event["space"] for event in events if event["kind"] == "space"]
        if not spaces:
            spaces = [_oracles.space_config(space())]
            self.record.append({"kind": "space", "space": spaces[0]})
        self.oracle.update_space(_oracles.space_from(spaces[0]))
        self.trials, final = {}, trials_of(events)
        for event in events:
            number = event.get("number")
            if event["kind"] == "start" and number not in self.trials:
                self._start(number, event["values"])
            elif event["kind"] == "end" and (number not in self.trials or self.trials[number].status == "running"):
                if number not in self.trials:
                    self._start(number, event["values"])
                self._tell(final[number], event.get("space", []))
        self.waiting = [trial for trial in self.trials.values() if trial.status == "running"]
        self.exhausted = False
        self.clean()

    @property
    def running(self):
        return [trial for trial in self.trials.values() if trial.status == "running"]

    @property
    def counted(self):
        return sum(trial.status != "rejected" for trial in self.trials.values())

    def next(self):
        """The trial to run now, "wait" for another one's end, or None: no more are started."""
        if self.waiting:
            return self.waiting.pop(0)
        if self.exhausted or self.counted >= self.max_trials or self._only_rejected():
            self.exhausted = True
            return None
        number = max(self.trials, default=-1) + 1
        values = self.oracle.draw(number)
        if isinstance(values, str):
            self.exhausted = values == "STOPPED" or not self.running
            return None if self.exhausted else "wait"
        self.record.append({"kind": "start", "number": number, "values": values})
        self.trials[number] = Trial(number, values)
        return self.trials[number]

    def end(self, number, result):
        """Writes the result of a trial: a dict of the fields of `Trial`, and `space`. The first result is the one."""
        if self.trials[number].status != "running":
            return
        space = self.oracle.hyperparameters
        new = [config for config in result.pop("space", [])
               if config not in _oracles.space_config(space)]
        trial = dataclasses.replace(self.trials[number], **result)
        self.record.append({"kind": "end", **dataclasses.asdict(trial), "space": new})
        self._tell(trial, new)
        self.clean()
        self.heard(trial)

    def heard(self, trial):
        """Called with each trial that ends."""

    def best_folds(self):
        """The folds of the best trial so far."""
        order = ranked(self.trials, self.objectives)
        return order[0].folds if order else []

    def clean(self):
        """Leaves on the disk what running trials need and the weights of the best."""
        keep = {trial.number for trial in self.running}
        keep |= {trial.number for trial in ranked(self.trials, self.objectives)[:self.keep]}
        for folder in (self.directory / "trials").glob("*"):
            if folder.name.isdigit() and int(folder.name) not in keep:
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name.isdigit() and self.trials[int(folder.name)].status != "running":
                for state in folder.rglob("resume"):
                    shutil.rmtree(state, ignore_errors=True)

    def finish(self):
        """Refuses a study of failures."""
        trials = list(self.trials.values())
        failed = [trial for trial in trials if trial.status == "failed"]
        if failed and all(trial.status in ("failed", "rejected") for trial in trials):
            raise RuntimeError(f"All {len(failed)} trials of the search failed. The first error: {failed[0].message}")
        require(any(trial.status == "completed" for trial in trials) or not trials,
                f"`limits` rejected each of {len(trials)} models", message=trials[0].message if trials else "",
                do="Raise the limits, or make the space smaller.", error=RuntimeError)
        if self._only_rejected():
            warnings.warn(f"The search ended after {self.counted} of {self.max_trials} trials: `limits` rejected "
                          f"{IN_A_ROW} models in a row.", stacklevel=4)

    def _only_rejected(self):
        last = list(itertools.islice(reversed(self.trials.values()), IN_A_ROW))
        return len(last) == IN_A_ROW and all(trial.status == "rejected" for trial in last)

    def _start(self, number, values):
        self.oracle.draw(number, values)
        self.trials[number] = Trial(number, values)

    def _tell(self, trial, new):
        self.trials[trial.number] = trial
        space = _oracles.space_from([*_oracles.space_config(self.oracle.hyperparameters), *new], trial.values)
        self.oracle.update_space(space)
        scored = trial.status in ("completed", "stopped")
        self.oracle.tell(trial.number, [trial.scores[name] for name in self.objectives] if scored else None, space)


def require_finite(scores):
    """Refuses scores that are not numbers: they must not win."""
    wrong = {name: value for name, value in scores.items() if not math.isfinite(value)}
    require(not wrong, "a score must be finite", **wrong)
