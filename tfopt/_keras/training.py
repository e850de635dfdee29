"""What `compile` and `fit` keep of a model: its losses, its optimizer, and the loop that is running."""

import contextlib
import sys

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from tensorflow.python.ops import control_flow_util

from .._check import require


def task_loss(model, y, y_pred, sample_weight):
    """The compiled loss alone, without penalties, divided by the number of replicas; None if there is none."""
    return None if model._compile_loss is None else model._compile_loss(y, y_pred, sample_weight)


def compile_arguments(model):
    """What the user gave to `compile`, by name."""
    return dict(model._compile_config.config)


def loss_tracker(model):
    """The metric behind the log `loss` of a compiled model."""
    return model._loss_tracker


def forget_compiled(model):
    """Drops the loss and the metrics of an earlier `compile`, which a later one without them would keep."""
    model.loss = model._compile_loss = model._compile_metrics = None


@contextlib.contextmanager
def compiled_as(model, other):
    """Inside, `model` has the optimizer, loss and metrics that `other` was compiled with, for methods of its own."""
    names = ("optimizer", "loss", "compiled", "_compile_loss", "_compile_metrics", "_loss_tracker")
    held, own = vars(model), {name: vars(model)[name] for name in names if name in vars(model)}
    held.update({name: vars(other)[name] for name in names if name in vars(other)})
    try:
        yield
    finally:
        for name in names:
            held.pop(name, None)
        held.update(own)


def schedule_of(optimizer):
    """The schedule or callable that `optimizer` holds as its learning rate, else None."""
    rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
    return None if isinstance(rate, keras.Variable) else rate


def alike(optimizer, **changes):
    """An unbuilt optimizer of the same settings but for `changes`; a schedule is shared.

    What `exclude_from_weight_decay` was told, which a config leaves out, counts as a setting.
    """
    made = type(optimizer).from_config({**optimizer.get_config(), **changes})
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(optimizer, name):
            setattr(made, name, getattr(optimizer, name))
    return made


def optimizers_in(optimizer):
    """An optimizer and those that it holds, however deep."""
    inner = [*getattr(optimizer, "optimizers", ()), *filter(None, [getattr(optimizer, "inner_optimizer", None)])]
    return [optimizer, *(part for each in inner for part in optimizers_in(each))]


def build_again(optimizer, variables):
    """Builds an optimizer for `variables`, also one that was built for fewer but not used yet. False if it was used."""
    if optimizer.built:
        known = optimizer._trainable_variables_indices
        if all(optimizer._var_key(variable) in known for variable in variables):
            return True
        parts = optimizers_in(optimizer)
        if any(int(tf.convert_to_tensor(part._iterations.value)) for part in parts):
            return False
        for part in parts:
            kept = {id(part._iterations), id(part._learning_rate)}
            for variable in [variable for variable in part._variables if id(variable) not in kept]:
                part._untrack_variable(variable)
            part._trainable_variables_indices.clear()
            part.built = False
    optimizer.build(variables)
    return True


def built_for(optimizer, variables):
    """The places among `variables` of those that an optimizer was built for; None if it is not built, or for others."""
    places = {id(variable): place for place, variable in enumerate(variables)}
    found = [places.get(id(variable)) for variable in getattr(optimizer, "_trainable_variables", None) or [None]]
    return None if not optimizer.built or None in found else found


def average_some(optimizer):
    """Lets an optimizer with `use_ema` end with the averages of some of its variables, until `average_all`."""
    def finalize(variables):
        for variable in variables:
            average = optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]
            if average is not None:
                variable.assign(tf.convert_to_tensor(average.value))

    if optimizer.use_ema:
        vars(optimizer)["finalize_variable_values"] = finalize


def average_all(optimizer):
    """Undoes `average_some`."""
    vars(optimizer).pop("finalize_variable_values", None)


