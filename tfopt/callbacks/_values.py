"""Plain data to JSON and arrays, and back: the state of callbacks. Nothing here runs code that comes out of a file."""

import dis
import inspect
import json
import os

import numpy as np

from .._check import require
from .._keras import keras, optimizers_in, schedule_of, tf

# Callbacks keep how they compare under a name of theirs; nothing else that a file names is ever looked up
_OPERATIONS = {(place, name): getattr(module, name) for place, module in (("keras.ops", keras.ops), ("numpy", np))
               for name in ("less", "less_equal", "greater", "greater_equal", "minimum", "maximum")}
_NEVER = ("_model", "params")


class NoDataError(TypeError):
    """A value that is not plain data."""


def pack(value, keep):
    """JSON of numbers, words, arrays, tensors, variables and lists, tuples, sets and dicts of these.

    Args:
      value: what to save.
      keep: `array -> name`, puts an array away.

    Raises:
      NoDataError: it is something else.

    Example:
      >>> arrays = {}
      >>> def keep(array):
      ...     name = f"array-{len(arrays)}"
      ...     arrays[name] = array
      ...     return name
      >>> packed = pack({"wait": 2, "best": [np.zeros(3)]}, keep)
      >>> unpack(packed, arrays)
      {'wait': 2, 'best': [array([0., 0., 0.])]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, keras.Variable | tf.Variable):
        return {"variable": keep(value_of(value))}
    if isinstance(value, np.generic | np.ndarray) and value.dtype != object:
        return {"scalar" if isinstance(value, np.generic) else "array": keep(np.asarray(value))}
    if isinstance(value, tf.Tensor) and hasattr(value, "numpy") and value.dtype not in (tf.string, tf.variant):
        return {"tensor": keep(value.numpy())}
    if isinstance(value, dict):
        return {"dict": [[pack(key, keep), pack(entry, keep)] for key, entry in value.items()]}
    for kind in (list, tuple, set):
        if isinstance(value, kind) and not hasattr(value, "_fields"):
            return {kind.__name__: [pack(entry, keep) for entry in value]}
    for place, operation in _OPERATIONS.items():
        if value is operation:
            return {"operation": list(place)}
    raise NoDataError(type(value).__name__)


def unpack(packed, arrays, now=None):
    """What `pack` was given. Variables, lists and dicts that are there (`now`) are filled, not replaced."""
    if not isinstance(packed, dict):
        return packed
    (kind, content), = packed.items()
    if kind == "variable":
        now.assign(arrays[content])
        return now
    if kind == "scalar":
        return arrays[content][()]
    if kind == "array":
        return arrays[content].copy()
    if kind == "tensor":
        return tf.constant(arrays[content])
    if kind == "operation":
        require(tuple(content) in _OPERATIONS, "callbacks.Resume: a state names no functions but comparisons",
                operation=".".join(content), do="It was not written by this library: choose another directory.")
        return _OPERATIONS[tuple(content)]
    if kind == "dict":
        new = {}
        for key, entry in content:
            key = unpack(key, arrays)
            new[key] = unpack(entry, arrays, now.get(key) if isinstance(now, dict) else None)
        return _filled(now, new, dict)
    old = now if isinstance(now, list | tuple) and len(now) == len(content) else [None] * len(content)
    new = [unpack(entry, arrays, before) for entry, before in zip(content, old, strict=True)]
    if kind == "list":
        return _filled(now, new, list)
    return {"tuple": tuple, "set": set}[kind](new)


def _filled(now, new, kind):
    if not isinstance(now, kind):
        return new
    now.clear()
    (now.update if kind is dict else now.extend)(new)
    return now


class Memory:
    """The state that a callback has gathered since training began: its attributes, if they are plain data.

    An argument of its constructor belongs to the user, and is left out as long as it is what it was. An array counts
    as the same if it is the same object. Lists, dicts and sets of anything else are always taken along. Text that was
    passed in, or that a callback of Keras begins with, is never state: it may be a path to write to.

    Args:
      callback: any keras.callbacks.Callback, whose `on_train_begin` has run.
    """

    def __init__(self, callback):
        self.callback, self.name = callback, type(callback).__name__
        self.begun, self.given, self.kept, self.lost = dict(vars(callback)), {}, [], {}
        for name in inspect.signature(type(callback).__init__).parameters:
            arrays = []
            look = _look(self.begun.get(name), arrays)
            if arrays or not isinstance(self.begun.get(name), list | dict | set):
                self.given[name] = look
                self.kept += arrays                                     # so that their ids stay taken

    def packed(self, keep):
        """{attribute: packed value}; what is not data and has changed is listed in `lost`."""
        state = {}
        for name, value in vars(self.callback).items():
            if not self._may_be_state(name) or (
                    name in self.given and self.given[name] == _look(value, []) is not None):
                continue
            try:
                state[name] = pack(value, keep)
            except NoDataError as error:
                if self.begun.get(name) is not value and not type(self.callback).__module__.startswith("keras."):
                    self.lost[name] = str(error)
        return state

    def _may_be_state(self, name):
        if name in _NEVER or name not in _attributes_of(self.callback) or callable(
                getattr(type(self.callback), name, None)):
            return False
        is_text = isinstance(self.begun.get(name), str | bytes | os.PathLike)
        return not (is_text and (name in self.given or type(self.callback).__module__.startswith("keras.")))

    def restore(self, state, arrays):
        foreign = [name for name in state if not self._may_be_state(name)]
        require(not foreign, "callbacks.Resume: a state holds attributes that are never saved, so somebody changed it",
                callback=self.name, attributes=foreign, do="Use a directory that only you can write to.")
        for name, packed in state.items():
            setattr(self.callback, name, unpack(packed, arrays, vars(self.callback).get(name)))
            self.given.pop(name, None)


def _attributes_of(callback):
    """The names of what a callback holds, and of what methods of its class assign."""
    def assigned(code):
        inner = [assigned(part) for part in code.co_consts if inspect.iscode(part)]
        return {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}.union(*inner)

    functions = [part for cls in type(callback).__mro__ for part in vars(cls).values() if inspect.isfunction(part)]
    return set(vars(callback)).union(*(assigned(function.__code__) for function in functions))


def _look(value, kept):
    """What tells whether a value is still the same, or None if it is not data."""
    def same(array):
        kept.append(array)
        return id(array)

    try:
        return [pack(value, same)]
    except NoDataError:
        return None


def value_of(variable):
    """A variable's value as an array, on whatever devices it lives."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return value.numpy() if hasattr(value, "numpy") else keras.ops.convert_to_numpy(value)      # which copies twice


