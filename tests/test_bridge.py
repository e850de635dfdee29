"""The counterpart computes what the original computes, trains as it trains, and gives its weights back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import HealthCheck, given, settings, strategies
from random_graphs import random_batch, random_graph

from tfopt import _bridge, _models
from tfopt._bridge.adopt import Adopted

L = keras.layers


@keras.saving.register_keras_serializable("test_bridge")
class Scaled(L.Layer):
    """A custom layer: a weight, a penalty of its own, a part that does not train."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.supports_masking = units, True
        self.dense = L.Dense(units, kernel_regularizer=keras.regularizers.L2(0.1), kernel_constraint="non_neg")
        self.frozen = L.Dense(units, trainable=False)

    def call(self, x, other=None, factor=1.0, training=False):
        self.add_loss(keras.ops.mean(x) ** 2)
        y = self.dense(x) + self.frozen(x)
        return (y if other is None else y + other) * (2.0 if training else 1.0) * factor

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_bridge")
class Penalty(keras.regularizers.Regularizer):
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return self.strength * keras.ops.square(keras.ops.sum(keras.ops.abs(x)))

    def get_config(self):
        return {"strength": self.strength}


def images(*layers, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *layers])


def tokens(*layers, mask=True):
    return keras.Sequential([keras.Input((6,), dtype="int32"), L.Embedding(5, 4, mask_zero=mask), *layers])


def batch_of(model, rng, rows=4):
    def values(x):
        shape = [rows, *(size or 5 for size in x.shape[1:])]
        if "float" in x.dtype:
            return rng.normal(size=shape).astype(x.dtype)
        return rng.integers(3, size=shape).astype(x.dtype)
    return keras.tree.map_structure(values, _models.require_graph(model, "test").input)


def shaken(model, rng):
    """Gives every weight another value, so that none can be right by accident."""
    for v in model.weights:
        if "float" in v.dtype:
            v.assign(v + 0.1 * np.abs(rng.normal(size=v.shape)))
    return model


def loss_and_gradients(model, x):
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = tf.add_n([tf.reduce_sum(tf.square(tf.cast(y, "float32"))) for y in keras.tree.flatten(outputs)]
                        + [tf.cast(penalty, "float32") for penalty in model.losses])
    variables = [v.value if isinstance(v, keras.Variable) else v for v in model.trainable_variables]
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return float(loss), sorted(float(tf.reduce_sum(tf.abs(tf.convert_to_tensor(g)))) for g in gradients)


def assert_equal(a, b, tolerance=1e-5):
    for mine, theirs in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_allclose(np.asarray(mine, "float64"), np.asarray(theirs, "float64"), rtol=tolerance,
                                   atol=tolerance)


def assert_bridges(model, rng, *, trains=True):
    """Same outputs, same loss and gradients, same again after cloning; comes back exactly."""
    x, counterpart = batch_of(model, rng), _bridge.to_legacy(model)
    assert_equal(counterpart(x, training=False), model(x, training=False))
    clone = tf_keras.models.clone_model(counterpart)
    clone.set_weights(counterpart.get_weights())
    assert_equal(clone(x, training=False), model(x, training=False))
    if trains:
        (loss, gradients), (expected, theirs) = loss_and_gradients(counterpart, x), loss_and_gradients(model, x)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert gradients == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    for w in counterpart.trainable_weights:
        w.assign(w * 1.5)
    back = _bridge.copy_back(counterpart, model)
    assert_equal(back(x, training=False), counterpart(x, training=False))
    return counterpart


