"""A shrunk model computes what the original computes with the removed channels at zero, whatever its graph."""

import keras
import numpy as np
import pytest
from graphs import EXACT, batch, classifier, gap, leaves, random_model, randomize, silenced
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from keras import layers as L

from tfopt import shrink


def stack(*middle, inputs=(6, 6, 16), activation="linear"):
    """Conv -> middle -> Conv: can the first one's channels go?"""
    x = first = keras.Input(inputs)
    x = L.Conv2D(16, 3, padding="same", name="first", activation=activation)(x)
    for layer in middle:
        x = layer(x)
    if len(x.shape) == 4:
        x = L.Conv2D(16, 3, padding="same", name="second")(x)
    model = keras.Model(first, L.Dense(3, name="out")(x))
    randomize(model, np.random.default_rng(1))
    return model


def status(model, layer, **options):
    table = shrink.plan(model, **options)
    return table[table.layer == layer].status.tolist()


def check(model, rng, keep=0.5, **options):
    small = shrink.channels(model, keep, **{"round_to": 4, **options})
    assert small.count_params() < model.count_params()
    assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT
    return small


# Correctness


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(1000, 10**6), keep=st.sampled_from([0.3, 0.5, 0.7]), round_to=st.sampled_from([1, 4, 8]))
def test_random_graphs_are_exact(seed, keep, round_to):
    keras.backend.clear_session()
    model = random_model(seed)
    assume((shrink.plan(model).status == "selected").any())
    before = [w.copy() for w in model.get_weights()]
    small = shrink.channels(model, keep, round_to=round_to)
    assert gap(silenced(model, small), small, batch(model, np.random.default_rng(seed))) <= EXACT
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_negative_control(rng):
    model = classifier()
    small, x = shrink.channels(model, 0.5), batch(model, rng)
    assert gap(silenced(model, small), small, x) <= EXACT
    for layer in ("branch", "wide", "hidden"):
        assert gap(silenced(model, small, swap=layer), small, x) > 1000 * EXACT
    assert gap(model, small, x) > 1000 * EXACT


@pytest.mark.parametrize("middle", [
    [L.ReLU()], [L.BatchNormalization()], [L.BatchNormalization(scale=False, center=False)], [L.Dropout(0.5)],
    [L.UpSampling2D()], [L.ZeroPadding2D(1)], [L.GlobalAveragePooling2D()], [L.Flatten()], [L.PReLU()],
    [L.Permute((2, 1, 3))], [L.Reshape((36, 16)), L.Dense(8), L.Reshape((6, 6, 8))], [L.Lambda(lambda x: x * 2)],
    [L.Activation("sigmoid"), L.BatchNormalization()], [L.Activation("sigmoid"), L.DepthwiseConv2D(3)],
    [L.Conv2D(16, 3, groups=4)], [L.Conv2D(32, 3, groups=16)], [L.SeparableConv2D(16, 3, depth_multiplier=2)],
    [L.Conv2DTranspose(16, 3, strides=2)], [lambda x: keras.ops.mean(x, (1, 2))], [lambda x: x * x + x]],
    ids=lambda middle: "-".join(type(layer).__name__ for layer in middle))
def test_what_can_go(middle, rng):
    model = stack(*middle)
    assert status(model, "first") == ["selected"]
    small = check(model, rng)
    assert small.get_layer("first").filters == 8


@pytest.mark.parametrize(("middle", "why"), [
    ([L.Activation("sigmoid")], "not 0 when removed"), ([L.Activation("softmax")], "mixes channels"),
    ([L.LayerNormalization()], "no rule for LayerNormalization"), ([L.GroupNormalization(4)], "no rule"),
    ([L.Rescaling(1.0, 1.0)], "not 0 when removed"),
    ([L.BatchNormalization(scale=False), L.Activation("sigmoid")], "not 0"),
    ([L.Lambda(lambda x: x[..., :8])], "mixes channels or fixes their number"), ([L.UnitNormalization()], "mixes"),
    ([L.Lambda(lambda x: x, output_shape=(6, 6, 16))], "fixes their number"),
    ([lambda x: x * np.arange(16, dtype="float32")], "fixes their number"),
    ([L.Permute((1, 3, 2))], "another axis"), ([lambda x: keras.ops.flip(x, -1)], "mixes channels")],
    ids=lambda case: "-".join(type(layer).__name__ for layer in case) if isinstance(case, list) else None)
