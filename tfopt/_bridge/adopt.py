"""A tf_keras graph carried inside a Keras 3 model, which is compiled, trained, saved and distilled like any other."""

from .. import _models
from .._check import require
from .._keras import ModelWithOwnLosses, keras, same_randomness
from . import legacy_name, to_legacy


class Adopted(ModelWithOwnLosses):
    """A Keras 3 model that runs the tf_keras counterpart of `base`, rewritten by a technique.

    The variables are those of the counterpart, adopted without a copy, so whatever the technique does to them inside
    the graph acts in training. What is saved is the structure of `base` and the `recipe`: loading bridges and wraps
    anew, and then Keras assigns the variables.

    A technique derives a class, names itself in `caller` and says in `rewrite` what it does to the counterpart.

    Args:
      base: built Functional or Sequential Keras 3 model; it is only read, its weights are copied.
      recipe: JSON-like dict of what `rewrite` needs to know.
      name: of the model; by default that of `base`.
      counterpart: the tf_keras counterpart of `base`, if the caller has made it already.
    """

    caller = "wrap"

    def __init__(self, base, recipe, name=None, counterpart=None):
        super().__init__(name=name or base.name, dtype=base.dtype_policy, autocast=False)
        require_plain(base, self.caller)
        with same_randomness(), _models.scope_of(base):
            legacy = self.rewrite(counterpart or to_legacy(base, self.caller), base, **recipe)
            # A layer that is not trainable keeps its variables from training, whatever their own flags say.
            trained = {id(variable) for variable in legacy.trainable_variables}
            self._adopted = [keras.Variable(variable, trainable=id(variable) in trained, dtype=variable.dtype.name,
                                            name=_name(variable)) for variable in _unique(legacy.variables)]
            for variable, adopted in zip(_unique(legacy.variables), self._adopted, strict=True):
                adopted.constraint = variable.constraint
        self._base, self._recipe, self._legacy = _Untracked(base), recipe, _Untracked(legacy)
        self.built = True

    def rewrite(self, counterpart, base, **recipe):
        """The tf_keras model to train, made of `counterpart`."""
        raise NotImplementedError

    @property
    def base(self):
        """The Keras 3 model that was wrapped: for its structure, not for its weights."""
        return self._base.held

    @property
    def recipe(self):
        return self._recipe

    @property
    def legacy(self):
        """The tf_keras model that runs."""
        return self._legacy.held

    def call(self, inputs, training=None):
        return self.legacy(inputs, training=bool(training))

    def own_losses(self):
        return self.legacy.losses

    def compute_output_spec(self, inputs, training=None):
        return self.base.compute_output_spec(inputs)

    def get_config(self):
        return {"base": keras.saving.serialize_keras_object(self.base), "recipe": self._recipe, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        base = keras.saving.deserialize_keras_object(config["base"], custom_objects=custom_objects)
        return cls(base, config["recipe"], name=config["name"])


def require_plain(model, caller):
    """Refuses what no technique can wrap: anything but a built graph model in float32 or bfloat16."""
    require(not isinstance(model, Adopted), f"{caller} needs a plain model", model=type(model).__name__,
            do="It is wrapped already: train it and call `strip` first.")
    _models.require_graph(model, caller)
    half = [path for path, layer in _models.layers(model).items() if layer.dtype_policy.name == "mixed_float16"]
    require(not half, f"{caller} needs layers in float32 or mixed_bfloat16: the toolkit's layers fail in float16",
            mixed_float16=half[:3], do="Build the model under keras.config.set_dtype_policy('mixed_bfloat16').")


def require_adopted(model, kind, caller, made_by):
    """Refuses a model that `made_by` did not make."""
    require(isinstance(model, kind), f"{caller} needs a model that came from {made_by}",
            model=_models.describe(model), do=f"Call {made_by}(model, ...), train the result, then {caller}.")


def by_path(model, counterpart):
    """{path of a Keras 3 layer: its tf_keras counterpart}."""
    counterparts = {layer.name: layer for layer in counterpart.layers}
    return {path: counterparts[name] for path in _models.layers(model) if (name := legacy_name(path)) in counterparts}


def choose(model, where, able, caller, what):
    """The entries of `able`, {path: anything}, that `where` chooses; see `_models.select`."""
    fit = {id(layer) for path, layer in _models.layers(model).items() if path in able}
    chosen = _models.select(model, where, caller, able=lambda layer: id(layer) in fit, what=what)
    return {path: able[path] for path in chosen}


class _Untracked:
    """Keeps an object out of the model's own variables, layers and files."""

    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


def _unique(variables):
    return list({id(variable): variable for variable in variables}.values())


def _name(variable):
    return variable.name.split(":")[0].replace("/", "_")
