"""Several models, or several moments of one, become one model."""

import numpy as np

from .. import _models
from .._check import require, require_number
from .._keras import fresh_inputs, graph_of, keras, parts_of, tf

__all__ = ["SWA", "outputs", "update_batch_norm", "weights"]


def outputs(models, *, weights=None):
    """An ensemble as one model: its answer is the weighted mean of its members' answers.

        answer(x) = sum_i w_i * model_i(x) / sum_i w_i

    Members that end in a softmax give a mean of probabilities, usually the better ensemble; members that end in logits
    a mean of logits. The members are copied.

    Args:
      models: two or more built functional or Sequential models with the same inputs and outputs.
      weights: a number > 0 for each model; None is 1 for each.

    Returns:
      An uncompiled keras.Model. `distill.Distiller` takes it as a teacher.

    Raises:
      ValueError: the models differ in inputs or outputs, or a weight is not > 0.

    Example:
      >>> import numpy as np
      >>> members = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")]) for _ in range(2)]
      >>> together, x = outputs(members), np.ones((1, 2))
      >>> bool(np.allclose(together(x), (members[0](x) + members[1](x)) / 2))
      True

    Reference:
      Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles
      (2017). https://arxiv.org/abs/1612.01474
    """
    models = _require_models(models, "average.outputs")
    shares = [1.] * len(models) if weights is None else list(weights)
    require(len(shares) == len(models), "`weights` must hold one number for each model", weights=weights,
            models=len(models))
    for share in shares:
        require_number("weights", share, above=0)
    forms = [keras.tree.map_structure(lambda tensor: tuple(tensor.shape), (graph.input, graph.output))
             for graph in map(graph_of, models)]
    require(all(form == forms[0] for form in forms), "the models must have the same inputs and outputs",
            inputs_and_outputs=forms)
    with _models.scope_of(models[0]):
        members = []
        for number, model in enumerate(models):
            graph = graph_of(_models.copy(model))
            members.append(keras.Model(graph.input, graph.output, name=f"member_{number}"))
        inputs = fresh_inputs(graph_of(models[0]))
        total = sum(shares)

        def mean(*answers):
            return keras.layers.Add()([answer * (share / total) for answer, share in zip(answers, shares, strict=True)])

        return keras.Model(inputs, keras.tree.map_structure(mean, *[member(inputs) for member in members]),
                           name="ensemble")


def weights(models, *, score=None):
    """A soup: one model whose weights are the mean of the models' weights.

        w = mean over the chosen models of w_i

    The models must have been trained from the same start (fine-tuned from one model, or moments of one run): the mean
    of independently trained networks is no better than chance. Batch normalisation needs `statistics` afterwards.

    Args:
      models: two or more built functional or Sequential models of one architecture.
      score: None averages all. Or `model -> number`, higher is better, measured on held-out data: the models are tried
        in the order of their own scores and kept where the soup does not get worse (greedy soup).

    Returns:
      An uncompiled keras.Model.

    Raises:
      ValueError: the models have different weights; a score is not a number.

    Example:
      >>> import numpy as np
      >>> models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2)]
      >>> models[1].set_weights([np.zeros((2, 1)), np.ones(1)])
      >>> weights(models).layers[0].bias.numpy().tolist()
      [0.5]

    Reference:
      Wortsman et al.: Model soups (2022). https://arxiv.org/abs/2203.05482
    """
    models = _require_models(models, "average.weights")
    shapes = [[tuple(variable.shape) for variable in model.variables] for model in models]
    for model, found in zip(models, shapes, strict=True):
        require(found == shapes[0], "the models must have the same weights, shape by shape",
                first=models[0].name, other=model.name, variables=(len(shapes[0]), len(found)),
                do="Average their answers with average.outputs.")
    if score is None:
        return _soup(models)
    scores = [_scored(score, model) for model in models]
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    chosen, best = [models[order[0]]], scores[order[0]]
    for number in order[1:]:
        found = _scored(score, _soup([*chosen, models[number]]))
        if found >= best:
            chosen, best = [*chosen, models[number]], found
    return _soup(chosen)


def _soup(models):
    """Floating variables are averaged in float64; of others, such as random states, the first model's are kept."""
    theirs = {id(same[0]): same for same in zip(*(model.variables for model in models), strict=True)}

    def mean(variable):
        same = theirs[id(variable)]
        if not variable.dtype.startswith(("float", "bfloat")):
            return variable
        return np.mean([_array(one, "float64") for one in same], axis=0)

    return _models.copy(models[0], value=mean)


def _scored(score, model):
    found = score(model)
    require_number("score(model)", found)
    return float(found)


def update_batch_norm(model, data):
    """A copy whose batch normalisations hold the statistics of `data`, as they are under its present weights.

        moving mean = mean over batches of the batch means;  moving variance likewise

    Averaged weights have other activations than any of the models they came from; without this the mean of networks
    with batch normalisation fails.

    Args:
      model: a built functional or Sequential model.
      data: array of inputs (batches of 32), or a tf.data.Dataset of batches x or (x, ...). Some thousand examples do.

    Returns:
      An uncompiled keras.Model; all other variables are those of `model`.

    Raises:
      ValueError: the model is not built, or the data are empty.

    Example:
      >>> import numpy as np
      >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
      >>> update_batch_norm(model, np.array([[1.0], [3.0]])).layers[0].moving_mean.numpy().tolist()
      [2.0]

    Reference:
      Izmailov et al.: Averaging Weights Leads to Wider Optima (2018). https://arxiv.org/abs/1803.05407
    """
    _models.require_graph(model, "average.update_batch_norm")
    model = _models.copy(model)
    _estimate(model, data, "average.update_batch_norm")
    return model


