"""Integers chosen by error compensation, against brute force, slow numpy and the converter's own file."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt import quantize
from tfopt._litert import file, run
from tfopt._litert.convert import to_lite
from tfopt._litert.segments import Segments
from tfopt.quantize import _equalize, _ranges, _rounding

SLOWER = "ignore:quantize.convert. dynamic range makes a model with depthwise"


def network(spread=0.0):
    """A separable network whose channels have ranges that differ by about e ** spread."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, use_bias=False)(inputs)))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Conv2D(48, 1, strides=2, activation="relu")(layers.MaxPooling2D(2)(x))
    x = layers.Dense(40, "relu")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(6)(x))
    for layer in model.layers:
        layer.set_weights([w + 0.1 * rng.normal(size=w.shape) ** 2 for w in layer.get_weights()])
    norm = model.layers[2]
    norm.set_weights([np.exp(spread * rng.normal(size=32)), *norm.get_weights()[1:]])
    following = model.layers[4]
    kernel, bias = following.get_weights()
    following.set_weights([kernel / norm.get_weights()[0][:, None], bias])
    return model


def photos(count=64):
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(count, 4, 4, 3))
    return (np.repeat(np.repeat(coarse, 3, 1), 3, 2) + 0.2 * rng.normal(size=(count, 12, 12, 3))).astype("float32")


def cost(w, q, h):
    return np.einsum("rk,kl,rl->r", w - q, h, w - q)


def covariance(rng, size):
    mixed = rng.normal(size=(200, size)) @ rng.normal(size=(size, size))
    return mixed.T @ mixed / 200


def test_no_choice_of_neighbors_is_much_better(rng):
    """Of 2 ** 6 ways to round a row up or down, the one that is found costs at most a little more than the best."""
    h, w = covariance(rng, 6), rng.normal(size=(40, 6)) * 20
    found = _rounding._chosen(w, h, w == 0, 127, True)
    ways = np.array(list(itertools.product((0, 1), repeat=6)))
    best = np.array([min(cost(np.repeat(row[None], 64, 0), np.floor(row) + ways, h)) for row in w])
    assert cost(w, found, h).mean() <= 1.1 * best.mean()
    assert cost(w, np.round(w), h).mean() > 1.5 * best.mean()                    # control: nearest rounding is not


def test_uncorrelated_inputs_ask_for_the_nearest(rng):
    w = rng.normal(size=(5, 40)) * 30
    np.testing.assert_array_equal(_rounding._chosen(w, np.diag(rng.uniform(1, 2, 40)), w == 0, 127, True), np.round(w))


def test_blocks_change_nothing(rng, monkeypatch):
    h, w = covariance(rng, 50) + np.eye(50), rng.normal(size=(8, 50)) * 30
    whole = _rounding._chosen(w, h, w == 0, 127, True)
    monkeypatch.setattr(_rounding, "_BLOCK", 7)
    np.testing.assert_array_equal(_rounding._chosen(w, h, w == 0, 127, True), whole)
    each = np.repeat(h[None], 8, 0)
    monkeypatch.setattr(_rounding, "_BLOCK", 128)
    assert cost(w, _rounding._chosen(w, each, w == 0, 127, True), h).mean() < 1.2 * cost(w, whole, h).mean()


@pytest.mark.parametrize(("padding", "strides", "dilation"), [("same", 2, 1), ("valid", 1, 2), ("same", 1, 3),
                                                              ("valid", 3, 1)])
def test_windows_are_what_the_convolution_sees(rng, padding, strides, dilation):
    x = rng.normal(size=(2, 9, 10, 3)).astype("float32")
    inputs = keras.Input((9, 10, 3))
    conv = layers.Conv2D(4, (3, 2), strides, padding, dilation_rate=dilation, use_bias=False)
    parsed = file.parse(quantize.convert(keras.Model(inputs, conv(inputs)), "float32").content)
    op = next(op for op in parsed.subgraphs[0].operators if file.kind_of(parsed, op) == "CONV_2D")
    kernel = file.constant(parsed, op.inputs[1])
    expected = conv(x).numpy().reshape(-1, 4)
    if dilation > 1 and len(parsed.subgraphs[0].operators) > 1:
        pytest.skip("the converter spelled the dilation out as other operations")
    patches = _rounding._conv_patches(op, kernel.shape, x, 10 ** 6)
    np.testing.assert_allclose(patches @ kernel.reshape(4, -1).T, expected, atol=1e-5)
    means = _rounding._means("CONV_2D", op, kernel.shape, x, 4)
    np.testing.assert_allclose((kernel.reshape(4, -1) * means).sum(1), expected.mean(0), atol=1e-5)


