"""What tfopt relies on in Keras' and TensorFlow's private names, asked of the versions that are installed."""

import importlib
import inspect
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import _keras
from tfopt._keras.workers import tf_trainer


def functional():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    return keras.Model(inputs, keras.layers.Dense(2, name="dense")(inputs["a"] + inputs["b"]))


def test_graphs_are_found_where_they_are():
    sequential = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert _keras.graph_of(functional()) is not None
    assert _keras.graph_of(sequential).inputs[0].shape == (None, 3)
    assert _keras.graph_of(keras.Sequential([keras.layers.Dense(2)])) is None
    assert _keras.graph_of(keras.layers.Dense(2)) is None


def test_fresh_inputs_keep_the_nesting():
    fresh = _keras.fresh_inputs(functional())
    assert {key: x.shape for key, x in fresh.items()} == {"a": (None, 3), "b": (None, 3)}


def test_a_replayed_graph_computes_the_same(rng):
    model = functional()
    inputs = _keras.fresh_inputs(model)
    seen = []
    outputs = _keras.replay(model, inputs, lambda op: op, lambda op, *args: seen.append(op.name) or op(*args))
    x = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(4, 3))}
    np.testing.assert_array_equal(keras.Model(inputs, outputs)(x), model(x))
    assert seen[-1] == "dense"


def test_uses_come_in_order_with_their_arguments():
    assert [op.name.split("_")[0] for op, *_ in _keras.uses(functional())] == ["add", "dense"]


def test_uses_know_what_an_output_needs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    inner = keras.Model([a, b], [keras.layers.Dense(2)(a), keras.layers.Dense(2)(b)])
    x, y = keras.Input((3,)), keras.Input((3,))
    used, idle = keras.layers.ReLU(name="used")(x), keras.layers.ReLU(name="idle")(y)
    model = keras.Model([x, y], inner([used, idle]))
    assert [op.name for op, *_ in _keras.uses_for(model, model.outputs[:1])[0]] == ["used", inner.name]


def test_recorded_masks_are_told_from_given_ones():
    x, given = keras.Input((3,), dtype="int32"), keras.Input((3,), dtype="bool")
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(x)
    model = keras.Model([x, given], [keras.layers.GRU(2)(embedded), keras.layers.GRU(2)(embedded, mask=given)])
    assert _keras.mask_of(embedded) is not None

    def masks(recorded):
        return sorted("mask" in kwargs for op, _, kwargs, _ in _keras.uses_for(model, model.outputs, recorded)[0]
                      if isinstance(op, keras.layers.GRU))

    assert (masks(False), masks(True)) == ([False, True], [True, True])


def test_the_compiled_loss_and_its_tracker():
    model = functional()
    model.compile("sgd", "mse")
    x = {"a": np.ones((2, 3)), "b": np.ones((2, 3))}
    model.fit(x, np.zeros((2, 2)), verbose=0)
    assert float(_keras.task_loss(model, tf.zeros((2, 2)), tf.ones((2, 2)), None)) == 1.0
    assert isinstance(_keras.loss_tracker(model), keras.metrics.Mean)
    _keras.forget_compiled(model)
    assert _keras.task_loss(model, None, None, None) is None


def test_the_schedule_an_optimizer_holds():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert _keras.schedule_of(keras.optimizers.SGD(schedule)) is schedule
    assert _keras.schedule_of(keras.optimizers.SGD(0.1)) is None


def test_how_an_optimizer_clips_and_finds_its_variables():
    optimizer, variables = keras.optimizers.SGD(0.1, clipvalue=1.), [keras.Variable(0.), keras.Variable(0.)]
    optimizer.apply([tf.constant(2.), tf.constant(3.)], variables)
    assert [float(gradient) for gradient in optimizer._clip_gradients([tf.constant(2.)])] == [1.]
    assert optimizer._get_variable_index(variables[1]) == 1
    assert (len(optimizer._trainable_variables), int(optimizer._iterations)) == (2, 1)


def test_the_trainer_builds_and_reduces_by_these_names():
    model = functional()
    trainer = next(kind for kind in type(model).__mro__ if "_maybe_symbolic_build" in vars(kind))
    assert trainer is tf_trainer.TensorFlowTrainer
    reduced = tf_trainer.reduce_per_replica({"loss": tf.constant(2.)}, tf.distribute.get_strategy(), "auto")
    assert float(reduced["loss"]) == 2.


def test_the_global_seed():
    tf.random.set_seed(7)
    assert _keras.global_seed() == 7


def draw():
    return (random.random(), np.random.rand(), float(tf.random.uniform([])), float(keras.random.uniform([])))


def start():
    keras.utils.clear_session()                                             # Keras 3.12 keeps its generator otherwise
    keras.utils.set_random_seed(1)
    return draw()


