"""An exact restart: what a training was, saved as it goes on; it then goes on as if nothing had happened."""

import math
import os
import sys
import warnings
from typing import Any

from .. import _models
from .._check import PATH, Whole, checked, require
from .._files import Lock
from .._keras import Fit, built_for, keras, parts_of, randomness, set_randomness, tf
from .._typing import PathLike
from ._data import ADVICE, Source, take
from ._states import Folder
from ._values import (
    Memory,
    forms_of,
    optimizers_of,
    pack,
    require_same,
    schedule_variables,
    settings_of,
    unpack,
    value_of,
)

_HELD = {"epoch": int, "batch": int, "stopped": bool, "forms": dict, "source": dict, "callbacks": list, "random": dict,
         "begun": dict}                  # what a state holds
_LOCKS: dict[str, Lock] = {}             # of the directories that this process writes to, until training or process end


class Resume(keras.callbacks.Callback):
    """Exact restart (checkpoint and resume): weights and history are those of a run that was never interrupted.

        model.fit(..., epochs=n, callbacks=[..., Resume(directory)])       the same line starts it and restarts it

    Saved are the model's variables with the states of its random generators, the optimizer with its loss scale, the
    global random states, the history, the state of the other callbacks (their attributes that are plain data), and
    the place in the epoch with the order of its batches. A state is written as a whole or not at all and carries
    checksums; a damaged one is passed over, with a warning, for the one before it.

    `fit` returns the whole history, that of earlier runs included. A training that had ended says so and does nothing;
    with more `epochs` it trains on. If TensorFlow has no seed, shuffled arrays are drawn from a seed that is saved. Of
    several workers the first one writes, and all must see the same directory. One process at a time uses a directory.

    Args:
      directory: a folder of this training alone.
      every: batches between two states, >= 1; a restart redoes at most so many. None saves at the end of each epoch.
      max_to_keep: how many states to keep, >= 1.

    Raises:
      ValueError: an argument is out of range; the model, the optimizer or the data are not those that were saved; the
        data come in another order than before; no state in the directory is whole.

    Example:
      >>> import tempfile, numpy as np
      >>> folder, x = tempfile.mkdtemp(), np.ones((8, 2))
      >>> def train(epochs):
      ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      ...     model.compile("sgd", "mse")
      ...     return model.fit(x, x[:, :1], epochs=epochs, verbose=0, callbacks=[Resume(folder)]).history["loss"]
      >>> first, second = train(epochs=2), train(epochs=3)
      >>> len(second), second[:2] == first
      (3, True)
    """

    @checked(directory=PATH, every=Whole(low=1), max_to_keep=Whole(low=1))
    def __init__(self, directory: PathLike, *, every: int | None = None, max_to_keep: int = 2):
        super().__init__()
        self.directory: PathLike = directory
        self.every: int | None = every
        self.max_to_keep: int = max_to_keep
        self._fit = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._fit = Fit(self.model)
        self._fit.report_metrics(False)
        self._go_last(logs)
        self._lock()
        self._folder = Folder(self.directory, self.max_to_keep, _is_state)
        self._found = self._find()
        state, arrays = self._found or ({}, {})
        self._source = Source(self._fit, state.get("source"), self._agreed(int.from_bytes(os.urandom(4), "big")))
        self._memories = [Memory(callback) for callback in self._fit.callbacks.callbacks
                          if callback is not self and not isinstance(callback, keras.callbacks.ProgbarLogger)]
        self._begun = unpack(state["begun"], arrays) if state else randomness()
        self._since, self._told = 0, set()
        if state:
            self._build(state)
        fresh = not int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self._settings = settings_of(self.model.optimizer) if fresh or not state else state["forms"]["settings"]
        if state:
            for what, now in self._forms().items():
                require_same(what, state["forms"][what], now, self.directory)
            self._restore(state, arrays)
            self._begin(state)
        self._fit.intercept(self._steps)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._require_fit()
        self._fit.begin_at(None)
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._require_fit()
        self._fit.report_metrics(False)
        stopped = bool(self.model.stop_training)
        if self.every is None or self._is_due() or stopped or epoch + 1 >= self.params["epochs"]:
            self._save(epoch + 1, 0, stopped)

    def on_train_end(self, logs: Any = None) -> None:
        self._require_fit()
        self._fit.begin_at(None)
        if self._real_path() in _LOCKS:
            _LOCKS.pop(self._real_path()).close()
        self._fit = self._source = self._found = self._memories = self._begun = None            # they hold the data

    def _require_fit(self):
        require(self._fit is not None, "callbacks.Resume works inside keras.Model.fit alone", directory=self.directory,
                do="Pass it to `fit`; a training loop of your own has to save its state itself.")

    def _real_path(self):
        return os.path.realpath(self.directory)

    def _lock(self):
        """Keeps other processes from writing; a `fit` that failed in this process has left its lock to the next one."""
        if _is_chief(self.model.distribute_strategy) and self._real_path() not in _LOCKS:
            _LOCKS[self._real_path()] = Lock(
                os.path.join(self.directory, ".lock"),
                f"callbacks.Resume: another process trains with {self.directory}, and two would overwrite each other's "
                "states. Wait for it, or choose another directory.")

    def _go_last(self, logs):
        """From now on this callback is called after all others; those after it begin now, to be restored with them."""
        listed = self._fit.callbacks.callbacks
        others = [type(callback).__name__ for callback in listed
                  if isinstance(callback, Resume | keras.callbacks.BackupAndRestore) and callback is not self]
        require(not others, "callbacks.Resume must be the only callback that restarts a training", others=others,
                do="Leave the others out.")
        rest = listed[listed.index(self) + 1:]
        del listed[len(listed) - len(rest):]                                       # who goes through it now is done
        self._fit.callbacks.callbacks = [callback for callback in listed if callback is not self] + [*rest, self]
        for callback in rest:
            callback.on_train_begin(logs)

    def _find(self):
        """(state, arrays) of the newest good one, the same on all workers, or None."""
        number, found = self._folder.newest()
        agreed = self._agreed(number)
        require(agreed == number or agreed in self._folder.numbers(),
                "callbacks.Resume: all workers must see the states that the first one writes",
                directory=str(self.directory), newest_here=number, newest_there=agreed,
                do="Put the directory on a disk that they share.")
        return found if agreed == number else self._folder.read(agreed) if agreed else None

    def _agreed(self, number):
        """The first worker's number, on every worker."""
        strategy = self.model.distribute_strategy
        if not _is_multi_worker(strategy):
            return number
        mine = number if _is_chief(strategy) else 0

        @tf.function
        def total():
            return strategy.run(lambda: tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, tf.constant(mine, tf.int64)))

        here = strategy.experimental_local_results(total())
        return int(here[0]) // len(here)

    def _build(self, state):
        """Makes the variables that a state has values for; those of the metrics only in the middle of an epoch.

        A training step may move only some of the variables, and by several optimizers.
        """
        made = all(layer.built for layer in parts_of(self.model)[1:])
        with _models.scope_of(self.model):
            if made:
                for optimizer, places in zip(optimizers_of(self.model), state.get("built_for", []), strict=False):
                    if places is not None and max(places) < len(self.model.variables) and not optimizer.built:
                        optimizer.build([self.model.variables[place] for place in places])
            if state["batch"] or not made:
                self._fit.build(self._source.symbols())
            elif not self.model.optimizer.built and state.get("built_for", [])[:1] != [None]:
                self.model.optimizer.build(self.model.trainable_variables)

    def _forms(self):
        """What must be as it was for a state to fit, as JSON has it."""
        return {**{name: forms_of(variables) for name, variables in self._variables(0).items()},
                "settings": self._settings, "data": self._source.form}

    def _variables(self, batch):
        optimizers = optimizers_of(self.model)
        return {"model": self.model.variables,
                "optimizer": [variable for optimizer in optimizers for variable in optimizer.variables],
                "schedule": [variable for optimizer in optimizers for variable in schedule_variables(optimizer)],
                "metrics": self.model.metrics_variables if batch else []}

    def _save(self, epoch, batch, stopped=False):
        self._fit.wait()
        self._since, arrays = 0, {}

        def keep(array):
            name = f"value-{len(arrays)}"
            arrays[name] = array
            return name

        for name, variables in self._variables(batch).items():
            for number, variable in enumerate(variables):
                arrays[f"{name}-{number}"] = value_of(variable)
        state = {"epoch": epoch, "batch": batch, "stopped": stopped, "forms": self._forms(),
                 "built_for": [built_for(optimizer, self.model.variables) for optimizer in optimizers_of(self.model)],
                 "source": self._source.saved(), "callbacks": [[memory.name, memory.packed(keep)]
                                                               for memory in self._memories],
                 "random": pack(randomness(), keep), "begun": pack(self._begun, keep)}
        self._tell_lost()
        if _is_chief(self.model.distribute_strategy):
            require(os.path.isdir(self.directory), "callbacks.Resume: its directory is gone, with the states and the "
                    "lock that were in it", directory=str(self.directory), error=FileNotFoundError,
                    do="Bring it back, or train anew.")
            self._folder.write(state, arrays)

    def _tell_lost(self):
        lost = {f"{memory.name}.{name} ({kind})" for memory in self._memories for name, kind in memory.lost.items()}
        if lost - self._told:
            warnings.warn("callbacks.Resume saves plain data only, and a restart will miss what these callbacks "
                          f"hold: {', '.join(sorted(lost - self._told))}.", stacklevel=2)
        self._told |= lost

    def _restore(self, state, arrays):
        for name, variables in self._variables(state["batch"]).items():
            saved = [arrays[key] for key in arrays if key.startswith(f"{name}-")]
            require_same(name, forms_of(saved), forms_of(variables), self.directory)
            for number, variable in enumerate(variables):
                variable.assign(arrays[f"{name}-{number}"])
        saved = list(state["callbacks"])
        for memory in self._memories:
            found = next((entry for entry in saved if entry[0] == memory.name), None)
            if found:
                saved.remove(found)
                memory.restore(found[1], arrays)
        unused = [name for name, attributes in saved if attributes]
        if unused:
            warnings.warn(f"callbacks.Resume has saved the state of {', '.join(unused)}, and no such callback is there "
                          "now.", stacklevel=2)
        set_randomness(unpack(state["random"], arrays))

    def _begin(self, state):
        """Tells `fit` where to begin, and the user what is the case."""
        epoch, epochs = state["epoch"], self.params["epochs"]
        over = state["stopped"] or epoch >= epochs
        self._fit.begin_at(epochs if over else epoch)
        if over:
            how = "was stopped by a callback" if state["stopped"] else "ended"
            warnings.warn(f"callbacks.Resume: the training in {self.directory} {how} after {epoch} epochs; nothing is "
                          f"left to do for epochs={epochs}. Choose another directory to train anew.", stacklevel=2)
        elif self.params["verbose"]:
            sys.stderr.write(f"callbacks.Resume: {self.directory} goes on with epoch {epoch + 1} of {epochs}, after "
                             f"batch {state['batch']}.\n")

    def _steps(self, own):
        """The steps of an epoch, the first time those that are left of it. States are saved between them."""
        state, arrays = self._found or ({"batch": 0}, {})
        skip = state["batch"]
        if self._found:
            self._found = None
            self._replay(state, own)
        waits = skip > 0
        for begin, end, batches in own():
            if begin < skip:
                self._require_order(take(batches, end + 1 - begin) or end + 1 == skip, fewer_batches_than=skip)
                continue
            if waits:
                waits = self._go_on(state, arrays)
            yield begin, end, batches
            self._since += end + 1 - begin
            if self._is_due() and end + 1 < (self._fit.iterator.num_batches or math.inf):
                self._save(self._epoch, end + 1)

    def _replay(self, state, own):
        """Brings the data to the epoch that is resumed."""
        before = randomness()
        set_randomness(self._begun)
        self._source.replay(state["epoch"], own)
        if not state["batch"]:                      # else the order of this epoch has yet to be drawn, as it was then
            set_randomness(before)
        if not state["batch"] and self._source.first != state["source"]["first"]:
            warnings.warn("callbacks.Resume: the data come in another order than before, so that training goes on, but "
                          f"not exactly as it would have gone on. {ADVICE}", stacklevel=2)

    def _go_on(self, state, arrays):
        """In the middle of an epoch: all is as it was when the state was saved."""
        self._require_order(self._source.first == state["source"]["first"], first_batch="another one")
        self._restore(state, arrays)
        self._fit.report_metrics(not self._source.form["batches"])      # it may have been the last one
        return False

    def _require_order(self, ok, **received):
        require(ok, "callbacks.Resume can go on in the middle of an epoch only with the same data in the same order",
                directory=str(self.directory), do=ADVICE, **received)

    def _is_due(self):
        """Would the state be older than `every` batches after the next step?"""
        return self.every is not None and self._since + self._fit.iterator.steps_per_execution > self.every


def _is_multi_worker(strategy):
    cluster = getattr(strategy, "cluster_resolver", None)
    return cluster is not None and len(cluster.cluster_spec().as_dict().get("worker", ())) > 1


def _is_chief(strategy):
    if not _is_multi_worker(strategy):
        return True
    cluster = strategy.cluster_resolver
    first = "chief" if "chief" in cluster.cluster_spec().as_dict() else "worker"
    return (cluster.task_type, cluster.task_id) == (first, 0)


def _is_state(state):
    """Does it hold what `Resume` saves."""
    places = state.get("built_for", [])
    return (all(isinstance(state.get(name), kind) for name, kind in _HELD.items()) and min(
        state["epoch"], state["batch"]) >= 0 and {"model", "optimizer", "schedule", "metrics", "settings", "data"}
        == state["forms"].keys() and {"seed", "starts", "first"} == state["source"].keys()
        and isinstance(places, list) and all(place is None or isinstance(place, list) for place in places)
        and all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)
                for entry in state["callbacks"]))
