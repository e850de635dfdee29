"""The blocks of a network by depth, and the layers in them that train."""

import dataclasses
import functools
import itertools
import re

import pandas as pd

from .. import _models
from .._check import MODEL, TEXT, Instance, Whole, checked, require
from .._keras import graph_of, inner_layers, keras, parts_of, uses
from .._tables import Frame

_NAMED = re.compile(r"^.*(?:(?:block|cell|layer|stack|stage)_?\d+[a-z]?|expanded_conv(?:_\d+)?)(?=[_/]|$)")
UNTIL = TEXT | Instance("keras.layers.Layer", text="a layer") | Whole()
Until = str | int | keras.layers.Layer | None


@dataclasses.dataclass
class Block:
    """Layers that belong together; `layers` holds those with weights, by path."""

    name: str
    depth: int
    layers: dict[str, keras.layers.Layer]

    @property
    def trains(self):
        return any(layer.trainable_weights for layer in self.layers.values())


@dataclasses.dataclass(eq=False)
class _Use:
    """One use of a layer or operation in the graph of all nested models."""

    path: str
    layer: object                    # None for what has no weights
    before: list


def blocks_of(model):
    """[Block] from input to head.

    A block ends where all that comes from an input passes through one tensor: behind each layer of a chain, behind the
    sum of a residual block, behind the join of parallel branches. Layers that are named after one block belong together
    as well. A block without a kernel, such as a normalization, belongs to the one before it. Depths count blocks on the
    longest way to the output; towers side by side end at the same depth.
    """
    trace = []
    _follow(model, [_use(trace, "", None, [])] if graph_of(model) is None else None, "", trace)
    groups = _Groups()
    ends = _ends(trace)
    for use in trace:
        if use.layer is not None:
            named = _NAMED.match(use.path)
            groups.join(id(use.layer), named.group() if named else id(ends[use]))
    weighted = [use for use in trace if use.layer is not None]
    _join_without_kernels(weighted, trace, groups)
    behind = _behind(trace, lambda use: groups.of(id(use.layer)))
    found, distance = {}, {}
    for use in weighted:
        key = groups.of(id(use.layer))
        layers = found.setdefault(key, {})
        if not any(layer is use.layer for layer in layers.values()):
            layers[use.path] = use.layer
        distance[key] = max(distance.get(key, 0), behind[use])
    depth = {far: place for place, far in enumerate(sorted(set(distance.values()), reverse=True))}
    blocks = [Block(_name(layers), depth[distance[key]], layers) for key, layers in found.items()]
    return sorted(blocks, key=lambda block: block.depth)


def _use(trace, path, layer, before):
    trace.append(_Use(path, layer, before))
    return trace[-1]


def _follow(owner, sources, prefix, trace):
    """Adds the uses inside `owner` to `trace`; `sources` are those that its inputs come from. Returns the last ones."""
    graph = graph_of(owner)
    if graph is None:                                      # a class of its own: its layers, in the order it holds them
        for layer in inner_layers(owner):
            sources = _step(layer, sources, prefix, trace)
        return sources
    sources = sources or [_use(trace, x.name, None, []) for x in graph.inputs]
    known = {id(x): source for x, source in zip(graph.inputs, itertools.cycle(sources), strict=False)}
    for op, args, kwargs, outputs in uses(graph):
        before = [known[id(x)] for x in keras.tree.flatten((args, kwargs)) if id(x) in known]
        made = _step(op, before, prefix, trace)
        known.update({id(x): use for x, use in zip(outputs, itertools.cycle(made), strict=False)})
    return [known[id(x)] for x in graph.outputs]


def _step(op, before, prefix, trace):
    inner = op.layer if isinstance(op, keras.layers.Wrapper) and graph_of(op.layer) is not None else op
    if isinstance(inner, keras.Model) and inner.weights:
        return _follow(inner, before, f"{prefix}{inner.name}/", trace)
    return [_use(trace, prefix + op.name, op if getattr(op, "weights", ()) else None, before)]


