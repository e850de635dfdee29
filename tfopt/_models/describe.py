"""How a model is named in a refusal, and what a function may ask of it."""

import contextlib

import numpy as np

from .._check import require
from .._keras import graph_of, keras, parts_of, tf


def describe(model):
    """How a model is named in a refusal: `resnet (a built Functional)`."""
    if not isinstance(model, keras.Model):
        return f"{type(model).__module__}.{type(model).__name__}"
    kind = type(model).__name__
    if graph_of(model) is None and not isinstance(model, keras.Sequential):
        kind = f"subclassed keras.Model, class {kind}"
    return f"{model.name} (a {'built' if model.built else 'not yet built'} {kind})"


def require_model(model, caller):
    """Refuses everything but a built Keras 3 model.

    Args:
      model: what the user passed.
      caller: public name of the function that was called, for the sentence.
    """
    require(not type(model).__module__.startswith("tf_keras"), f"{caller} needs a Keras 3 model",
            model=Verbatim("a tf_keras (Keras 2) model"), error=TypeError,
            do="Build the same layers with `keras` and copy the weights with `set_weights(model.get_weights())`.")
    require(isinstance(model, keras.Model), f"{caller} needs a Keras 3 model", model=Verbatim(describe(model)),
            do="Pass a keras.Model.", error=TypeError)
    require_built(model, f"{caller} needs a built model")


def require_built(model, rule):
    """Refuses a model that is not built, and one whose class has no `call`, which never is."""
    networks = [part for part in vars(model).values() if isinstance(part, keras.Model)]
    do = "Start it with keras.Input(shape), or call it once on a batch."
    if graph_of(model) is None and type(model).call is keras.Model.call:
        do = (f"Its class has no `call`: pass the networks it trains ({', '.join(part.name for part in networks)}), "
              "and make the model again of what comes back.")
    require(model.built, rule, model=Verbatim(describe(model)), do=do)


def require_graph(model, caller):
    """Refuses everything but a built Functional or Sequential model; returns its graph."""
    require_model(model, caller)
    graph = graph_of(model)
    require(graph is not None, f"{caller} needs a built functional or Sequential model",
            model=Verbatim(describe(model)),
            do="Rebuild it with keras.Model(inputs, outputs).")
    return graph


def require_finite(model):
    """Refuses a model with weights that are NaN or infinite: what is made of it would be lost without a word."""
    broken = sorted({variable.path for variable in model.variables if keras.backend.is_float_dtype(variable.dtype)
                     and not np.isfinite(array_of(variable).astype("float32")).all()})
    require(not broken, "the model's weights must be finite numbers", not_finite=broken,
            do="Training has diverged: train it again with a smaller learning rate.")


def array_of(variable):
    """A variable's value, on whatever device or devices it lives, also inside the scope of their strategy."""
    return keras.ops.convert_to_numpy(tf.convert_to_tensor(variable.value))


def recurrent_states(layer):
    """The states of stateful recurrent layers in a layer or model, which Keras keeps outside its variables."""
    found = [getattr(part, "states", None) for part in parts_of(layer) if getattr(part, "stateful", False)]
    return [state for state in keras.tree.flatten(found) if isinstance(state, keras.Variable)]


def scope_of(model):
    """A context in which new variables belong to the strategy the model was made in."""
    strategy = model.distribute_strategy
    if strategy is tf.distribute.get_strategy():
        return contextlib.nullcontext()
    return strategy.scope()


class Verbatim(str):
    """Text that stands in a refusal without quotes."""

    __slots__ = ()

    def __repr__(self):
        return str(self)
