"""Weights that share a few values, through TFMOT's clustering: wrap, fit, strip."""

import numpy as np
import pandas as pd

from .. import _models
from .._check import FLAG, MODEL, WHERE, DictOf, OneOf, Whole, checked, require
from .._keras import Wrapped, keras, same_randomness, serializable, substitute
from .._toolkit import clustering as toolkit
from .._toolkit.kernels import FROZEN, choose, grouped, kernels, obstacle, require_plain, table
from .._toolkit.sparsity import KeepZeros, release
from .._typing import Where

__all__ = ["plan", "strip", "wrap"]

HOOK = "get_clusterable_weights"                           # TFMOT's name for it
COUNT = Whole(low=2) | DictOf(Whole(low=2))


# The Keras object


@serializable
class Clustered(Wrapped):
    """A model whose chosen kernels hold a few shared values while it trains. Made by `wrap`; undone by `strip`."""

    _lookups = _kept = ()                                  # set by `attach`, past Keras' tracking

    def attach(self):
        found, zeros, lookups, kept = kernels(self, HOOK), self.recipe["preserve_sparsity"], [], []
        for index, clusters in self.recipe["kernels"]:
            kernel = found[index]
            axis = toolkit.channel_axis(kernel.owner, self.recipe["per_channel"])
            shape = (clusters,) if axis is None else (kernel.variable.shape[axis], clusters)
            centroids = self.add_state(f"centroids_{index}", shape, kernel.variable.dtype, kernel.variable.trainable)
            if zeros:
                kept.append(KeepZeros(centroids, self.add_state(f"centroids_kept_{index}", shape, "bool")))
            mask = self.add_state(f"kept_{index}", kernel.variable.shape, "bool") if zeros else None
            lookups.append(toolkit.Lookup(kernel, centroids, axis, mask))
        for index in self.recipe["zeros"]:
            variable = found[index].variable
            kept.append(KeepZeros(variable, self.add_state(f"kept_{index}", variable.shape, "bool")))
        vars(self).update(_lookups=lookups, _kept=kept)
        for caller in {id(lookup.kernel.caller): lookup.kernel.caller for lookup in lookups}.values():
            substitute(caller, [(lookup.kernel.owner, lookup.kernel.variable, lookup) for lookup in lookups
                                if lookup.kernel.caller is caller])

    @property
    def lookups(self):
        """[Lookup] of the chosen kernels, in the order of the recipe."""
        return self._lookups

    def start(self):
        """Finds the zeros to keep and the first centroids."""
        for lookup, (_, clusters) in zip(self._lookups, self.recipe["kernels"], strict=True):
            if lookup.kept is not None:
                lookup.kept.assign(_models.array_of(lookup.kernel.variable) != 0)
            lookup.start(clusters, self.recipe["init"])
        for constraint in self._kept:
            constraint.mask.assign(_models.array_of(constraint.kernel) != 0)

    def settle(self):
        for constraint in self._kept:
            constraint.settle()


# The helpers


@checked(model=MODEL, clusters=COUNT, init=OneOf(*toolkit.INITS), preserve_sparsity=FLAG, per_channel=FLAG, where=WHERE)
def wrap(model: keras.Model, clusters: int | dict[str, int], *, init: str = "kmeans++", preserve_sparsity: bool = False,
         per_channel: bool = False, where: Where = None) -> keras.Model:
    """Weight clustering: a copy of the model whose kernels hold at most `clusters` values, which training tunes.

    In the forward pass each weight is replaced by the nearest of its kernel's centroids; the gradient reaches both the
    centroid (summed over its weights) and the weight itself, which may thereby change to another centroid.

    Args:
      model: built, trained Keras 3 model of any kind and dtype policy. It is only read.
      clusters: values per kernel, >= 2 (>= 3 with `preserve_sparsity`). 16 or 32 are usual. Or {layer name or path:
        values}, which then stands for `where` too.
      init: first centroids: "kmeans++", "linear" (evenly between the extremes), "density" (by quantiles), "random".
      preserve_sparsity: weights that are zero now stay zero, also in kernels that are not clustered; zero is one of the
        `clusters` values.
      per_channel: for Conv2D, `clusters` values per output channel (as int8 files scale each channel by itself).
      where: None for every layer with large enough kernels (see `plan`); layers, or their names or paths
        (`outer/inner`), where a layer stands for what is inside it; or `layer -> bool`.

    Returns:
      keras.Model, not compiled, of the model's own class, with the same inputs and outputs. It is saved (`.keras`,
      `.weights.h5`, `export`) and loaded like any other after `from tfopt import cluster`.

    Raises:
      ValueError: the model or a number is not as above; `where` chooses nothing that can be clustered.
      TypeError: not a Keras 3 model.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="hidden"), keras.layers.Dense(2)])
      >>> small = strip(wrap(model, 4))
      >>> np.unique(small.get_layer("hidden").kernel).size
      4

    Reference:
      Han, Mao and Dally, Deep compression, 2015, https://arxiv.org/abs/1510.00149
    """
    require_plain(model)
    by_path = grouped(kernels(model, HOOK))
    counts = _counts(model, clusters, where, by_path, (preserve_sparsity, per_channel))
    _models.require_finite(model)
    chosen = [[kernel.index, count] for path, count in counts.items() for kernel in by_path[path]]
    recipe = {"kernels": chosen, "zeros": _with_zeros(by_path, counts) if preserve_sparsity else [], "init": init,
              "preserve_sparsity": preserve_sparsity, "per_channel": per_channel}
    with same_randomness(), _models.scope_of(model):
        wrapped = Clustered.of(_models.copy(model), recipe)
        wrapped.start()
    _compare(model, wrapped)
    return wrapped


