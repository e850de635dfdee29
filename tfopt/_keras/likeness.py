"""A layer that is made again without its constructor: from the attributes it holds."""

import functools
import inspect
import types

import keras

_LIBRARIES = ("keras.", "tensorflow.", "numpy", "builtins")
_STATE = ("_path", "_parent_path", "_called", "_build_shapes_dict", "_input_spec", "_supports_masking", "_auto_config",
          "_convert_input_args", "_allow_non_tensor_positional_args", "autocast", "supports_jit",
          "activity_regularizer")
_STORES = ("_trainable_variables", "_non_trainable_variables", "_layers", "_metrics", "_seed_generators")


class SharedError(Exception):
    """The layer holds something that cannot be its own and another's."""


def likeness(layer, again):
    """A built layer of the same class that holds what `layer` holds: layers and variables of its own, the rest shared.

    Neither the constructor nor `build` of the class runs, so that it does not matter what these were given. Variables
    come in the order and with the values of the old ones.

    Args:
      layer: a built keras.layers.Layer or subclassed keras.Model, in no graph model's place.
      again: `layer inside -> its built copy`.

    Raises:
      SharedError: some function or object inside holds layers or variables that a copy would share.
    """
    new = type(layer).__new__(type(layer))
    base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    base.__init__(new, name=layer.name, trainable=layer._trainable, dtype=layer.dtype_policy)
    seen = {id(layer): new}

    def own(held):
        if id(held) not in seen:
            seen[id(held)] = again(held) if isinstance(held, keras.layers.Layer) else _own(held, own)
        return seen[id(held)]

    theirs = set(vars(new)) | _compiled_names()
    for name, held in list(vars(layer).items()):
        if not (name in theirs or name.startswith("_self_") or isinstance(held, keras.optimizers.Optimizer)
                or _is_hook(layer, name, held)):
            setattr(new, name, own(held))
    for store in _STORES:                                      # also what no attribute holds, and all in order
        mine, metrics = getattr(new, store), store == "_metrics"
        for held in getattr(layer, store):
            if not metrics and not any(own(held) is one for one in mine):
                new._tracker.track(own(held))
        mine[:] = [own(held) for held in getattr(layer, store) if not metrics or id(held) in seen]
    for name in _STATE:
        if name in vars(layer):
            new.__dict__[name] = vars(layer)[name]
    new.__dict__["built"] = layer.built
    return new


def _own(held, own):
    """What the copy has where the layer has `held`, which is no layer; `own` does the same for what is inside of it."""
    if isinstance(held, keras.Variable):
        return _variable(held)
    if isinstance(held, keras.random.SeedGenerator | keras.metrics.Metric):
        return type(held).from_config(held.get_config())
    if isinstance(held, dict):
        return {key: own(item) for key, item in held.items()}
    if isinstance(held, tuple) and hasattr(held, "_fields"):
        return type(held)(*map(own, held))
    kind = next((kind for kind in (list, tuple, set) if isinstance(held, kind)), None)
    if kind is not None:
        return kind(map(own, held))
    if isinstance(held, types.MethodType) and isinstance(held.__self__, keras.layers.Layer):
        return types.MethodType(held.__func__, own(held.__self__))
    if any(isinstance(item, keras.layers.Layer | keras.Variable) for item in _inside(held)):
        raise SharedError(f"{type(held).__name__} {getattr(held, '__name__', '')} holds layers or variables")
    return held


@functools.cache
def _compiled_names():
    """Attributes that Keras gives a model when it is compiled and trained."""
    model = keras.Model()
    model.compile("sgd", "mse", metrics=["mae"])
    return frozenset(vars(model)) | {"history", "_epoch_iterator", "_initial_epoch"}


def build_like(layer, new):
    """Builds `new`, a layer of Keras' own, from the shapes that `layer` was built with."""
    if layer.built and not new.built:
        new.__dict__["_parent_path"] = layer._parent_path
        new.build_from_config(layer.get_build_config())
    return new


def _is_hook(layer, name, held):
    """Is an attribute a function put around the layer's own method of that name?"""
    method = getattr(type(layer), name, None)
    return method is not None and callable(held) and inspect.unwrap(method) == getattr(
        inspect.unwrap(held), "__func__", None)


def _variable(held):
    new = keras.Variable(keras.ops.convert_to_numpy(held.value), dtype=held.dtype, trainable=held.trainable,
                         autocast=held._autocast, aggregation=held._aggregation, synchronization=held._synchronization,
                         name=held.name)
    new._path, new.regularizer, new.constraint = held._path, held.regularizer, held.constraint
    return new


def _inside(held):
    """What a function or an object of the user's holds."""
    if isinstance(held, types.FunctionType):
        cells = [cell.cell_contents for cell in held.__closure__ or () if cell != types.CellType()]
        return keras.tree.flatten([*cells, *(held.__defaults__ or ())])
    if isinstance(held, type) or (type(held).__module__ or "").startswith(_LIBRARIES):
        return []
    return keras.tree.flatten(list(getattr(held, "__dict__", {}).values()))
