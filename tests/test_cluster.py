"""Clustering equals TFMOT's own flow, keeps its count, and refuses what it cannot."""

import keras
import numpy as np
import pytest
import tf_keras

from tfopt import cluster
from tfopt._toolkit import tfmot

INITS = {"kmeans++": "KMEANS_PLUS_PLUS", "linear": "LINEAR", "density": "DENSITY_BASED"}


def cnn():
    return keras.Sequential([
        keras.Input((8, 8, 2)), keras.layers.Conv2D(8, 3, activation="relu", name="conv"), keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu", name="hidden"), keras.layers.Dense(4, name="logits")])


def data(rng, n=48):
    return rng.normal(size=(n, 8, 8, 2)).astype("float32"), rng.integers(0, 4, n)


def compile_(model, **options):
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def tfmot_flow(model, x, y, clusters, init, **options):
    """The toolkit as its guide has it, on a tf_keras model."""
    counterpart = tf_keras.Sequential([
        tf_keras.layers.InputLayer((8, 8, 2)), tf_keras.layers.Conv2D(8, 3, activation="relu"),
        tf_keras.layers.Flatten(), tf_keras.layers.Dense(16, activation="relu"), tf_keras.layers.Dense(4)])
    counterpart.set_weights(model.get_weights())
    toolkit = tfmot.clustering.keras
    wrapped = toolkit.cluster_weights(counterpart, clusters, getattr(toolkit.CentroidInitialization, INITS[init]),
                                      **options)
    wrapped.compile(tf_keras.optimizers.SGD(0.01), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return toolkit.strip_clustering(wrapped).get_weights()


@pytest.mark.slow
@pytest.mark.parametrize(("init", "options"), [
    ("linear", {}), ("density", {}), ("kmeans++", {}), ("kmeans++", {"run_eagerly": True}),
    ("kmeans++", {"steps_per_execution": 3}), ("kmeans++", {"jit_compile": True})])
def test_equals_tfmots_own_flow(rng, init, options):
    model, (x, y) = cnn(), data(rng)
    expected = tfmot_flow(model, x, y, 8, init)
    wrapped = compile_(cluster.wrap(model, 8, init=init), **options)
    wrapped.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for mine, theirs in zip(cluster.strip(wrapped).get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_untrained_weights_go_to_the_nearest_of_evenly_spaced_values():
    model = cnn()
    kernel = model.get_layer("hidden").kernel.numpy()
    found = cluster.strip(cluster.wrap(model, 5, init="linear", where="hidden")).get_layer("hidden").kernel.numpy()
    grid = np.linspace(kernel.min(), kernel.max(), 5)
    np.testing.assert_allclose(found, grid[np.abs(kernel[..., None] - grid).argmin(axis=-1)], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["kmeans++", "linear", "density", "random"])
def test_the_count_holds_after_training(rng, init):
    wrapped, (x, y) = compile_(cluster.wrap(cnn(), 6, init=init)), data(rng)
    wrapped.fit(x, y, batch_size=8, verbose=0)
    plain = cluster.strip(wrapped)
    for name in ("conv", "hidden", "logits"):
        assert 1 < np.unique(plain.get_layer(name).kernel).size <= 6
    np.testing.assert_allclose(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0), atol=1e-6)


def test_per_channel(rng):
    wrapped, (x, y) = compile_(cluster.wrap(cnn(), 4, per_channel=True, where="conv")), data(rng)
    wrapped.fit(x, y, batch_size=8, verbose=0)
    kernel = cluster.strip(wrapped).get_layer("conv").kernel.numpy()
    assert max(np.unique(kernel[..., channel]).size for channel in range(8)) <= 4
    assert np.unique(kernel).size > 4                                   # more than one table of values in all


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [False, True])
def test_zeros_stay_zero(rng, per_channel):
    model, (x, y) = cnn(), data(rng)
    for layer in (model.get_layer("conv"), model.get_layer("hidden")):
        kernel = layer.kernel.numpy()
        layer.kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel))
    zero = {layer.name: layer.kernel.numpy() == 0 for layer in model.layers if layer.name in ("conv", "hidden")}

    def broken(**options):
        wrapped = compile_(cluster.wrap(model, 4, where=list(zero), **options))
        wrapped.fit(x, y, batch_size=8, epochs=3, verbose=0)
        plain = cluster.strip(wrapped)
        return sum((plain.get_layer(name).kernel.numpy()[mask] != 0).sum() for name, mask in zero.items())

    assert broken(preserve_sparsity=True, per_channel=per_channel) == 0
    assert broken(per_channel=per_channel) > 0                          # negative control