NATIVE = {
    "cnn": lambda: images(L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(), L.MaxPooling2D(), L.Flatten(),
                          L.Dense(3, activation="softmax")),
    "strides": lambda: images(L.ZeroPadding2D(((0, 1), (1, 0))), L.Conv2D(4, 3, strides=2, use_bias=False),
                              L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), L.SeparableConv2D(4, 3),
                              L.GlobalAveragePooling2D(keepdims=True)),
    "up": lambda: images(L.Conv2DTranspose(4, 3, strides=2, padding="same"), L.UpSampling2D(2), L.Cropping2D(2),
                         L.AveragePooling2D(3, padding="same"), L.GlobalMaxPooling2D()),
    "one dimension": lambda: images(L.Conv1D(4, 3, padding="causal", dilation_rate=2), L.DepthwiseConv1D(3),
                                    L.SeparableConv1D(4, 2), L.MaxPooling1D(2), L.UpSampling1D(2), L.ZeroPadding1D(1),
                                    L.Cropping1D(1), L.Conv1DTranspose(3, 3), L.GlobalMaxPooling1D(), shape=(24, 3)),
    "three dimensions": lambda: images(L.Conv3D(3, 2), L.AveragePooling3D(2), L.Conv3DTranspose(2, 2),
                                       L.GlobalAveragePooling3D(), shape=(5, 5, 5, 2)),
    "shapes": lambda: images(L.Conv2D(6, 3, groups=3), L.Permute((2, 1, 3)), L.Reshape((36, -1)), L.Flatten(),
                             L.Dense(3), L.RepeatVector(2)),
    "normalizations": lambda: images(L.LayerNormalization(axis=[-1]), L.GroupNormalization(1), L.UnitNormalization(),
                                     L.LayerNormalization(axis=(2, 3), scale=False), L.BatchNormalization(scale=False)),
    "activations": lambda: images(L.Dense(6, activation="silu"), L.LeakyReLU(0.1), L.PReLU(shared_axes=[1, 2]),
                                  L.ReLU(6.0), L.ReLU(negative_slope=0.2, threshold=0.1), L.ELU(0.5), L.Softmax(),
                                  L.Activation("gelu"), L.Rescaling(0.5, 0.1)),
    "other activations": lambda: images(L.Dense(6, activation="hard_silu"), L.Conv2D(3, 1, activation="hard_sigmoid"),
                                        L.Dense(3, activation=keras.activations.leaky_relu)),
    "lstm": lambda: tokens(L.LSTM(3, return_sequences=True), L.TimeDistributed(L.Dense(2)), L.GlobalMaxPooling1D()),
    "gru": lambda: tokens(L.SimpleRNN(3, return_sequences=True, go_backwards=True), L.GRU(3, reset_after=False)),
    "bidirectional": lambda: tokens(L.Bidirectional(L.GRU(2), merge_mode="sum")),
    "masked normalization": lambda: tokens(L.BatchNormalization(), L.Dense(3), L.GlobalAveragePooling1D()),
    "einsum": lambda: images(L.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d"), L.Dense(2),
                             shape=(6, 3)),
    "penalties": lambda: images(L.Conv2D(3, 2, kernel_regularizer="l1", bias_regularizer=Penalty(0.1)),
                                L.BatchNormalization(gamma_regularizer=keras.regularizers.L2(0.2)),
                                L.Dense(3, kernel_regularizer=Penalty(0.01), activity_regularizer="l2"),
                                L.Dense(2, kernel_regularizer="orthogonal_regularizer", trainable=False)),
    "dropout": lambda: images(L.Dropout(0.0), L.SpatialDropout2D(0.0), L.GaussianNoise(0.0), L.Identity(), L.Dense(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_a_layer_tf_keras_has_too(name, rng):
    assert not _bridge.embedded(assert_bridges(shaken(NATIVE[name](), rng), rng))


CARRIED = {
    "custom": lambda: images(L.Conv2D(3, 2), Scaled(4), L.Dense(2)),
    "custom with a mask": lambda: tokens(Scaled(4), L.LSTM(2)),
    "activation": lambda: images(L.Activation("hard_silu"), L.Dense(2)),
    "upsampling": lambda: images(L.UpSampling2D(2, interpolation="bilinear"), L.Dense(2)),
    "lambda": lambda: images(L.Lambda(lambda x: x * 2.0 + 1.0), L.Dense(2)),
    "rms": lambda: images(L.RMSNormalization(), L.Dense(2)),
    "cells": lambda: tokens(L.RNN([L.LSTMCell(3), L.GRUCell(2)])),
    "lstm 2d": lambda: images(L.ConvLSTM2D(2, 2), shape=(3, 5, 5, 2)),
    "channels first": lambda: images(L.BatchNormalization(axis=1), L.Dense(2)),
    "distributed": lambda: tokens(L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3), L.ReLU()]))),
    "spectral": lambda: images(L.SpectralNormalization(L.Dense(3)), L.Dense(2)),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_layer_that_is_carried(name, rng):
    assert len(_bridge.embedded(assert_bridges(shaken(CARRIED[name](), rng), rng, trains=name != "spectral"))) == 1


