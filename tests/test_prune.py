"""Pruning equals TFMOT's own flow, reaches what it promises, and refuses what it cannot."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfopt import prune
from tfopt._toolkit import tfmot


def cnn():
    return keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, activation="relu", name="conv"), keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu", name="hidden"), keras.layers.Dense(4, name="logits")])


def digits(rng, n=64):
    return rng.normal(size=(n, 8, 8, 1)).astype("float32"), rng.integers(0, 4, n)


def compile_(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, **options)
    return model


def tfmot_flow(model, x, y, schedule, epochs):
    """The toolkit as its guide has it: a tf_keras model, wrapped whole, with its callback."""
    counterpart = tf_keras.Sequential([
        tf_keras.layers.InputLayer((8, 8, 1)), tf_keras.layers.Conv2D(8, 3, activation="relu"),
        tf_keras.layers.Flatten(), tf_keras.layers.Dense(16, activation="relu"), tf_keras.layers.Dense(4)])
    counterpart.set_weights(model.get_weights())
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(counterpart, schedule)
    wrapped.compile(tf_keras.optimizers.SGD(0.1, momentum=0.9),
                    tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
                callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(wrapped).get_weights()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "options"), [
    (None, {}), (12, {}), (12, {"run_eagerly": True}), (12, {"steps_per_execution": 4}), (12, {"jit_compile": True})])
def test_equals_tfmots_own_flow(rng, end, options):
    """What is chosen here after a step, TFMOT chooses, of the same weights, as the next one begins; between epochs its
    callback would take from these the ones that are zero by now."""
    model, (x, y) = cnn(), digits(rng, 120)
    schedules = tfmot.sparsity.keras
    schedule = (schedules.ConstantSparsity(0.6, 2 + 1, frequency=2) if end is None
                else schedules.PolynomialDecay(0.0, 0.6, 2 + 1, end + 1, frequency=2))
    expected = tfmot_flow(model, x, y, schedule, epochs=1)
    wrapped = compile_(prune.wrap(model, 0.6, begin=2, end=end, every=2), **options)
    wrapped.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    found = prune.strip(wrapped).get_weights()
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
        if mine.ndim > 1:
            np.testing.assert_array_equal(mine == 0, theirs == 0)
            assert (mine == 0).mean() == pytest.approx(0.6, abs=1 / mine.size)


def test_the_smallest_go(rng):
    """With a zero learning rate the zeros are those of a plain sort."""
    model, (x, _) = cnn(), digits(rng)
    wrapped = prune.wrap(model, 0.75, where=["hidden"])
    wrapped.compile(keras.optimizers.SGD(0.0), "mse")
    wrapped.fit(x, np.zeros((64, 4)), batch_size=32, verbose=0)
    kernel, found = model.get_layer("hidden").kernel.numpy(), prune.strip(wrapped).get_layer("hidden").kernel.numpy()
    kept = np.argsort(-np.abs(kernel).ravel())[: round(kernel.size * 0.25)]
    expected = np.zeros(kernel.size)
    expected[kept] = kernel.ravel()[kept]
    np.testing.assert_array_equal(found.ravel(), expected)
    np.testing.assert_array_equal(prune.strip(wrapped).get_layer("logits").kernel, model.get_layer("logits").kernel)


def lamp(model, lost, names):
    """{name: share of zeros}: the paper's score of each weight, by its double sum, and the lowest of all go."""
    scored = []
    for name in names:
        squares = model.get_layer(name).kernel.numpy().astype("float64").ravel() ** 2
        scored += [(square / squares[squares >= square].sum(), name) for square in squares]
    gone = [name for _, name in sorted(scored)[:lost]]
    return {name: gone.count(name) / model.get_layer(name).kernel.numpy().size for name in names if name in gone}


