"""Penalties equal float64 numpy; `add` and `dropout` change nothing but what they say."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt import _models, regularizers

KERNELS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=5, max_side=4),
                     elements=st.floats(-2, 2, width=32).map(lambda v: np.float32(round(v, 3))))


def hoyer(w):
    squares = (w**2).sum()
    return np.abs(w).sum() ** 2 / squares if squares else 0.0


def group_lasso(w):
    groups = w.reshape(-1, w.shape[-1]).T
    return sum(np.sqrt(len(group)) * np.sqrt((group**2).sum()) for group in groups)


def kurtosis(w):
    spread = w - w.mean()
    squares = (spread**2).mean()
    return ((spread**4).mean() / squares**2 if squares > 1e-12 else 0.0) - 1.8


PENALTIES = {
    "hoyer": (regularizers.Hoyer(0.3), lambda w: 0.3 * hoyer(w)),
    "lasso": (regularizers.GroupLasso(0.3), lambda w: 0.3 * group_lasso(w)),
    "kurtosis": (regularizers.Kurtosis(0.3), lambda w: 0.3 * kurtosis(w) ** 2),
    "l1": (regularizers.L1(0.3), lambda w: 0.3 * np.abs(w).sum()),
    "l2": (regularizers.L2(0.3), lambda w: 0.3 * (w**2).sum()),
    "l1l2": (regularizers.L1L2(0.3, 0.2), lambda w: 0.3 * np.abs(w).sum() + 0.2 * (w**2).sum()),
    "sum": (regularizers.Sum([regularizers.L2(0.3), regularizers.Hoyer(0.1)]),
            lambda w: 0.3 * (w**2).sum() + 0.1 * hoyer(w)),
}
OURS = ("hoyer", "lasso", "kurtosis", "sum")


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_equal_float64(name):
    penalty, reference = PENALTIES[name]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(KERNELS)
    def check(w):
        expected = reference(w.astype(np.float64))
        assert float(penalty(tf.constant(w))) == pytest.approx(expected, rel=1e-6, abs=1e-6)

    check()


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_of_a_real_kernel_equal_float64_with_their_gradients(name, rng):
    penalty, reference = PENALTIES[name]
    w = rng.normal(size=(3, 3, 8, 6)).astype(np.float32)
    with tf.GradientTape() as tape:
        variable = tf.Variable(w)
        value = penalty(variable)
    gradient, exact = tape.gradient(value, variable).numpy().ravel(), w.astype(np.float64)
    assert float(value) == pytest.approx(reference(exact), rel=1e-6)
    for i in rng.choice(w.size, 12, replace=False):
        if abs(exact.flat[i]) < 1e-4:
            continue
        nudge = np.zeros(w.size)
        nudge[i] = 1e-6
        nudge = nudge.reshape(w.shape)
        slope = (reference(exact + nudge) - reference(exact - nudge)) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-15])
def test_gradients_are_finite_where_the_formula_divides_by_zero(name, value, jit):
    @tf.function(jit_compile=jit)
    def gradient(w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            penalty = PENALTIES[name][0](w)
        return penalty, tape.gradient(penalty, w)

    penalty, found = gradient(tf.fill((4, 3), value))
    assert np.isfinite(penalty)
    assert np.isfinite(found).all()
    if value == 0:
        np.testing.assert_array_equal(found, 0)


def test_the_plain_norm_is_not_finite_there():
    """Negative control: without the guard the gradient of a group of zeros is NaN."""
    w = tf.Variable(tf.zeros((4, 3)))
    with tf.GradientTape() as tape:
        norm = tf.reduce_sum(tf.sqrt(tf.reduce_sum(w**2, 0)))
    assert np.isnan(tape.gradient(norm, w)).all()


@pytest.mark.parametrize(("axis", "groups"), [(-1, 3), (0, 2), (-2, 4), ((-2, -1), 12), ([0, 1], 8)])
def test_group_lasso_along_other_axes(axis, groups, rng):
    w = rng.normal(size=(2, 4, 3)).astype(np.float32)
    axes = [i % 3 for i in (axis if isinstance(axis, tuple | list) else [axis])]
    rows = np.transpose(w, [*axes, *(i for i in range(3) if i not in axes)]).reshape(groups, -1).astype(float)
    expected = np.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1).sum()
    assert float(regularizers.GroupLasso(1.0, axis=axis)(w)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_penalties_are_made_again_from_their_config(name, rng):
    penalty, w = PENALTIES[name][0], rng.normal(size=(4, 3)).astype(np.float32)
    again = keras.regularizers.deserialize(keras.regularizers.serialize(penalty))
    assert again.get_config() == penalty.get_config()
    assert float(again(w)) == float(penalty(w))


# DropPath


def test_drop_path_drops_examples_and_scales_the_others(rng):
    x = rng.normal(size=(4000, 3, 2)).astype(np.float32)
    y = regularizers.DropPath(0.3, seed=0)(x, training=True).numpy()
    kept = (y != 0).any(axis=(1, 2))
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
    np.testing.assert_array_equal(regularizers.DropPath(0.3)(x, training=False), x)


def test_drop_path_drops_what_is_not_finite():
    y = regularizers.DropPath(0.5, seed=0)(np.full((50, 2), np.inf, np.float32), training=True).numpy()
    assert set(y.ravel().tolist()) == {0.0, np.inf}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32", "float64"])
def test_drop_path_keeps_the_type(policy):
    y = regularizers.DropPath(0.1, seed=0, dtype=policy)(np.ones((5000, 1)), training=True)
    assert y.dtype == keras.DTypePolicy(policy).compute_dtype
    assert float(tf.reduce_mean(tf.cast(y > 0, "float32"))) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("jit", [False, True])
def test_drop_path_trains(jit):
    inputs = keras.Input((4,))
    branch = regularizers.DropPath(0.5, seed=3)(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Add()([inputs, branch])))
    model.compile("sgd", "mse", jit_compile=jit)
    assert np.isfinite(model.fit(np.ones((16, 4)), np.ones(16), verbose=0).history["loss"]).all()


def test_drop_path_is_seeded():
    draws = [regularizers.DropPath(0.5, seed=3)(np.ones((64, 1)), training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*draws)


# add


def nested(rng):
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.SeparableConv2D(4, 3, name="separable"),
                              keras.layers.BatchNormalization(name="bn"), keras.layers.ReLU(name="relu")], name="inner")
    image, words = keras.Input((8, 8, 4)), keras.Input((5,), dtype="int32")
    shared = keras.layers.Conv2D(4, 3, padding="same", name="shared", activation="relu")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(inner(shared(shared(image))))
    y = keras.layers.Embedding(10, 4, name="embedding")(words)
    y = keras.layers.Bidirectional(keras.layers.LSTM(3), name="both")(y)
    z = keras.layers.Dense(6, activation="relu", name="hidden",
                           kernel_regularizer=keras.regularizers.L2(0.1))(keras.layers.Concatenate()([x, y]))
    model = keras.Model([image, words], keras.layers.Softmax(name="softmax")(keras.layers.Dense(3, name="logits")(z)))
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(rng.uniform(0.1, 0.5, size=weight.shape))
    return model, [rng.normal(size=(2, 8, 8, 4)).astype("float32"), rng.integers(0, 10, (2, 5))]


def regularized(model):
    return {variable.path.split("/")[-2] + "/" + variable.name: variable for variable in model.trainable_variables
            if variable.regularizer is not None}


def test_add_reaches_every_kernel_and_nothing_else(rng):
    model, x = nested(rng)
    before, config = [w.copy() for w in model.get_weights()], model.get_config()
    new = regularizers.add(model, regularizers.Hoyer(0.01))
    names = [variable.path.split("/", 1)[-1] for variable in new.trainable_variables if variable.regularizer]
    assert sorted(name.split("/")[-1] for name in names) == sorted(
        ["kernel"] * 3 + ["depthwise_kernel", "pointwise_kernel"] + ["kernel", "recurrent_kernel"] * 2)
    assert not new.compiled
    np.testing.assert_array_equal(new.predict(x, verbose=0), model.predict(x, verbose=0))
    assert model.get_config() == config
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    kernels = [v.numpy().astype(float) for v in new.trainable_variables if v.regularizer]
    expected = sum(0.01 * hoyer(w) for w in kernels) + 0.1 * (new.get_layer("hidden").kernel.numpy() ** 2).sum()
    assert float(sum(new.losses)) == pytest.approx(expected, rel=1e-5)     # the shared layer pays once


def test_add_combines_with_what_is_there(rng):
    model, _ = nested(rng)
    penalty = regularizers.add(model, regularizers.L1(0.2), where="hidden").get_layer("hidden").kernel_regularizer
    w = rng.normal(size=(4, 3)).astype(np.float32)
    assert float(penalty(w)) == pytest.approx(0.2 * np.abs(w).sum() + 0.1 * (w**2).sum(), rel=1e-6)


@pytest.mark.parametrize(("where", "count"), [
    ("embedding", 1), (["inner/separable", "logits"], 3), ("both", 4), (lambda layer: layer.name == "logits", 1)])
def test_add_where(where, count, rng):
    model, _ = nested(rng)
    new = regularizers.add(model, regularizers.L2(0.5), where=where)
    assert len(regularized_sums(new)) == count


def regularized_sums(model):
    return [variable for variable in model.trainable_variables
            if variable.regularizer is not None and variable.regularizer.get_config() == {"l2": 0.5}]


def test_add_survives_saving(tmp_path, run_python, rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer="l2"),
                              regularizers.DropPath(0.5), keras.layers.Dense(2)])
    for penalty in (regularizers.GroupLasso(0.5), regularizers.Hoyer(0.1), regularizers.Kurtosis(0.1)):
        model = regularizers.add(model, penalty)
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    printed = run_python("import sys, keras, numpy as np\nfrom tfopt import regularizers\n"
                         "model = keras.models.load_model(sys.argv[1])\n"
                         "print([float(sum(model.losses)), float(np.sum(model(np.ones((1, 4)))))])",
                         tmp_path / "model.keras")
    expected = [float(sum(model.losses)), float(np.sum(model(np.ones((1, 4)))))]
    assert eval(printed.splitlines()[-1]) == pytest.approx(expected)


def test_add_keeps_functions_and_flags(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
                              keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(2)])
    model.get_layer("a").trainable = False
    new = regularizers.add(model, regularizers.L2(1.0))
    assert not new.get_layer("a").trainable
    assert len(new.losses) == 1                              # Keras counts no penalty of a frozen layer
    np.testing.assert_array_equal(new(np.ones((1, 4))), model(np.ones((1, 4))))


TRAIN = """
import keras, numpy as np
from tfopt import regularizers
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 6)), rng.normal(size=(32, 2))
strategy = tf.distribute.MirroredStrategy() if DEVICES == 2 else tf.distribute.get_strategy()
assert strategy.num_replicas_in_sync == DEVICES
with strategy.scope():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])
    for penalty in (regularizers.Hoyer(0.01), regularizers.GroupLasso(0.01), regularizers.Kurtosis(0.01)):
        model = regularizers.add(model, penalty)
    model.compile(keras.optimizers.SGD(0.1), "mse")
