"""The one place that imports the TF Model Optimization toolkit (TFMOT), without its side effects.

Importing TFMOT sets TF_USE_LEGACY_KERAS=1 for the whole process, and turns `tf.keras` into Keras 2 where nobody has
touched it before. Here `tf.keras` is pinned to Keras 3 first and the environment is put back afterwards.
"""

import os

from .._keras import tf

_pinned = tf.keras.layers                                  # `tf.keras` decides on first use which Keras it is
_before = os.environ.get("TF_USE_LEGACY_KERAS")
try:
    import tensorflow_model_optimization as tfmot
finally:
    if _before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = _before

__all__ = ["tfmot"]
