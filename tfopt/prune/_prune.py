"""Zeros in the weights, through TFMOT's magnitude pruning: wrap, fit, strip."""

import numpy as np

from .. import _models
from .._bridge import copy_back, legacy_name, to_legacy
from .._bridge.adopt import Adopted, by_path, choose, require_adopted, require_plain
from .._check import require, require_number
from .._keras import keras, serializable, tf
from .._toolkit import sparsity as toolkit

__all__ = ["SparsitySummaries", "plan", "sparsities", "strip", "wrap", "xnnpack_layers"]


# The formula


def expected_zeros(shape, sparsity, block=None):
    """Zeros that TFMOT leaves at least in a weight of this shape: `size - round(size * (1 - sparsity))`, by blocks.

    Example:
      >>> expected_zeros((10, 10), 0.8)
      80
      >>> expected_zeros((4, 4), 0.5, block=(2, 2))
      8
    """
    size = int(np.prod(shape))
    if block is None or tuple(block) == (1, 1):
        return size - max(round(size * (1 - sparsity)), 1)
    grid = [-(-length // step) for length, step in zip(shape, block, strict=True)]
    kept = max(round(int(np.prod(grid)) * (1 - sparsity)), 1)
    return max(size - kept * int(np.prod(block)), 0)


# The Keras objects


@serializable
class Pruned(Adopted):
    """A model whose chosen kernels lose their smallest weights while it trains. Made by `wrap`; undone by `strip`."""

    caller = "prune.wrap"

    def rewrite(self, twin, base, *, paths, **schedule):
        return toolkit.prune(twin, {legacy_name(path) for path in paths}, **schedule)


class SparsitySummaries(keras.callbacks.Callback):
    """Writes the sparsity of every pruned layer to TensorBoard at the end of each epoch.

    Args:
      directory: where the event files go, e.g. that of `keras.callbacks.TensorBoard`.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> wrapped = wrap(model, 0.5)
      >>> callback = SparsitySummaries("logs")                           # wrapped.fit(..., callbacks=[callback])
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = directory
        self._writer = None

    def on_train_begin(self, logs=None):
        require_adopted(self.model, Pruned, "prune.SparsitySummaries", "prune.wrap")
        self._writer = tf.summary.create_file_writer(str(self.directory))

    def on_epoch_end(self, epoch, logs=None):
        with self._writer.as_default(step=epoch):
            for path, share in sparsities(self.model).items():
                tf.summary.scalar(f"sparsity/{path}", share)

    def on_train_end(self, logs=None):
        self._writer.close()


# The helpers


def wrap(model, sparsity, *, begin=0, end=None, every=1, block=None, pattern=None, where=None):
    """A copy of the model that prunes itself while it trains; any compile, optimizer, strategy and callbacks will do.

    At step t each chosen kernel keeps its largest weights by magnitude; the others are zero in the forward pass. With
    `end`, the share of zeros rises as

        s(t) = sparsity * (1 - (1 - (t - begin) / (end - begin))^3),   begin <= t <= end

    and the zeros stay where they are from then on; without `end` it is `sparsity` from `begin`, and they may move.

    Args:
      model: built Functional or Sequential Keras 3 model, float32 or mixed_bfloat16. It is only read.
      sparsity: share of zeros aimed at in each kernel, 0 < sparsity < 1.
      begin: first optimizer step that prunes, >= 0.
      end: step at which `sparsity` is reached (a gradual schedule), or None (constant).
      every: optimizer steps between two choices of the zeros, >= 1.
      block: (rows, columns) of a 2-D kernel that are kept or lost together, e.g. (1, 4), or None.
      pattern: (n, m): exactly n zeros in every m consecutive input channels, e.g. (2, 4); `sparsity` is then n / m, and
        the zeros are chosen once, in the first step.
      where: None for every layer TFMOT can prune, layer names or paths (`outer/inner`), or `layer -> bool`.

    Returns:
      keras.Model, not compiled, with the same inputs, outputs and predictions. Saved and loaded like any other after
      `from tfopt import prune`.

    Raises:
      ValueError: the model, or one of the numbers, is not as above; `where` chooses nothing that can be pruned.
      TypeError: not a Keras 3 model.

    Example:
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
      >>> pruned = wrap(model, 0.75, end=4)
      >>> pruned.compile("sgd", "mse")
      >>> history = pruned.fit(np.ones((40, 8)), np.ones((40, 1)), batch_size=8, verbose=0)
      >>> slim = strip(pruned)
      >>> float((slim.layers[0].kernel.numpy() == 0).mean())
      0.75

    Reference:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878
    """
    schedule = _checked_schedule(sparsity, begin, end, every, block, pattern)
    require_plain(model, "prune.wrap")
    twin = to_legacy(model, "prune.wrap")
    chosen = choose(model, where, _able(model, twin), "prune.wrap", "layer TFMOT can prune")
    if block:
        deep = [path for path, shapes in chosen.items() if any(len(shape) != 2 for shape in shapes)]
        require(not deep, "prune.wrap: `block` works on 2-D kernels", block=block, not_2d=deep[:3],
                do="Choose Dense layers with `where`, or leave `block` out.")
    if pattern:
        odd = [path for path, shapes in chosen.items()
               if any(len(shape) not in (2, 4) or shape[-2] % pattern[1] for shape in shapes)]
        require(not odd, "prune.wrap: `pattern` (n, m) needs Dense or Conv2D kernels whose input channels divide by m",
                pattern=pattern, unfit=odd[:3], do="Leave these out with `where`.")
    return Pruned(model, {"paths": list(chosen), **schedule}, twin=twin)


def strip(model):
    """The plain model with its zeros: a new model of the structure that was given to `wrap`.

    Args:
      model: what `wrap` returned, trained.

    Returns:
      Functional or Sequential keras.Model, not compiled, whose pruned kernels hold exact zeros.

    Raises:
      ValueError: a kernel has fewer zeros than asked for (too few steps), or `model` did not come from `wrap`.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> strip(wrap(model, 0.5))
      Traceback (most recent call last):
      ValueError: prune.strip needs a model that reached its sparsity of 0.5. ...
    """
    require_adopted(model, Pruned, "prune.strip", "prune.wrap")
    recipe = model.recipe
    with toolkit.masked(model.legacy):
        stripped = copy_back(toolkit.strip(model.legacy), model.base)
        short = {path: round(_share(weights), 4) for path, weights in _kernels(model).items()
                 if sum(int((w == 0).sum()) for w in weights)
                 < sum(expected_zeros(w.shape, recipe["sparsity"], recipe["block"]) for w in weights)}
    require(not short, f"prune.strip needs a model that reached its sparsity of {recipe['sparsity']:g}",
            share_of_zeros=short, steps=max(toolkit.steps(layer) for layer in toolkit.wrapped(model.legacy)),
            do=f"Train at least {recipe['end'] or recipe['begin'] + 1} optimizer steps (batches x epochs).")
    return stripped


def sparsities(model):
    """{layer path: share of zeros} of the pruned kernels, as training has them now.

    Args:
      model: what `wrap` returned.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="hidden")])
      >>> sparsities(wrap(model, 0.5))
      {'hidden': 0.0}
    """
    require_adopted(model, Pruned, "prune.sparsities", "prune.wrap")
    with toolkit.masked(model.legacy):
        return {path: _share(weights) for path, weights in _kernels(model).items()}


def plan(model, *, where=None):
    """What `wrap` would do with each layer, without doing it.

    Args:
      model: as for `wrap`.
      where: as for `wrap`.

    Returns:
      pandas.DataFrame, one row a layer with weights: `layer`, `class`, `parameters`, `affected` (numbers in its
      kernels), `status` ("selected" or "skipped"), `why`.

    Example:
      >>> hidden, norm = keras.layers.Dense(4, name="hidden"), keras.layers.BatchNormalization(name="norm")
      >>> plan(keras.Sequential([keras.Input((4,)), hidden, norm]))[["layer", "status"]].values.tolist()
      [['hidden', 'selected'], ['norm', 'skipped']]
    """
    require_plain(model, "prune.plan")
    twin = to_legacy(model, "prune.plan")
    able = _able(model, twin)
    chosen = choose(model, where, able, "prune.plan", "layer TFMOT can prune")
    return _models.plan(model, chosen, able, lambda path, layer: "not chosen by `where`" if path in able
                        else f"TFMOT has no kernel to prune in {type(layer).__name__}")


def xnnpack_layers(model):
    """Paths of the layers whose zeros make XNNPACK faster (1x1 convolutions), for `where`.

    TFMOT's latency policy: the model must begin with ZeroPadding2D and a 3x3 Conv2D of stride 2, end in
    GlobalAveragePooling2D(keepdims=True), and hold only layers in between that XNNPACK runs sparsely.

    Args:
      model: built Functional or Sequential keras.Model.

    Raises:
      ValueError: the model is not of this form; the sentence names the first obstacle.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> xnnpack_layers(model)
      Traceback (most recent call last):
      ValueError: prune.xnnpack_layers needs a convolutional model of the form XNNPACK runs sparsely. ...

    Reference:
      Elsen et al., Fast sparse ConvNets, 2019, https://arxiv.org/abs/1911.09723
    """
    require_plain(model, "prune.xnnpack_layers")
    twin = to_legacy(model, "prune.xnnpack_layers")
    try:
        allowed = set(toolkit.xnnpack_allows(twin))
    except ValueError as error:
        require(False, "prune.xnnpack_layers needs a convolutional model of the form XNNPACK runs sparsely",
                obstacle=str(error), do="Prune without it: the file gets smaller, not faster.")
    return [path for path, layer in by_path(model, twin).items() if layer.name in allowed]


def _checked_schedule(sparsity, begin, end, every, block, pattern):
    require_number("sparsity", sparsity, above=0, below=1)
    require_number("begin", begin, low=0, integer=True)
    require_number("every", every, low=1, integer=True)
    if end is not None:
        require_number("end", end, above=begin, integer=True)
        require((end - begin) % every == 0, "`end - begin` must be a multiple of `every`, or `sparsity` is not reached",
                begin=begin, end=end, every=every, do=f"Pass end={begin + max((end - begin) // every, 1) * every}.")
    for name, pair in (("block", block), ("pattern", pattern)):
        require(pair is None or (isinstance(pair, tuple | list) and len(pair) == 2
                                 and all(isinstance(part, int) and part >= 1 for part in pair)),
                f"`{name}` must be two whole numbers >= 1", **{name: pair})
    require(not (block and pattern), "`block` and `pattern` exclude each other", block=block, pattern=pattern)
    if pattern:
        zeros, of = pattern
        require(zeros < of and sparsity == zeros / of, "`sparsity` must be n / m of the `pattern` (n, m)",
                sparsity=sparsity, pattern=pattern, do="Pass e.g. sparsity=0.5, pattern=(2, 4).")
        require(begin == 0 and end is None, "`pattern` is set once, in the first step, and has no `begin` or `end`",
                begin=begin, end=end, do="Leave them out.")
    return {"sparsity": float(sparsity), "begin": int(begin), "end": None if end is None else int(end),
            "every": int(every), "block": block and list(block), "pattern": pattern and list(pattern)}


def _able(model, twin):
    """{path: shapes of its kernels} of every layer that TFMOT can prune."""
    shapes = {path: toolkit.prunable_shapes(layer) for path, layer in by_path(model, twin).items()}
    return {path: found for path, found in shapes.items() if found}


def _kernels(model):
    """{path: its pruned kernels as arrays}."""
    wrappers = {layer.layer.name: layer for layer in toolkit.wrapped(model.legacy)}
    return {path: [np.array(tf.convert_to_tensor(weight)) for weight, _, _ in wrappers[legacy_name(path)].pruning_vars]
            for path in model.recipe["paths"]}


def _share(arrays):
    return sum(int((array == 0).sum()) for array in arrays) / sum(array.size for array in arrays)
