"""How the channels run through each kind of layer: a rule per layer class, a numeric probe for what has no weights.

An example: Conv2D `a` with 4 filters, ReLU, BatchNormalization `n`, Conv2D `b`.

    rule of Conv2D on a    its kernel's last axis makes the channels 1 2 3 4; the output flow has ids [1 2 3 4]
    probe of ReLU          run on all 4 channels, on 2 and on 3 of them: the same numbers, so it treats each alone;
                           relu(0) is 0, so ids stay positive: where a channel is removed, zeros would be
    rule of n              notes [1 2 3 4] along gamma, beta, mean and variance; it gives 0 where gamma and beta are 0
    rule of Conv2D on b    notes [1 2 3 4] along axis -2 of its kernel, which reads them

Channels 2 and 4 go: kernel and bias of a, the four vectors of n and axis -2 of b's kernel keep the places 1 and 3, and
`filters` of a is 2. With a sigmoid in place of the ReLU the probe finds sigmoid(0) = 0.5: ids become [-1 -2 -3 -4], b
would miss what a removed channel adds, and `Graph.read` locks them, with the reason that `plan` shows.
"""

import dataclasses
import functools
import inspect
import math

import numpy as np

from .. import _models
from .._keras import keras, parts_of
from ._graph import Flow, flows_in, positions, rectangle

RULES = {}                          # {layer class: rule(layer, graph, *flows) -> flow}
CALLS = {}                          # {layer class: rule(layer, graph, args, kwargs) -> flows}, where names matter
layers = keras.layers


def rule_of(op):
    """`(graph, args, kwargs) -> flows` for a layer or an operation.

    A subclass inherits a rule as long as it inherits `call`.
    """
    for kind in type(op).__mro__:
        if kind in RULES | CALLS and type(op).call is kind.call and not _has_more_weights(op):
            if kind not in RULES:
                return functools.partial(CALLS[kind], op)
            return lambda graph, args, kwargs: RULES[kind](op, graph, *(flows_in(args) or flows_in(kwargs)[:1]))
    if getattr(op, "weights", ()):
        return functools.partial(_unknown, op)
    if type(op).__name__ == "Concatenate":
        return lambda graph, args, kwargs: _concatenate(op, graph, flows_in(args, kwargs))
    return functools.partial(_weightless, op)


def _has_more_weights(layer):
    """Keras' own quantization and LoRA add weights that the rules do not know."""
    return any(getattr(part, "quantization_mode", None) is not None or getattr(part, "lora_enabled", False)
               for part in parts_of(layer))


def _for(*kinds, rules=RULES):
    def note(rule):
        rules.update(dict.fromkeys(kinds, rule))
        return rule
    return note


# What makes channels


@_for(layers.Dense)
def _dense(layer, graph, x):
    graph.record(layer.kernel, 0, graph.read(layer, x), positions(x.shape, -1))
    return _made(layer, graph, x, layer.kernel, -1, "units")


