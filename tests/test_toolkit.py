"""Importing TFMOT through tfopt leaves the process as it was, whoever was first."""

import pytest

PROGRAM = """
import os
{before}
from tfopt import prune, cluster
import keras, tensorflow as tf
assert os.environ.get("TF_USE_LEGACY_KERAS") == {variable!r}, os.environ.get("TF_USE_LEGACY_KERAS")
assert tf.keras.Sequential is keras.Sequential
assert tf.keras.__version__.startswith("3.")
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "import keras", "import tensorflow",
                                    "import tensorflow; tensorflow.keras.layers"])
def test_the_process_is_left_as_it_was(run_python, before):
    run_python(PROGRAM.format(before=before, variable=None), fork=False)


@pytest.mark.slow
def test_a_variable_that_was_set_stays_set(run_python):
    run_python(PROGRAM.format(before="", variable="0"), fork=False, TF_USE_LEGACY_KERAS="0")


@pytest.mark.slow
def test_stock_tfmot_does_not(run_python):
    """Negative control: without tfopt the variable is set."""
    run_python("import os, tensorflow_model_optimization; assert os.environ['TF_USE_LEGACY_KERAS'] == '1'",
               fork=False)
