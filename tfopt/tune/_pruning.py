"""Bad trials are stopped early: Optuna's pruners, told of the trials that had ended when this one began."""

from . import _oracles


class Pruner:
    """`pruner(curve) -> bool`: is a trial with these values of the first objective, epoch by epoch, to be stopped.

    What it says depends on its arguments alone, so that a restarted search decides as it did.

    Args:
      name: "median" or "asha".
      way: "min" or "max".
      ended: [(was it trained to its end, curve)] of other trials.
    """

    def __init__(self, name, way, ended):
        optuna = _oracles.optuna_or_refuse()
        self.study = _oracles.quiet_study([way], pruner={
            "median": optuna.pruners.MedianPruner, "asha": optuna.pruners.SuccessiveHalvingPruner}[name](
                **{"asha": {"min_resource": 1}}.get(name, {})))
        states = {True: optuna.trial.TrialState.COMPLETE, False: optuna.trial.TrialState.PRUNED}
        for whole, curve in ended:
            trial = self.study.ask()
            self._tell(trial, curve, 0)
            self.study.tell(trial, curve[-1] if whole else None, state=states[whole])
        self.trial, self.told = self.study.ask(), 0

    def __call__(self, curve):
        before, self.told = self.told, len(curve)
        return self._tell(self.trial, curve, before)

    def _tell(self, trial, curve, before):
        """Reports the epochs from `before` on; asking is what makes successive halving note a rung."""
        stop = False
        for epoch in range(before, len(curve)):
            trial.report(curve[epoch], epoch + 1)
            stop = trial.should_prune()
        return stop
