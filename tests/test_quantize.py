"""Conversion to LiteRT: what the file computes, what it says about itself, what is refused."""

import concurrent.futures
import pathlib

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python.interpreter import Interpreter

from tfopt import quantize
from tfopt._litert import convert

layers = keras.layers
MODES = ["float32", "float16", "dynamic", "int8", "int16x8"]
CLOSE = {"float32": 1e-6, "float16": 2e-3, "dynamic": 0.02, "int8": 0.05, "int16x8": 0.01}


def small(seed=0):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((12, 12, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, use_bias=False)(x)))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax", name="classes")(x), name="small")
    randomize_statistics(model)
    return model


def randomize_statistics(model):
    noise = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(noise.normal(size=layer.moving_mean.shape) * 0.2)
            layer.moving_variance.assign(noise.uniform(0.5, 2, size=layer.moving_variance.shape))
        elif getattr(layer, "kernel", None) is not None:
            layer.kernel.assign(layer.kernel * 2)


@pytest.fixture
def images(rng):
    return rng.normal(size=(40, 12, 12, 3)).astype("float32")


@pytest.fixture
def counts():
    """Two inputs, nested outputs: a dict in, a dict with a list out."""
    a, b = keras.Input((4,), name="numbers"), keras.Input((3,), dtype="int32", name="ids")
    hidden = layers.Dense(6, activation="relu")(a)
    words = layers.Flatten()(layers.Embedding(10, 4)(b))
    outputs = {"z": layers.Dense(1)(words), "heads": [layers.Dense(2)(layers.Concatenate()([hidden, words])),
                                                      layers.Dense(3, activation="softmax")(hidden)]}
    return keras.Model({"numbers": a, "ids": b}, outputs)


def pairs(rng):
    return {"numbers": rng.normal(size=(30, 4)).astype("float32"), "ids": rng.integers(0, 10, (30, 3))}


@pytest.mark.filterwarnings("ignore:quantize.convert. dynamic range")
@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_with_the_model(mode, images):
    model = small()
    lite = quantize.convert(model, mode, calibration=images)
    expected, found = model.predict(images, verbose=0), lite.predict(images)
    difference = np.abs(expected - found).max()
    assert difference <= CLOSE[mode]
    assert lite.report["mode"] == mode
    assert lite.report["samples"] == 40
    assert lite.report["max_difference"] == pytest.approx(difference, abs=1e-6)
    assert lite.report["agreement"] == np.mean(expected.argmax(-1) == found.argmax(-1))
    assert lite.report["integer_ops"] == (1 if mode.startswith("int") else 0)
    assert lite.report["integer_macs"] == (1 if mode.startswith("int") else 0)
    assert np.abs(small(seed=1).predict(images, verbose=0) - found).max() > CLOSE[mode] / 2, "another model differs"


def test_batch_normalization_is_folded_and_macs_are_counted(images):
    ops = quantize.convert(small(), "int8", calibration=images).ops
    assert list(ops["op"]) == ["CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert list(ops["macs"]) == [10 * 10 * 8 * 27, 10 * 10 * 8 * 9, 0, 40, 0]
    assert set(ops["dtype"]) == {"int8"}
    assert list(ops["weights"][:2]) == ["int8", "int8"]


def test_tensorflow_s_own_interpreter_agrees(images):
    """An independent reader: the file's ends, quantized by hand."""
    lite = quantize.convert(small(), "int8", calibration=images)
    interpreter = Interpreter(model_content=lite.content)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (source["dtype"], target["dtype"], source["name"]) == (np.int8, np.int8, "image")
    scale, zero = source["quantization"]
    found = []
    for image in images:
        interpreter.set_tensor(source["index"], np.clip(np.round(image[None] / scale) + zero, -128, 127).astype("int8"))
        interpreter.invoke()
        found.append(interpreter.get_tensor(target["index"])[0])
    scale, zero = target["quantization"]
    np.testing.assert_allclose(lite.predict(images), scale * (np.float32(found) - zero), atol=1.01 * scale)


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_several_inputs_and_nested_outputs(mode, counts, rng):
    x = pairs(rng)
    lite = quantize.convert(counts, mode, calibration=x)
    expected = counts.predict(x, verbose=0)
    for received in (x, [x["ids"], x["numbers"]], tf.data.Dataset.from_tensor_slices((x, np.zeros(30))).batch(7)):
        found = lite.predict(received)
        keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=CLOSE[mode]), expected, found)
    signature = lite._interpreter.get_signature_list()["serving_default"]
    assert sorted(signature["inputs"]) == ["ids", "numbers"]
    assert sorted(signature["outputs"]) == ["heads/0", "heads/1", "z"]


