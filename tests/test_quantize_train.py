"""Quantization-aware training: it rounds where TFMOT rounds, keeps what it should, saves, and becomes integer files."""

import keras
import numpy as np
import pytest
import tf_keras

from tfopt import distill, prune, quantize
from tfopt._litert import file
from tfopt._toolkit import tfmot
from tfopt.quantize._layers import RoundedKernel, unrounded

layers = keras.layers


def images(count=48, size=10, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size, size, 3)).astype("float32"), random.integers(0, 4, count)


def classifier(seed=1):
    """Every pattern that LiteRT runs as one: convolution-norm-ReLU, with a ReLU of its own, addition-ReLU."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((10, 10, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False, name="first")(inputs)))
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="deep")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(8, 1, activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="classes")(x), name="classifier")


def in_float(aware, x):
    """What a wrapped model computes without rounding."""
    with unrounded():
        return np.asarray(aware(x))


def kernels_of(aware):
    return {name: layer.kernels()[0] for name, layer in aware.rounded().items()}


def fit(model, x, y, epochs=2, loss="sparse_categorical_crossentropy", **options):
    model.compile(keras.optimizers.SGD(0.1), loss, **options)
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def sparse_and_shared(model, values=6, share=0.5, seed=0):
    """Gives every kernel few different values and zeros, as pruning and clustering would."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            kernel = layer.kernel.numpy()
            table = np.quantile(kernel, np.linspace(0.05, 0.95, values))
            kernel = table[np.abs(kernel[..., None] - table).argmin(-1)]
            layer.kernel.assign(kernel * (random.random(kernel.shape) >= share))
    return model


# The same as the toolkit


def small(module):
    """A network that Keras 2 and Keras 3 both can build, without depthwise convolutions (see below)."""
    layers = module.layers
    inputs = module.Input((10, 10, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, activation="relu")(x))
    return module.Model(inputs, layers.Dense(4, activation="softmax")(x))


def dense(module):
    layers = module.layers
    return module.Sequential([module.Input((12,)) if module is keras else layers.InputLayer((12,)),
                              layers.Dense(10, activation="relu"), layers.Dense(4, activation="softmax")])


def pair(build):
    """The same network in Keras 3 and in tf_keras, with the same weights."""
    keras.utils.set_random_seed(1)
    model, theirs = build(keras), build(tf_keras)
    for old, new in zip(model.layers[-len(theirs.layers):], theirs.layers[-len(model.layers):], strict=True):
        new.set_weights(old.get_weights())
    return model, theirs


@pytest.mark.slow
def test_trains_as_the_toolkit_does_in_tf_keras():
    x, y = images()
    model, theirs = pair(small)
    theirs = tfmot.quantization.keras.quantize_model(theirs)
    theirs.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    expected = theirs.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    aware = quantize.wrap(model)
    assert fit(aware, x, y) == pytest.approx(expected, abs=2e-5)
    np.testing.assert_allclose(aware.predict(x, verbose=0), theirs.predict(x, verbose=0), atol=0.02)     # a few steps
    assert np.abs(np.subtract(fit(model, x, y), expected)).max() > 1e-4, "without rounding it differs"


@pytest.mark.slow
def test_shared_values_train_as_the_toolkit_s_do():
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        default_8bit_cluster_preserve_quantize_scheme as scheme,
    )

    random = np.random.default_rng(0)
    x, y = random.normal(size=(48, 12)).astype("float32"), random.integers(0, 4, 48)
    model, theirs = pair(dense)
    sparse_and_shared(model, share=0)
    theirs.set_weights(model.get_weights())
    toolkit = tfmot.quantization.keras
    theirs = toolkit.quantize_apply(toolkit.quantize_annotate_model(theirs),
                                    scheme=scheme.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=False))
    theirs.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    expected = theirs.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert fit(quantize.wrap(model, preserve="clusters"), x, y) == pytest.approx(expected, abs=2e-5)


