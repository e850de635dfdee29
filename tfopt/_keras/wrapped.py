"""A technique on a live model: the model keeps its class and all that it does, and gains the state of the technique."""

import contextlib
import functools
import sys
import threading

import keras
from keras.src.backend.common import global_state
from keras.src.saving import object_registration

from .._check import refusal
from .graph import parts_of

_here = threading.local()             # replicas run in threads of their own


class Wrapped:
    """Mixin of a model that a technique trains: saved as the config of the plain model and the technique's recipe.

    A technique derives a class, registers it, and says in `attach` what it adds to the model's layers. The class of the
    model then derives from both, so that its own `train_step`, `compute_loss` and `call` go on as they are.
    """

    def __init__(self, *args, **kwargs):
        raise refusal("a wrapped model is not made again", model=type(self).__name__,
                      do="Strip it, and copy the result.")

    @classmethod
    def of(cls, model, recipe):
        """Turns `model` itself into a wrapped one.

        Args:
          model: built, of a class of its own; whoever calls this owns it.
          recipe: JSON-like dict of what `attach` needs to know.
        """
        model.__class__, names = _derived(cls, type(model)), set(vars(model))
        vars(model).update(_recipe=recipe, _state=[])      # past Keras' tracking, which would wrap them
        model.attach()
        vars(model)["_added"] = {*vars(model), "_added"} - names
        return model

    @property
    def recipe(self):
        """What `attach` was told."""
        return self._recipe

    def attach(self):
        """Adds the technique's variables and hooks, for a model whose variables are assigned afterwards."""
        raise NotImplementedError

    def settle(self):
        """Makes true once more what the constraints say, after training."""
        raise NotImplementedError

    def fit(self, *args, **kwargs):
        history = super().fit(*args, **kwargs)
        self.settle()                                      # some optimizers end by assigning averages of the past
        return history

    def save(self, filepath, *args, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):       # Keras fails on variables of the model itself there
            raise refusal("an HDF5 file cannot hold a wrapped model", filepath=str(filepath),
                          do="Save it as `.keras`, or its weights as `.weights.h5`.")
        return super().save(filepath, *args, **kwargs)

    def add_state(self, name, shape, dtype, trainable=False, initializer="zeros"):
        """A variable of the model itself, which is saved with it."""
        locked = self._tracker.locked
        self._tracker.unlock()
        try:
            variable = self.add_weight(
                shape=shape, dtype=dtype, initializer=initializer, trainable=trainable, name=name, autocast=False,
                aggregation="none" if trainable else "only_first_replica")
            setattr(self, f"_{name}", variable)            # where tf.train.Checkpoint finds it
            self._state.append(variable)
            return variable
        finally:
            if locked:
                self._tracker.lock()

    def call_in_training(self):
        """Makes `is_training` true in `train_step`, also where the model's `call` has no argument `training`."""
        def train_step(*args, **kwargs):
            with calls_in_training(self):
                return type(self).train_step(self, *args, **kwargs)

        if not self._call_has_training_arg:
            vars(self)["train_step"] = train_step          # of the object: the class has that of the model

    @contextlib.contextmanager
    def plain(self):
        """While it lasts, the model is of the class that was wrapped, without the technique's variables."""
        derived, self.__class__ = type(self), type(self).__bases__[1]
        kinds, state = (self._trainable_variables, self._non_trainable_variables), set(map(id, self._state))
        whole, added = [list(kind) for kind in kinds], {name: vars(self).pop(name) for name in self._added}
        for kind in kinds:
            kind[:] = [variable for variable in kind if id(variable) not in state]
        try:
            yield self
        finally:
            vars(self).update(added)
            for kind, variables in zip(kinds, whole, strict=True):
                kind[:] = variables
            self.__class__ = derived

    def get_config(self):
        with self.plain():
            base = keras.saving.serialize_keras_object(self)
        base.pop("compile_config", None)                   # the wrapped model is compiled, once
        return {"base": base, "recipe": self.recipe}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        base = keras.saving.deserialize_keras_object(config["base"], custom_objects=custom_objects)
        return getattr(cls, "technique", cls).of(base, config["recipe"])


@functools.cache
def _derived(technique, base):
    cls = type(technique.__name__ + base.__name__, (technique, base),
               {"technique": technique, "__module__": technique.__module__, "__doc__": technique.__doc__})
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = object_registration.get_registered_name(technique)
    return cls


def is_wrapped(model):
    """Is a model, or a model inside it, in the hands of a technique?"""
    return any(isinstance(part, Wrapped) for part in parts_of(model))


def inner_layers(layer):
    """The layers directly inside a layer or model, in the order they were made."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_variables(layer):
    """The variables that belong to a layer itself, not to the layers inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def substitute(caller, tensors):
    """From now on, in each call of a layer, it and those inside read tensors in place of variables of their own.

    The layer's class and config stay what they are.

    Args:
      caller: the layer.
      tensors: [(layer that has it, variable, make)]; `make()` is called before each call, None stands for no change.
    """
    call = caller.call
    places = [(owner, [name for name, held in vars(owner).items() if held is variable], variable, make)
              for owner, variable, make in tensors]

    @functools.wraps(call)
    def substituted(*args, **kwargs):
        made = [(owner, names, variable, make()) for owner, names, variable, make in places]
        made = [place for place in made if place[-1] is not None]
        try:
            for owner, names, _, value in made:
                vars(owner).update(dict.fromkeys(names, keras.ops.cast(value, owner.compute_dtype)))
            return call(*args, **kwargs)
        finally:
            for owner, names, variable, _ in made:
                vars(owner).update(dict.fromkeys(names, variable))

    vars(caller)["call"] = substituted


def is_training():
    """For what runs inside a layer's call: is it a call with `training=True`, its own or that of a layer around it?

    Keras does not say so where the `call` of a subclassed model has no such argument: then `calls_in_training` does.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context is not None and context.get_value("training")) or getattr(_here, "trains", False)


@contextlib.contextmanager
def calls_in_training(model, training=True):
    """While it lasts, calls of `model` are in training, or not, also where its `call` has no argument `training`."""
    before = getattr(_here, "trains", False)
    _here.trains = bool(training) and not model._call_has_training_arg
    try:
        yield
    finally:
        _here.trains = before


def applies_now():
    """For a constraint that an optimizer calls: is this a step of the optimizer, or does it still collect gradients?"""
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), keras.optimizers.Optimizer):
        frame = frame.f_back
    optimizer = frame and frame.f_locals["self"]
    if optimizer is None or not optimizer.gradient_accumulation_steps:
        return True
    return (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
