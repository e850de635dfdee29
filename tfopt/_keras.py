"""The one door to Keras 3 on TensorFlow, and the only file that touches private Keras names.

Private names, and the versions they were run with (tests/test_keras_door.py asks each of them for what is relied on):

    keras.src.models.functional.Functional        3.15            the class of graph models, which has no public name
    Sequential._functional                        3.15            the graph behind a built Sequential model
    Functional._inputs_struct                     3.15            the graph's inputs, nested as the user nested them
    Functional._run_through_graph                 3.15            replays the graph with another function per operation
    KerasTensor._keras_history                    3.15            the operation and node a graph's tensor comes from
    Operation._inbound_nodes, Node.input_tensors  3.15            the tensors that went into one use of an operation
    Operation._outbound_nodes                     3.15            where its outputs are used
    Functional._nodes_by_depth, Node.arguments    3.15            each use of an operation, with what it was called with
    KerasTensor._keras_mask                       3.15            the mask that goes with a tensor
    Layer._flatten_layers                         3.15            the layers inside a layer
    Layer._get_own_losses                         3.15            what a layer adds to the loss, also when nested
    Layer._clear_losses                           3.15            forgets what the last call added
    serialization_lib.SafeModeScope               3.15            lets the Lambdas of a live layer be made again
    Trainer._compile_loss, _compile_metrics       3.15            what `compile` made of loss and metrics, or None
    Trainer._loss_tracker                         3.15            the mean behind the log "loss"
    Trainer._compile_config                       3.15            what the user gave to `compile`
    Optimizer._learning_rate                      3.15            its schedule, variable or callable itself
    Trainer.fit: epoch_iterator, callbacks        3.15            the local names of what gives the batches and acts
    EpochIterator._enumerate_iterator             3.15            the steps of one epoch
    TFEpochIterator._distributed_dataset          3.15            the data set behind it
    ArrayDataAdapter._inputs, _shuffle            3.15            the arrays; True, False or "batch"
    Trainer._initial_epoch                        3.15            the epoch that `fit` begins with, if not None
    Trainer._symbolic_build                       3.15            makes all variables without computing anything
    Trainer._get_metrics_result_or_logs           3.15            what `fit` reports of an epoch
    CallbackList._async_train, _flush_futures     3.15            callbacks that may still be running
    Optimizer._clip_gradients                     3.15            clips as the optimizer was asked to
    Optimizer._trainable_variables, _iterations   3.15            what it was built for; how often it was applied
    Optimizer._get_variable_index                 3.15            the place of a variable among them
    TensorFlowTrainer._maybe_symbolic_build       3.15            builds a model from the first batch of the replicas
    reduce_per_replica (beside it)                3.15            makes one value of what the replicas returned
    keras.src.backend.common.global_state         3.15            holds the generator behind seed=None, and names
    tensorflow.python.eager.context               TF 2.21         holds the seed, and the counter of eager operations
    tensorflow.python.ops.stateful_random_ops     TF 2.21         holds tf.random's global generator, if there is one
    tensorflow.python.ops.control_flow_util       TF 2.21         knows whether a graph is being made for XLA
    Dataset._inputs, _functions                   TF 2.21         what a data set is made of, and calls
"""

import collections
import contextlib
import copy
import functools
import os
import random
import sys

from ._check import require

_REMEDY = "Start Python with {} and import tfopt again."

require(os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() not in ("1", "true"),
        "tfopt works with Keras 3, and the environment asks TensorFlow for Keras 2",
        TF_USE_LEGACY_KERAS=os.environ.get("TF_USE_LEGACY_KERAS"),
        do=_REMEDY.format("TF_USE_LEGACY_KERAS unset, and before tensorflow_model_optimization, which sets it,"),
        error=ImportError)
require(os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow",
        "tfopt works with Keras on TensorFlow, and the environment asks for another backend",
        KERAS_BACKEND=os.environ.get("KERAS_BACKEND"),
        do=_REMEDY.format("KERAS_BACKEND=tensorflow"), error=ImportError)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras.src.backend.common import global_state  # noqa: E402
from keras.src.backend.tensorflow import trainer as tf_trainer  # noqa: E402
from keras.src.models.functional import Functional  # noqa: E402
from keras.src.random.seed_generator import global_seed_generator  # noqa: E402
from keras.src.saving.serialization_lib import SafeModeScope  # noqa: E402
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter  # noqa: E402
from tensorflow.python.eager import context as eager_context  # noqa: E402
from tensorflow.python.ops import control_flow_util, stateful_random_ops  # noqa: E402