def test_what_is_locked_and_why(middle, why):
    table = shrink.plan(stack(*middle)).set_index("layer")
    assert table.loc["first", "status"] == "skipped"
    assert why in table.loc["first", "why"]


def test_tied_channels_go_together(rng):
    table = shrink.plan(classifier()).set_index("layer")
    assert table.loc["stem", "group"] == table.loc["branch", "group"] != table.loc["wide", "group"]
    assert table.loc["out", "why"] == "the model's output"
    x = keras.Input((8, 8, 3))
    a, b, c = (L.Conv2D(width, 3, name=name)(x) for width, name in ((8, "a"), (16, "b"), (24, "c")))
    model = keras.Model(x, L.Dense(2)(L.Flatten()(L.Add()([L.Concatenate()([a, b]), c]))))
    table = shrink.plan(model)
    assert table[table.layer == "c"].channels.tolist() == [8, 16]
    assert table[table.layer == "c"].group.tolist() == table[table.layer.isin(["a", "b"])].group.tolist()
    randomize(model, rng)
    check(model, rng)


def test_embeddings_and_tokens(rng):
    x = keras.Input((None,), dtype="int32")
    y = L.Embedding(20, 16, name="embed")(x)
    y = L.Conv1D(16, 3, activation="relu", name="conv")(y)
    model = keras.Model(x, L.Dense(2)(L.GlobalMaxPooling1D()(y)))
    randomize(model, rng)
    small = shrink.channels(model, 0.5)
    assert (small.get_layer("embed").output_dim, small.get_layer("conv").filters) == (8, 8)
    words = rng.integers(20, size=(4, 9))
    np.testing.assert_allclose(silenced(model, small)(words), small(words), atol=1e-5)


@pytest.mark.parametrize("layer", [L.LayerNormalization(), L.GroupQueryAttention(8, 4, 2)])
def test_layers_without_a_rule_are_kept(layer, rng):
    x = keras.Input((5, 8))
    y = L.Dense(16, name="before")(x)
    y = layer(y, y) if isinstance(layer, L.GroupQueryAttention) else layer(y)
    model = keras.Model(x, L.Dense(2)(L.Dense(16, activation="relu", name="after")(y)))
    randomize(model, rng)
    assert (status(model, "before"), status(model, "after")) == (["skipped"], ["selected"])
    assert not shrink.plan(model).set_index("layer").loc[layer.name, "channels"]
    small = shrink.channels(model, 0.5)
    assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT


def test_weights_that_keras_adds_are_left_alone(rng):
    model = keras.Sequential([keras.Input((8,)), *(L.Dense(16, name=name) for name in ("a", "b", "c")), L.Dense(2)])
    model.get_layer("b").enable_lora(2)
    randomize(model, rng)
    assert [status(model, name) for name in "abc"] == [["skipped"], ["skipped"], ["selected"]]
    small = shrink.channels(model, 0.5)
    assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT


def test_channels_first_is_understood():
    x = keras.Input((3, 8, 8))
    y = L.Conv2D(16, 3, data_format="channels_first", name="a")(x)
    y = L.BatchNormalization(axis=1)(y)
    y = L.Conv2D(16, 3, data_format="channels_first", name="b")(L.ReLU()(y))
    y = L.Flatten(data_format="channels_first")(y)
    table = shrink.plan(keras.Model(x, L.Dense(2)(y))).set_index("layer")      # a CPU cannot run it
    assert table.loc[["a", "b"], "status"].tolist() == ["selected", "selected"]


def test_kernels_inside_a_layer_are_named(rng):
    class Block(L.Layer):
        def __init__(self):
            super().__init__()
            self.up, self.down = L.Dense(32, "relu", name="up"), L.Dense(8, name="down")

        def call(self, x):
            return x + self.down(self.up(x))

    x = keras.Input((8,))
    why = shrink.plan(keras.Model(x, L.Dense(2)(Block()(x)))).why[0]
    assert why == "no rule for Block: its kernels are inside (up, down); see shrink.register"