def branches():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    shared = L.Dense(6, activation="relu", name="shared")
    x, y = shared(a), shared(b)
    joined = L.Concatenate()([L.Add()([x, y]), L.Multiply()([x, b]), L.Subtract()([x, y]), L.Maximum()([a, y])])
    return keras.Model({"a": a, "b": b}, {"first": L.Dense(2)(joined), "second": [joined, a]})


def nests():
    deep = keras.Sequential([keras.Input((4,)), L.Dense(4, name="one"), L.ReLU()], name="deep")
    i = keras.Input((4,))
    inner = keras.Model(i, [deep(i) + i, L.Dense(3, name="one")(i)], name="inner")
    x = keras.Input((4,))
    first, other = inner(x)
    second, _ = inner(first * 2.0)
    return keras.Model(x, [second, other, deep(first), L.Dense(2, name="one")(second)])


def operations():
    x = keras.Input((8, 8, 4))
    y = L.Conv2D(4, 1)(x)
    z = keras.ops.relu(y + x) * y / 2.0 + keras.ops.mean(x, axis=(1, 2), keepdims=True)
    z = keras.ops.concatenate([z[:, ::2, 1:5, :], keras.ops.tanh(y)[:, 4:, ..., :][:, :, :4]], axis=1)
    z = keras.ops.pad(z, [[0, 0], [1, 0], [0, 1], [0, 0]]) ** 2 - np.linspace(0, 1, 4, dtype="float32")
    parts = keras.ops.split(z, 2, axis=-1)
    return keras.Model(x, [parts[0], 1.0 - keras.ops.einsum("bijc,bkjc->bikc", parts[1], parts[1]),
                           keras.ops.cast(keras.ops.argmax(z, axis=-1), "float32")])


def attention():
    i = keras.Input((6,), dtype="int32")
    x = L.Embedding(5, 8, mask_zero=True)(i) + L.Embedding(6, 8)(keras.ops.arange(6))
    y = L.Embedding(5, 8, mask_zero=True)(i)
    y = L.LayerNormalization()(L.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True) + x)
    z, scores = L.MultiHeadAttention(2, 4, value_dim=3)(
        y, x, attention_mask=keras.ops.not_equal(i, 0)[:, None, :], return_attention_scores=True)
    return keras.Model(i, [L.Attention(use_scale=True)([z, y]), scores, L.GlobalAveragePooling1D()(y)])


def masks():
    i, j = keras.Input((6,), dtype="int32"), keras.Input((6, 4))
    x, m = L.Embedding(5, 4, mask_zero=True)(i), L.Masking(0.0)(keras.ops.relu(j))
    out, state = L.GRU(3, return_sequences=True, return_state=True)(L.Concatenate()([x, m]))
    last = L.GRU(3)(j, mask=keras.ops.greater(i, 1), initial_state=state)
    return keras.Model([i, j], [L.GlobalAveragePooling1D()(L.Dropout(0.0)(out)), last])


def transformer():
    i = keras.Input((6,), dtype="int32")
    x = L.Embedding(5, 8, mask_zero=True)(i)
    for _ in range(2):
        x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
        x = L.Add()([x, L.Dense(8)(L.Dense(16, activation="gelu")(x))])
    return keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


def partly_used():
    i, j = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model([i, j], [L.Dense(3, name="left")(i), L.Dense(3, name="right")(j)], name="inner")
    x = keras.Input((4,))
    return keras.Model(x, inner([L.Dense(4)(x), L.Dense(4, name="idle")(x)])[0])


def constants():
    x, y = keras.Input((4, 3)), keras.Input((4, 3))
    return keras.Model([x, y], [Scaled(3)(x, other=y, factor=2.5), keras.ops.stack([x, y * -1.5], axis=1)])


GRAPHS = [branches, nests, operations, attention, transformer, masks, constants]