def test_list_inputs_are_also_known_by_name(rng):
    a, b = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    model = keras.Model([a, b], layers.Subtract()([a, b]))
    lite, x = quantize.convert(model, "float32"), rng.normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_array_equal(lite.predict([x[0], x[1]]), x[0] - x[1])
    np.testing.assert_array_equal(lite.predict({"a": x[1], "b": x[0]}), x[0] - x[1])


def test_whole_numbers_in_a_float_input_are_not_rounded_to_eight_bits(rng):
    """Embedding(keras.Input((n,))) is a float input by Keras' default: int8 ends would change the indices."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Flatten()(layers.Embedding(1000, 3)(inputs)))
    x = rng.integers(0, 1000, (50, 4)).astype("float32")
    lite = quantize.convert(model, "int8", calibration=x)
    assert lite.report["max_difference"] < 1e-3
    assert np.abs(lite.predict(np.roll(x, 1)) - model.predict(x, verbose=0)).max() > 0.01, "the check can fail"


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_subclassed_model_and_open_sizes(mode, rng):
    class Doubled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x["a"]) * 2

    x = {"a": rng.normal(size=(20, 5)).astype("float32")}
    model = Doubled()
    expected = model(x)
    np.testing.assert_allclose(quantize.convert(model, mode, calibration=x).predict(x), expected, atol=0.1)

    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(inputs)))
    x = rng.normal(size=(20, 6, 7, 2)).astype("float32")
    np.testing.assert_allclose(quantize.convert(model, mode, calibration=x).predict(x), model(x), atol=0.02)
    with pytest.raises(ValueError, match="inputs of known size"):
        quantize.convert(model, "float32")


def test_mixed_precision_is_converted_in_float32(rng):
    x = inputs = keras.Input((6,))
    x = layers.Dense(4, activation="relu", dtype="mixed_bfloat16")(x)
    model = keras.Model(inputs, layers.Bidirectional(layers.LSTM(3, unroll=True, dtype="mixed_bfloat16"),
                                                     dtype="mixed_bfloat16")(layers.Reshape((2, 2))(x)))
    x = rng.normal(size=(8, 6)).astype("float32")
    np.testing.assert_allclose(quantize.convert(model, "float32").predict(x), model.predict(x, verbose=0), atol=0.02)


def test_dynamic_range_warns_where_there_are_convolutions(images, recwarn):
    dense = keras.Sequential([keras.Input((40,)), layers.Dense(50), layers.Dense(4)])
    lite = quantize.convert(dense, "dynamic")
    assert not recwarn.list
    assert set(lite.plan["why"]) == {"int8 weights, float arithmetic", "computes in float"}
    with pytest.warns(UserWarning, match="often slower"):
        quantize.convert(small(), "dynamic")


@pytest.mark.parametrize("y", [np.arange(40) % 5, np.eye(5)[np.arange(40) % 5]], ids=["sparse", "one-hot"])
def test_evaluate_equals_keras(y, images):
    model = small()
    loss = "categorical_crossentropy" if y.ndim > 1 else "sparse_categorical_crossentropy"
    model.compile(loss=loss, metrics=["accuracy"])
    lite = quantize.convert(model, "float32")
    expected = model.evaluate(images, y, verbose=0, return_dict=True)
    assert lite.evaluate(images, y, loss=loss) == pytest.approx(expected, abs=1e-5)
    assert lite.evaluate(images, y) == pytest.approx({"accuracy": expected["accuracy"]})
    batches = tf.data.Dataset.from_tensor_slices((images, y)).batch(7)
    assert lite.evaluate(batches, loss=loss) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"evaluate: needs targets"):
        lite.evaluate(images)


@pytest.mark.slow
def test_evaluate_of_several_outputs(counts, rng):
    x = pairs(rng)
    y = {"z": np.ones((30, 1)), "heads": [np.ones((30, 2)), np.eye(3)[np.arange(30) % 3]]}
    found = quantize.convert(counts, "float32").evaluate(
        x, y, loss={"z": "mse", "heads": ["mae", "mse"]}, metrics={"z": ["mae"], "heads": [None, ["accuracy"]]})
    outputs = counts.predict(x, verbose=0)
    loss = (np.square(outputs["z"] - 1).mean() + np.abs(outputs["heads"][0] - 1).mean()
            + np.square(outputs["heads"][1] - y["heads"][1]).mean())
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_saved_file_knows_itself(tmp_path, images):
    lite = quantize.convert(small(), "int8", calibration=images)
    lite.save(tmp_path / "small.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["small.tflite"], "no part of a file is left"
    again = quantize.load(tmp_path / "small.tflite")
    assert (again.content, again.report, again.size) == (lite.content, lite.report, len(lite.content))
    assert again.plan.equals(lite.plan)
    np.testing.assert_array_equal(again.predict(images), lite.predict(images))
    with pytest.raises(ValueError, match=r"`path` must end with \.tflite"):
        lite.save(tmp_path / "small.bin")
    (tmp_path / "cut.tflite").write_bytes(lite.content[:len(lite.content) // 2])
    with pytest.raises(ValueError, match=r"^quantize\.load: .*cut or changed"):
        quantize.load(tmp_path / "cut.tflite")
    with pytest.raises(ValueError, match=r"^quantize\.load: `path` must be a \.tflite file"):
        quantize.load(tmp_path / "nowhere.tflite")


def test_each_changed_byte_of_a_file_is_seen(tmp_path, images):
    """Half of all changed bits once passed for another model, or another report."""
    content, path = quantize.convert(small(), "int8", calibration=images).content, tmp_path / "small.tflite"
    places = np.random.default_rng(0).choice(len(content), 300, replace=False).tolist()
    for place in [*places, content.index(b'"sha256"') + 3, content.index(b'"format"') + 3, content.index(b"tfopt")]:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"load: `path` must be (whole.* cut or changed|a whole|a \.tflite)"):
            quantize.load(path)
        if place in places[:9]:
            with pytest.raises(ValueError, match=r"`content` must be"):
                quantize.LiteModel(bytes(changed))
    path.write_bytes(content)
    assert quantize.load(path).content == content                        # negative control


def test_a_file_of_another_making_runs(tmp_path, images):
    model = small()
    pathlib.Path(tmp_path / "other.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    lite = quantize.load(tmp_path / "other.tflite")
    np.testing.assert_allclose(lite.predict(images), model.predict(images, verbose=0), atol=1e-6)
    assert lite.report == {}


def test_a_checksum_in_the_metadata_of_another_maker_is_not_ours(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    parsed, builder = quantize.convert(model, "float32").parsed, flatbuffers.Builder()
    for entry in parsed.metadata:
        parsed.buffers[entry.buffer].data = np.frombuffer(b'{"weights": {"sha256": "%s"}}' % (b"0" * 64), np.uint8)
        entry.name = b"a model card"
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    (tmp_path / "model.tflite").write_bytes(bytes(builder.Output()))
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(quantize.load(tmp_path / "model.tflite").predict(x, verbose=0), model(x), atol=1e-6)


def test_nothing_of_the_user_is_changed(images, capfd):
    from absl import logging

    model = small()
    model.compile("adam", "mse")
    before, verbosity, function = model.get_weights(), logging.get_verbosity(), model.predict_function
    quantize.convert(model, "int8", calibration=images).predict(images)
    assert capfd.readouterr() == ("", ""), "the converter is silent"
    assert logging.get_verbosity() == verbosity
    assert model.predict_function is function
    assert model.optimizer.iterations == 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_refusals(images):
    class Opaque(keras.Model):
        def call(self, x):
            return x

    model, opaque = small(), Opaque()
    with pytest.raises(ValueError, match="not yet built"):
        quantize.convert(opaque, "float32")
    opaque(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="needs to know the inputs"):
        quantize.convert(opaque, "float32")
    with pytest.raises(ValueError, match=r"`mode` must be None, 'float32', .*Received: mode='int2'"):
        quantize.convert(model, "int2")
    with pytest.raises(ValueError, match="needs calibration data"):
        quantize.convert(model, "int8")
    with pytest.raises(ValueError, match="convert: `calibration` must hold x of the shape"):
        quantize.convert(model, "int8", calibration=images[0])
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        quantize.convert("model.keras", "int8")
    lite = quantize.convert(model, "float32")
    with pytest.raises(ValueError, match="predict: `x` must hold x of the shape"):
        lite.predict(images[:, :5])
    with pytest.raises(ValueError, match="at least one example"):
        lite.predict(images[:0])
    pair = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    two = quantize.convert(keras.Model(pair, layers.Add()(pair)), "float32")
    with pytest.raises(ValueError, match="`x` must hold x of the shape"):
        two.predict({"a": images, "c": images})
    with pytest.raises(ValueError, match=r"bytes of a \.tflite file"):
        quantize.LiteModel(b"nothing of the kind")


def test_what_litert_cannot_do_is_refused():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.ops.linalg.svd(keras.ops.reshape(inputs, (-1, 2, 4)))[1])
    with pytest.raises(ValueError, match=r"LiteRT lacks operations of this model. Received: lacking=\['tf.Svd'\]"):
        quantize.convert(model, "float32")
    recurrent = keras.Sequential([keras.Input((4, 2)), layers.LSTM(3)])
    with pytest.raises(ValueError, match="unroll=True"):
        quantize.convert(recurrent, "int8", calibration=np.zeros((4, 4, 2), "float32"))
    assert quantize.convert(recurrent, "float32").report["max_difference"] < 1e-6


@pytest.mark.slow
def test_random_states_stand_still_in_a_file(rng):
    """Dropout inside RNN layers moves a seed in every call; a sampler needs an operation that LiteRT lacks."""
    x = rng.normal(size=(8, 10, 3)).astype("float32")
    for layer in (layers.LSTM(4, dropout=0.25), layers.GRU(4, recurrent_dropout=0.2)):
        model = keras.Sequential([keras.Input((10, 3)), layer, layers.Dense(2)])
        state = [variable.numpy() for variable in model.non_trainable_variables]
        lite = quantize.convert(model, "float32", calibration=x)
        for old, variable in zip(state, model.non_trainable_variables, strict=True):
            np.testing.assert_array_equal(variable.numpy(), old)
        np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-5)

    class Sampler(layers.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"^quantize\.convert: LiteRT lacks operations.*Random"):
        quantize.convert(keras.Model(inputs, Sampler()(inputs)), "float32")
    stateful = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), layers.LSTM(2, stateful=True)])
    with pytest.raises(ValueError, match="keeps no state"):
        quantize.convert(stateful, "float32")


def test_attention_over_one_feature(rng):
    """The converter fails on it with one sample at once, and not with an open number."""
    inputs = keras.Input((12, 1))
    x = layers.MultiHeadAttention(key_dim=8, num_heads=2)(inputs, inputs)
    x = layers.LayerNormalization()(x) + inputs
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    x = rng.normal(size=(7, 12, 1)).astype("float32")
    lite = quantize.convert(model, "float32")
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_allclose(lite.predict(x, batch_size=3), model.predict(x, verbose=0), atol=1e-5)


def test_batches_of_any_size(images):
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(),
                              layers.Dense(3)])
    lite = quantize.convert(model, "int8", calibration=images)
    assert lite.report["resizable"]
    expected = lite.predict(images)
    np.testing.assert_array_equal(lite(images), expected)
    for size in (7, 40, np.int64(64)):
        np.testing.assert_allclose(lite.predict(images, batch_size=size), expected, atol=0.02)
    interpreter = Interpreter(model_content=lite.content)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (5, 12, 12, 3))
    interpreter.allocate_tensors()
    with pytest.raises(ValueError, match=r"predict: `batch_size` must be None or a whole number >= 1"):
        lite.predict(images, batch_size=0)


def test_a_file_of_one_sample_says_so(rng):
    inputs = keras.Input(batch_shape=(1, 4, 3))
    mean = keras.ops.mean(keras.ops.reshape(inputs, (4, 3)), axis=0)
    lite = quantize.convert(keras.Model(inputs, keras.ops.reshape(mean, (1, 3))), "float32")
    x = rng.normal(size=(6, 4, 3)).astype("float32")
    np.testing.assert_allclose(lite.predict(x), x.mean(1), atol=1e-6)
    assert not lite.report["resizable"]
    with pytest.raises(ValueError, match=r"^quantize\.LiteModel\.predict: this file.*Leave `batch_size` out"):
        lite.predict(x, batch_size=2)


@pytest.mark.parametrize("mode", ["int8", "int4", "dynamic", "float32"])
@pytest.mark.parametrize(("batch", "count"), [(7, 96), (32, 32), (20, 41)])
def test_a_batch_of_fixed_size(mode, batch, count, rng):
    """Calibration data that do not fill the last batch; the whole of them in one batch."""
    model = keras.Sequential([keras.Input(batch_shape=(batch, 20)), layers.Dense(16, "relu"), layers.Dense(4)])
    x = rng.normal(size=(count, 20)).astype("float32")
    kernels = [np.asarray(weight) for weight in model.get_weights()]
    expected = np.maximum(x @ kernels[0] + kernels[1], 0) @ kernels[2] + kernels[3]
    lite = quantize.convert(model, mode, calibration=x)
    assert lite.report["samples"] == count // batch * batch
    np.testing.assert_allclose(lite.predict(x), expected, atol={"int8": 0.1, "int4": 1.0}.get(mode, 1e-5))
    if mode == "float32":
        assert quantize.convert(model, mode).report["max_difference"] < 1e-5            # noise fills a batch
    with pytest.raises(ValueError, match=r"`calibration` must fill a batch.*build the model without a batch size"):
        quantize.convert(model, mode, calibration=x[:batch - 1])


def test_sample_weights(images):
    model = small()
    y, weights = np.arange(40) % 5, np.linspace(0, 2, 40)
    options = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    model.compile(**options)
    expected = model.evaluate(images, y, sample_weight=weights, verbose=0, return_dict=True)
    lite = quantize.convert(model, "float32")
    assert lite.evaluate(images, y, weights, **options) == pytest.approx(expected, abs=1e-5)
    data = tf.data.Dataset.from_tensor_slices((images, y, weights)).batch(16)
    assert lite.evaluate(data, **options) == pytest.approx(expected, abs=1e-5)
    assert lite.evaluate(images, y, **options)["loss"] != pytest.approx(expected["loss"], abs=1e-3)


def test_metrics_for_each_of_several_outputs(counts, rng):
    x = pairs(rng)
    y = {"z": np.ones((30, 1)), "heads": [np.ones((30, 2)), np.eye(3)[np.arange(30) % 3]]}
    found = quantize.convert(counts, "float32").evaluate(x, y, metrics=["mae"])
    outputs = counts.predict(x, verbose=0)
    assert sorted(found.values()) == pytest.approx(sorted([
        np.abs(outputs["z"] - 1).mean(), *(np.abs(a - b).mean() for a, b in zip(outputs["heads"], y["heads"],
                                                                                strict=True))]), rel=1e-4)


def test_several_threads_may_use_one_file(images):
    lite = quantize.convert(small(), "float32")
    expected = lite.predict(images)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: lite.predict(images[start:start + 10]), [0, 10, 20, 30] * 5))
    np.testing.assert_array_equal(np.concatenate(found), np.tile(expected, (5, 1)))


def test_calibration_data_are_looked_at(images):
    model = small()
    for bad in (np.nan, np.inf):
        spoilt = images.copy()
        spoilt[3, 2, 2, 1] = bad
        with pytest.raises(ValueError, match=r"^quantize\.convert: `calibration` must be finite.*first in example 3"):
            quantize.convert(model, "int8", calibration=spoilt)
        with pytest.raises(ValueError, match=r"^quantize\.calibrate: `data` must be finite"):
            quantize.calibrate(quantize.wrap(model), spoilt)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(inputs)))
    sizes = tf.data.Dataset.from_generator(lambda: (np.zeros((1, n, n, 3), "float32") for n in (5, 6)),
                                           output_signature=tf.TensorSpec((None, None, None, 3)))
    for several in (sizes, [np.zeros((5, 5, 3)), np.zeros((6, 6, 3))]):
        with pytest.raises(ValueError, match=r"^quantize\.convert: .*one shape|^quantize\.convert: .*shape"):
            quantize.convert(model, "int8", calibration=several)


def test_two_inputs_in_a_tuple_are_inputs(rng):
    pair = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model(list(pair), layers.Dense(2)(layers.Concatenate()(pair)))
    a, b = rng.normal(size=(20, 3)).astype("float32"), rng.normal(size=(20, 2)).astype("float32")
    lite = quantize.convert(model, "int8", calibration=(a, b))
    assert np.abs(lite.predict((a, b)) - model.predict([a, b], verbose=0)).max() < 0.1


def test_the_converter_s_own_error_is_shown():
    text = "loc(x): error: 'tf.Foo' op is odd\n  some code\n^\nnote: called from\n^"
    assert convert._first_error(text) == "'tf.Foo' op is odd"


def test_kernels_that_are_made_of_constants(rng):
    """As that of extract_patches: left to the converter, the int8 file does not run."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((4, 48))(keras.ops.image.extract_patches(inputs, 4))
    model = keras.Model(inputs, layers.Flatten()(layers.Dense(5)(x)))
    x = rng.normal(size=(30, 8, 8, 3)).astype("float32")
    for mode in ("float32", "int8"):
        found = quantize.convert(model, mode, calibration=x).predict(x)
        np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5 if mode == "float32" else 0.1)


def test_exact_gelu_behind_a_normalization_becomes_a_file():
    """Folded constants hide GELU from the converter, which knows it by its parts."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Activation("gelu")(keras.layers.Conv2D(4, 2)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(quantize.convert(model, "float32").predict(x), model.predict(x, verbose=0), atol=1e-5)
