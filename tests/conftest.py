import json
import logging
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")        # the models are tiny and the tests run in parallel
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("tfopt", derandomize=True, deadline=None)     # the same examples every time
hypothesis.settings.load_profile("tfopt")


@pytest.fixture(autouse=True)
def _seeds():
    if "keras" in sys.modules:                              # a test of files alone does without TensorFlow
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _autograph(caplog):
    """No function of ours that AutoGraph cannot read: it warns the user, who can do nothing about it."""
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)                       # TensorFlow's logger does not propagate
    yield
    logger.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert not [message for message in messages if "AutoGraph could not" in message]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def forks():
    """`forks.py`, which starts a process that has TensorFlow imported; one a worker, started when first used."""
    server = subprocess.Popen([sys.executable, "-P", str(pathlib.Path(__file__).with_name("forks.py"))], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield server
    server.stdin.close()
    server.wait()


@pytest.fixture
def run_python(tmp_path, request):
    """Runs a program in a process of its own, so that it can have its own devices; returns what it printed.

    The process is a fork of one that has imported TensorFlow. `fork=False` starts Python anew, which costs seconds: for
    programs that are about importing, or that kill and start processes.
    """

    def run(program, *arguments, devices=1, check=True, fork=True, **environment):
        preamble = (
            "import tensorflow as tf\n"
            "tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0],"
            f" [tf.config.LogicalDeviceConfiguration()] * {devices})\n" if devices > 1 else "")
        path = tmp_path / "program.py"
        path.write_text(preamble + program)
        command, environment = [str(path), *map(str, arguments)], {**os.environ, **environment}
        if fork:
            done = _forked(request.getfixturevalue("forks"), command, tmp_path, environment)
        else:
            done = subprocess.run([sys.executable, "-P", *command], cwd=tmp_path, text=True, capture_output=True,
                                  env=environment, timeout=600)
        if check:
            assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout if check else done

    return run


def _forked(server, command, folder, environment):
    files = {name: folder / f"program.{name}" for name in ("stdout", "stderr")}
    print(json.dumps({"command": command, "cwd": str(folder), "environment": environment, "seconds": 600,
                      **{name: str(path) for name, path in files.items()}}), file=server.stdin, flush=True)
    code = server.stdout.readline()
    assert code, "tests/forks.py has ended; start it by itself to see why"
    return subprocess.CompletedProcess(command, int(code), *(files[name].read_text() for name in ("stdout", "stderr")))