@pytest.mark.slow
def test_randomness_is_put_back():
    expected = start(), draw()
    first = start()
    with _keras.same_randomness():
        draw()
    assert (first, draw()) == expected
    assert draw() not in expected                                           # negative control


@pytest.mark.slow
def test_a_seed_holds_inside_alone():
    expected = start(), draw()
    first = start()
    inside = []
    for seed in (5, 5, 6):
        with _keras.seeded(seed):
            inside.append(draw())
    assert (first, draw()) == expected
    assert inside[0] == inside[1]
    assert inside[0] != inside[2]


def test_what_was_given_to_compile_is_known():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"], steps_per_execution=3)
    given = _keras.compile_arguments(model)
    known = [given[name] for name in ("loss", "metrics", "steps_per_execution")]
    assert known == ["mse", ["mae"], 3]
    again = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    again.compile(**given)


def test_xla_is_noticed():
    seen = []
    tf.function(lambda: seen.append(_keras.in_xla()) or tf.zeros([]), jit_compile=True)()
    tf.function(lambda: seen.append(_keras.in_xla()) or tf.zeros([]))()
    assert seen == [True, False]


def test_no_other_keras_is_taken(run_python):
    done = run_python("import keras; keras.__version__ = '3.14.0'; import tfopt.schedules", check=False)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: tfopt needs Keras >= 3.15. Received")


# What is relied on, by name: where a new version of Keras lacks one, the sentence says what it is used for

SOURCES = {
    "ArrayDataAdapter": "keras.src.trainers.data_adapters.array_data_adapter",
    "CallbackList": "keras.src.callbacks.callback_list", "Dataset": "tensorflow.python.data.ops.dataset_ops",
    "EpochIterator": "keras.src.trainers.epoch_iterator",
    "Functional": "keras.src.models.functional keras.src.ops.function",
    "KerasTensor": "keras.src.ops.node keras.src.backend.common.masking", "Layer": "keras.src.layers.layer",
    "Node": "keras.src.ops.node", "Operation": "keras.src.ops.operation keras.src.ops.node",
    "Optimizer": "keras.src.optimizers.base_optimizer",
    "Sequential": "keras.src.models.sequential",
    "TFEpochIterator": "keras.src.backend.tensorflow.trainer",
    "TensorFlowTrainer": "keras.src.backend.tensorflow.trainer",
    "Trainer": "keras.src.trainers.trainer keras.src.backend.tensorflow.trainer",
    "Variable": "keras.src.backend.common.variables",
}
USES = [(owner, name, use) for owner, names, use in
        re.findall(r"^    (\w+)\.(_\w+(?:, _\w+)*)\S* .*?(?:3\.15|TF 2\.21) +(.*)$", _keras.__doc__, re.MULTILINE)
        for name in names.split(", ")]


def holds(owner, name):
    sources = (inspect.getsource(importlib.import_module(module)) for module in SOURCES[owner].split())
    return any(re.search(rf"\b{name}\b", source) for source in sources)


@pytest.mark.parametrize(("owner", "name", "use"), USES, ids=[f"{owner}.{name}" for owner, name, _ in USES])
def test_a_private_name_is_there(owner, name, use):
    assert holds(owner, name), f"Keras {keras.__version__}, TensorFlow {tf.__version__}: no {owner}.{name}, {use}"


def test_a_name_that_is_gone_is_seen():
    """Negative control."""
    assert not holds("Trainer", "_compile_lost")
    assert len(USES) >= 25


def test_layers_know_whether_they_train_also_those_without_the_argument():
    seen = []

    class Plain(keras.layers.Layer):
        def call(self, x):
            seen.append(_keras.is_training())
            return x

    model = keras.Sequential([keras.Input((2,)), keras.Sequential([keras.Input((2,)), Plain()])])
    seen.clear()
    for options in ({}, {"training": True}, {"training": False}):
        model(np.ones((1, 2)), **options)
    assert seen == [False, True, False]
    assert not _keras.is_training()


def test_a_layer_reads_tensors_in_place_of_its_variables():
    layer = keras.layers.Dense(2, use_bias=False, dtype="mixed_float16")
    layer.build((None, 3))
    kernel, given, x = layer.kernel, [None], np.ones((1, 3))
    before = layer(x).numpy()
    _keras.substitute(layer, [(layer, kernel, lambda: given[0])])
    np.testing.assert_array_equal(layer(x), before)
    given[0] = tf.zeros((3, 2))
    np.testing.assert_array_equal(layer(x), [[0, 0]])
    assert layer.kernel is kernel
    given[0] = tf.zeros((4, 4))
    with pytest.raises(tf.errors.InvalidArgumentError):
        layer(x)
    assert layer.kernel is kernel                          # also after a call that fails
