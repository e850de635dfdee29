"""Zeros in the weights, through TFMOT's magnitude pruning: wrap, fit, strip."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pandas as pd

from .. import _models
from .._check import MODEL, PATH, WHERE, DictOf, Number, Rule, Whole, checked, require
from .._keras import Wrapped, keras, same_randomness, serializable, tf
from .._toolkit import sparsity as toolkit
from .._toolkit.kernels import FROZEN, choose, grouped, kernels, obstacle, require_plain, table
from .._typing import PathLike, Where

__all__ = ["SparsitySummaries", "allocate", "plan", "sparsities", "strip", "wrap"]

HOOK = "get_prunable_weights"                              # TFMOT's name for it
SHARE = Number(above=0, below=1) | DictOf(Number(above=0, below=1))
PAIR = Rule("two whole numbers >= 1", lambda pair: isinstance(pair, tuple | list) and len(pair) == 2 and all(
    isinstance(part, int) and not isinstance(part, bool) and part >= 1 for part in pair), tuple)


# The Keras objects


@serializable
class Pruned(Wrapped):
    """A model whose chosen kernels lose their smallest weights while it trains. Made by `wrap`; undone by `strip`."""

    _pruned = None                                         # set by `attach`, past Keras' tracking

    def attach(self):
        schedule = {key: value for key, value in self.recipe.items() if key != "kernels"}
        found = kernels(self, HOOK)
        pruned = []
        for index, share in self.recipe["kernels"]:
            variable = found[index].variable
            pruned.append(toolkit.Prune(
                variable, self.add_state(f"mask_{index}", variable.shape, "bool", initializer="ones"),
                self.add_state(f"step_{index}", (), "int32"), sparsity=share, **schedule))
        frozen = [prune for prune in pruned if not prune.kernel.trainable]
        if frozen:
            live = [prune.kernel for prune in pruned if prune.kernel.trainable]
            toolkit.Drive((live or self.trainable_variables)[-1], frozen)
        by_path = zip(pruned, (found[index].path for index, _ in self.recipe["kernels"]), strict=True)
        vars(self)["_pruned"] = {path: [prune for prune, _ in group]
                                for path, group in itertools.groupby(by_path, lambda pair: pair[1])}

    @property
    def pruned(self):
        """{layer path: [Prune]} of the chosen kernels."""
        return self._pruned

    def settle(self):
        for group in self._pruned.values():
            for prune in group:
                prune.settle()


class SparsitySummaries(keras.callbacks.Callback):
    """Writes the sparsity of every pruned layer to TensorBoard at the end of each epoch.

    Args:
      directory: where the event files go, e.g. that of `keras.callbacks.TensorBoard`.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> wrapped = wrap(model, 0.5)
      >>> callback = SparsitySummaries("logs")                           # wrapped.fit(..., callbacks=[callback])
    """

    @checked(directory=PATH)
    def __init__(self, directory: PathLike):
        super().__init__()
        self.directory = directory
        self._writer = None

    @checked()
    def on_train_begin(self, logs: Any = None) -> None:
        _require_pruned(self.model)
        self._writer = tf.summary.create_file_writer(str(self.directory))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._writer.as_default(step=epoch):
            for path, share in sparsities(self.model).items():
                tf.summary.scalar(f"sparsity/{path}", share)

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()


# The helpers


@checked(model=MODEL, sparsity=SHARE, begin=Whole(low=0), end=Whole(low=1), every=Whole(low=1), block=PAIR,
         pattern=PAIR, where=WHERE)
def wrap(model: keras.Model, sparsity: float | dict[str, float], *, begin: int = 0, end: int | None = None,
         every: int = 1, block: tuple[int, int] | None = None, pattern: tuple[int, int] | None = None,
         where: Where = None) -> keras.Model:
    """Magnitude pruning: a copy of the model that prunes itself while it trains, in whatever way it is trained.

    After optimizer step t each chosen kernel keeps its largest weights by magnitude; the others are zero until they are
    chosen again. With `end`, the share of zeros rises as

        s(t) = sparsity * (1 - (1 - (t - begin) / (end - begin))^3),   begin <= t <= end

    and the zeros stay where they are from then on; without `end` it is `sparsity` from `begin`, and they may move.
    Kernels are found wherever they are: in layers, in the layers inside those, in nested and subclassed models. TFMOT,
    whose algorithm it is, counts from the beginning of a step: what is chosen here after step t it chooses as its step
    t + 1 begins; the masks are equal.

    Args:
      model: built Keras 3 model of any kind and dtype policy. It is only read.
      sparsity: share of zeros aimed at in each kernel, 0 < sparsity < 1; or {layer name or path: share}, which then
        stands for `where` too.
      begin: the optimizer step from which on is pruned, >= 0. With gradient accumulation only steps that move weights
        count.
      end: step at which `sparsity` is reached (a gradual schedule), or None (constant).
      every: optimizer steps between two choices of the zeros, >= 1.
      block: (rows, columns) of a 2-D kernel that are kept or lost together by their mean magnitude, e.g. (1, 4), or
        None. Blocks begin at the first row and column; those at the other end may be cut off.
      pattern: (n, m): exactly n zeros in every m consecutive input channels, e.g. (2, 4); `sparsity` is then n / m, and
        the zeros are chosen once, in the first step.
      where: None for every layer with a kernel (see `plan`); layers, or their names or paths (`outer/inner`), where a
        layer stands for what is inside it; or `layer -> bool`.

    Returns:
      keras.Model, not compiled, of the model's own class, with the same inputs, outputs and predictions. It is saved
      (`.keras`, `.weights.h5`, `export`) and loaded like any other after `from tfopt import prune`.

    Raises:
      ValueError: the model, or one of the numbers, is not as above; `where` chooses nothing that can be pruned.
      TypeError: not a Keras 3 model.
      RuntimeError: a layer that is made again from its config computes something else.

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
    require_plain(model)
    _models.require_finite(model)
    by_path, unfit = _able(model, block, pattern)
    shares = _shares(model, sparsity, where, {**by_path, **unfit})
    odd = {path: unfit[path] for path in shares if path in unfit}
    require(not odd, "what `where` chooses must have kernels that fit", unfit=odd, do="Leave these out with `where`.")
    require(model.trainable_variables, "the model must train: zeros are chosen after steps of the optimizer",
            trainable_variables=0, do="Set trainable = True for a layer.")
    chosen = [[kernel.index, share] for path, share in shares.items() for kernel in by_path[path]]
    with same_randomness(), _models.scope_of(model):
        pruned = Pruned.of(_models.copy(model), {"kernels": chosen, **schedule})
    _models.compare(model, pruned)
    return pruned


