"""Any Keras 3 layer or operation, carried as it is inside a tf_keras graph."""

import functools
import inspect
import json

import tf_keras

from .. import _models
from .._keras import call_losses, fresh_operation, keras, mask_of, set_mask, tf

_TENSOR = "tfopt:tensor:"          # stands in a call's arguments for its i-th tensor
_live = {}                         # text -> the object of this process that it was written from, and `dtype`


def dump(value, dtype=None):
    """A Keras 3 object, or a structure of constants, as a JSON text that tf_keras cannot mistake for its own config."""
    text = json.dumps(_tidy(keras.saving.serialize_keras_object(value), dtype), sort_keys=True)
    if isinstance(value, keras.Operation):
        _live[text] = value, dtype
    return text


def load(text):
    """What `dump` wrote. In the same process a layer is made of the live one, with all that its config leaves out."""
    if text not in _live:
        return keras.saving.deserialize_keras_object(json.loads(text))
    value, dtype = _live[text]
    if not isinstance(value, keras.layers.Layer):
        return fresh_operation(value)
    return _models.recreate(value, dtype=dtype)


def _tidy(config, dtype):
    """A config without the shapes to build for, as the first call does that, and with `dtype` for its policies."""
    if isinstance(config, list):
        return [_tidy(item, dtype) for item in config]
    if not isinstance(config, dict):
        return config
    if dtype and config.get("class_name") == "DTypePolicy" and "float" in config["config"]["name"]:
        return {**config, "config": {**config["config"], "name": dtype}}
    return {key: _tidy(item, dtype) for key, item in config.items() if key != "build_config"}


@tf_keras.saving.register_keras_serializable("tfopt")
class Embedded(tf_keras.layers.Layer):
    """Carries a Keras 3 layer or operation, with the constants it is called with, as a black box.

    Args:
      carried: the layer or operation, as `dump` writes it.
      arguments: `(args, kwargs)` of its call with marks in place of tensors, as `dump` writes them.
      tensors: shape and dtype of each tensor, in order.
      fixed: positions of the variables that do not train although the layer does.
    """

    def __init__(self, carried, arguments, tensors, fixed=(), **kwargs):
        super().__init__(autocast=False, **kwargs)
        vars(self).update(                           # past tf_keras' tracking, which would wrap all of it
            inner=load(carried), _arguments=keras.tree.map_structure(_constant, load(arguments)),
            _recipe={"carried": carried, "arguments": arguments, "fixed": list(fixed),
                     "tensors": [[list(shape), dtype] for shape, dtype in tensors]})
        self.supports_masking = getattr(self.inner, "supports_masking", False)
        self._takes_training = "training" in inspect.signature(self.inner.call).parameters
        args, kwargs = self._filled([keras.KerasTensor(tuple(shape), dtype) for shape, dtype in tensors])
        self.inner(*args, **kwargs)                  # makes the variables
        self._adopt_variables()

    @classmethod
    def of(cls, op, args, kwargs, *, name, dtype=None):
        """Carries `op` as it is called with `args` and `kwargs`, which hold KerasTensors."""
        symbols = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        fixed = [i for i, v in enumerate(op.variables) if not v.trainable] if getattr(op, "trainable", False) else []
        plain = isinstance(op, keras.layers.Layer) and op.quantization_mode is None
        policy = op.dtype_policy.name if plain else "float32"
        return cls(dump(op, dtype), arguments_of(args, kwargs), [(x.shape, x.dtype) for x in symbols], fixed,
                   name=name, dtype=dtype or policy, trainable=getattr(op, "trainable", True))

    def fits(self, args, kwargs):
        """Whether a call with these arguments has the constants that are bound here."""
        return arguments_of(args, kwargs) == self._recipe["arguments"]

    def _adopt_variables(self):
        for i, variable in enumerate(getattr(self.inner, "variables", ())):
            trains = variable.value.trainable and i not in self._recipe["fixed"]
            (self._trainable_weights if trains else self._non_trainable_weights).append(variable.value)
            self._track_trackable(variable.value, f"variable_{i}")
            for part in getattr(variable.value, "values", [variable.value]):
                part._constraint = variable.constraint      # where tf_keras looks for it
            if trains and self.trainable and variable.regularizer is not None:
                self.add_loss(functools.partial(variable.regularizer, variable))

    def _filled(self, tensors):
        return keras.tree.map_structure(lambda x: tensors[int(x[len(_TENSOR):])] if _is_mark(x) else x, self._arguments)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, training=None, mask=None):
        tensors = tf.nest.flatten(inputs)
        for x, m in zip(tensors, tf.nest.flatten(mask), strict=False):
            if m is not None:
                set_mask(x, m)
        args, kwargs = self._filled(tensors)
        if self._takes_training:
            kwargs["training"] = bool(tf.get_static_value(training) if tf.is_tensor(training) else training)
        outputs = self.inner(*args, **kwargs)
        if isinstance(self.inner, keras.layers.Layer):
            self.add_loss(call_losses(self.inner))
        return outputs

    def compute_mask(self, inputs, mask=None):
        args, kwargs = self._filled(tf.nest.flatten(inputs))
        first = args[0] if args else next(iter(kwargs.values()))
        return self.inner.compute_mask(first, keras.tree.map_structure(mask_of, first))

    def get_config(self):
        return {**super().get_config(), **self._recipe}


def arguments_of(args, kwargs):
    """`(args, kwargs)` as text, with marks in place of KerasTensors."""
    count = iter(range(len(keras.tree.flatten((args, kwargs)))))
    return dump(keras.tree.map_structure(
        lambda x: f"{_TENSOR}{next(count)}" if isinstance(x, keras.KerasTensor) else x, [list(args), dict(kwargs)]))


def _is_mark(x):
    return isinstance(x, str) and x.startswith(_TENSOR)


def _constant(x):
    return x.numpy() if tf.is_tensor(x) else x
