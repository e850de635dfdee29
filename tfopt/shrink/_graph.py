"""Which channels belong together: every channel gets an id where it is made, and the ids are carried to its readers."""

import dataclasses
import math

import numpy as np

from .. import _models
from .._keras import graph_of, keras, replay


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """What a rule sees of a tensor.

    Attributes:
      ids: id of the channel at each index of the channel axis; negative where a removed channel leaves something
        other than zero behind.
      axis: the channel axis, counted from the end, so negative.
      shape: the tensor's shape without the batch.
      dtype: the tensor's dtype.
    """

    ids: np.ndarray
    axis: int
    shape: tuple
    dtype: str = "float32"

    def full(self):
        """The ids at the tensor's full shape (a view)."""
        line = [1] * len(self.shape)
        line[self.axis] = -1
        return np.broadcast_to(self.ids.reshape(line), self.shape)

    def spec(self, size=None):
        """The symbolic tensor, with `size` channels if given."""
        shape = list(self.shape)
        if size is not None:
            shape[self.axis] = size
        return keras.KerasTensor((None, *shape), dtype=self.dtype)


@dataclasses.dataclass(eq=False)
class Row:
    """One axis of one variable, and the channel at each of its indices."""

    variable: keras.Variable
    axis: int
    ids: np.ndarray
    out: bool                       # zero here silences the channel; otherwise the variable only reads it