def optimizers_of(model):
    """The optimizer a model was compiled with, and others that are attributes of it."""
    held = {id(thing): thing for thing in [model.optimizer, *vars(model).values()]
            if isinstance(thing, keras.optimizers.Optimizer)}
    return list(held.values())


def schedule_variables(optimizer):
    """The variables inside the schedules that an optimizer, or those inside it, hold."""
    found = {}

    def visit(thing):
        if isinstance(thing, keras.Variable | tf.Variable):
            found.setdefault(id(thing), thing)
        elif isinstance(thing, list | tuple):
            for part in thing:
                visit(part)
        elif isinstance(thing, keras.optimizers.schedules.LearningRateSchedule):
            visit(list(vars(thing).values()))

    for single in optimizers_in(optimizer):
        visit(schedule_of(single))
    return list(found.values())


def settings_of(optimizer):
    """The configuration of an optimizer, without names, as JSON has it."""
    def nameless(config):
        if isinstance(config, dict):
            return {key: nameless(value) for key, value in config.items() if key != "name"}
        return [nameless(value) for value in config] if isinstance(config, list) else config

    config = json.dumps(optimizer.get_config(), default=lambda thing: type(thing).__name__)
    return {"class": type(optimizer).__name__, **dict(nameless(json.loads(config)))}


def forms_of(variables):
    """[[shape, dtype]] as JSON has it."""
    return [[list(variable.shape), keras.backend.standardize_dtype(variable.dtype)] for variable in variables]


def require_same(what, saved, now, directory):
    """Refuses `now` unless it is `saved`; the first difference is shown."""
    rule = f"callbacks.Resume goes on with the {what} it has saved"
    if isinstance(saved, dict) and saved != now:
        name = next(name for name in {**saved, **now} if saved.get(name) != now.get(name))
        saved, now, rule = saved.get(name), now.get(name), f"{rule}, and {name!r} differs"
    elif isinstance(saved, list) and len(saved) != len(now):
        saved, now, rule = len(saved), len(now), f"{rule}, and the number of variables differs"
    elif isinstance(saved, list) and saved != now:
        place = next(place for place, form in enumerate(saved) if form != now[place])
        saved, now, rule = saved[place], now[place], f"{rule}, and variable {place} differs"
    require(saved == now, rule, saved=saved, now=now, directory=str(directory),
            do="Make it as it was, or choose another directory to train anew.")