def test_ranges_of_least_squared_error(rng):
    """Against brute force; and a file whose rare large values cost all others their precision."""
    values = np.maximum(rng.standard_t(2, size=5000), 0)
    scale = values.max() / 255

    def error(step):
        return np.mean((np.clip(np.round(values / step), 0, 255) * step - values) ** 2)

    found, zero = _ranges.best(values, scale, -128)
    assert zero == -128
    assert error(found) <= min(error(scale * ratio) for ratio in np.linspace(0.4, 1, 100)) * 1.05
    assert _ranges.best(rng.uniform(0, 1, 5000), 1 / 255, -128)[0] == pytest.approx(1 / 255)      # nothing to cut off


def test_narrowed_ranges_win_where_large_values_are_rare():
    model, x = network(), photos(96)
    x[::32] *= 6
    levels = quantize.convert(model, "int8", calibration=x).report["sqnr_db"]
    assert levels["compensated, narrowed ranges"] > levels["compensated"] + 0.3
    exact, nearest = (file.parse(quantize.convert(model, mode, calibration=x, rounding="nearest").content)
                      for mode in ("float32", "int8"))
    before = file.parse(file.pack(nearest))
    batches = [file.stored(x[:40], file.inputs(exact)[0])[:, None]]
    _ranges.narrow(exact, nearest, batches)
    steps = [[file.tensor(one, op.outputs[0]).quantization.scale[0] for op in one.subgraphs[0].operators]
             for one in (before, nearest)]
    assert any(new < 0.99 * old for old, new in zip(*steps, strict=True))
    for one in (before, nearest):
        for op in one.subgraphs[0].operators:
            if file.kind_of(one, op) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                held, kernel, bias = (file.tensor(one, index) for index in op.inputs[:3])
                np.testing.assert_allclose(bias.quantization.scale, held.quantization.scale * kernel.quantization.scale,
                                           rtol=1e-5)


def test_a_file_in_stretches_computes_what_it_computes_whole():
    lite = quantize.convert(network(), "int8", calibration=photos(), rounding="nearest")
    parsed, x = lite.parsed, photos(5)
    held = file.inputs(parsed)[0]
    walk = Segments(parsed, [1, 2, 4], [file.stored(x, held)[:, None]])
    for _ in range(4):
        walk.run()
    (index, found), = walk.values.items()
    expected = run.batches(run.interpreter(lite.content), [x])[0]
    np.testing.assert_allclose(file.real(found[:, 0], file.tensor(parsed, index)), expected, atol=1e-6)


@pytest.mark.filterwarnings(SLOWER)
@pytest.mark.parametrize("mode", ["int8", "dynamic", "int16x8", "int4"])
def test_compensated_beats_nearest_on_samples_it_has_not_seen(mode):
    model, x = network(), photos(96)
    files = {way: quantize.convert(model, mode, calibration=x[:64], rounding=way) for way in ("auto", "nearest")}
    expected = model.predict(x[64:], verbose=0)
    noise = {way: np.mean((lite.predict(x[64:]) - expected) ** 2) for way, lite in files.items()}
    assert noise["auto"] < 0.6 * noise["nearest"]
    assert files["auto"].report["rounding"] == "compensated"
    assert files["nearest"].report["rounding"] == "nearest"
    assert abs(files["auto"].size - files["nearest"].size) < 400                 # the note inside


def test_the_covariance_of_other_values_does_not_help(monkeypatch):
    """Control: with the values of each patch in another order, most of the gain is gone."""
    model, x = network(), photos()
    monkeypatch.setattr(_rounding._Layer, "_set_bias", lambda *args: False)

    def gain():
        levels = quantize.convert(model, "int8", calibration=x).report["sqnr_db"]
        return levels["compensated"] - levels["nearest"]

    right = gain()
    others = {kind: reversed_order(each) for kind, each in _rounding._PATCHES.items()}
    monkeypatch.setattr(_rounding, "_PATCHES", others)
    assert gain() < 0.5 * right


