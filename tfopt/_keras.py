"""The one door to Keras 3 on TensorFlow, and the only file that touches private Keras names.

Private names, and the versions they were run with (tests/test_keras_door.py asks each of them for what is relied on):

    keras.src.models.functional.Functional      3.12 - 3.15     the class of graph models; Keras exports no name for it
    Sequential._functional                      3.12 - 3.15     the graph behind a built Sequential model
    Functional._inputs_struct                   3.12 - 3.15     the graph's inputs, nested as the user nested them
    Functional._run_through_graph               3.12 - 3.15     replays the graph with another function per operation
"""

import functools
import os

from ._check import require

_REMEDY = "Start Python with {} and import tfopt again."

require(os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() not in ("1", "true"),
        "tfopt works with Keras 3, and the environment asks TensorFlow for Keras 2",
        TF_USE_LEGACY_KERAS=os.environ.get("TF_USE_LEGACY_KERAS"),
        do=_REMEDY.format("TF_USE_LEGACY_KERAS unset"), error=ImportError)
require(os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow",
        "tfopt works with Keras on TensorFlow, and the environment asks for another backend",
        KERAS_BACKEND=os.environ.get("KERAS_BACKEND"),
        do=_REMEDY.format("KERAS_BACKEND=tensorflow"), error=ImportError)

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras.src.models.functional import Functional  # noqa: E402

require(keras.backend.backend() == "tensorflow",
        "tfopt works with Keras on TensorFlow, and keras.json names another backend",
        backend=keras.backend.backend(), do=_REMEDY.format("KERAS_BACKEND=tensorflow"), error=ImportError)
require(tuple(int(part) for part in keras.__version__.split(".")[:2]) >= (3, 12),
        "tfopt needs Keras >= 3.12", version=keras.__version__, do="Run `pip install -U keras`.", error=ImportError)

__all__ = ["Functional", "fresh_inputs", "graph_of", "keras", "replay", "serializable", "tf"]

serializable = keras.saving.register_keras_serializable(package="tfopt")


def graph_of(model):
    """The functional graph of a built Functional or Sequential model, else None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, Functional) else None


def fresh_inputs(graph):
    """New keras.Inputs like those of `graph` (see `graph_of`), in the same nesting."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse, name=x.name), graph._inputs_struct)


def replay(graph, inputs, operation, call=None):
    """Runs `inputs` through `graph` (see `graph_of`), with `operation(op)` in place of each operation.

    Each is called as `call(operation(op), *args, **kwargs)` if `call` is given. Nested graph models are operations too.
    """
    calls = None if call is None else (
        lambda op, *args, **kwargs: (op if graph_of(op) is not None else functools.partial(call, op))(*args, **kwargs))
    return graph._run_through_graph(inputs, operation_fn=operation, call_fn=calls)
