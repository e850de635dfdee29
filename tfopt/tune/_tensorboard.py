"""A study as TensorBoard's HParams shows it: a folder for what was searched, one for each trial that ended."""

import pathlib
import time

from tensorboard.plugins.hparams import api, api_pb2, summary, summary_v2
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from .. import _files
from .._keras import tf
from . import _oracles


class Board:
    """Writes each trial of a study once, as a whole.

    Args:
      directory: of the logs of this study alone.
      study: the `Study`.
    """

    def __init__(self, directory, study):
        self.directory, self.study = pathlib.Path(directory), study
        self.directory.mkdir(parents=True, exist_ok=True)
        hparams = [api.HParam(hp.name, domain_of(hp)) for hp in self._space()]
        metrics = [api.Metric(name) for name in study.objectives]
        _files.remove(self.directory / "space")
        self._write("space", [(summary_v2.hparams_config_pb(hparams, metrics, time.time()), 0)])
        for trial in study.trials.values():
            if trial.status != "running":
                self.add(trial)

    def _space(self):
        return {hp.name: hp for hp in self.study.oracle.hyperparameters.space}.values()

    def add(self, trial):
        """Writes a trial that has ended, unless it is there."""
        name = f"trial-{trial.number:06d}"
        if (self.directory / name).exists():
            return
        ended, good = time.time(), trial.status in ("completed", "stopped")
        status = api_pb2.STATUS_SUCCESS if good else api_pb2.STATUS_FAILURE
        self._write(name, [(summary_v2.hparams_pb(trial.values, name, ended - trial.seconds), 0),
                           *((scalar_pb(key, value), trial.epoch or 0) for key, value in trial.scores.items()),
                           (summary.session_end_pb(status, ended), 0)])

    def _write(self, name, summaries):
        with _files.whole(self.directory / name) as part:
            writer = tf.summary.create_file_writer(str(part))
            with writer.as_default(), tf.summary.record_if(True):
                for one, step in summaries:
                    tf.summary.experimental.write_raw_pb(one.SerializeToString(), step=step)
            writer.close()


def domain_of(hp):
    """What a parameter may be."""
    if not _oracles.tunable(hp):
        return api.Discrete([hp.value])
    if not _oracles.is_number(hp):
        return api.Discrete(_oracles.choices(hp))
    kind = api.IntInterval if isinstance(hp.min_value, int) else api.RealInterval
    return kind(hp.min_value, hp.max_value)
