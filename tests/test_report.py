"""The report tells the truth: counts against TensorFlow's profiler, scores against other libraries, nothing silent."""

import gzip
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfopt import quantize, report
from tfopt.report import _score, _traced


def mlp(classes=3, width=8, activation=None):
    return keras.Sequential([keras.Input((4,)), L.Dense(width, activation="relu"), L.Dense(classes, activation)])


def graph(inputs, *stack):
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


# ---- multiply-accumulates

def profiled(model):
    """TensorFlow's own count: floating-point operations of the frozen graph's products, halved."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = [tf.TensorSpec([1, *x.shape[1:]], x.dtype) for x in model.inputs]
    call = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False)).get_concrete_function(*spec)
    frozen = convert_variables_to_constants_v2(call).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()).with_empty_output().order_by("float_ops").build()
    nodes = tf.compat.v1.profiler.profile(frozen, options=options)
    kinds = {op.name: op.type for op in frozen.get_operations()}
    return sum(node.float_ops for node in nodes.children
               if kinds.get(node.name) in ("MatMul", "Conv2D", "DepthwiseConv2dNative", "BatchMatMulV2", "Conv3D")) // 2


def recurrent_by_hand(units, steps, features, gates):
    return steps * gates * units * (features + units)


IMAGE, ROWS = (12, 12, 3), (7, 6)
PROFILED = {
    "mlp": lambda: mlp(),
    "dense over positions": lambda: graph(keras.Input(ROWS), L.Dense(5)),
    "conv": lambda: graph(keras.Input(IMAGE), L.Conv2D(8, 3, strides=2), L.Conv2D(4, (1, 3), padding="same"),
                          L.BatchNormalization(), L.Flatten(), L.Dense(2)),
    "dilated": lambda: graph(keras.Input(IMAGE), L.Conv2D(8, 3, dilation_rate=2)),
    "depthwise": lambda: graph(keras.Input(IMAGE), L.DepthwiseConv2D(3, depth_multiplier=2)),
    "1-D": lambda: graph(keras.Input(ROWS), L.Conv1D(8, 3), L.DepthwiseConv1D(2)),
    "shared, nested": lambda: shared(),
    "mobilenet": lambda: keras.applications.MobileNetV2((64, 64, 3), weights=None, classes=10),
    "efficientnet": lambda: keras.applications.EfficientNetB0(input_shape=(64, 64, 3), weights=None, classes=10),
}


def shared():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="relu"), L.Dense(6)])
    a, b = keras.Input((6,)), keras.Input((6,))
    return keras.Model([a, b], L.Dense(2)(keras.ops.add(inner(a), inner(inner(b)))))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILED)
def test_macs_equal_the_profilers(name):
    model = PROFILED[name]()
    row = report.measure(model, runs=1)
    assert row.macs == profiled(model) > 0
    assert row.notes == ()


def attention_by_hand(queries, others, width, heads, key, value, out):
    return (queries * width * heads * key + others * width * heads * (key + value)
            + queries * others * heads * (key + value) + queries * heads * value * out)


BY_HAND = {                                   # what the profiler is blind for: loops, einsum, what XLA compiles apart
    "groups": (lambda: graph(keras.Input((9, 9, 4)), L.Conv2D(8, 3, groups=2)), 49 * 8 * 9 * 2),
    "separable": (lambda: graph(keras.Input(IMAGE), L.SeparableConv2D(8, 3, depth_multiplier=2, strides=2)),
                  25 * (6 * 9 + 6 * 8)),
    "separable 1-D": (lambda: graph(keras.Input(ROWS), L.SeparableConv1D(4, 2)), 6 * (6 * 2 + 6 * 4)),
    "embedding": (lambda: graph(keras.Input((7,), dtype="int32"), L.Embedding(50, 6), L.Dense(2)), 7 * 6 * 2),
    "rnn": (lambda: graph(keras.Input(ROWS), L.SimpleRNN(5)), recurrent_by_hand(5, 7, 6, 1)),
    "lstm": (lambda: graph(keras.Input(ROWS), L.LSTM(5, return_sequences=True)), recurrent_by_hand(5, 7, 6, 4)),
    "gru": (lambda: graph(keras.Input(ROWS), L.GRU(5)), recurrent_by_hand(5, 7, 6, 3)),
    "both ways": (lambda: graph(keras.Input(ROWS), L.Bidirectional(L.LSTM(5))), 2 * recurrent_by_hand(5, 7, 6, 4)),
    "stacked cells": (lambda: graph(keras.Input(ROWS), L.RNN([L.LSTMCell(5), L.GRUCell(4)])),
                      recurrent_by_hand(5, 7, 6, 4) + recurrent_by_hand(4, 7, 5, 3)),
    "conv lstm": (lambda: graph(keras.Input((3, 8, 8, 2)), L.ConvLSTM2D(4, 3)), 3 * 6 * 6 * 9 * 4 * 4 * (2 + 4)),
    "over time": (lambda: graph(keras.Input((5, 8, 8, 1)), L.TimeDistributed(L.Conv2D(4, 3))), 5 * 36 * 9 * 4),
    "nested over time": (lambda: graph(keras.Input((5, 4)), L.TimeDistributed(mlp())), 5 * (4 * 8 + 8 * 3)),
    "spectral": (lambda: graph(keras.Input((4,)), L.SpectralNormalization(L.Dense(3))), 12),
    "transposed": (lambda: graph(keras.Input((4, 4, 3)), L.Conv2DTranspose(2, 3, strides=2)), 16 * 3 * 9 * 2),
    "einsum": (lambda: graph(keras.Input(ROWS), L.EinsumDense("abc,cde->abde", (None, 2, 3))), 7 * 6 * 2 * 3),
    "einsum, ellipsis": (lambda: graph(keras.Input(ROWS), L.EinsumDense("...x,xy->...y", 5)), 7 * 6 * 5),
    "conv 3-D": (lambda: graph(keras.Input((5, 5, 5, 2)), L.Conv3D(3, 2)), 64 * 8 * 2 * 3),
    "heads": (lambda: self_attention(L.MultiHeadAttention(2, 4, value_dim=3)), attention_by_hand(7, 7, 6, 2, 4, 3, 6)),
    "attention": (lambda: self_attention(L.Attention()), 2 * 7 * 7 * 6),
    "grouped": (lambda: self_attention(L.GroupQueryAttention(4, 4, 2)),
                7 * 6 * 4 * (4 + 4) + 7 * 6 * 2 * (4 + 4) + 7 * 7 * 4 * 8),
    "dot": (lambda: (lambda x: keras.Model(x, L.Dot((2, 2))([x, x])))(keras.Input(ROWS)), 7 * 7 * 6),
    "operations": (lambda: operations(), 7 * 7 * 6 + 7 * 7 * 6),
}


def self_attention(layer):
    x = keras.Input(ROWS)
    if isinstance(layer, L.Attention):
        return keras.Model(x, layer([x, x]))
    return keras.Model(x, layer(query=x, value=x))


def operations():
    x = keras.Input(ROWS)
    turned = keras.ops.transpose(x, (0, 2, 1))
    return keras.Model(x, keras.ops.einsum("bij,bkj->bik", x, x) + keras.ops.matmul(x, turned))


@pytest.mark.parametrize("name", BY_HAND)
def test_macs_by_hand(name):
    build, expected = BY_HAND[name]
    row = report.measure(build(), runs=1)
    assert (row.macs, row.notes) == (expected, ())


class Scale(L.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.gain


class Mixer(L.Layer):
    def compute_output_shape(self, shape):
        return shape

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


class MyCell(L.Layer):
    state_size = output_size = 4

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, x, states, training=None):
        return (y := keras.ops.matmul(x, self.kernel) + states[0]), [y]


def test_layers_of_ones_own_are_counted_and_their_loops_are_named():
    model = graph(keras.Input(ROWS), Mixer(name="mixer"), Scale(), L.TimeDistributed(Mixer(name="inside")),
                  L.RNN(MyCell(), name="mine"), L.Dense(2))
    row = report.measure(model, runs=1)
    assert row.macs == 7 * 6 * 6 + 7 * 6 * 6 + 4 * 2
    assert [note.split(":")[0] for note in row.notes] == ["macs leave out mine (RNN)"]
    assert "512+" in str(report.compare({"a": model}, runs=1))


@pytest.mark.parametrize("name", [name for name in (*BY_HAND, *PROFILED) if not name.endswith("net")])
def test_the_traced_graph_counts_what_the_formulas_count(name):
    """Two ways to one number; in loops, which a graph says nothing about, the second way says so."""
    model = BY_HAND[name][0]() if name in BY_HAND else PROFILED[name]()
    example = [np.zeros((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    total, loops = _traced.count(lambda x: model(x, training=False), example if len(example) > 1 else example[0])
    assert loops == any(isinstance(layer, L.RNN | L.Bidirectional) for layer in model.layers)
    assert loops or total == report.measure(model, runs=1).macs


# ---- sizes

def test_sizes_are_those_of_the_arrays():
    model = mlp()
    for w in model.weights:
        w.assign(np.round(w * 2))
    row = report.measure(model, runs=1)
    whole = b"".join(w.tobytes() for w in model.get_weights())
    assert row.parameters == 4 * 8 + 8 + 8 * 3 + 3
    assert row.nonzeros == sum(np.count_nonzero(w) for w in model.get_weights())
    assert row.bytes == len(whole) == 4 * row.parameters
    assert row.gzip == len(gzip.compress(whole, 6))


# ---- speed

@pytest.mark.slow
def test_latency_is_between_its_quartiles_and_tells_slow_from_fast():
    wide = keras.Sequential([keras.Input((4,)), L.Dense(3000), L.Dense(3000), L.Dense(3)])
    table = report.compare({"wide": wide, "small": mlp()}, runs=15)
    for row in table.rows:
        assert 0 < row.latency_low_ms <= row.latency_ms <= row.latency_high_ms
    assert table.rows[0].latency_low_ms > table.rows[1].latency_low_ms


# ---- accuracy

def test_wilson_equals_scipy():
    from scipy.stats import binomtest

    for right, n in ((0, 10), (7, 10), (10, 10), (9712, 10000)):
        reference = binomtest(right, n).proportion_ci(.95, "wilson")
        np.testing.assert_allclose(_score.wilson(right, n), (reference.low, reference.high), atol=1e-9)


def labels(rng, kind, n=300):
    y = rng.integers(0, 3, n)
    return {"sparse": y, "column": y[:, None], "one-hot": np.eye(3)[y], "float": y.astype("float32"),
            "smoothed": .9 * np.eye(3)[y] + .1 / 3}[kind]


@pytest.mark.parametrize("kind", ["sparse", "column", "one-hot", "float", "smoothed"])
def test_accuracy_equals_keras(rng, kind):
    model, x, y = mlp(), rng.normal(size=(300, 4)).astype("float32"), labels(rng, kind)
    row = report.measure(model, (x, y), runs=1)
    right = model.predict(x, verbose=0).argmax(1) == (y.argmax(1) if y.shape[-1] == 3 else y.reshape(-1))
    assert row.accuracy == pytest.approx(right.mean())
    assert (row.low, row.high) == _score.wilson(right.sum(), 300)
    assert row.mae is None


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary_accuracy_of_logits_and_probabilities(rng, activation):
    model, x = mlp(1, activation=activation), rng.normal(size=(300, 4)).astype("float32")
    y = rng.integers(0, 2, 300)
    metric = keras.metrics.BinaryAccuracy(threshold=0.5 if activation else 0.)
    assert report.measure(model, (x, y), runs=1).accuracy == pytest.approx(
        float(metric(y[:, None], model.predict(x, verbose=0))), abs=1e-6)


def test_several_labels_must_all_be_right(rng):
    from sklearn.metrics import accuracy_score

    model, x = mlp(3, activation="sigmoid"), rng.normal(size=(300, 4)).astype("float32")
    y = rng.integers(0, 2, (300, 3))
    assert report.measure(model, (x, y), runs=1).accuracy == pytest.approx(
        accuracy_score(y, model.predict(x, verbose=0) > .5))


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers_get_an_error(rng, outputs):
    model, x = mlp(outputs), rng.normal(size=(300, 4)).astype("float32")
    y = rng.normal(size=(300, outputs))
    row = report.measure(model, (x, y), runs=1)
    assert row.accuracy is None
    assert row.mae == pytest.approx(np.abs(model.predict(x, verbose=0) - y).mean())
    assert 0 < row.low < row.mae < row.high


def test_positions_are_scored_each_but_count_as_one_example(rng):
    model = graph(keras.Input(ROWS), L.Dense(3))
    x, y = rng.normal(size=(40, *ROWS)).astype("float32"), rng.integers(0, 3, (40, 7))
    row = report.measure(model, (x, y), runs=1)
    assert row.accuracy == pytest.approx((model.predict(x, verbose=0).argmax(-1) == y).mean())
    assert row.examples == 40


def test_a_dataset_gives_what_its_arrays_give(rng):
    model, x, y = mlp(), rng.normal(size=(70, 4)).astype("float32"), rng.integers(0, 3, 70)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    assert report.measure(model, dataset, runs=1).accuracy == report.measure(model, (x, y), runs=1).accuracy


def test_images_may_be_bytes(rng):
    model = graph(keras.Input(IMAGE), L.Conv2D(4, 3), L.Flatten(), L.Dense(3))
    x, y = rng.integers(0, 256, (20, *IMAGE)).astype("uint8"), rng.integers(0, 3, 20)
    as_bytes, as_floats = (report.measure(model, (part, y), runs=1) for part in (x, x.astype("float32")))
    assert as_bytes.macs == as_floats.macs
    assert as_bytes.accuracy == as_floats.accuracy


def test_inputs_in_a_dict_and_of_unknown_length(rng):
    a, b = keras.Input((4,), name="a"), keras.Input((None,), dtype="int32", name="b")
    model = keras.Model({"a": a, "b": b}, L.Dense(3)(L.Concatenate()([a, L.GlobalAveragePooling1D()(
        L.Embedding(9, 2)(b))])))
    row = report.measure(model, runs=1)
    assert row.notes == ("latency and macs need `data`: the input's shape is not fixed",)
    assert row.macs is None
    assert row.latency_ms is None
    x = {"a": rng.normal(size=(10, 4)).astype("float32"), "b": rng.integers(0, 9, (10, 5))}
    row = report.measure(model, (x, rng.integers(0, 3, 10)), runs=1)
    assert (row.macs, row.notes) == (6 * 3, ())


def test_the_models_are_left_as_they_were(rng):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(3)(L.Dropout(.5, seed=1)(x, training=True)))
    model.compile("adam", "mse")
    before = [np.asarray(v).copy() for v in model.variables]
    report.measure(model, (rng.normal(size=(9, 4)).astype("float32"), rng.integers(0, 3, 9)), runs=1)
    for now, then in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert model.compiled
    assert len(model.layers[-1]._inbound_nodes) == 1


# ---- LiteRT files

def test_a_lite_model_stands_in_the_same_table(rng):
    from tfopt import quantize

    model = graph(keras.Input(IMAGE), L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(3))
    kernel = model.layers[1].kernel
    kernel.assign(np.where(rng.random(kernel.shape) < .5, 0, kernel))
    x, y = rng.normal(size=(40, *IMAGE)).astype("float32"), rng.integers(0, 3, 40)
    files = {mode: quantize.convert(model, mode, calibration=x if mode == "int8" else None)
             for mode in ("float32", "int8")}
    model_row, float_row, int8_row = report.compare({"model": model, **files}, (x, y), runs=2).rows
    assert float_row.accuracy == model_row.accuracy
    assert float_row.macs == int8_row.macs == model_row.macs
    kernels = 27 * 8 + 800 * 3
    assert float_row.parameters == int8_row.parameters == kernels
    assert float_row.nonzeros == np.count_nonzero(kernel) + 2400
    assert int8_row.nonzeros <= float_row.nonzeros
    assert (float_row.integer_ops, int8_row.integer_ops, model_row.integer_ops) == (0, 1, None)
    assert float_row.bytes == files["float32"].size > int8_row.bytes > int8_row.gzip
    assert int8_row.gzip == len(gzip.compress(files["int8"].content, 6))
    assert int8_row.latency_ms > 0


def test_a_wrapped_model_says_so():
    from tfopt import prune

    model = mlp()
    row = report.measure(prune.wrap(model, .5, end=9), runs=1)
    assert row.macs == report.measure(model, runs=1).macs
    assert row.latency_ms > 0
    assert "measure what strip or convert returns" in row.notes[0]


# ---- the table and the pictures

@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)).astype("float32"), rng.integers(0, 3, 200)
    return report.compare({"small": mlp(), "wide <b>": mlp(width=64)}, (x, y), title="noise, 200 rows", runs=2)


def test_table(table, tmp_path):
    assert list(table.frame.index) == ["small", "wide <b>"]
    assert table.frame.loc["small", "macs"] == 4 * 8 + 8 * 3
    lines = table.markdown().splitlines()
    assert lines[0] == "**noise, 200 rows**"
    assert len({len(line) for line in lines[2:]}) == 1
    assert "mean abs. error" not in lines[2]
    assert "wide &lt;b&gt;" in table._repr_html_()
    figure = table.plot(tmp_path / "p.png", x="macs")
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert figure.axes[0].get_title(loc="left") == "noise, 200 rows"
    assert {text.get_text() for text in figure.axes[0].texts} == {"small", "wide <b>"}


def test_curves_of_a_history(rng):
    model = mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    history = model.fit(x, y, epochs=3, validation_split=.5, verbose=0)
    axes = report.curves(history).axes
    drawn = {(panel.get_title(loc="left"), line.get_label()): line.get_ydata() for panel in axes
             for line in panel.get_lines()}
    assert set(drawn) == {(m, p) for m in ("loss", "accuracy") for p in ("training", "validation")}
    np.testing.assert_array_equal(drawn["loss", "validation"], history.history["val_loss"])
    both = report.curves({"one": history, "two": history.history})
    assert len(both.axes[0].get_lines()) == 4


# ---- refusals

class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_a_subclassed_model_is_measured_on_its_data(rng):
    model, x = Subclassed(), rng.normal(size=(9, 4)).astype("float32")
    model(x)
    row = report.measure(model, (x, rng.integers(0, 3, 9)), runs=1)
    assert (row.macs, row.notes, row.parameters) == (12, (), 15)
    assert row.latency_ms > 0
    assert row.accuracy is not None
    bare = report.measure(model, runs=1)
    assert (bare.latency_ms, bare.macs) == (None, None)
    assert "need `data`" in bare.notes[0]


def linear():
    return keras.Sequential([keras.Input((4,)), L.Dense(3)])


def diverged():
    model = mlp()
    model.weights[0].assign(model.weights[0] * math.nan)
    return model


X, Y = np.zeros((6, 4), "float32"), np.zeros(6, "int64")
REFUSED = {
    "no model": (lambda: report.measure(3), TypeError, "report.measure needs a Keras 3 model"),
    "unbuilt": (lambda: report.measure(keras.Sequential([L.Dense(2)])), ValueError, "needs a built model"),
    "no models": (lambda: report.compare({}), ValueError, "report.compare: `models` must be a dict"),
    "no names": (lambda: report.compare(3), ValueError, "report.compare: `models` must be a dict"),
    "runs": (lambda: report.measure(mlp(), runs=0), ValueError, "`runs` must be a whole number >= 1"),
    "nan weights": (lambda: report.measure(diverged()), ValueError, "needs finite weights.*diverged"),
    "nan outputs": (lambda: report.measure(linear(), (X * math.nan, Y)), ValueError, "needs finite outputs.*18"),
    "nan labels": (lambda: report.measure(mlp(), (X, Y * math.nan)), ValueError, "labels must be finite.*6"),
    "text labels": (lambda: report.measure(mlp(), (X, ["a"] * 6)), ValueError, "labels must be numbers"),
    "too few outputs": (lambda: report.measure(mlp(), (X, Y + 3)), ValueError, r"below the number of outputs.*3\.0"),
    "broken labels": (lambda: report.measure(mlp(), (X, Y + .5)), ValueError, "whole numbers below"),
    "other labels": (lambda: report.measure(mlp(), (X, np.zeros((6, 2)))), ValueError, r"labels must fit.*\(6, 2\)"),
    "lengths": (lambda: report.measure(mlp(), (X, Y[:3])), ValueError, r"one length.*\(3,\)"),
    "empty": (lambda: report.measure(mlp(), (X[:0], Y[:0])), ValueError, "at least one example"),
    "no pair": (lambda: report.measure(mlp(), X), ValueError, "must hold targets too"),
    "other inputs": (lambda: report.measure(mlp(), (X[:, :2], Y)), ValueError, r"the model's inputs.*\(6, 2\)"),
    "two outputs": (lambda: report.measure(two_outputs(), (X, Y)), ValueError, "labels for each output"),
    "empty dataset": (lambda: report.measure(mlp(), batches().take(0)), ValueError, "at least one batch"),
    "endless dataset": (lambda: report.measure(mlp(), batches().repeat()), ValueError, "must end"),
    "no batches": (lambda: report.measure(mlp(), batches().unbatch()), ValueError, "Put the examples in batches first"),
    "no labels": (lambda: report.measure(mlp(), batches().map(lambda x, y: x)), ValueError, "must hold targets too"),
    "cost": (lambda: report.compare({"a": mlp()}, runs=1).plot(x="price"), ValueError, "`x` must be one of"),
    "no accuracy": (lambda: report.compare({"a": mlp()}, runs=1).plot(), ValueError, "Pass `data`"),
    "no history": (lambda: report.curves({}), ValueError, "at least one epoch"),
    "history": (lambda: report.curves(3), ValueError, "needs a History"),
}


def test_a_list_of_models_is_called_by_their_names():
    first, second = keras.Sequential([keras.Input((4,)), L.Dense(2)], name="net"), mlp()
    assert list(report.compare([first, second, first], runs=1).frame.index) == ["net 1", second.name, "net 2"]


def test_several_inputs_and_outputs_are_scored_by_output(rng):
    image, meta = keras.Input((8, 8, 1), name="image"), keras.Input((5,), name="meta")
    h = L.Concatenate()([L.Flatten()(L.Conv2D(4, 3)(image)), meta])
    outputs = {"price": L.Dense(1)(h), "kind": L.Dense(3)(h)}
    model = keras.Model({"image": image, "meta": meta}, outputs)
    x = {"meta": rng.normal(size=(40, 5)).astype("float32"), "image": rng.normal(size=(40, 8, 8, 1)).astype("float32")}
    y = {"price": x["meta"][:, 0], "kind": rng.integers(0, 3, 40)}
    found = model.predict(x, verbose=0)
    right = np.mean(found["kind"].argmax(-1) == y["kind"]), np.abs(found["price"][:, 0] - y["price"]).mean()
    for data in ((x, y), tf.data.Dataset.from_tensor_slices((x, y)).batch(16)):
        table = report.compare({"both": model}, data, runs=1)
        row = table.frame.loc["both"]
        assert (row.kind_accuracy, row.price_mae) == pytest.approx(right, rel=1e-5)
        assert "kind: accuracy %" in str(table)
        assert table.rows[0].outputs["price"]["examples"] == 40
    listed = keras.Model([image, meta], list(outputs.values()))
    row = report.measure(listed, ([x["image"], x["meta"]], [y["price"], y["kind"]]), runs=1)
    assert [next(iter(part)) for part in row.outputs.values()] == ["mae", "accuracy"]


@pytest.mark.parametrize(("loss", "right"), [
    (keras.losses.BinaryCrossentropy(from_logits=True), .8), ("binary_crossentropy", .2),
    (keras.losses.BinaryCrossentropy(), .2), (None, .2)])
def test_the_loss_says_what_a_binary_output_is(loss, right):
    model = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False)])
    model.set_weights([np.ones((1, 1))])
    if loss is not None:
        model.compile("adam", loss)
    x, y = np.array([[.1], [.2], [.3], [.4], [.05]], "float32"), np.array([1, 1, 1, 1, 0])
    from tfopt import quantize
    lite = quantize.convert(model, "float32")
    frame = report.compare({"file": lite, "model": model}, (x, y), runs=1).frame
    assert frame.accuracy.tolist() == pytest.approx([right, right])


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_prints_whole_at_any_width(monkeypatch, rng, width):
    monkeypatch.setenv("COLUMNS", str(width))
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    table = report.compare({"a model with quite a name": mlp(), "b": mlp()}, (x, y), runs=1)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= width
    heads = [cell.strip() for line in lines if line.startswith("| model") for cell in line.strip("|").split("|")]
    whole = [cell.strip() for cell in table.markdown().splitlines()[0].strip("|").split("|")]
    assert list(dict.fromkeys(heads)) == whole
    assert (len(heads) > len(whole)) == (width == 80)


def test_each_timed_turn_follows_untimed_calls_of_the_same_model(monkeypatch):
    """Cold after its neighbor a file was three times slower."""
    from tfopt import _speed

    order = []
    timed = _speed._timed
    monkeypatch.setattr(_speed, "_timed", lambda call, runs: order.append("timed") or timed(call, runs))
    _speed.latency({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4)
    text = "".join(word[0] for word in order)                     # each turn: untimed calls, "t", its timed call
    assert re.fullmatch(r"(a{2,}tab{2,}tb){4}", text)


def batches():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [L.Dense(3)(x), L.Dense(3)(x)])


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
    call, error, sentence = REFUSED[name]
    with pytest.raises(error, match=sentence):
        call()


def test_many_models_bring_no_warning_of_retracing(run_python):
    """In a process of its own, because TensorFlow counts; the control is what it does warn of."""
    ours, control = run_python("""
import os; os.dup2(1, 2)
import keras, numpy as np, tensorflow as tf
from tfopt import report
models = {str(i): keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for i in range(8)}
report.compare(models, (np.ones((9, 4)), np.arange(9) % 3), runs=1)
print("-- control", flush=True)
for model in models.values():
    tf.function(lambda x: model(x))(tf.ones((1, 4)))
""").split("-- control")
    assert "retracing" in control
    assert "retracing" not in ours


def test_a_file_that_cannot_take_padding_alone(rng):
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4, mask_zero=True)(inputs))
    words = rng.integers(1, 9, (64, 6))
    lite = quantize.convert(keras.Model(inputs, keras.layers.Dense(3)(hidden)), "int8", calibration=words)
    with pytest.raises(ValueError, match=r"^quantize\.LiteModel\.predict: LiteRT cannot run this file on `x` \(.*div"):
        lite.predict(np.zeros((1, 6), "int32"))            # a mean over nothing: 0 / 0, which eight bits do not have
    assert report.measure(lite, runs=3).latency_ms > 0
    assert lite.predict(words).shape == (64, 3)
