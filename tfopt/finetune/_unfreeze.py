"""Gradual unfreezing while a model trains."""

from typing import Any

from .. import _models
from .._check import Whole, checked, require
from .._keras import average_all, average_some, build_again, keras, optimizers_in, parts_of
from ._blocks import UNTIL, Until, depth_of, required_blocks, set_trainable
from ._rates import LayerwiseOptimizer


class Unfreeze(keras.callbacks.Callback):
    """Gradual unfreezing: frozen blocks are thawed one by one, from the head to the input.

        thawed in epoch e = the last (e // every - e0 // every) blocks of those frozen at the start, e0 the first epoch

    Freeze them first: `freeze(model)` leaves the head alone. The optimizer gets its slots for all blocks when training
    begins, so that thawing loses nothing; the training step is traced anew whenever a block is thawed. What is thawed
    follows from the epoch: a training that is broken off and restarted by callbacks.Resume ends as a whole one. When
    `fit` returns the blocks that were thawed stay so. Of a Distiller the student is thawed.

    Args:
      every: epochs between two blocks, >= 1. Blocks side by side are thawed together.
      until: the last block that is thawed, see `freeze`. None thaws all.

    Raises:
      ValueError: an argument is out of range; no block is frozen, or none from `until` on; the optimizer has trained a
        part of the blocks already and was not built for the others, or is a keras.optimizers.MultiOptimizer that
        `rates` did not make.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt.finetune import freeze, plan
      >>> model = freeze(keras.Sequential([keras.Input((2,)), *map(keras.layers.Dense, (4, 4, 1))]))
      >>> model.compile("adam", "mse")
      >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[Unfreeze(every=1)])
      >>> plan(model).trainable.tolist()
      [False, True, True]

    Reference:
      Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018.
      https://arxiv.org/abs/1801.06146
    """

    @checked(every=Whole(low=1), until=UNTIL)
    def __init__(self, every: int = 1, *, until: Until = None) -> None:
        super().__init__()
        self.every, self.until = every, until

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        blocks = required_blocks(self._network(), "finetune.Unfreeze")
        last = 0 if self.until is None else depth_of(self.until, blocks, "finetune.Unfreeze")
        frozen = [block for block in reversed(blocks) if not block.trains and block.depth >= last]
        require(frozen, "finetune.Unfreeze thaws blocks that are frozen, and none is",
                blocks=", ".join(block.name for block in blocks if block.depth >= last),
                do="Freeze them: finetune.freeze(model).")
        depths = sorted({block.depth for block in frozen}, reverse=True)
        place = {id(part): number for number, part in enumerate(parts_of(self._network()))}
        # Plain data without names, which callbacks.Resume saves
        self._frozen = [[place[id(layer)] for block in frozen if block.depth == depth
                         for layer in block.layers.values()] for depth in depths]
        self._first = None
        self._prepare([layer for block in frozen for layer in block.layers.values()])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = epoch if self._first is None else self._first
        due = self._frozen[:epoch // self.every - self._first // self.every]
        parts = parts_of(self._network())
        frozen = [parts[place] for places in due for place in places if not parts[place].trainable_weights]
        if frozen:
            set_trainable(self.model, frozen, True)
            self.model.make_train_function(force=True)     # the one that is traced trains what it trained before

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for part in optimizers_in(self.model.optimizer):
            average_all(part)

    def _network(self):
        return getattr(self.model, "student", self.model)

    def _prepare(self, frozen):
        """Gives the optimizer its slots for the variables of all blocks."""
        optimizer = self.model.optimizer
        parts = optimizers_in(optimizer)
        foreign = [type(part).__name__ for part in parts if isinstance(part, keras.optimizers.MultiOptimizer)
                   and not isinstance(part, LayerwiseOptimizer)]
        require(not foreign, "finetune.Unfreeze needs an optimizer that takes gradients of a part of its variables",
                optimizer=foreign, do="Compile with finetune.rates(model, optimizer).")
        set_trainable(self.model, frozen, True)
        try:
            variables = self.model.trainable_variables
        finally:
            set_trainable(self.model, frozen, False)
        with _models.scope_of(self.model):
            built = build_again(optimizer, variables)
        require(built, "finetune.Unfreeze needs an optimizer that was built for all blocks, or has not trained yet",
                optimizer=type(optimizer).__name__, do="Compile the model with a new one.")
        for part in parts:
            average_some(part)
