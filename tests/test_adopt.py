"""What every TFMOT-wrapped model owes its user: it is a Keras 3 model in each respect."""

import keras
import numpy as np
import pytest

from tfopt import cluster, distill, prune
from tfopt._bridge.adopt import Adopted


@keras.saving.register_keras_serializable("test")
class Plain(Adopted):
    """The twin as it is, to separate the bridge from what TFMOT does."""

    def rewrite(self, twin, base):
        return twin


def net(batch_norm=True):
    layers = keras.layers
    image, extra = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="extra")
    x = layers.Conv2D(8, 3, use_bias=not batch_norm, kernel_regularizer="l2", name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L1(1e-3), name="hidden")(
        layers.Concatenate()([x, extra]))
    return keras.Model({"image": image, "extra": extra}, layers.Dense(3, name="logits")(x), name="net")


def data(rng, n=48):
    x = {"image": rng.normal(size=(n, 8, 8, 1)).astype("float32"), "extra": rng.normal(size=(n, 3)).astype("float32")}
    return x, rng.integers(0, 3, n)


def compile_(model, optimizer=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], **options)
    return model


def fit(model, x, y, epochs=2, **options):
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options).history["loss"]


WRAPS = {"prune": lambda model: prune.wrap(model, 0.5, end=6), "cluster": lambda model: cluster.wrap(model, 4),
         "cluster, zeros kept": lambda model: cluster.wrap(model, 4, preserve_sparsity=True)}
wrapped_kinds = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@pytest.mark.parametrize("optimizer", [lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
                                       lambda: keras.optimizers.Adam(1e-2),
                                       lambda: keras.optimizers.AdamW(1e-2, weight_decay=1e-2)])
def test_a_plain_twin_trains_as_the_original(rng, optimizer):
    """Regularizers and batch normalisation on."""
    model, (x, y) = net(), data(rng)
    twin = compile_(Plain(model, {}), optimizer())
    original = compile_(model, optimizer())
    np.testing.assert_allclose(fit(twin, x, y, 3), fit(original, x, y, 3), atol=1e-5)
    np.testing.assert_allclose(twin.predict(x, verbose=0), original.predict(x, verbose=0), atol=1e-4)


@wrapped_kinds
def test_the_model_passed_in_is_unchanged(rng, wrap):
    model, (x, y) = compile_(net()), data(rng)
    before, flags = [w.copy() for w in model.get_weights()], [layer.trainable for layer in model.layers]
    optimizer = model.optimizer
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert [layer.trainable for layer in model.layers] == flags
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 0


@wrapped_kinds
def test_a_new_process_loads_it_and_trains_on(rng, wrap, tmp_path, run_python):
    model, (x, y) = net(), data(rng)
    model.get_layer("hidden").kernel.assign(np.where(rng.random((11, 8)) < 0.5, 0, model.get_layer("hidden").kernel))
    wrapped = compile_(wrap(model))
    fit(wrapped, x, y, 1)
    wrapped.save(tmp_path / "wrapped.keras")
    before = wrapped.predict(x, verbose=0)
    losses = fit(wrapped, x, y, 2)
    np.savez(tmp_path / "data.npz", y=y, before=before, losses=losses, after=wrapped.predict(x, verbose=0), **x)
    run_python("""
import sys, keras, numpy as np
from tfopt import cluster, distill, prune
data = np.load(sys.argv[1] + "/data.npz")
x = {"image": data["image"], "extra": data["extra"]}
model = keras.models.load_model(sys.argv[1] + "/wrapped.keras")
np.testing.assert_array_equal(model.predict(x, verbose=0), data["before"])
losses = model.fit(x, data["y"], batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
np.testing.assert_allclose(losses, data["losses"], rtol=1e-6)
np.testing.assert_allclose(model.predict(x, verbose=0), data["after"], atol=1e-6)
""", tmp_path)