@checked(model=MODEL)
def strip(model: keras.Model) -> keras.Model:
    """Pruned weights: a new, plain model of the structure that was given to `wrap`, with its zeros.

    Kernels that no optimizer has moved, such as those of an average of the others or of an output without a loss, are
    pruned here, by their magnitude, with a warning.

    Args:
      model: what `wrap` returned, trained.

    Returns:
      keras.Model of the class given to `wrap`, not compiled, whose pruned kernels hold exact zeros.

    Raises:
      ValueError: too few steps for the sparsity that was asked for, or `model` did not come from `wrap`.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> strip(wrap(model, 0.5))
      Traceback (most recent call last):
      ValueError: prune.strip: the model must have reached its sparsity of 0.5. ...
    """
    _require_pruned(model)
    recipe = model.recipe
    needed = 1 if recipe["pattern"] else recipe["end"] or recipe["begin"] or recipe["every"]
    steps = {prune: int(prune.step.numpy()) for group in model.pruned.values() for prune in group}
    trained = any(steps.values())
    short = {path: round(share, 4) for path, share in sparsities(model).items()
             if any(steps[prune] < needed and (steps[prune] or not trained) for prune in model.pruned[path])}
    require(not short, f"the model must have reached its sparsity of {_said(model)}", share_of_zeros=short,
            steps=min(steps[prune] for path in short for prune in model.pruned[path]) if short else needed,
            do=f"Train at least {needed} optimizer steps (batches x epochs).")
    idle = [path for path, group in model.pruned.items() if not all(map(steps.get, group))]
    if idle:
        more = " and others" if idle[1:] else ""
        warnings.warn(f"prune.strip: no optimizer has moved the kernels of {idle[0]}{more}; their zeros are set now.",
                      stacklevel=3)
    with model.plain(), same_randomness():
        stripped = _models.copy(model)
    toolkit.release(stripped.variables)
    found = kernels(stripped, HOOK)
    for (index, _), prune in zip(recipe["kernels"], itertools.chain(*model.pruned.values()), strict=True):
        value = prune.kernel.value
        found[index].variable.assign(prune.masked(value) if steps[prune] else tf.where(prune.last(needed), value, 0))
    return stripped


