"""The one place that makes a layer or a model again."""

import contextlib
import functools
import inspect

import numpy as np

from .._check import refusal, require
from .._keras import (
    SharedError,
    build_like,
    fresh_inputs,
    fresh_operation,
    graph_of,
    keras,
    lambdas_allowed,
    likeness,
    parts_of,
    replay,
    same_randomness,
)
from .comparison import example_inputs, outputs_of
from .describe import describe, recurrent_states, scope_of

_BASE = ("name", "trainable", "dtype")                     # what Keras' Layer itself takes
_BEHAVIOR = ("build", "call", "compute_loss", "compute_metrics", "fit", "make_predict_function", "make_test_function",
             "make_train_function", "metrics", "predict_step", "test_step", "train_step")
_COMPILED = ("compiled", "history", "loss", "optimizer", "predict_function", "steps_per_execution", "stop_training",
             "test_function", "train_function")
_LIBRARIES = ("keras.", "builtins", "numpy", "tensorflow.")


def copy(model, *, change=None, call=None, shape=None, value=lambda variable: variable, dtype=None):
    """A new, uncompiled model of the same structure, weights, names, flags, adapted and random states.

    A subclass of a graph model stays one, with its own training step and call. A subclassed model without a graph is
    made again from its config: `change`, `call` and `shape` need a graph.

    Args:
      model: a built model; it is only read.
      change: `layer -> new layer or None`, called once per leaf layer; None makes the layer again.
        A changed layer takes the variables of the old one where there are as many.
      call: `(new layer, *args, **kwargs) -> outputs`, called for every use of a new leaf layer in place of the layer
        itself: here other layers can be put before or behind it. A Sequential then comes back as a Functional.
      shape: `input -> shape with the batch`, called for each input of the model and of the models nested in it.
      value: `variable of the model -> what its copy starts from`.
      dtype: name of a dtype policy for all layers, such as "float32"; None keeps their own.

    Raises:
      ValueError: a layer or a class of models cannot be made again.
    """
    pairs, fresh = {}, functools.cache(fresh_operation)        # {id(old): (old, new, whether `change` made it)}
    rewrites = bool(change or call or shape)

    def clone(op, standing=False):
        if not isinstance(op, keras.layers.Layer):
            return fresh(op)
        if id(op) not in pairs:
            own_graph = _is_graph(op, rewrites)
            changed = change(op) if change and not own_graph else None
            new = clone_graph(op) if own_graph else changed or recreate(op, dtype=dtype, inner=clone, standing=standing)
            pairs[id(op)] = op, new, changed is not None
        return pairs[id(op)][1]

    def clone_graph(owner):
        inputs = fresh_inputs(graph_of(owner), shape or (lambda x: x.shape))
        if isinstance(owner, keras.Sequential) and call is None:
            return graph_model(owner, [inputs, *map(clone, owner.layers)])
        require(not isinstance(owner, keras.Sequential) or not own_methods(owner),
                "the Sequential would become a Functional model and lose what its class does",
                model=describe(owner), methods=own_methods(owner), do="Build it with keras.Model(inputs, outputs).")
        return graph_model(owner, inputs, replay(graph_of(owner), inputs, clone, functools.partial(_use, pairs, call)))

    with same_randomness(), scope_of(model), _policy(dtype):
        clone(model)
        new = pairs[id(model)][1]
        if not new.built:
            _build_alike(model, new)
        for one in (model, new):                               # a layer may make its variables when it first computes
            if not all(part.built for part in parts_of(one)):
                outputs_of(one, example_inputs(model))
        for old, made, changed in reversed(pairs.values()):    # owners first: their flag overrules what they hold
            if _is_graph(old, rewrites):
                made.dtype_policy, made.trainable = dtype or old.dtype_policy, old.trainable
                _transfer_own(old, made, value)
            else:
                transfer(old, made, value=value, dtype=dtype, changed=changed)
    return new


