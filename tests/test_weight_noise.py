"""Weight noise: its size equals the closed form, its gradient reaches the exact weights, inference is without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import callbacks, cluster, distill, prune, quantize, regularizers

layers = keras.layers


def net(dropout=True, **options):
    return keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu", name="hidden", **options),
                             layers.BatchNormalization(name="bn"), *([layers.Dropout(0.3)] if dropout else []),
                             layers.Dense(3, name="logits")])


def data(rng, n=48):
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def fit(model, x, y, epochs=2, **options):
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options).history["loss"]


def draws(model):
    return [int(variable) for variable in model.variables if "draws" in variable.name]


def linear(units=4000, inputs=5, **options):
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(units, **options)])


# the noise


@pytest.mark.parametrize(("relative_to", "scale"), [("max", lambda w: abs(w).max()), ("std", np.std),
                                                    (None, lambda w: 1)])
@pytest.mark.parametrize("jit", [False, True])
def test_the_variance_of_the_outputs_is_that_of_the_closed_form(relative_to, scale, jit, rng):
    """Of x (W + sigma E) it is sigma^2 |x|^2; the outputs are independent and normal."""
    model, x = linear(), rng.normal(size=(1, 5)).astype("float32")
    noisy = regularizers.weight_noise(model, 0.1, relative_to=relative_to, seed=1)
    outputs = tf.function(lambda x: noisy(x, training=True), jit_compile=jit)
    kernel = model.layers[0].kernel.numpy().astype(float)
    found = (outputs(x) - model(x)).numpy().ravel() / (0.1 * scale(kernel) * np.linalg.norm(x))
    assert found.std() == pytest.approx(1, abs=0.04)
    assert found.mean() == pytest.approx(0, abs=0.06)
    assert (abs(found) < 1).mean() == pytest.approx(0.6827, abs=0.03)
    again = (outputs(x) - model(x)).numpy().ravel()
    assert abs(np.corrcoef(found, again)[0, 1]) < 0.06                  # each call draws anew


def test_no_kernel_has_the_noise_of_another_or_of_another_seed():
    inputs = keras.Input((50,))
    model = keras.Model(inputs, [layers.Dense(40, use_bias=False)(inputs) for _ in range(3)])
    noise = []
    for seed in range(3):
        noisy = regularizers.weight_noise(model, 0.1, relative_to=None, seed=seed)
        found = noisy(np.eye(50, dtype="float32"), training=True)
        noise += [np.ravel(a - b) for a, b in zip(found, model.get_weights(), strict=True)]
    assert abs(np.corrcoef(noise) - np.eye(9)).max() < 0.1                # of 2,000 values: 0.02 is usual


def test_the_gradient_is_that_of_the_noisy_weights_and_moves_the_exact_ones(rng):
    """One step of SGD on a linear model with squared error, in float64 by hand."""
    model, x, y = linear(3, 4, use_bias=False), rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    seen, trained = (regularizers.weight_noise(model, 0.2, seed=5) for _ in range(2))
    with_noise = seen(np.eye(4, dtype="float32"), training=True).numpy().astype(float)
    exact = model.get_weights()[0].astype(float)
    assert abs(with_noise - exact).max() > 0.05
    trained.compile(keras.optimizers.SGD(0.5), "mse")
    trained.fit(x, y, batch_size=8, verbose=0)
    slope = x.T @ (x @ with_noise - y) * 2 / y.size
    np.testing.assert_allclose(trained.layers[0].kernel, exact - 0.5 * slope, atol=1e-6)
    control = x.T @ (x @ exact - y) * 2 / y.size
    assert abs(slope - control).max() > 1e-3                            # negative control: the gradient without noise


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_noise_trains_as_the_plain_model(optimizer, rng):
    x, y = data(rng)
    losses, weights = [], []
    for change in (lambda model: model, lambda model: regularizers.weight_noise(model, 0)):
        keras.utils.set_random_seed(1)
        model = compiled(change(net(kernel_regularizer="l2")), optimizer)
        losses.append(fit(model, x, y, 3))
        weights.append([variable.numpy() for variable in model.trainable_variables])
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.slow
def test_inference_is_exact_before_and_after_training(rng):
    model, (x, y) = net(), data(rng)
    before = [weight.copy() for weight in model.get_weights()]
    noisy = compiled(regularizers.weight_noise(model, 0.1))
    np.testing.assert_array_equal(noisy.predict(x, verbose=0), model.predict(x, verbose=0))
    fit(noisy, x, y)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)                        # the model passed in
    plain = compiled(regularizers.strip(noisy))
    assert type(plain) is type(model)
    assert not draws(plain)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), noisy.predict(x, verbose=0))
    assert plain.evaluate(x, y, verbose=0) == noisy.evaluate(x, y, verbose=0)
    frozen = keras.Model(plain.inputs[0], plain.layers[0].output)
    np.testing.assert_array_equal(frozen(x, training=True), frozen(x))  # no noise is left in training


def test_penalties_are_those_of_the_exact_weights(rng):
    model = regularizers.add(net(), "l2")
    noisy = regularizers.weight_noise(model, 0.5)
    noisy(data(rng)[0], training=True)
    assert float(sum(noisy.losses)) == float(sum(model.losses))


@pytest.mark.slow
def test_a_part_of_the_model_is_noisy_too(rng):
    """As for a distiller that reads features: the noise is in the layers, whoever calls them."""
    x, y = data(rng)
    noisy = regularizers.weight_noise(net(), 0.1)
    features = keras.Model(noisy.inputs[0], noisy.get_layer("hidden").output)
    assert abs(features(x, training=True) - features(x)).numpy().max() > 0.01
    distiller = distill.Distiller(net(), noisy, distill.Features({"hidden": "hidden"}))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(x, y, batch_size=8, verbose=0)
    assert draws(noisy) == [7, 6]


# seeds, files, restarts


def test_the_seed_decides(rng):
    model, x = net(), data(rng)[0]

    def outputs(seed=None, random=None):
        if random is not None:
            keras.utils.set_random_seed(random)
        noisy = regularizers.weight_noise(model, 0.1, seed=seed)
        return keras.Model(noisy.inputs[0], noisy.get_layer("hidden").output)(x, training=True).numpy()

    np.testing.assert_array_equal(outputs(seed=1), outputs(seed=1))
    np.testing.assert_array_equal(outputs(random=1), outputs(random=1))
    assert abs(outputs(seed=1) - outputs(seed=2)).max() > 0.01
    assert abs(outputs(random=1) - outputs()).max() > 0.01


def test_kernels_of_one_shape_have_noise_of_their_own():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, use_bias=False), layers.Dense(64, use_bias=False)])
    for layer in model.layers:
        layer.kernel.assign(np.eye(64))
    noisy, x = regularizers.weight_noise(model, 0.1, seed=1), np.eye(64, dtype="float32")
    first, second = (noisy.layers[i](x, training=True).numpy().ravel() for i in (0, 1))
    assert abs(np.corrcoef(first[x.ravel() == 0], second[x.ravel() == 0])[0, 1]) < 0.06


@pytest.mark.slow
def test_a_new_process_loads_it_and_trains_on(rng, tmp_path, run_python):
    noisy, (x, y) = compiled(regularizers.weight_noise(net(dropout=False), 0.1)), data(rng)
    fit(noisy, x, y, 1)
    noisy.save(tmp_path / "noisy.keras")
    before = noisy.predict(x, verbose=0)
    losses = fit(noisy, x, y, 2)
    np.savez(tmp_path / "data.npz", x=x, y=y, before=before, losses=losses, after=noisy.predict(x, verbose=0))
    run_python("""