losses = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
print(losses + np.concatenate([w.ravel() for w in model.get_weights()]).tolist())
"""


@pytest.mark.slow
def test_two_devices_train_as_one(run_python):
    one = run_python(f"import tensorflow as tf\nDEVICES = 1\n{TRAIN}")
    two = run_python(f"DEVICES = 2\n{TRAIN}", devices=2)
    np.testing.assert_allclose(eval(one.splitlines()[-1]), eval(two.splitlines()[-1]), rtol=1e-5, atol=1e-6)


# dropout


def drops(model):
    return {path: type(layer).__name__ for path, layer in _models.layers(model).items()
            if type(layer).__name__.endswith(("Dropout", "Dropout1D", "Dropout2D"))}


def test_dropout_behind_hidden_activations_only(rng):
    model, x = nested(rng)
    before = [w.copy() for w in model.get_weights()]
    new = regularizers.dropout(model, 0.5)
    assert drops(new) == {"shared_dropout": "SpatialDropout2D", "inner/relu_dropout": "SpatialDropout2D",
                          "hidden_dropout": "Dropout"}
    np.testing.assert_array_equal(new.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not np.allclose(new(x, training=True), model(x, training=False))
    assert not drops(model)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_dropout_twice_adds_nothing_where_there_is_one(rng):
    new = regularizers.dropout(nested(rng)[0], 0.5, where=["hidden"])
    assert set(drops(regularizers.dropout(new, 0.5))) == {"hidden_dropout", "shared_dropout", "inner/relu_dropout"}


def test_dropout_never_behind_an_output_in_a_nested_model():
    layers = keras.layers
    head = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu", name="a"),
                             layers.Dense(2, activation="relu", name="b"), layers.ReLU(name="c")], name="head")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="relu", name="first"), head,
                              layers.Rescaling(2.0)])
    assert set(drops(regularizers.dropout(model, 0.5))) == {"first_dropout", "head/a_dropout"}


def test_dropout_leaves_gates_alone_but_takes_what_is_named():
    layers = keras.layers
    model = keras.Sequential([keras.Input((6, 3)), layers.Conv1D(4, 2, activation="relu", name="conv"),
                              layers.Dense(4, activation="sigmoid", name="gate"), layers.Dense(4, name="linear"),
                              layers.Flatten(), layers.Dense(2)])
    assert drops(regularizers.dropout(model, 0.5)) == {"conv_dropout": "SpatialDropout1D"}
    assert drops(regularizers.dropout(model, 0.5, where=["gate", "linear"])) == {
        "gate_dropout": "Dropout", "linear_dropout": "Dropout"}


def test_a_name_that_is_taken_is_not_taken_again():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, activation="relu", name="a"),
                              keras.layers.Dense(4, name="a_dropout"), keras.layers.Dense(2)])
    assert "a_dropout_" in drops(regularizers.dropout(model, 0.5))


@pytest.mark.slow
def test_the_model_with_dropout_trains_and_loads(tmp_path, rng):
    model, x = nested(rng)
    new = regularizers.dropout(regularizers.add(model, regularizers.L2(1e-3)), 0.2)
    assert len(new.losses) == 9
    new.compile("adam", "sparse_categorical_crossentropy")
    new.fit(x, np.array([0, 1]), verbose=0)
    new.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), new.predict(x, verbose=0))


# refusals


def small():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu", name="a"),
                             keras.layers.BatchNormalization(name="bn"), keras.layers.Dropout(0.1, name="drop"),
                             keras.layers.Dense(2, name="out")])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.build((None, 2))

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)


def pictures():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])


def broken():
    model = small()
    model.get_layer("a").kernel.assign(np.full((4, 3), np.nan))
    return model


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: regularizers.Hoyer(-1), ValueError, "`strength` must be a number >= 0"),
    (lambda: regularizers.GroupLasso(float("nan")), ValueError, "`strength` must be"),
    (lambda: regularizers.GroupLasso(1, axis=0.5), ValueError, "`axis` must be a whole number"),
    (lambda: regularizers.GroupLasso(1, axis=2)(np.ones((2, 2))), ValueError, "must name axes of the weights"),
    (lambda: regularizers.GroupLasso(1, axis=(0, -2))(np.ones((2, 2))), ValueError, "must name axes of the weights"),
    (lambda: regularizers.Kurtosis(-1), ValueError, "`strength` must be"),
    (lambda: regularizers.Kurtosis(1, target=0.5), ValueError, "`target` must be"),
    (lambda: regularizers.Sum([]), ValueError, "`penalties` must be a list, each element a keras.regul"),
    (lambda: regularizers.Sum([2]), TypeError, "each element a keras.regularizers.Regularizer"),
    (lambda: regularizers.DropPath(1.0), ValueError, "`rate` must be"),
    (lambda: regularizers.add(small(), 2), TypeError, "`penalty` must be a keras.regularizers.Regularizer"),
    (lambda: regularizers.add(3, regularizers.L2(1)), TypeError, "regularizers.add: `model` must be a Keras 3 model"),
    (lambda: regularizers.add(small(), "l3"), ValueError, "name of a regularizer.*l3.*hoyer"),
    (lambda: regularizers.add(keras.Sequential([keras.layers.Dense(1)]), regularizers.L2(1)), ValueError, "built"),
    (lambda: regularizers.add(small(), regularizers.L2(1), where="b"), ValueError, "must name layers of the model"),
    (lambda: regularizers.add(small(), regularizers.L2(1), where="bn"), ValueError, "must name a layer with a kernel"),
    (lambda: regularizers.add(broken(), regularizers.L2(1)), ValueError, "finite numbers.*nan"),
    (lambda: regularizers.add(small(), regularizers.GroupLasso(1, axis=3)), ValueError, "must name axes"),
    (lambda: regularizers.dropout(small(), 0), ValueError, "`rate` must be"),
    (lambda: regularizers.dropout(small(), 1), ValueError, "`rate` must be"),
    (lambda: regularizers.dropout(None, 0.1), TypeError, "regularizers.dropout: `model` must be a Keras 3 model"),
    (lambda: regularizers.dropout(Subclassed(), 0.1), ValueError, "functional or Sequential"),
    (lambda: regularizers.dropout(small(), 0.1, where="b"), ValueError, "must name layers of the model"),
    (lambda: regularizers.dropout(small(), 0.1, where="out"), ValueError, "must name a hidden layer"),
    (lambda: regularizers.dropout(small(), 0.1, where="bn"), ValueError, "must name a hidden layer without a dropout"),
    (lambda: regularizers.dropout(small(), 0.1, where=lambda layer: False), ValueError, "at least one hidden layer"),
    (lambda: regularizers.add(pictures(), "orthogonal_regularizer"), ValueError, "cannot be computed of every kernel"),
])
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_names_of_penalties():
    assert isinstance(regularizers.get("hoyer"), regularizers.Hoyer)
    assert isinstance(regularizers.get("group_lasso"), regularizers.GroupLasso)
    assert regularizers.get("L2").l2 == keras.regularizers.get("l2").l2
    penalty = regularizers.Kurtosis(0.5)
    assert regularizers.get(penalty) is penalty
    assert regularizers.get(None) is None
    assert regularizers.get(keras.regularizers.serialize(penalty)).strength == 0.5
    assert len(regularizers.add(small(), "hoyer").losses) == 2


class Block(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.up, self.down = keras.layers.Dense(4 * units, "relu"), keras.layers.Dense(units)

    def call(self, x):
        return x + self.down(self.up(x))


def test_add_reaches_kernels_inside_layers(rng):
    """Of a layer of one's own, of attention, of a subclassed model: the penalty is that of the kernels in numpy."""
    x = keras.Input((6, 8))
    y = Block(8)(x)
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.MultiHeadAttention(2, 4)(y, y)))
    new = regularizers.add(model, regularizers.L2(0.5))
    kernels = [np.float64(v) for v in model.trainable_variables if v.path.endswith("kernel")]
    assert len(kernels) == 7
    assert float(sum(new.losses)) == pytest.approx(0.5 * sum((kernel**2).sum() for kernel in kernels), rel=1e-5)
    assert not model.losses
    free = Subclassed()
    assert float(sum(regularizers.add(free, regularizers.L2(0.5)).losses)) == pytest.approx(
        0.5 * (np.float64(free.dense.kernel)**2).sum(), rel=1e-5)
    assert not free.losses


