"""Configs: a public class is saved by its constructor's arguments, and found again under `tfopt.<module>>Name`."""

import inspect

import keras

_OWN_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def serializable(cls):
    """Registers a class with Keras under the package `tfopt.<module>`, so that files that hold it load without
    custom_objects once the module is imported."""
    package = ".".join(cls.__module__.split(".")[:2])
    return keras.saving.register_keras_serializable(package=package)(cls)


class ConfigFromArguments:
    """Mixin: `get_config()` returns the constructor's arguments, read from the attributes of the same names.

    Arguments may be Keras objects, also in lists and dicts. A constructor with `**kwargs` passes them to its base
    class, whose config is then part of this one. List the mixin before the Keras class.

    Example:
      >>> @serializable
      ... class Scale(ConfigFromArguments, keras.regularizers.Regularizer):
      ...     def __init__(self, factor, penalty=None):
      ...         self.factor, self.penalty = factor, penalty
      >>> config = Scale(2.0, keras.regularizers.L2(0.5)).get_config()
      >>> config["factor"], Scale.from_config(config).penalty.l2
      (2.0, 0.5)
    """

    def get_config(self):
        names, takes_more = _arguments(type(self))
        base = super().get_config() if takes_more else {}
        return {**base, **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        names, takes_more = _arguments(cls)
        own = {name: _deserialized(config[name], custom_objects) for name in names if name in config}
        if not takes_more:
            return cls(**own)
        rest = {name: value for name, value in config.items() if name not in own}
        if isinstance(rest.get("dtype"), dict):
            rest["dtype"] = keras.saving.deserialize_keras_object(rest["dtype"])
        return cls(**rest, **own)


def _arguments(cls):
    """Names of the constructor's own arguments, and whether it takes `**kwargs`."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return ([p.name for p in parameters if p.kind in _OWN_KINDS],
            any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


def _deserialized(value, custom_objects):
    if not isinstance(value, dict | list):
        return value
    return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