def test_depthwise_kernels_have_a_scale_for_each_channel():
    """As LiteRT's; the toolkit has one for all, because the last axis of such a kernel is the depth multiplier."""
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(inputs))
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype("float32")
    kernel *= np.float32([1, 10, 100])[:, None] * np.float32([1, 0.1])
    model.get_layer("deep").kernel.assign(kernel)
    aware = quantize.wrap(model)
    scale = np.abs(kernel).max((0, 1)) / 127
    expected = np.round(kernel / scale) * scale
    np.testing.assert_allclose(aware.rounded()["deep"].kernels()[1], expected, rtol=1e-5)
    lite = quantize.convert(aware)
    (_, _, _, stored), = file.kernels(lite.parsed)
    np.testing.assert_array_equal(np.abs(stored).reshape(9, 6).max(0), 127)
    np.testing.assert_array_equal(stored.reshape(9, 6), np.round(kernel / scale).reshape(9, 6))


# What is prepared is the same function, in integers


def picture_net():
    inputs = keras.Input((10, 10, 3))
    x = layers.Rescaling(0.5, offset=-0.1)(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5])(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))       # a norm with nothing to fold into
    x = layers.SeparableConv2D(6, 3, padding="same", activation="silu")(x)
    branch = layers.ReLU()(layers.Conv2D(6, 1)(x))
    x = layers.Concatenate()([branch, layers.AveragePooling2D(3, 1, padding="same")(x)])
    x = layers.Conv2D(12, 3, groups=2, activation="hard_silu")(layers.UpSampling2D(interpolation="bilinear")(x))
    gate = layers.Dense(12, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, gate])
    x = layers.ReLU(6.0)(x + 3.0) * (1 / 6)
    x = layers.Conv2DTranspose(3, 3, strides=2)(layers.MaxPooling2D()(x))
    return keras.Model(inputs, layers.Flatten()(layers.Softmax()(x[:, 1:])))


def sequence_net():
    inputs = keras.Input((12, 5))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3, use_bias=False)(inputs)))
    x = layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="gelu")(x)
    x = layers.SeparableConv1D(6, 3, strides=2, padding="same")(x)
    x = layers.DepthwiseConv1D(3, strides=2, padding="same", activation="tanh")(x)
    return keras.Model(inputs, layers.GlobalMaxPooling1D()(layers.BatchNormalization()(layers.Dropout(0.2)(x))))


def vector_net():
    inputs = keras.Input((7,))
    inner_in = keras.Input((6,))
    inner = keras.Model(inner_in, layers.LeakyReLU()(layers.Dense(6)(inner_in)), name="inner")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(layers.BatchNormalization()(inputs))))
    return keras.Model(inputs, layers.Subtract()([inner(inner(x)), x]))


@pytest.mark.slow
@pytest.mark.parametrize("build", [picture_net, sequence_net, vector_net])
def test_rewrites_are_exact_and_in_integers(build):
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = build()
    for weight in model.weights:
        if "moving_variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
        elif weight.path.split("/")[-1] in ("moving_mean", "beta", "gamma", "bias"):
            weight.assign(random.normal(size=weight.shape) * 0.3 + (weight.path.endswith("gamma")))
    x = random.normal(size=(32, *model.input_shape[1:])).astype("float32")
    expected = model.predict(x, verbose=0)
    aware = quantize.wrap(model)
    np.testing.assert_allclose(in_float(aware, x), expected, atol=2e-5)
    assert set(quantize.plan(model)["status"]) == {"selected"}
    assert aware.plan.equals(quantize.plan(model))
    aware = quantize.calibrate(aware, x)
    scale = np.abs(expected).max()
    assert np.abs(aware.predict(x, verbose=0) - expected).max() < 0.08 * scale
    lite = quantize.convert(aware, calibration=x)
    assert (lite.report["integer_ops"], lite.report["integer_macs"], lite.report["float_ops"]) == (1, 1, {})
    assert lite.report["max_difference"] < 0.06 * scale


def test_penalties_stay_where_they_were():
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, layers.Conv1D(4, 3, activation="silu", activity_regularizer="l2",
                                              kernel_regularizer="l1")(inputs))
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
    aware = quantize.calibrate(quantize.wrap(model), x)
    model(x)
    with unrounded():
        aware(x)
        assert float(sum(aware.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)
    aware(x)
    assert float(sum(aware.losses)) == pytest.approx(float(sum(model.losses)), rel=0.03)


@pytest.mark.slow
def test_names_and_policies_of_the_user_do_not_matter():
    """A model with the names Keras would give to the layers that are put in, under a global policy of its own."""
    keras.utils.clear_session()
    inputs = keras.Input((6,), name="reshape")
    x = layers.BatchNormalization(name="reshape_1")(layers.Dense(4, name="identity")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="identity_range")(x))
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    expected = model.predict(x, verbose=0)
    keras.utils.clear_session()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        aware = quantize.wrap(model)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(in_float(aware, x), expected, atol=1e-6)


