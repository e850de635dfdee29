"""Models that people have: each kind is wrapped exactly, calibrated, and compared with the user's own figures."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import quantize
from tfopt.quantize._layers import Range, unrounded
from tfopt.quantize._prepare import Prepared

layers = keras.layers


@pytest.fixture
def words(rng):
    """Padded sequences."""
    x = rng.integers(1, 30, (32, 10)).astype("int32")
    x[::2, 6:] = 0
    return x


def assert_exact(model, x, share=0.15):
    """The copy computes what the model computes before rounding, and nearly that after; returns it calibrated."""
    expected = np.asarray(model(x, training=False))
    wrapped = quantize.wrap(model)
    with unrounded():
        np.testing.assert_allclose(np.asarray(wrapped(x)), expected, atol=2e-5 * max(1, np.abs(expected).max()))
    ready = quantize.calibrate(wrapped, x)
    assert np.abs(np.asarray(ready(x)) - expected).max() <= share * np.ptp(expected)
    return ready


def adapted(layer, x):
    layer.adapt(x)
    return layer


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "options"), [((8,), {}), ((10, 3), {}), ((8, 8, 3), {}),
                                                ((8, 8, 3), {"axis": None})])
def test_adapted_normalization(shape, options, nested, rng):
    x = rng.normal(50, 20, size=(64, *shape)).astype("float32")
    norm = adapted(layers.Normalization(**options), x)
    tail = [layers.Flatten(), layers.Dense(8, activation="relu"), layers.Dense(2)]
    model = keras.Sequential([keras.Input(shape), keras.Sequential([norm]) if nested else norm, *tail])
    lite = quantize.convert(assert_exact(model, x), calibration=x)
    expected = model.predict(x, verbose=0)
    assert np.abs(lite.predict(x) - expected).max() <= 0.15 * np.ptp(expected)
    assert lite.report["float_model"] == "the model passed to quantize.wrap"
    assert lite.report["float_difference"] == pytest.approx(np.abs(lite.predict(x) - expected).max(), abs=1e-5)


def test_a_statistic_that_is_lost_is_seen(monkeypatch, rng):
    """Negative control: the check compares with the model that was passed in."""
    x = rng.normal(50, 20, size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), adapted(layers.Normalization(), x), layers.Dense(2)])
    own = Prepared.fill

    def fill(prepared):
        own(prepared)
        norm = next(new for _, new in prepared.copies if isinstance(new, layers.Normalization))
        norm.mean += [0] * 7 + [1]

    monkeypatch.setattr(Prepared, "fill", fill)
    with pytest.raises((ValueError, RuntimeError), match=r"^quantize\.wrap"):
        quantize.wrap(model)


def test_columns_of_several_types(rng):
    number, word, count = keras.Input((4,)), keras.Input((1,), dtype="string"), keras.Input((1,), dtype="int64")
    look = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="multi_hot", num_oov_indices=1)
    hashed = layers.Hashing(5, output_mode="one_hot")
    some = adapted(layers.IntegerLookup(), np.arange(5))
    ids = layers.Flatten()(layers.Embedding(7, 4)(some(count)))
    bins = layers.Discretization([-1.0, 0.0, 1.0], output_mode="multi_hot")
    coded = layers.CategoryEncoding(6, output_mode="one_hot")(layers.Flatten()(count))
    x = layers.Concatenate()([number, look(word), hashed(word), ids, bins(number), coded, layers.Flatten()(count)])
    model = keras.Model([number, word, count], layers.Dense(2)(layers.Dense(16, activation="relu")(x)))
    batch = [tf.constant(rng.normal(size=(8, 4)), tf.float32), tf.constant([["a"], ["b"], ["c"], ["z"]] * 2),
             tf.constant(rng.integers(0, 5, (8, 1)))]
    assert_exact(model, batch)
    with pytest.raises(ValueError, match=r"no vocabularies.*StringLookup.*Leave these layers outside"):
        quantize.convert(model, "float32")


def attention(inputs):
    x = layers.Embedding(30, 16, mask_zero=True)(inputs)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    return layers.GlobalAveragePooling1D()(layers.Add()([x, layers.Dense(16)(layers.Dense(32, "gelu")(x))]))


def embedded(layer):
    return lambda inputs: layer(layers.Embedding(30, 16, mask_zero=True)(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("body", [
    attention, embedded(layers.GRU(8)), embedded(layers.Bidirectional(layers.LSTM(8))),
    embedded(layers.GlobalAveragePooling1D()),
    lambda i: layers.GRU(4)(layers.Concatenate()([layers.Embedding(30, 4, mask_zero=True)(i)] * 2)),
    lambda i: layers.LSTM(4)(layers.BatchNormalization()(layers.Dense(5)(layers.Embedding(30, 4, mask_zero=True)(i)))),
    lambda i: layers.GRU(4)(layers.TimeDistributed(layers.Dense(5))(layers.Embedding(30, 4, mask_zero=True)(i))),
], ids=["attention", "GRU", "BiLSTM", "pooling", "Concatenate", "BatchNormalization", "TimeDistributed"])
def test_masks_of_padded_sequences(body, words):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2)(body(inputs)))
    assert_exact(model, words)
    filled = np.where(words == 0, 7, words)
    assert np.abs(np.asarray(model(filled)) - np.asarray(model(words))).max() > 1e-3, "the padding matters"


class Plain(layers.Layer):
    """No **kwargs, no get_config."""

    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units, trainable=False)

    def call(self, x):
        return self.dense(x) * 2


def test_layers_of_ones_own_lambdas_and_functions(rng):
    x = rng.normal(size=(32, 8)).astype("float32")
    inputs = keras.Input((8,))
    h = layers.Lambda(lambda t: t * 2 + 1)(layers.Dense(16, activation=keras.ops.gelu)(inputs))
    h = layers.Dense(4, activation="relu", activity_regularizer="l2")(layers.Dropout(0.3)(Plain(16)(h)))
    model = keras.Model(inputs, layers.Dense(2)(h))
    ready = assert_exact(model, x)
    frozen = [variable.numpy() for layer in ready.layers if isinstance(layer, Plain) for variable in layer.variables]
    ready.compile("sgd", "mse")
    history = ready.fit(x, x[:, :2], epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for old, new in zip(frozen, (v for layer in ready.layers if isinstance(layer, Plain) for v in layer.variables),
                        strict=True):
        np.testing.assert_array_equal(new.numpy(), old)


def test_open_sizes(rng):
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 8)(inputs)
    for _ in range(2):
        x = layers.Conv1D(8, 7, strides=3, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    assert_exact(model, rng.integers(0, 50, (16, 60)))
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))))
    assert_exact(model, rng.normal(size=(16, 9, 7, 3)).astype("float32"))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_in_16_bits_are_copied_in_float32(policy, rng):
    x = rng.normal(size=(32, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu", dtype=policy),
                              layers.Dense(3, dtype=policy)])
    with pytest.warns(UserWarning, match="wrapped model computes in float32"):
        wrapped = quantize.wrap(model)
    assert {layer.compute_dtype for layer in wrapped.layers} == {"float32"}
    expected = model.predict(x, verbose=0)
    found = quantize.calibrate(wrapped, x).predict(x, verbose=0)
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)


def test_networks_that_only_move_values(rng):
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Flatten()(layers.MaxPooling2D()(inputs)))
    assert set(quantize.plan(model)["affected"]) == {0}
    with pytest.raises(ValueError, match="finds no layer that it can quantize"):
        quantize.wrap(model)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(inputs)))
    lite = quantize.convert(assert_exact(model, x), calibration=x)
    assert np.abs(lite.predict(x) - model.predict(x, verbose=0)).max() < 0.1


def test_dropout_draws_on_where_it_stood():
    """The random state of a wrapped model lies in its variables, as Keras keeps it."""
    x = np.ones((4, 64), "float32")
    wrapped = quantize.wrap(keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), layers.Dense(4)]))
    state = [variable.numpy() for variable in wrapped.variables]
    first = np.asarray(wrapped(x, training=True))
    second = np.asarray(wrapped(x, training=True))
    for variable, value in zip(wrapped.variables, state, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(np.asarray(wrapped(x, training=True)), first)
    assert (first != second).any()


def test_plan_builds_nothing(monkeypatch):
    monkeypatch.setattr(Range, "__init__", lambda self, *_, **__: pytest.fail("a layer was made"))
    inputs = keras.Input((4,))
    dense = layers.Dense(2, name="dense")
    model = keras.Model(inputs, dense(inputs))
    nodes = len(dense._inbound_nodes)
    assert quantize.plan(model)["affected"].tolist() == [8]
    assert len(dense._inbound_nodes) == nodes


@pytest.mark.slow
def test_saved_with_adapted_layers(tmp_path, rng):
    x = rng.normal(50, 20, size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), adapted(layers.Normalization(), x), layers.Dense(8, activation="relu"),
                              layers.BatchNormalization(), layers.Dense(2)])
    ready = quantize.calibrate(quantize.wrap(model), x)
    expected = ready.predict(x, verbose=0)
    ready.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), expected)
    assert again.plan.equals(ready.plan)
    assert quantize.convert(again, calibration=x).report["float_model"] == "the trained weights in float"
    ready.save_weights(tmp_path / "model.weights.h5")
    other = quantize.wrap(model)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)
    path = tf.train.Checkpoint(model=ready).save(tmp_path / "checkpoint")
    other = quantize.wrap(model)
    tf.train.Checkpoint(model=other).restore(path).expect_partial()
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)
    ready.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"is saved in the \.keras format"):
        ready.save(tmp_path / "model.h5")
    assert not (tmp_path / "model.h5").exists()


def test_a_loop_with_a_mask_converts(rng):
    x = rng.normal(size=(16, 6, 3)).astype("float32")
    x[::2, 4:] = 0
    model = keras.Sequential([keras.Input((6, 3)), layers.Masking(), layers.GRU(4)])
    lite = quantize.convert(model, "float32", calibration=x)
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-5)


class Halved(layers.Layer):
    def call(self, x):
        return x / 2

    def get_config(self):
        return {**super().get_config(), "factor": 0.5}     # which the constructor does not take


def test_no_file_is_written_that_cannot_be_loaded(tmp_path):
    wrapped = quantize.wrap(keras.Sequential([keras.Input((4,)), layers.Dense(4), Halved(name="half")]))
    with pytest.raises(ValueError, match=r"^each layer of a model from quantize\.wrap .* layer='half'"):
        wrapped.save(tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()
    wrapped.save_weights(tmp_path / "model.weights.h5")


class Scored(keras.Model):
    def train_step(self, data):
        return {**super().train_step(data), "hundred": 100.0}


class Doubled(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


@pytest.mark.slow
def test_a_train_step_of_ones_own_stays(tmp_path, rng):
    inputs, x = keras.Input((8,)), rng.normal(size=(64, 8)).astype("float32")
    model = Scored(inputs, layers.Dense(2)(layers.Dense(16, "relu")(inputs)))
    model.remark = "mine"
    wrapped = assert_exact(model, x)
    assert isinstance(wrapped, Scored)
    assert wrapped.remark == "mine"
    wrapped.compile("adam", "mse")
    assert wrapped.fit(x, x[:, :2], epochs=2, verbose=0).history["hundred"] == [100.0] * 2
    wrapped.save(tmp_path / "model.keras")
    with keras.saving.custom_object_scope({"Scored": Scored}):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, Scored)
    np.testing.assert_array_equal(loaded(x), wrapped(x))
    assert loaded.fit(x, x[:, :2], verbose=0).history["hundred"] == [100.0]
    assert quantize.convert(wrapped, calibration=x).report["integer_ops"] == 1
    plain = keras.Model(wrapped.inputs, wrapped.outputs)
    np.testing.assert_array_equal(plain(x), wrapped(x))


def test_a_call_of_ones_own_is_not_lost_silently():
    inputs = keras.Input((4,))
    model = Doubled(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match=r"^quantize\.wrap: what a class of your own does.*\['call'\]"):
        quantize.wrap(model)
    assert_exact(keras.Model(model.inputs, model.outputs), np.ones((8, 4), "float32"))


def test_low_rank_adapters_stay(rng):
    x = rng.normal(size=(32, 8)).astype("float32")
    adapted_dense = layers.Dense(8, name="adapted")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(adapted_dense(inputs)))
    adapted_dense.enable_lora(2)
    adapted_dense.lora_kernel_b.assign(rng.normal(size=adapted_dense.lora_kernel_b.shape))
    assert quantize.plan(model).set_index("layer").loc["adapted", "status"] == "skipped"
    assert_exact(model, x)


@pytest.mark.slow
def test_a_trained_model_whose_input_tells_what_is_masked(rng):
    """Its input is compared with zero and rounded: in eight bits the converter lost it."""
    x = rng.normal(size=(24, 10, 4)).astype("float32")
    x[::2, 6:] = 0
    model = keras.Sequential([keras.Input((10, 4)), layers.Masking(), layers.GRU(6), layers.Dense(3)])
    wrapped = quantize.wrap(model)
    wrapped.compile("adam", "mse")
    wrapped.fit(x, np.ones((24, 3)), epochs=2, verbose=0)
    lite = quantize.convert(wrapped, calibration=x)
    np.testing.assert_allclose(lite.predict(x, verbose=0), wrapped.predict(x, verbose=0), atol=1e-5)
    changed = np.where(x == 0, 1.0, x).astype("float32")
    assert np.abs(lite.predict(changed, verbose=0) - lite.predict(x, verbose=0)).max() > 1e-3, "negative control"