@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.9, 0.99])
def test_the_shares_of_layers_are_those_of_lamp(sparsity):
    keras.utils.set_random_seed(1)
    model = cnn()
    for names in (["conv", "hidden", "logits"], ["hidden", "conv"]):
        size = sum(model.get_layer(name).kernel.numpy().size for name in names)
        found = prune.allocate(model, sparsity, where=names)
        assert found == pytest.approx(lamp(model, round(sparsity * size), sorted(names)))
        zeros = [share * model.get_layer(name).kernel.numpy().size for name, share in found.items()]
        assert sum(zeros) == pytest.approx(round(sparsity * size)), "of all together"


def test_shares_do_not_depend_on_scale_and_keep_zeros():
    keras.utils.set_random_seed(1)
    model = cnn()
    before = prune.allocate(model, 0.8)
    hidden = model.get_layer("hidden")
    hidden.kernel.assign(1000 * hidden.kernel.numpy())
    assert prune.allocate(model, 0.8) == before
    assert prune.allocate(model, 0.8, where=["hidden"]) == pytest.approx({"hidden": 0.8}, abs=1e-3)
    hidden.kernel.assign(np.zeros(hidden.kernel.shape))
    size = 72 + 4608 + 64
    assert prune.allocate(model, 4000 / size) == {"hidden": 4000 / 4608}, "what is zero goes first"


def test_training_reaches_the_shares(rng):
    keras.utils.set_random_seed(1)
    model, (x, y) = cnn(), digits(rng)
    before = model.get_weights()
    shares = prune.allocate(model, 0.9)
    wrapped = compile_(prune.wrap(model, shares, end=2))
    wrapped.fit(x, y, batch_size=32, verbose=0)
    slim = prune.strip(wrapped)
    assert {name: float((slim.get_layer(name).kernel.numpy() == 0).mean()) for name in shares} == pytest.approx(shares)
    assert shares["hidden"] > 0.9 > shares["logits"]
    keras.tree.map_structure(np.testing.assert_array_equal, model.get_weights(), before)
    assert prune.plan(model, shares).status.tolist() == ["selected"] * 3


@pytest.mark.parametrize(("sparsity", "where", "rule"), [
    (1e-9, None, "must take a weight"), (1 - 1e-9, None, "leave one a layer"), (1.0, None, "`sparsity`"),
    (0.5, "nowhere", "must name layers"), (0.5, lambda layer: False, "at least one layer with a kernel")])
def test_allocate_refuses(sparsity, where, rule):
    with pytest.raises(ValueError, match=rule):
        prune.allocate(cnn(), sparsity, where=where)