@wrapped_kinds
def test_checkpoints_and_backups_work(rng, wrap, tmp_path):
    wrapped, (x, y) = compile_(wrap(net())), data(rng)
    fit(wrapped, x, y, 2, validation_data=(x, y), callbacks=[
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)])
    reloaded = keras.models.load_model(tmp_path / "1.keras")
    assert np.isfinite(reloaded.predict(x, verbose=0)).all()


@pytest.mark.parametrize("kind", ["prune.wrap(model, 0.5, end=6)", "cluster.wrap(model, 4)"])
def test_two_devices_equal_one(run_python, kind):
    run_python(f"""
import keras, numpy as np
from tfopt import cluster, distill, prune

def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu", kernel_regularizer="l2"),
                             keras.layers.Dense(3)])

def train(scope):
    with scope:
        model = net()
        wrapped = {kind}
        wrapped.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(64, 6)), rng.integers(0, 3, 64))).batch(16)
    losses = wrapped.fit(data, epochs=3, verbose=0).history["loss"]
    strip = (prune if "prune" in {kind!r} else cluster).strip
    return losses, strip(wrapped).get_weights()

import contextlib
losses, weights = train(contextlib.nullcontext())
losses2, weights2 = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(losses2, losses, rtol=1e-5)
for one, two in zip(weights, weights2):
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_array_equal(two == 0, one == 0)
""", devices=2)


def test_bfloat16_trains(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = data(rng)
    wrapped = compile_(prune.wrap(model, 0.5))
    fit(wrapped, x, y)
    assert set(prune.sparsities(wrapped).values()) == {0.5}
    assert prune.strip(wrapped).get_layer("hidden").compute_dtype == "bfloat16"


def sequential(dtype=None):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, dtype=dtype)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed()
    model(np.ones((1, 4)))
    return model


def tf_keras_model():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.InputLayer((4,)), tf_keras.layers.Dense(2)])


@pytest.mark.parametrize("call", [lambda m: prune.wrap(m, 0.5), lambda m: cluster.wrap(m, 4), prune.plan, cluster.plan])
@pytest.mark.parametrize(("make", "rule"), [
    (subclassed, "needs a built functional or Sequential model.*Rebuild it"),
    (lambda: keras.Sequential([keras.layers.Dense(2)]), "needs a built model"),
    (lambda: sequential("mixed_float16"), "float32 or mixed_bfloat16"),
    (lambda: prune.wrap(sequential(), 0.5), "needs a plain model.*strip"),
    (tf_keras_model, "needs a Keras 3 model.*copy the weights")])
def test_what_cannot_be_wrapped_is_refused(call, make, rule):
    with pytest.raises((ValueError, TypeError), match=rule):
        call(make())


@pytest.mark.parametrize("strip", [prune.strip, cluster.strip])
def test_strip_of_a_plain_model_is_refused(strip):
    with pytest.raises(ValueError, match=r"strip needs a model that came from \w+\.wrap"):
        strip(sequential())


@pytest.mark.parametrize("wrap", [WRAPS["prune"], WRAPS["cluster"]], ids=["prune", "cluster"])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_it_learns_from_a_teacher(rng, wrap, activation):
    """The distiller finds the logits behind a wrapped student's softmax, and what the wrap promised still holds."""
    def student():
        hidden = keras.layers.Dense(8, "relu", kernel_regularizer="l2", name="hidden")
        return keras.Sequential([keras.Input((6,)), hidden,
                                 keras.layers.Dense(3, activation=activation, name="answers")])

    x, y = rng.normal(size=(64, 6)), rng.integers(0, 3, 64)
    wrapped = wrap(student())
    distiller = distill.Distiller(student(), wrapped, distill.Logits(4.0))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None))
    history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    plain = (prune if isinstance(wrapped, prune.Pruned) else cluster).strip(wrapped)
    kernel = plain.get_layer("hidden").kernel.numpy()
    assert (kernel == 0).mean() == 0.5 if isinstance(wrapped, prune.Pruned) else np.unique(kernel).size <= 4