def _ends(trace):
    """{use: the use at which its block ends}: the next one that everything from some input passes through.

    These are the immediate post-dominators of the inputs, theirs, and so on (Cooper, Harvey, Kennedy 2001).
    """
    end = _Use("", None, [])
    after = {use: [] for use in trace}
    for use in trace:
        for source in use.before:
            after[source].append(use)
    following, level = {}, {end: 0}

    def common(one, other):
        while one is not other:
            one, other = (following[one], other) if level[one] >= level[other] else (one, following[other])
        return one

    for use in reversed(trace):
        following[use] = functools.reduce(common, after[use] or [end])
        level[use] = level[following[use]] + 1
    passed = {end}
    for start in (use for use in trace if not use.before):
        use = start
        while use not in passed:
            passed.add(use)
            use = following[use]
    ends = {}
    for use in trace:
        last = use
        while last not in passed:
            last = following[last]
        ends[use] = last
    return ends


class _Groups:
    """Layers that were joined are one group (union-find)."""

    def __init__(self):
        self._parent = {}

    def of(self, key):
        while self._parent.get(key, key) != key:
            key = self._parent[key]
        return key

    def join(self, one, other):
        self._parent[self.of(one)] = self.of(other)


def _join_without_kernels(weighted, trace, groups):
    """Joins what holds no kernel (normalization, scale, bias) to the block before it, or the one behind it."""
    def kernels():
        return {groups.of(id(use.layer)) for use in weighted if any(len(w.shape) > 1 for w in use.layer.weights)}

    nearest = {}                                           # the last block with a kernel on the way to a use
    with_kernel, waiting = kernels(), []
    for use in trace:
        nearest[use] = next((nearest[source] for source in use.before if nearest[source] is not None), None)
        if use.layer is None:
            continue
        if groups.of(id(use.layer)) in with_kernel:
            nearest[use] = use.layer
        elif nearest[use] is not None:
            groups.join(id(use.layer), id(nearest[use]))
        else:
            waiting.append(use)
    first = next((use for use in weighted if groups.of(id(use.layer)) in kernels()), None)
    for use in waiting:
        groups.join(id(use.layer), id((first or weighted[0]).layer))


def _behind(trace, block):
    """{use with a layer: how many other blocks lie behind it on the longest way to the output}."""
    ahead, behind = {use: {} for use in trace}, {}         # {next block on some way: blocks from there on}
    for use in reversed(trace):
        if use.layer is None:
            seen = ahead[use]
        else:
            behind[use] = max((far + (key != block(use)) for key, far in ahead[use].items()), default=0)
            seen = {block(use): behind[use]}
        for source in use.before:
            for key, far in seen.items():
                ahead[source][key] = max(far, ahead[source].get(key, 0))
    return behind


def _name(layers):
    """What its layers are named after, or the first of them with a kernel."""
    first = next((path for path, layer in layers.items() if any(len(w.shape) > 1 for w in layer.weights)),
                 next(iter(layers)))
    named = _NAMED.match(first)
    return named.group() if named else first


@checked(model=MODEL)
def plan(model: keras.Model) -> pd.DataFrame:
    """Blocks of a network by depth, from input to head: what `rates`, `freeze` and `Unfreeze` go by.

    A block ends where all that comes from an input passes through one tensor: behind each layer of a chain, behind the
    sum of a residual block, behind the join of parallel branches. Layers named after one block (`block3_conv1`,
    `stage_2_block_0_mlp`, `layer_4`) belong together as well; what holds no kernel, such as a normalization, belongs to
    the block before it. Nested models, such as a backbone of keras.applications or KerasHub, are looked into. A model
    with a `call` of its own counts as the chain of its layers, in the order it holds them.

    Args:
      model: a built model.

    Returns:
      pandas.DataFrame, one row a block: `depth` (0 at the input, largest at the head; blocks side by side share one),
      `block` (its name), `layers` (paths of its layers with weights, separated by commas), `parameters`, and
      `trainable` (whether any of them trains).

    Raises:
      ValueError: the model is not built, or holds no weights.
      TypeError: it is no Keras 3 model.

    Example:
      >>> import keras
      >>> backbone = keras.Sequential(
      ...     [keras.Input((4,)), keras.layers.Dense(8, name="stem"), keras.layers.BatchNormalization(),
      ...      keras.layers.Dense(8, name="body")], name="net")
      >>> plan(keras.Sequential([keras.Input((4,)), backbone, keras.layers.Dense(2, name="head")])).block.tolist()
      ['net/stem', 'net/body', 'head']
    """
    return Frame([{"depth": block.depth, "block": block.name, "layers": ", ".join(block.layers),
                   "parameters": sum(layer.count_params() for layer in block.layers.values()),
                   "trainable": block.trains} for block in required_blocks(model, "finetune.plan")])