def reversed_order(patches):
    return lambda *args: patches(*args)[..., ::-1]


@pytest.mark.filterwarnings(SLOWER)
def test_the_mean_of_the_outputs_is_that_of_the_float_model():
    model, x = network(), photos()
    known = x[:48]
    expected = model.predict(known, verbose=0).mean(0)
    gaps = [np.abs(quantize.convert(model, "dynamic", calibration=x, rounding=way).predict(known).mean(0) - expected)
            for way in ("auto", "nearest")]
    assert gaps[0].max() < 0.5 * gaps[1].max()


@pytest.mark.filterwarnings(SLOWER)
@pytest.mark.parametrize("mode", ["int8", "dynamic", "int16x8", "int4"])
def test_layers_without_bias_are_corrected_one_by_one(mode, rng):
    """The converter keeps their zeros once: a correction of one of them must not reach the others."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2, 2, 36)), *(layers.Conv2D(36, 1, activation=activation, use_bias=False)
                                                         for activation in [*["relu"] * 5, None])])
    x = rng.uniform(0, 2, (100, 2, 2, 36)).astype("float32")
    before, after = (file.parse(content) for content in files_of(model, x, mode))
    _rounding.rounded(before, after, [x], bits=4 if mode == "int4" else 8)
    biases = [after.subgraphs[0].tensors[op.inputs[2]].buffer for op in after.subgraphs[0].operators
              if file.kind_of(after, op) == "CONV_2D"]
    assert len(set(biases)) == 6
    found = run.batches(run.interpreter(file.pack(after)), [x])[0]
    gap = np.abs((found - model.predict(x, verbose=0)).mean((0, 1, 2))).max()
    assert gap < 0.002 * np.abs(found).max()


def files_of(model, x, mode):
    return [to_lite(model, model.inputs, [x], one, False)[0] for one in ("float32", "int8" if mode == "int4" else mode)]


def test_zeros_and_shared_values_stay():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((40,)), layers.Dense(40, "relu"), layers.Dense(40, "relu"), layers.Dense(4)])
    sparse, shared, _ = model.layers
    kernel, bias = sparse.get_weights()
    sparse.set_weights([np.where(np.abs(kernel) < 0.1, 0, kernel), bias + 0.1])
    kernel, bias = shared.get_weights()
    shared.set_weights([np.round(kernel * 20) / 20, bias + 0.1])
    x = np.random.default_rng(0).normal(size=(64, 40)).astype("float32")
    lite = quantize.convert(model, "int8", calibration=x)
    stored = [values for *_, values in file.kernels(lite.parsed)]
    assert (stored[0][sparse.get_weights()[0].T == 0] == 0).all()
    values = shared.get_weights()[0].T
    assert all(len(np.unique(row)) <= len(np.unique(own)) for row, own in zip(stored[1], values, strict=True))


@pytest.mark.parametrize(("values", "channels", "shared"), [
    (np.arange(32) % 4 + 1, 4, True), (np.arange(64) + 1, 8, False), (np.ones(8), 2, True), (np.ones(1), 1, False),
    (np.where(np.arange(2000) % 10, 0, np.arange(2000)), 20, False),              # 200 different weights, the rest zero
    (np.repeat(np.arange(640), 10), 64, True),                                     # more than 256 values, ten a channel
    (np.random.default_rng(0).normal(size=640), 64, False)])
def test_which_kernels_hold_shared_values(values, channels, shared):
    assert _rounding.holds_shared_values(values.reshape(channels, -1)) == shared


@pytest.mark.parametrize("by_channel", [False, True])
def test_clusters_of_a_small_kernel_stay(by_channel, rng):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((24,)), layers.Dense(16, "relu"), layers.Dense(3)])
    table = rng.normal(size=(16, 4)) if by_channel else np.tile(rng.normal(size=4), (16, 1))
    kernel = np.stack([channel[rng.integers(0, 4, 24)] for channel in table], axis=1)
    model.layers[0].set_weights([kernel, rng.normal(size=16)])
    x = (rng.normal(size=(64, 4)) @ rng.normal(size=(4, 24))).astype("float32")   # else the nearest integers are best
    before, after = (file.parse(content) for content in files_of(model, x, "int8"))
    _rounding.rounded(before, after, [x])
    stored = next(values for *_, values in file.kernels(after))
    assert [len(np.unique(row)) for row in stored] == [len(np.unique(channel)) for channel in kernel.T]


@pytest.mark.slow
def test_four_bits_are_in_the_file():
    lite = quantize.convert(network(), "int4", calibration=photos())
    kinds = {kind: (entry.dtype, np.abs(entry).max()) for kind, _, _, entry in file.kernels(lite.parsed)}
    assert kinds["CONV_2D"][1] <= 7
    assert kinds["FULLY_CONNECTED"][1] <= 7
    assert kinds["DEPTHWISE_CONV_2D"][1] > 7                                     # stays in eight
    weights = lite.ops.set_index("op")["weights"].to_dict()
    assert weights["CONV_2D"] == weights["FULLY_CONNECTED"] == "int4"
    assert lite.size < quantize.convert(network(), "int8", calibration=photos()).size - 1500      # 1,800 of 3,700 bytes


def test_a_channel_without_weights_keeps_its_bias_in_four_bits():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20,)), layers.Dense(8), layers.Dense(8, "relu")])
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        kernel[:, 2], kernel[:, 5] = 0, 1e-12
        layer.set_weights([kernel, bias + 0.7])
    x = np.random.default_rng(0).normal(size=(64, 20)).astype("float32")
    for way in ("auto", "nearest"):
        found = quantize.convert(model, "int4", calibration=x, rounding=way).predict(x)
        np.testing.assert_allclose(found[:, [2, 5]], 0.7, atol=0.02)


def test_equalization_is_exact_and_pays():
    model, x = network(spread=2.0), photos(96)
    other = _equalize.equalized(model)
    np.testing.assert_allclose(other(x), model(x), rtol=1e-4, atol=1e-5)
    report = quantize.convert(model, "int8", calibration=x).report
    assert report["rounding"].startswith("equalized, compensated")
    assert report["sqnr_db"][report["rounding"]] > report["sqnr_db"]["nearest"] + 3
    assert _equalize.equalized(network()) is None                                # nothing to gain


@pytest.mark.parametrize("steps", [5, 8])
def test_a_norm_of_another_axis_ends_a_pair(steps, rng):
    """Its gamma is none of the layer's channels, also where there are as many."""
    inputs = keras.Input((steps, 6))
    first = layers.Dense(8)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(first(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    first.kernel.assign(first.kernel * 10.0 ** np.linspace(-2, 2, 8))
    report = quantize.convert(model, calibration=rng.normal(size=(32, steps, 6))).report
    assert min(report["sqnr_db"].values()) > 20, report


def test_layers_that_bend_otherwise_are_not_equalized():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu6")(inputs)
    x = layers.Conv2D(4, 3, activation="gelu")(x)
    first = layers.Conv2D(4, 1, activation="relu")(x)                            # read by two
    x = layers.Add()([layers.Conv2D(4, 1)(first), layers.Conv2D(4, 1)(first)])
    assert _equalize._pairs(keras.Model(inputs, x)) == []


def test_a_shared_layer_keeps_its_kernel():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20,))
    shared = layers.Dense(20, "relu")
    model = keras.Model(inputs, layers.Dense(3)(shared(shared(inputs))))
    x = np.random.default_rng(0).normal(size=(64, 20)).astype("float32")
    found, plain = (quantize.convert(model, "int8", calibration=x, rounding=way) for way in ("auto", "nearest"))
    kernels = [[values for *_, values in file.kernels(lite.parsed)] for lite in (found, plain)]
    np.testing.assert_array_equal(kernels[0][0], kernels[1][0])
    np.testing.assert_allclose(found.predict(x), model.predict(x, verbose=0), atol=0.2)