require(keras.backend.backend() == "tensorflow",
        "tfopt works with Keras on TensorFlow, and keras.json names another backend",
        backend=keras.backend.backend(), do=_REMEDY.format("KERAS_BACKEND=tensorflow"), error=ImportError)
require(tuple(int(part) for part in keras.__version__.split(".")[:2]) >= (3, 15),
        "tfopt needs Keras >= 3.15", version=keras.__version__, do="Run `pip install -U keras`.", error=ImportError)

__all__ = ["Fit", "Functional", "ModelWithOwnLosses", "adapted", "call_losses", "compile_arguments", "datasets_in",
           "forget_compiled", "fresh_inputs", "fresh_names", "functions_of", "global_seed", "graph_of",
           "holds_resources", "in_xla", "keras", "loss_tracker", "mask_of", "mend_workers", "parts_of", "producer",
           "randomness", "remade", "replay", "same_randomness", "schedule_of", "seeded", "serializable", "set_mask",
           "set_randomness", "shuffled_by", "task_loss", "tf", "untuned", "uses", "uses_for", "with_functions"]

serializable = keras.saving.register_keras_serializable(package="tfopt")


def graph_of(model):
    """The functional graph of a built Functional or Sequential model, else None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, Functional) else None


def fresh_inputs(graph, shape=lambda x: x.shape):
    """New keras.Inputs like those of `graph` (see `graph_of`), in the same nesting; `shape(input)` with the batch."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=shape(x), dtype=x.dtype, sparse=x.sparse, name=producer(x)[0].name),
        graph._inputs_struct)


def fresh_operation(op):
    """The same operation (one without state, not a layer), in no graph yet."""
    new = copy.copy(op)
    new._inbound_nodes, new._outbound_nodes = [], []
    return new


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


def in_xla():
    """Is a graph being traced that XLA will compile as a whole, where lookup tables and checks cannot be."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph())


def replay(graph, inputs, operation, call=None):
    """Runs `inputs` through `graph` (see `graph_of`), with `operation(op)` in place of each operation.

    Each is called as `call(operation(op), *args, **kwargs)` if `call` is given. Nested graph models are operations too.
    """
    calls = None if call is None else (
        lambda op, *args, **kwargs: (op if graph_of(op) is not None else functools.partial(call, op))(*args, **kwargs))
    return graph._run_through_graph(inputs, operation_fn=operation, call_fn=calls)


def producer(tensor):
    """The operation that made a tensor of a graph, and the tensors that went into that use of it."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].input_tensors


def uses(graph):
    """[(operation, args, kwargs, outputs)] of each use of an operation in `graph` (see `graph_of`), in order.

    The arguments are those the user gave: Keras also records the masks that belong to the tensors and a `training`
    that the call of the model overrules. What no output depends on, such as the making of those masks, is left out.
    """
    return uses_for(graph, graph.outputs)[0]


def uses_for(graph, wanted, masks=False):
    """The `uses` that some of the outputs of `graph` depend on, and the ids of all KerasTensors on the way.

    With `masks`, the masks Keras recorded count as given by the user.
    """
    nodes = [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]
             if not node.is_input]
    needed, steps = set(map(id, wanted)), []
    for node in reversed(nodes):
        if needed.isdisjoint(map(id, node.outputs)):
            continue
        op, args, kwargs = node.operation, node.arguments.args, _given(node, masks)
        tensors, inner = keras.tree.flatten((args, kwargs)), graph_of(op)
        if inner is not None and len(tensors) == len(inner.inputs):
            ends = [x for x, y in zip(inner.outputs, node.outputs, strict=True) if id(y) in needed]
            entered = uses_for(inner, ends, masks)[1]
            tensors = [x for x, start in zip(tensors, inner.inputs, strict=True) if id(start) in entered]
        needed.update(map(id, tensors))
        steps.append((op, args, kwargs, node.outputs))
    return steps[::-1], needed


def _given(node, masks):
    """The keyword arguments of a use, see `uses_for`."""
    if not isinstance(node.operation, keras.layers.Layer):
        return node.arguments.kwargs
    keep = masks and graph_of(node.operation) is None
    own = {id(mask_of(x)) for x in node.arguments.keras_tensors}

    def recorded(key, value):
        values = [x for x in keras.tree.flatten(value) if x is not None]
        return key == "training" or (
            key.endswith("mask") and all(id(x) in own for x in values) and not (keep and values))

    return {key: value for key, value in node.arguments.kwargs.items() if not recorded(key, value)}


