"""Weight penalties and dropout put into a model that is already trained."""

from .. import _models
from .._check import MODEL, WHERE, Number, checked, refusal, require
from .._keras import graph_of, keras, parts_of, producer, uses
from .._typing import Where
from ._drop_path import DropPath
from ._penalties import PENALTY, Sum, found

_SLOTS = {"kernel_regularizer": ("kernel",), "depthwise_regularizer": ("depthwise_kernel", "kernel"),
          "pointwise_regularizer": ("pointwise_kernel",), "recurrent_regularizer": ("recurrent_kernel",),
          "embeddings_regularizer": ("embeddings",)}


@checked(model=MODEL, penalty=PENALTY, where=WHERE)
def add(model: keras.Model, penalty: keras.regularizers.Regularizer | str, *, where: Where = None) -> keras.Model:
    """Weight penalties for the kernels of a trained model: the same network and weights, uncompiled.

    Kernels are whatever Keras calls kernel, depthwise, pointwise or recurrent kernel, also in the layers inside
    wrappers, attention, recurrent cells and layers of your own; biases and normalization stay free. Embeddings get the
    penalty only if `where` chooses them. A layer that has a penalty keeps it and pays the `Sum` of both. As everywhere
    in Keras, a frozen layer pays nothing.

    A file keeps the penalties of Keras' own layers. Those inside a layer of your own are in it only if its config says
    so: call `add` again after loading.

    Args:
      model: a built model, also subclassed, with nested models and shared layers; it is not changed.
      penalty: a keras.regularizers.Regularizer, e.g. `GroupLasso(1e-4)`, or the name of one, e.g. "hoyer" (see `get`).
      where: None for every layer with a kernel; layer names or paths (`outer/inner`), layers, or `layer -> bool`.

    Returns:
      A new, uncompiled model.

    Raises:
      TypeError: `model` is no Keras 3 model, or `penalty` no Regularizer.
      ValueError: the model is not built or a layer of it cannot be copied; `where` names no layer of it or one without
        a kernel; the penalty of a kernel is not a finite number.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
      >>> model = add(model, "l2")
      >>> len(model.losses)
      2
    """
    _models.require_model(model, "regularizers.add")
    penalty, by_default = found(penalty, "penalty"), where is None
    chosen = _models.select(model, where, "regularizers.add", what="layer with a kernel",
                            able=lambda layer: kernels(layer, embeddings=not by_default))
    new = _models.copy(model)
    layers, done = _models.layers(new), set()
    for path in chosen:
        for part, slot, variable in kernels(layers[path], embeddings=not by_default):
            if (id(part), slot) in done:
                continue
            done.add((id(part), slot))
            held = getattr(part, slot)
            setattr(part, slot, penalty if held is None else Sum([held, penalty]))
            if variable is not None:
                variable.regularizer = getattr(part, slot)
                _require_finite(variable)
    _models.compare(model, new)
    return new


def _require_finite(variable):
    try:
        value = float(variable.regularizer(variable))
    except ValueError as reason:                           # Keras' OrthogonalRegularizer takes matrices alone
        raise refusal("the penalty cannot be computed of every kernel", weights=variable.path, reason=str(reason),
                      shape=tuple(variable.shape), do="Choose layers that it suits by `where`.") from reason
    require(abs(value) < float("inf"), "the penalties must be finite numbers", weights=variable.path, value=value,
            do="Look for NaN in the weights.")


def kernels(layer, *, embeddings):
    """[(layer inside, attribute of the penalty, variable or None)] of a layer and those inside; [] without variables.

    Attention keeps the penalty of the layers inside for its config, and has no variable of its own.
    """
    found = []
    for part in parts_of(layer):
        for slot, names in _SLOTS.items():
            held = next((name for name in (slot, f"_{slot}") if name in vars(part)), None)
            if held is None or (slot == "embeddings_regularizer" and not embeddings):
                continue
            named = [vars(part).get(prefix + name) for name in names for prefix in ("_", "")]
            found.append((part, held, next((one for one in named if isinstance(one, keras.Variable)), None)))
    return found if any(variable is not None for *_, variable in found) else []


_DROPS = (DropPath, keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout,
          keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Conv1DTranspose,
                 keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose, keras.layers.DepthwiseConv1D,
                 keras.layers.DepthwiseConv2D, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_RECTIFIERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU, keras.layers.ELU)
_NO_HIDDEN_FEATURES = ("linear", "softmax", "log_softmax", "sigmoid", "hard_sigmoid")


