"""What every wrapped model owes its user: it is the model that was wrapped, in each respect."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import cluster, distill, prune


def net(batch_norm=True):
    layers = keras.layers
    image, extra = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="extra")
    x = layers.Conv2D(8, 3, use_bias=not batch_norm, kernel_regularizer="l2", name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L1(1e-3), name="hidden")(
        layers.Concatenate()([x, extra]))
    return keras.Model({"image": image, "extra": extra}, layers.Dense(3, name="logits")(x), name="net")


def data(rng, n=48):
    x = {"image": rng.normal(size=(n, 8, 8, 1)).astype("float32"), "extra": rng.normal(size=(n, 3)).astype("float32")}
    return x, rng.integers(0, 3, n)


def compile_(model, optimizer=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], **options)
    return model


def fit(model, x, y, epochs=2, **options):
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options).history["loss"]


WRAPS = {"prune": lambda model: prune.wrap(model, 0.5, end=6), "cluster": lambda model: cluster.wrap(model, 4),
         "cluster, zeros kept": lambda model: cluster.wrap(model, 4, preserve_sparsity=True)}
wrapped_kinds = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
both_kinds = pytest.mark.parametrize("wrap", [WRAPS["prune"], WRAPS["cluster"]], ids=["prune", "cluster"])


def strip(wrapped):
    return (prune if "Pruned" in type(wrapped).__name__ else cluster).strip(wrapped)


@pytest.mark.slow
@wrapped_kinds
def test_the_model_passed_in_is_unchanged(rng, wrap):
    model, (x, y) = compile_(net()), data(rng)
    before, flags = [w.copy() for w in model.get_weights()], [layer.trainable for layer in model.layers]
    optimizer = model.optimizer
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert [layer.trainable for layer in model.layers] == flags
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 0


@pytest.mark.slow
@wrapped_kinds
def test_a_new_process_loads_it_and_trains_on(rng, wrap, tmp_path, run_python):
    model, (x, y) = net(), data(rng)
    model.get_layer("hidden").kernel.assign(np.where(rng.random((11, 8)) < 0.5, 0, model.get_layer("hidden").kernel))
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y, 1)
    wrapped.save(tmp_path / "wrapped.keras")
    before = wrapped.predict(x, verbose=0)
    losses = fit(wrapped, x, y, 2)
    np.savez(tmp_path / "data.npz", y=y, before=before, losses=losses, after=wrapped.predict(x, verbose=0), **x)
    run_python("""
import sys, keras, numpy as np
from tfopt import cluster, distill, prune
data = np.load(sys.argv[1] + "/data.npz")
x = {"image": data["image"], "extra": data["extra"]}
model = keras.models.load_model(sys.argv[1] + "/wrapped.keras")
np.testing.assert_array_equal(model.predict(x, verbose=0), data["before"])
losses = model.fit(x, data["y"], batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
np.testing.assert_allclose(losses, data["losses"], rtol=1e-6)
np.testing.assert_allclose(model.predict(x, verbose=0), data["after"], atol=1e-6)
""", tmp_path)


@pytest.mark.slow
@wrapped_kinds
def test_checkpoints_and_backups_work(rng, wrap, tmp_path):
    wrapped, (x, y) = compile_(wrap(net())), data(rng)
    fit(wrapped, x, y, 2, validation_data=(x, y), callbacks=[
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)])
    reloaded = keras.models.load_model(tmp_path / "1.keras")
    assert np.isfinite(reloaded.predict(x, verbose=0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prune.wrap(model, 0.5, end=6)", "cluster.wrap(model, 4)"])
def test_two_devices_equal_one(run_python, kind):
    run_python(f"""
import keras, numpy as np
from tfopt import cluster, distill, prune

def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu", kernel_regularizer="l2"),
                             keras.layers.Dense(3)])

def train(scope):
    with scope:
        model = net()
        wrapped = {kind}
        wrapped.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(64, 6)), rng.integers(0, 3, 64))).batch(16)
    losses = wrapped.fit(data, epochs=3, verbose=0).history["loss"]
    strip = (prune if "prune" in {kind!r} else cluster).strip
    return losses, strip(wrapped).get_weights()

