"""Weight -> penalty; a layer that drops whole branches; both put into a model that is already trained."""

from .. import _models
from .._check import require, require_number
from .._keras import ConfigFromArguments, graph_of, keras, parts_of, producer, serializable, tf, uses

L1 = keras.regularizers.L1
L2 = keras.regularizers.L2
L1L2 = keras.regularizers.L1L2
OrthogonalRegularizer = keras.regularizers.OrthogonalRegularizer

__all__ = ["L1", "L1L2", "L2", "DropPath", "GroupLasso", "Hoyer", "Kurtosis", "OrthogonalRegularizer", "Sum", "add",
           "dropout", "get"]


def hoyer(weights):
    """(sum |w|)^2 / sum w^2: from 1 (one weight is left) to the number of weights (all are equal); 0 for no weight."""
    return tf.math.divide_no_nan(tf.square(tf.reduce_sum(tf.abs(weights))), tf.reduce_sum(tf.square(weights)))


def group_norms(weights, axis):
    """The Euclidean norm of each group, with gradient 0 where the group is 0."""
    kept = [index % len(weights.shape) for index in axis]
    squares = tf.reduce_sum(tf.square(weights), [i for i in range(len(weights.shape)) if i not in kept])
    safe = tf.where(squares > 0, squares, 1)                # sqrt has no finite derivative at 0
    return tf.where(squares > 0, tf.sqrt(safe), 0)


def kurtosis(weights):
    """mean(((w - mean) / std)^4): 1.8 for a uniform distribution, 3 for a normal one; 0 if all weights are equal."""
    squares = tf.square(weights - tf.reduce_mean(weights))
    return tf.math.divide_no_nan(tf.reduce_mean(tf.square(squares)), tf.square(tf.reduce_mean(squares)))


@serializable
class Hoyer(ConfigFromArguments, keras.regularizers.Regularizer):
    """Drives small weights to zero and leaves large ones alone, whatever the scale: training for `prune`.

        penalty = strength * (sum |w|)^2 / sum w^2

    Args:
      strength: >= 0, about 1e-5 to 1e-3; the fraction itself is at most the number of weights.

    Call:
      weights: float tensor of any shape -> scalar.

    Raises:
      ValueError: `strength` is out of range.

    Example:
      >>> round(float(Hoyer(0.5)([[3.0, 0.0], [0.0, 1.0]])), 3)     # 0.5 * 4^2 / 10
      0.8

    Reference:
      Yang, Wen and Li, DeepHoyer, 2020. https://arxiv.org/abs/1908.09979
    """

    def __init__(self, strength=1e-4):
        require_number("strength", strength, low=0)
        self.strength = float(strength)

    def __call__(self, weights):
        return self.strength * hoyer(tf.convert_to_tensor(weights))


@serializable
class GroupLasso(ConfigFromArguments, keras.regularizers.Regularizer):
    """Drives whole output channels to zero: training for `shrink`.

        penalty = strength * sum over groups of sqrt(size of the group) * |group|_2

    Args:
      strength: >= 0, about 1e-5 to 1e-3.
      axis: the axis, or axes, along which one group follows another; all other axes are inside a group. -1: a group is
        what leads to one output channel of Dense and Conv. Use -2 for ConvTranspose, (-2, -1) for DepthwiseConv.

    Call:
      weights: float tensor with that axis -> scalar; the gradient of a group of zeros is zero.

    Raises:
      ValueError: `strength` is out of range, or `axis` names no axis of the weights or one twice.

    Example:
      >>> round(float(GroupLasso(1.0)([[3.0, 0.0], [4.0, 0.0]])), 3)     # sqrt(2) * 5
      7.071

    Reference:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016. https://arxiv.org/abs/1608.03665
      Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006.
      https://doi.org/10.1111/j.1467-9868.2005.00532.x
    """

    def __init__(self, strength=1e-4, *, axis=-1):
        require_number("strength", strength, low=0)
        for index in self._tuple(axis):
            require_number("axis", index, integer=True)
        self.strength = float(strength)
        self.axis = [int(index) for index in axis] if isinstance(axis, list | tuple) else int(axis)

    def __call__(self, weights):
        weights = tf.convert_to_tensor(weights)
        rank, axes = len(weights.shape), self._tuple(self.axis)
        require(axes and all(-rank <= index < rank for index in axes) and len({i % rank for i in axes}) == len(axes),
                "`axis` of GroupLasso must name axes of the weights, each once", axis=self.axis,
                shape=tuple(weights.shape))
        norms = group_norms(weights, axes)
        size = tf.size(weights) / tf.maximum(tf.size(norms), 1)
        return self.strength * tf.cast(tf.sqrt(size), weights.dtype) * tf.reduce_sum(norms)

    @staticmethod
    def _tuple(axis):
        return tuple(axis) if isinstance(axis, list | tuple) else (axis,)


