"""The bridge: a Keras 3 graph becomes its tf_keras counterpart and comes back as a Keras 3 model."""

import tf_keras

from .. import _models
from .._check import require
from .._keras import graph_of, keras, same_randomness
from .build import Builder, in_use, is_embedded, legacy_name, run
from .parity import require_equal

__all__ = ["copy_back", "embedded", "is_embedded", "legacy_name", "to_legacy"]


def to_legacy(model, caller="to_legacy", dtype=None):
    """The tf_keras counterpart of a built Functional or Sequential Keras 3 model, with its weights.

    Args:
      model: it is only read.
      caller: public name of the function that was called, for the sentences.
      dtype: name of a floating dtype policy for all layers in place of their own.

    Raises:
      ValueError: `model` is no graph, a layer cannot be carried, or a counterpart computes something else than its
        original.
    """
    graph = _models.require_graph(model, caller)
    with same_randomness(), _models.scope_of(model):
        build = Builder(model, caller, dtype)
        inputs = keras.tree.map_structure(build.input, graph.input)
        counterpart = tf_keras.Model(inputs, run(graph, inputs, build.use, build.masks), name=legacy_name(model.name))
        build.copy_weights()
        require_equal(model, graph, counterpart, build)
    return counterpart


def embedded(legacy):
    """The layers of a counterpart that are carried as black boxes."""
    return [layer for layer in legacy.layers if is_embedded(layer)]


def copy_back(legacy, model, caller="copy_back"):
    """A new Keras 3 model like `model` with the weights of `legacy`: its counterpart, or what a technique made of that.

    Raises:
      ValueError: a layer with weights has no counterpart of its name and shapes in `legacy`.
    """
    with same_randomness():
        new = _models.copy(model)
    counterparts = {layer.name: layer for layer in legacy.layers}
    used = in_use(graph_of(new), graph_of(new).outputs)
    lost = [path for path, layer in _models.layers(new).items()
            if layer.weights and id(layer) in used and not _take(layer, counterparts.get(legacy_name(path)))]
    require(not lost, f"{caller} needs the counterpart of every layer with weights", missing=lost)
    return new


def _take(layer, counterpart):
    """Gives `layer` the weights of its counterpart; False if they are not there or do not fit."""
    if counterpart is None:
        return False
    sources, targets = (counterpart.inner.variables, layer.variables) if is_embedded(counterpart) else (
        counterpart.weights, layer.weights)
    if not counterpart.weights:
        return True                                         # constants of the counterpart
    if [tuple(v.shape) for v in sources] != [tuple(v.shape) for v in targets]:
        return False
    for source, target in zip(sources, targets, strict=True):
        target.assign(keras.ops.convert_to_numpy(source))
    return True
