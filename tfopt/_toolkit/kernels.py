"""The kernels of a model, wherever they are: in its layers, in the layers inside those, in nested models."""

import dataclasses
import itertools
import math

import keras

from .. import _models
from .._check import require
from .._keras import inner_layers, is_wrapped, own_variables, parts_of
from .._models.describe import Verbatim

_layers = keras.layers
_NAMES = {(_layers.Dense, _layers.EinsumDense, _layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Conv1DTranspose,
           _layers.Conv2DTranspose, _layers.Conv3DTranspose): "kernel",
          (_layers.SeparableConv1D, _layers.SeparableConv2D): "pointwise_kernel", (_layers.Embedding,): "embeddings"}
FROZEN = "frozen: it cannot recover from what it loses"
_DEPTHWISE = (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)


@dataclasses.dataclass
class Kernel:
    """A variable that TFMOT prunes and clusters.

    Attributes:
      index: its place among all kernels of the model, by which a saved model finds it again.
      path: of the unit it belongs to, see `units`.
      owner: the layer whose attribute it is.
      caller: the layer in whose call it is read as a whole: the recurrent layer around a cell, else the owner.
      variable: the keras.Variable.
    """

    index: int
    path: str
    owner: keras.layers.Layer
    caller: keras.layers.Layer
    variable: keras.Variable


def units(model):
    """{path: layer} of the layers that are treated as a whole: Keras' own ones, and the parts of all others.

    MultiHeadAttention and Bidirectional are units; a block of one's own is looked into, as nested models are.
    """
    found, seen = {}, set()

    def visit(layer, path):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        inside = inner_layers(layer)
        whole = not inside or (type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.Model))
        if path and (whole or (own_variables(layer) and not isinstance(layer, keras.Model))):
            while path in found:
                path += "'"                                # layers inside a layer may share a name
            found[path] = layer
        for part in [] if whole else inside:
            visit(part, f"{path}/{part.name}" if path else part.name)

    visit(model, "")
    return found


def kernels(model, hook):
    """[Kernel] of a model, in a fixed order. A layer of one's own tells its kernels by the method `hook`."""
    found, seen = [], set()

    def visit(layer, path, caller):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        caller = caller or (layer if isinstance(layer, _layers.RNN) else None)
        for variable in _own(layer, hook):
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append(Kernel(len(found), path, layer, caller or layer, variable))
        for part in inner_layers(layer):
            if id(part) not in everything:
                visit(part, path, caller)

    rows = units(model)
    everything = {id(layer) for layer in rows.values()}
    for path, layer in rows.items():
        visit(layer, path, None)
    return found


def obstacle(layer, hook):
    """Why a unit has no kernel that is treated."""
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled: merge it into the kernel first"
    if getattr(layer, "quantization_mode", None):
        return "its kernel is quantized already"
    if isinstance(layer, _DEPTHWISE):
        return "no kernel that TFMOT treats: depthwise kernels lose too much"
    if type(layer).__module__.startswith("keras."):
        return f"no kernel in {type(layer).__name__}"
    return f"no kernel known of the class {type(layer).__name__}: a method `{hook}` would tell it"


def choose(model, where, able, what, empty=False):
    """The paths of `able`, {path: anything}, that `where` chooses; none only with `empty`.

    Args:
      model: a built model.
      where: None for all; layers, or their names or paths (a layer stands for all that is inside it); or
        `layer -> bool`, which is asked for each unit.
      able: {path of a unit that can be treated: anything}.
      what: what such a unit is called, for the sentences.
    """
    rows = units(model)
    names = Verbatim(", ".join(rows))
    if where is None or (callable(where) and not isinstance(where, keras.layers.Layer)):
        chosen = [path for path in rows if path in able and (where is None or where(rows[path]))]
    else:
        wanted = [where] if isinstance(where, str | keras.layers.Layer) else list(where)
        hits = {one if isinstance(one, str) else one.name:
                [path for path, layer in rows.items() if _hit(one, path, layer)] for one in wanted}
        unknown = [name for name, paths in hits.items() if not paths]
        require(not unknown, "`where` must name layers of the model", unknown=unknown, do=f"Its layers are {names}.")
        unfit = [name for name, paths in hits.items() if able.keys().isdisjoint(paths)]
        require(empty or not unfit, f"`where` must name a {what}", unfit=unfit, do="Leave these out.")
        chosen = [path for path in rows if path in able and any(path in paths for paths in hits.values())]
    require(chosen or empty, f"`where` must choose at least one {what}", where=where, do=f"Its layers are {names}.")
    return chosen


def table(model, by_path, chosen, why):
    """The table behind `plan`: one row a unit with weights.

    Args:
      model: a built model.
      by_path: its kernels, `grouped`.
      chosen: {path: remark} of the units that would be treated.
      why: `(path, layer) -> reason` for the others.

    Returns:
      The pandas.DataFrame of `_models.table`.
    """
    return _models.table([
        {"layer": path, "class": type(layer).__name__, "parameters": layer.count_params(),
         "affected": sum(math.prod(kernel.variable.shape) for kernel in by_path[path]) if path in chosen else 0,
         "status": "selected" if path in chosen else "skipped",
         "why": chosen[path] if path in chosen else why(path, layer)}
        for path, layer in units(model).items() if layer.variables])


def grouped(found):
    """{path: its kernels} of `kernels`."""
    return {path: list(group) for path, group in itertools.groupby(found, lambda kernel: kernel.path)}


def require_plain(model):
    """Refuses what no technique can wrap: a model that is not built, or wrapped already."""
    _models.require_built(model, "the model must be built")
    require(not is_wrapped(model), "the model must be a plain one", model=type(model).__name__,
            do="It is wrapped already: train it and call `strip` first.")


def _own(layer, hook):
    """The kernels that are attributes of a layer; a layer that its owner made and never called has none."""
    if not layer.built or getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return []
    if hasattr(layer, hook):
        return [one[-1] if isinstance(one, tuple) else one for one in getattr(layer, hook)()]      # (name, variable)
    names = [name for kinds, name in _NAMES.items() if isinstance(layer, kinds)]
    if isinstance(vars(layer).get("recurrent_kernel"), keras.Variable):            # the cell of a recurrent layer
        names = ["kernel", "recurrent_kernel"]
    return [getattr(layer, name) for name in names]


def _hit(one, path, layer):
    if not isinstance(one, str):
        return any(one is part for part in parts_of(layer))
    return one in (path, layer.name) or path.startswith(f"{one}/") or f"/{one}/" in f"/{path}/"