@checked(model=MODEL, rate=Number(above=0, below=1), where=WHERE)
def dropout(model: keras.Model, rate: float, *, where: Where = None) -> keras.Model:
    """Dropout behind the hidden activations of a trained model: the same network and weights, uncompiled.

    By default these are the activations of Dense and convolution layers, in the layer itself or in a layer of its own;
    gates and probabilities (sigmoid, softmax) are left alone, and what already has a dropout behind it. Never behind
    the output: the last layer with weights before an output, and what follows it. Images and volumes, and what a
    1-D convolution gives, lose whole channels (SpatialDropout), everything else single values. A layer that is used
    several times has one dropout layer, which draws anew at each use.

    Args:
      model: a built functional or Sequential model, also with nested models and shared layers; it is not changed.
      rate: share of the values that are dropped while training, > 0 and < 1.
      where: None as above; names or paths (`outer/inner`) of hidden layers, or these layers; or `layer -> bool`, asked
        of the layers that None would choose.

    Returns:
      A new, uncompiled functional model, which predicts what `model` predicts.

    Raises:
      TypeError: `model` is no Keras 3 model.
      ValueError: `rate` is out of range; the model is not built or is subclassed; `where` names no layer of it, an
        output layer, or a layer with a dropout behind it.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu", name="hidden"),
      ...                           keras.layers.Dense(2, name="logits")])
      >>> [layer.name for layer in dropout(model, 0.2).layers][1:]
      ['hidden', 'hidden_dropout', 'logits']

    Reference:
      Srivastava et al., Dropout, 2014. https://jmlr.org/papers/v15/srivastava14a.html
      Tompson et al., Efficient Object Localization Using Convolutional Networks, 2015. https://arxiv.org/abs/1411.4280
    """
    graph = _models.require_graph(model, "regularizers.dropout")
    barred = {id(op) for op in [*_outputs(graph)[0], *_dropped(graph)]}

    def able(layer):
        by_name = where is not None and (isinstance(where, keras.layers.Layer) or not callable(where))
        return id(layer) not in barred and (by_name or _is_hidden_activation(layer))

    chosen = _models.select(model, where, "regularizers.dropout", able=able, what="hidden layer without a dropout")
    names = {layer.name for layer in _models.layers(model).values()}
    chosen, drops = {id(layer): layer for layer in chosen.values()}, {}

    def change(layer):
        if id(layer) not in chosen:
            return None
        new, name = _models.recreate(layer), f"{layer.name}_dropout"
        while name in names:
            name += "_"
        names.add(name)
        drops[id(new)] = new, name
        return new

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        if id(layer) not in drops:
            return outputs
        kept, drop = drops[id(layer)]
        if isinstance(drop, str):
            drop = _dropout_for(layer, outputs, rate, drop)
            drops[id(layer)] = kept, drop
        return drop(outputs)

    new = _models.copy(model, change=change, call=call)
    _models.compare(model, new)
    return new


def _is_hidden_activation(layer):
    if isinstance(layer, _RECTIFIERS):
        return True
    if not isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Activation, *_CONVOLUTIONS)):
        return False
    return getattr(layer.activation, "__name__", "") not in _NO_HIDDEN_FEATURES


def _dropout_for(layer, outputs, rate, name):
    rank = len(outputs.shape)
    if rank == 4:
        return keras.layers.SpatialDropout2D(rate, data_format=getattr(layer, "data_format", None), name=name)
    if rank == 5:
        return keras.layers.SpatialDropout3D(rate, data_format=getattr(layer, "data_format", None), name=name)
    kind = keras.layers.SpatialDropout1D if rank == 3 and isinstance(layer, _CONVOLUTIONS) else keras.layers.Dropout
    return kind(rate, name=name)


def _outputs(graph):
    """The last operations with a kernel before each output and all behind them; and whether an input is reached."""
    found, seen, through, tensors = [], set(), False, list(graph.outputs)
    while tensors:
        tensor = tensors.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        op, sources = producer(tensor)
        inner = graph_of(op)
        last, passes = _outputs(inner) if inner is not None else ([op], not _has_kernel(op))
        found += last
        if passes:
            tensors += sources
            through = through or not sources
    return found, through


def _has_kernel(op):
    return any(len(weight.shape) > 1 for part in parts_of(op) for weight in getattr(part, "weights", ()))


def _dropped(graph):
    """The operations whose outputs go into a dropout, in nested graphs too."""
    found = []
    for op, args, kwargs, _ in uses(graph):
        if graph_of(op) is not None:
            found += _dropped(graph_of(op))
        elif isinstance(op, _DROPS):
            found += [maker for tensor in keras.tree.flatten((args, kwargs)) for maker in _makers(tensor)]
    return found


def _makers(tensor):
    """The operations, none of them a graph, that made a tensor."""
    if not isinstance(tensor, keras.KerasTensor):
        return []
    op = producer(tensor)[0]
    inner = graph_of(op)
    return [op] if inner is None else [maker for output in inner.outputs for maker in _makers(output)]
