"""Which layers XNNPACK's sparse kernels run faster, by the rules of TFMOT's `PruneForLatencyOnXNNPack`."""

from .. import _models
from .._check import MODEL, checked, refusal, require
from .._keras import graph_of, keras, producer, uses_for
from .._toolkit.kernels import require_plain, units

layers = keras.layers

_PADDINGS = {(3, 3): ((1, 1), (1, 1)), (5, 5): ((2, 2), (2, 2))}           # as much as "same" adds
_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid")
_OPERATIONS = {"Add", "Subtract", "Multiply", "Relu", "Relu6", "LeakyRelu", "Elu", "Sigmoid"}            # keras.ops
_ANY = (layers.Add, layers.Multiply, layers.ZeroPadding2D, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout)


def _is_depthwise(layer, before):
    padded = layer.padding == "valid" and layer.strides in ((1, 1), (2, 2)) and (
        _padding(before) == _PADDINGS.get(layer.kernel_size))
    return (layer.kernel_size in _PADDINGS and layer.depth_multiplier == 1 and layer.dilation_rate == (1, 1)
            and (padded or (layer.padding == "same" and layer.strides == (1, 1))))


def _padding(before):
    """What the ZeroPadding2D pads that is alone in `before`, else None."""
    only = next(iter(before)) if len(before) == 1 else None
    return only.padding if isinstance(only, layers.ZeroPadding2D) else None


_RULES = {                                                 # class: (does a layer of it fit, what it must do)
    layers.DepthwiseConv2D: (_is_depthwise, "be 3x3 or 5x5, not dilated, with depth_multiplier=1, and either of stride "
                             "1 with padding='same', or of stride 1 or 2 behind ZeroPadding2D(1) or (2)"),
    layers.Conv2D: (lambda layer, _: layer.kernel_size == layer.strides == layer.dilation_rate == (1, 1)
                    and layer.groups == 1, "be 1x1, of stride 1, in one group"),
    layers.GlobalAveragePooling2D: (lambda layer, _: layer.keepdims, "have keepdims=True"),
    layers.BatchNormalization: (lambda layer, _: layer.axis in (3, -1), "normalize the last axis"),
    layers.UpSampling2D: (lambda layer, _: layer.interpolation == "bilinear", "be bilinear"),
    layers.Activation: (lambda layer, _: keras.activations.serialize(layer.activation) in _ACTIVATIONS,
                        f"be one of {', '.join(_ACTIVATIONS)}"),
}


@checked(model=MODEL)
def xnnpack_layers(model: keras.Model) -> list[str]:
    """Sparse inference in XNNPACK: paths of the layers whose zeros make it faster (1x1 convolutions), for `where`.

    TFMOT's latency policy. Behind every input there must be ZeroPadding2D(1) and a 3x3 Conv2D of 3 channels with stride
    2 and padding="valid", before every output a GlobalAveragePooling2D, and in between only what XNNPACK runs sparsely:
    1x1 Conv2D, 3x3 and 5x5 DepthwiseConv2D, BatchNormalization, Add, Multiply, ZeroPadding2D, Dropout,
    GlobalAveragePooling2D(keepdims=True), bilinear UpSampling2D, and the activations relu, relu6, leaky_relu, elu and
    sigmoid. Nested models count as what is in them, operations (`a + b`) as the layers of their name.

    Args:
      model: built Functional or Sequential keras.Model.

    Returns:
      list of str: the paths of all 1x1 Conv2D of the model, in order.

    Raises:
      ValueError: the model is not of this form; the sentence names the first obstacle.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
      >>> xnnpack_layers(model)
      Traceback (most recent call last):
      ValueError: prune.xnnpack_layers: the model must begin with ZeroPadding2D(1) and a 3x3 Conv2D ...

    Reference:
      Elsen et al., Fast sparse ConvNets, 2019, https://arxiv.org/abs/1911.09723
    """
    require_plain(model)
    graph, do = _Graph(model), "Prune without it: the file gets smaller, not faster."
    starts, everywhere = _reached(graph.inputs, graph.starts, graph.consumers)
    require(everywhere, "the model must begin with ZeroPadding2D(1) and a 3x3 Conv2D of 3 channels with stride 2 and "
            "padding='valid', behind every input", model=model.name, do=do)
    ends, everywhere = _reached(graph.outputs, lambda layer: isinstance(layer, layers.GlobalAveragePooling2D),
                                graph.producers)
    require(everywhere, "the model must have a GlobalAveragePooling2D before every output", model=model.name, do=do)
    stops, _ = _reached([after for start in starts for after in graph.consumers[start]],
                        lambda layer: layer in ends or graph.obstacle(layer), graph.consumers)
    paths = {layer: path for path, layer in units(model).items()}
    for layer in stops:
        if layer not in ends:
            raise refusal(f"between the first convolution and the GlobalAveragePooling2D, {graph.obstacle(layer)}",
                          layer=paths.get(layer, layer.name), do=do)
    return [path for layer, path in paths.items()
            if layer in graph.producers and isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1)]