import sys, keras, numpy as np
from tfopt import regularizers
data = np.load(sys.argv[1] + "/data.npz")
model = keras.models.load_model(sys.argv[1] + "/noisy.keras")
np.testing.assert_array_equal(model.predict(data["x"], verbose=0), data["before"])
losses = model.fit(data["x"], data["y"], batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
np.testing.assert_allclose(losses, data["losses"], rtol=1e-6)
plain = regularizers.strip(model)
np.testing.assert_allclose(plain.predict(data["x"], verbose=0), data["after"], atol=1e-6)
""", tmp_path)


@pytest.mark.slow
def test_weights_alone_and_exports(rng, tmp_path):
    noisy, (x, y) = compiled(regularizers.weight_noise(net(), 0.1)), data(rng)
    fit(noisy, x, y, 1)
    noisy.save_weights(tmp_path / "a.weights.h5")
    again = regularizers.weight_noise(net(), 0.1)
    again.load_weights(tmp_path / "a.weights.h5")
    assert draws(again) == draws(noisy) == [6, 6]
    np.testing.assert_array_equal(again.predict(x, verbose=0), noisy.predict(x, verbose=0))
    noisy.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(x), noisy.predict(x, verbose=0), atol=1e-6)


class BrokenOffError(Exception):
    pass


class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 9:
            raise BrokenOffError


@pytest.mark.slow
def test_a_broken_training_resumes_with_the_same_noise(rng, tmp_path):
    x, y = data(rng)

    def train(*acting):
        keras.utils.set_random_seed(3)
        noisy = compiled(regularizers.weight_noise(net(), 0.1))
        history = noisy.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=list(acting)).history["loss"]
        return history, [variable.numpy() for variable in noisy.variables]

    whole = train()
    with pytest.raises(BrokenOffError):
        train(callbacks.Resume(tmp_path, every=2), Break())
    resumed = train(callbacks.Resume(tmp_path, every=2))
    assert whole[0] == resumed[0]
    for one, two in zip(whole[1], resumed[1], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_two_devices_train_as_one(run_python):
    """Both replicas draw the same noise."""
    run_python("""
import contextlib, keras, numpy as np
from tfopt import regularizers

def train(scope):
    with scope:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
        noisy = regularizers.weight_noise(model, 0.2)
        noisy.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(64, 6)), rng.integers(0, 3, 64))).batch(16)
    losses = noisy.fit(data, epochs=3, verbose=0).history["loss"]
    counts = [int(v.numpy()) for v in noisy.variables if "draws" in v.name]
    assert counts == [12, 12], counts
    return losses, regularizers.strip(noisy).get_weights()

