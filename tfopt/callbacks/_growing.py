"""Epochs of fewer and fewer steps, where batches grow."""

from typing import Any

from .._check import require
from .._keras import Fit, datasets_in, keras, tf


class GrowingBatch(keras.callbacks.Callback):
    """Tells `fit` how many steps each epoch has, where the batches of `data.arrays` grow.

        steps(epoch) = ceil(examples / batch_size(epoch))

    Epochs count from `initial_epoch` of `fit`. Keras takes the steps of the first epoch for those of all: without this
    callback it warns that it ran out of data, and at the end of each epoch it counts one optimizer step that was not
    made.

    Raises:
      ValueError: the data of `fit` have batches of one size, or it was given `steps_per_epoch`.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import data
      >>> x = np.ones((64, 2), "float32")
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> model.compile("sgd", "mse")
      >>> batches = data.arrays(x, x[:, :1], lambda epoch: 8 * 2 ** epoch)        # 8, 16 and 32: 8, 4 and 2 steps
      >>> _ = model.fit(batches, epochs=3, verbose=0, callbacks=[GrowingBatch()])
      >>> int(model.optimizer.iterations)
      14
    """

    def __init__(self) -> None:
        super().__init__()
        self._fit = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._fit = Fit(self.model)
        dataset = self._fit.dataset
        found = [node.epochs for node in datasets_in(dataset) if getattr(node, "epochs", None)] if isinstance(
            dataset, tf.data.Dataset) else []
        require(len(found) == 1 and found[0].steps and not self._fit.iterator.steps_per_epoch,
                "callbacks.GrowingBatch needs data.arrays(x, y, batch_size=function of the epoch) as the data of "
                "`fit`, without steps_per_epoch",
                steps_per_epoch=self._fit.iterator.steps_per_epoch, data=type(dataset).__name__,
                do="Leave the callback out where all batches have one size.")
        found[0].next = self._fit.first_epoch              # under a strategy Keras has looked at a pass already
        self._fit.steps = found[0].steps(found[0].next)
        self._fit.intercept(lambda own: self._steps(own, found[0]))

    def _steps(self, own, passes):
        """The steps of a pass, which is known when it begins: `Resume` goes back to another one."""
        self._fit.steps = passes.steps(passes.next)
        yield from own()

    def on_train_end(self, logs: Any = None) -> None:
        self._fit = None                                   # it holds the data