@checked(model=MODEL, sparsity=Number(above=0, below=1), where=WHERE)
def allocate(model: keras.Model, sparsity: float, *, where: Where = None) -> dict[str, float]:
    """Layer-adaptive sparsity (LAMP): one share of zeros for all kernels together, divided among the layers.

    Each weight of a layer is scored by what it adds to the squares of the layer's weights that are not smaller,

        score(w_k) = w_k^2 / (w_1^2 + ... + w_k^2),   |w_1| >= |w_2| >= ...

    and the lowest scores of all layers go. Wide layers, whose weights are many and alike, get more zeros than small
    ones; each layer keeps some weights. Only the weights are looked at.

    Args:
      model: built, trained Keras 3 model. It is only read.
      sparsity: share of zeros of all chosen kernels together, 0 < sparsity < 1.
      where: as for `wrap`. What it leaves out does not count.

    Returns:
      {layer path: share of zeros} for `wrap(model, shares, ...)` and `plan`; a layer of several kernels has one share.
      Layers that lose nothing are not in it.

    Raises:
      ValueError: the model or the number is not as above; `where` chooses nothing that can be pruned; there are fewer
        weights to keep than layers, or none to lose.
      TypeError: not a Keras 3 model.

    Example:
      >>> keras.utils.set_random_seed(0)
      >>> wide, narrow = keras.layers.Dense(100, name="wide"), keras.layers.Dense(2, name="narrow")
      >>> model = keras.Sequential([keras.Input((100,)), wide, narrow])
      >>> {name: round(share, 2) for name, share in allocate(model, 0.9).items()}
      {'wide': 0.91, 'narrow': 0.26}

    Reference:
      Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, https://arxiv.org/abs/2010.07611
    """
    require_plain(model)
    _models.require_finite(model)
    able = grouped(kernels(model, HOOK))
    paths = choose(model, where, able, "layer with a kernel to prune")
    scores = {path: _scores(np.concatenate([_models.array_of(kernel.variable).ravel() for kernel in able[path]]))
              for path in paths}
    total = sum(map(len, scores.values()))
    lost = round(sparsity * total)
    require(0 < lost <= total - len(paths), "`sparsity` must take a weight, and leave one a layer", sparsity=sparsity,
            weights=total, layers=len(paths), do="Choose another share.")
    owner = np.repeat(np.arange(len(paths)), list(map(len, scores.values())))
    order = np.argsort(np.concatenate(list(scores.values())), kind="stable")
    counts = np.bincount(owner[order[:lost]], minlength=len(paths))
    return {path: float(count / len(scores[path])) for path, count in zip(paths, counts, strict=True) if count}


@checked(model=MODEL)
def sparsities(model: keras.Model) -> dict[str, float]:
    """Sparsity by layer: {layer path: share of zeros} of the pruned kernels, as training has them now.

    Args:
      model: what `wrap` returned.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="hidden")])
      >>> sparsities(wrap(model, 0.5))
      {'hidden': 0.0}
    """
    _require_pruned(model)
    return {path: _zeros(group) / sum(math.prod(prune.kernel.shape) for prune in group)
            for path, group in model.pruned.items()}


