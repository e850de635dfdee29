"""The distiller in its surroundings: several devices, files, losses of Keras, and everything it refuses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import distill

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units, *, classes=3, activation=None, seed=0, inputs=4, built=True):
    start = keras.initializers.GlorotUniform(seed)
    layers = [keras.layers.Dense(units, "relu", kernel_initializer=start, name="hidden"),
              keras.layers.Dense(classes, activation, kernel_initializer=start, name="head")]
    return keras.Sequential([keras.Input((inputs,)), *layers] if built else layers)


def batch(rng, count=24):
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, 3, count)


def trained(loss, x, y=None, *, student=None, **arguments):
    """The logs of one step at rate 0, and the distiller."""
    made = distill.Distiller(dense(16), student or dense(5, seed=1), loss, **arguments)
    made.compile(keras.optimizers.SGD(0.), None if y is None else SPARSE)
    return {name: values[0] for name, values in made.fit(x, y, batch_size=len(x), verbose=0).history.items()}, made


# ---------------------------------------------------------------- several devices

STEPS = """
import json, numpy as np, keras
from tfopt import distill
rng = np.random.default_rng(0)
x, y = rng.normal(size=(96, 4)).astype("float32"), rng.integers(0, 3, 96)
weight = rng.uniform(0, 2, 96).astype("float32")

class Unscaled(distill.Logits):
    def value(self, *args):
        return super().value(*args) * tf.distribute.get_strategy().num_replicas_in_sync

LOSSES = {"Logits": distill.Logits(3.0), "Unscaled": Unscaled(3.0),
          "keras features": keras.distillation.FeatureDistillation("mse"),
          "keras logits": keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())}

def dense(units, seed):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(units, "relu", kernel_initializer=start),
        keras.layers.Dense(3, kernel_initializer=start, kernel_regularizer="l2")])

def train(strategy, loss):
    with strategy.scope():
        made = distill.Distiller(dense(16, 0), dense(5, 1), loss)
        made.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(32)
    logs = made.fit(data, epochs=2, verbose=0).history
    return list(logs.values()), np.concatenate([np.ravel(w) for w in made.get_weights()])

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name, loss in LOSSES.items():
    expected, found = train(one, loss), train(two, loss)
    print(json.dumps([name, *(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(expected, found))]))
