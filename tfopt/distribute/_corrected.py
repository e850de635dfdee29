"""What several replicas get wrong, in versions that give the result of one device."""

import typing

from .. import _data, _models
from .._check import MODEL, NAME, Instance, Whole, checked, require
from .._keras import OptimizerAround, keras, schedule_of, serializable, tf, without_autotune
from .._typing import Dataset
from ._strategy import replicas_here

__all__ = ["GlobalBatchOptimizer", "equal_batches", "sync_batch_norm"]

CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


@serializable
class GlobalBatchOptimizer(OptimizerAround):
    """Gradient clipping and accumulation over all replicas: an optimizer around another.

        g = sum over replicas of their gradients;  every k batches: update with clip(mean of the last k g)

    Keras' optimizers clip before the sum, which gives another result for each number of replicas, and their
    accumulation does not run under MirroredStrategy. On one device both are the same.

    Args:
      optimizer: a Keras optimizer with the settings that are wanted: `clipnorm`, `clipvalue` or `global_clipnorm`, and
        `gradient_accumulation_steps` (k). It is only read. As in Keras its schedule counts batches, not updates.
      name: of the new one.

    Raises:
      TypeError: `optimizer` is not a Keras optimizer.
      ValueError: it holds or wraps others; it replaces the weights by their average on the way
        (`ema_overwrite_frequency`); or it averages the weights and accumulates. See average.SWA for such averages.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> model.compile(GlobalBatchOptimizer(keras.optimizers.SGD(0.1, global_clipnorm=1.0)), "mse")
      >>> round(float(model.optimizer.learning_rate), 3)
      0.1
    """

    @checked(optimizer=Instance("keras.optimizers.Optimizer", text="a Keras optimizer"), name=NAME)
    def __init__(self, optimizer: keras.optimizers.Optimizer, name: str = "global_batch_optimizer"):
        require(not isinstance(optimizer, keras.optimizers.MultiOptimizer),
                "it takes one optimizer, and a MultiOptimizer holds several", optimizer=type(optimizer).__name__,
                do="Make the MultiOptimizer of GlobalBatchOptimizers, one around each.")
        require(not hasattr(optimizer, "inner_optimizer"), "it must stand inside other wrappers",
                optimizer=type(optimizer).__name__,
                do=f"Write {type(optimizer).__name__}(GlobalBatchOptimizer(optimizer)).")
        require(replicas_here() == 1 or not isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW),
                "Keras' ScheduleFreeAdamW does not equal one device on several replicas", replicas=replicas_here(),
                do="Take another optimizer, such as AdamW.")
        require(not optimizer.ema_overwrite_frequency, "it cannot replace the weights by their average on the way",
                ema_overwrite_frequency=optimizer.ema_overwrite_frequency, do="Use average.SWA(momentum=...).")
        every = optimizer.gradient_accumulation_steps or 1
        require(not (optimizer.use_ema and every > 1), "it cannot average the weights and accumulate", use_ema=True,
                gradient_accumulation_steps=every, do="Use average.SWA(momentum=...).")
        changes = dict.fromkeys((*CLIPS, "gradient_accumulation_steps"))
        if every > 1 and schedule_of(optimizer) is not None:
            changes["learning_rate"] = _Updates(schedule_of(optimizer), every)
        super().__init__(type(optimizer).from_config({**optimizer.get_config(), **changes}), name=name,
                         **{clip: getattr(optimizer, clip) for clip in CLIPS})
        self.every = every

    def build(self, variables: list[keras.Variable]) -> None:
        self.sums = [self.add_variable(variable.shape, dtype=variable.dtype, aggregation="only_first_replica",
                                       name="sum") for variable in variables] if self.every > 1 else []
        super().build(variables)

    def apply(self, grads: list[typing.Any], trainable_variables: list[keras.Variable] | None = None) -> None:
        """Sums the gradients of the replicas, clips the sum, and updates, all k batches if it accumulates."""
        variables = list(trainable_variables or self.built_for())
        if not self.built:
            self.build(variables)
        places = [place for place, gradient in enumerate(grads) if gradient is not None]
        replica = tf.distribute.get_replica_context()
        grads = replica.all_reduce("SUM", [tf.convert_to_tensor(grads[place]) for place in places])
        variables = [variables[place] for place in places]

        def update(grads):
            """The optimizer adds up what all replicas give it, and they all give it the same."""
            share = tf.distribute.get_strategy().num_replicas_in_sync
            self.inner_optimizer.apply([gradient / share for gradient in self.clipped(grads)], variables)

        if self.every == 1:
            update(grads)
        else:
            self._accumulate(grads, variables, update)
        self.own_iterations.assign_add(1)

    def _accumulate(self, grads, variables, update):
        sums = [self.sums[self.place_of(variable)] for variable in variables]
        for total, gradient in zip(sums, grads, strict=True):
            total.assign_add(gradient)

        def update_and_restart():
            update([total / self.every for total in sums])
            for total in sums:
                total.assign(tf.zeros_like(total))

        _cond((self.own_iterations + 1) % self.every == 0, update_and_restart)

    def get_config(self) -> dict[str, typing.Any]:
        given = keras.optimizers.serialize(self.inner_optimizer)
        given["config"].update({clip: getattr(self, clip) for clip in CLIPS})
        if self.every > 1:
            given["config"]["gradient_accumulation_steps"] = self.every
            rate = schedule_of(self.inner_optimizer)
            if isinstance(rate, _Updates):
                given["config"]["learning_rate"] = keras.optimizers.schedules.serialize(rate.schedule)
        return {"optimizer": given, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, typing.Any],
                    custom_objects: dict[str, typing.Any] | None = None) -> "GlobalBatchOptimizer":
        return cls(keras.optimizers.deserialize(config["optimizer"], custom_objects), name=config["name"])


