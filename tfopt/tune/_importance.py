"""How much each parameter mattered: Optuna's PED-ANOVA on the trials of a study."""

import warnings

from .._check import require
from .._tables import Frame
from . import _oracles


def importance_of(trials, space, objectives):
    """The table that `Search.importance` promises."""
    done = [trial for trial in trials if trial.status == "completed"]
    require(len(done) > 1, "importance needs two completed trials", completed=len(done), trials=len(trials))
    return shares(done, space, objectives)


def shares(trials, space, objectives):
    """Frame: a row for each parameter that a trial had, a column for each objective, and in how many trials it was."""
    found = {name: _shares(trials, space, name, way) for name, way in objectives.items()}
    counts = {}
    for trial in trials:
        for name in {hp.name for hp in _active(space, trial)}:
            counts[name] = counts.get(name, 0) + 1
    table = Frame({**found, "trials": counts}, index=sorted(counts)).rename_axis("parameter")
    return table.sort_values(list(objectives), ascending=False, kind="stable")


def _shares(trials, space, name, way):
    """{parameter: share}: regimes of a parameter that has several conditions are parameters of their own to Optuna."""
    optuna = _oracles.optuna_or_refuse()
    study = _oracles.quiet_study([way])
    for trial in trials:
        active = _active(space, trial)
        asked = _oracles.asked_for(study, active, trial.values)
        study.tell(asked, trial.scores[name])
    if len({trial.scores[name] for trial in trials}) == 1:
        return dict.fromkeys((hp.name for trial in trials for hp in _active(space, trial)), 0.)
    best = min(.5, max(.1, 5 / len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                              # of few trials
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best))
    names, sums = {_oracles.key(hp): hp.name for hp in space.space}, {}
    for key, share in found.items():
        sums[names[key]] = sums.get(names[key], 0.) + share
    return sums


def _active(space, trial):
    """The parameters that a trial could choose."""
    known = _oracles.space_from(_oracles.space_config(space), trial.values)
    return [hp for hp in known.space if _oracles.tunable(hp) and known.is_active(hp) and hp.name in trial.values]
