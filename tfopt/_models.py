"""What a model is made of: is it built, which layers does `where` choose, and a copy that owes the original nothing."""

import contextlib
import functools
import math

import pandas as pd

from ._check import require
from ._keras import fresh_inputs, fresh_operation, graph_of, keras, remade, replay, tf


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
            model=_Shown("a tf_keras (Keras 2) model"), error=TypeError,
            do="Build the same layers with `keras` and copy the weights with `set_weights(model.get_weights())`.")
    require(isinstance(model, keras.Model), f"{caller} needs a Keras 3 model", model=_Shown(describe(model)),
            do="Pass a keras.Model.", error=TypeError)
    require(model.built, f"{caller} needs a built model", model=_Shown(describe(model)),
            do="Start it with keras.Input(shape), or call it once on a batch.")


def require_graph(model, caller):
    """Refuses everything but a built Functional or Sequential model; returns its graph."""
    require_model(model, caller)
    graph = graph_of(model)
    require(graph is not None, f"{caller} needs a built functional or Sequential model", model=_Shown(describe(model)),
            do="Rebuild it with keras.Model(inputs, outputs).")
    return graph


def layers(model):
    """{path: layer} of every layer that is not itself a graph model, in order; nested ones as `outer/inner`.

    A layer that is used several times, or reached by several paths, is listed once.
    """
    found, seen = {}, set()

    def visit(owner, prefix):
        for layer in owner.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if graph_of(layer) is not None:
                visit(layer, f"{prefix}{layer.name}/")
            else:
                found[f"{prefix}{layer.name}"] = layer

    visit(model, "")
    return found


def select(model, where, caller, *, able=None, what="layer"):
    """{path: layer} that `where` chooses, never empty.

    Args:
      model: a built graph model.
      where: None for every able layer; layer names or paths (`outer/inner`); or `layer -> bool`.
      caller: public name for the sentences.
      able: `layer -> bool`, what the technique can treat. A layer chosen by name that it cannot is refused.
      what: what an able layer is called, e.g. "layer with a kernel".
    """
    everything = layers(model)
    able = able or (lambda layer: True)
    if where is None or callable(where):
        chosen = {path: layer for path, layer in everything.items()
                  if able(layer) and (where is None or where(layer))}
    else:
        names = [where] if isinstance(where, str) else list(where)
        unknown = [name for name in names
                   if not any(name in (path, layer.name) for path, layer in everything.items())]
        require(not unknown, f"{caller}: `where` must name layers of the model", unknown=unknown,
                do=f"Its layers are {_Shown(', '.join(everything))}.")
        chosen = {path: layer for path, layer in everything.items() if path in names or layer.name in names}
        unfit = [path for path, layer in chosen.items() if not able(layer)]
        require(not unfit, f"{caller}: `where` must name a {what}", unfit=unfit, do="Leave these out.")
    require(chosen, f"{caller}: `where` must choose at least one {what}", where=where,
            do=f"Its layers are {_Shown(', '.join(everything))}.")
    return chosen


def plan(model, chosen, sizes, why):
    """The table behind every `plan`: one row a layer with weights.

    Args:
      model: a built graph model.
      chosen: paths of the layers that would be done.
      sizes: {path: shapes of the weights that can be treated}.
      why: `(path, layer) -> reason` for the layers that are skipped.

    Returns:
      pandas.DataFrame with `layer`, `class`, `weights` (how many numbers), `status` ("done" or "skipped"), `why`.
    """
    return pd.DataFrame([
        {"layer": path, "class": type(layer).__name__,
         "weights": sum(math.prod(shape) for shape in sizes.get(path, ())),
         "status": "done" if path in chosen else "skipped", "why": "" if path in chosen else why(path, layer)}
        for path, layer in layers(model).items() if layer.weights])


def scope_of(model):
    """A context in which new variables belong to the strategy the model was made in."""
    strategy = model.distribute_strategy
    if strategy is tf.distribute.get_strategy():
        return contextlib.nullcontext()
    return strategy.scope()


def copy(model, *, change=None, call=None, shape=lambda x: x.shape, value=lambda variable: variable):
    """A new, uncompiled model of the same structure, weights, names, flags and random states.

    Args:
      model: a built graph model; it is only read.
      change: `layer -> new layer or None`, called once per leaf layer; None copies the layer from its config.
        A changed layer takes the variables of the old one where there are as many.
      call: `(new layer, *args, **kwargs) -> outputs`, called for every use of a new leaf layer in place of the layer
        itself: here other layers can be put before or behind it. A Sequential then comes back as a Functional.
      shape: `input -> shape with the batch`, called for each input of the model and of the models nested in it.
      value: `variable of the model -> what its copy starts from`.
    """
    pairs, fresh = {}, functools.cache(fresh_operation)

    def clone(op):
        if not isinstance(op, keras.layers.Layer):
            return fresh(op)
        if id(op) not in pairs:
            new = clone_graph(op) if graph_of(op) is not None else change(op) if change else None
            pairs[id(op)] = op, new or remade(op)
        return pairs[id(op)][1]

    def clone_graph(owner):
        inputs = fresh_inputs(graph_of(owner), shape)
        if isinstance(owner, keras.Sequential) and call is None:
            return keras.Sequential([inputs, *map(clone, owner.layers)], name=owner.name)
        return keras.Model(inputs, replay(graph_of(owner), inputs, clone, call), name=owner.name)

    with scope_of(model):
        pairs[id(model)] = model, clone_graph(model)
    for old, new in reversed(pairs.values()):              # owners first: their flag overrules what they hold
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs.values():
        if graph_of(old) is None and len(old.variables) == len(new.variables):
            for source, target in zip(old.variables, new.variables, strict=True):
                target.assign(value(source))
            if isinstance(new, keras.layers.Normalization):
                new.finalize_state()                       # what it computes with is derived from its variables
    return pairs[id(model)][1]


class _Shown(str):
    """Text that stands in a refusal without quotes."""

    __slots__ = ()

    def __repr__(self):
        return str(self)
