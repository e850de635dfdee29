"""Fewer channels: a model that is really smaller and faster."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd

from .. import _data, _models
from .._check import FUNCTION, MODEL, WHERE, Number, OneOf, Whole, checked, refusal, require
from .._keras import graph_of, parts_of, same_randomness
from .._typing import Data, Where
from . import _choice, _graph, _latency, _rules

__all__ = ["channels", "plan", "recalibrate", "register"]


@checked(model=MODEL, keep=Number(above=0, high=1), macs=Number(above=0, below=1), latency=Number(above=0, below=1),
         round_to=Whole(low=1), where=WHERE, importance=OneOf(*_choice.CRITERIA, "taylor") | FUNCTION,
         ranking=OneOf("layer", "global"))
def channels(model: keras.Model, keep: float | None = None, *, macs: float | None = None,
             latency: float | None = None, importance: str | Callable[[dict[Any, np.ndarray]], np.ndarray] = "l2",
             ranking: str = "layer", round_to: int = 8, where: Where = None, data: Data | None = None) -> keras.Model:
    """Structured pruning: a smaller model without the least important channels of each layer.

    Channels that an addition, a concatenation, a shared layer or a grouped convolution ties together go together. Units
    of SimpleRNN, GRU and LSTM and heads of MultiHeadAttention are channels too. The result has the same inputs, outputs
    and layers by name and kind, and computes what `model` would compute with the removed channels at zero; it is
    checked against that before it is returned. Fine-tune it afterwards.

    Args:
      model: a built functional or Sequential model; it is only read. Nested models stay nested.
      keep: share of the channels of each group that stay, in (0, 1]; rounded down to `round_to`, but to no less than
        one such step.
      macs: share of the multiply-accumulates that may remain, in (0, 1): instead of `keep`. The same share of channels
        goes everywhere (but see `ranking`); then the room that rounding left is given to the most important channels.
        Layers without a rule (see `plan`) do not count.
      latency: share of the latency that may remain, in (0, 1): instead of `keep`. It is measured on this machine, with
        float LiteRT files of `model` and of candidates, one example at a time on one thread, in turns; as for `macs`,
        about the same share of channels goes everywhere. Bisection, in some seconds to minutes of conversions.
      importance: how important a channel is.
        "l1", "l2": norm of the kernel weights that make it times norm of those that read it.
        "gamma": absolute batch-normalization scale; groups without one keep all channels.
        "taylor": (weight * gradient)^2 summed over its readers, on `data`; needs a compiled model.
        "fpgm": distance to the other filters of its layer (geometric median).
        "random": the control.
        A function `parts -> numbers`, where `parts` is {(variable path, axis): array (channels, weights)} and `numbers`
        one per channel of a group, the higher the more important.
      ranking: with which others a channel is compared.
        "layer": those of its own group; the same share of each group stays.
        "global": those of all groups, by importance divided by the mean of its group; `keep` is then the share of all
        channels that can go. Every group keeps at least one step of `round_to`.
      round_to: widths that change become multiples of this whole number, >= 1; a head is `value_dim` wide. Below 8
        kernels get slower, not faster.
      where: None | names or paths of layers | layers | `layer -> bool`: layers whose own channels may go.
      data: inputs, as arrays or a data set of batches, on which the result is compared with `model`; with targets for
        importance="taylor", and in the size to measure `latency` for if the model leaves it open. None for generated
        inputs.

    Returns:
      The new model, not compiled.

    Raises:
      TypeError: `model` is not a Keras 3 model.
      ValueError: the model is subclassed or not built, no channel can go, the target cannot be reached, or an
        argument is out of range.

    Example:
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(2)])
      >>> small = channels(model, 0.5)
      >>> [layer.units for layer in small.layers]
      [32, 2]

    Reference: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023,
    https://arxiv.org/abs/2301.12900
    """
    _models.require_graph(model, "shrink.channels")
    _models.require_finite(model)
    require([keep, macs, latency].count(None) == 2, "pass one of `keep`, `macs` and `latency`",
            keep=keep, macs=macs, latency=latency)
    require(importance != "taylor" or data is not None, "importance='taylor' needs `data`", data=data,
            do="Pass inputs and targets.")
    require(importance != "taylor" or model.compiled, "importance='taylor' needs the loss of a compiled model",
            do="Call model.compile(loss=...).")
    if data is not None:
        data = _data.read(data, model, targets="required" if importance == "taylor" else "optional")
    with same_randomness():
        choice = _solve(model, where, round_to, "shrink.channels")
        require(choice.groups, f"found no channels that can go in {_models.describe(model)}",
                do="shrink.plan(model) says why.")
        scores = choice.judge(_criterion(importance, model, data, choice.rows))
        sample = None if data is None else data.head(_batch(model) or 4).x
        path = choice.path(scores, ranking)
        amounts = choice.amounts if ranking == "layer" else functools.partial(choice.share_of_all, path=path)
        if keep is not None:
            kept = amounts(keep)
        elif macs is not None:
            kept = _within(choice, macs, scores, amounts)
        else:
            kept = _as_fast(model, choice, latency, scores, path, sample)
        if (kept == choice.sizes).all():
            raise refusal("no channel would go", keep=keep, macs=macs, latency=latency, round_to=round_to,
                          channels=choice.sizes.tolist()[:8], do="Ask for less, or lower `round_to`.")
        choice.keep(kept, scores)
        small = _rebuilt(model, choice)
        _check(model, small, choice, sample)
    return small


def _within(choice, macs, scores, amounts):
    """How many channels of each group stay for this share of the multiply-accumulates."""
    whole, least = choice.macs(choice.sizes), choice.macs(choice.amounts(0))
    require(least <= macs * whole, "cannot reach this target", macs=macs,
            least_possible=math.ceil(1000 * least / whole) / 1000,
            do="Ask for more, lower `round_to`, or widen `where`.")
    return choice.within(macs * whole, scores, amounts)


def _as_fast(model, choice, latency, scores, path, sample):
    """How many channels of each group stay for this share of the latency."""
    share = _latency.timer(model, None if sample is None else keras.tree.flatten(sample))

    def measure(steps):
        choice.keep(choice.along(path[:steps]), scores)
        return share(_rebuilt(model, choice))

    return choice.along(path[:_latency.within(latency, len(path), measure)])


@checked(model=MODEL, where=WHERE)
def plan(model: keras.Model, *, where: Where = None) -> pd.DataFrame:
    """Plan of structured pruning: which channels of each layer can go, and why the others cannot.

    Args:
      model: a built functional or Sequential model; it is only read.
      where: None | names or paths of layers | layers | `layer -> bool`: layers whose own channels may go.

    Returns:
      pandas.DataFrame with a row for every layer with a kernel, or several if its channels belong to different groups:
      `layer`, `class`, `parameters` (its weights, divided among its rows), `affected` (those that go with some of its
      channels), `channels` (of attention: heads), `group` (rows with the same number lose the same channels; -1 for
      none), `macs` (multiply-accumulates per example), `status` ("selected": channels can go; "skipped") and `why`.
      Layers without a rule stand in it too, with 0 channels.

    Raises:
      TypeError: `model` is not a Keras 3 model.
      ValueError: the model is subclassed or not built.

    Example:
      >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(64, name="hidden"),
      ...                           keras.layers.Dense(2, name="out")])
      >>> plan(model)[["layer", "channels", "group", "status", "why"]].values.tolist()
      [['hidden', 64, 0, 'selected', ''], ['out', 2, -1, 'skipped', "the model's output"]]
    """
    _models.require_graph(model, "shrink.plan")
    with same_randomness():
        choice = _solve(model, where, 1, "shrink.plan")
    group_of = {channel: number for number, group in enumerate(choice.groups) for channel in group.channels.tolist()}
    rows = []
    for path, layer in _models.layers(model).items():
        macs = _macs(choice.graph, layer)
        own = _own(choice, layer).tolist()
        kinds = [(group_of.get(one, -1), choice.locked.get(one, "" if one in group_of else "all or none can go"))
                 for one in own]
        weights = [choice.each.get(one, 1) for one in own]
        if id(layer) in choice.graph.unknown:
            kinds, weights = [(-1, _without_rule(layer))], [1]
        start, whole = 0, sum(weights)
        for group, why in dict.fromkeys(kinds):
            end = start + sum(weight for kind, weight in zip(kinds, weights, strict=True) if kind == (group, why))
            parameters, work = (n * end // whole - n * start // whole for n in (layer.count_params(), macs))
            start = end
            rows.append({"layer": path, "class": type(layer).__name__, "parameters": parameters,
                         "affected": 0 if why else parameters, "channels": kinds.count((group, why)) if own else 0,
                         "group": group, "macs": work, "why": why})
    return _models.table(rows, ["channels", "group", "macs"])


def _macs(graph, layer):
    """Multiply-accumulates of a layer."""
    ours = {id(variable): variable for variable in layer.weights}
    return (sum(graph.work.get(key, 0) * math.prod(variable.shape) for key, variable in ours.items())
            + sum(macs * ours[key].shape[axis] for (key, axis), macs in graph.products.items() if key in ours))


def _own(choice, layer):
    """The labels of the channels that a layer puts out."""
    rows = [row.ids for row in choice.rows if row.out and len(row.variable.shape) > 1
            and any(row.variable is variable for variable in layer.weights)]
    return choice.label[choice.graph.born.get(id(layer), rows[0] if rows else np.array([], int))]


def _without_rule(layer):
    inside = [part.name for part in parts_of(layer)[1:] if any(len(weight.shape) > 1 for weight in part.weights)]
    where = f": its kernels are inside ({', '.join(inside[:4])}{' ...' if len(inside) > 4 else ''})" if inside else ""
    return f"no rule for {type(layer).__name__}{where}; see shrink.register"


@checked(model=MODEL)
def recalibrate(model: keras.Model, data: Data) -> keras.Model:
    """Batch-norm update of a smaller network: the model with moving statistics measured anew, without training.

    Means and variances of a shrunk network are no longer those that its batch normalization holds. One pass over a few
    hundred examples, each layer fed by the corrected ones before it, gives much of the accuracy back. It is the update
    of `average.update_batch_norm`, of frozen layers too.

    Args:
      model: a built model with batch normalization; it is only read.
      data: inputs as the model takes them in training: arrays, cut into batches of 64, or a data set of batches;
        targets are ignored.

    Returns:
      A new model, not compiled; everything but the moving statistics is as in `model`.

    Raises:
      TypeError: `model` is not a Keras 3 model.
      ValueError: the model is not built or has no batch normalization, or `data` is empty or does not fit it.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
      >>> ready = recalibrate(model, np.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> ready.layers[0].moving_mean.numpy()
      array([2., 5.], dtype=float32)
    """
    _models.require_model(model, "shrink.recalibrate")
    require(_models.batch_normalizations(model, frozen=True),
            f"shrink.recalibrate needs a model with batch normalization; {_models.describe(model)} has none")
    batches = (x for x, _, _ in _data.read(data, model, targets="ignored").batches(64))
    moments = _models.batch_moments(model, batches, frozen=True)

    def value(variable):
        return moments.get(id(variable), variable)

    new = _models.copy(model, value=value)
    _models.compare(model, new, value=value)
    return new


@checked(rule=FUNCTION)
def register(layer_class: type[keras.layers.Layer], rule: Callable[..., Any]) -> None:
    """Rule for structured pruning: how channels run through a layer class of your own.

    A layer without weights needs no rule: it is run on some channels, and locked unless they come out as before.

    Args:
      layer_class: the class; subclasses that inherit its `call` share the rule.
      rule: function `(layer, graph, *flows) -> flow`. A flow describes a tensor by `ids` (one per index of its channel
        axis), `axis` (negative), `shape` and `dtype`. The graph takes notes: `graph.read(layer, flow)` gives the ids
        that the layer sums over, `graph.make(layer, variable, axis)` ids for channels it makes,
        `graph.record(variable, axis, ids, work=0, out=False)` the ids along an axis of a weight (and how often per
        example each of its elements is multiplied, and whether a channel is silent where it is zero),
        `graph.size(layer, key, ids)` the config entry that counts them, `graph.tie(ids, ids)` what goes together and
        `graph.lock(ids, why)` what must stay.

    Raises:
      ValueError: `layer_class` is not a layer class, or `rule` is not a function.

    Example:
      >>> class Scale(keras.layers.Layer):
      ...     def build(self, shape):
      ...         self.gain = self.add_weight(shape=shape[-1:], initializer="ones")
      ...     def call(self, x):
      ...         return x * self.gain
      >>> def rule(layer, graph, x):
      ...     graph.record(layer.gain, 0, x.ids, out=True)
      ...     return x
      >>> register(Scale, rule)
    """
    require(isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer),
            "shrink.register needs a class of layers", layer_class=layer_class)
    _rules.RULES[layer_class] = rule


def _solve(model, where, round_to, caller):
    graph = _graph.trace(model, _rules.rule_of)
    if where is not None:
        label, locked = graph.solve()
        free = {key for key, ids in graph.born.items() if not set(label[ids].tolist()) <= set(locked)}
        chosen = _models.select(model, where, caller, able=lambda layer: id(layer) in free,
                                what="layer of whose channels some can go")
        for key, ids in graph.born.items():
            if key not in map(id, chosen.values()):
                graph.lock(ids, "left out by `where`")
    return _choice.Choice(graph, round_to)


def _criterion(importance, model, data, rows):
    if importance == "taylor":
        size = _batch(model)
        batches = [batch for batch in data.batches(size) if len(keras.tree.flatten(batch[0])[0]) == size] if size else (
            data.batches(64))
        return _choice.taylor(model, batches, rows)
    if isinstance(importance, str):
        return _choice.CRITERIA[importance]
    return _choice.Criterion(lambda made, read: importance(made | read))


def _batch(model):
    """The number of examples that a model takes at once, as stateful recurrent layers need it; None for any."""
    return graph_of(model).inputs[0].shape[0]


def _rebuilt(model, choice):
    """The model from changed configs and sliced weights."""
    graph = choice.graph
    sizes = {}
    for (key, entry), ids in graph.sizes.items():
        sizes.setdefault(key, []).append((entry, int(choice.stays(ids).sum())))
    cuts = {}
    for row in choice.rows:
        cuts.setdefault(id(row.variable), []).append((row.axis, choice.stays(row.ids)))
    entries = {id(x): flow for owner in _nested(model) if id(owner) in graph.entries
               for x, flow in zip(graph_of(owner).inputs, graph.entries[id(owner)], strict=True)}

    def change(layer):
        if id(layer) not in sizes:
            return None
        config, changes = layer.get_config(), {}
        for entry, count in sizes[id(layer)]:
            name, *path = [entry] if isinstance(entry, str) else entry
            changes[name] = _changed(changes.get(name, config[name]), path, count)
        return _models.recreate(layer, **changes)

    def shape(x):
        flow = entries.get(id(x))
        if flow is None or x.shape[flow.axis] is None:
            return x.shape
        return [int(choice.stays(flow.ids).sum()) if axis == len(x.shape) + flow.axis else size
                for axis, size in enumerate(x.shape)]

    def value(variable):
        array = keras.ops.convert_to_numpy(variable)
        for axis, stays in cuts.get(id(variable), ()):
            array = array.compress(stays, axis)
        return array

    return _models.copy(model, change=change, shape=shape, value=value)


def _changed(held, path, count):
    """What a config holds, with another number at the end of a path of names and indices; -1 stays.

    A layer in it is not built for the shapes it had.
    """
    if not path:
        return held if held == -1 else count
    if isinstance(held, dict):
        return {name: _changed(part, path[1:], count) if name == path[0] else part
                for name, part in held.items() if name != "build_config"}
    return [_changed(part, path[1:], count) if index == path[0] else part for index, part in enumerate(held)]


def _nested(model):
    for layer in model.layers:
        if graph_of(layer) is not None:
            yield layer
            yield from _nested(layer)


def _check(model, small, choice, inputs):
    """The small model must compute what the model does with the removed channels at zero."""
    silent = {}
    for row in choice.rows:
        if row.out:
            silent.setdefault(id(row.variable), []).append((row.axis, choice.stays(row.ids)))

    def value(variable):
        array = keras.ops.convert_to_numpy(variable).copy()
        for axis, stays in silent.get(id(variable), ()):
            np.moveaxis(array, axis, 0)[~stays] = 0
        return array

    exact = all(layer.compute_dtype == "float32" for layer in _models.layers(model).values())
    _models.compare(model, small, inputs=inputs, value=value, tolerance=1e-3 if exact else 0.1)