def separable():
    return keras.Sequential([keras.Input((12, 12, 3)), layers.SeparableConv2D(16, 3, depth_multiplier=2),
                             layers.BatchNormalization(scale=False), layers.ReLU(6.0),
                             layers.Conv2D(16, 3, groups=4, padding="same"), layers.PReLU(shared_axes=[1, 2]),
                             layers.GlobalAveragePooling2D(), layers.Dense(5)])


def wide_depthwise():
    return keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(8, 1), layers.DepthwiseConv2D(9, padding="same"),
                             layers.Conv2D(4, 1)])


def in_double():
    inputs = keras.Input((12, 12, 3), dtype="float64")
    x = layers.Conv2D(8, 3, activation="relu", dtype="float64")(inputs)
    return keras.Model(inputs, layers.Dense(4, dtype="float64")(layers.Flatten(dtype="float64")(x)))


@pytest.mark.parametrize("build", [separable, wide_depthwise, in_double])
def test_other_networks_never_lose(build):
    """Kernels that are larger than a block, several channels of one, double precision; on samples none has seen."""
    keras.utils.set_random_seed(0)
    model, x = build(), photos(96)
    expected = model.predict(x[64:], verbose=0)
    files = [quantize.convert(model, "int8", calibration=x[:64], rounding=way) for way in ("auto", "nearest")]
    auto, nearest = (np.mean((lite.predict(x[64:]) - expected) ** 2) for lite in files)
    assert auto < 1.1 * nearest


