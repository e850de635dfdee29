"""The only place that uses private names of Keras 3 and TensorFlow; each file does one job.

Private names, and the versions they were run with (tests/test_keras_private.py tests what is relied on):

graph.py
    keras.src.models.functional.Functional        3.15            the class of graph models, which has no public name
    Sequential._functional                        3.15            the graph behind a built Sequential model
    Functional._inputs_struct                     3.15            the graph's inputs, nested as the user nested them
    Functional._run_through_graph                 3.15            replays the graph with another function per operation
    KerasTensor._keras_history                    3.15            the operation and node a graph's tensor comes from;
                                                                  what Sequential.add asks a layer for
    Operation._inbound_nodes, Node.input_tensors  3.15            the tensors that went into one use of an operation
    Operation._outbound_nodes                     3.15            where its outputs are used
    Functional._nodes_by_depth, Node.arguments    3.15            each use of an operation, with what it was called with
    KerasTensor._keras_mask                       3.15            the mask that goes with a tensor
    Layer._flatten_layers                         3.15            the layers inside a layer
    serialization_lib.SafeModeScope               3.15            lets the Lambdas of a live layer be made again

likeness.py
    Layer._trainable, _path, _called ... (_STATE) 3.15            what Keras itself keeps of a layer
    Layer._trainable_variables ... (_STORES)      3.15            what belongs to a layer, in order
    Layer._tracker.track                          3.15            makes a variable or a layer belong to a layer
    Variable._path, _autocast, _aggregation,      3.15            what its constructor was given
        _synchronization

random.py
    keras.src.backend.common.global_state         3.15            holds the generator behind seed=None, and names
    tensorflow.python.eager.context               TF 2.21         holds the seed, and the counter of eager operations
    tensorflow.python.ops.stateful_random_ops     TF 2.21         holds tf.random's global generator, if there is one

training.py
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
    Optimizer._var_key, _variables,               3.15            to build one again that was built for fewer
        _trainable_variables_indices, _untrack_variable
    Optimizer._exclude_from_weight_decay(_pattern) 3.15           settings that its config leaves out
    Optimizer._model_variables_moving_average     3.15            the averages of `use_ema`
    tensorflow.python.ops.control_flow_util       TF 2.21         knows whether a graph is being made for XLA

datasets.py
    Dataset._inputs, _functions                   TF 2.21         what a data set is made of, and calls
    audio_dataset_utils.read_and_decode_audio     3.15            how audio_dataset_from_directory reads one file

workers.py
    TensorFlowTrainer._maybe_symbolic_build       3.15            builds a model from the first batch of the replicas
    reduce_per_replica (beside it)                3.15            makes one value of what the replicas returned

wrapped.py
    object_registration.GLOBAL_CUSTOM_NAMES       3.15            the name under which a class is saved
    Layer._tracker.lock, unlock                   3.15            lets a built model have more variables
    Layer._flatten_layers                         3.15            the layers inside a layer
    global_state: current_call_ctx                3.15            what layers were called with, from the outermost in
    BaseOptimizer.apply: self; _iterations        3.15            the optimizer that calls a constraint, and its count
"""

import os

from .._check import require

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
import tensorflow as tf  # noqa: E402

require(keras.backend.backend() == "tensorflow",
        "tfopt works with Keras on TensorFlow, and keras.json names another backend",
        backend=keras.backend.backend(), do=_REMEDY.format("KERAS_BACKEND=tensorflow"), error=ImportError)
require(tuple(int(part) for part in keras.__version__.split(".")[:2]) >= (3, 15),
        "tfopt needs Keras >= 3.15", version=keras.__version__, do="Run `pip install -U keras`.", error=ImportError)

from .config import ConfigFromArguments, serializable  # noqa: E402
from .datasets import datasets_in, holds_resources, read_audio, shuffled_by, without_autotune  # noqa: E402
from .graph import (  # noqa: E402
    Functional,
    NotALayer,
    fresh_inputs,
    fresh_operation,
    graph_of,
    lambdas_allowed,
    mask_of,
    parts_of,
    producer,
    replay,
    set_mask,
    uses,
    uses_for,
)
from .likeness import SharedError, build_like, likeness  # noqa: E402
from .random import fresh_names, global_seed, randomness, same_randomness, seeded, set_randomness  # noqa: E402
from .training import (  # noqa: E402
    Fit,
    OptimizerAround,
    alike,
    average_all,
    average_some,
    build_again,
    built_for,
    compile_arguments,
    compiled_as,
    forget_compiled,
    in_xla,
    loss_tracker,
    optimizers_in,
    schedule_of,
    task_loss,
)
from .workers import patch_workers, slurm_hosts, slurm_tasks  # noqa: E402
from .wrapped import (  # noqa: E402
    Wrapped,
    applies_now,
    calls_in_training,
    inner_layers,
    is_training,
    is_wrapped,
    own_variables,
    substitute,
)

__all__ = ["ConfigFromArguments", "Fit", "Functional", "NotALayer", "OptimizerAround", "SharedError", "Wrapped",
           "alike", "applies_now", "average_all", "average_some", "build_again", "build_like", "built_for",
           "calls_in_training", "compile_arguments", "compiled_as", "datasets_in", "forget_compiled", "fresh_inputs",
           "fresh_names", "fresh_operation", "global_seed", "graph_of", "holds_resources", "in_xla", "inner_layers",
           "is_training", "is_wrapped", "keras", "lambdas_allowed", "likeness", "loss_tracker", "mask_of",
           "optimizers_in", "own_variables", "parts_of", "patch_workers", "producer", "randomness", "read_audio",
           "replay", "same_randomness", "schedule_of", "seeded", "serializable", "set_mask", "set_randomness",
           "shuffled_by", "slurm_hosts", "slurm_tasks", "substitute", "task_loss", "tf", "uses", "uses_for",
           "without_autotune"]