def mask_of(tensor):
    """The mask that goes with a tensor, or None. Keras 2 and 3 keep it in the same place."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor, mask):
    tensor._keras_mask = mask


def parts_of(layer):
    """A layer and all layers inside it; an operation alone."""
    return layer._flatten_layers() if isinstance(layer, keras.layers.Layer) else [layer]


def call_losses(layer):
    """The losses that the last call of `layer` made, once: those of its weights apart."""
    losses = [loss for part in parts_of(layer) for loss in part._get_own_losses()]
    layer._clear_losses()
    return losses


def remade(layer, changes=()):
    """A new layer of the same config, with `changes`, not yet built. The functions in its Lambdas are the old ones."""
    with SafeModeScope(False):
        new = type(layer).from_config({**layer.get_config(), **adapted(layer), **dict(changes)})
    return with_functions(new, functions_of(layer))


def adapted(layer):
    """What a layer has learned from data by `adapt`, and tells neither by its config nor by its variables."""
    words = layer.get_vocabulary(include_special_tokens=False) if hasattr(layer, "get_vocabulary") else []
    return {"vocabulary": list(words)} if len(words) else {}


def functions_of(layer):
    """The functions of the Lambdas in a layer, in order. Out of a config they come without the names they use."""
    return [part.function for part in parts_of(layer) if isinstance(part, keras.layers.Lambda)]


def with_functions(layer, functions):
    """`layer`, whose Lambdas now hold `functions`, see `functions_of`."""
    lambdas = [part for part in parts_of(layer) if isinstance(part, keras.layers.Lambda)]
    for part, function in zip(lambdas, functions, strict=False):       # parts that are not built yet are not there
        part.function = function
    return layer


def schedule_of(optimizer):
    """The schedule or callable that `optimizer` holds as its learning rate, else None."""
    rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
    return None if isinstance(rate, keras.Variable) else rate


@functools.cache
def mend_workers():
    """Lets models train under a strategy of several workers, see Keras' issue 20585. No other strategy is touched.

    Keras builds a model from the first batch as the replicas hold it; any one replica's part tells the shapes. It takes
    the mean over the first axis of what the replicas return, which are scalars. And it gathers predictions as they are,
    though workers cannot exchange bfloat16.
    """
    build, reduce = tf_trainer.TensorFlowTrainer._maybe_symbolic_build, tf_trainer.reduce_per_replica

    def over_workers(strategy):
        return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def build_locally(self, iterator=None, data_batch=None):
        if iterator is not None and over_workers(self.distribute_strategy):
            _, _, batches = next(iter(iterator))
            first, iterator = next(batches), None
            data_batch = keras.tree.map_structure(
                lambda value: self.distribute_strategy.experimental_local_results(value)[0], first)
        return build(self, iterator, data_batch)

    def reduce_over_workers(values, strategy, reduction):
        if over_workers(strategy) and reduction in ("auto", "mean"):
            return keras.tree.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        if over_workers(strategy):
            return keras.tree.map_structure(lambda value: gathered(value, strategy, reduction), values)
        return reduce(values, strategy, reduction)

    def gathered(value, strategy, reduction):
        if strategy.experimental_local_results(value)[0].dtype != tf.bfloat16:
            return reduce(value, strategy, reduction)
        wide = strategy.run(lambda value: tf.cast(value, tf.float32), args=(value,))
        return tf.cast(reduce(wide, strategy, reduction), tf.bfloat16)

    tf_trainer.TensorFlowTrainer._maybe_symbolic_build = build_locally
    tf_trainer.reduce_per_replica = reduce_over_workers


def global_seed():
    """The number that tf.random.set_seed was given, or None."""
    return eager_context.global_seed()


@contextlib.contextmanager
def same_randomness():
    """On leaving, the random states of Python, NumPy, TensorFlow and Keras are what they were on entering.

    TensorFlow keeps the kernel of an eager operation, with its state, under the seed the operation drew. Inside, seeds
    come from another stream, so that no kernel that is waiting outside is advanced.
    """
    eager, name = eager_context.context(), "global_seed_generator"
    keras_seeds, tf_generator = global_state.get_global_attribute(name), stateful_random_ops.global_generator
    states = random.getstate(), np.random.get_state()
    operations = eager._rng.getstate() if getattr(eager, "_rng", None) else None
    if operations:
        eager._rng.seed(f"inside {eager._rng.random()}")
    variables = [generator.state for generator in (keras_seeds, tf_generator) if generator is not None]
    values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if operations:
            eager._rng.setstate(operations)
        global_state.set_global_attribute(name, keras_seeds)
        stateful_random_ops.global_generator = tf_generator
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def seeded(seed):
    """`same_randomness`, and inside of it everything starts from `seed`."""
    eager, name = eager_context.context(), "global_random_seed"
    kept, keras_seed = (eager._seed, getattr(eager, "_rng", None)), global_state.get_global_attribute(name)
    with same_randomness():
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            eager._seed, eager._rng = kept
            global_state.set_global_attribute(name, keras_seed)


@contextlib.contextmanager
def fresh_names():
    """Inside, layers without a name are counted from the start, as in a new process; outside, nothing has changed."""
    name = "object_name_uids"
    counted = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, counted)


def randomness():
    """The random states of Python, NumPy, TensorFlow's eager operations and Keras as {name: data or None}."""
    eager, keras_seeds = eager_context.context(), global_state.get_global_attribute("global_seed_generator")
    operations = getattr(eager, "_rng", None)
    generator = stateful_random_ops.global_generator
    return {"python": _words(random.getstate()), "numpy": np.random.get_state(),
            "operations": None if operations is None else _words(operations.getstate()),
            "keras": None if keras_seeds is None else keras_seeds.state.numpy(),
            "tensorflow": None if generator is None else generator.state.numpy()}