class OptimizerAround(keras.optimizers.Optimizer):
    """Base of an optimizer that hands the gradients to `inner_optimizer`; its clipping and its own count stay here."""

    def __init__(self, inner, *, name, **clips):
        super().__init__(0.0, name=name, **clips)
        self.inner_optimizer = inner

    def build(self, variables):
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def own_iterations(self):
        """How often `apply` was called, also where the inner optimizer waits."""
        return self._iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate):
        self.inner_optimizer.learning_rate = rate

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def clipped(self, gradients):
        """Gradients as the clipping of this optimizer leaves them."""
        return self._clip_gradients(gradients)

    def built_for(self):
        """The variables that `build` was given."""
        return self._trainable_variables

    def place_of(self, variable):
        """The place of a variable among them."""
        return self._get_variable_index(variable)


def in_xla():
    """Is a graph being traced that XLA will compile as a whole, where lookup tables and checks cannot be."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph())


class Fit:
    """The `fit` of a model that is running now: its epoch iterator, its list of callbacks, its `initial_epoch`."""

    def __init__(self, model):
        frame = sys._getframe(1)
        while frame is not None and not (frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model
                                         and "epoch_iterator" in frame.f_locals):
            frame = frame.f_back
        require(frame is not None, "the callback must be called by keras.Model.fit", model=model.name,
                do="Pass it to `fit` as one of its callbacks.")
        self.model, self.iterator = model, frame.f_locals["epoch_iterator"]
        self.callbacks, self.first_epoch = frame.f_locals["callbacks"], frame.f_locals["initial_epoch"]

    @property
    def arrays(self):
        """The arrays that are trained on, or None if the data are of another kind."""
        adapter = self.iterator.data_adapter
        return keras.tree.flatten(adapter._inputs) if isinstance(adapter, ArrayDataAdapter) else None

    @property
    def shuffle(self):
        """How `fit` shuffles the rows of arrays: False, True or "batch"."""
        return self.arrays is not None and self.iterator.data_adapter._shuffle

    @property
    def dataset(self):
        """The data set of one epoch, as it is before it is distributed."""
        dataset = self.iterator._distributed_dataset
        return dataset if isinstance(dataset, tf.data.Dataset) else self.iterator.data_adapter.get_tf_dataset()

    @dataset.setter
    def dataset(self, dataset):
        self.iterator._distributed_dataset = self.model.distribute_strategy.experimental_distribute_dataset(dataset)

    @property
    def steps(self):
        """How many batches an epoch has, None if that is not known."""
        return self.iterator.num_batches

    @steps.setter
    def steps(self, steps):
        self.iterator._num_batches = steps
        for callback in self.callbacks.callbacks:
            if isinstance(callback, keras.callbacks.ProgbarLogger):
                callback.target = steps
                if callback.progbar is not None:
                    callback.progbar.target = steps

    def intercept(self, wrap):
        """From now on the steps of an epoch, (first, last, iterator of batches), are those of `wrap(own steps)`."""
        own = self.iterator._enumerate_iterator
        self.iterator._enumerate_iterator = lambda: wrap(own)

    def begin_at(self, epoch):
        """Makes `fit` begin with this epoch; None for what the user said. Keras itself never forgets it."""
        self.model._initial_epoch = epoch

    def build(self, batch):
        """Makes the variables of model, metrics and optimizer that are not there yet from a batch of KerasTensors."""
        self.model._symbolic_build(data_batch=batch)

    def report_metrics(self, metrics):
        """With True `fit` reports the metrics of an epoch of which no step was left to do."""
        self.model.__dict__.pop("_get_metrics_result_or_logs", None)
        if metrics:
            own = self.model._get_metrics_result_or_logs
            self.model.__dict__["_get_metrics_result_or_logs"] = lambda logs: own(
                logs or self.model.get_metrics_result())

    def wait(self):
        """Until no callback is running in another thread."""
        if self.callbacks._async_train:
            self.callbacks._flush_futures()
