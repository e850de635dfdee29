"""A copy computes what the user's model computes, whatever it is made of; the comparison sees what is broken in one."""

import functools
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import _keras, _models, cluster, prune

L = keras.layers
WORDS = ["a b c", "cat a", "cat", "dog dog dog"]


class Bare(L.Layer):
    """No `**kwargs` and no `get_config`."""

    def __init__(self, units):
        super().__init__()
        self.dense = L.Dense(units)

    def call(self, x):
        return self.dense(x)


class OtherName(L.Layer):
    def __init__(self, units, **kw):
        super().__init__(**kw)
        self.dense = L.Dense(units)

    def call(self, x):
        return self.dense(x)


class OnlyConfig(Bare):
    def __init__(self, units):
        super().__init__(units)
        self.units = units

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Holds(L.Layer):
    """Made of a layer and a function, which no config can say."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def call(self, x):
        return self.function(self.inner(x))


class Frozen(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fixed, self.free = L.Dense(8, trainable=False), L.Dense(8)

    def call(self, x):
        return self.free(self.fixed(x))


class Tied(L.Layer):
    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return x @ keras.ops.transpose(self.embedding.embeddings)


def cube(x):
    return x**3


def net(*middle):
    return keras.Sequential([keras.Input((8,)), L.Dense(8, "relu"), *middle, L.Dense(3)])


def adapted(layer, data, *behind, dtype="float32", shape=(8,)):
    layer.adapt(data)
    x = keras.Input(shape, dtype=dtype)
    y = layer(x)
    for one in behind:
        y = one(y)
    return keras.Model(x, L.Dense(2)(y))


def text(mode, length=None):
    behind = [L.Embedding(20, 4, mask_zero=True), L.GlobalAveragePooling1D()] if mode == "int" else []
    return adapted(L.TextVectorization(output_mode=mode, output_sequence_length=length), WORDS, *behind, dtype="string",
                   shape=(1,))


def words(mode):
    behind = [L.Embedding(20, 4), L.Flatten()] if mode == "int" else []
    return adapted(L.StringLookup(output_mode=mode), ["cat", "cat", "dog"], *behind, dtype="string", shape=(3,))


def padded():
    x = keras.Input((10,), dtype="int32")
    e = L.Embedding(30, 16, mask_zero=True)(x)
    h = L.LayerNormalization()(L.Add()([e, L.MultiHeadAttention(2, 8)(e, e)]))
    return keras.Model(x, [L.GRU(4)(h), L.Bidirectional(L.LSTM(3))(h), L.GlobalAveragePooling1D()(h)])


def of_any_length():
    x = keras.Input((None,), dtype="int32")
    h = L.Embedding(50, 8)(x)
    for _ in range(2):
        h = L.Conv1D(8, 7, strides=3, activation="relu")(h)
    return keras.Model(x, L.Dense(2)(L.GlobalMaxPooling1D()(h)))


def of_any_size():
    x = keras.Input((None, None, 3))
    return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x))))


def columns():
    a, c = keras.Input((4,), name="numbers"), keras.Input((1,), dtype="string", name="word")
    look = L.StringLookup(vocabulary=["a", "b", "c"], output_mode="multi_hot", num_oov_indices=0)
    return keras.Model({"numbers": a, "word": c}, L.Dense(2)(L.Concatenate()([a, look(c)])))


def tied():
    embedding, x = L.Embedding(20, 8), keras.Input((5,), dtype="int32")
    return keras.Model(x, Tied(embedding)(embedding(x)))


def half():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return net(Bare(8), OtherName(8), L.BatchNormalization())
    finally:
        keras.config.set_dtype_policy("float32")


FACTOR = 3.0
NUMBERS = np.random.default_rng(0).normal(5, 3, size=(64, 8)).astype("float32")
MODELS = {
    "bare": lambda: net(Bare(8)), "other name of kwargs": lambda: net(OtherName(8)),
    "only a config": lambda: net(OnlyConfig(8)), "holds": lambda: net(Holds(Bare(8), lambda x: x * 2)),
    "function": lambda: net(Holds(L.Dense(8), tf.nn.tanh)),
    "wrapped": lambda: keras.Sequential([keras.Input((5, 8)), L.TimeDistributed(Bare(4)), L.Dense(3)]),
    "lambda": lambda: net(L.Lambda(lambda x: x * FACTOR)),
    "partial": lambda: net(L.Lambda(functools.partial(tf.multiply, 2.0))),
    "gelu": lambda: net(L.Dense(4, activation=keras.ops.gelu)), "own activation": lambda: net(L.Dense(4, cube)),
    "Normalization": lambda: adapted(L.Normalization(), NUMBERS),
    "Normalization of all": lambda: adapted(L.Normalization(axis=None), NUMBERS),
    "Discretization": lambda: adapted(L.Discretization(num_bins=4), NUMBERS, L.Embedding(4, 2), L.Flatten()),
    "IntegerLookup": lambda: adapted(L.IntegerLookup(), np.arange(5), L.Embedding(7, 4), L.Flatten(), dtype="int64",
                                     shape=(1,)),
    **{f"text {mode}": functools.partial(text, mode, 5 if mode == "int" else None)
       for mode in ("int", "multi_hot", "tf_idf")},
    **{f"words {mode}": functools.partial(words, mode) for mode in ("int", "count", "tf_idf")},
    "padded": padded, "any length": of_any_length, "any size": of_any_size, "columns": columns, "tied": tied,
    "frozen": lambda: net(Frozen()), "half": half,
}


def state(model):
    parts = [part for part in model._flatten_layers() if not isinstance(part, L.InputLayer)]
    return ([(part.name, part.trainable, part.dtype_policy.name) for part in parts],
            [(variable.path.split("/")[-1], variable.trainable, variable.dtype) for variable in model.variables])


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_the_model_again(name):
    model = MODELS[name]()
    copy = _models.copy(model)
    assert _models.compare(model, copy) == 0
    assert state(copy) == state(model)
    assert {id(v) for v in copy.variables}.isdisjoint({id(v) for v in model.variables})


@pytest.mark.parametrize("name", ["Normalization", "Discretization", "IntegerLookup", "text int", "text tf_idf",
                                  "words count", "words tf_idf"])
def test_what_was_adapted_is_copied_after_loading_too(name, tmp_path):
    model = MODELS[name]()
    model.save(tmp_path / "model.keras")
    assert _models.compare(model, _models.copy(keras.saving.load_model(tmp_path / "model.keras"))) == 0


def test_a_copy_in_float32():
    model = half()
    copy = _models.copy(model, dtype="float32")
    assert {part.compute_dtype for part in copy._flatten_layers()} == {"float32"}
    assert _models.compare(model, copy, tolerance=0.01) > 0
    assert keras.config.dtype_policy().name == "float32"


class Own(keras.Model):
    """A graph model with a constructor, a step and state of its own."""

    def __init__(self, inputs, outputs, alpha=1.0, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self.alpha, self.seen = alpha, keras.metrics.Mean(name="seen")

    def train_step(self, data):
        self.seen.update_state(self.alpha)
        return {"seven": self.seen.result()}


class Builds(keras.Model):
    """A graph model that makes its graph itself."""

    def __init__(self, units, **kwargs):
        x = keras.Input((8,))
        super().__init__(x, L.Dense(3)(L.Dense(units)(x)), **kwargs)
        self.units = units

    def train_step(self, data):
        return {"seven": tf.constant(7.0)}


class Steps(keras.Sequential):
    def train_step(self, data):
        return {"seven": tf.constant(7.0)}


class Free(keras.Model):
    """No graph at all."""

    def __init__(self, units=4):
        super().__init__()
        self.units, self.one, self.norm, self.two = units, L.Dense(units, "relu"), L.BatchNormalization(), L.Dense(3)

    def call(self, x, training=False):
        return self.two(self.norm(self.one(x), training=training))


def own():
    x = keras.Input((8,))
    return Own(x, L.Dense(3)(x), alpha=7.0, name="own")


def free():
    model = Free(5)
    model(NUMBERS)
    model.norm.moving_mean.assign(np.ones(5))
    return model


@pytest.mark.parametrize("make", [own, lambda: Builds(6), lambda: Steps([keras.Input((8,)), L.Dense(3)]), free])
def test_a_subclass_stays_what_it_is(make):
    model = make()
    model.layers[-1].trainable = False
    model.class_names = ["x", "y", "z"]
    copy = _models.copy(model)
    assert type(copy) is type(model)
    assert _models.compare(model, copy) == 0
    assert [layer.trainable for layer in copy.layers] == [layer.trainable for layer in model.layers]
    if not isinstance(model, Free):
        copy.compile("sgd", "mse")
        assert copy.fit(NUMBERS, NUMBERS[:, :3], verbose=0).history["seven"] == [7.0]
        assert isinstance(model, Builds) or copy.class_names == ["x", "y", "z"]


class Hopeless(L.Layer):
    """Computes by a function that holds on to a layer: a copy would train the layer of the original."""

    def __init__(self, inner):
        super().__init__()
        self.kept, self.function = inner, lambda x: inner(x)

    def call(self, x):
        return self.function(x)


class Stacked(keras.Model):
    """Keeps few of its arguments, none under its name, and makes layers in `build`; its order is not that of `call`."""

    def __init__(self, widths, blocks, rate=0.5):
        super().__init__()
        self.how_often = blocks + 1
        self.parts = {"last": L.Dense(3), "rest": [L.Dense(width, "relu") for width in widths]}
        self.drop, self.seen = L.Dropout(rate), keras.metrics.Mean(name="seen")

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.head = keras.Sequential([L.LayerNormalization(), Bare(8)])
        super().build(shape)

    def call(self, x):
        x = self.head(x * self.scale)
        for _ in range(self.how_often):
            for layer in self.parts["rest"]:
                x = layer(x)
        return self.parts["last"](self.drop(x))


def stacked():
    model = Stacked([8, 8], 2, rate=0.25)
    model(np.ones((2, 8), "float32"))
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(variable + 0.1)
    return model


def test_a_class_that_forgets_its_arguments_is_copied_as_it_stands():
    model = stacked()
    new = _models.copy(model)
    assert _models.compare(model, new) == 0
    assert (type(new), new.how_often, new.drop.rate, new.seen.name) == (Stacked, 3, 0.25, "seen")
    assert [variable.name for variable in new.variables] == [variable.name for variable in model.variables]
    assert not {id(a) for a in _keras.parts_of(model)} & {id(b) for b in _keras.parts_of(new)}
    before = [np.array(variable) for variable in model.variables]
    new.compile("adam", "mse")
    new.fit(np.ones((4, 8)), np.zeros((4, 3)), verbose=0)
    assert all(map(np.array_equal, before, model.variables))
    assert sum(not np.array_equal(a, b) for a, b in zip(before, new.variables, strict=True)) >= 10


@pytest.mark.slow
def test_a_class_that_forgets_its_arguments_is_pruned_and_clustered():
    model, x = stacked(), np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    for module, option in ((prune, 0.5), (cluster, 4)):
        wrapped = module.wrap(model, option)
        wrapped.compile("adam", "mse")
        wrapped.fit(x, x[:, :3], verbose=0)
        plain = module.strip(wrapped)
        np.testing.assert_allclose(plain(x), wrapped(x, training=False), rtol=1e-5, atol=1e-5)
        kernel = np.array(plain.parts["rest"][0].kernel)
        assert (kernel == 0).mean() >= 0.5 if module is prune else len(np.unique(kernel)) <= 4
        assert plain.parts["rest"][0].kernel.constraint is None


@pytest.mark.parametrize(("make", "rule"), [
    (lambda: _models.copy(net(Hopeless(L.Dense(8)))), "hopeless.* cannot be made again.*Give its class a `get_config`"),
    (lambda: _models.copy(Builds(6), change=lambda layer: None), r"cannot be changed.*\['train_step'\].*keras.Model\("),
    (lambda: _models.copy(Steps([keras.Input((8,)), L.Dense(3)]), call=lambda layer, *args: layer(*args)),
     "would become a Functional model.*train_step")])
def test_what_cannot_be_copied_is_refused(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_the_way_out_that_a_refusal_names_works():
    model = Builds(6)
    plain = keras.Model(model.inputs, model.outputs)
    assert _models.compare(plain, _models.copy(plain, change=lambda layer: None)) == 0


def spoil_weight(copy):
    kernel = copy.layers[-1].kernel
    kernel.assign(np.where(np.arange(kernel.shape[1]) == 0, 1.1, 1) * kernel)


def spoil_statistic(copy):
    layer = copy.layers[1]
    layer.adapt_mean.assign(layer.adapt_mean.numpy() * np.array([1.1] + [1] * 7))
    layer.finalize_state()


def spoil_word(copy):
    copy.layers[1].set_vocabulary(["cat", "cow"])



@pytest.mark.parametrize(("name", "spoil"), [
    ("bare", spoil_weight), ("Normalization", spoil_statistic), ("words count", spoil_word), ("words int", spoil_word)])
def test_the_comparison_sees_what_is_broken(name, spoil):
    """Negative control: one weight, one statistic, one entry of a vocabulary."""
    model = MODELS[name]()
    copy = _models.copy(model)
    spoil(copy)
    with pytest.raises(RuntimeError, match="computes something else than the model that was passed in"):
        _models.compare(model, copy)


def test_the_comparison_sees_a_lost_mask():
    model = padded()
    copy = _models.copy(model, change=lambda layer: (
        L.Embedding(30, 16, name=layer.name) if isinstance(layer, L.Embedding) else None))
    with pytest.raises(RuntimeError, match="computes something else"):
        _models.compare(model, copy)


def test_a_comparison_moves_no_state():
    sampler = keras.Sequential([keras.Input((4,)), L.Dense(2), Noise()])
    keras.utils.set_random_seed(3)
    before, drawn = [v.numpy() for v in sampler.variables], np.random.rand()
    keras.utils.set_random_seed(3)
    assert _models.compare(sampler, _models.copy(sampler)) == 0
    assert np.random.rand() == drawn
    assert all(map(np.array_equal, before, [v.numpy() for v in sampler.variables]))


def test_a_stateful_network_starts_from_its_state():
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 4)), L.LSTM(4, stateful=True), L.Dense(2)])
    model(np.ones((2, 5, 4)))
    before = [v.numpy() for v in model.variables]
    assert _models.compare(model, _models.copy(model)) == 0
    assert all(map(np.array_equal, before, [v.numpy() for v in model.variables]))


class Noise(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)


def test_generated_inputs_reach_what_the_model_knows():
    found = _models.example_inputs(words("int")).numpy()
    assert {b"cat", b"dog"} < set(found.ravel().tolist())                  # and a word that it does not know
    tokens = _models.example_inputs(padded()).numpy()
    assert tokens.max() < 30
    assert (tokens[1, 5:] == 0).all()
    assert (tokens[0] > 0).any()
    scaled = _models.example_inputs(MODELS["Normalization"]()).numpy()
    assert abs(scaled.mean() - 5) < 2
    assert set(_models.example_inputs(columns())) == {"numbers", "word"}


def test_one_place_makes_layers_again():
    """No other file calls `from_config` of a layer's class, or `clone_model`."""
    root = pathlib.Path(inspect.getfile(tfopt)).parent
    makes = r"(type\((layer|op|part)\)\.from_config|\bkind\.from_config|clone_model\()"
    call = re.compile(rf"^(?!.*(>>>|tf_keras)).*{makes}", re.MULTILINE)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if call.search(path.read_text())}
    assert found == {"_models/copies.py", "quantize/_train.py"}      # which only tries it, before a file is written