def test_plan_tells_what_stays_in_float():
    inputs = keras.Input((6, 4))
    x = layers.LayerNormalization(name="norm")(layers.Dense(4, activation="selu", name="dense")(inputs))
    x = layers.LSTM(3, name="rnn")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    plan = quantize.plan(model).set_index("layer")
    assert plan["status"].to_dict() == {"dense": "selected", "dense (its activation)": "skipped", "norm": "skipped",
                                        "rnn": "skipped", "out": "selected"}
    assert plan[["parameters", "affected"]].values.tolist() == [[20, 16], [0, 0], [8, 0], [96, 0], [8, 6]]
    assert "recurrent" in plan["why"]["rnn"]
    x = np.random.default_rng(0).normal(size=(16, 6, 4)).astype("float32")
    lite = quantize.convert(quantize.calibrate(quantize.wrap(model), x), calibration=x)
    assert lite.plan.set_index("layer")["status"].equals(plan["status"])
    ops = lite.ops
    dense = ops[(ops["op"] == "FULLY_CONNECTED") & (ops["dtype"] == "int8")]
    assert len(dense) == 2, "both Dense layers compute in integers, between what does not"
    assert 0 < lite.report["integer_ops"] < 1


def test_where_takes_norm_and_relu_along():
    model = classifier()
    status = quantize.plan(model, where=["first", "classes"]).set_index("layer")["status"]
    assert (status[["first", "classes"]] == "selected").all()
    assert status.drop(["first", "classes"]).value_counts().to_dict() == {"skipped": 6, "selected": 2}
    x, _ = images(16)
    lite = quantize.convert(quantize.calibrate(quantize.wrap(model, where=["first", "classes"]), x), calibration=x)
    kernels = lite.ops[lite.ops["macs"] > 0]
    assert list(kernels["dtype"]) == ["int8", "float32", "float32", "int8"]
    only = quantize.plan(model, where=lambda layer: isinstance(layer, layers.Dense))
    assert list(only[only["status"] == "selected"]["layer"]) == ["classes"]


def test_calibrate_sets_ranges_and_nothing_else():
    x, _ = images()
    model = classifier()
    aware = quantize.wrap(model)
    kept = [v.numpy() for v in aware.variables]
    before = np.abs(aware.predict(x, verbose=0) - model.predict(x, verbose=0)).max()
    ready = quantize.calibrate(aware, x)
    after = np.abs(ready.predict(x, verbose=0) - model.predict(x, verbose=0)).max()
    assert after < before / 2
    for old, variable, new in zip(kept, aware.variables, ready.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
        if variable.name not in ("low", "high"):
            np.testing.assert_array_equal(new.numpy(), old)
    ends = {v.name: v.numpy() for v in ready.variables if "input" in v.path}
    assert ends == {"low": pytest.approx(x.min()), "high": pytest.approx(x.max())}


@pytest.mark.slow
def test_untrained_norms_do_not_make_training_explode():
    """In inference the activations of a fresh deep model shrink; ranges from there would clip all of training."""
    keras.utils.set_random_seed(0)
    x, y = images()
    h = inputs = keras.Input((10, 10, 3))
    for _ in range(6):
        h = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False,
                                                                       kernel_initializer=keras.initializers.RandomNormal(
                                                                           stddev=0.02))(h)))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(h)))
    aware = quantize.calibrate(quantize.wrap(model), x)
    start = [v.numpy() for v in aware.trainable_variables]
    fit(aware, x, y, epochs=1)
    moved = max(np.abs(v.numpy() - old).max() for v, old in zip(aware.trainable_variables, start, strict=True))
    assert moved < 2


# Four bits


def integers(aware):
    """{layer: kernel in units of its scale} of what a wrapped model computes with, (output channels, weights)."""
    found = {}
    for name, layer in aware.rounded().items():
        rounded = layer.kernels()[1]
        if layer.bits == 4:
            scale = np.asarray(layer._max_var) / 7
            found[name] = np.moveaxis(rounded / scale, -1, 0).reshape(rounded.shape[-1], -1)
    return found