def test_what_litert_cannot_do_is_refused_in_one_sentence():
    x = np.random.default_rng(0).normal(size=(32, 20)).astype("float32")
    inputs = keras.Input((20,))
    shared = layers.Dense(20)
    with pytest.raises(ValueError, match=r"^quantize\.convert: int4 needs a kernel that one layer alone uses"):
        quantize.convert(keras.Model(inputs, shared(shared(inputs))), "int4", calibration=x)
    with pytest.raises(ValueError, match=r"^quantize\.convert: LiteRT cannot run this model in this mode"):
        quantize.convert(keras.Model(inputs, layers.Activation("soft_shrink")(inputs)), "int16x8", calibration=x)


@pytest.mark.slow
def test_the_norm_of_one_feature_converts(run_python):
    """Its variance is zero, in steps of 1e-8, for which LiteRT ends the whole process; and it is lost in rounding."""
    assert "ok" in run_python("""
import keras, numpy as np
from keras import layers
from tfopt import quantize
keras.utils.set_random_seed(0)
inputs = keras.Input((12, 1))
h = layers.LayerNormalization(epsilon=1e-6)(layers.Conv1D(1, 3, bias_initializer="ones")(inputs))
model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h + inputs[:, 2:])))
x = np.random.default_rng(0).normal(size=(48, 12, 1)).astype("float32")
expected = model.predict(x)
found = quantize.convert(model, "int8", calibration=x).predict(x)
np.testing.assert_allclose(found, expected, atol=0.03 * np.ptp(expected))

class NoGraph(keras.Model):
    def call(self, x):
        return model(x)

other = NoGraph()
other(x)
lite = quantize.convert(other, "int8", calibration=x)
np.testing.assert_allclose(np.abs(lite.predict(x) - expected).max(), lite.report["max_difference"], rtol=1e-3)
print("ok")
""")


class Stepped(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


def test_the_norm_of_one_feature_in_a_class_of_ones_own(rng):
    inputs = keras.Input((12, 1))
    h = layers.LayerNormalization()(layers.Conv1D(1, 3)(inputs)) + inputs[:, 2:]
    model = Stepped(inputs, layers.Dense(2)(layers.Flatten()(h)))
    x = rng.normal(size=(48, 12, 1)).astype("float32")
    expected = model.predict(x, verbose=0)
    aware = quantize.calibrate(quantize.wrap(model), x)
    for lite in (quantize.convert(model, "int8", calibration=x), quantize.convert(aware)):
        np.testing.assert_allclose(lite.predict(x), expected, atol=0.03 * np.ptp(expected))


def test_the_model_stays_as_it_was():
    model = network(spread=2.0)
    before = [w.copy() for w in model.get_weights()]
    quantize.convert(model, "int8", calibration=photos(32))
    assert all(map(np.array_equal, before, model.get_weights()))


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match="`rounding` must be"):
        quantize.convert(network(), "int8", calibration=photos(), rounding="up")
    assert tf.executing_eagerly()