@_for(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _conv(layer, graph, x):
    axis = _channel_axis(layer, x)
    shape = _shape(layer, x)
    work = positions(shape, axis)
    if layer.groups == 1:
        graph.record(layer.kernel, -2, graph.read(layer, x, axis), work)
        return _made(layer, graph, x, layer.kernel, -1, "filters")
    if layer.groups == x.shape[axis]:                       # depthwise: each channel keeps its own filters
        ids = graph.read(layer, x, axis, zero=False)
        graph.size(layer, "groups", ids)
        ids = np.repeat(ids, layer.filters // layer.groups)
        graph.record(layer.kernel, -1, ids, work, out=True)
        graph.size(layer, "filters", ids)
        return _finished(layer, graph, ids, axis, shape, x.dtype)
    by_group = graph.read(layer, x, axis).reshape(layer.groups, -1)     # all groups keep the same positions
    graph.tie(*np.broadcast_arrays(by_group[:1], by_group))
    graph.record(layer.kernel, -2, by_group[0], work)
    made = graph.make(layer, layer.kernel, -1).reshape(layer.groups, -1)
    graph.tie(*np.broadcast_arrays(made[:1], made))
    return _made(layer, graph, x, layer.kernel, -1, "filters")


@_for(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _conv_transpose(layer, graph, x):
    axis = _channel_axis(layer, x)
    graph.record(layer.kernel, -1, graph.read(layer, x, axis), positions(x.shape, axis))
    return _made(layer, graph, x, layer.kernel, -2, "filters")


@_for(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(layer, graph, x):
    axis, shape = _channel_axis(layer, x), _shape(layer, x)
    ids = graph.read(layer, x, axis, zero=False)
    graph.record(layer.kernel, -2, ids, positions(shape, axis), out=True)
    return _finished(layer, graph, np.repeat(ids, layer.depth_multiplier), axis, shape, x.dtype)


@_for(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(layer, graph, x):
    axis = _channel_axis(layer, x)
    work = positions(_shape(layer, x), axis)
    ids = graph.read(layer, x, axis)
    graph.record(layer.depthwise_kernel, -2, ids, work)
    graph.record(layer.pointwise_kernel, -2, np.repeat(ids, layer.depth_multiplier), work)
    return _made(layer, graph, x, layer.pointwise_kernel, -1, "filters")


@_for(layers.Embedding)
def _embedding(layer, graph, x):
    graph.size(layer, "output_dim", graph.make(layer, layer.embeddings, -1))
    return Flow(graph.make(layer, layer.embeddings, -1), -1, _shape(layer, x), layer.compute_dtype)


# Units and heads


@_for(layers.SimpleRNN, layers.GRU, layers.LSTM, layers.RNN, layers.Bidirectional, rules=CALLS)
def _recurrent(layer, graph, args, kwargs):
    """A unit whose weights are zero stays at the zero it starts from, masked or not, whatever its gates."""
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    inside = {(): layer} if not isinstance(layer, layers.Bidirectional) else {
        ("layer", "config"): layer.forward_layer, ("backward_layer", "config"): layer.backward_layer}
    start = keras.tree.flatten(given.get("initial_state"))
    if not all(map(_has_known_cell, inside.values())) or len(flows_in(given["sequences"])) != 1:
        return _unknown(layer, graph, args, kwargs)
    ids = [_units(layer, one, path, graph, *flows_in(given["sequences"])) for path, one in inside.items()]
    graph.tie(ids[0], ids[-1])                              # Keras takes both directions to be of one size
    for state in flows_in(start):
        graph.tie(graph.read(layer, state), ids[0])
    if layer.stateful or len(flows_in(start)) < sum(state is not None for state in start):
        graph.lock(ids[0], f"the first state of {layer.name} is not 0")
    _lock_masks(layer, graph, given, ("sequences", "initial_state"))
    return keras.tree.map_structure(
        lambda x: Flow(np.tile(ids[0], x.shape[-1] // len(ids[0])), -1, x.shape[1:], x.dtype),
        _specs(layer, args, kwargs))


def _has_known_cell(layer):
    kinds = layers.SimpleRNN, layers.GRU, layers.LSTM, layers.RNN
    return (getattr(type(layer), "call", None) in [kind.call for kind in kinds] and not _has_more_weights(layer)
            and type(layer.cell) in (layers.SimpleRNNCell, layers.GRUCell, layers.LSTMCell))


def _units(owner, layer, path, graph, x):
    """Ids of the units of a recurrent layer; `path` leads to its config in that of its owner."""
    cell, steps = layer.cell, positions(x.shape, -1)
    graph.record(cell.kernel, 0, graph.read(owner, x), steps)
    gates = graph.make(owner, cell.kernel, -1, copies=cell.kernel.shape[-1] // cell.units)
    ids = gates[:cell.units]
    graph.size(owner, (*path, *(("cell", "config") if "cell" in layer.get_config() else ()), "units"), ids)
    graph.record(cell.recurrent_kernel, 0, ids, steps)
    graph.record(cell.recurrent_kernel, 1, gates, out=True)
    if cell.bias is not None:
        graph.record(cell.bias, -1, gates, out=True)
    if _sign_after(cell.activation, -1, 1) != 1 or not _sign_after(getattr(cell, "recurrent_activation", None), -1, 1):
        graph.lock(ids, f"an activation of {owner.name} mixes units or makes something of 0")
    return ids


@_for(layers.MultiHeadAttention, rules=CALLS)
def _attention(layer, graph, args, kwargs):
    """A head is silent whose values are zero; the layer puts out the size of the query unless it says another."""
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    heads = graph.make(layer, layer.value_dense.kernel, 1, each=layer.value_dim)
    gates = [(part, query) for part in parts_of(layer) if part.name == "gate"]
    for dense, x in [(layer.value_dense, value), (layer.query_dense, query), (layer.key_dense, key), *gates]:
        graph.record(dense.kernel, 0, graph.read(layer, x), positions(x.shape, -1))
        graph.record(dense.kernel, 1, heads, out=True)
        if dense.bias is not None:
            graph.record(dense.bias, 0, heads, out=True)
    graph.size(layer, "num_heads", heads)
    attended = math.prod(value.shape[axis - 1] for axis in layer.attention_axes)
    graph.products[id(layer.value_dense.kernel), 1] = (
        graph.products.get((id(layer.value_dense.kernel), 1), 0)
        + positions(query.shape, -1) * attended * (layer.key_dim + layer.value_dim))
    graph.record(layer.output_dense.kernel, 0, heads, positions(query.shape, -1))
    made = graph.make(layer, layer.output_dense.kernel, -1)
    if layer.output_dense.bias is not None:
        graph.record(layer.output_dense.bias, -1, made, out=True)
    shape = layer.get_config()["output_shape"]
    if shape is None:
        graph.tie(made, query.ids)
    elif len(shape) == 1:
        graph.size(layer, ("output_shape", 0), made)
    else:
        graph.lock(made, f"{layer.name} puts out several axes of channels")
    _lock_masks(layer, graph, given, ("query", "value", "key"))
    outputs = keras.tree.flatten(_specs(layer, args, kwargs))
    flows = [Flow(made, -1, outputs[0].shape[1:], outputs[0].dtype)]
    if len(outputs) == 1:
        return flows[0]
    graph.lock(heads, f"the attention scores of {layer.name} are put out")
    return (*flows, graph.fixed(outputs[1].shape[1:], f"attention scores of {layer.name}", outputs[1].dtype))


def _lock_masks(layer, graph, given, but):
    for flow in flows_in([value for name, value in given.items() if name not in but]):
        graph.lock(flow.ids, f"{layer.name} takes it as a mask")


# What scales, moves or joins channels


@_for(layers.BatchNormalization)
def _batch_normalization(layer, graph, x):
    axis = layer.axis if layer.axis < 0 else layer.axis - len(x.shape) - 1
    ids = graph.read(layer, x, axis, zero=False)
    for variable in layer.weights:
        graph.record(variable, 0, ids, out=not variable.path.endswith("variance"))
    if not layer.scale and x.axis == axis:
        ids = x.ids                                         # only a scale takes away what a removed channel left
    return Flow(ids, axis, x.shape, x.dtype)


@_for(layers.PReLU)
def _prelu(layer, graph, x):
    if layer.alpha.shape[x.axis] > 1:
        graph.record(layer.alpha, x.axis, x.ids)
    return x


@_for(layers.Flatten)
def _flatten(layer, graph, x):
    full = x.full()
    if layer.data_format == "channels_first" and full.ndim > 1:
        full = np.moveaxis(full, 0, -1)
    return rectangle(graph, full.reshape(-1), x.dtype)


@_for(layers.Reshape)
def _reshape(layer, graph, x):
    out = rectangle(graph, x.full().reshape(_shape(layer, x)), x.dtype)
    graph.size(layer, ("target_shape", len(out.shape) + out.axis), out.ids)
    return out


def _concatenate(op, graph, flows):
    axis = op.axis if op.axis < 0 else op.axis - len(flows[0].shape) - 1
    if all(flow.axis == axis for flow in flows):
        ids = np.concatenate([flow.ids for flow in flows])
        shape = list(flows[0].shape)
        shape[axis] = len(ids)
        return Flow(ids, axis, tuple(shape), flows[0].dtype)
    return rectangle(graph, np.concatenate([flow.full() for flow in flows], axis), flows[0].dtype)


def _channel_axis(layer, x):
    return -1 if layer.data_format == "channels_last" else -len(x.shape)


def _shape(layer, x):
    return tuple(layer.compute_output_shape((None, *x.shape)))[1:]


def _made(layer, graph, x, variable, axis, key):
    """The output of a layer that makes new channels along `axis` of its kernel."""
    ids = graph.make(layer, variable, axis)
    graph.size(layer, key, ids)
    where = -1 if isinstance(layer, layers.Dense) else _channel_axis(layer, x)
    return _finished(layer, graph, ids, where, _shape(layer, x), layer.compute_dtype)


def _finished(layer, graph, ids, axis, shape, dtype):
    """The output after the layer's bias and activation."""
    if layer.bias is not None:
        graph.record(layer.bias, 0, ids, out=True)
    ids = ids * _sign_after(layer.activation, axis, len(shape))
    if not ids.all():
        graph.lock(graph.born.get(id(layer), ids), f"the activation of {layer.name} mixes channels")
        return graph.fixed(shape, f"the activation of {layer.name} mixes channels", dtype)
    return Flow(ids, axis, shape, dtype)


def _sign_after(activation, axis, rank):
    """1 if the activation keeps zero and acts on each channel alone, -1 if it only does the latter, else 0."""
    if activation in (keras.activations.linear, None):
        return 1
    graph = _Silent()
    out = _probed(activation, graph, (Flow(np.arange(1, 9), axis, _line(8, axis, rank)),), {}, "")
    return 0 if graph.refused else int(np.sign(out[0].ids[0]))


def _line(size, axis, rank):
    shape = [3] * rank
    shape[axis] = size
    return tuple(shape)


class _Silent:
    """Takes the place of the graph where only the result of a probe matters."""

    refused = False

    def is_fixed(self, flow):
        return False

    def tie(self, ids, others):
        pass

    def lock(self, ids, why):
        self.refused = True


# Everything else


def _unknown(op, graph, args, kwargs):
    """A layer with weights and without a rule: nothing that it reads or makes can go."""
    why = f"{op.name}: no rule for {type(op).__name__} (see shrink.register)"
    graph.unknown.add(id(op))
    for flow in flows_in(args, kwargs):
        graph.lock(flow.ids, why)
    return _outputs(graph, _specs(op, args, kwargs), why)


def _weightless(op, graph, args, kwargs):
    """Whatever has no weights: run on some of the channels, it must give the same as on all of them."""
    specs = _specs(op, args, kwargs)
    if all(graph.is_fixed(flow) for flow in flows_in(args, kwargs)):
        return _outputs(graph, specs, "made of what cannot go")
    again = _models.recreate(op) if isinstance(op, layers.Layer) else op         # has a random state of its own
    flat = _probed(again, graph, args, kwargs, f"{op.name}: {type(op).__name__} mixes channels or fixes their number",
                   specs=keras.tree.flatten(specs))
    return keras.tree.pack_sequence_as(specs, flat)


def _specs(op, args, kwargs, part=(), size=None):
    args, kwargs = keras.tree.map_structure(
        lambda leaf: leaf.spec(size if any(leaf is one for one in part) else None) if isinstance(leaf, Flow) else leaf,
        (args, kwargs))
    return op.compute_output_spec(*args, **kwargs)


def _outputs(graph, specs, why):
    return keras.tree.map_structure(lambda x: graph.fixed(x.shape[1:], why, x.dtype), specs)


def _probed(call, graph, args, kwargs, why, specs=None):
    """Output flows of `call`, found by running it; locked when it does not act on every channel alone."""
    inputs = flows_in(args, kwargs)
    lead = max((flow for flow in inputs if not graph.is_fixed(flow)), key=lambda flow: len(flow.ids))
    part = [dataclasses.replace(flow, ids=flow.ids if flow.axis == lead.axis else np.full(len(lead.ids), flow.ids[0]))
            if _alike(flow, lead, graph) else None for flow in inputs]
    run = _Run(call, (args, kwargs), inputs, [one is not None for one in part], lead)
    axes = run.axes(specs)
    for flow, one in zip(inputs, part, strict=True):
        if axes is None or one is None:
            graph.lock(flow.ids, why if axes is None else "spread over the channels of another tensor")
    if axes is None:
        return [graph.fixed(x.shape[1:], why, x.dtype) for x in specs or ()]
    part = [one for one in part if one is not None]
    for one in part:
        graph.tie(lead.ids, one.ids)
    signs = run.signs(np.stack([one.ids < 0 for one in part]))
    return [Flow(np.abs(lead.ids) * sign, axis - y.ndim, y.shape[1:], str(y.dtype))
            for sign, axis, y in zip(signs, axes, run.whole, strict=True)]


def _alike(flow, lead, graph):
    """Whether a tensor has the channels of `lead` at the same axis."""
    return (len(flow.shape) >= -lead.axis and flow.shape[lead.axis] == len(lead.ids)
            and (flow.axis == lead.axis or graph.is_fixed(flow)))


class _Run:
    """Runs an operation on random numbers: on all channels, on some, and with some at zero."""

    def __init__(self, call, structure, inputs, parts, lead):
        rng = np.random.default_rng(0)
        self.call, self.structure, self.inputs, self.parts, self.lead = call, structure, inputs, parts, lead
        self.values = [rng.normal(size=(2, *flow.shape)).astype("float32") for flow in inputs]
        self.subsets = [np.sort(rng.permutation(len(lead.ids))[:size])
                        for size in {max(len(lead.ids) // 2, 1), max(len(lead.ids) - 1, 1)}]
        self.whole = None

    def outputs(self, values):
        left = {id(flow): value for flow, value in zip(self.inputs, values, strict=True)}
        args, kwargs = keras.tree.map_structure(
            lambda leaf: keras.ops.cast(left[id(leaf)], leaf.dtype) if isinstance(leaf, Flow) else leaf, self.structure)
        return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(self.call(*args, **kwargs))]

    def axes(self, specs):
        """The channel axis of every output, or None if a subset of the channels gives something else."""
        try:
            self.whole = self.outputs(self.values)
            if specs and [y.shape[1:] for y in self.whole] != [tuple(x.shape[1:]) for x in specs]:
                return None
            found = [self._axes_on(subset, symbolic=bool(specs)) for subset in self.subsets]
        except Exception:           # the operation is the user's: whatever it cannot do on fewer channels locks them
            return None
        return found[0] if found[0] is not None and found[0] == found[-1] else None

    def _axes_on(self, subset, symbolic):
        axis = self.lead.axis
        outputs = self.outputs([value.take(subset, axis) if part else value
                                for value, part in zip(self.values, self.parts, strict=True)])
        if symbolic:
            chosen = [flow for flow, part in zip(self.inputs, self.parts, strict=True) if part]
            specs = keras.tree.flatten(_specs(self.call, *self.structure, chosen, len(subset)))
            if [y.shape[1:] for y in outputs] != [tuple(x.shape[1:]) for x in specs]:
                return None
        axes = []
        for y, whole in zip(outputs, self.whole, strict=True):
            changed = [a for a in range(1, whole.ndim) if y.ndim == whole.ndim and y.shape[a] != whole.shape[a]]
            if len(changed) != 1 or whole.shape[changed[0]] != len(self.lead.ids):
                return None
            expected = whole.take(subset, changed[0])
            if y.shape != expected.shape or not np.allclose(y, expected, 1e-4, 1e-5, equal_nan=True):
                return None
            axes.append(changed[0])
        return axes

    def signs(self, dirty):
        """For each output, 1 or -1 per channel: is it zero when the channel is zero in the inputs not marked dirty?"""
        signs = [np.ones(dirty.shape[1], int) for _ in self.whole]
        for pattern in np.unique(dirty, axis=1).T:
            marks = iter(pattern)
            outputs = self.outputs([np.zeros_like(value) if part and not next(marks) else value
                                    for value, part in zip(self.values, self.parts, strict=True)])
            here = (dirty == pattern[:, None]).all(0)
            for sign, y in zip(signs, outputs, strict=True):
                sign[here] = 1 if (y == 0).all() else -1
        return signs