import contextlib
losses, weights = train(contextlib.nullcontext())
losses2, weights2 = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(losses2, losses, rtol=1e-5)
for one, two in zip(weights, weights2):
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_array_equal(two == 0, one == 0)
""", devices=2)


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_every_dtype_policy_trains(rng, wrap, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = data(rng)
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y)
    plain = strip(wrapped)
    kernel = np.asarray(plain.get_layer("hidden").kernel, "float32")
    if wrap is WRAPS["prune"]:
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.03)     # of equal magnitudes TFMOT keeps all
    else:
        assert np.unique(kernel).size <= 4
    assert plain.get_layer("hidden").dtype_policy.name == policy
    np.testing.assert_array_equal(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0))


OPTIMIZERS = {
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "average": lambda: keras.optimizers.SGD(0.1, use_ema=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    "two": lambda: keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(
        keras.optimizers.Adam(1e-2), {".*logits.*": keras.optimizers.SGD(1e-2)})),
    "schedule-free": lambda: keras.optimizers.ScheduleFreeAdamW(1e-2), "muon": lambda: keras.optimizers.Muon(1e-3)}


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer(rng, wrap, optimizer):
    wrapped, (x, y) = compile_(wrap(net()), optimizer()), data(rng, 96)
    fit(wrapped, x, y, 1)
    plain = strip(wrapped)
    kernel = plain.get_layer("hidden").kernel.numpy()
    assert (kernel == 0).mean() == 0.5 if wrap is WRAPS["prune"] else np.unique(kernel).size <= 4
    np.testing.assert_array_equal(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0))


@pytest.mark.slow
def test_steps_of_the_optimizer_count_not_batches(rng):
    wrapped, (x, y) = compile_(prune.wrap(net(), 0.5, end=6), OPTIMIZERS["accumulation"]()), data(rng)
    fit(wrapped, x, y, 1)                                               # six batches, three steps
    with pytest.raises(ValueError, match=r"steps=3\. Train at least 6"):
        prune.strip(wrapped)


class Block(keras.layers.Layer):
    """Without **kwargs and get_config, as most are written."""

    def __init__(self, units):
        super().__init__()
        self.units, self.up, self.down = units, keras.layers.Dense(4 * units, "relu"), keras.layers.Dense(units)

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], 4 * self.units))

    def call(self, x):
        return x + self.down(self.up(x))


class Own(keras.Model):
    """A functional model that trains in a way of its own, and never calls itself."""

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.layers[2](self.layers[1](data[0])) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"own": loss}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block, self.dense = Block(8), keras.layers.Dense(8)

    def call(self, x):
        return self.dense(self.block(x))


def own():
    inputs = keras.Input((8,))
    return Own(inputs, keras.layers.Dense(8, name="last")(Block(8)(inputs)))


def subclassed():
    model = Subclassed()
    model(np.ones((1, 8)))
    return model


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("make", [own, subclassed])
def test_models_of_ones_own_stay_what_they_are(rng, wrap, make):
    """Kernels in a block, a subclass that trains by itself, a model without a graph."""
    model, x = make(), rng.normal(size=(64, 8)).astype("float32")
    wrapped = wrap(model)
    assert isinstance(wrapped, type(model))
    wrapped.compile("adam", "mse")
    history = wrapped.fit(x, x, batch_size=8, epochs=2, verbose=0).history
    assert list(history) == (["own"] if make is own else ["loss"])
    plain = strip(wrapped)
    assert type(plain) is type(model)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0))
    kernels = [w for w in plain.get_weights() if w.ndim == 2][:2]
    assert all((w == 0).mean() == 0.5 if wrap is WRAPS["prune"] else np.unique(w).size <= 4 for w in kernels)


RECURRENT = {"LSTM": lambda: keras.layers.LSTM(6, dropout=0.2), "GRU": lambda: keras.layers.GRU(6),
             "cells": lambda: keras.layers.RNN([keras.layers.LSTMCell(6), keras.layers.GRUCell(5)]),
             "both ways": lambda: keras.layers.Bidirectional(keras.layers.LSTM(6)),
             "einsum": lambda: keras.layers.EinsumDense("abc,cd->abd", (None, 6)),
             "each step": lambda: keras.layers.TimeDistributed(keras.layers.Dense(6))}


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_kernels_of_sequences(rng, wrap, layer):
    model, x = keras.Sequential([keras.Input((5, 4)), layer()]), rng.normal(size=(48, 5, 4)).astype("float32")
    wrapped = wrap(model)
    wrapped.compile("adam", "mse")
    fit(wrapped, x, np.ones(model.predict(x, verbose=0).shape), 1)
    plain = strip(wrapped)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0))
    kernels = [w.numpy() for w in plain.weights if "kernel" in w.path]
    assert all(abs((w == 0).mean() - 0.5) < 0.01 if wrap is WRAPS["prune"] else np.unique(w).size <= 4 for w in kernels)


@pytest.mark.slow
@both_kinds
def test_attention_and_masks(rng, wrap):
    """Padded sequences compute what they did, and all four kernels of attention are treated."""
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8, mask_zero=True, name="words")(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GRU(8)(x)))
    words = rng.integers(1, 20, (48, 6))
    words[::2, 4:] = 0
    wrapped = wrap(model)
    if wrap is WRAPS["prune"]:
        np.testing.assert_allclose(wrapped.predict(words, verbose=0), model.predict(words, verbose=0), atol=1e-6)
    wrapped.compile("adam", "mse")
    fit(wrapped, words, np.ones((48, 2)), 1)
    plain = strip(wrapped)
    np.testing.assert_array_equal(plain.predict(words, verbose=0), wrapped.predict(words, verbose=0))
    kernels = [w.numpy() for w in plain.get_layer("attention").weights if "kernel" in w.path]
    assert len(kernels) == 4
    assert all((w == 0).mean() == 0.5 if wrap is WRAPS["prune"] else np.unique(w).size <= 4 for w in kernels)


@pytest.mark.slow
@both_kinds
def test_frozen_layers_follow(rng, wrap):
    model, (x, y) = net(batch_norm=False), data(rng)
    model.get_layer("hidden").trainable = False
    table = (prune if wrap is WRAPS["prune"] else cluster).plan(model, *[] if wrap is WRAPS["prune"] else [4])
    assert "cannot recover" in table.set_index("layer").why["hidden"]
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y)
    plain = strip(wrapped)
    kernel = plain.get_layer("hidden").kernel.numpy()
    assert not plain.get_layer("hidden").trainable
    assert (kernel == 0).mean() == 0.5 if wrap is WRAPS["prune"] else np.unique(kernel).size <= 4


@both_kinds
def test_lora_is_left_alone(rng, wrap):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, name="tuned"), keras.layers.Dense(3)])
    model.get_layer("tuned").enable_lora(2)
    assert "LoRA" in (prune if wrap is WRAPS["prune"] else cluster).plan(model).set_index("layer").why["tuned"]
    wrapped = wrap(model)
    x = rng.normal(size=(4, 6))
    np.testing.assert_allclose(wrapped.get_layer("tuned")(x), model.get_layer("tuned")(x), atol=1e-6)


@pytest.mark.slow
@both_kinds
def test_penalties_of_activity_count(rng, wrap):
    x, y = rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 3, 32)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activity_regularizer="l2"),
                              keras.layers.Dense(3)])
    wrapped = compile_(wrap(model))
    wrapped(x)
    penalty = float(sum(wrapped.losses))
    assert penalty > 0
    bare = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, wrapped.predict(x, verbose=0))
    assert wrapped.evaluate(x, y, batch_size=32, verbose=0)[0] == pytest.approx(float(bare) + penalty, rel=1e-5)
    fit(wrapped, x, y)


@pytest.mark.slow
@both_kinds
def test_other_files(rng, wrap, tmp_path):
    wrapped, (x, y) = compile_(wrap(net())), data(rng)
    fit(wrapped, x, y, 1)
    expected = wrapped.predict(x, verbose=0)
    wrapped.save_weights(tmp_path / "a.weights.h5")
    again = wrap(net())
    again.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(again.predict(x, verbose=0), expected)
    wrapped.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match="HDF5 file cannot hold a wrapped model"):
        wrapped.save(tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    outer = keras.Sequential([keras.Input((6,)), wrap(sequential(6))])
    outer.save(tmp_path / "outer.keras")
    inner = keras.models.load_model(tmp_path / "outer.keras").layers[-1]
    assert type(inner).__name__ == type(outer.layers[-1]).__name__


def sequential(width=4):
    return keras.Sequential([keras.Input((width,)), keras.layers.Dense(4)])


def tf_keras_model():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.InputLayer((4,)), tf_keras.layers.Dense(2)])


@pytest.mark.parametrize("call", [lambda m: prune.wrap(m, 0.5), lambda m: cluster.wrap(m, 4), prune.plan, cluster.plan])
@pytest.mark.parametrize(("make", "rule"), [
    (lambda: keras.Sequential([keras.layers.Dense(2)]), "the model must be built"),
    (lambda: prune.wrap(sequential(), 0.5), "must be a plain one.*strip"),
    (lambda: cluster.wrap(sequential(), 4), "must be a plain one.*strip"),
    (tf_keras_model, "`model` must be a Keras 3 model")])
def test_what_cannot_be_wrapped_is_refused(call, make, rule):
    with pytest.raises((ValueError, TypeError), match=rule):
        call(make())


@pytest.mark.parametrize("undo", [prune.strip, cluster.strip])
def test_strip_of_a_plain_model_is_refused(undo):
    with pytest.raises(ValueError, match=r"strip: the model must have come from \w+\.wrap"):
        undo(sequential())


@both_kinds
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_it_learns_from_a_teacher(rng, wrap, activation):
    """The distiller finds the logits behind a wrapped student's softmax, and what the wrap promised still holds."""
    def student():
        hidden = keras.layers.Dense(8, "relu", kernel_regularizer="l2", name="hidden")
        return keras.Sequential([keras.Input((6,)), hidden,
                                 keras.layers.Dense(3, activation=activation, name="outputs")])

    x, y = rng.normal(size=(64, 6)), rng.integers(0, 3, 64)
    wrapped = wrap(student())
    distiller = distill.Distiller(student(), wrapped, distill.Logits(4.0))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None))
    history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    kernel = strip(wrapped).get_layer("hidden").kernel.numpy()
    assert (kernel == 0).mean() == 0.5 if wrap is WRAPS["prune"] else np.unique(kernel).size <= 4