def scattered(model, seed=0):
    """Gives every BatchNormalization factors of both signs and statistics of its own."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.normal(size=w.shape) if number < 3 else random.uniform(0.5, 2, w.shape)
                               for number, w in enumerate(layer.get_weights())])
    return model


@pytest.mark.slow
def test_four_bits_of_the_file_are_those_of_the_model():
    x, y = images()
    model = scattered(classifier())
    aware = quantize.calibrate(quantize.wrap(model, bits=4), x)
    loss = fit(aware, x, y, epochs=3)
    assert loss[-1] < loss[0]
    lite = quantize.convert(aware, calibration=x)
    expected, gammas = integers(aware), aware.layers[3].gamma.numpy()
    stored = {kind + str(values.shape[-1]): values for kind, *_, values in file.kernels(lite.parsed)}
    assert {kind: values.shape for kind, values in stored.items()} == {
        "CONV_2D3": (6, 3, 3, 3), "DEPTHWISE_CONV_2D6": (1, 3, 3, 6), "CONV_2D6": (8, 1, 1, 6),
        "FULLY_CONNECTED8": (4, 8)}
    assert set(expected) == {"first", "wide", "classes"}
    pairs = {"first": stored["CONV_2D3"] * np.sign(gammas)[:, None, None, None], "wide": stored["CONV_2D6"],
             "classes": stored["FULLY_CONNECTED8"]}
    for name, kernel in pairs.items():
        np.testing.assert_allclose(kernel.reshape(len(kernel), -1), expected[name], atol=1e-3)
        assert np.abs(kernel).max() == 7
    assert np.abs(stored["DEPTHWISE_CONV_2D6"]).max() == 127
    weights = lite.ops[lite.ops["macs"] > 0].set_index("op")["weights"]
    assert weights["DEPTHWISE_CONV_2D"] == "int8"
    assert set(weights.drop("DEPTHWISE_CONV_2D")) == {"int4"}
    report = lite.report
    assert (report["mode"], report["integer_ops"]) == ("int4", 1)
    assert report["max_difference"] < 0.02
    assert report["float_model"] == "the model passed to quantize.wrap"


def test_plan_says_which_kernels_have_four_bits():
    inputs = keras.Input((10, 10, 3))
    x = layers.SeparableConv2D(4, 3, name="both")(layers.DepthwiseConv2D(3, name="deep")(inputs))
    x = layers.Reshape((-1, 3))(layers.Conv2DTranspose(3, 3, name="up")(x))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Conv1D(4, 3, name="row")(x)))
    plan = quantize.plan(model, bits=4).set_index("layer")
    assert set(plan["status"]) == {"selected"}
    assert plan["why"][["both", "deep", "up", "row", "out"]].tolist() == [
        "depthwise kernel in 8 bits, the other in 4", "kernel in 8 bits: LiteRT takes none of 4 here",
        "kernel in 8 bits: LiteRT takes none of 4 here", "kernel in 4 bits", "kernel in 4 bits"]
    aware = quantize.wrap(model, bits=4)
    assert aware.plan.equals(quantize.plan(model, bits=4))
    assert {name: layer.bits for name, layer in aware.rounded().items()} == {
        "deep": 8, "both_depthwise": 8, "both": 4, "up": 8, "row": 4, "out": 4}
    assert set(quantize.plan(model)["why"]) == {""}
    with pytest.raises(ValueError, match="finds no kernel that can have 4 bits"):
        quantize.wrap(model, bits=4, where=["deep"])
    with pytest.raises(ValueError, match=r"converted as it was trained.*trained_for='int4'"):
        quantize.convert(aware, "int8")


@pytest.mark.slow
@pytest.mark.parametrize("build", [picture_net, sequence_net, vector_net])
def test_files_in_four_bits_compute_what_the_model_computes(build):
    keras.utils.set_random_seed(0)
    model = build()
    x = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    aware = quantize.calibrate(quantize.wrap(model, bits=4), x)
    lite = quantize.convert(aware, calibration=x)
    assert (lite.report["integer_ops"], lite.report["integer_macs"]) == (1, 1)
    assert "int4" in set(lite.ops["weights"])
    assert lite.report["max_difference"] < 0.06 * np.abs(model.predict(x, verbose=0)).max()


@pytest.mark.parametrize("spread", [0.0, 0.01])
@pytest.mark.parametrize("bits", [8, 4])
def test_channels_without_weights_keep_their_bias(bits, spread, rng):
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 3), keras.layers.DepthwiseConv2D(3)])
    bias = 0.7 + spread * np.arange(4)                     # the same for all channels: the converter has a fault there
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        kernel.reshape(-1, 4)[:, 1:3] = 0, 1e-12
        layer.set_weights([kernel, bias])
    x = rng.normal(size=(32, 6, 6, 4)).astype("float32")
    aware = quantize.calibrate(quantize.wrap(model, bits=bits), x)
    expected, found = aware.predict(x, verbose=0), quantize.convert(aware).predict(x)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.ptp(expected))
    np.testing.assert_allclose(found[..., 1:3], np.broadcast_to(bias[1:3], found[..., 1:3].shape), atol=0.02)


@pytest.mark.slow
def test_zeros_and_shared_values_in_four_bits_saved_and_loaded(tmp_path):
    x, y = images()
    trained = quantize.calibrate(quantize.wrap(sparse_and_shared(classifier()), bits=4, preserve="both"), x)
    fit(trained, x, y)
    trained.save(tmp_path / "aware.keras")
    aware = keras.models.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(aware.predict(x, verbose=0), trained.predict(x, verbose=0))
    before = {name: layer.kernels()[0] for name, layer in aware.rounded().items() if layer.bits == 4}
    lite = quantize.convert(aware, calibration=x)
    assert lite.report["sparsity"] > 0.4
    assert lite.report["clusters"] <= 7
    assert lite.report["mode"] == "int4"
    stored = [values for kind, *_, values in file.kernels(lite.parsed) if kind != "DEPTHWISE_CONV_2D"]
    for kernel, values in zip(before.values(), stored, strict=True):
        rows = np.moveaxis(kernel, -1, 0).reshape(values.shape)
        assert (values[rows == 0] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_channels_of_very_different_ranges_are_equalized_first(bits):
    keras.utils.set_random_seed(0)
    x, _ = images()
    model = keras.Sequential([keras.Input((10, 10, 3)), layers.Conv2D(24, 3, use_bias=False),
                              layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(8, 1), layers.Flatten()])
    factors = np.exp(2 * np.random.default_rng(0).normal(size=24))
    model.layers[1].gamma.assign(factors)
    model.layers[3].kernel.assign(model.layers[3].kernel / factors[:, None])
    expected = model.predict(x, verbose=0)
    aware = quantize.wrap(model, bits=bits)
    np.testing.assert_allclose(in_float(aware, x), expected, atol=1e-5)
    as_it_is = quantize.wrap(model, bits=bits, where=lambda layer: isinstance(layer, layers.Conv2D))
    noise = [np.mean((quantize.calibrate(each, x).predict(x, verbose=0) - expected) ** 2) for each in (aware, as_it_is)]
    assert noise[0] < 0.3 * noise[1]


# Zeros and shared values


@pytest.mark.slow
@pytest.mark.parametrize("preserve", ["sparsity", "clusters", "both"])
def test_preserved_in_the_file(preserve):
    x, y = images()
    model = sparse_and_shared(classifier(), share=0 if preserve == "clusters" else 0.5)
    kernels = [layer.kernel.numpy() for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    share = sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels)
    aware = quantize.calibrate(quantize.wrap(model, preserve=preserve), x)
    start = kernels_of(aware)
    fit(aware, x, y)
    assert all((kernel != start[name]).any() for name, kernel in kernels_of(aware).items()), "it trained"
    lite = quantize.convert(aware, calibration=x)
    if preserve != "clusters":
        assert lite.report["sparsity"] >= share > 0.4
    if preserve != "sparsity":
        assert lite.report["clusters"] <= 7
    for kind, _, _, values in file.kernels(lite.parsed):
        if kind == "DEPTHWISE_CONV_2D":
            continue
        rows = values if values.ndim == 4 else [values]
        if preserve != "sparsity":
            assert max(len(np.unique(row)) for row in rows) <= 7
        if preserve != "clusters":
            assert 0.3 < (values == 0).mean() < 0.9, "zeros are kept, and not everything is zero (issue 979: 1x1)"


@pytest.mark.slow
def test_ordinary_training_would_lose_them():
    """Negative control of the test above."""
    x, y = images()
    aware = quantize.calibrate(quantize.wrap(sparse_and_shared(classifier())), x)
    fit(aware, x, y)
    lite = quantize.convert(aware, calibration=x)
    assert "sparsity" not in lite.report
    values = next(values for kind, *_, values in file.kernels(lite.parsed) if kind == "FULLY_CONNECTED")
    assert len(np.unique(values)) > 12
    assert (values == 0).mean() < 0.2


def test_channels_with_values_of_their_own_keep_them():
    x, y = images()
    random = np.random.default_rng(0)
    model = classifier()
    kernel = model.get_layer("first").kernel
    table = random.normal(size=(6, 4)).astype("float32") * 0.2
    kernel.assign(np.take_along_axis(table, random.integers(0, 4, (6, 27)), 1).T.reshape(kernel.shape))
    aware = quantize.calibrate(quantize.wrap(model, preserve="clusters", where=["first"]), x)
    assert aware.rounded()["first"].centroids == [6, 4]
    fit(aware, x, y)
    assert quantize.convert(aware, calibration=x).report["clusters"] == 4


def test_transposed_and_depthwise_kernels_keep_their_zeros():
    random = np.random.default_rng(0)
    x = random.normal(size=(16, 6, 6, 3)).astype("float32")
    inputs = keras.Input((6, 6, 3))
    h = layers.Conv2DTranspose(5, 3, name="up")(layers.DepthwiseConv2D(3, name="deep")(inputs))
    model = keras.Model(inputs, layers.Conv1D(4, 3, name="row")(layers.Reshape((36, 5))(h)))
    for name in ("up", "deep", "row"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * (random.random(kernel.shape) < 0.5))
    aware = quantize.calibrate(quantize.wrap(model, preserve="sparsity"), x)
    fit(aware, x, np.ones((16, 34, 4)), epochs=1, loss="mse")
    assert 0.35 < quantize.convert(aware, calibration=x).report["sparsity"] < 0.65


def test_a_file_that_lost_its_zeros_is_refused(monkeypatch):
    x, _ = images(16)
    aware = quantize.wrap(sparse_and_shared(classifier()), preserve="sparsity")
    own = RoundedKernel.kernels
    monkeypatch.setattr(RoundedKernel, "kernels", lambda self: (np.roll(own(self)[0], 1), own(self)[1]))
    with pytest.raises(ValueError, match=r"must keep what quantize.wrap preserved. Received: lost="):
        quantize.convert(aware, calibration=x)


# A model like any other


PROGRAM = """
import sys, numpy as np, keras
from tfopt import quantize
x, y = np.load("x.npy"), np.load("y.npy")
for name in sys.argv[1:]:
    model = keras.models.load_model(f"{name}.keras")
    print(np.abs(model.predict(x, verbose=0) - np.load(f"{name}.npy")).max())
    print(*model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0).history["loss"])
