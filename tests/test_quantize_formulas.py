"""Activations and formulas whose parts the converter gives ranges that destroy them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfopt import quantize
from tfopt._litert import convert, file

FORMULAS = {
    "minimum": lambda x: ops.minimum(x, 0.0) + 0.5 * x,
    "maximum": lambda x: ops.maximum(x, -2.0) + 0.5 * x,
    "clip": lambda x: ops.clip(x, -2.0, 1.0) + 0.5 * x,
    "where": lambda x: ops.where(x > 0, x, 0.1 * x) + 0.5 * x,
    "leaky": lambda x: ops.maximum(x, 0.2 * x),
    "both": lambda x: ops.minimum(x, 0.1 * x[..., ::-1]) + 0.5 * x,
}
OTHERS = {**FORMULAS, "unit": ops.normalize, "norm": lambda x: layers.LayerNormalization()(x),
          "std": lambda x: ops.std(x, -1)}
X = np.random.default_rng(0).normal(size=(128, 6, 6, 3)).astype("float32")


def behind_a_convolution(formula):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    x = layers.Conv2D(16, 3, kernel_initializer=keras.initializers.RandomNormal(0, 0.6))(inputs)
    return keras.Model(inputs, layers.Activation(formula)(x) if isinstance(formula, str) else formula(x))


def error(model, mode="int8"):
    """The largest difference from the model's outputs, as a share of their range."""
    expected = model.predict(X, verbose=0)
    lite = quantize.convert(model, mode, calibration=X, rounding="nearest")
    return np.abs(lite.predict(X) - expected).max() / np.ptp(expected)


@pytest.mark.parametrize("name", ["softplus", "mish", "log_sigmoid", "selu", "celu", "elu", "gelu", "sparse_plus",
                                  *FORMULAS])
def test_eight_bits_compute_the_formula(name):
    assert error(behind_a_convolution(FORMULAS.get(name, name))) < 0.03


@pytest.mark.filterwarnings("ignore:quantize.convert. the outputs")
@pytest.mark.parametrize("name", ["mish", "selu", "celu", "clip"])
def test_as_they_stand_they_are_lost(monkeypatch, name):
    """Control: the converter alone."""
    monkeypatch.setattr(convert, "for_integers", lambda function, mode: function)
    assert error(behind_a_convolution(FORMULAS.get(name, name))) > 0.05


@pytest.mark.parametrize("name", ["softplus", "selu", "clip", "unit", "norm", "std"])
def test_sixteen_bits_compute_the_formula(name):
    assert error(behind_a_convolution(OTHERS.get(name, name)), "int16x8") < 0.02


def test_a_sum_in_sixteen_bits_does_not_saturate():
    assert error(behind_a_convolution(lambda x: ops.sum(ops.relu(x), axis=(1, 2))), "int16x8") < 0.02


def test_a_second_output_and_a_nested_model_keep_their_range():
    inner = keras.Sequential([keras.Input((4, 4, 16)), layers.Activation("mish"), layers.Conv2D(4, 1)])
    model = behind_a_convolution(lambda x: [x, ops.minimum(x, 0.0), inner(x), inner(ops.clip(x, -1.0, 1.0))])
    lite = quantize.convert(model, calibration=X, rounding="nearest")
    for expected, found in zip(model.predict(X, verbose=0), lite.predict(X), strict=True):
        assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


def test_what_litert_has_an_operation_for_stays_one():
    for formula, kind in [(lambda x: ops.maximum(x, 0.0), "CONV_2D"),
                          ("relu6", "CONV_2D"), ("hard_silu", "HARD_SWISH")]:
        lite = quantize.convert(behind_a_convolution(formula), calibration=X, rounding="nearest")
        assert list(file.operations(lite.parsed)["op"])[-1] == kind


def test_a_file_far_from_its_model_is_said_to_be():
    model = behind_a_convolution(lambda x: ops.exp(2 * x))          # eight bits for values from 1e-10 to 1e10
    with pytest.warns(UserWarning, match=r"int8 file are far from the model's, -?\d.* dB"):
        quantize.convert(model, calibration=X, rounding="nearest")
