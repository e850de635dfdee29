"""Any Keras 3 layer or operation, carried as it is inside a tf_keras graph."""

import functools
import inspect
import json

import tf_keras

from .._keras import call_losses, keras, parts_of, tf

_TENSOR = "tfopt:tensor:"          # stands in a call's arguments for its i-th tensor
_classes = {}                      # classes seen in this process, so that unregistered ones can be cloned in it
_trusted = set()                   # texts written from live objects of this process: their lambdas are the user's own


def dump(value, dtype=None):
    """A Keras 3 object, or a structure of constants, as a JSON text that tf_keras cannot mistake for its own config."""
    config = keras.saving.serialize_keras_object(value)
    text = json.dumps(config if dtype is None else _with_dtype(config, dtype), sort_keys=True)
    _trusted.add(text)
    return text


def load(text):
    """What `dump` wrote. Python lambdas come back only in the process that wrote them, or with `safe_mode=False`."""
    return keras.saving.deserialize_keras_object(
        json.loads(text), custom_objects=dict(_classes), **({"safe_mode": False} if text in _trusted else {}))


def _with_dtype(config, dtype):
    """The same config with every floating dtype policy replaced."""
    if isinstance(config, list):
        return [_with_dtype(item, dtype) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        floating = "float" in config["config"]["name"]
        return {**config, "config": {**config["config"], "name": dtype}} if floating else config
    return {key: _with_dtype(item, dtype) for key, item in config.items()}


@tf_keras.saving.register_keras_serializable("tfopt")
class Embedded(tf_keras.layers.Layer):
    """Carries a Keras 3 layer or operation, with the constants it is called with, as a black box.

    Args:
      carried: the operation, as `dump` writes it.
      arguments: `(args, kwargs)` of its call with marks in place of tensors, as `dump` writes them.
      tensors: shape and dtype of each tensor, in order.
      fixed: positions of the variables that do not train although the layer does.

    Example: Embedded.of(keras.layers.LayerNormalization(), (x,), {}, name="norm")(tf_keras_tensor)
    """

    def __init__(self, carried, arguments, tensors, fixed=(), **kwargs):
        super().__init__(autocast=False, **kwargs)
        inner = load(carried)
        vars(self).update(                           # past tf_keras' tracking, which would wrap all of it
            inner=inner, _arguments=keras.tree.map_structure(_constant, load(arguments)),
            _recipe={"carried": carried, "arguments": arguments, "fixed": list(fixed),
                     "tensors": [[list(shape), dtype] for shape, dtype in tensors]})
        self.supports_masking = getattr(inner, "supports_masking", False)
        self._takes_training = isinstance(inner, keras.layers.Layer) and (
            "training" in inspect.signature(inner.call).parameters)
        symbols = [keras.KerasTensor(tuple(shape), dtype) for shape, dtype in tensors]
        args, kwargs = self._filled(symbols)
        inner(*args, **kwargs)                       # makes the variables
        self._adopt_variables(set(fixed))

    @classmethod
    def of(cls, op, args, kwargs, *, name, dtype=None):
        """Carries `op` as it is called with `args` and `kwargs`, which hold KerasTensors."""
        symbols = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        marks = iter(f"{_TENSOR}{i}" for i in range(len(symbols)))
        arguments = keras.tree.map_structure(
            lambda x: next(marks) if isinstance(x, keras.KerasTensor) else x, (list(args), dict(kwargs)))
        _classes.update({type(part).__name__: type(part) for part in parts_of(op)
                         if not type(part).__module__.startswith("keras.")})
        policy = op.dtype_policy.name if isinstance(op, keras.layers.Layer) else None
        fixed = [i for i, v in enumerate(op.variables) if not v.trainable] if getattr(op, "trainable", False) else []
        return cls(dump(op, dtype), dump(arguments), [(x.shape, x.dtype) for x in symbols], fixed, name=name,
                   dtype=dtype or policy or "float32", trainable=getattr(op, "trainable", True))

    def _adopt_variables(self, fixed):
        for i, variable in enumerate(getattr(self.inner, "variables", ())):
            trains = variable.value.trainable and i not in fixed
            (self._trainable_weights if trains else self._non_trainable_weights).append(variable.value)
            self._track_trackable(variable.value, f"variable_{i}")
            if trains and self.trainable and variable.regularizer is not None:
                self.add_loss(functools.partial(variable.regularizer, variable))

    def _filled(self, tensors):
        return keras.tree.map_structure(
            lambda x: tensors[int(x[len(_TENSOR):])] if isinstance(x, str) and x.startswith(_TENSOR) else x,
            self._arguments)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, training=None, mask=None):
        tensors = tf.nest.flatten(inputs)
        for x, m in zip(tensors, tf.nest.flatten(mask), strict=False):
            if m is not None:
                x._keras_mask = m                    # the same attribute in both
        args, kwargs = self._filled(tensors)
        if self._takes_training:
            kwargs["training"] = bool(tf.get_static_value(training)) if tf.is_tensor(training) else bool(training)
        outputs = self.inner(*args, **kwargs)
        if isinstance(self.inner, keras.layers.Layer):
            self.add_loss(call_losses(self.inner))
        return outputs

    def compute_mask(self, inputs, mask=None):
        args, kwargs = self._filled(tf.nest.flatten(inputs))
        first = args[0] if args else next(iter(kwargs.values()))
        masks = keras.tree.map_structure(lambda x: getattr(x, "_keras_mask", None), first)
        return self.inner.compute_mask(first, masks)

    def get_config(self):
        return {**super().get_config(), **self._recipe}


def _constant(x):
    return x.numpy() if tf.is_tensor(x) else x
