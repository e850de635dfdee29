"""Temperature scaling: probabilities that are as often right as they say."""

import numpy as np
import scipy.optimize

from .. import _data, _models
from .._check import MODEL, checked, require
from .._keras import graph_of, keras, producer
from .._typing import Data
from ._measure import outputs_on
from ._measures import MULTICLASS, REGRESSION, log_losses
from ._quality import samples
from ._task import activation_of_layer, classified

L = keras.layers
KERNELS = (L.Dense, L.EinsumDense, L.Conv1D, L.Conv2D, L.Conv3D, L.Conv1DTranspose, L.Conv2DTranspose,
           L.Conv3DTranspose)
RANGE = np.log([.01, 100.])                                          # of the temperature
_DO = "It must end in a Dense layer or a convolution, with softmax, sigmoid or no activation."


@checked(model=MODEL)
def temperature(model: keras.Model, val: Data) -> keras.Model:
    """Temperature scaling: a calibrated model, whose probabilities are softmax(z / T) in place of softmax(z).

        T = argmin mean(-log p_label),  p = softmax(z / T)  (of a sigmoid: sigmoid(z / T)),  on `val`

    One number makes a model less sure (T > 1) or surer (T < 1); the order of the classes, and with it the accuracy,
    stays. 1 / T is multiplied into the kernel and bias of the last layer: the new model has the layers, the size and
    the speed of the old one, and is plain Keras. `quantize.convert` takes it.

    Args:
      model: a built Keras model with one output, logits or probabilities, that ends in a Dense layer or a convolution
        with softmax, sigmoid or no activation, or with the activation as a layer. It is only read.
      val: (x, y) as for `compare`, which the model was not trained on: on its training data it is surer than it is
        right.

    Returns:
      A new, uncompiled keras.Model.

    Raises:
      ValueError: the model is not as above, its outputs are no classes, or see `compare`. All examples are right: then
        no temperature is low enough.
      RuntimeError: the new model does not compute the old one's logits / T.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(200, 1)).astype("float32")
      >>> y = (np.random.default_rng(1).random(200) < 1 / (1 + np.exp(-x[:, 0]))).astype("int32")
      >>> sure = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid", name="last")])
      >>> sure.set_weights([np.array([[5.]]), np.array([0.])])
      >>> calibrated = temperature(sure, (x, y))
      >>> 3 < (sure.get_layer("last").kernel / calibrated.get_layer("last").kernel).numpy().item() < 8
      True

    Reference:
      Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, 2017, https://arxiv.org/abs/1706.04599
    """
    graph = _models.require_graph(model, "report.temperature")
    require(len(graph.outputs) == 1, "temperature scaling needs a model with one output", outputs=len(graph.outputs))
    last, _ = _ending(graph)
    logits = _without_activation(model)
    subjects, outputs, labels = outputs_on({model.name: model, "": logits}, val, "report.temperature", "val")
    (sample,), (z,) = (samples({model.name: subjects[model.name]}, {model.name: outputs[model.name]}, labels)
                       [model.name].values(), outputs[""].values())
    require(sample.task != REGRESSION, "temperature scaling is for classes", output=sample.task)
    T = _fitted(sample, z.astype("float64"))                         # noqa: N806 - the letter of the paper
    scaled = {id(variable) for variable in (last.kernel, last.bias) if variable is not None}
    new = _models.copy(model, value=lambda variable: variable / T if id(variable) in scaled else variable)
    x = _data.read(val, graph.input, name="val").head(64).x
    _models.require_close([part / T for part in _models.outputs_of(logits, x)],
                          _models.outputs_of(_without_activation(new), x))
    return new


class _Linear(L.Layer):
    """In the place of a softmax layer, which may be called with a mask."""

    def call(self, z, mask=None):
        return z


def _fitted(sample, z):
    """The temperature with the least log loss; the loss is convex in 1 / T, so there is one."""
    def loss(log):
        return log_losses(classified(sample.labels, z / np.exp(log), task, True, "")).mean()

    z = z.reshape(len(z), -1, z.shape[-1]) if z.shape[-1] > 1 else z.reshape(len(z), -1)
    task = MULTICLASS if z.ndim > sample.labels.ndim else sample.task          # two classes may have two outputs
    found = scipy.optimize.minimize_scalar(loss, bounds=RANGE, method="bounded", options={"xatol": 1e-6}).x
    require(RANGE[0] + .01 < found < RANGE[1] - .01, "no temperature from 0.01 to 100 has the least loss on `val`",
            accuracy=float((sample.labels == sample.predicted).mean()),
            do="Pass more data that the model was not trained on; all right or all by chance is too little.")
    return float(np.exp(found))


def _ending(graph):
    """(last layer with a kernel, the layer with the activation: itself or the next); other models are refused."""
    output, behind = graph.outputs[0], []
    while True:
        layer, inputs = producer(output)
        if graph_of(layer) is not None:
            output = graph_of(layer).outputs[0]
        elif isinstance(layer, L.Activation | L.Softmax) and not behind:
            behind.append(layer)
            output = inputs[0]
        else:
            break
    end = behind[0] if behind else layer
    names = [activation_of_layer(part) for part in (layer, *behind)]
    require(isinstance(layer, KERNELS) and set(names[:-1]) <= {"linear"} and names[-1] in (
        "linear", "softmax", "sigmoid"), "temperature scaling cannot reach the logits of this model", do=_DO,
        ends_in=[type(part).__name__ for part in (layer, *behind)], activations=names)
    return layer, end


def _without_activation(model):
    """A copy that returns logits."""
    _, end = _ending(graph_of(model))

    def change(layer):
        if layer is not end:
            return None
        return _models.recreate(layer, activation="linear") if isinstance(layer, KERNELS) else _Linear()

    return _models.copy(model, change=change)
