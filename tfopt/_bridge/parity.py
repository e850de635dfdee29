"""Does the twin compute what the original computes?"""

import numpy as np

from .._check import require
from .._keras import keras, tf

_ROWS, _SIDE, _STEPS = 2, 96, 8      # rows of the batch; what stands for an open size of images, and of sequences
_BOUNDED = {"Embedding": "input_dim", "ReversibleEmbedding": "input_dim", "CategoryEncoding": "num_tokens"}


def require_equal(model, graph, twin, twins, caller, dtype=None):
    """Refuses unless `twin` and `model` give the same outputs for a random batch."""
    batch, expected = _batch_and_outputs(model, graph, twins)
    got = twin(batch, training=False)
    if all(_close(a, b, _tolerance(twin, dtype)) for a, b in zip(
            keras.tree.flatten(expected), keras.tree.flatten(got), strict=True)):
        return
    require(False, f"{caller}: the tf_keras twin differs from the model")


def _batch_and_outputs(model, graph, twins):
    limit = min([getattr(op, _BOUNDED[type(op).__name__]) for op, _ in twins.values()
                 if type(op).__name__ in _BOUNDED], default=2)
    rng = np.random.default_rng(0)
    batch = keras.tree.map_structure(lambda x: _values(x, rng, limit), graph.input)
    return batch, model(batch, training=False)


def _values(x, rng, limit):
    side = _SIDE if len(x.shape) > 3 else _STEPS
    shape = [_ROWS if axis == 0 and size is None else size or side for axis, size in enumerate(x.shape)]
    if "float" in x.dtype:
        return tf.cast(rng.normal(size=shape), x.dtype)
    return tf.cast(rng.integers(limit, size=shape), x.dtype)


def _tolerance(twin, dtype):
    return 0.1 if dtype or any("16" in str(layer.compute_dtype) for layer in twin.layers) else 1e-4


def _close(a, b, tolerance):
    a, b = (np.asarray(keras.ops.convert_to_numpy(x), "float64") for x in (a, b))
    scale = max(1.0, np.abs(a[np.isfinite(a)]).max(initial=0))
    return np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)
