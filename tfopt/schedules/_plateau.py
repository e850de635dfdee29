"""Keras' plateau callback, given an optimizer whose rate can be set whatever it holds."""

from typing import Any

from .._check import TEXT, Number, OneOf, Whole, checked, require
from .._keras import keras, schedule_of
from .._models import scope_of
from ._shapes import LearningRateSchedule, Scaled


class Plateau(keras.callbacks.ReduceLROnPlateau):
    """Reduce on plateau: lowers the learning rate when a metric stops improving, also that of a schedule.

        rate(t) = factor ** (number of plateaus so far) * schedule(t)

    keras.callbacks.ReduceLROnPlateau ends such a training with a TypeError at its first plateau. Here the optimizer
    gets `Scaled(schedule)` when training begins, and a plateau lowers its factor. As with a float rate in Keras, what
    was lowered stays lowered after `fit` and in a saved model; `model.optimizer.learning_rate = schedule` undoes it.
    If there was no plateau, the optimizer ends with your schedule, and the schedule itself is never changed.

    Args:
      monitor: name of the metric in the epoch's logs.
      factor: what the rate is multiplied by at a plateau, > 0 and < 1.
      patience: epochs without improvement that make a plateau, >= 0.
      verbose: 1 prints a line at each plateau.
      mode: "min", "max" or "auto" for the direction of improvement.
      min_delta: smallest change that counts as an improvement, >= 0.
      cooldown: epochs to wait after a plateau before counting again, >= 0.
      min_lr: a plateau lowers the rate of its epoch no further than this, >= 0.

    Raises:
      ValueError: an argument is out of range.
      TypeError: the optimizer holds a callable that is no LearningRateSchedule.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt.schedules import Linear
      >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
      >>> model.compile(keras.optimizers.SGD(Linear(0.5, total=100)), "mse")
      >>> plateau = Plateau("loss", factor=0.5, patience=1, min_delta=1e9)     # an improvement of 1e9 never comes
      >>> history = model.fit(np.ones((8, 1)), np.ones(8), epochs=3, verbose=0, callbacks=[plateau])
      >>> float(model.optimizer.learning_rate) / float(Linear(0.5, total=100)(3))
      0.25
    """

    @checked(monitor=TEXT, factor=Number(above=0, below=1), patience=Whole(low=0), verbose=OneOf(0, 1),
             mode=OneOf("auto", "min", "max"), min_delta=Number(low=0), cooldown=Whole(low=0), min_lr=Number(low=0))
    def __init__(self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, *, verbose: int = 0,
                 mode: str = "auto", min_delta: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0):
        super().__init__(monitor, factor=factor, patience=patience, verbose=verbose, mode=mode, min_delta=min_delta,
                         cooldown=cooldown, min_lr=min_lr)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(_WithSettableRate(model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._replaced, model = [], self.model.model
        if hasattr(_unwrapped(model.optimizer), "optimizers") and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)           # until then it may not know those inside it
        for optimizer in _single(model.optimizer):
            held = schedule_of(optimizer)
            require(held is None or isinstance(held, LearningRateSchedule),
                    "schedules.Plateau needs an optimizer that holds a number or a LearningRateSchedule",
                    error=TypeError, learning_rate=held,
                    do="Make the callable a subclass of keras.optimizers.schedules.LearningRateSchedule.")
            if held is not None and not isinstance(held, Scaled):
                with scope_of(model):
                    optimizer.learning_rate = Scaled(held)
                self._replaced.append((optimizer, held))
        self._trace_again()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._replaced = [(optimizer, held) for optimizer, held in self._replaced
                          if schedule_of(optimizer).factor == 1]
        for optimizer, held in self._replaced:
            optimizer.learning_rate = held
        self._trace_again()
        super().on_train_end(logs)

    def _trace_again(self):
        if self._replaced:                             # a step that is already traced would keep the old schedule
            self.model.model.make_train_function(force=True)


def _unwrapped(optimizer):
    """The keras.optimizers.MultiOptimizer in a LossScaleOptimizer; any other as it is."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return inner if hasattr(inner, "optimizers") else optimizer


def _single(optimizer):
    """The optimizers inside a keras.optimizers.MultiOptimizer, or the one there is."""
    return getattr(_unwrapped(optimizer), "optimizers", [optimizer])


class _WithSettableRate:
    """What ReduceLROnPlateau sees of the model: everything, with optimizers whose rate can be set."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    @property
    def optimizer(self):
        optimizer = _unwrapped(self.model.optimizer)
        return _SettableRates(optimizer) if hasattr(optimizer, "optimizers") else _SettableRate(optimizer)


class _SettableRates:
    def __init__(self, optimizer):
        self.optimizers = [_SettableRate(single) for single in optimizer.optimizers]


class _SettableRate:
    def __init__(self, optimizer):
        self.optimizer, self.name = optimizer, optimizer.name

    @property
    def learning_rate(self):
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        held = schedule_of(self.optimizer)
        if held is None:
            self.optimizer.learning_rate = value
        else:
            held.factor *= value / float(self.optimizer.learning_rate)
