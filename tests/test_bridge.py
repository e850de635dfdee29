"""The twin computes what the original computes, trains as it trains, and gives its weights back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfopt import _bridge, _models

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
    x, twin = batch_of(model, rng), _bridge.to_legacy(shaken(model, rng))
    assert_equal(twin(x, training=False), model(x, training=False))
    clone = tf_keras.models.clone_model(twin)
    clone.set_weights(twin.get_weights())
    assert_equal(clone(x, training=False), model(x, training=False))
    if trains:
        (loss, gradients), (expected, theirs) = loss_and_gradients(twin, x), loss_and_gradients(model, x)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert gradients == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    for w in twin.trainable_weights:
        w.assign(w * 1.5)
    back = _bridge.copy_back(twin, model)
    assert_equal(back(x, training=False), twin(x, training=False))
    return twin


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
    "groups": lambda: images(L.Conv2D(6, 3, groups=3), L.Permute((2, 1, 3)), L.Reshape((36, -1)), L.RepeatVector(2)
                             if False else L.Flatten()),
    "normalizations": lambda: images(L.LayerNormalization(axis=[-1]), L.GroupNormalization(1), L.UnitNormalization(),
                                     L.LayerNormalization(axis=(2, 3), scale=False), L.BatchNormalization(scale=False)),
    "activations": lambda: images(L.Dense(6, activation="silu"), L.LeakyReLU(0.1), L.PReLU(shared_axes=[1, 2]),
                                  L.ReLU(6.0), L.ReLU(negative_slope=0.2, threshold=0.1), L.ELU(0.5), L.Softmax(),
                                  L.Activation("gelu"), L.Rescaling(0.5, 0.1)),
    "other activations": lambda: images(L.Dense(6, activation="hard_silu"), L.Conv2D(3, 1, activation="hard_sigmoid"),
                                        L.Dense(3, activation=keras.activations.leaky_relu)),
    "lstm": lambda: tokens(L.LSTM(3, return_sequences=True), L.GRU(3)),
    "rnn": lambda: tokens(L.SimpleRNN(3, return_sequences=True, go_backwards=True), L.Bidirectional(L.GRU(2))),
    "gru before": lambda: tokens(L.GRU(3, reset_after=False, return_sequences=True), L.GlobalAveragePooling1D()),
    "bidirectional": lambda: tokens(L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum"),
                                    L.TimeDistributed(L.Dense(2)), L.Masking(0.0), L.LSTM(2)),
    "masked normalization": lambda: tokens(L.BatchNormalization(), L.Dense(3), L.GlobalAveragePooling1D()),
    "einsum": lambda: images(L.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d"), L.Dense(2),
                             shape=(6, 3)),
    "penalties": lambda: images(L.Conv2D(3, 2, kernel_regularizer="l1", bias_regularizer=Penalty(0.1)),
                                L.BatchNormalization(gamma_regularizer=keras.regularizers.L2(0.2)),
                                L.Dense(3, kernel_regularizer=Penalty(0.01), activity_regularizer="l2"),
                                L.Dense(2, kernel_regularizer="orthogonal_regularizer", trainable=False)),
    "dropout": lambda: images(L.Dropout(0.0), L.SpatialDropout2D(0.0), L.GaussianNoise(0.0), L.Identity(), L.Dense(2)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_a_layer_tf_keras_has_too(name, rng):
    assert not _bridge.embedded(assert_bridges(NATIVE[name](), rng))


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
    assert len(_bridge.embedded(assert_bridges(CARRIED[name](), rng, trains=name != "spectral"))) == 1
