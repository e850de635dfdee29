"""Loss and metrics of outputs that are there already, whatever computed them."""

from .._keras import keras


def evaluate_outputs(outputs, y, sample_weight=None, *, names=None, **compiled):
    """{name: value} as `evaluate` gives it, for outputs of a Keras model or a file.

    Args:
      outputs: NumPy arrays, nested as the model nests them.
      y, sample_weight: nested as `fit` takes them.
      names: what the outputs are called in dicts of losses; None: by Keras.
      **compiled: loss, loss_weights, metrics, weighted_metrics, as for `compile`.

    Example:
      >>> import numpy as np
      >>> found = evaluate_outputs(np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]]), loss="mse")
      >>> found["loss"]
      2.5
    """
    flat = keras.tree.flatten(outputs)
    names = names if names and len(names) == len(flat) else [None] * len(flat)
    pipes = [keras.Input(array.shape[1:], dtype=array.dtype) for array in flat]
    passed = [keras.layers.Identity(name=name, dtype=pipe.dtype)(pipe) for name, pipe in zip(names, pipes, strict=True)]
    through = keras.Model(pipes, keras.tree.pack_sequence_as(outputs, passed))
    through.compile(**compiled)
    return through.evaluate(flat, y, sample_weight=sample_weight, verbose=0, return_dict=True)