def required_blocks(model, caller):
    """`blocks_of` a model, which must be built and hold weights."""
    _models.require_model(model, caller)
    require(model.weights, f"{caller} needs a model with weights", model=_models.describe(model))
    return blocks_of(model)


def depth_of(until, blocks, caller):
    """The depth that `until` stands for: itself, or the deepest of the blocks with a layer, path or nested model."""
    def inside(block):
        for path, layer in block.layers.items():
            if isinstance(until, str):
                yield until in (block.name, layer.name) or f"/{until}/" in f"/{path}/"
            else:
                yield any(part is until for part in parts_of(layer)) or any(part is layer for part in parts_of(until))

    last = blocks[-1].depth
    if isinstance(until, int):
        require(-last - 1 <= until <= last, f"{caller}: `until` must be a depth of the model", until=until,
                depths=f"0 to {last}", do="See finetune.plan(model).")
        return until % (last + 1)
    found = [block.depth for block in blocks if any(inside(block))]
    name = until if isinstance(until, str) else until.name
    require(found, f"{caller}: `until` must name a block of the model, or a layer with weights in one", until=name,
            do=f"Its blocks are {', '.join(block.name for block in blocks)}.")
    return max(found)


@checked(model=MODEL, until=UNTIL)
def freeze(model: keras.Model, until: Until = None) -> keras.Model:
    """Layer freezing: a new model whose blocks from the input up to `until` do not train.

    Batch normalizations of frozen blocks normalize by their moving moments, also in training, and keep these, until the
    block is thawed: by `Unfreeze`, or by `layer.trainable = True` and a new `compile`.

    Args:
      model: a built model, see `plan` for its blocks.
      until: the last block that is frozen: its name, its depth (negative ones count from the head), a layer in it or
        its name, or a nested model, which is frozen whole. None freezes everything but the head.

    Returns:
      An uncompiled keras.Model with the same weights. Blocks above `until` train or not as they did.

    Raises:
      ValueError: the model is not built or holds no weights, has no such block, or nothing would be left to train.
      TypeError: an argument is of another kind.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
      >>> plan(freeze(model)).trainable.tolist(), plan(model).trainable.tolist()
      ([False, True], [True, True])
    """
    blocks = required_blocks(model, "finetune.freeze")
    last = depth_of(-2 if until is None and blocks[-1].depth else until or 0, blocks, "finetune.freeze")
    require(any(block.trains for block in blocks if block.depth > last), "a block above `until` must be left to train",
            until=until if isinstance(until, str | int | None) else until.name,
            blocks=", ".join(block.name for block in blocks), do="Name one closer to the input.")
    new = _models.copy(model)
    set_trainable(new, [layer for block in blocks_of(new) if block.depth <= last for layer in block.layers.values()],
                  False)
    _models.compare(model, new)
    return new


def set_trainable(model, layers, flag):
    """Sets the flag of some layers, whole; all other layers keep theirs.

    What a thawed layer lies in must be trainable too: a saved model would load it frozen.
    """
    chosen = {id(part) for layer in layers for part in parts_of(layer)}
    wanted = {}
    for part in parts_of(model):
        holds = flag and not part.trainable and any(id(inner) in chosen for inner in parts_of(part))
        wanted[id(part)] = flag if id(part) in chosen else holds or part.trainable
    for part in parts_of(model):                           # owners first: their flag overrules what they hold
        if part.trainable != wanted[id(part)]:
            part.trainable = wanted[id(part)]
