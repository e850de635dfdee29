"""Where the trials of a study run: in this process, in a process each, or in workers that ask a chief."""

import os
import re
import subprocess
import sys
import tempfile

from .._check import require
from . import _service, _trial
from ._study import ranked

ISOLATED = "TFOPT_TUNE_ISOLATED"            # in a process that was started for a trial: the directory of its study
LOG = re.compile(r"[IWEF]\d{4} |\d{4}-\d\d-\d\d \S+: [IWEF] |WARNING: All log")       # how TensorFlow's own lines begin


def alone(study, task):
    """All trials in this process."""
    with _trial.frozen():
        while (trial := study.next()) is not None:
            study.end(trial.number, _trial.run(task, _service.job_of(study, trial.number)))


def distributed(study, directory, address):
    """Serves workers until the study is done."""
    with _service.token_file(directory) as token:
        chief = _service.Chief(study, token)
        with _service.serving(chief, address):
            _service.wait_for_workers(chief)


def isolated(study, directory):
    """Each trial in a process that runs the user's script again and asks this one what to do."""
    require(hasattr(sys.modules["__main__"], "__file__"), "`isolate=True` runs the script again, and there is none",
            do="Put the search into a file, or leave `isolate` out.")
    require(ISOLATED not in os.environ, "a process that was started for one trial starts no others",
            directory=str(directory), error=RuntimeError)
    with _service.token_file(directory) as token:
        chief = _service.Chief(study, token)
        with _service.serving(chief, "127.0.0.1:0") as port:
            while (trial := study.next()) is not None:
                study.waiting.insert(0, trial)
                _one_process(chief, f"trial-{trial.number}", {ISOLATED: str(directory), _service.TOKEN: token,
                                                              "KERASTUNER_ORACLE_PORT": str(port)})


def _one_process(chief, name, environment):
    """Runs the script for one trial; a process that dies has failed its trial."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]], stdout=subprocess.DEVNULL, stderr=errors,
            env={**os.environ, "KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1", **environment})
        try:
            code = child.wait()
        finally:
            child.kill()
        errors.seek(0)
        told = [line for line in errors.read().decode(errors="replace").splitlines() if line and not LOG.match(line)]
    last = f": {told[-1].rstrip('.')}" if told else ""
    if chief.error:
        raise chief.error
    with chief.lock:
        for number in chief.held_by(name):
            chief.drop(number, f"its process ended with exit code {code}{last}")
        require(name in chief.seen, f"a process for a trial ended before it reached `run`{last}", exit_code=code,
                error=RuntimeError)


def require_finished(directory, trials, child_of):
    """In a process for a trial of another search: passes one that is finished, ends the process at any other."""
    if not trials or any(trial.status == "running" for trial in trials):
        sys.exit(f"tune.Search: this process was started for a trial of the search in {child_of}, and the script first "
                 f"began the unfinished one in {directory}: with isolate=True a script must run its searches in the "
                 "same order, in the same directories, each time.")


def say(study, trial):
    """One line about a trial that ended."""
    first = next(iter(study.objectives))
    best = next(iter(ranked(study.trials, study.objectives)), None)
    scores = ", ".join(f"{name} {trial.scores[name]:.4g}" for name in study.objectives if name in trial.scores)
    lead = f"   best: trial {best.number}, {first} {best.scores[first]:.4g}" if best else ""
    sys.stdout.write(f"trial {trial.number}  {trial.status}  {scores or trial.message[:100]}{lead}\n")
    sys.stdout.flush()