class Own(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + 100.0


def test_a_subclass_keeps_its_loss():
    x = keras.Input((4,))
    model = Own(x, keras.layers.Dense(2)(keras.layers.Dense(8, "relu")(x)))
    for made in (regularizers.add(model, "l2"), regularizers.dropout(model, 0.1)):
        made.compile("sgd", "mse")
        assert made.evaluate(np.ones((4, 4)), np.ones((4, 2)), verbose=0) > 100


def test_where_takes_a_layer():
    model = small()
    assert len(regularizers.add(model, "l2", where=model.get_layer("out")).losses) == 1
    with pytest.raises(ValueError, match="must name layers of the model"):
        regularizers.add(model, "l2", where=small().get_layer("out"))


def test_classes_are_registered_under_their_module():
    assert keras.saving.get_registered_name(regularizers.Hoyer) == "tfopt.regularizers>Hoyer"
    assert keras.saving.get_registered_name(regularizers.DropPath) == "tfopt.regularizers>DropPath"


class OfOneName(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(4, name="block") for _ in range(3)]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("where", [None, "block"])
def test_add_reaches_all_layers_of_one_name(where, rng):
    model = OfOneName()
    model(rng.normal(size=(2, 4)))
    losses = regularizers.add(model, regularizers.L2(0.3), where=where).losses
    expected = [0.3 * (block.kernel.numpy() ** 2).sum() for block in model.blocks]
    np.testing.assert_allclose(sorted(losses), sorted(expected), rtol=1e-5)
