"""Weights that share a few values, through TFMOT's clustering: wrap, fit, strip."""

import numpy as np

from .. import _models
from .._bridge import copy_back, legacy_name, to_legacy
from .._bridge.adopt import Adopted, by_path, choose, require_adopted, require_plain
from .._check import require, require_number
from .._keras import serializable, tf
from .._toolkit import clustering as toolkit

__all__ = ["plan", "strip", "wrap"]


# The Keras object


@serializable
class Clustered(Adopted):
    """A model whose chosen kernels hold a few shared values while it trains. Made by `wrap`; undone by `strip`."""

    caller = "cluster.wrap"

    def rewrite(self, twin, base, *, paths, **options):
        return toolkit.cluster(twin, {legacy_name(path) for path in paths}, **options)


# The helpers


def wrap(model, clusters, *, init="kmeans++", preserve_sparsity=False, per_channel=False, where=None):
    """A copy of the model whose kernels hold at most `clusters` different values, which training goes on to tune.

    In the forward pass each weight is replaced by the nearest of its kernel's centroids; the gradient reaches both the
    centroid (summed over its weights) and the weight itself, which may thereby change to another centroid.

    Args:
      model: built, trained Functional or Sequential Keras 3 model, float32 or mixed_bfloat16. It is only read.
      clusters: values per kernel, >= 2 (>= 3 with `preserve_sparsity`). 16 or 32 are usual.
      init: first centroids: "kmeans++", "linear" (evenly between the extremes), "density" (by quantiles), "random".
      preserve_sparsity: weights that are zero now stay zero; zero is one of the `clusters` values.
      per_channel: for Conv2D, `clusters` values per output channel (as int8 files scale each channel by itself).
      where: None for every layer TFMOT can cluster, layer names or paths (`outer/inner`), or `layer -> bool`.

    Returns:
      keras.Model, not compiled, with the same inputs and outputs. Saved and loaded like any other after
      `from tfopt import cluster`.

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
    require_number("clusters", clusters, low=3 if preserve_sparsity else 2, integer=True)
    require(init in toolkit.INITS, f"`init` must be one of {', '.join(toolkit.INITS)}", init=init)
    require_plain(model, "cluster.wrap")
    twin = to_legacy(model, "cluster.wrap")
    able = _able(_kernels(model, twin, per_channel), clusters, preserve_sparsity)
    kind = "non-zero weights" if preserve_sparsity else "weights"
    chosen = choose(model, where, able, "cluster.wrap", f"layer TFMOT can cluster, with {kind} for {clusters} clusters")
    return Clustered(model, {"paths": list(chosen), "clusters": int(clusters), "init": init,
                             "preserve_sparsity": preserve_sparsity, "per_channel": per_channel}, twin=twin)


def strip(model):
    """The plain model with its shared values: a new model of the structure that was given to `wrap`.

    Args:
      model: what `wrap` returned, trained.

    Returns:
      Functional or Sequential keras.Model, not compiled.

    Raises:
      ValueError: `model` did not come from `wrap`, or a kernel holds more than `clusters` values.

    Example:
      >>> import keras
      >>> strip(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]))
      Traceback (most recent call last):
      ValueError: cluster.strip needs a model that came from cluster.wrap. ...
    """
    require_adopted(model, Clustered, "cluster.strip", "cluster.wrap")
    recipe = model.recipe
    with toolkit.stripped(model.legacy) as legacy:
        plain = copy_back(legacy, model.base)
        kernels = _kernels(model.base, legacy, recipe["per_channel"])
    counts = {path: max(np.unique(part).size for part in kernels[path]) for path in recipe["paths"]}
    many = {path: count for path, count in counts.items() if count > recipe["clusters"]}
    require(not many, f"cluster.strip must leave at most {recipe['clusters']} values in a kernel", values=many,
            do="Cluster these layers alone with `where`, or leave them out.")
    return plain


def plan(model, clusters=16, *, preserve_sparsity=False, per_channel=False, where=None):
    """What `wrap` would do with each layer, without doing it.

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
    require_plain(model, "cluster.plan")
    twin = to_legacy(model, "cluster.plan")
    known = _kernels(model, twin, per_channel)
    able = _able(known, clusters, preserve_sparsity)
    chosen = choose(model, where, able, "cluster.plan", "layer TFMOT can cluster")
    sizes = {path: [part.shape for part in parts] for path, parts in known.items()}
    return _models.plan(model, chosen, sizes, lambda path, layer: "not chosen by `where`" if path in able
                        else f"too few weights for {clusters} clusters" if path in known
                        else f"TFMOT has no kernel to cluster in {type(layer).__name__}")


def _kernels(model, twin, per_channel):
    """{path: parts that have their own clusters} of every layer that TFMOT can cluster: kernels, or their channels."""
    found = {}
    for path, layer in by_path(model, twin).items():
        kernels = [tf.convert_to_tensor(weight).numpy() for weight in toolkit.clusterable(layer)]
        if kernels and per_channel and toolkit.is_per_channel(layer):
            kernels = list(np.moveaxis(kernels[0], -1, 0))
        if kernels:
            found[path] = kernels
    return found


def _able(kernels, clusters, preserve_sparsity):
    """Those of `kernels` that have more weights than clusters, or enough that are not zero."""
    def enough(part):
        return np.count_nonzero(part) >= clusters - 1 if preserve_sparsity else part.size > clusters

    return {path: parts for path, parts in kernels.items() if all(map(enough, parts))}