@serializable
class Kurtosis(ConfigFromArguments, keras.regularizers.Regularizer):
    """Spreads the weights evenly over their range, so that few bits describe them well: training for `quantize`.

        penalty = strength * (mean(((w - mean) / std)^4) - target)^2

    Args:
      strength: >= 0, about 1e-3 to 1e-1 for each kernel.
      target: kurtosis to reach, >= 1; 1.8 is that of a uniform distribution.

    Call:
      weights: float tensor of any shape -> scalar; the gradient is zero where all weights are equal.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> round(float(Kurtosis(1.0, target=2.0)([1.0, 2.0, 3.0, 4.0])), 4)     # (1.64 - 2)^2
      0.1296

    Reference:
      Chmiel et al., Robust Quantization: One Model to Rule Them All, 2020. https://arxiv.org/abs/2002.07686
    """

    def __init__(self, strength=1e-2, *, target=1.8):
        require_number("strength", strength, low=0)
        require_number("target", target, low=1)
        self.strength, self.target = float(strength), float(target)

    def __call__(self, weights):
        return self.strength * tf.square(kurtosis(tf.convert_to_tensor(weights)) - self.target)


@serializable
class Sum(ConfigFromArguments, keras.regularizers.Regularizer):
    """Adds several penalties of the same weights.

        penalty = sum of penalty_i

    Args:
      penalties: one or more keras.regularizers.Regularizer.

    Call:
      weights: float tensor -> scalar.

    Raises:
      TypeError: an element is no Regularizer.
      ValueError: there is none.

    Example:
      >>> float(Sum([L1(1.0), L2(1.0)])([3.0]))
      12.0
    """

    def __init__(self, penalties):
        penalties = list(penalties)
        require(penalties, "`penalties` must hold at least one Regularizer", penalties=penalties)
        for penalty in penalties:
            _penalty("Sum", penalty)
        self.penalties = penalties

    def __call__(self, weights):
        weights = tf.convert_to_tensor(weights)
        return tf.add_n([penalty(weights) for penalty in self.penalties])