def test_pattern_two_of_four(rng):
    model = keras.Sequential([keras.Input((6, 6, 8)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(),
                              keras.layers.Dense(4, name="dense")])
    wrapped = compile_(prune.wrap(model, 0.5, pattern=(2, 4)))
    wrapped.fit(rng.normal(size=(16, 6, 6, 8)), rng.integers(0, 4, 16), batch_size=8, verbose=0)
    plain = prune.strip(wrapped)
    for name in ("conv", "dense"):
        kernel = plain.get_layer(name).kernel.numpy()
        groups = np.moveaxis(kernel, -2, -1).reshape(-1, 4)                  # four input channels in a row
        np.testing.assert_array_equal((groups == 0).sum(axis=1), 2)


class Gate(keras.layers.Layer):
    """Calls `project` only where its input has another width."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.project = keras.layers.Dense(8, name="dense"), keras.layers.Dense(8)

    def call(self, x):
        return self.dense(x) + (x if x.shape[-1] == 8 else self.project(x))


def test_a_layer_that_is_never_called_has_no_kernel():
    wrapped = prune.wrap(keras.Sequential([keras.Input((8,)), Gate(name="gate")]), 0.5)
    assert list(prune.sparsities(wrapped)) == ["gate/dense"]


def test_blocks_go_together(rng):
    model, (x, y) = cnn(), digits(rng)
    wrapped = compile_(prune.wrap(model, 0.5, block=(2, 2), where=["hidden", "logits"]))
    wrapped.fit(x, y, batch_size=32, verbose=0)
    kernel = prune.strip(wrapped).get_layer("hidden").kernel.numpy()
    blocks = (kernel == 0).reshape(kernel.shape[0] // 2, 2, kernel.shape[1] // 2, 2).sum(axis=(1, 3))
    assert set(np.unique(blocks)) == {0, 4}
    assert (blocks == 4).mean() == pytest.approx(0.5, abs=0.01)


def test_blocks_that_do_not_divide_begin_at_the_corner():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10, name="dense")])
    kernel = np.abs(model.get_layer("dense").kernel.numpy())
    wrapped = prune.wrap(model, 0.5, block=(1, 4))
    wrapped.compile(keras.optimizers.SGD(0.0), "mse")
    wrapped.fit(np.ones((4, 10)), np.ones((4, 10)), verbose=0)
    means = np.stack([kernel[:, start:start + 4].mean(axis=1) for start in (0, 4, 8)], axis=1)
    kept = np.repeat(means >= np.sort(means.ravel())[-15], 4, axis=1)[:, :10]
    np.testing.assert_array_equal(prune.strip(wrapped).get_layer("dense").kernel.numpy() != 0, kept)


def test_a_share_for_each_layer(rng):
    wrapped, (x, y) = compile_(prune.wrap(cnn(), {"hidden": 0.75, "logits": 0.25})), digits(rng)
    wrapped.fit(x, y, batch_size=32, verbose=0)
    assert prune.sparsities(wrapped) == {"hidden": 0.75, "logits": 0.25}
    assert (prune.strip(wrapped).get_layer("conv").kernel.numpy() != 0).all()


def test_the_gradual_schedule_follows_its_formula(rng):
    x, y = digits(rng, 8)
    wrapped = compile_(prune.wrap(cnn(), 0.8, begin=0, end=10, where="hidden"))
    for step in range(1, 11):
        wrapped.fit(x, y, batch_size=8, verbose=0)
        size = 16 * 288
        share = 0.8 * (1 - (1 - step / 10) ** 3)
        assert prune.sparsities(wrapped)["hidden"] == pytest.approx(share, abs=2 / size)


def test_a_layer_used_twice_keeps_its_schedule(rng):
    a, b, shared = keras.Input((8,)), keras.Input((8,)), keras.layers.Dense(32, name="shared")
    wrapped = prune.wrap(keras.Model([a, b], keras.layers.Dense(1)(shared(a) + shared(b))), 0.5, end=4, where="shared")
    wrapped.compile("sgd", "mse")
    data = [rng.normal(size=(8, 8)), rng.normal(size=(8, 8))]
    seen = []
    for _ in range(4):
        wrapped.fit(data, np.ones((8, 1)), verbose=0)
        seen.append(prune.sparsities(wrapped)["shared"])
    np.testing.assert_allclose(seen, [0.5 * (1 - (1 - t / 4) ** 3) for t in (1, 2, 3, 4)], atol=0.01)


def test_looking_does_not_prune(rng):
    wrapped, (x, y) = compile_(prune.wrap(cnn(), 0.5)), digits(rng)
    wrapped.evaluate(x, y, verbose=0)
    wrapped.predict(x, verbose=0)
    assert set(prune.sparsities(wrapped).values()) == {0.0}


def test_strip_does_not_touch_what_it_strips(rng):
    wrapped, (x, y) = compile_(prune.wrap(cnn(), 0.5)), digits(rng)
    wrapped.fit(x, y, batch_size=32, verbose=0)
    before = [v.numpy() for v in wrapped.variables]
    prune.strip(wrapped)
    for now, then in zip(wrapped.variables, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_summaries_reach_tensorboard(rng, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wrapped, (x, y) = compile_(prune.wrap(cnn(), 0.5, where="hidden")), digits(rng)
    wrapped.fit(x, y, epochs=2, verbose=0, callbacks=[prune.SparsitySummaries(tmp_path)])
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    import tensorflow as tf
    values = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("sparsity/hidden")]
    assert values == pytest.approx([0.5, 0.5], abs=0.01)


def test_plan_says_what_is_selected_and_why_not():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"),
                              keras.layers.BatchNormalization(name="b"), keras.layers.Dense(2, name="c")])
    table = prune.plan(model, where="a").set_index("layer")
    assert table.status.to_dict() == {"a": "selected", "b": "skipped", "c": "skipped"}
    assert table.affected.to_dict() == {"a": 32, "b": 0, "c": 0}
    assert table.parameters.to_dict() == {"a": 36, "b": 16, "c": 10}
    assert "no kernel" in table.why["b"]
    assert "where" in table.why["c"]


@pytest.mark.parametrize(("arguments", "rule"), [
    ({"sparsity": 1.0}, "`sparsity` must be a number > 0 and < 1"), ({"sparsity": float("nan")}, "`sparsity` must be"),
    ({"begin": -1}, "`begin` must be"), ({"begin": 5, "end": 5}, "`end` must be a whole number > 5"),
    ({"every": 0}, "`every` must be"), ({"end": 10, "every": 3}, "must be a multiple of `every`"),
    ({"block": (2, 2)}, "`block` works on 2-D kernels"), ({"block": 2}, "`block` must be None or two whole numbers"),
    ({"sparsity": 0.6, "pattern": (2, 4)}, "`sparsity` must be n / m"),
    ({"pattern": (2, 4)}, "input channels divide by m"),
    ({"pattern": (2, 4), "end": 4}, "`pattern` is set once"), ({"where": "nowhere"}, "must name layers of the model"),
    ({"where": lambda layer: False}, "must choose at least one layer with a kernel")])
def test_wrap_refuses(arguments, rule):
    arguments = {"sparsity": 0.5, **arguments}
    with pytest.raises(ValueError, match=rule):
        prune.wrap(cnn(), arguments.pop("sparsity"), **arguments)


@pytest.mark.slow
def test_too_few_steps_are_told(rng):
    wrapped, (x, y) = compile_(prune.wrap(cnn(), 0.5, end=100)), digits(rng)
    wrapped.fit(x, y, batch_size=32, verbose=0)
    with pytest.raises(ValueError, match=r"reached its sparsity of 0\.5\..*steps=2\. Train at least 100"):
        prune.strip(wrapped)


class Averaged(keras.Model):
    """Trains one network and lets another follow it, as diffusion models do; only the first gets gradients."""

    def __init__(self):
        super().__init__()
        self.network, self.ema = (keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]) for _ in range(2))

    def call(self, x):
        return self.ema(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self.network(x) - y) ** 2)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        for slow, fast in zip(self.ema.weights, weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * fast)
        return {"loss": loss}


def test_kernels_that_no_optimizer_moves_are_pruned_at_the_end():
    model = Averaged()
    model(np.ones((2, 8)))
    wrapped = prune.wrap(model, 0.75, end=2)
    wrapped.compile("sgd")
    wrapped.fit(np.ones((32, 8)), np.ones((32, 4)), batch_size=8, verbose=0)
    with pytest.warns(UserWarning, match="no optimizer has moved the kernels of .*zeros are set now"):
        plain = prune.strip(wrapped)
    fast, slow = (np.asarray(part.layers[0].kernel) for part in (plain.network, plain.ema))
    assert (fast == 0).sum() == (slow == 0).sum() == 24
    kernel = np.asarray(wrapped.ema.layers[0].kernel)
    assert np.abs(slow[slow != 0]).min() >= np.abs(kernel[slow == 0]).max()


def test_a_model_without_call_is_refused_with_a_way_out_that_works():
    class Adversaries(Averaged):
        call = keras.Model.call

    model = Adversaries()
    with pytest.raises(ValueError, match=r"has no `call`: pass the networks it trains \(sequential"):
        prune.wrap(model, 0.5)
    model.network = prune.wrap(model.network, 0.5)
    model.compile("sgd")
    model.fit(np.ones((32, 8)), np.ones((32, 4)), batch_size=8, verbose=0)
    assert (np.asarray(prune.strip(model.network).layers[0].kernel) == 0).mean() == 0.5
