"""The doctor names the layer that was broken, and none where nothing is broken."""

import keras
import numpy as np
import pytest

from tfopt import quantize
from tfopt.quantize import _diagnose

layers = keras.layers
FAR = "ignore:quantize.convert. the outputs"               # as these networks are made to be


def network():
    """Normalization and ReLU folded away, a branch, an addition, a nested model."""
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((12, 12, 8)), layers.Conv2D(8, 3, padding="same", name="inside"),
                              layers.ReLU(name="inside_relu")], name="nested")
    x = inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = branch = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="first_norm")(x))
    x = layers.Add(name="sum")([inner(x), branch])
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depth")(x)
    x = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D(name="pool")(x))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(5, name="classes")(x))


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0)
    return (noise.normal(size=(128, 12, 12, 3)) + noise.normal(size=(128, 1, 1, 3))).astype("float32")


def losing(table):
    return list(table.layer[table.status == "loses"])


@pytest.mark.parametrize("made", ["after training", "in training", "float32"])
def test_a_good_file_has_no_complaint(images, made):
    model = network()
    if made == "in training":
        lite = quantize.convert(quantize.calibrate(quantize.wrap(model), images))
    else:
        lite = quantize.convert(model, "float32" if made == "float32" else "int8", calibration=images,
                                rounding="nearest")
    table = quantize.diagnose(model, lite, images).set_index("layer")
    assert losing(table.reset_index()) == []
    for name in ("nested/inside_relu", "sum", "depth", "hidden", "classes", "first_relu"):
        assert table.status[name] == "fine", table.loc[name]
        assert (table.own[name] > 90) if made == "float32" else 20 < table.own[name] < 70
    assert list(table.status[["first", "first_norm", "nested/inside"]]) == ["fused"] * 3
    assert list(table.index) == ["first", "first_norm", "first_relu", "nested/inside", "nested/inside_relu", "sum",
                                 "depth", "pool", "drop", "hidden", "classes"]


def spoil(model, name):
    """One output channel three hundred times the others: one scale of eight bits for all of them cannot tell these."""
    layer = next(found for found in model._flatten_layers() if found.name == name)
    axis = -2 if isinstance(layer, layers.DepthwiseConv2D) else -1
    factor = np.ones(layer.kernel.shape[axis])
    factor[2] = 300
    layer.kernel.assign(layer.kernel * factor.reshape((-1, 1) if axis == -2 else (-1,)))


@pytest.mark.filterwarnings(FAR)
@pytest.mark.parametrize(("name", "named"), [("inside", "nested/inside_relu"), ("depth", "depth"), ("hidden", "hidden"),
                                             ("first", "first_relu")])
def test_the_broken_layer_is_named(images, name, named):
    model = network()
    spoil(model, name)
    table = quantize.diagnose(model, quantize.convert(model, calibration=images, rounding="nearest"), images)
    assert named in losing(table)
    assert losing(table)[0] == named
    row = table.set_index("layer").loc[named]
    assert "one scale for channels whose ranges differ" in row.why
    assert "quantize.wrap" in row["do"]
    assert row.own < 20


@pytest.mark.filterwarnings(FAR)
def test_noise_is_charged_to_the_layer_that_makes_it(images):
    """Behind the broken layer the whole noise stays, and the layers' own is small."""
    model = network()
    spoil(model, "inside")
    lite = quantize.convert(model, calibration=images, rounding="nearest")
    table = quantize.diagnose(model, lite, images).set_index("layer")
    assert table.snr["hidden"] < 25
    assert table.own["hidden"] > 28
    assert table.own["classes"] > 28


def test_too_little_calibration_is_recognized(images):
    model = network()
    table = quantize.diagnose(model, quantize.convert(model, calibration=images / 20), images)
    lost = table[table.status == "loses"]
    assert len(lost)
    assert lost.why.str.contains("outside the calibrated range").all()
    assert lost["do"].str.contains("Calibrate with more data").all()


@pytest.mark.filterwarnings(FAR)
def test_outliers_in_the_calibration_are_recognized(images):
    model = network()
    spoilt = images.copy()
    spoilt[0] *= 3000
    table = quantize.diagnose(model, quantize.convert(model, calibration=spoilt, rounding="nearest"), images)
    assert table.why.str.contains("times that of its values here").any()


def test_a_tensor_that_is_not_there_is_told(images):
    """Another model's file: what cannot be recognized is said so; nothing at all is refused."""
    model = network()
    keras.utils.set_random_seed(7)
    cut = keras.Model(model.input, model.get_layer("sum").output)
    lite = quantize.convert(cut, calibration=images, rounding="nearest")
    table = quantize.diagnose(model, lite, images).set_index("layer")
    assert table.status["hidden"] == table.status["classes"] == "not found"
    assert table.status["first_relu"] == "fine"
    stranger = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 2, name="other")])
    with pytest.raises(ValueError, match="finds no layer of the model in the file"):
        quantize.diagnose(model, quantize.convert(stranger, calibration=images, rounding="nearest"), images)


def test_the_formula_against_a_slow_one(rng):
    signal, noise = rng.normal(size=(50, 4, 3)), 0.1 * rng.normal(size=(50, 4, 3))
    channels = [10 * np.log10(np.var(signal[..., c]) / np.mean(noise[..., c] ** 2)) for c in range(3)]
    assert _diagnose.signal_to_noise(signal, signal + noise) == pytest.approx(sorted(channels)[1])
    signal[..., 0] = 0                                                    # a dead channel has no signal to lose
    assert _diagnose.signal_to_noise(signal, signal + noise) == pytest.approx(np.mean(channels[1:]))
    assert _diagnose.signal_to_noise(0 * signal, noise) == 99


def test_the_model_is_only_read(images):
    model = network()
    before = [variable.numpy() for variable in model.variables]
    quantize.diagnose(model, quantize.convert(model, calibration=images, rounding="nearest"), images)
    keras.tree.map_structure(np.testing.assert_array_equal, before, [v.numpy() for v in model.variables])


def test_refusals(images):
    model = network()
    lite = quantize.convert(model, calibration=images, rounding="nearest")
    with pytest.raises(TypeError, match="must be a LiteModel"):
        quantize.diagnose(model, lite.content, images)
    with pytest.raises(ValueError, match="needs the plain model"):
        quantize.diagnose(quantize.wrap(model), lite, images)
    with pytest.raises(ValueError, match=r"diagnose: `data` must hold x of the shape"):
        quantize.diagnose(model, lite, images[..., 0])
    with pytest.raises(ValueError, match="`threshold_db`"):
        quantize.diagnose(model, lite, images, threshold_db="much")
    with pytest.raises(TypeError, match="Keras 3 model"):
        quantize.diagnose("model", lite, images)