def recreate(layer, /, *, dtype=None, inner=None, standing=False, **changes):
    """A new layer like `layer`: `transfer` then gives it what `layer` holds.

    It is made from the config, with the functions, the classes and the adapted vocabulary of `layer` itself, and is not
    yet built. Where a class of one's own has none, it is made, built, from the attributes that it has; with `changes`
    of its own arguments, from those that have the names of these. A layer without variables of which neither can be had
    is shared.

    Args:
      layer: a keras.layers.Layer, also a subclassed model.
      dtype: name of a dtype policy in place of its own and of those of the layers inside.
      inner: `(layer, standing) -> new layer` for those inside of it; None makes each again.
      standing: the layer is inside of one that is made from its attributes, and is wanted built.
      **changes: arguments of the constructor that are to be others.
    """
    kind, policy = type(layer), _policy_for(layer, dtype, changes)
    with _policy(policy), lambdas_allowed(), keras.saving.CustomObjectScope(_own_objects(layer)):
        try:
            require(not standing or kind.__module__.startswith("keras."), "its constructor may not say all")
            new = kind.from_config(_accepted(kind, {**_config(layer), **changes}))
        except Exception as problem:                           # whatever a class of the user's may raise
            try:
                new = (kind(**_accepted(kind, {**_attributes(layer, inner), **changes})) if changes.keys() - set(_BASE)
                       else likeness(layer, _standing(inner, dtype)))
            except Exception as other:                         # neither way: say why
                reason = other if isinstance(other, SharedError) else problem
                require(not layer.variables and not changes, f"the layer {layer.name} cannot be made again",
                        layer=kind.__name__, reason=_short(reason),
                        do="Give its class a `get_config` that returns the arguments of its constructor.")
                return fresh_operation(layer)
    for old, part in _matching_parts(layer, new):
        part.name = changes.get("name", layer.name) if part is new else old.name
        wanted = policy if part is new else _policy_for(old, dtype, {})
        if part.dtype_policy != wanted:
            part.dtype_policy = wanted
        if part.trainable != old.trainable and "trainable" not in changes:
            part.trainable = old.trainable
        _take_functions(old, part, but=changes if part is new else ())
        _take_vocabulary(old, part)
    return new


def transfer(old, new, *, value=lambda variable: variable, dtype=None, changed=False):
    """Gives `new`, which is built, what the layer `old` holds: variables, flags, policies, and what derives from them.

    Args:
      old, new: layers of the same class, or `changed` ones: these get what they have a place for.
      value: `variable of old -> what that of new starts from`.
      dtype: as given to `recreate`.
      changed: whether `new` may have other variables and other layers inside.
    """
    sources, targets, parts = old.variables, new.variables, _matching_parts(old, new)
    for one, part in parts:                                    # owners first: their flag overrules what they hold
        part.name = part.name if changed else one.name
        if part.trainable != one.trainable:
            part.trainable = one.trainable
        if not changed and part.dtype_policy != _policy_for(one, dtype, {}):
            part.dtype_policy = _policy_for(one, dtype, {})
    if not changed or len(sources) == len(targets):
        _assign(old, sources, targets, value)
    for state, mine in zip(recurrent_states(old), recurrent_states(new), strict=False):
        if state.shape == mine.shape:
            mine.assign(state)
    for one, part in parts:
        if not changed:
            _take_functions(one, part)
        _take_vocabulary(one, part)
        if part.variables and hasattr(part, "finalize_state"):
            part.finalize_state()                              # what it computes with is derived from its variables


def _assign(old, sources, targets, value):
    """Gives variables their values; refuses if `old` was made again with other ones."""
    values = [value(source) for source in sources]
    require([tuple(x.shape) for x in values] == [tuple(x.shape) for x in targets],
            f"the layer {old.name} cannot be made again: it came back with other weights",
            layer=type(old).__name__, weights=len(sources), made=len(targets),
            do="Let its class make them all, in the same order, from the arguments that its `get_config` returns.")
    for source, start, target in zip(sources, values, targets, strict=True):
        target.assign(start)
        if target.trainable != source.trainable:
            target.trainable = source.trainable