@pytest.mark.slow
@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_a_graph(make, rng):
    model = shaken(make(), rng)
    counterpart = assert_bridges(model, rng, trains=make is not masks)      # slow, and no other gradients
    assert not any(isinstance(layer, tf_keras.Model) for layer in counterpart.layers)
    assert {_bridge.legacy_name(path) for path, layer in _models.layers(model).items() if layer.weights} <= {
        layer.name for layer in counterpart.layers}


def test_what_no_output_depends_on_is_left_alone(rng):
    model = partly_used()
    counterpart = assert_bridges(model, rng, trains=False)
    assert {layer.name for layer in counterpart.layers} & {"idle", "inner.right", "inner.left"} == {"inner.left"}
    assert_equal(_bridge.copy_back(counterpart, model).get_layer("idle").kernel, model.get_layer("idle").kernel)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategies.integers(0, 10**6))
def test_random_graphs(seed):
    model = random_graph(seed)
    x, counterpart = random_batch(model, seed), _bridge.to_legacy(model)
    assert_equal(counterpart(x, training=False), model(x, training=False))
    for mine, theirs in zip(_bridge.copy_back(counterpart, model).get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_operations_that_are_layers_become_layers():
    x = keras.Input((4,))
    y = L.Dense(4)(x)
    counterpart = _bridge.to_legacy(keras.Model(x, keras.ops.relu(keras.ops.concatenate([x + y, x * y, x - y]))))
    assert not _bridge.embedded(counterpart)


def test_names():
    paths = ["a", "a_b", "a/b", "a.b", "a b", "a-b", "_a", "a/_b", "é", "", "a__b", "A"]
    names = [_bridge.legacy_name(path) for path in paths]
    assert names[:3] == ["a", "a_b", "a.b"]
    assert len(set(names)) == len(names)
    with tf.Graph().as_default():
        for name in names:
            with tf.name_scope(name):
                tf.constant(1)


@pytest.mark.parametrize("path", ["a", "inner/b"])
def test_odd_names_come_back(path, rng):
    inner = keras.Sequential([keras.Input((3,), name="_in"), L.Dense(3, name="_odd name")], name="in.ner")
    x = keras.Input((3,), name="a")
    assert_bridges(keras.Model(x, L.Dense(2, name="_odd name")(inner(x)) + 1.0), rng)


def test_frozen_layers_stay_frozen(rng):
    inner = keras.Sequential([keras.Input((3,)), L.Dense(3), L.BatchNormalization()], name="inner")
    inner.trainable = False
    model = keras.Sequential([inner, Scaled(3), L.Dense(2, kernel_regularizer="l2", trainable=False), L.Dense(1)])
    model.build((None, 3))
    counterpart = assert_bridges(model, rng)
    assert len(counterpart.trainable_weights) == len(model.trainable_weights) == 4


def test_nothing_of_the_model_or_the_random_state_changes(rng):
    model = images(L.Conv2D(2, 3), L.Dropout(0.5), Scaled(2))
    model.compile("sgd", "mse")
    before = model.get_weights(), [v.numpy() for layer in model.layers for v in layer.variables]
    keras.utils.set_random_seed(1)
    expected = float(tf.random.uniform(())), float(keras.random.uniform(())), np.random.rand()
    keras.utils.set_random_seed(1)
    _bridge.copy_back(_bridge.to_legacy(model), model)
    assert (float(tf.random.uniform(())), float(keras.random.uniform(())), np.random.rand()) == expected
    assert_equal(before, (model.get_weights(), [v.numpy() for layer in model.layers for v in layer.variables]))
    assert model.compiled


def test_constraints_act_and_can_be_found(rng):
    model = images(L.Conv2D(2, 3, kernel_constraint=keras.constraints.MaxNorm(0.1)), Scaled(2), L.Dense(1))
    counterpart = _bridge.to_legacy(model)
    assert sum(w.constraint is not None for w in counterpart.weights) == 2
    counterpart.compile("sgd", "mse")
    counterpart.fit(rng.normal(size=(8, 8, 8, 3)), rng.normal(size=(8, 6, 6, 1)), verbose=0)
    assert np.linalg.norm(counterpart.layers[1].get_weights()[0], axis=0).max() <= 0.1001


class Unchanged(Adopted):
    def rewrite(self, counterpart, base):
        return counterpart


def test_constraints_act_in_an_adopted_counterpart(rng):
    model = images(L.Conv2D(2, 3, kernel_constraint=keras.constraints.MaxNorm(0.1)), Scaled(2), L.Dense(1))
    x, y = rng.normal(size=(8, 8, 8, 3)), rng.normal(size=(8, 6, 6, 1))
    adopted, losses = Unchanged(model, {}), []
    for net in (model, adopted):
        net.compile("sgd", "mse")
        losses.append(net.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    back = _bridge.copy_back(adopted.legacy, model)
    for mine, theirs in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_counterpart_trains_as_its_original(rng):
    x, y = rng.normal(size=(32, 8, 8, 3)).astype("float32"), rng.normal(size=(32, 2)).astype("float32")
    model = images(L.Conv2D(4, 3, kernel_regularizer="l2"), L.BatchNormalization(), Scaled(4), L.Flatten(), L.Dense(2))
    counterpart = _bridge.to_legacy(model)
    losses = []
    for module, net in ((keras, model), (tf_keras, counterpart)):
        net.compile(module.optimizers.SGD(0.01), "mse")
        losses.append(net.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[0][-1] < 0.9 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_dropout_and_random_layers_act_in_training_alone(rng):
    model = images(L.RandomFlip(seed=1), L.Dropout(0.5), L.Lambda(lambda x: keras.random.dropout(x, 0.0) + 1))
    x, counterpart = rng.normal(size=(4, 8, 8, 3)).astype("float32"), _bridge.to_legacy(model)
    assert_equal(counterpart(x, training=False), x + 1)
    assert np.mean(np.isclose(counterpart(x, training=True), 1)) == pytest.approx(0.5, abs=0.1)
    before = [w.numpy() for w in counterpart.weights]
    assert len(before) == 1                                  # the state of RandomFlip's generator
    counterpart.predict(x, verbose=0)
    assert_equal(before, [w.numpy() for w in counterpart.weights])
    counterpart(x, training=True)
    assert np.any(before[0] != counterpart.weights[0].numpy())


def test_adapted_normalization(rng):
    layer = L.Normalization(axis=-1)
    layer.adapt(rng.normal(3.0, 2.0, size=(64, 8, 8, 3)))
    model = images(layer, L.Dense(2))
    assert_bridges(model, rng)


def test_an_adapted_vocabulary(rng):
    layer = L.TextVectorization(output_sequence_length=3)
    layer.adapt(["the cat", "the dog"])
    x = keras.Input((), dtype="string")
    model = keras.Model(x, L.Embedding(5, 2)(layer(x)))
    counterpart, words = _bridge.to_legacy(model), tf.constant(["the dog", "a cat"])
    assert_equal(counterpart(words), model(words))
    assert_equal(_bridge.copy_back(counterpart, model)(words), model(words))


def test_inputs_of_other_kinds(rng):
    inner = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3)])
    x, y = keras.Input((8, 8, 3), dtype="uint8"), keras.Input(batch_shape=(4, 5, 3))
    whole = keras.Input((5,))                                          # Embedding takes whole numbers in floats, too
    model = keras.Model([x, y, whole], [inner(x), L.LSTM(2, stateful=True)(y), L.Embedding(3, 2)(abs(whole) // 9)])
    assert_equal(_bridge.to_legacy(model)(batch := batch_of(model, rng)), model(batch))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_the_policy_is_kept_unless_another_is_asked_for(policy, rng):
    keras.config.set_dtype_policy(policy)
    try:
        model = images(L.Conv2D(4, 3), L.BatchNormalization(), L.RMSNormalization(), L.Dense(2, dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    x, counterpart = rng.normal(size=(2, 8, 8, 3)), _bridge.to_legacy(model)
    assert counterpart.layers[1].dtype_policy.name == counterpart.layers[3].dtype_policy.name == policy
    assert counterpart.layers[4].compute_dtype == "float32"
    assert_equal(counterpart(x), model(x), 0.05)
    plain = _bridge.to_legacy(model, dtype="float32")
    assert {layer.compute_dtype for layer in plain.layers[1:]} == {"float32"}
    assert plain.layers[3].inner.compute_dtype == "float32"
    assert_equal(plain(x), model(x), 0.05)


def test_a_counterpart_is_saved_and_loaded(tmp_path, rng):
    model = images(L.Conv2D(2, 3, activation="hard_silu", kernel_regularizer=Penalty(0.1)), Scaled(2))
    counterpart = _bridge.to_legacy(shaken(model, rng))
    counterpart.save(tmp_path / "counterpart.keras")
    loaded = tf_keras.models.load_model(tmp_path / "counterpart.keras")
    x = batch_of(model, rng)
    assert_equal(loaded(x, training=True), counterpart(x, training=True))
    assert_equal(loaded.losses, counterpart.losses)


def test_two_devices(run_python):
    run_python("""
import keras, numpy as np, tf_keras
from tfopt import _bridge
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_constraint="non_neg"),
                              keras.layers.RMSNormalization(), keras.layers.Dense(1)])
counterpart = _bridge.to_legacy(model)
assert all(isinstance(w, tf.distribute.DistributedValues) for w in counterpart.weights), counterpart.weights
x, y = np.random.rand(16, 4).astype("float32"), np.random.rand(16, 1).astype("float32")
with strategy.scope():
    counterpart.compile("sgd", "mse")
    model.compile("sgd", "mse")
mine, theirs = (net.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
                for net in (counterpart, model))
np.testing.assert_allclose(mine, theirs, rtol=1e-5)
back = _bridge.copy_back(counterpart, model)
np.testing.assert_allclose(back.get_weights()[0], model.get_weights()[0], rtol=1e-5)
assert back.get_weights()[0].min() >= 0
""", devices=2)


@pytest.mark.slow
def test_the_environment_is_left_alone(run_python):
    print(run_python("""
import os, tensorflow as tf
before = dict(os.environ)
from tfopt import _bridge
import keras, sys
assert dict(os.environ) == before
assert tf.keras.layers.Dense is keras.layers.Dense
assert "tensorflow_model_optimization" not in sys.modules
""", fork=False, TF_CPP_MIN_LOG_LEVEL="3"))


class Local(L.Layer):
    """Nobody registered this class."""

    def call(self, x):
        return x * 2.0


def test_an_unregistered_layer_is_carried(rng):
    assert_bridges(images(Local(), L.Dense(2)), rng)


def test_one_black_box_with_two_meanings_is_refused():
    x, layer = keras.Input((4, 3)), Scaled(3, name="twice")
    with pytest.raises(ValueError, match=r"called with the same constants everywhere\. Received: layer='twice'"):
        _bridge.to_legacy(keras.Model(x, layer(x, factor=2.0) + layer(x, factor=3.0)))


def test_a_difference_is_found_and_named(monkeypatch, rng):
    """Negative control of the parity check: a translation that forgets the activation does not pass."""
    from tfopt._bridge import translate

    monkeypatch.setattr(translate, "activation", lambda function: "linear")
    inner = keras.Sequential([keras.Input((8, 8, 2)), L.Conv2D(2, 3, name="second", activation="relu")], name="inner")
    with pytest.raises(ValueError, match=r"^here needs a tf_keras counterpart that computes the same, and that "
                       r"of the layer "
                                         r"inner/second \(Conv2D\) does not\. Received: difference=\d"):
        _bridge.to_legacy(images(L.Conv2D(2, 1), inner, L.Flatten(), L.Dense(2)), "here")


def test_a_missing_layer_is_refused():
    model, other = images(L.Dense(2, name="one"), L.Dense(2, name="two")), images(L.Dense(2, name="one"))
    with pytest.raises(ValueError, match=r"needs the counterpart of every layer with weights\. "
                       r"Received: missing=\['two'\]"):
        _bridge.copy_back(_bridge.to_legacy(other), model)


def test_no_graph_is_refused():
    with pytest.raises(ValueError, match=r"^here needs a built model"):
        _bridge.to_legacy(keras.Sequential([L.Dense(2)]), "here")
    with pytest.raises(TypeError, match=r"^here needs a Keras 3 model"):
        _bridge.to_legacy(tf_keras.Sequential([tf_keras.layers.Dense(2)]), "here")