def test_positions_that_end_early(rng):
    """An open length is as long as the position embedding of the model allows."""
    class Positions(L.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(16, shape[-1]))

        def call(self, x):
            return x + self.table[:keras.ops.shape(x)[1]]

    tokens = keras.Input((None,), dtype="int32")
    x = Positions()(L.Embedding(20, 8)(tokens))
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)])
    model = keras.Model(tokens, L.Dense(2)(L.Dense(16, "relu", name="hidden")(L.GlobalAveragePooling1D()(x))))
    randomize(model, rng)
    small = shrink.channels(model, 0.5)
    assert small.get_layer("hidden").units == 8


class Own(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + 100.0


def test_a_subclass_keeps_its_loss(rng):
    x = keras.Input((4,))
    small = shrink.channels(Own(x, L.Dense(2)(L.Dense(16, "relu")(x))), 0.5)
    small.compile("sgd", "mse")
    assert small.evaluate(np.ones((4, 4)), np.ones((4, 2)), verbose=0) > 100


# Which


def test_l2_keeps_the_large_and_drops_the_dead(rng):
    model = classifier()
    kernel = model.get_layer("wide").kernel
    dead = rng.permutation(48)[:24]
    value = kernel.numpy()
    value[..., dead] *= 1e-3
    kernel.assign(value)
    reader = model.get_layer("hidden").kernel
    reader.assign(reader.numpy() * np.tile(np.isin(np.arange(48), dead, invert=True) + 1e-3, 36)[:, None])
    for by in ("l1", "l2"):
        small = shrink.channels(model, 0.5, importance=by, where="wide")
        left = np.isin(value, small.get_layer("wide").kernel.numpy()).all((0, 1, 2))
        assert not left[dead].any()


@pytest.mark.parametrize("by", ["l1", "l2"])
def test_dead_channels_go_for_free(by, rng):
    """As `regularizers.GroupLasso` leaves them: nothing makes them, so the outputs stay as they are."""
    model = classifier()
    for name, width in (("wide", 48), ("hidden", 64)):
        layer, dead = model.get_layer(name), rng.permutation(width)[:width // 2]
        for variable in (layer.kernel, layer.bias):
            value = variable.numpy()
            value[..., dead] = 0
            variable.assign(value)
    small = shrink.channels(model, 0.5, importance=by, where=["wide", "hidden"])
    x = batch(model, rng)
    assert gap(model, small, x) <= EXACT
    assert small.get_layer("wide").filters == 24


@pytest.mark.parametrize("by", ["l1", "l2"])
def test_a_scale_moved_to_the_reader_changes_nothing(by, rng):
    model = classifier()
    before = shrink.channels(model, 0.5, importance=by, where="hidden").get_layer("hidden").bias.numpy()
    scale = np.exp(rng.normal(size=64)).astype("float32")
    hidden, reader = model.get_layer("hidden"), model.get_layer("out")
    hidden.kernel.assign(hidden.kernel * scale)
    reader.kernel.assign(reader.kernel / scale[:, None])
    after = shrink.channels(model, 0.5, importance=by, where="hidden").get_layer("hidden").bias.numpy()
    np.testing.assert_array_equal(before, after)


def test_gamma_judges_by_batch_norm():
    model = stack(L.BatchNormalization(name="bn"))
    gamma = np.array([3.0, 0.1] * 8)
    model.get_layer("bn").gamma.assign(gamma)
    small = shrink.channels(model, 0.5, importance="gamma")
    np.testing.assert_array_equal(small.get_layer("bn").gamma, np.full(8, 3.0, "float32"))
    assert small.get_layer("second").filters == 16, "without batch norm it is not judged"


def test_taylor_finds_the_channels_that_the_task_needs(rng):
    """Only the first 8 hidden units reach the output; weights alone would say the opposite."""
    model = keras.Sequential([keras.Input((5,)), L.Dense(16, activation="relu", name="hidden"), L.Dense(8, name="gate"),
                              L.Dense(1, name="out")])
    randomize(model, rng)
    model.get_layer("hidden").kernel.assign(model.get_layer("hidden").kernel * np.repeat([1.0, 9.0], 8))
    gate = model.get_layer("gate").kernel.numpy()
    gate[:8, 4:], gate[8:, :4] = 0, 0
    model.get_layer("gate").kernel.assign(gate)
    model.get_layer("out").kernel.assign(np.repeat([[1.0], [0.0]], 4, axis=0))
    model.compile("sgd", "mse", metrics=["mae"])
    x = rng.normal(size=(100, 5))
    data = x, np.ones((100, 1))
    original, state = model.get_layer("hidden").kernel.numpy(), [v.numpy() for m in model.metrics for v in m.variables]
    kept = {}
    for by, extra in (("taylor", data), ("l2", None)):
        small = shrink.channels(model, 0.5, importance=by, where="hidden", data=extra)
        kept[by] = np.isin(original, small.layers[0].kernel).all(0)
    assert kept["taylor"].tolist() == [True] * 8 + [False] * 8
    assert kept["l2"].tolist() == [False] * 8 + [True] * 8
    for then, now in zip(state, [v.numpy() for m in model.metrics for v in m.variables], strict=True):
        np.testing.assert_array_equal(then, now)


def test_geometric_median_against_the_slow_way(rng):
    filters = rng.normal(size=(10, 3, 3, 4))
    slow = [sum(np.linalg.norm(a - b) for b in filters) for a in filters]
    fast = shrink._choice.geometric_median({("k", 3): filters.reshape(10, -1)}, {})
    np.testing.assert_allclose(fast, slow, rtol=1e-6)


def test_a_function_judges():
    seen = {}

    def by(parts):
        seen.update({path: values.shape for (path, _), values in parts.items()})
        return np.arange(len(next(iter(parts.values()))))

    model = classifier()
    small = shrink.channels(model, 0.5, importance=by, where="wide")
    np.testing.assert_array_equal(small.get_layer("wide").bias, model.get_layer("wide").bias[24:])
    assert seen["wide/kernel"] == (48, 9 * 32)
    assert seen["hidden/kernel"] == (48, 36 * 64)


# What it owes the user


def test_where(rng):
    model = classifier()
    small = check(model, rng, where=["wide"])
    assert [layer.filters for layer in small.layers if isinstance(layer, L.Conv2D)] == [32, 32, 24]
    assert status(model, "hidden", where=["wide"]) == ["skipped"]
    assert status(model, "stem", where="stem") == ["skipped"], "tied to a branch that was left out"
    assert status(model, "stem", where=["stem", "branch"]) == ["selected"]


def test_nested_and_shared_models_keep_their_shape(rng):
    x = keras.Input((8, 8, 3))
    block_input = keras.Input((8, 8, 16))
    y = L.Conv2D(16, 3, padding="same")(block_input)
    block = keras.Model(block_input, L.Add()([block_input, y]), name="block")
    y = block(block(L.Conv2D(16, 1, name="stem")(x)))
    head = keras.Sequential([keras.Input((8, 8, 16)), L.Flatten(), L.Dense(8), L.Dense(2)], name="head")
    model = keras.Model(x, head(y))
    randomize(model, rng)
    small = check(model, rng, keep=0.25)
    assert [layer.name for layer in small.layers[1:]] == [layer.name for layer in model.layers[1:]]
    assert small.get_layer("block").input_shape == (None, 8, 8, 4)
    assert type(small.get_layer("head")) is keras.Sequential


def test_the_result_is_an_ordinary_model(rng, tmp_path):
    model = classifier()
    model.get_layer("wide").trainable = False
    model.compile("adam", "mse")
    state = np.random.get_state()[1].copy()
    small = shrink.channels(model, 0.5)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert model.compiled
    assert not small.compiled
    assert not small.get_layer("wide").trainable
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    x = batch(model, rng)
    small.save(tmp_path / "small.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "small.keras")(x), small(x))
    small.compile("sgd", "mse")
    small.fit(x, np.zeros((4, 4)), verbose=0)
    twice = shrink.channels(small, 0.5)
    assert twice.get_layer("hidden").units == 16


def test_sequential_stays_sequential(rng):
    model = keras.Sequential([keras.Input((4,)), L.Dense(16, "relu"), L.Dense(16, "relu"), L.Dense(2)])
    small = check(model, rng)
    assert type(small) is keras.Sequential


def test_layers_called_by_keyword(rng):
    x = keras.Input((4,))
    block_input = keras.Input((16,))
    block = keras.Model(block_input, L.Dense(16, activation="relu")(block_input))
    model = keras.Model(x, L.Dense(2)(block(L.Dense(16)(inputs=x))))
    randomize(model, rng)
    check(model, rng)


def test_dicts_of_inputs(rng):
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = L.Concatenate()([L.Dense(16)(inputs["b"]), L.Dense(8)(inputs["a"])])
    model = keras.Model(inputs, {"y": L.Dense(2)(x)})
    small = shrink.channels(model, 0.5, round_to=4)
    assert small({"a": rng.normal(size=(2, 4)), "b": rng.normal(size=(2, 4))})["y"].shape == (2, 2)
    assert [x.name for x in small.inputs] == ["a", "b"]


@pytest.mark.slow
def test_a_model_of_a_mirrored_strategy(run_python):
    run_python("""
import keras, numpy as np, tensorflow as tf
from tfopt import shrink
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.BatchNormalization(),
                              keras.layers.ReLU(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
x, y = np.random.default_rng(0).normal(size=(64, 8)), np.zeros((64, 2))
model.fit(x, y, verbose=0)
small = shrink.recalibrate(shrink.channels(model, 0.5), x)
assert small.distribute_strategy is strategy
assert small.layers[0].units == 16
with strategy.scope():
    small.compile("sgd", "mse")
small.fit(x, y, verbose=0)
shrink.channels(model, 0.5, importance="taylor", data=(x, y))
""", devices=2)


# Batch-norm recalibration


def test_recalibrated_statistics_are_those_of_the_data(rng):
    inputs = keras.Input((4, 4, 3))
    x = L.BatchNormalization(name="one")(L.Conv2D(6, 1, name="conv")(inputs))
    x = L.Dropout(0.5)(L.ReLU()(x))
    model = keras.Model(inputs, L.Dense(2)(L.BatchNormalization(name="two")(x)))
    randomize(model, rng)
    model.get_layer("one").trainable = False
    x = rng.normal(2.0, 3.0, size=(64, 4, 4, 3)).astype("float32")
    ready = shrink.recalibrate(model, x)
    seen = np.asarray(model.get_layer("conv")(x), "float64")
    np.testing.assert_allclose(ready.get_layer("one").moving_mean, seen.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(ready.get_layer("one").moving_variance, seen.var((0, 1, 2)), rtol=1e-4)
    one = model.get_layer("one")
    normal = (seen - seen.mean((0, 1, 2))) / np.sqrt(seen.var((0, 1, 2)) + one.epsilon) * one.gamma + one.beta
    relu = np.maximum(normal, 0)
    np.testing.assert_allclose(ready.get_layer("two").moving_mean, relu.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    assert not ready.get_layer("one").trainable
    for name in ("conv", "dense"):
        for a, b in zip(model.layers, ready.layers, strict=True):
            if a.name.startswith(name):
                np.testing.assert_array_equal(a.kernel, b.kernel)


def test_recalibration_pools_over_batches_and_uses(rng):
    x = [keras.Input((3,)), keras.Input((3,))]
    norm = L.BatchNormalization(name="bn")
    model = keras.Model(x, L.Add()([norm(x[0]), norm(x[1])]))
    a, b = rng.normal(size=(100, 3)), rng.normal(5, size=(100, 3))
    import tensorflow as tf
    data = tf.data.Dataset.from_tensor_slices(((a, b), np.zeros(100))).batch(30)
    ready = shrink.recalibrate(model, data)
    both = np.concatenate([a, b])
    np.testing.assert_allclose(ready.get_layer("bn").moving_mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ready.get_layer("bn").moving_variance, both.var(0), rtol=1e-5)


# A layer of one's own


class Gain(L.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.gain


class Other(Gain):
    pass


class Reverse(Gain):
    def call(self, x):
        return keras.ops.flip(x, -1) * self.gain


def test_a_rule_of_ones_own(rng, monkeypatch):
    monkeypatch.setattr(shrink._rules, "RULES", dict(shrink._rules.RULES))
    assert status(stack(Gain()), "first") == ["skipped"]

    def rule(layer, graph, x):
        graph.record(layer.gain, 0, x.ids)
        return x

    shrink.register(Gain, rule)
    for layer in (Gain(), Other()):
        small = shrink.channels(stack(layer), 0.5)
        assert small.get_layer("first").filters == 8
    assert status(stack(Reverse()), "first") == ["skipped"], "it has a call of its own"
    shrink.register(Reverse, rule)
    with pytest.raises(RuntimeError, match="computes something else than the model that was passed in"):
        shrink.channels(stack(Reverse()), 0.5, importance=lambda parts: np.arange(16.0))


# Refusals


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_fully_locked():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    with pytest.raises(ValueError, match=r"found no channels that can go.*shrink\.plan\(model\) says why"):
        shrink.channels(model, 0.5)


@pytest.mark.parametrize(("options", "rule"), [
    ({}, "one of `keep`, `macs` and `latency`"), ({"keep": 0.5, "macs": 0.5}, "one of `keep`, `macs`"),
    ({"macs": 0.5, "latency": 0.5}, "one of `keep`, `macs` and `latency`"), ({"latency": 1}, "`latency` must be"),
    ({"keep": 0.5, "ranking": "globl"}, "`ranking` must be 'layer' or 'global'.*Did you mean `global`"),
    ({"keep": 0}, "`keep` must be"), ({"keep": 1.1}, "`keep` must be"), ({"macs": 1}, "`macs` must be"),
    ({"macs": 0.001}, "cannot reach this target.*least_possible"), ({"keep": 0.5, "round_to": 0}, "`round_to` must be"),
    ({"keep": 0.5, "importance": "magic"}, "`importance` must be 'l1'"), ({"keep": 1}, "no channel would go"),
    ({"keep": 0.5, "importance": "taylor"}, "needs `data`"), ({"keep": 0.5, "round_to": 64}, "no channel would go"),
    ({"keep": 0.5, "data": np.ones((2, 3))}, r"shrink\.channels: .*data"),
    ({"keep": 0.5, "where": "out"}, "whose channels some can go"),
    ({"keep": 0.5, "where": "nowhere"}, "must name layers"),
    ({"keep": 0.5, "importance": "taylor", "data": ()}, "compiled"),
    ({"keep": 0.5, "importance": lambda parts: np.ones(3)}, "one finite number per channel")])
def test_refusals(options, rule):
    with pytest.raises(ValueError, match=rule):
        shrink.channels(classifier(), **options)


def test_gamma_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="needs batch normalization"):
        shrink.channels(stack(), 0.5, importance="gamma")


@pytest.mark.parametrize("call", [lambda m: shrink.channels(m, 0.5), shrink.plan, lambda m: shrink.recalibrate(m, ())])
@pytest.mark.parametrize(("model", "error"), [
    (Subclassed(), ValueError), (keras.Sequential([L.Dense(3)]), ValueError), (3, TypeError)])
def test_what_is_no_graph_is_refused(call, model, error):
    with pytest.raises(error, match=r"^shrink\.\w+(: `model` must be| needs) a (Keras 3|built)"):
        call(model)


def test_recalibrate_refuses():
    with pytest.raises(ValueError, match="needs a model with batch normalization"):
        shrink.recalibrate(stack(), np.zeros((1, 6, 6, 16)))
    with pytest.raises(ValueError, match=r"shrink\.recalibrate: .*data"):
        shrink.recalibrate(classifier(), np.zeros((0, 12, 12, 3)))


def test_register_refuses():
    with pytest.raises(ValueError, match="needs a class of layers"):
        shrink.register(Gain(), lambda *_: None)
    with pytest.raises(ValueError, match="`rule` must be a function"):
        shrink.register(Gain, None)


def test_leaves_sees_every_layer():
    """Negative control of the oracle: it compares the weights of all layers."""
    model = random_model(0)
    assert sum(len(layer.weights) for layer in leaves(model).values()) == len(model.weights)