def _standing(inner, dtype):
    """`layer -> its built copy` for what is inside of a layer that is made from its attributes."""
    if inner is None:
        inner = functools.cache(lambda layer, standing: recreate(layer, dtype=dtype, inner=inner, standing=standing))
    return lambda layer: build_like(layer, inner(layer, standing=True))


def _policy_for(layer, dtype, changes):
    """The dtype policy of a copy of `layer`; what does not compute in floating point keeps its own."""
    if dtype and "float" in layer.compute_dtype and layer.quantization_mode is None:
        return keras.dtype_policies.get(dtype)
    return keras.dtype_policies.get(changes.get("dtype", layer.dtype_policy))


def _config(layer):
    """The config of a layer. Keras' automatic one of a model would hold the constructor's defaults."""
    if isinstance(layer, keras.Model) and type(layer).get_config.__module__.split(".")[0] == "keras":
        raise NotImplementedError("its class has no get_config")
    return layer.get_config()


def _accepted(kind, config):
    """A config without those arguments of Keras' own base class that a constructor has no place for."""
    parameters = _parameters(kind)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return config
    return {key: item for key, item in config.items() if key in parameters or key not in _BASE}


def _attributes(layer, inner):
    """The constructor's arguments out of the attributes that have their names; layers among them are made again."""
    again, found = inner or recreate, {}
    for name, parameter in _parameters(type(layer)).items():
        if name in _BASE or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        held = next((vars(layer)[key] for key in (name, f"_{name}") if key in vars(layer)), parameter.default)
        require(held is not parameter.empty, f"its argument `{name}` is not kept", layer=type(layer).__name__)
        found[name] = keras.tree.map_structure(
            lambda item: again(item) if isinstance(item, keras.layers.Layer) else item,
            _plain(held))
    return found


@functools.cache
def _parameters(kind):
    """The parameters of a class's constructor, by name, without the first."""
    return dict(list(inspect.signature(kind.__init__).parameters.items())[1:])


def _plain(held):
    """A structure without Keras' own kinds of lists and dicts, which track what they hold."""
    if isinstance(held, dict):
        return {key: _plain(item) for key, item in held.items()}
    return type(held)(map(_plain, held)) if type(held) in (list, tuple) else (
        list(map(_plain, held)) if isinstance(held, list) else held)


def _own_objects(layer):
    """{name: the functions and classes of the user's own that a layer and the layers inside it hold}."""
    found = {}
    for part in parts_of(layer):
        for held in [part, *vars(part).values()]:
            thing = held if inspect.isfunction(held) else type(held)
            if not (thing.__module__ or "").startswith(_LIBRARIES):
                found[thing.__name__] = thing
    return found


def _matching_parts(old, new):
    """[(layer inside old, layer inside new)], themselves included; only themselves where the two differ inside."""
    ours, theirs = parts_of(old), parts_of(new)
    if [type(part) for part in ours] != [type(part) for part in theirs]:
        return [(old, new)]
    return list(zip(ours, theirs, strict=True))


def _take_functions(old, new, but=()):
    """The functions that a config confuses (two of one name) or takes apart (lambdas) are those of the old layer.

    A function with the same code is left alone: it may belong to the new layer, as a closure over it does.
    """
    for name, held in vars(old).items():
        mine = vars(new).get(name)
        if name not in but and inspect.isfunction(held) and callable(mine) and mine is not held and (
                isinstance(old, keras.layers.Lambda) or getattr(mine, "__code__", None) != held.__code__):
            setattr(new, name, held)


def _take_vocabulary(old, new):
    """What lookups and TextVectorization have learned by `adapt`, or read from a file."""
    if not isinstance(old, keras.layers.StringLookup | keras.layers.IntegerLookup):
        return
    words = list(old.get_vocabulary(include_special_tokens=False))
    if not words or words == list(new.get_vocabulary(include_special_tokens=False)):
        return
    weighted = old.output_mode == "tf_idf"
    start = old.vocabulary_size() - len(words)
    new.set_vocabulary(words, np.asarray(old.idf_weights)[start:start + len(words)] if weighted else None)
    if weighted:
        new.load_own_variables({"idf_weights": np.asarray(old.idf_weights)})