@checked(model=MODEL)
def strip(model: keras.Model) -> keras.Model:
    """Clustered weights: a new, plain model of the structure that was given to `wrap`, with its shared values.

    Args:
      model: what `wrap` returned, trained.

    Returns:
      keras.Model of the class given to `wrap`, not compiled.

    Raises:
      ValueError: `model` did not come from `wrap`.

    Example:
      >>> import keras
      >>> strip(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]))
      Traceback (most recent call last):
      ValueError: cluster.strip: the model must have come from cluster.wrap. ...
    """
    require(isinstance(model, Clustered), "the model must have come from cluster.wrap",
            model=_models.describe(model), do="Call cluster.wrap(model, ...), train the result, and pass that.")
    model.settle()
    with model.plain(), same_randomness():
        plain = _models.copy(model)
    release(plain.variables)
    found = kernels(plain, HOOK)
    for (index, _), lookup in zip(model.recipe["kernels"], model.lookups, strict=True):
        found[index].variable.assign(lookup())
    return plain


@checked(model=MODEL, clusters=COUNT, preserve_sparsity=FLAG, per_channel=FLAG, where=WHERE)
def plan(model: keras.Model, clusters: int | dict[str, int] = 16, *, preserve_sparsity: bool = False,
         per_channel: bool = False, where: Where = None) -> pd.DataFrame:
    """Clustering plan: what `wrap` would do with each layer, without doing it.

    Args:
      model, clusters, preserve_sparsity, per_channel, where: as for `wrap`.

    Returns:
      pandas.DataFrame, one row a layer with weights: `layer`, `class`, `parameters`, `affected` (numbers in its
      kernels), `status` ("selected" or "skipped"), `why`.

    Example:
      >>> import keras
      >>> hidden, norm = keras.layers.Dense(8, name="hidden"), keras.layers.BatchNormalization(name="norm")
      >>> plan(keras.Sequential([keras.Input((4,)), hidden, norm]))[["layer", "status"]].values.tolist()
      [['hidden', 'selected'], ['norm', 'skipped']]
    """
    require_plain(model)
    by_path, options = grouped(kernels(model, HOOK)), (preserve_sparsity, per_channel)
    counts = _counts(model, clusters, where, by_path, options, empty=True)
    able = by_path if isinstance(clusters, dict) else _able(by_path, clusters, *options)
    remarks = {path: "" if all(kernel.variable.trainable for kernel in by_path[path]) else FROZEN for path in counts}
    return table(model, by_path, remarks, lambda path, layer: "not chosen by `where`" if path in able
                 else f"too few weights for {clusters} clusters" if path in by_path else obstacle(layer, HOOK))


def _able(by_path, clusters, preserve_sparsity, per_channel):
    """Those of `by_path` whose kernels, or channels of them, have more weights than clusters, or enough but zeros."""
    require(clusters > 2 or not preserve_sparsity, "`clusters` must be a whole number >= 3 with `preserve_sparsity`",
            clusters=clusters, do="Zero is one of the values.")

    def enough(kernel):
        axis, value = toolkit.channel_axis(kernel.owner, per_channel), _models.array_of(kernel.variable)
        parts = [value] if axis is None else np.moveaxis(value, axis, 0)
        return bool(toolkit.attributes(kernel)) and all(
            np.count_nonzero(part) >= clusters - 1 if preserve_sparsity else part.size > clusters for part in parts)

    return {path: group for path, group in by_path.items() if all(map(enough, group))}


def _counts(model, clusters, where, by_path, options, empty=False):
    """{path: clusters} of the layers that are chosen; with `empty` there may be none."""
    what = f"layer with a kernel of enough {'non-zero ' if options[0] else ''}weights"
    if not isinstance(clusters, dict):
        able = _able(by_path, clusters, *options)
        return dict.fromkeys(choose(model, where, able, f"{what} for {clusters} clusters", empty), clusters)
    require(where is None, "`clusters` by layer chooses the layers, and there is no `where`", where=where,
            do="Leave `where` out.")
    found = {path: count for name, count in clusters.items()
             for path in choose(model, [name], _able(by_path, count, *options), what, empty)}
    return {path: found[path] for path in by_path if path in found}


def _compare(model, wrapped):
    """The wrapped model must compute what the user's does with the same few values."""
    found = kernels(model, HOOK)
    clustered = {id(found[index].variable): lookup().numpy()
                 for (index, _), lookup in zip(wrapped.recipe["kernels"], wrapped.lookups, strict=True)}
    _models.compare(model, wrapped, value=lambda variable: clustered.get(id(variable), _models.array_of(variable)))


def _with_zeros(by_path, chosen):
    """Indexes of the kernels that are not clustered and hold zeros among other weights."""
    return [kernel.index for path, group in by_path.items() if path not in chosen for kernel in group
            if 0 < np.count_nonzero(_models.array_of(kernel.variable)) < np.prod(kernel.variable.shape)]