"""


@pytest.mark.slow
def test_two_devices_equal_one(run_python):
    rows = [json.loads(line) for line in run_python(STEPS, devices=2).splitlines() if line.startswith("[")]
    apart = {name: (logs, weights) for name, logs, weights in rows}
    assert apart.pop("Unscaled")[1] > 1e-2          # negative control: a term that is not divided by the replicas
    assert len(apart) == 3
    for name, differences in apart.items():
        assert max(differences) < 1e-5, (name, differences)


# ---------------------------------------------------------------- files

RELOAD = """
import sys, numpy as np, keras
from tfopt import distill
made = keras.saving.load_model(sys.argv[1])
data = np.load(sys.argv[2])
np.testing.assert_array_equal(made.predict(data["x"], verbose=0), data["student"])
np.testing.assert_array_equal(made.teacher.predict(data["x"], verbose=0), data["teacher"])
keras.utils.set_random_seed(0)
made.fit(data["x"], data["y"], epochs=2, shuffle=False, verbose=0)
np.testing.assert_allclose(made.predict(data["x"], verbose=0), data["later"], atol=1e-6)
"""


@pytest.mark.slow
def test_saved_and_loaded_in_a_new_process(tmp_path, rng, run_python):
    x, y = batch(rng)
    made = distill.Distiller(dense(16, activation="softmax"), dense(5, seed=1),
                             [distill.Logits(3.), keras.distillation.FeatureDistillation("mse")],
                             loss_weights=[1., 0.5])
    made.compile(keras.optimizers.Adam(0.01), SPARSE, metrics=["accuracy"])
    made.fit(x, y, shuffle=False, verbose=0)
    student, teacher = made.predict(x, verbose=0), made.teacher.predict(x, verbose=0)
    made.save(tmp_path / "made.keras")
    made.fit(x, y, epochs=2, shuffle=False, verbose=0)
    np.savez(tmp_path / "data.npz", x=x, y=y, student=student, teacher=teacher, later=made.predict(x, verbose=0))
    run_python(RELOAD, tmp_path / "made.keras", tmp_path / "data.npz")


def test_the_student_is_saved_alone(tmp_path, rng):
    x, y = batch(rng)
    _, made = trained(distill.Logits(), x, y)
    made.student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(x), made.student(x))


@pytest.mark.parametrize("loss", [distill.Logits(2., activation="sigmoid", from_logits=False, output="a")])
def test_losses_survive_their_config(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


# ---------------------------------------------------------------- losses of Keras

def test_the_wrong_default_of_keras_is_done_right_and_said(rng):
    x, _ = batch(rng)
    expected = trained(distill.Logits(3.), x)[0]["loss"]
    with pytest.warns(UserWarning, match="as if they were probabilities"):
        assert trained(keras.distillation.LogitsDistillation(3.), x)[0]["loss"] == pytest.approx(expected, rel=1e-6)
    right = keras.distillation.LogitsDistillation(3., loss=keras.losses.KLDivergence())
    assert trained(right, x)[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_other_losses_of_keras_see_logits_and_weights(rng):
    x, y = batch(rng)
    made = distill.Distiller(dense(16, activation="softmax"), dense(5, seed=1),
                             keras.distillation.LogitsDistillation(2., loss="mse"), student_loss_weight=0.)
    made.compile(keras.optimizers.SGD(0.), SPARSE)
    weight = rng.uniform(0, 2, 24)
    logs = made.fit(x, y, batch_size=24, sample_weight=weight, verbose=0).history
    logits = dense(16)
    logits.set_weights(made.teacher.get_weights())
    expected = (((logits(x) - made.student(x)) / 2).numpy() ** 2).mean(-1) * weight
    assert logs["loss"][0] == pytest.approx(expected.mean(), rel=1e-5)


def test_features_of_keras(rng):
    x, _ = batch(rng)
    loss = keras.distillation.FeatureDistillation("mse", teacher_layer_name="hidden", student_layer_name="hidden")
    value, made = trained(loss, x, student=dense(16, seed=1))
    hidden = [keras.Model(m.inputs[0], m.get_layer("hidden").output)(x).numpy() for m in (made.teacher, made.student)]
    assert value["loss"] == pytest.approx(((hidden[0] - hidden[1]) ** 2).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="features of one shape"):
        trained(loss, x, student=dense(5))


class Distance(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.mean(keras.ops.abs(teacher_outputs - student_outputs))


class Shapeless(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.abs(teacher_outputs - student_outputs)


def test_losses_of_the_user(rng):
    x, y = batch(rng)
    logs, made = trained(Distance(), x)
    assert logs["loss"] == pytest.approx(np.abs(made.teacher(x) - made.student(x)).mean(), rel=1e-5)
    with pytest.raises(ValueError, match=r"`sample_weight` needs .*Received: loss='Distance'.*Add `sample_weight`"):
        made.fit(x, y, sample_weight=np.ones(24), verbose=0)
    with pytest.raises(ValueError, match="Keras drops a `sample_weight` that comes without labels"):
        made.fit(x, sample_weight=np.ones(24), verbose=0)
    with pytest.raises(ValueError, match=r"must be a scalar.*shape=\(24, 3\)"):
        trained(Shapeless(), x)


def test_our_losses_serve_keras_distiller(rng):
    x, y = batch(rng)
    made = keras.distillation.Distiller(dense(16), dense(5, seed=1), distill.Logits(3.), student_loss_weight=0.)
    made.compile(keras.optimizers.SGD(0.), SPARSE)
    made.fit(x, y, batch_size=24, verbose=0)
    expected = trained(distill.Logits(3.), x)[0]["loss"]
    assert float(made.distillation_loss_tracker.result()) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- what is refused

def relu_ended(classes=3):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(classes, "relu", name="rectified")])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)


def built(model):
    model(np.zeros((1, 4)))
    return model


REFUSED = {
    "not built": (lambda: (dense(16, built=False), dense(5), distill.Logits()), "needs a built model"),
    "not a model": (lambda: ("resnet", dense(5), distill.Logits()), "`teacher` must be a Keras 3 model"),
    "other classes": (lambda: (dense(16), dense(5, classes=4), distill.Logits()),
                      r"outputs of the same shape. Received: teacher=\(None, 3\), student=\(None, 4\)"),
    "other inputs": (lambda: (dense(16), dense(5, inputs=6), distill.Logits()), "must take the same inputs"),
    "two activations": (lambda: (dense(16, activation="softmax"), dense(5, activation="sigmoid"), distill.Logits()),
                        "same kind of probability"),
    "said otherwise": (lambda: (dense(16), dense(5, activation="sigmoid"), distill.Logits(activation="softmax")),
                       "same kind of probability"),
    "unknown outputs": (lambda: (relu_ended(), dense(5), distill.Logits()),
                        "the teacher must end in logits, a softmax or a sigmoid.*'Relu'.*from_logits=True"),
    "one class": (lambda: (dense(16, classes=1), dense(5, classes=1), distill.Logits()), "at least two classes"),
    "no such output": (lambda: (dense(16), dense(5), distill.Logits(output="a")), "the key or the index"),
    "no loss": (lambda: (dense(16), dense(5), []), "at least one distillation loss"),
    "not a loss": (lambda: (dense(16), dense(5), "kl"), "by name must be one of logits, decoupled_kd, dist, values"),
    "a number as a loss": (lambda: (dense(16), dense(5), 3), "must be distillation losses"),
    "no such layer": (lambda: (dense(16), dense(5), keras.distillation.FeatureDistillation("mse", "nowhere", "hidden")),
                      "nowhere"),
    "tapped subclass": (lambda: (dense(16), built(Subclassed()),
                                 keras.distillation.FeatureDistillation("mse", "hidden", "head")), "subclassed"),
}


@pytest.mark.parametrize(("arguments", "rule"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments, rule):
    with pytest.raises((ValueError, TypeError), match=rule):
        distill.Distiller(*arguments())


@pytest.mark.parametrize(("arguments", "rule"), [
    ({"loss_weights": [1., 2.]}, "one number for each loss"),
    ({"loss_weights": -1.}, "`loss_weights` must be None, a number >= 0"),
    ({"loss_weights": [float("nan")]}, "`loss_weights` must be"), ({"loss_weights": 0}, "must be > 0"),
    ({"student_loss_weight": 1.5}, "`student_loss_weight` must be a number >= 0 and <= 1"),
    ({"student_loss_weight": None}, "`student_loss_weight`")], ids=str)
def test_weights_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        distill.Distiller(dense(16), dense(5), distill.Logits(), **arguments)


def test_a_model_is_not_its_own_teacher():
    model = dense(5)
    with pytest.raises(ValueError, match="must be two models"):
        distill.Distiller(model, model, distill.Logits())


@pytest.mark.parametrize(("arguments", "rule"), [
    ({"temperature": -1}, "distill.Logits: `temperature` must be a number > 0. Received: temperature=-1"),
    ({"temperature": 0}, "`temperature`"), ({"temperature": "hot"}, "`temperature`"),
    ({"activation": "relu"}, "`activation` must be None, 'softmax' or 'sigmoid'"),
    ({"from_logits": "no"}, "`from_logits`"), ({"output": 1.5}, "`output`")], ids=str)
def test_arguments_of_logits_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        distill.Logits(**arguments)


def test_outputs_handed_over_directly_are_checked():
    with pytest.raises(ValueError, match="same shape"):
        distill.Logits().compute_loss(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="as many outputs"):
        distill.Logits().compute_loss([np.zeros((2, 3))], [np.zeros((2, 3)), np.zeros((2, 3))])
    probabilities = np.full((2, 3), 1 / 3)
    assert float(distill.Logits(from_logits=False).compute_loss(probabilities, probabilities)) == 0


def test_unknown_outputs_can_be_named(rng):
    x, _ = batch(rng)
    made = distill.Distiller(relu_ended(), dense(5), distill.Logits(from_logits=True))
    made.compile("sgd")
    made.fit(x, verbose=0)


def test_a_subclassed_student_learns(rng):
    x, y = batch(rng)
    logs, _ = trained(distill.Logits(), x, y, student=built(Subclassed()))
    assert np.isfinite(logs["loss"])
    both = distill.Distiller(built(Subclassed()), built(Subclassed()), distill.Logits())
    both.compile("sgd")
    both.fit(x, verbose=0)


def test_a_loss_that_is_not_finite_stops_the_run(rng):
    x, y = batch(rng)
    made = distill.Distiller(dense(16), dense(5, seed=1), distill.Logits())
    made.compile(keras.optimizers.SGD(0.), SPARSE)
    made.teacher.layers[-1].bias.assign([0., np.nan, 0.])
    with pytest.raises(FloatingPointError, match=r"must stay finite.*epoch 1. Received: .*loss=nan.*Lower"):
        made.fit(x, y, epochs=3, verbose=0, callbacks=[keras.callbacks.History()])


def test_labels_are_asked_for(rng):
    made = distill.Distiller(dense(16), dense(5), distill.Logits())
    made.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match="the compiled loss needs labels"):
        made.fit(batch(rng)[0], verbose=0)


def test_a_frozen_student_is_refused(rng):
    student = dense(5)
    student.trainable = False
    with pytest.raises(ValueError, match="the student must have something to train"):
        trained(distill.Logits(), batch(rng)[0], student=student)


def test_a_trace_leaves_no_trace():
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activity_regularizer="l2")])
    before = keras.random.SeedGenerator(1).state.numpy()
    distill.Distiller(dense(16), student, distill.Logits())
    assert not student.losses
    np.testing.assert_array_equal(keras.random.SeedGenerator(1).state, before)
    assert tf.executing_eagerly()
