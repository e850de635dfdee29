"""The algorithms: KerasTuner's oracles and Optuna's TPE, made so that a record can bring them back.

Each draw depends on (seed, number of the trial, the trials that ended before): an oracle that is told of the same
events in the same order draws the same points, in a new process too. KerasTuner draws hyper-parameter i of its n-th
point from seed + n + i, so that neighboring seeds share points; here each point has a generator of its own, seeded by
a hash.

Private names of KerasTuner, and the version they were run with (tests/test_tune_record.py asks for each):

    Oracle._seed_state                     1.4.8    seeds the next random value
    Oracle._record_values                  1.4.8    notes a point as tried
    Oracle._random_values                  1.4.8    a random point that was not tried, or None
    Oracle._duplicate                      1.4.8    was this point tried
    Oracle._save_trial                     1.4.8    writes a file: here the record is the memory
    BayesianOptimizationOracle._random_state 1.4.8  starts the search for the most promising point
    GridSearchOracle._ordered_ids          1.4.8    the order of the grid
    HyperbandOracle._brackets              1.4.8    who competes with whom
"""

import copy
import hashlib
import warnings

import numpy as np

from .._check import refusal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras_tuner
    from keras_tuner import HyperParameters
    from keras_tuner.engine import hyperparameters as hps
    from keras_tuner.engine import trial as kt_trial

PRUNED = ("tpe+median", "tpe+asha", "random+median", "random+asha")           # with a pruner of Optuna's
ALGORITHMS = ("tpe", "random", "grid", "bayesian", "hyperband", *PRUNED)
COMPLETED, FAILED = "COMPLETED", "FAILED"


def derived(*parts):
    """A seed below 2**63 that is a hash of its parts: other parts, another stream.

    Example:
      >>> derived(0, 1), derived(1, 0)
      (5973285143095172824, 8188690635816437626)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def oracle(algorithm, objectives, seed, epochs):
    """The oracle of an algorithm.

    Args:
      algorithm: one of `ALGORITHMS`; what stands after a plus is no matter of the oracle.
      objectives: {name: "min" or "max"}.
      seed: of the study.
      epochs: the most a trial may train; Hyperband divides them.
    """
    algorithm = algorithm.partition("+")[0]
    first = keras_tuner.Objective(*next(iter(objectives.items())))
    common = dict(objective=first, seed=derived(seed) % 2**31 + 1, max_consecutive_failed_trials=2**62)
    if algorithm == "tpe":
        made = Tpe(list(objectives.values()), **common)
    elif algorithm == "hyperband":
        made = Hyperband(max_epochs=epochs, hyperband_iterations=None, **common)
    else:
        made = {"random": Random, "grid": Grid, "bayesian": Bayesian}[algorithm](max_trials=None, **common)
    made.study_seed, made.verbose = seed, 0
    return made


class TrialParameters(HyperParameters):
    """KerasTuner's HyperParameters, which in a search also know how long the trial trains."""

    count = None                                         # set by the search: `self -> optimizer steps or None`

    def steps(self) -> int | None:
        """Batches of the whole trial, None if the data do not say."""
        return None if self.count is None else self.count(self)


class Replayed:
    """What the oracles of a study share, put before a class of KerasTuner's.

    `draw` and `tell` are all that a study asks of it. KerasTuner's own files are not written.
    """

    has_state = False                                    # does a draw depend on earlier draws, not on the trials alone

    def save(self):
        pass

    def _save_trial(self, trial):
        pass

    def score_trial(self, trial):
        trial.score = self.told

    def draw(self, number, recorded=None):
        """Values of trial `number`, or the status "IDLE" or "STOPPED". `recorded` brings a known trial back."""
        name = name_of(number)
        self._seed_state = derived(self.study_seed, number)
        reply = self.populate_space(name) if recorded is None or self.has_state else {}
        values = recorded or reply.get("values")
        if recorded is None and reply["status"] != "RUNNING":
            return reply["status"]
        space = self.hyperparameters.copy()
        space.values = dict(values or {})
        fill(space)
        trial = kt_trial.Trial(hyperparameters=space, trial_id=name, status="RUNNING")
        self._record_values(trial)
        self.ongoing_trials[name] = self.trials[name] = trial
        self.start_order.append(name)
        self.drawn(trial)
        return dict(trial.hyperparameters.values)

    def tell(self, number, scores, space, curve=()):
        """Trial `number` ended; `scores` in the order of the objectives, None if it failed or was rejected.

        `curve`: of a trial that was stopped early, its first objective epoch by epoch.
        """
        name = name_of(number)
        fill(space)
        self.told = None if scores is None else scores[0]
        self.end_trial(kt_trial.Trial(space, name, FAILED if scores is None else COMPLETED))

    def drawn(self, trial):
        pass