class Graph:
    """What the rules write down: everything that grouping, counting, slicing and checking need.

    Attributes:
      rows: {(id(variable), axis): Row}.
      work: {id(variable): positions}; multiply-accumulates are positions times the elements of the variable.
      sizes: {(id(layer), key): ids} of the config entries that count channels; key is `name`, or a tuple of the names
        and indices that lead to it.
      born: {id(layer): ids} of the channels each layer makes.
      each: {id: numbers of a tensor} of the channels that are more than one, as heads are.
      products: {(id(variable), axis): multiply-accumulates of each of its channels without weights}, as of attention.
      entries: {id(nested model): its input flows}.
      inputs: the flows of the model's inputs.
      unknown: {id(layer)} of the layers without a rule.
    """

    def __init__(self):
        self.rows, self.work, self.sizes, self.born, self.entries = {}, {}, {}, {}, {}
        self.each, self.products = {}, {}
        self.inputs, self.unknown = [], set()
        self._ties, self._locks, self._count = [], {}, 0

    def _fresh(self, count):
        self._count += count
        return np.arange(self._count - count + 1, self._count + 1)

    def make(self, layer, variable, axis, *, copies=1, each=1):
        """Ids for the channels that `layer` makes along `axis` of its `variable`; the same ones at every use.

        Args:
          layer: the layer.
          variable: a weight of it.
          axis: which of its axes.
          copies: how often all of the channels stand along the axis, one set after the other, as for gates.
          each: how many numbers of a tensor a channel is, for `round_to`.
        """
        key = id(variable), axis % len(variable.shape)
        if key not in self.rows:
            ids = self._fresh(variable.shape[axis] // copies)
            self.rows[key] = Row(variable, key[1], np.tile(ids, copies), out=True)
            self.born[id(layer)] = np.concatenate([self.born.get(id(layer), ids[:0]), ids])
            self.each |= dict.fromkeys(ids.tolist(), each) if each > 1 else {}
        return self.rows[key].ids

    def record(self, variable, axis, ids, work=0, *, out=False):
        """Notes the channel at each index of an axis of a variable; several uses of the variable tie the channels.

        Args:
          variable: a weight of the layer.
          axis: which of its axes.
          ids: one id per index.
          work: how often each element of the variable is multiplied per example.
          out: the layer puts the channel out, and at zero here it is silent.
        """
        self.work[id(variable)] = self.work.get(id(variable), 0) + work
        axis %= len(variable.shape)
        row = self.rows.setdefault((id(variable), axis), Row(variable, axis, np.abs(ids), out))
        self.tie(row.ids, ids)

    def size(self, layer, key, ids):
        """Notes that an entry of the layer's config is the number of these channels.

        Args:
          layer: the layer.
          key: name of the entry, or the names and indices that lead to it.
          ids: the channels it counts.
        """
        self.tie(self.sizes.setdefault((id(layer), key), np.abs(ids)), ids)

    def read(self, layer, flow, axis=-1, *, zero=True):
        """Ids along `axis` as a layer reads them that sums over the channels; what it cannot read is locked.

        Args:
          layer: the reading layer, for the reasons in `plan`.
          flow: its input.
          axis: the axis it sums over.
          zero: a removed channel must be zero for it, as in a sum.
        """
        if flow.axis != axis:
            self.lock(flow.ids, f"{layer.name} reads another axis as channels")
            return self.fixed((flow.shape[axis],), f"{layer.name} reads another axis as channels").ids
        if zero:
            self.lock(flow.ids[flow.ids < 0], f"not 0 when removed, and {layer.name} would see it")
        return np.abs(flow.ids)

    def tie(self, ids, others):
        """These channels go together, index by index; when the lengths differ none of them can go."""
        ids, others = np.abs(ids), np.abs(others)
        if ids.shape == others.shape:
            if (ids != others).any():
                self._ties.append((ids, others))
        else:
            self.lock(np.concatenate([ids.ravel(), others.ravel()]), "used with different numbers of channels")

    def lock(self, ids, why):
        """None of these channels can go, because of `why`."""
        for one in np.unique(np.abs(ids)).tolist():
            self._locks.setdefault(one, why)

    def fixed(self, shape, why, dtype="float32"):
        """The flow of a tensor without removable channels."""
        (one,) = self._fresh(1)
        self.lock([one], why)
        return Flow(np.full(shape[-1] if shape else 1, one), -1, tuple(shape), dtype)

    def is_fixed(self, flow):
        return all(one in self._locks for one in np.unique(np.abs(flow.ids)).tolist())

    def solve(self):
        """(label of every id, {label: why} of the locked ones); channels with the same label go together."""
        pairs = [np.concatenate([part.ravel() for part in side]) for side in zip(*self._ties, strict=True)] or [[], []]
        a, b = np.unique(np.stack(pairs).astype(int), axis=1)
        label = np.arange(self._count + 1)
        while len(a):
            low = np.minimum(label[a], label[b])
            new = label.copy()
            np.minimum.at(new, label[a], low)
            np.minimum.at(new, label[b], low)
            new = new[new]
            if (new == label).all():
                break
            label = new
        locked = {}
        for one, why in self._locks.items():
            locked.setdefault(int(label[one]), why)
        return label, locked


def rectangle(graph, full, dtype):
    """The flow with these ids at full shape: the last axis along which they differ is the channel axis.

    Only whole slices of a tensor can go, so what shares an index of that axis is tied.
    """
    differing = [axis for axis, size in enumerate(full.shape)
                 if size > 1 and (full != full.take([0], axis)).any()] or [full.ndim - 1]
    by_channel = np.moveaxis(full, differing[-1], 0).reshape(full.shape[differing[-1]], -1)
    if len(differing) > 1:
        first, rest = np.broadcast_arrays(by_channel[:, :1], by_channel)
        graph.tie(first, rest)
    sign = np.where((by_channel < 0).any(1), -1, 1)
    return Flow(np.abs(by_channel[:, 0]) * sign, differing[-1] - full.ndim, full.shape, dtype)


def flows_in(*structures):
    return [leaf for leaf in keras.tree.flatten(structures) if isinstance(leaf, Flow)]


def trace(model, rule):
    """Carries ids through a built graph model.

    Args:
      model: the model; nothing in it is changed.
      rule: `operation -> (graph, args, kwargs) -> flows`.
    """
    graph = Graph()

    def operation(op):
        if graph_of(op) is None:
            return lambda *args, **kwargs: rule(op)(graph, args, kwargs)
        return lambda *args, **kwargs: enter(op, flows_in(args) or flows_in(kwargs))

    def enter(owner, flows):
        known = graph.entries.setdefault(id(owner), flows)
        for one, other in zip(known, flows, strict=True):
            graph.tie(one.ids, other.ids)
            if one.axis != other.axis:
                graph.lock(np.concatenate([one.ids, other.ids]), f"{owner.name} is used along different axes")
        return replay(graph_of(owner), flows, operation)

    source = graph_of(model)
    sizes = [x.shape for x in source.inputs]
    if any(None in shape[1:] for shape in sizes):          # as long as the model needs; only MACs could tell
        sizes = [x.shape for x in keras.tree.flatten(_models.example_inputs(model))]
    graph.inputs = [graph.fixed(shape[1:], "the model's input", x.dtype)
                    for shape, x in zip(sizes, source.inputs, strict=True)]
    for flow in flows_in(replay(source, graph.inputs, operation)):
        graph.lock(flow.ids, "the model's output")
    return graph


def positions(shape, axis):
    """Number of elements per channel."""
    return math.prod(shape) // max(shape[axis], 1)