@serializable
class DropPath(ConfigFromArguments, keras.layers.Layer):
    """Drops a whole residual branch for some of the examples of a batch: stochastic depth.

        training:    y = x / (1 - rate) with probability 1 - rate, else 0, drawn once per example
        inference:   y = x

    Put it behind a branch, before it is added: `x + DropPath(0.1)(branch(x))`. Rates usually grow in a straight line
    from 0 at the first block to `rate` at the last.

    Args:
      rate: probability that an example loses the branch, >= 0 and < 1.
      seed: int, or None for one drawn from Python's random state.
      **kwargs: of keras.layers.Layer, such as `name` and `dtype`.

    Call:
      inputs: (batch, ...) of any float type -> the same shape and type.

    Raises:
      ValueError: `rate` is out of range.

    Example:
      >>> kept = DropPath(0.5, seed=1)(tf.ones((1000, 2)), training=True).numpy()
      >>> sorted(set(kept.ravel().tolist())), bool((kept[:, 0] == kept[:, 1]).all())
      ([0.0, 2.0], True)

    Reference:
      Huang et al., Deep Networks with Stochastic Depth, 2016. https://arxiv.org/abs/1603.09382
    """

    def __init__(self, rate, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        require_number("rate", rate, low=0, below=1)
        self.rate, self.seed = float(rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.built = True

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        shape = (tf.shape(inputs)[0], *[1] * (len(inputs.shape) - 1))
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape


_KERNELS = {"kernel_regularizer": ("kernel",), "depthwise_regularizer": ("depthwise_kernel", "kernel"),
            "pointwise_regularizer": ("pointwise_kernel",), "recurrent_regularizer": ("recurrent_kernel",),
            "embeddings_regularizer": ("embeddings",)}


def add(model, penalty, *, where=None):
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
      >>> model = add(model, L2(1e-4))
      >>> len(model.losses)
      2
    """
    caller = "regularizers.add"
    _models.require_model(model, caller)
    penalty = _penalty(caller, penalty)
    by_default = where is None
    chosen = _models.select(model, where, caller, able=lambda layer: _kernels(layer, embeddings=not by_default),
                            what="layer with a kernel")
    new = _models.copy(model)
    layers, done = _models.layers(new), set()
    for path in chosen:
        for part, slot, variable in _kernels(layers[path], embeddings=not by_default):
            if (id(part), slot) in done:
                continue
            done.add((id(part), slot))
            held = getattr(part, slot)
            setattr(part, slot, penalty if held is None else Sum([held, penalty]))
            if variable is not None:
                variable.regularizer = getattr(part, slot)
                value = float(variable.regularizer(variable))
                require(abs(value) < float("inf"), f"{caller} needs penalties that are finite numbers",
                        weights=variable.path, value=value, do="Look for NaN in the weights.")
    _models.compare(model, new)
    return new


def _kernels(layer, *, embeddings):
    """[(layer inside, attribute of the penalty, variable or None)] of a layer and those inside; [] without variables.

    Attention keeps the penalty of the layers inside for its config, and has no variable of its own.
    """
    found = []
    for part in parts_of(layer):
        for slot, names in _KERNELS.items():
            held = next((name for name in (slot, f"_{slot}") if name in vars(part)), None)
            if held is None or (slot == "embeddings_regularizer" and not embeddings):
                continue
            named = [vars(part).get(prefix + name) for name in names for prefix in ("_", "")]
            found.append((part, held, next((one for one in named if isinstance(one, keras.Variable)), None)))
    return found if any(variable is not None for *_, variable in found) else []


def get(identifier):
    """Weight penalty by name, as keras.regularizers.get, and those of this module.

    Args:
      identifier: a name such as "hoyer", "group_lasso", "kurtosis", "l1", "l2" (with their default strengths); a
        config; a keras.regularizers.Regularizer, which is returned; or None.

    Returns:
      A keras.regularizers.Regularizer, or None for None.

    Raises:
      ValueError: there is none of that name.

    Example:
      >>> get("hoyer").strength, get("GroupLasso").axis
      (0.0001, -1)
    """
    if not isinstance(identifier, str):
        return keras.regularizers.get(identifier)
    kinds = Hoyer, GroupLasso, Kurtosis, L1, L2, L1L2, OrthogonalRegularizer
    known = {kind.__name__.lower(): kind for kind in kinds}
    kind = known.get(identifier.lower().replace("_", ""))
    require(kind, "regularizers.get must be given the name of a regularizer", identifier=identifier,
            do=f"The names are {', '.join(known)}.")
    return kind()


def _penalty(caller, penalty):
    """A Regularizer, or that of a name."""
    penalty = get(penalty) if isinstance(penalty, str) else penalty
    require(isinstance(penalty, keras.regularizers.Regularizer), f"{caller} needs a keras.regularizers.Regularizer",
            penalty=penalty, do="Pass e.g. regularizers.L2(1e-4).", error=TypeError)
    return penalty


_DROPS = (DropPath, keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout,
          keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Conv1DTranspose,
                 keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose, keras.layers.DepthwiseConv1D,
                 keras.layers.DepthwiseConv2D, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_RECTIFIERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU, keras.layers.ELU)
_NO_HIDDEN_FEATURES = ("linear", "softmax", "log_softmax", "sigmoid", "hard_sigmoid")


def dropout(model, rate, *, where=None):
    """Puts dropout behind the hidden activations of a model: the same network and weights, uncompiled.

    By default these are the activations of Dense and convolution layers, in the layer itself or in a layer of its own;
    gates and probabilities (sigmoid, softmax) are left alone, and what already has a dropout behind it. Never behind
    the output: the last layer with weights before an output, and what follows it. Images and volumes, and what a
    1-D convolution gives, lose whole channels (SpatialDropout), everything else single values. A layer that is used
    several times has one dropout layer, which draws anew at each use.

    Args:
      model: a built functional or Sequential model, also with nested models and shared layers; it is not changed.
      rate: share of the values that are dropped while training, > 0 and < 1.
      where: None as above; names or paths (`outer/inner`) of hidden layers; or `layer -> bool`, asked of the layers
        that None would choose.

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
    require_number("rate", rate, above=0, below=1)
    graph = _models.require_graph(model, "regularizers.dropout")
    barred = {id(op) for op in [*_outputs(graph)[0], *_dropped(graph)]}

    def able(layer):
        by_name = where is not None and not callable(where)
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

    return _models.copy(model, change=change, call=call)


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