losses, weights = train(contextlib.nullcontext())
losses2, weights2 = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(losses2, losses, rtol=1e-5)
for one, two in zip(weights, weights2):
    np.testing.assert_allclose(two, one, atol=1e-5)
""", devices=2)


# layers and models


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_every_dtype_policy_trains(rng, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = data(rng)
    noisy = compiled(regularizers.weight_noise(model, 0.1))
    assert noisy(x, training=True).dtype == keras.DTypePolicy(policy).compute_dtype
    assert np.isfinite(fit(noisy, x, y)).all()
    plain = regularizers.strip(noisy)
    assert plain.get_layer("hidden").dtype_policy.name == policy
    np.testing.assert_array_equal(plain.predict(x, verbose=0), noisy.predict(x, verbose=0))


SEQUENCES = {"LSTM": (lambda: layers.LSTM(6, dropout=0.2), 2), "GRU": (lambda: layers.GRU(6), 2),
             "cells": (lambda: layers.RNN([layers.LSTMCell(6), layers.GRUCell(5)]), 4),
             "both ways": (lambda: layers.Bidirectional(layers.LSTM(6)), 4),
             "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (None, 6)), 1),
             "each step": (lambda: layers.TimeDistributed(layers.Dense(6)), 1),
             "separable": (lambda: layers.SeparableConv1D(6, 2), 2),
             "attention": (lambda: Attention(), 4), "convolution": (lambda: layers.Conv1D(6, 2), 1)}


@keras.saving.register_keras_serializable("tests")
class Attention(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.MultiHeadAttention(2, 4, dropout=0.1)

    def build(self, shape):
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, None])
@pytest.mark.parametrize(("layer", "kernels"), SEQUENCES.values(), ids=SEQUENCES)
def test_kernels_of_sequences(rng, layer, kernels, steps):
    model, x = keras.Sequential([keras.Input((steps, 4)), layer()]), rng.normal(size=(16, 5, 4)).astype("float32")
    noisy = regularizers.weight_noise(model, 0.1)
    noisy.compile("adam", "mse", jit_compile=False)
    y = model.predict(x, verbose=0)
    assert fit(noisy, x, y, 1)[0] > 1e-6
    assert draws(noisy) == [2] * kernels                               # once a batch, however many steps
    plain = regularizers.strip(noisy)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), noisy.predict(x, verbose=0))


def test_all_time_steps_have_the_same_noise():
    cell = layers.SimpleRNN(8, activation=None, recurrent_initializer="zeros", return_sequences=True)
    noisy = regularizers.weight_noise(keras.Sequential([keras.Input((5, 3)), cell]), 0.1)
    outputs = noisy(np.ones((1, 5, 3)), training=True).numpy()[0]
    np.testing.assert_array_equal(outputs, np.tile(outputs[:1], (5, 1)))


def test_a_shared_layer_draws_at_each_use():
    shared, inputs = layers.Dense(4), keras.Input((4,))
    noisy = regularizers.weight_noise(keras.Model(inputs, shared(shared(inputs))), 0.1)
    noisy(np.ones((1, 4)), training=True)
    assert draws(noisy) == [2]


class Block(layers.Layer):
    """Without **kwargs and get_config, as most are written."""

    def __init__(self, units):
        super().__init__()
        self.units, self.up, self.down = units, layers.Dense(4 * units, "relu"), layers.Dense(units)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.up.build(shape)
        self.norm.build((*shape[:-1], 4 * self.units))
        self.down.build((*shape[:-1], 4 * self.units))

    def call(self, x):
        return x + self.down(self.norm(self.up(x)))


class Own(keras.Model):
    """A functional model that trains in a way of its own."""

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self(batch[0], training=True) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_variables)
        return {"own": loss}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block, self.dense = Block(8), layers.Dense(8)

    def call(self, x, training=None):
        return self.dense(self.block(x))


def own():
    inputs = keras.Input((8,))
    return Own(inputs, layers.Dense(8)(Block(8)(inputs)))


def subclassed():
    model = Subclassed()
    model(np.ones((1, 8)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [own, subclassed])
def test_models_of_ones_own_stay_what_they_are(rng, make):
    model, x = make(), rng.normal(size=(64, 8)).astype("float32")
    noisy = regularizers.weight_noise(model, 0.1)
    assert isinstance(noisy, type(model))
    noisy.compile("adam", "mse")
    history = noisy.fit(x, x, batch_size=8, epochs=2, verbose=0).history
    assert list(history) == (["own"] if make is own else ["loss"])
    assert draws(noisy) == [16, 16, 16]
    plain = regularizers.strip(noisy)
    assert type(plain) is type(model)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), noisy.predict(x, verbose=0))
    moved = [variable for variable in plain.variables if "moving_mean" in variable.name]
    assert abs(moved[0].numpy()).max() > 0                              # what layers inside update is kept


@keras.saving.register_keras_serializable("test_weight_noise")
class Plain(keras.Model):
    """As most are written: layers without names, or several of one name."""

    def __init__(self, name_of_all=None, **options):
        super().__init__(**options)
        self.name_of_all = name_of_all
        self.hidden = [layers.Dense(6, "relu", name=name_of_all) for _ in range(2)]
        self.head = layers.Dense(3, name=name_of_all)

    def call(self, x):
        return self.head(self.hidden[1](self.hidden[0](x)))

    def get_config(self):
        return {**super().get_config(), "name_of_all": self.name_of_all}


@pytest.mark.parametrize("name", [None, "fc"])
def test_a_model_whose_layers_have_no_names_of_their_own(rng, tmp_path, name):
    model, (x, y) = Plain(name), data(rng)
    model(x)
    noisy = compiled(regularizers.weight_noise(model, 0.1, seed=3))
    fit(noisy, x, y, epochs=1)
    assert draws(noisy) == [6, 6, 6]
    noisy.save(tmp_path / "noisy.keras")
    layers.Dense(2), layers.Dense(2)                       # other layers have been made in between
    loaded = keras.models.load_model(tmp_path / "noisy.keras")
    assert fit(loaded, x, y) == fit(noisy, x, y)
    np.testing.assert_array_equal(regularizers.strip(loaded)(x), loaded(x))


def test_a_call_without_the_argument_training(rng):
    """Keras leaves the layers of such a model in inference; `fit` and distillation add the noise all the same."""
    model, (x, y) = Plain(), data(rng)
    model(x)
    exact = compiled(Plain.from_config(model.get_config()))
    exact(x)
    exact.set_weights(model.get_weights())
    noisy, without = (compiled(regularizers.weight_noise(model, stddev, seed=3)) for stddev in (0.3, 0.0))
    plain = fit(exact, x, y)
    np.testing.assert_allclose(fit(without, x, y), plain, rtol=1e-6)
    assert abs(np.subtract(fit(noisy, x, y), plain)).min() > 1e-3
    held = draws(noisy)
    noisy.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(noisy(x), regularizers.strip(noisy)(x))
    assert draws(noisy) == held == [12, 12, 12]
    fit(compiled(distill.Distiller(model, noisy, distill.Values())), x, y, epochs=1)
    assert draws(noisy) == [18, 18, 18]


@pytest.mark.parametrize(("where", "count"), [(None, 2), ("words", 1), (["words", "inner"], 2), ("logits", 1),
                                              (lambda layer: isinstance(layer, layers.Embedding), None)])
def test_where(where, count):
    inner = keras.Sequential([keras.Input((3, 4)), layers.Flatten(), layers.Dense(4, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(9, 4, name="words"), inner,
                              layers.Dense(2, name="logits")])
    noisy = regularizers.weight_noise(model, 0.1, where=where)
    noisy(np.ones((2, 3), "int32"), training=True)
    assert draws(noisy) == [1] * (count or 1)


@pytest.mark.slow
def test_the_next_stages_take_what_strip_returns(rng):
    x = data(rng)[0]
    noisy = regularizers.weight_noise(net(), 0.1)
    for act, words in ((lambda model: prune.wrap(model, 0.5), r"prune.wrap: the model must be a plain one.*`strip`"),
                       (lambda model: cluster.wrap(model, 4), r"cluster.wrap: the model must be a plain one.*`strip`"),
                       (quantize.wrap, r"quantize.wrap: needs a plain model.*Call regularizers.strip"),
                       (lambda model: quantize.convert(model, "int8", calibration=x), "Call regularizers.strip")):
        with pytest.raises(ValueError, match=words):
            act(noisy)
        act(regularizers.strip(noisy))


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: regularizers.weight_noise(net(), -0.1), ValueError, "`stddev` must be a number >= 0"),
    (lambda: regularizers.weight_noise(net(), 0.1, relative_to="mean"), ValueError, "`relative_to` must be 'max'"),
    (lambda: regularizers.weight_noise(net(), 0.1, seed=-1), ValueError, "`seed` must be"),
    (lambda: regularizers.weight_noise(3, 0.1), TypeError, "regularizers.weight_noise: `model` must be a Keras"),
    (lambda: regularizers.weight_noise(keras.Sequential([layers.Dense(1)]), 0.1), ValueError, "built"),
    (lambda: regularizers.weight_noise(net(), 0.1, where="b"), ValueError, "must name layers of the model"),
    (lambda: regularizers.weight_noise(net(), 0.1, where="bn"), ValueError, "must name a layer with a kernel"),
    (lambda: regularizers.weight_noise(regularizers.weight_noise(net(), 0.1), 0.1), ValueError, "a plain one.*strip"),
    (lambda: regularizers.weight_noise(prune.wrap(net(), 0.5), 0.1), ValueError, "a plain one.*strip"),
    (lambda: regularizers.weight_noise(quantize.wrap(net()), 0.1), ValueError, "a plain one.*came from quantize.wrap"),
    (lambda: regularizers.strip(net()), ValueError, "regularizers.strip: .* come from reg.*weight_noise"),
    (lambda: regularizers.strip(prune.wrap(net(), 0.5)), ValueError, "must have come from regularizers.weight_noise"),
])
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
