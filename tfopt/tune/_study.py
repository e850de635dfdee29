"""A study: what the record tells, who is next, which trials are the best."""

import contextlib
import dataclasses
import itertools
import pathlib
import warnings

from .. import _files, _plots
from .._check import require
from . import _oracles

STATUSES = ("completed", "stopped", "failed", "rejected")      # of a trial that ended
# What a trial's result may hold.
RESULT = {"status": str, "scores": dict, "spread": dict, "runs": list, "curve": list, "facts": dict,
          "epoch": int | None, "seconds": int | float, "message": str, "values": dict, "space": list}
IN_A_ROW = 100                                          # rejected draws after which there is nothing to be found


class StorageError(OSError):
    """The study's directory is gone or cannot be written: no trial is to blame, and the search stops."""


@dataclasses.dataclass
class Trial:
    """One trial, as the record tells it."""

    number: int
    values: dict
    status: str = "running"                             # completed, stopped (early), failed, rejected (limits)
    scores: dict = dataclasses.field(default_factory=dict)       # {objective: value}
    spread: dict = dataclasses.field(default_factory=dict)       # {objective: standard deviation over the runs}
    runs: list = dataclasses.field(default_factory=list)         # the first objective, in each fold or execution
    curve: list = dataclasses.field(default_factory=list)        # of a search that prunes: the same in each epoch
    facts: dict = dataclasses.field(default_factory=dict)        # what was measured of the model
    epoch: int | None = None                            # of the best score, from 0
    seconds: float = 0.
    message: str = ""


def is_event(event):
    """Is it one that a study records."""
    kind, number = event.get("kind"), event.get("number")
    if kind == "space":
        return isinstance(event.get("space"), list)
    sound = type(number) is int and number >= 0 and isinstance(event.get("values"), dict)
    if kind == "end":
        scores = event.get("scores")
        sound = sound and event.get("status") in STATUSES and isinstance(scores, dict) and all(
            isinstance(event[name], type_) for name, type_ in RESULT.items() if name in event) and all(
            type(score) in (int, float) for score in scores.values())
    return kind == "study" or (kind in ("start", "end") and sound)


def trials_of(events):
    """{number: Trial} of a record. An end without a start (a line was lost) brings its values along."""
    trials, fields = {}, {field.name for field in dataclasses.fields(Trial)}
    for event in events:
        if event["kind"] == "start" and event["number"] not in trials:
            trials[event["number"]] = Trial(event["number"], event["values"])
        elif event["kind"] == "end" and trials.get(event["number"], Trial(-1, {})).status == "running":
            trials[event["number"]] = Trial(**{key: value for key, value in event.items() if key in fields})
    return dict(sorted(trials.items()))


def space_of(events):
    """The hyper-parameters that a record knows, those that trials came upon included."""
    configs = [config for event in events if event["kind"] in ("space", "end") for config in event.get("space", [])]
    return _oracles.space_from(configs)


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
      keep_weights: of how many trials the weights are kept.
      space: `() -> HyperParameters`, called if the record has none.
    """

    def __init__(self, directory, identity, objectives, *, max_trials, keep_weights, space):
        self.directory = pathlib.Path(directory)
        self.objectives, self.max_trials, self.keep_weights = objectives, max_trials, keep_weights
        path = self.directory / "record.jsonl"
        lost = (self.directory / "trials").is_dir() and (not path.exists() or path.stat().st_size == 0)
        require(not lost, "a study with trials needs its record", directory=str(self.directory),
                do="The file record.jsonl is gone or empty: put it back, or choose another directory.")
        self.record = _files.Lines(path, f"tune.Search: a study has one writer, and another process is running the one "
                                         f"in {self.directory}. Wait for it, or start a chief and workers (`python -m "
                                         f"tfopt.distribute --search`).", is_event)
        try:
            self._replay(identity, space)
        except BaseException:
            self.record.close()
            raise

    def _replay(self, identity, space):
        """Brings the oracle to where the record ends."""
        events = list(self.record.events)
        self._require_same(identity, next((event for event in events if event["kind"] == "study"), None))
        self.oracle = _oracles.oracle(identity["algorithm"], self.objectives, identity["seed"], identity["epochs"])
        self.oracle.update_space(_oracles.space_from(self._space(events, space)))
        self.trials, final = {}, trials_of(events)
        for event in events:
            if event["kind"] in ("start", "end"):
                self._repeat(event, final)
        self.waiting, self.exhausted = self.running, False
        self.clean()

    def _require_same(self, identity, recorded):
        """Refuses the directory of another study; begins a new record."""
        if recorded is None:
            self._append({"kind": "study", **identity})
            return
        other = {key: f"{identity.get(key)!r}, recorded {recorded.get(key)!r}" for key in {**recorded, **identity}
                 if key != "kind" and recorded.get(key) != identity.get(key)}
        require(not other, "tune.Search: a directory holds one study, and this is another one's",
                directory=str(self.directory), **other, do="Choose another directory, or ask for what is recorded.")

    def _space(self, events, explore):
        """The space of the record; explored if it is not there."""
        known = next((event["space"] for event in events if event["kind"] == "space"), None)
        if known is None:
            known = _oracles.space_config(explore())
            self._append({"kind": "space", "space": known})
        return known

    def _repeat(self, event, final):
        """One recorded event. An end without a start (its line was lost) brings the values along."""
        number = event["number"]
        if number not in self.trials:
            self._start(number, event["values"])
        if event["kind"] == "end" and self.trials[number].status == "running":
            self._tell(final[number], event.get("space", []))

    def _append(self, event):
        """Writes an event, or raises StorageError: what cannot be recorded stops the search."""
        try:
            self.record.append(event)
        except OSError as error:
            raise StorageError(f"tune.Search stopped: its record {self.record.path} cannot be written "
                               f"({error.strerror or error}). Make room, or bring the directory back, and run the same "
                               "call again: it goes on with what is recorded.") from error

    @property
    def running(self):
        return [trial for trial in self.trials.values() if trial.status == "running"]

    @property
    def counted(self):
        """Trials that count: what was rejected before it was trained does not."""
        return sum(trial.status != "rejected" or bool(trial.scores) for trial in self.trials.values())

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
        self._append({"kind": "start", "number": number, "values": values})
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
        self._append({"kind": "end", **dataclasses.asdict(trial), "space": new})
        self._tell(trial, new)
        self.clean()
        self.heard(trial)

    def heard(self, trial):
        """Called with each trial that ends."""

    def best_folds(self):
        """The folds of the best trial so far."""
        order = ranked(self.trials, self.objectives)
        return order[0].runs if order else []

    def curves(self):
        """[(was it trained to its end, curve)] of the trials that ended, of a search that prunes."""
        return [(trial.status != "stopped", trial.curve) for trial in self.trials.values() if trial.curve]

    def clean(self):
        """Leaves on the disk what running trials need and the weights of the best."""
        keep = {trial.number for trial in self.running}
        keep |= {trial.number for trial in ranked(self.trials, self.objectives)[:self.keep_weights]}
        for folder in _files.inside(self.directory, "trials").glob("*"):
            if not folder.name.isdigit():
                continue
            over = int(folder.name) in self.trials and self.trials[int(folder.name)].status != "running"
            with contextlib.suppress(FileNotFoundError):
                for rest in [folder] if int(folder.name) not in keep else folder.rglob("resume") if over else []:
                    _files.remove(rest)

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
        self.oracle.tell(trial.number, [trial.scores[name] for name in self.objectives] if scored else None, space,
                         trial.curve if trial.status == "stopped" else [])