def test_zeros_of_what_is_not_clustered_stay(rng):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="hidden"),
                              keras.layers.Dense(4, name="out")])
    for layer in model.layers:
        layer.kernel.assign(np.where(rng.random(layer.kernel.shape) < 0.5, 0, layer.kernel.numpy()))
    zero = model.get_layer("out").kernel.numpy() == 0

    def broken(**options):
        wrapped = cluster.wrap(model, 4, where="hidden", **options)
        wrapped.compile("sgd", "mse")
        wrapped.fit(rng.normal(size=(32, 8)), rng.normal(size=(32, 4)), verbose=0)
        return np.count_nonzero(cluster.strip(wrapped).get_layer("out").kernel.numpy()[zero])

    assert broken(preserve_sparsity=True) == 0
    assert broken() > 0                                                 # negative control


def test_strip_does_not_touch_what_it_strips(rng):
    wrapped, (x, y) = compile_(cluster.wrap(cnn(), 4)), data(rng)
    wrapped.fit(x, y, batch_size=8, verbose=0)
    before = [v.numpy() for v in wrapped.variables]
    cluster.strip(wrapped)
    for now, then in zip(wrapped.variables, before, strict=True):
        np.testing.assert_array_equal(now, then)
    wrapped.fit(x, y, batch_size=8, verbose=0)                          # and it goes on training
    assert all(np.unique(w).size <= 4 for w in cluster.strip(wrapped).get_weights() if w.ndim > 1)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [lambda: keras.layers.LSTM(6), lambda: keras.layers.SimpleRNN(6),
                                   lambda: keras.layers.Bidirectional(keras.layers.GRU(6))])
def test_recurrent_kernels(rng, layer):
    model = keras.Sequential([keras.Input((5, 4)), layer(), keras.layers.Dense(2)])
    x = rng.normal(size=(8, 5, 4))
    wrapped = cluster.wrap(model, 5)
    wrapped.compile("sgd", "mse")
    wrapped.fit(x, np.ones((8, 2)), verbose=0)
    plain = cluster.strip(wrapped)
    np.testing.assert_allclose(plain.predict(x, verbose=0), wrapped.predict(x, verbose=0), atol=1e-6)
    kernels = [w for w in plain.layers[0].weights if "kernel" in w.path]
    assert kernels
    assert all(np.unique(kernel).size <= 5 for kernel in kernels)


def test_plan_says_what_is_selected_and_why_not():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"),
                              keras.layers.BatchNormalization(name="b"), keras.layers.Dense(1, name="c")])
    table = cluster.plan(model, clusters=16).set_index("layer")
    assert table.status.to_dict() == {"a": "selected", "b": "skipped", "c": "skipped"}
    assert "no kernel" in table.why["b"]
    assert "too few weights" in table.why["c"]


@pytest.mark.parametrize(("arguments", "rule"), [
    ({"clusters": 1}, "`clusters` must be a whole number >= 2"), ({"clusters": 2.5}, "`clusters` must be"),
    ({"clusters": 2, "preserve_sparsity": True}, "`clusters` must be a whole number >= 3"),
    ({"init": "kmeans"}, r"`init` must be 'kmeans\+\+'"), ({"where": "nowhere"}, "must name layers of the model"),
    ({"clusters": 100, "preserve_sparsity": True, "where": "logits"},
     "must name a layer with a kernel of enough non-zero weights"),
    ({"clusters": 10**6}, "must choose at least one layer with a kernel of enough")])
def test_wrap_refuses(arguments, rule):
    arguments = {"clusters": 8, **arguments}
    with pytest.raises(ValueError, match=rule):
        cluster.wrap(cnn(), arguments.pop("clusters"), **arguments)