class _Graph:
    """What feeds what in a model whose nested models are opened.

    Attributes:
      producers, consumers: {layer or operation: {the ones before or behind it, in any of its uses: None}}.
      inputs, outputs: those that make the inputs and the outputs of the model.
    """

    def __init__(self, model):
        graph = _models.require_graph(model, "prune.xnnpack_layers")
        self.inputs = [producer(x)[0] for x in graph.inputs]
        self.producers = {layer: {} for layer in self.inputs}
        self.consumers = {layer: {} for layer in self.inputs}
        makers = dict(zip(map(id, graph.inputs), self.inputs, strict=True))
        self._visit(graph, graph.outputs, makers)
        self.outputs = [makers[id(x)] for x in graph.outputs]

    def _visit(self, graph, wanted, makers):
        steps, needed = uses_for(graph, wanted)
        for op, args, kwargs, outputs in steps:
            before = [makers.get(id(x)) for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
            made, inner = [op] * len(outputs), graph_of(op)
            if inner is None:
                self.consumers.setdefault(op, {})
                self.producers.setdefault(op, {}).update(dict.fromkeys(before))
                for layer in before:
                    self.consumers[layer][op] = None
            else:
                inside = dict(zip(map(id, inner.inputs), before, strict=False))          # masks come behind the inputs
                ends = [x for x, y in zip(inner.outputs, outputs, strict=True) if id(y) in needed]
                self._visit(inner, ends, inside)
                made = [inside.get(id(x)) for x in inner.outputs]
            makers.update(zip(map(id, outputs), made, strict=True))

    def starts(self, layer):
        """Does the part that XNNPACK runs sparsely begin here?"""
        return (isinstance(layer, layers.Conv2D) and tuple(layer.kernel.shape[:3]) == (3, 3, 3)
                and layer.strides == (2, 2) and layer.padding == "valid"
                and _padding(self.producers[layer]) == _PADDINGS[3, 3])

    def obstacle(self, layer):
        """Why a layer in between is not run sparsely, or None."""
        name = type(layer).__name__
        operation = not isinstance(layer, layers.Layer) and type(layer).__module__.startswith("keras.")
        if isinstance(layer, _ANY) or (operation and name in _OPERATIONS):
            return None
        for kind, (fits, rule) in _RULES.items():
            if isinstance(layer, kind):
                return None if fits(layer, self.producers[layer]) else f"every {name} must {rule}"
        return f"there must be no {name}"


def _reached(sources, stop, following):
    """([the first that `stop` on the ways from `sources`], is there one on every way?)."""
    found, complete, waiting = [], True, list(dict.fromkeys(sources))
    for layer in waiting:                                  # which grows on the way
        if stop(layer):
            found.append(layer)
        else:
            complete &= bool(following[layer])
            waiting.extend(after for after in following[layer] if after not in waiting)
    return found, complete
