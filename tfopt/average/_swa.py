"""Averages over training, and the batch-norm update that averaged weights need."""

from typing import Any

from .. import _data, _models
from .._check import MODEL, Number, Whole, checked, require
from .._keras import keras, tf
from .._typing import Data


@checked(model=MODEL)
def update_batch_norm(model: keras.Model, data: Data) -> keras.Model:
    """Batch-norm update: a copy whose moving means and variances are those of `data` under the present weights.

        mean = sum n_b mean_b / sum n_b,      variance = sum n_b (variance_b + mean_b^2) / sum n_b - mean^2

    over batches b with n_b values for a channel: the moments of all the data for the first normalization, and for later
    ones those behind layers that normalize by the batch, as in training. Dropout is off. Averaged weights have other
    activations than any of the models they came from; without this the mean of networks with batch normalization fails.

    Args:
      model: a built model, also a subclassed one. Frozen batch normalizations keep their moments.
      data: inputs as the model takes them in training: arrays (cut into batches of 64) or a data set of batches;
        targets are ignored. Some hundred to thousand examples do.

    Returns:
      An uncompiled keras.Model; all other variables are those of `model`.

    Raises:
      TypeError: `model` is no Keras 3 model.
      ValueError: the model is not built, the data are empty or do not fit it.

    Example:
      >>> import numpy as np
      >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
      >>> update_batch_norm(model, np.array([[1.0], [3.0]])).layers[0].moving_variance.numpy().tolist()
      [1.0]

    Reference:
      Izmailov et al.: Averaging Weights Leads to Wider Optima (2018). https://arxiv.org/abs/1803.05407
    """
    _models.require_model(model, "average.update_batch_norm")
    _models.require_finite(model)
    moments = _models.batch_moments(model, _inputs(data, model))

    def value(variable):
        return moments.get(id(variable), variable)

    new = _models.copy(model, value=value)
    _models.compare(model, new, value=value)
    return new


def _inputs(data, model):
    return (x for x, _, _ in _data.read(data, model, targets="ignored").batches(64))


class SWA(keras.callbacks.Callback):
    """Stochastic weight averaging: when training ends the model holds the mean of its weights on the way.

        w = mean of the weights after steps start, start + every, start + 2 * every, ...      (momentum=None)
        w <- momentum * w + (1 - momentum) * weights, from the weights at `start` on          (otherwise, EMA)

    Use it with a high constant or cyclic learning rate over the last quarter of training. The mean is taken on the host
    in float64, so it is the same on any number of replicas; batch normalizations are then updated from `data`.

    Args:
      start: optimizer step of the first weights that count, >= 0. With gradient accumulation several batches are one
        step.
      every: optimizer steps between them, >= 1; usually an epoch.
      data: inputs for the batch-norm update, see `update_batch_norm`. Needed if the model has batch normalization.
      momentum: None, or 0 to 1 (exclusive) for an exponential moving average.

    Raises:
      ValueError: an argument is out of range; the model has batch normalization and `data` is None; training ended
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

    @checked(start=Whole(low=0), every=Whole(low=1), momentum=Number(low=0, below=1))
    def __init__(self, start: int, every: int, *, data: Data | None = None, momentum: float | None = None) -> None:
        super().__init__()
        if data is not None:
            _data.read(data, targets="ignored")            # refused now rather than when training has begun
        self.start: int = start
        self.every: int = every
        self.data: Data | None = data
        self.momentum: float | None = momentum
        self.count: int = 0
        self.mean: list[Any] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        layers = _models.batch_normalizations(self.model)
        require(self.data is not None or not layers, "average.SWA needs `data` for a model with batch normalization",
                layers=[layer.name for layer in layers], do="Pass some thousand training inputs.")
        self.count, self.mean = 0, None
        self._due = self.start
        self._look()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._look()

    def _look(self):
        step = self._steps()
        if step < self._due:
            return
        self._due = step + self.every - (step - self.start) % self.every
        now = [_models.array_of(variable).astype("float64") for variable in self.model.trainable_variables]
        share = 1 / (self.count + 1) if self.momentum is None or not self.count else 1 - self.momentum
        self.mean = now if not self.count else [
            mean + share * (new - mean) for mean, new in zip(self.mean, now, strict=True)]
        self.count += 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        require(self.count, "average.SWA must start before training ends", start=self.start, steps=self._steps(),
                do="Choose an earlier step.")
        for variable, mean in zip(self.model.trainable_variables, self.mean, strict=True):
            variable.assign(mean)
        if self.data is not None:
            moments = _models.batch_moments(self.model, _inputs(self.data, self.model))
            for variable in self.model.variables:
                if id(variable) in moments:
                    variable.assign(moments[id(variable)])

    def _steps(self):
        """Updates of the weights so far."""
        return int(keras.ops.convert_to_numpy(tf.convert_to_tensor(self.model.optimizer.iterations)))