class _Updates(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule over batches as one over updates, of which there is one every so many batches."""

    def __init__(self, schedule, every):
        self.schedule, self.every = schedule, every

    def __call__(self, step):
        return self.schedule(step * self.every + self.every - 1)

    def get_config(self):
        return {"schedule": self.schedule, "every": self.every}


def _cond(due, act):
    """Calls `act` on each replica where `due`, which is the same on all of them."""
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(due, lambda: (act(), tf.no_op())[1], tf.no_op)
        return

    def across(strategy, due):
        due = strategy.experimental_local_results(due)[0]
        tf.cond(due, lambda: (strategy.extended.call_for_each_replica(act), tf.no_op())[1], tf.no_op)

    tf.distribute.get_replica_context().merge_call(across, args=(due,))


@checked(data=_data.BATCHES, replicas=Whole(low=1))
def equal_batches(data: Dataset, *, replicas: int | None = None) -> Dataset:
    """The data set with batches that the replicas can share evenly: a remainder is left out.

        n -> n - n mod replicas

    For `fit` alone: of a batch that the replicas cannot share evenly, such as the last one of an epoch, the examples
    have unequal weights in Keras' gradient. `evaluate` and `predict` are right for any batch.

    Args:
      data: a tf.data.Dataset of batches, shuffled so that each epoch leaves out others.
      replicas: how many share a batch, >= 1; None is those of the strategy that `distribute.strategy` gave.

    Returns:
      A tf.data.Dataset.

    Raises:
      TypeError: `data` is not a tf.data.Dataset.
      ValueError: `replicas` is not a whole number >= 1.

    Example:
      >>> import tensorflow as tf
      >>> data = tf.data.Dataset.range(11).batch(4)
      >>> [len(batch) for batch in equal_batches(data, replicas=2)]
      [4, 4, 2]
    """
    replicas = replicas_here() if replicas is None else replicas

    def size(*batch):
        return tf.shape(keras.tree.flatten(batch)[0])[0]

    def cut(*batch):
        keep = size(*batch) // replicas * replicas
        cut = keras.tree.map_structure(lambda part: part[:keep], batch)
        return cut if len(cut) > 1 else cut[0]

    return without_autotune(data.filter(lambda *batch: size(*batch) >= replicas).map(cut, tf.data.AUTOTUNE))


@checked(model=MODEL)
def sync_batch_norm(model: keras.Model) -> keras.Model:
    """Synchronized batch normalization: statistics of the whole batch, not of a replica's part.

        mean, variance = of the examples of all replicas

    Args:
      model: a built functional or Sequential model, or a subclass of one, which keeps its class.

    Returns:
      An uncompiled keras.Model with the same weights, made in the model's own strategy or, if it has none, in the scope
      of the call.

    Raises:
      ValueError: the model is not built, or not a graph of layers.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
      >>> sync_batch_norm(model).layers[0].synchronized
      True
    """
    _models.require_graph(model, "distribute.sync_batch_norm")
    made = _models.copy(model, change=lambda layer: (
        _models.recreate(layer, synchronized=True) if unsynchronized(layer) else None))
    _models.compare(model, made)
    return made


def unsynchronized(layer):
    return isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