"""


@pytest.mark.slow
def test_saved_loaded_and_trained_on_in_another_process(tmp_path, run_python):
    x, y = images()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    losses = []
    for name, preserve in (("plain", None), ("kept", "both")):
        aware = quantize.calibrate(quantize.wrap(sparse_and_shared(classifier()), preserve=preserve), x)
        fit(aware, x, y, epochs=1)
        aware.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", aware.predict(x, verbose=0))
        losses.append(aware.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0).history["loss"][0])
    lines = run_python(PROGRAM, "plain", "kept").split()
    assert [float(lines[0]), float(lines[2])] == [0.0, 0.0]
    assert [float(lines[1]), float(lines[3])] == pytest.approx(losses, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "close"), [
    ({"steps_per_execution": 3}, 1e-5), ({"run_eagerly": True}, 2e-4),
    ({"jit_compile": True}, 5e-3)])                       # XLA adds in another order, so some values round otherwise
def test_every_way_to_run_gives_the_same(options, close):
    x, y = images(24)
    expected = fit(quantize.wrap(sparse_and_shared(classifier()), preserve="both"), x, y, epochs=1)
    got = fit(quantize.wrap(sparse_and_shared(classifier()), preserve="both"), x, y, epochs=1, **options)
    assert got == pytest.approx(expected, abs=close)


TWO = """
import numpy as np, keras, tensorflow as tf
from tfopt import quantize
layers = keras.layers
random = np.random.default_rng(0)
x, y = random.normal(size=(32, 6)).astype("float32"), random.normal(size=(32, 2)).astype("float32")
def run():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    kernel = model.layers[0].kernel
    kernel.assign(np.round(kernel.numpy() * 4) / 4)
    aware = quantize.calibrate(quantize.wrap(model, preserve="both"), x)
    aware.compile(keras.optimizers.SGD(0.05), "mse")
    return aware, aware.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
