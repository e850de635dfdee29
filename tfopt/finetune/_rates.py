"""Layer-wise learning rates: an optimizer for each block, all of the same kind."""

import collections
from typing import TypeAlias

import numpy as np

from .. import _models
from .._check import MODEL, TEXT, Instance, Number, checked, require
from .._keras import alike, keras, schedule_of, serializable, tf
from ._blocks import required_blocks

LearningRateSchedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


@serializable
class Share(LearningRateSchedule):
    """A share of a schedule over all steps, for an optimizer that does not take part in each of them.

        rate(t) = share * schedule(t + waited)

    Args:
      schedule: a LearningRateSchedule over the steps of training.
      share: > 0.
      waited: steps that the optimizer did not take part in so far.
    """

    def __init__(self, schedule, share, waited=0):
        self.schedule, self.share = schedule, share
        self.waited = keras.Variable(waited, trainable=False, dtype="int64", aggregation="only_first_replica",
                                     name="waited")

    def __call__(self, step):
        step = tf.convert_to_tensor(step)
        return self.schedule(step + tf.cast(self.waited.value, step.dtype)) * self.share

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "share": self.share,
                "waited": int(_models.array_of(self.waited))}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


@serializable
class LayerwiseOptimizer(keras.optimizers.MultiOptimizer):
    """A keras.optimizers.MultiOptimizer with an optimizer for each block, each at its share of the rate.

    More than Keras' own: it finds its variables again in a saved model and in models made from it, where their paths
    are others, takes gradients of a part of them, clips the norm of all, and has a `learning_rate`, that of the head.

    Args:
      optimizers: unbuilt ones of the same kind, by block.
      shares: of the rate, by block.
      blocks: [{"name": path of a variable, "block": number of its block}]. Others belong to the last block.
      global_clipnorm: largest norm of all gradients together, or None.
      loss_scale_factor, name: as for every optimizer.
    """

    def __init__(self, optimizers, shares, blocks, global_clipnorm=None, loss_scale_factor=None, name="layerwise"):
        choice = _Choice(optimizers, blocks)
        super().__init__(choice, loss_scale_factor=loss_scale_factor, name=name)
        self._choice, self.shares, self.global_clipnorm = choice, tuple(shares), global_clipnorm

    @property
    def iterations(self):
        """How often the weights were updated; with gradient accumulation fewer times than `apply` was called."""
        every = self.optimizers[0].gradient_accumulation_steps
        return keras.ops.floor_divide(super().iterations, every) if every else super().iterations

    @property
    def learning_rate(self):
        return self.optimizers[int(np.argmax(self.shares))].learning_rate

    @learning_rate.setter
    def learning_rate(self, rate):
        for optimizer, share in zip(self.optimizers, self.shares, strict=True):
            optimizer.learning_rate = Share(rate, share) if isinstance(rate, LearningRateSchedule) else rate * share

    def of(self, variable):
        """The optimizer of a variable, once built."""
        return self._choice(variable)

    def build(self, var_list):
        if not self.built:
            self._choice.assign(var_list)
            super().build(var_list)

    def apply(self, grads, trainable_variables=None):
        """Hands each gradient to the optimizer of its block; a block without any waits."""
        require(trainable_variables is not None, "the variables must be given with their gradients",
                do="Call apply(grads, variables).")
        variables = list(trainable_variables)
        self.build(variables)
        if self.global_clipnorm:
            grads = tf.clip_by_global_norm(grads, self.global_clipnorm * (self.loss_scale_factor or 1))[0]
        parts = collections.defaultdict(list)
        for gradient, variable in zip(grads, variables, strict=True):
            parts[id(self.of(variable))].append((gradient, variable))
        for optimizer in self.optimizers:
            part = parts[id(optimizer)]
            if any(gradient is not None for gradient, _ in part):
                optimizer.apply(*map(list, zip(*part, strict=True)))
            elif (share := _share_in(optimizer)) is not None:
                share.waited.assign_add(1)
        super().iterations.assign_add(1)

    def get_config(self):
        return {"optimizers": [keras.optimizers.serialize(optimizer) for optimizer in self.optimizers],
                "shares": list(self.shares), "blocks": self._choice.blocks, "global_clipnorm": self.global_clipnorm,
                "loss_scale_factor": self.loss_scale_factor, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        optimizers = [keras.optimizers.deserialize(each, custom_objects) for each in config["optimizers"]]
        return cls(**{**config, "optimizers": optimizers})


class _Choice:
    """The optimizer of each variable, as MultiOptimizer asks for it."""

    def __init__(self, optimizers, blocks):
        self.optimizers, self.blocks, self._of = optimizers, blocks, {}

    def values(self):
        return self.optimizers

    def __call__(self, variable):
        return self.optimizers[self._of[id(variable)]]

    def assign(self, variables):
        """Finds the block of each variable.

        Paths change when a model is saved and loaded (Keras leaves the names of Sequential models out), or is wrapped
        by a technique; what stays is the name of the layer and of the variable, and the order of those that share them.
        """
        known, here = collections.defaultdict(list), collections.defaultdict(list)
        for one in self.blocks:
            known[_key(one["name"])].append((one["name"], one["block"]))
        for variable in variables:
            here[_key(variable.path)].append(variable)
        require(any(key in known for key in here), "the optimizer is for another model: no layer has a name it knows",
                known=list(known)[:3], received=list(here)[:3],
                do="Make it with finetune.rates(model, ...) for this one.")
        for key, found in here.items():
            self._of.update(zip(map(id, found), self._blocks_of(key, known[key], found), strict=True))

    def _blocks_of(self, key, known, found):
        blocks, paths = [block for _, block in known], [path for path, _ in known]
        if not known:
            return [len(self.optimizers) - 1] * len(found)
        if len(set(blocks)) == 1:
            return blocks[:1] * len(found)
        if len(set(paths)) == len(paths) and all(variable.path in paths for variable in found):
            return [blocks[paths.index(variable.path)] for variable in found]
        require(len(found) == len(known), "layers of the same name in several blocks must be told apart", name=key,
                known=paths, received=[variable.path for variable in found], do="Give each layer a name of its own.")
        return blocks


def _key(path):
    return "/".join(path.split("/")[-2:])


def _share_in(optimizer):
    """The Share that an optimizer follows, if any, also inside other schedules, such as that of a plateau."""
    schedule = schedule_of(optimizer)
    while schedule is not None and not isinstance(schedule, Share):
        schedule = getattr(schedule, "schedule", None)
    return schedule


@checked(model=MODEL, optimizer=TEXT | Instance("keras.optimizers.Optimizer", text="a Keras optimizer"),
         decay=Number(above=0, high=1))
def rates(model: keras.Model, optimizer: str | keras.optimizers.Optimizer,
          decay: float = 0.75) -> keras.optimizers.MultiOptimizer:
    """Layer-wise learning-rate decay: the deeper below the head, the smaller the rate.

        rate of a block = decay ** (depth of the head - depth of the block) * rate of the optimizer

    The result is a keras.optimizers.MultiOptimizer with an optimizer for each depth of `plan(model)`, from input to
    head (`.optimizers`), each with the settings of yours and its own share of the rate or of the schedule, which weight
    decay follows as in AdamW. Its `learning_rate` is that of the head, and can be set. Schedules count the steps of
    training, Adam's bias correction those of the block: one that is thawed later starts as it would have at first.

    Frozen layers count, so that thawing changes no rate. Variables that `model` does not have, such as the connectors
    of a Distiller or the centroids of clusters, train at the rate of the head. `global_clipnorm` is the norm over all
    blocks.

    Args:
      model: a built model, compiled or not. It is only read; copies of it, frozen, pruned or loaded, can be compiled
        with the result just as well.
      optimizer: a Keras optimizer, or the name of one. It is only read.
      decay: what the rate is multiplied by from block to block, > 0 and <= 1; 1 trains as the optimizer alone.

    Returns:
      An unbuilt keras.optimizers.MultiOptimizer, for one `compile`.

    Raises:
      ValueError: an argument is out of range; `optimizer` holds or wraps another, holds a function as its rate, or
        clips the global norm of accumulated gradients; two variables of different blocks have the same path.
      TypeError: an argument is of another kind.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, 8, 2))])
      >>> model.compile(rates(model, keras.optimizers.AdamW(0.4), decay=0.5), "mse")
      >>> [round(float(each.learning_rate), 3) for each in model.optimizer.optimizers]
      [0.1, 0.2, 0.4]

    References:
      Clark et al., ELECTRA (2020), section 3 and appendix, https://arxiv.org/abs/2003.10555. Bao et al., BEiT (2021),
      https://arxiv.org/abs/2106.08254.
    """
    blocks = required_blocks(model, "finetune.rates")
    optimizer = _single(optimizer)
    rate, head = schedule_of(optimizer), blocks[-1].depth
    require(rate is None or isinstance(rate, LearningRateSchedule),
            "`optimizer` must hold a number or a LearningRateSchedule", learning_rate=rate,
            do="Make the function a subclass of keras.optimizers.schedules.LearningRateSchedule.")
    require(not (optimizer.global_clipnorm and optimizer.gradient_accumulation_steps),
            "`optimizer` must not clip the global norm of gradients that it accumulates",
            global_clipnorm=optimizer.global_clipnorm,
            gradient_accumulation_steps=optimizer.gradient_accumulation_steps, do="Use `clipnorm` or `clipvalue`.")
    paths = {}
    for block in blocks:
        for layer in block.layers.values():
            for weight in layer.weights:
                same = paths.setdefault(weight.path, block)
                require(same.depth == block.depth, "layers in different blocks must differ in name", path=weight.path,
                        blocks=[same.name, block.name], do="Give the layers, or the models they are in, other names.")
    shares = [decay ** (head - depth) for depth in range(head + 1)]
    with _models.scope_of(model):
        made = LayerwiseOptimizer(
            [alike(optimizer, name=f"{optimizer.name}_{depth}", global_clipnorm=None) for depth in range(head + 1)],
            shares, [{"name": path, "block": block.depth} for path, block in paths.items()],
            optimizer.global_clipnorm, optimizer.loss_scale_factor)
        made.learning_rate = float(_models.array_of(optimizer.learning_rate)) if rate is None else rate
    return made


def _single(optimizer):
    if isinstance(optimizer, str):
        try:
            return keras.optimizers.get(optimizer)
        except ValueError:
            require(False, "`optimizer` must be the name of a Keras optimizer, or one", optimizer=optimizer,
                    do='Pass e.g. "adamw" or keras.optimizers.AdamW(1e-4).')
    require(not hasattr(optimizer, "inner_optimizer") and not isinstance(optimizer, keras.optimizers.MultiOptimizer),
            "`optimizer` must be a single one", optimizer=type(optimizer).__name__,
            do="Pass the one inside, and wrap the result: keras.optimizers.LossScaleOptimizer(finetune.rates(...)).")
    return optimizer
