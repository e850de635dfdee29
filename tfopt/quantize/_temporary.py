"""Until `_models` has `recreate` and `compare`."""

import numpy as np

from .._check import require
from .._keras import graph_of, keras, remade, tf


def recreate(layer, dtype, name):
    new = remade(layer, {**_to_float32(layer.get_config()), "name": name})
    if new.trainable != layer.trainable:
        new.trainable = layer.trainable
    return new


def _to_float32(config):
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy"):
            return "float32"
        return {key: _to_float32(value) for key, value in config.items()}
    return [_to_float32(value) for value in config] if isinstance(config, list | tuple) else config


def compare(model, new, caller):
    rng = np.random.default_rng(0)

    def values(x):
        shape = [2 if i == 0 and d is None else d or (40 if len(x.shape) < 4 else 96) for i, d in enumerate(x.shape)]
        if x.dtype == "string":
            return tf.constant(rng.choice(["", "a", "the cat"], size=shape).tolist(), shape=shape)
        return tf.cast(rng.integers(2, size=shape) if "float" not in x.dtype else rng.normal(size=shape), x.dtype)

    batch = keras.tree.map_structure(values, graph_of(model).input)
    for a, b in zip(*(keras.tree.flatten(m(batch, training=False)) for m in (model, new)), strict=True):
        a, b = np.asarray(a, "float32"), np.asarray(b, "float32")
        tolerance = 0.1 if any("16" in layer.dtype_policy.name for layer in model._flatten_layers()) else 1e-4
        gap = float(np.abs(a - b).max())
        require(gap <= tolerance * max(1, np.abs(a).max()), f"{caller}: the copy differs from the model",
                difference=gap)