def set_randomness(states):
    """Brings back what `randomness` told; what was not there then is left alone."""
    if states["keras"] is not None:
        global_seed_generator().state.assign(states["keras"])
    if states["tensorflow"] is not None:
        tf.random.get_global_generator().state.assign(states["tensorflow"])
    operations = getattr(eager_context.context(), "_rng", None)
    if operations is not None and states["operations"] is not None:
        operations.setstate(_from_words(states["operations"]))
    random.setstate(_from_words(states["python"]))
    np.random.set_state(states["numpy"])


def _words(state):
    version, words, rest = state
    return version, np.array(words, np.uint32), rest


def _from_words(state):
    version, words, rest = state
    return version, tuple(map(int, words)), rest


@contextlib.contextmanager
def shuffled_by(shuffle):
    """Graphs that are traced inside call `shuffle(tensor)` for tf.random.shuffle."""
    own = tf.random.shuffle
    tf.random.shuffle = shuffle
    try:
        yield
    finally:
        tf.random.shuffle = own


def untuned(dataset):
    """The dataset without tf.data's tuner; AUTOTUNE then stands for as many calls at once as there are cores.

    Whoever drops an iterator waits for its tuner to end. In TensorFlow 2.21 the tuner often misses that it was told to,
    and sleeps on: up to as long again as the pass took, with nothing to do (`benchmarks/input.py` counts it).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def datasets_in(dataset, enter=lambda dataset: True):
    """A data set and all that it is made of, where `enter(data set)` holds."""
    if enter(dataset):
        yield dataset
        for inner in dataset._inputs():
            yield from datasets_in(inner, enter)


def holds_resources(dataset):
    """Do the functions of a data set use variables or tables, which may change from pass to pass?"""
    return any(tensor.dtype == tf.resource for function in dataset._functions()
               for tensor in function.function.captured_inputs)


class Fit:
    """The `fit` of a model that is running now: its epoch iterator and its list of callbacks."""

    def __init__(self, model):
        frame = sys._getframe(1)
        while frame is not None and not (frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model
                                         and "epoch_iterator" in frame.f_locals):
            frame = frame.f_back
        require(frame is not None, "the callback must be called by keras.Model.fit", model=model.name,
                do="Pass it to `fit` as one of its callbacks.")
        self.model, self.iterator = model, frame.f_locals["epoch_iterator"]
        self.callbacks = frame.f_locals["callbacks"]

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


class ModelWithOwnLosses(keras.Model):
    """A model whose `own_losses()` join the loss whenever it is computed, nested in another model or not.

    `add_loss` would not do for a model whose call waits for the other replicas, as pruning's does: it keeps the tensors
    of all replicas in one list, and the later ones would count the losses of the earlier ones as their own.
    """

    def own_losses(self):
        return []

    def _get_own_losses(self):
        return [*super()._get_own_losses(), *self.own_losses()]
