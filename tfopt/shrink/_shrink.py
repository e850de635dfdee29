"""Fewer channels: a model that is really smaller and faster."""

import math

import numpy as np
import pandas as pd

from .. import _models
from .._check import require, require_number
from .._keras import graph_of, keras, replay, same_randomness, tf
from . import _choice, _graph, _rules

__all__ = ["channels", "plan", "recalibrate", "register"]


def channels(model, keep=None, *, macs=None, by="l2", round_to=8, where=None, data=None):
    """A smaller model without the least important channels of each layer.

    Channels that an addition, a concatenation, a shared layer or a grouped convolution ties together go together. The
    result has the same inputs, outputs, layer names and kinds of layers, and computes what `model` would compute with
    the removed channels at zero; it is checked against that before it is returned. Fine-tune it afterwards.

    Args:
      model: a built functional or Sequential model; it is only read. Nested models stay nested.
      keep: share of the channels of each group that stay, in (0, 1]; rounded down to `round_to`, but to no less than
        one such step.
      macs: share of the multiply-accumulates that may remain, in (0, 1): instead of `keep`. The same share of channels
        goes everywhere; then the room that rounding left is given to the most important channels. Layers without a
        rule (see `plan`) do not count.
      by: how important a channel is.
        "l1", "l2": norm of the kernel weights that make it times norm of those that read it.
        "gamma": absolute batch-normalisation scale; groups without one keep all channels.
        "taylor": (weight * gradient)^2 summed over its readers, on `data`; needs a compiled model.
        "fpgm": distance to the other filters of its layer (geometric median).
        "random": the control.
        A function `parts -> numbers`, where `parts` is {(variable path, axis): array (channels, weights)} and `numbers`
        one per channel of a group, the higher the more important.
      round_to: widths that change become multiples of this whole number, >= 1. Below 8 kernels get slower, not faster.
      where: None | layer names | `layer -> bool`: layers whose own channels may go.
      data: for by="taylor" alone: batches of (inputs, targets), as a tf.data.Dataset or a tuple of arrays.

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
    caller = "shrink.channels"
    _models.require_graph(model, caller)
    require((keep is None) != (macs is None), f"{caller} needs either `keep` or `macs`", keep=keep, macs=macs)
    if keep is not None:
        require_number("keep", keep, above=0, high=1)
    else:
        require_number("macs", macs, above=0, below=1)
    require_number("round_to", round_to, low=1, integer=True)
    require(callable(by) or by in (*_choice.CRITERIA, "taylor"),
            f"{caller}: `by` must be a known criterion or a function", by=by,
            do=f"The criteria are {', '.join(_choice.CRITERIA)} and taylor.")
    require((by == "taylor") == (data is not None), f"{caller}: by='taylor' needs `data`, and nothing else uses it",
            by=by, data=None if data is None else type(data).__name__)
    require(by != "taylor" or model.compiled, f"{caller}: by='taylor' needs the loss of a compiled model",
            do="Call model.compile(loss=...).")

    with same_randomness():
        choice = _solve(model, where, int(round_to), caller)
        require(choice.groups, f"{caller} found no channels that can go in {_models.describe(model)}",
                do="shrink.plan(model) says why.")
        scores = choice.judge(_criterion(by, model, data, choice.rows))
        if keep is not None:
            kept = choice.amounts(keep)
        else:
            whole, least = choice.macs(choice.sizes), choice.macs(choice.amounts(0))
            require(least <= macs * whole, f"{caller} cannot reach this target", macs=macs,
                    least_possible=math.ceil(1000 * least / whole) / 1000,
                    do="Ask for more, lower `round_to`, or widen `where`.")
            kept = choice.within(macs * whole, scores)
        choice.keep(kept, scores)
        small = _rebuilt(model, choice)
        _check(model, small, choice)
    return small


def plan(model, *, where=None):
    """Which channels of each layer can go, and why the others cannot.

    Args:
      model: a built functional or Sequential model; it is only read.
      where: None | layer names | `layer -> bool`: layers whose own channels may go.

    Returns:
      pandas.DataFrame with a row for every layer with a kernel, or several if its channels belong to different groups:
      `layer`, `class`, `channels`, `group` (rows with the same number lose the same channels; -1 for none), `macs`
      (multiply-accumulates per example), `status` ("done": channels can go; "skipped") and `why`. Layers without a rule
      stand in it too, with 0 channels.

    Raises:
      TypeError: `model` is not a Keras 3 model.
      ValueError: the model is subclassed or not built.

    Example:
      >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(64, name="hidden"),
      ...                           keras.layers.Dense(2, name="out")])
      >>> plan(model)[["layer", "channels", "group", "status", "why"]]
          layer  channels  group   status                 why
      0  hidden        64      0     done
      1     out         2     -1  skipped  the model's output
    """
    _models.require_graph(model, "shrink.plan")
    with same_randomness():
        choice = _solve(model, where, 1, "shrink.plan")
    group_of = {channel: number for number, group in enumerate(choice.groups) for channel in group.channels.tolist()}
    rows = []
    for path, layer in _models.layers(model).items():
        macs = sum(choice.graph.work.get(id(variable), 0) * math.prod(variable.shape) for variable in layer.weights)
        own = [choice.label[row.ids] for row in choice.rows if row.out and len(row.variable.shape) > 1
               and any(row.variable is variable for variable in layer.weights)]
        own = own[0] if own else np.array([], int)
        kinds = [(group_of.get(one, -1), choice.locked.get(one, "" if one in group_of else "all or none can go"))
                 for one in own.tolist()]
        if id(layer) in choice.graph.unknown:
            kinds = [(-1, f"no rule for {type(layer).__name__} (see shrink.register)")]
        for group, why in dict.fromkeys(kinds):
            rows.append({"layer": path, "class": type(layer).__name__,
                         "channels": kinds.count((group, why)) if len(own) else 0, "group": group,
                         "macs": macs * kinds.count((group, why)) // len(kinds),
                         "status": "skipped" if why else "done", "why": why})
    return pd.DataFrame(rows, columns=["layer", "class", "channels", "group", "macs", "status", "why"])


def recalibrate(model, data):
    """The model with batch-normalisation statistics measured anew on `data`, without labels or training.

    Means and variances of a shrunk network are no longer those that its batch normalisation remembers. One pass over
    a few hundred examples, each layer fed by the corrected ones before it, gives much of the accuracy back.

    Args:
      model: a built functional or Sequential model with batch normalisation; it is only read.
      data: inputs as the model takes them in training: an array (or a tuple or dict of arrays, cut into batches of 64),
        or a tf.data.Dataset of batches; targets are ignored.

    Returns:
      A new model, not compiled; everything but the moving statistics is as in `model`.

    Raises:
      TypeError: `model` is not a Keras 3 model.
      ValueError: the model is subclassed, not built, or has no batch normalisation, or `data` is empty.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
      >>> ready = recalibrate(model, np.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> ready.layers[0].moving_mean.numpy()
      array([2., 5.], dtype=float32)
    """
    _models.require_graph(model, "shrink.recalibrate")
    kind = keras.layers.BatchNormalization
    require(any(isinstance(layer, kind) for layer in _models.layers(model).values()),
            f"shrink.recalibrate needs a model with batch normalisation; {_models.describe(model)} has none")
    kind, statistics = keras.layers.BatchNormalization, {}
    with same_randomness():
        twin = _models.copy(model, change=lambda layer: (
            _Measuring.from_config(layer.get_config()) if isinstance(layer, kind) else None))
    for x, _, _ in _batches(data):
        twin(x)
    for path, layer in _models.layers(model).items():
        if isinstance(layer, kind):
            count, mean, square = _models.layers(twin)[path].totals
            require(count, "shrink.recalibrate needs at least one example in `data`")
            mean, square = mean / count, square / count
            statistics[id(layer.moving_mean)], statistics[id(layer.moving_variance)] = mean, square - mean ** 2
    return _models.copy(model, value=lambda variable: statistics.get(id(variable), variable))


class _Measuring(keras.layers.BatchNormalization):
    """Normalises by the statistics of the batch, and adds them up."""

    totals = 0, 0.0, 0.0            # examples and places seen, their sum, the sum of their squares

    def call(self, inputs, training=None, mask=None):
        inputs = keras.ops.cast(inputs, "float32")
        axis = self.axis % inputs.ndim
        seen = inputs if mask is None else inputs[mask]
        others = [a for a in range(inputs.ndim) if a != axis] if mask is None else [0]
        mean, variance = (np.asarray(x, "float64") for x in keras.ops.moments(seen, others))
        count = math.prod(seen.shape[a] for a in others)
        self.totals = tuple(total + count * x for total, x in
                            zip(self.totals, (1, mean, variance + mean ** 2), strict=True))
        return keras.ops.cast(keras.ops.batch_normalization(
            inputs, keras.ops.cast(mean, "float32"), keras.ops.cast(variance, "float32"), axis,
            self.beta, self.gamma, self.epsilon), self.compute_dtype)


def register(layer_class, rule):
    """Teaches `channels` how channels run through a layer class of your own.

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
    require(callable(rule), "shrink.register needs a rule: a function (layer, graph, *flows) -> flow", received=rule)
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


def _criterion(by, model, data, rows):
    if by == "taylor":
        return _choice.taylor(model, _batches(data), rows)
    return _choice.CRITERIA[by] if isinstance(by, str) else _choice.Criterion(lambda made, read: by(made | read))


def _rebuilt(model, choice):
    """The model from changed configs and sliced weights."""
    graph = choice.graph
    sizes = {}
    for (key, entry), ids in graph.sizes.items():
        sizes.setdefault(key, []).append((entry, int(choice.stays(ids).sum()), len(ids)))
    cuts = {}
    for row in choice.rows:
        cuts.setdefault(id(row.variable), []).append((row.axis, choice.stays(row.ids)))
    entries = {id(x): flow for owner in _nested(model) if id(owner) in graph.entries
               for x, flow in zip(graph_of(owner).inputs, graph.entries[id(owner)], strict=True)}

    def change(layer):
        if id(layer) not in sizes:
            return None
        config = layer.get_config()
        for entry, count, before in sizes[id(layer)]:
            if isinstance(entry, str):
                config[entry] = count
            elif config[entry[0]][entry[1]] != -1 and count != before:
                config[entry[0]] = [count if i == entry[1] else n for i, n in enumerate(config[entry[0]])]
        return type(layer).from_config(config)

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


def _nested(model):
    for layer in model.layers:
        if graph_of(layer) is not None:
            yield layer
            yield from _nested(layer)


def _check(model, small, choice):
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

    inputs = [flow.sample(1) for flow in choice.graph.inputs]
    expected, received = ([keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in keras.tree.flatten(
        replay(graph_of(one), inputs, lambda op: op))] for one in (_models.copy(model, value=value), small))
    exact = all(layer.compute_dtype == "float32" for layer in _models.layers(model).values())
    for a, b in zip(expected, received, strict=True):
        gap, scale = np.abs(a - b).max(initial=0), np.abs(a).max(initial=1e-6)
        require(not gap > (0.01 if exact else 0.1) * scale, "shrink.channels made a model that differs from the "
                "original with the removed channels at zero", error=RuntimeError, difference=float(gap),
                outputs_up_to=float(scale),
                do="A rule given to shrink.register is wrong, or a layer of yours mixes channels: use `where`.")


def _batches(data):
    """(inputs, targets, weights) batch by batch."""
    if not isinstance(data, tf.data.Dataset):
        data = tf.data.Dataset.from_tensor_slices(data).batch(64)
    return map(keras.utils.unpack_x_y_sample_weight, data)