_, one = run()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    aware, two = run()
lite = quantize.convert(aware, calibration=x)
print(np.abs(np.subtract(one, two)).max(), one[0] - one[-1], lite.report["integer_ops"], lite.report["max_difference"])
"""


@pytest.mark.slow
def test_two_devices(run_python):
    difference, learned, integer, gap = map(float, run_python(TWO, devices=2).split())
    assert difference < 0.01, "the ranges are each device's own, averaged"
    assert learned > 5 * difference
    assert integer == 1
    assert gap < 0.2


@pytest.mark.slow
def test_student_of_a_distiller():
    x, y = images()
    student = quantize.calibrate(quantize.wrap(classifier(2)), x)
    distiller = distill.Distiller(classifier(), student, distill.Logits())
    loss = fit(distiller, x, y)
    assert loss[-1] < loss[0]
    assert quantize.convert(student, calibration=x).report["integer_ops"] == 1


def test_frozen_layers_stay_frozen_and_the_model_is_untouched():
    x, y = images()
    model = classifier()
    model.get_layer("first").trainable = False
    model.compile("adam", "mse")
    before, optimizer = model.get_weights(), model.optimizer
    aware = quantize.calibrate(quantize.wrap(model), x)
    frozen = kernels_of(aware)["first"]
    fit(aware, x, y)
    np.testing.assert_array_equal(kernels_of(aware)["first"], frozen)
    assert model.optimizer is optimizer
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_model_converts():
    x, y = images(16)
    inputs = keras.Input((10, 10, 3))
    h = layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax", dtype="float32")(layers.Flatten()(h)))
    aware = quantize.calibrate(quantize.wrap(model), x)
    fit(aware, x, y, epochs=1)
    assert quantize.convert(aware, calibration=x).report["integer_macs"] == 1


def test_refusals():
    class Own(keras.Model):
        def call(self, x):
            return x

    model, own = classifier(), Own()
    for caller in (quantize.wrap, quantize.plan):
        with pytest.raises(ValueError, match="needs a built model"):
            caller(keras.Sequential([layers.Dense(2)]))
        own(np.zeros((1, 2)))
        with pytest.raises(ValueError, match="functional or Sequential"):
            caller(own)
        with pytest.raises(TypeError, match=r"must be a Keras 3 model.*tf_keras"):
            caller(tf_keras.Sequential([tf_keras.layers.Dense(2)]))
        with pytest.raises(ValueError, match="must choose at least one layer that can be quantized"):
            caller(model, where=lambda layer: False)
        with pytest.raises(ValueError, match="must name layers of the model"):
            caller(model, where="nowhere")
        with pytest.raises(ValueError, match="needs a plain model"):
            caller(quantize.wrap(model))
    with pytest.raises(ValueError, match=r"`preserve` must be None"):
        quantize.wrap(model, preserve="zeros")
    with pytest.raises(ValueError, match="finds nothing to preserve"):
        quantize.wrap(model, preserve="sparsity")
    with pytest.raises(ValueError, match=r"needs a model that came from quantize\.wrap"):
        quantize.calibrate(model, images(4)[0])
    with pytest.raises(ValueError, match=r"converted as it was trained.*trained_for='int8'"):
        quantize.convert(quantize.wrap(model), "float16")
    pruned = prune.wrap(model, 0.5)
    for caller in (quantize.convert, quantize.wrap):
        with pytest.raises(ValueError, match=r"plain model or one from quantize\.wrap.*Call prune\.strip"):
            caller(pruned)
    recurrent = keras.Sequential([keras.Input((3, 2)), layers.LSTM(2)])
    with pytest.raises(ValueError, match="finds no layer that it can quantize"):
        quantize.wrap(recurrent)