def _use(pairs, call, op, *args, **kwargs):
    """One use of a new operation; the old model's variables among its arguments, as with tied weights, are replaced."""
    if any(isinstance(x, keras.Variable) for x in keras.tree.flatten((args, kwargs))):
        new = {id(a): b for old, made, _ in pairs.values()
               for a, b in zip(old.variables, made.variables, strict=False)}
        args, kwargs = keras.tree.map_structure(lambda x: new.get(id(x), x), (args, kwargs))
    return op(*args, **kwargs) if call is None else call(op, *args, **kwargs)


def own_methods(model):
    """What a class of the user's does otherwise than Keras' models."""
    return sorted({name for kind in type(model).__mro__ if not kind.__module__.startswith(_LIBRARIES)
                   for name in _BEHAVIOR if name in vars(kind)})


def takes_graph(model):
    """Can a model of this class be made from (inputs, outputs), or a Sequential from its layers?"""
    if type(model).__module__.startswith("keras."):
        return True
    names = list(_parameters(type(model)))
    first = ["layers"] if isinstance(model, keras.Sequential) else ["inputs", "outputs"]
    return names[:len(first)] == first or names[:2] == ["args", "kwargs"]


def _is_graph(layer, rewrites):
    """Is a layer copied as a graph? Otherwise, as a class that builds its graph itself, it is made from its config."""
    if graph_of(layer) is None or takes_graph(layer):
        return graph_of(layer) is not None
    require(not (rewrites and own_methods(layer)), "a graph that a class builds itself cannot be changed",
            model=describe(layer), methods=own_methods(layer), do="Let its constructor take (inputs, outputs, "
            "**kwargs), or pass keras.Model(model.inputs, model.outputs), which does without these methods.")
    return rewrites


def graph_model(owner, *graph):
    """A model of the class of `owner` on a new graph: (inputs, outputs), or ([inputs, layers ...],)."""
    kind = type(owner)
    if kind.__module__.startswith("keras.") or not takes_graph(owner) or (
            len(graph) == 2 and isinstance(owner, keras.Sequential)):
        new = (keras.Sequential if len(graph) == 1 else keras.Model)(*graph, name=owner.name)
    else:
        names = list(_parameters(kind))[len(graph):]
        extra = {name: _plain(vars(owner)[name]) for name in names if name in vars(owner) and name not in _BASE}
        new = kind(*graph, **extra)
        new.name = owner.name
    for name, held in vars(owner).items():                     # what the user hung on it, such as class names
        if not name.startswith("_") and name not in vars(new) and name not in _COMPILED and not _is_tracked(held):
            setattr(new, name, _plain(held))
    return new


def _is_tracked(held):
    return any(isinstance(item, keras.layers.Layer | keras.Variable | keras.metrics.Metric)
               for item in keras.tree.flatten(held))


def _transfer_own(old, new, value):
    """Variables that a subclass of a graph model has beside those of its graph."""
    if type(old).__module__.startswith("keras."):
        return
    own = []
    for model in (old, new):
        inside = {id(variable) for layer in model.layers for variable in layer.variables}
        own.append([variable for variable in model.variables if id(variable) not in inside])
    _assign(old, *own, value)


def _build_alike(old, new):
    """Builds a subclassed model from the shapes that the old one was built with."""
    shapes = old.get_build_config()
    try:
        new.build_from_config(shapes)
    except Exception as problem:                               # of the user's `build` or `call`
        raise refusal(f"{describe(old)} cannot be built again", shapes=shapes,
                      reason=_short(problem), do="Let its class build in `build(input_shape)`, or rebuild it with "
                      "keras.Model(inputs, outputs).") from None


def _short(problem):
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:160]


@contextlib.contextmanager
def _policy(policy):
    """While it lasts, layers that are made inside a layer get its dtype policy, as they did when it was made."""
    kept = keras.config.dtype_policy()
    policy = kept if policy is None else keras.dtype_policies.get(policy)
    if policy == kept or "float" not in policy.compute_dtype:
        yield
        return
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(kept)
