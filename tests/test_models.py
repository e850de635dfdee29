"""Copies owe the original nothing; `where` chooses what it says or refuses."""

import keras
import numpy as np
import pytest

from tfopt import _models


def branched():
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, activation="relu", name="one")], name="inner")
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    shared = keras.layers.Dense(8, name="shared")
    x = keras.ops.add(shared(inputs["a"]), shared(inputs["b"]) * 2.0)
    x = keras.layers.BatchNormalization(name="bn")(inner(x))
    return keras.Model(inputs, [keras.layers.Dropout(0.5, seed=1)(x), keras.layers.Dense(2, name="out")(x)], name="net")


def batch(rng):
    return {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(3, 4))}


def test_a_copy_is_equal_and_independent(rng):
    model, x = branched(), batch(rng)
    model.get_layer("bn").moving_mean.assign(rng.normal(size=8))
    model.get_layer("inner").trainable = False
    model.compile("sgd", "mse")
    before = [w.copy() for w in model.get_weights()]
    copy = _models.copy(model)
    assert not copy.compiled
    assert [layer.trainable for layer in _models.layers(copy).values()] == \
           [layer.trainable for layer in _models.layers(model).values()]
    for mine, theirs in zip(copy(x, training=True), model(x, training=True), strict=True):
        np.testing.assert_array_equal(mine, theirs)                        # dropout draws the same mask
    for w in copy.weights:
        w.assign(w + 1)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=0.2)
    assert {id(w) for w in copy.weights}.isdisjoint({id(w) for w in model.weights})


def test_a_copy_with_other_layers_keeps_the_weights(rng):
    model, x = branched(), batch(rng)

    def change(layer):
        if layer.name == "shared":
            return keras.layers.Dense(8, activation="tanh", name="shared")
        return None

    copy = _models.copy(model, change=change)
    np.testing.assert_array_equal(copy.get_layer("shared").kernel, model.get_layer("shared").kernel)
    assert not np.allclose(copy(x)[1], model(x)[1])


def test_a_copy_can_put_layers_behind_others(rng):
    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return keras.layers.Dropout(0.5)(outputs) if layer.name == "one" else outputs

    copy = _models.copy(branched(), call=call)
    assert sum(isinstance(layer, keras.layers.Dropout) for layer in _models.layers(copy).values()) == 2


def test_sequential_stays_sequential():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert type(_models.copy(model)) is keras.Sequential


@pytest.mark.parametrize(("where", "expected"), [
    (None, ["shared", "inner/one", "out"]), ("out", ["out"]), (["inner/one", "shared"], ["shared", "inner/one"]),
    ("one", ["inner/one"]), (lambda layer: layer.name.startswith("s"), ["shared"]), ("inner", ["inner/one"])])
def test_where(where, expected):
    chosen = _models.select(branched(), where, "here", able=lambda layer: isinstance(layer, keras.layers.Dense))
    assert list(chosen) == expected


def test_where_takes_layers():
    """A layer is an object that can be called, and still no function to ask; a nested model stands for its layers."""
    model = branched()

    def chosen(where):
        return list(_models.select(model, where, "here", able=lambda layer: isinstance(layer, keras.layers.Dense)))

    assert chosen(model.get_layer("out")) == ["out"]
    assert chosen([model.get_layer("inner"), "shared"]) == ["shared", "inner/one"]
    with pytest.raises(ValueError, match="must name layers of the model"):
        chosen(branched().get_layer("out"))


@pytest.mark.parametrize(("where", "rule"), [
    (3, "must be None, layer names, layers, or a function"), ([3], "must be None, layer names"),
    (lambda layer: np.zeros(2), "must return True or False"),
    ("nowhere", "must name layers of the model"), ("bn", "must name a layer with"),
    (lambda layer: False, "must choose at least one layer with")])
def test_where_refuses(where, rule):
    with pytest.raises((ValueError, TypeError), match=rule):
        _models.select(branched(), where, "here", able=lambda layer: isinstance(layer, keras.layers.Dense),
                       what="layer with a kernel")


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(("model", "error", "rule"), [
    (3, TypeError, "needs a Keras 3 model"),
    (keras.Sequential([keras.layers.Dense(1)]), ValueError, "needs a built model"),
    (Subclassed(), ValueError, "needs a built")])
def test_what_is_no_graph_is_refused(model, error, rule):
    with pytest.raises(error, match=rf"^here {rule}"):
        _models.require_graph(model, "here")


def test_a_built_subclassed_model_is_refused(rng):
    model = Subclassed()
    model(rng.normal(size=(1, 2)))
    with pytest.raises(ValueError, match=r"here needs a built functional or Sequential model.*Subclassed"):
        _models.require_graph(model, "here")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["average.outputs", "average.update_batch_norm", "average.weights", "cluster.wrap",
                                  "prune.wrap", "quantize.convert", "quantize.wrap", "shrink.channels"])
def test_weights_that_are_not_finite_are_refused(name, value):
    """A file of them was once written without a word; `cluster.wrap` did not end."""
    import tfopt

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
    model.get_layer("hidden").kernel.assign(np.full((4, 8), value))
    more = {"average.outputs": [[model, model]], "average.weights": [[model, model]], "quantize.convert": [model],
            "average.update_batch_norm": [model, np.ones((8, 4))], "quantize.wrap": [model],
            "cluster.wrap": [model, 4]}.get(name, [model, 0.5])
    module, function = name.split(".")
    with pytest.raises(ValueError, match=rf"^{name}: the model's weights must be finite.*hidden/kernel"):
        getattr(getattr(tfopt, module), function)(*more)