@checked(model=MODEL, sparsity=SHARE, block=PAIR, pattern=PAIR, where=WHERE)
def plan(model: keras.Model, sparsity: float | dict[str, float] = 0.5, *, block: tuple[int, int] | None = None,
         pattern: tuple[int, int] | None = None, where: Where = None) -> pd.DataFrame:
    """Pruning plan: what `wrap` would do with each layer, without doing it.

    Args:
      model, sparsity, block, pattern, where: as for `wrap`; nothing is refused because it has no kernel.

    Returns:
      pandas.DataFrame, one row a layer with weights: `layer`, `class`, `parameters`, `affected` (weights in the kernels
      that would be pruned), `status` ("selected" or "skipped"), `why`.

    Example:
      >>> hidden, norm = keras.layers.Dense(4, name="hidden"), keras.layers.BatchNormalization(name="norm")
      >>> plan(keras.Sequential([keras.Input((4,)), hidden, norm]))[["layer", "status"]].values.tolist()
      [['hidden', 'selected'], ['norm', 'skipped']]
    """
    _exclude(block, pattern)
    require_plain(model)
    by_path, unfit = _able(model, block, pattern)
    shares = _shares(model, sparsity, where, by_path, empty=True)
    remarks = {path: "" if all(kernel.variable.trainable for kernel in by_path[path]) else FROZEN for path in shares}
    return table(model, by_path, remarks, lambda path, layer: "not chosen by `where`" if path in by_path
                 else unfit.get(path) or obstacle(layer, HOOK))


def _checked_schedule(sparsity, begin, end, every, block, pattern):
    require(end is None or end > begin, f"`end` must be a whole number > {begin}, which is `begin`", end=end)
    require(end is None or (end - begin) % every == 0,
            "`end - begin` must be a multiple of `every`, or `sparsity` is not reached",
            begin=begin, end=end, every=every, do=f"Pass end={begin + max(((end or 0) - begin) // every, 1) * every}.")
    _exclude(block, pattern)
    if pattern:
        zeros, of = pattern
        require(zeros < of and sparsity == zeros / of, "`sparsity` must be n / m of the `pattern` (n, m)",
                sparsity=sparsity, pattern=pattern, do="Pass e.g. sparsity=0.5, pattern=(2, 4).")
        require(begin == 0 and end is None, "`pattern` is set once, in the first step, and has no `begin` or `end`",
                begin=begin, end=end, do="Leave them out.")
    return {"begin": begin, "end": end, "every": every, "block": block and list(block),
            "pattern": pattern and list(pattern)}


def _exclude(block, pattern):
    require(not (block and pattern), "`block` and `pattern` exclude each other", block=block, pattern=pattern)


def _able(model, block, pattern):
    """({path: kernels that can be pruned}, {path: why `block` or `pattern` leaves it out})."""
    unfit = {}
    by_path = grouped(kernels(model, HOOK))
    for path, group in by_path.items():
        shapes = [tuple(kernel.variable.shape) for kernel in group]
        if block and any(len(shape) != 2 for shape in shapes):
            unfit[path] = "`block` works on 2-D kernels"
        if pattern and any(len(shape) not in (2, 4) or shape[-2] % pattern[1] for shape in shapes):
            unfit[path] = "`pattern` (n, m) needs Dense or Conv2D kernels whose input channels divide by m"
    return {path: group for path, group in by_path.items() if path not in unfit}, unfit


def _shares(model, sparsity, where, able, empty=False):
    """{path: share of zeros} of the layers that are chosen; with `empty` there may be none."""
    if not isinstance(sparsity, dict):
        return dict.fromkeys(choose(model, where, able, "layer with a kernel to prune", empty), sparsity)
    require(where is None, "`sparsity` by layer chooses the layers, and there is no `where`", where=where,
            do="Leave `where` out.")
    found = {path: share for name, share in sparsity.items()
             for path in choose(model, [name], able, "layer with a kernel to prune", empty)}
    return {path: found[path] for path in able if path in found}


def _scores(weights):
    """LAMP scores of a layer's weights, from the smallest weight to the largest, whose score is 1."""
    squares = np.sort(np.abs(weights.astype("float64"))) ** 2
    sums = np.cumsum(squares[::-1])[::-1]
    scores = np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0)
    scores[-1] = 1
    return scores


def _require_pruned(model):
    require(isinstance(model, Pruned), "the model must have come from prune.wrap",
            model=_models.describe(model), do="Call prune.wrap(model, ...), train the result, and pass that.")


def _zeros(group):
    return sum(int(np.sum(prune.masked(prune.kernel.value).numpy() == 0)) for prune in group)


def _said(model):
    return ", ".join(f"{share:g}" for share in sorted({share for _, share in model.recipe["kernels"]}))
