import os
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
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def run_python(tmp_path):
    """Runs a program in a process of its own, so that it can have its own devices; returns what it printed."""

    def run(program, *arguments, devices=1, check=True, **environment):
        preamble = (
            "import tensorflow as tf\n"
            "tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0],"
            f" [tf.config.LogicalDeviceConfiguration()] * {devices})\n" if devices > 1 else "")
        path = tmp_path / "program.py"
        path.write_text(preamble + program)
        done = subprocess.run([sys.executable, "-P", str(path), *map(str, arguments)], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, **environment}, timeout=600)
        if check:
            assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout if check else done

    return run