def _normalizations(model):
    return [layer for layer in parts_of(model) if isinstance(layer, keras.layers.BatchNormalization)]


def _estimate(model, data, caller):
    """Lets the model's batch normalisations see `data`, in place; leaves every other variable as it was."""
    layers = _normalizations(model)
    own = {id(variable) for layer in layers for variable in (layer.moving_mean, layer.moving_variance)}
    others = [(variable, _array(variable)) for variable in model.variables if id(variable) not in own]
    if not isinstance(data, tf.data.Dataset):
        data = tf.data.Dataset.from_tensor_slices(data).batch(32)
    momenta, momentum = [layer.momentum for layer in layers], tf.Variable(0., trainable=False)

    @tf.function(reduce_retracing=True)
    def see(x):
        model(x, training=True)

    try:
        for layer in layers:
            layer.momentum = momentum                      # traced as a variable: batch i counts 1 / (i + 1)
        count = 0
        for element in data:
            momentum.assign(count / (count + 1))
            see(keras.utils.unpack_x_y_sample_weight(element)[0])
            count += 1
    finally:
        for layer, before in zip(layers, momenta, strict=True):
            layer.momentum = before
        for variable, before in others:
            variable.assign(before)
    require(count, f"{caller} needs data", batches=0)


class SWA(keras.callbacks.Callback):
    """Stochastic weight averaging: when training ends the model holds the mean of its weights on the way.

        w = mean of the weights after steps start, start + every, start + 2 * every, ...      (momentum=None)
        w <- momentum * w + (1 - momentum) * weights, from the weights at `start` on          (otherwise, EMA)

    Use it with a high constant or cyclic learning rate over the last quarter of training. The mean is taken on the host
    in float64, so it is the same on any number of replicas; batch normalisations then see `data` once more.

    Args:
      start: optimizer step of the first weights that count, >= 0.
      every: optimizer steps between them, >= 1; usually an epoch.
      data: inputs that estimate batch-norm statistics, see `statistics`. Needed if the model has any.
      momentum: None, or 0 to 1 (exclusive) for an exponential moving average.

    Raises:
      ValueError: an argument is out of range; the model has batch normalisations and `data` is None; training ended
        before `start`.

    Example:
      >>> import numpy as np
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> model.compile("sgd", "mse")
      >>> swa = SWA(start=4, every=2)
      >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, epochs=3, callbacks=[swa], verbose=0)
      >>> swa.count                                        # after steps 4, 6, 8, 10 and 12
      5

    Reference:
      Izmailov et al.: Averaging Weights Leads to Wider Optima (2018). https://arxiv.org/abs/1803.05407
    """

    def __init__(self, start, every, *, data=None, momentum=None):
        super().__init__()
        require_number("start", start, low=0, integer=True)
        require_number("every", every, low=1, integer=True)
        if momentum is not None:
            require_number("momentum", momentum, low=0, below=1)
        self.start, self.every, self.data, self.momentum = start, every, data, momentum
        self.count, self.mean = 0, None

    def on_train_begin(self, logs=None):
        layers = _normalizations(self.model)
        require(self.data is not None or not layers, "average.SWA needs `data` for a model with batch normalisation",
                layers=[layer.name for layer in layers], do="Pass some thousand training inputs.")
        self.count, self.mean = 0, None
        self._due = self.start
        self._look()

    def on_train_batch_end(self, batch, logs=None):
        self._look()

    def _look(self):
        step = int(_array(self.model.optimizer.iterations))
        if step < self._due:
            return
        self._due = step + self.every - (step - self.start) % self.every
        now = [_array(variable, "float64") for variable in self.model.trainable_variables]
        share = 1 / (self.count + 1) if self.momentum is None or not self.count else 1 - self.momentum
        self.mean = now if not self.count else [
            mean + share * (new - mean) for mean, new in zip(self.mean, now, strict=True)]
        self.count += 1

    def on_train_end(self, logs=None):
        require(self.count, "average.SWA must start before training ends", start=self.start,
                steps=int(_array(self.model.optimizer.iterations)), do="Choose an earlier step.")
        for variable, mean in zip(self.model.trainable_variables, self.mean, strict=True):
            variable.assign(mean)
        if self.data is not None:
            _estimate(self.model, self.data, "average.SWA")


def _array(variable, dtype=None):
    """A variable's value, on whatever device or devices it lives, also inside the scope of their strategy."""
    return keras.ops.convert_to_numpy(tf.convert_to_tensor(variable.value)).astype(dtype or variable.dtype)


def _require_models(models, caller):
    require(isinstance(models, list | tuple) and len(models) > 1, f"{caller} needs a list of two or more models",
            models=models if not isinstance(models, list | tuple) else len(models))
    for model in models:
        _models.require_graph(model, caller)
    return list(models)