class Random(Replayed, keras_tuner.oracles.RandomSearchOracle):
    pass


class Grid(Replayed, keras_tuner.oracles.GridSearchOracle):
    has_state = True

    def drawn(self, trial):
        if trial.trial_id not in self._ordered_ids._data_to_index:           # the record lost a line before this one
            self._ordered_ids.insert(trial.trial_id)


class Bayesian(Replayed, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id):
        self._random_state = np.random.RandomState(self._seed_state % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                  # of the optimizer of its kernel
            reply = super().populate_space(trial_id)
        if reply["values"] is not None and self._duplicate(reply["values"]):
            return self._random_populate_space()                             # a point that is known brings nothing new
        return reply

    def tell(self, number, scores, space, curve=()):
        """What failed or was rejected counts as the worst seen: left out, the same point would be drawn for ever."""
        known = [trial.score for trial in self.trials.values() if trial.status == COMPLETED]
        if scores is None and known:
            scores = [min(known) if self.objective.direction == "max" else max(known)]
        super().tell(number, scores, space)


class Hyperband(Replayed, keras_tuner.oracles.HyperbandOracle):
    has_state = True

    def tell(self, number, scores, space, curve=()):
        """What failed or was rejected in the first round gives its place back."""
        super().tell(number, scores, space)
        if scores is None:
            for bracket in self._brackets:
                bracket["rounds"][0] = [entry for entry in bracket["rounds"][0] if entry["id"] != name_of(number)]


class Tpe(Replayed, keras_tuner.Oracle):
    """Optuna's tree-structured Parzen estimator, for one objective or several, as an oracle of KerasTuner's."""

    def __init__(self, directions, **common):
        super().__init__(**common)
        self.optuna = optuna_or_refuse()
        self.study = quiet_study(directions)
        self.asked = {}

    def populate_space(self, trial_id):
        for attempt in range(10):
            asked, values = self._ask(derived(self._seed_state, attempt))
            if not self._duplicate(values):
                self.asked[trial_id] = asked
                return {"status": "RUNNING", "values": values}
            self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
        values = self._random_values()
        return {"status": "STOPPED"} if values is None else {"status": "RUNNING", "values": values}

    def drawn(self, trial):
        if trial.trial_id not in self.asked:                                 # from the record, or a random point
            known = trial.hyperparameters
            enqueue(self.study, [hp for hp in known.space if known.is_active(hp)], known.values)
            self.asked[trial.trial_id], _ = self._ask(0)

    def tell(self, number, scores, space, curve=()):
        """What failed or was rejected is told as pruned: TPE keeps away from such points."""
        asked = self.asked.pop(name_of(number))
        for epoch, value in enumerate(curve):
            asked.report(value, epoch + 1)
        if scores is None or curve:
            self.study.tell(asked, state=self.optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(asked, list(scores))
        super().tell(number, scores, space)

    def _ask(self, seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                  # `multivariate`, `group` are experimental
            self.study.sampler = self.optuna.samplers.TPESampler(
                seed=seed % 2**32, multivariate=True, group=True, constant_liar=True)
            asked, space = self.study.ask(), HyperParameters()
            for hp in self.hyperparameters.space:
                space.merge([hp])
                if space.is_active(hp):
                    space.values[hp.name] = suggest(asked, hp) if tunable(hp) else hp.default
        return asked, space.values


def quiet_study(directions, **given):
    """An Optuna study in memory that does not say that it was made."""
    optuna = optuna_or_refuse()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=[f"{way}imize" for way in directions], **given)
    optuna.logging.set_verbosity(level)
    return study


def enqueue(study, active, values):
    """The next trial that is asked for has these values."""
    study.enqueue_trial({key(hp): place(hp, values[hp.name]) for hp in active if tunable(hp)})


def asked_for(study, active, values):
    """A trial of an Optuna study with these values."""
    enqueue(study, active, values)
    asked = study.ask()
    for hp in active:
        suggest(asked, hp)
    return asked


def optuna_or_refuse():
    try:
        import optuna
    except ImportError:
        raise refusal("algorithm 'tpe' needs Optuna", error=ImportError,
                      do="Run `pip install optuna`, or pass algorithm='random'.") from None
    return optuna


def scikit_or_refuse():
    try:
        import scipy
        import sklearn
    except ImportError:
        raise refusal("algorithm 'bayesian' needs scikit-learn and SciPy", error=ImportError,
                      do="Run `pip install scikit-learn scipy`, or pass algorithm='tpe'.") from None
    return scipy, sklearn


def tunable(hp):
    return not isinstance(hp, hps.Fixed)


def key(hp):
    """The name of a parameter for Optuna, which tells parameters apart by their names alone."""
    return hp.name if not hp.conditions else f"{hp.name} | {[c.get_config() for c in hp.conditions]}"


def is_number(hp):
    return isinstance(hp, hps.Float | hps.Int)


def plain(hp):
    """Is it a range that Optuna knows as such."""
    return is_number(hp) and hp.step in (None, 1) and hp.sampling in ("linear", "log")


def suggest(asked, hp):
    if plain(hp):
        ask = asked.suggest_float if isinstance(hp, hps.Float) else asked.suggest_int
        return ask(key(hp), hp.min_value, hp.max_value, log=hp.sampling == "log")
    if is_number(hp) and hp.step is None:              # reverse_log
        return hp.prob_to_value(asked.suggest_float(key(hp), 0, 1))
    values = choices(hp)
    if getattr(hp, "ordered", True):
        return values[asked.suggest_int(key(hp), 0, len(values) - 1)]
    return values[asked.suggest_categorical(key(hp), list(range(len(values))))]


def place(hp, value):
    """What Optuna calls a value that `suggest` returned."""
    if plain(hp):
        return value
    if is_number(hp) and hp.step is None:
        return hp.value_to_prob(value)
    return choices(hp).index(value)


def choices(hp):
    if isinstance(hp, hps.Boolean):
        return [False, True]
    return [whole(hp, value) for value in hp.values]


def whole(hp, value):
    """A value of an Int as an int: with a step and logarithmic sampling KerasTuner lists floats."""
    return round(value) if isinstance(hp, hps.Int) else value


def fill(space):
    """Gives active parameters without a value their default, where KerasTuner would draw one without a seed."""
    for hp in space.space:
        if space.is_active(hp):
            space.values[hp.name] = whole(hp, space.values.get(hp.name, hp.default))


def name_of(number):
    return f"{number:06d}"


def explore(build):
    """The space `build` asks for, with what stands behind its conditions, found by building.

    The first build sees the defaults, each later one values that open a condition no build has seen open.
    """
    space, opened, closed = TrialParameters(), [], []
    while True:
        build(space)
        opened += space.active_scopes
        closed = [scope for scope in [*closed, *space.inactive_scopes] if scope not in opened]
        if not closed:
            return space_from(space_config(space))
        known = TrialParameters()
        known.merge(space.space)
        for condition in closed.pop(0):
            known.values[condition.name] = condition.values[0]
        fill(known)
        space = known


def space_config(space):
    """The hyper-parameters of a space, as JSON knows them."""
    return space.get_config()["space"]


def space_from(config, values=()):
    """The opposite of `space_config`, with values."""
    return TrialParameters.from_config({"space": copy.deepcopy(config), "values": dict(values)})    # it writes into it
