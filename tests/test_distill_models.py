"""Every kind of model that distills: outputs that are numbers, several outputs, training of one's own, optimizers."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfopt import distill

CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TASKS = {"price": "mse", "kind": "sparse_categorical_crossentropy"}


def dense(units, outputs=3, activation=None, cls=keras.Model, inputs=4):
    x = keras.Input((inputs,))
    return cls(x, keras.layers.Dense(outputs, activation)(keras.layers.Dense(units, "relu")(x)))


def several(units, listed=False):
    x = keras.Input((4,))
    hidden = keras.layers.Dense(units)(x)
    outputs = {"price": keras.layers.Dense(1, name="price")(hidden),
               "kind": keras.layers.Dense(3, "softmax", name="kind")(hidden)}
    return keras.Model(x, list(outputs.values()) if listed else outputs)


def batch(rng, count=24):
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, 3, count)


def logs_of(teacher, student, losses, x, y=None, *, task=None, rate=0.0, **arguments):
    """The logs of one batch; with rate 0 nothing has moved."""
    made = distill.Distiller(teacher, student, losses, **arguments)
    made.compile(keras.optimizers.SGD(rate), task)
    return {name: value[0] for name, value in made.fit(x, y, batch_size=len(x), verbose=0).history.items()}


def divergence(p, q, temperature=1.0):
    p, q = (scipy.special.softmax(np.log(np.float64(z)) / temperature, -1) for z in (p, q))
    return temperature ** 2 * scipy.special.rel_entr(p, q).sum(-1).mean()


# ---------------------------------------------------------------- outputs that are numbers

@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_numbers_equal_their_definition(rng, activation):
    x, _ = batch(rng)
    teacher, student = dense(16, 2, activation), dense(4, 2, activation)
    gap = np.float64(student(x)) - np.float64(teacher(x))
    assert logs_of(teacher, student, "values", x)["loss"] == pytest.approx((gap ** 2).mean(), rel=1e-5)
    expected = scipy.special.huber(0.3, gap).mean()
    assert logs_of(teacher, student, distill.Values(0.3), x)["loss"] == pytest.approx(expected, rel=1e-5)


def test_numbers_are_weighted(rng):
    x, y = batch(rng)
    weight = rng.uniform(0, 2, 24).astype("float32")
    teacher, student = dense(16, 1), dense(4, 1)
    made = distill.Distiller(teacher, student, distill.Values(), student_loss_weight=0.)
    made.compile(keras.optimizers.SGD(0.), "mse")
    found = made.fit(x, y, sample_weight=weight, batch_size=24, verbose=0).history["distillation_loss"][0]
    gap = np.float64(student(x) - teacher(x))[:, 0]
    assert found == pytest.approx((weight * gap ** 2).mean(), rel=1e-5)


def test_keras_loss_of_numbers_is_computed_as_keras_does(rng):
    x, _ = batch(rng)
    teacher, student = dense(16, 1), dense(4, 1)
    loss = keras.distillation.LogitsDistillation(temperature=2.0, loss="mse")
    expected = float(loss.compute_loss(teacher(x), student(x)))
    assert logs_of(teacher, student, loss, x)["loss"] == pytest.approx(expected, rel=1e-5)


def test_losses_of_classes_refuse_a_number():
    with pytest.raises(ValueError, match=r"a softmax needs at least two classes.*distill.Values\(\) for a number"):
        distill.Distiller(dense(16, 1), dense(4, 1), distill.Logits())


# ---------------------------------------------------------------- several outputs

@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("losses", [
    lambda: ["logits", "values"], lambda: {"price": "values", "kind": distill.Logits()},
    lambda: [distill.Values(output="price"), distill.Logits(output="kind")]])
def test_each_output_has_the_loss_that_fits(rng, losses, listed):
    x, _ = batch(rng)
    teacher, student = several(16, listed), several(4, listed)
    a, b = (dict(zip(("kind", "price"), keras.tree.flatten(m(x)), strict=True)) if not listed else
            dict(zip(("price", "kind"), m(x), strict=True)) for m in (teacher, student))
    expected = divergence(a["kind"], b["kind"], 4.0) + np.mean((a["price"] - b["price"]) ** 2)
    assert logs_of(teacher, student, losses(), x)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_losses_by_output_have_weights_by_output(rng):
    x, _ = batch(rng)
    losses = {"price": "values", "kind": "logits"}
    models = several(16), several(4)
    alone = [logs_of(*models, {name: loss}, x)["loss"] for name, loss in losses.items()]
    both = logs_of(*models, losses, x, loss_weights={"kind": 3.0, "price": 0.5})["loss"]
    assert both == pytest.approx(0.5 * alone[0] + 3 * alone[1], rel=1e-5)
    with pytest.raises(ValueError, match="must have the keys of a dict of `losses`"):
        logs_of(*models, losses, x, loss_weights={"kind": 1.0})


def test_labels_reach_the_output_they_belong_to(rng):
    x, y = batch(rng)
    labels = {"price": x[:, :1], "kind": y}
    teacher, student = several(16, listed=True), several(4, listed=True)
    logs = logs_of(teacher, student, {"price": "values", "kind": "decoupled_kd"}, x, labels, task=TASKS)
    value = distill.DecoupledKD(from_logits=False).compute_loss(teacher(x)[1], student(x)[1], y=y)
    expected = float(value) + np.mean((teacher(x)[0] - student(x)[0]) ** 2)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("directory", [False, True])
def test_cached_outputs_of_several_equal_the_live_ones(rng, tmp_path, listed, directory):
    x, y = batch(rng)
    labels = {"price": x[:, :1], "kind": y}
    teacher, student = several(16, listed), several(4, listed)
    live = logs_of(teacher, student, ["logits", "values"], x, labels, task=TASKS)
    cached = distill.cache_teacher(teacher, (x, labels), batch_size=24, verbose=0,
                                   directory=tmp_path / "cache" if directory else None)
    made = distill.Distiller(None, student, ["logits", "values"])
    made.compile(keras.optimizers.SGD(0.), TASKS)
    logs = made.fit(cached, verbose=0).history
    assert logs["distillation_loss"][0] == pytest.approx(live["distillation_loss"], rel=2e-3)
    assert logs["student_loss"][0] == pytest.approx(live["student_loss"], rel=1e-5)


def test_inputs_in_a_dict(rng):
    x, y = batch(rng)

    def two(units):
        inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
        hidden = keras.layers.Dense(units)(keras.layers.Concatenate()(list(inputs.values())))
        return keras.Model(inputs, keras.layers.Dense(3)(hidden))

    data = {"a": x, "b": x[:, :2]}
    live, made = two(4), distill.Distiller(None, two(4), "logits")
    teacher = two(8)
    made.student.set_weights(live.get_weights())
    made.compile(keras.optimizers.SGD(0.), CLASSES)
    expected = distill.Distiller(teacher, live, "logits")
    expected.compile(keras.optimizers.SGD(0.), CLASSES)
    cached = distill.cache_teacher(teacher, (data, y), batch_size=24, verbose=0)
    assert made.fit(cached, verbose=0).history["loss"][0] == pytest.approx(
        expected.fit(data, y, batch_size=24, verbose=0).history["loss"][0], rel=1e-3)


# ---------------------------------------------------------------- students with training of their own

class OwnStep(keras.Model):
    """The train step of Keras' guide, which takes pairs alone."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + 100.0


class OwnAll(keras.Model):
    def train_step(self, data):
        return {"loss": tf.reduce_mean(self(data[0])) * 0}


def test_a_train_step_of_ones_own_is_used_and_learns_from_the_teacher(rng):
    x, y = batch(rng)
    teacher, own, plain = dense(16), dense(4, cls=OwnStep), dense(4)
    plain.set_weights(own.get_weights())
    found, expected = (logs_of(teacher, student, "logits", x, y, task=CLASSES, rate=0.5, student_loss_weight=0.3)
                       for student in (own, plain))
    assert found == pytest.approx(expected, rel=1e-5)
    for mine, theirs in zip(own.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert not own.compiled
    assert "optimizer" not in vars(own)
    assert "compute_loss" not in vars(own)


def test_a_train_step_of_ones_own_with_cached_outputs(rng):
    x, y = batch(rng)
    teacher, student = dense(16), dense(4, cls=OwnStep)
    made = distill.Distiller(None, student, "logits")
    made.compile("sgd", CLASSES)
    logs = made.fit(distill.cache_teacher(teacher, (x, y), verbose=0), epochs=2, verbose=0).history
    assert logs["loss"][1] < logs["loss"][0]


def test_a_loss_of_ones_own_is_the_task_loss(rng):
    x, y = batch(rng)
    teacher, student = dense(16), dense(4, cls=OwnLoss)
    logs = logs_of(teacher, student, "logits", x, y, task=CLASSES, student_loss_weight=0.25)
    task = float(CLASSES(y, student(x)))
    assert logs["student_loss"] == pytest.approx(100 + task, rel=1e-5)
    assert logs["loss"] == pytest.approx(0.25 * (100 + task) + 0.75 * logs["distillation_loss"], rel=1e-5)
    made = distill.Distiller(teacher, student, "logits")
    made.compile("sgd", CLASSES)
    assert made.evaluate(x, y, verbose=0) == pytest.approx(100 + task, rel=1e-5)


def test_a_train_step_that_cannot_learn_from_a_teacher_is_refused(rng):
    x, y = batch(rng)
    with pytest.raises(ValueError, match=r"must call `self.compute_loss`.*student='OwnAll'.*student_loss_weight=0"):
        logs_of(dense(16), dense(4, cls=OwnAll), "logits", x, y, task=CLASSES)
    teacher, student = dense(4), dense(4, cls=OwnStep)
    features = distill.Features({teacher.layers[1].name: student.layers[1].name})
    with pytest.raises(ValueError, match="needs losses between outputs"):
        logs_of(teacher, student, features, x, y, task=CLASSES)
    logs_of(dense(16), dense(4, cls=OwnAll), "logits", x, y, task=CLASSES, student_loss_weight=0)


class Subclassed(keras.Model):
    def __init__(self, units=4, **options):
        super().__init__(**options)
        self.hidden, self.head = keras.layers.Dense(units, "relu"), keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x["a"] if isinstance(x, dict) else x))


@pytest.mark.parametrize("nested", [False, True])
def test_subclassed_models_that_were_built_by_a_call(rng, nested):
    x, _ = batch(rng)
    x = {"a": x} if nested else x
    teacher, student = Subclassed(8), Subclassed()
    for model in (teacher, student):
        model(keras.tree.map_structure(lambda part: part[:2], x))
    made = distill.Distiller(teacher, student, "logits")
    made.compile("adam")
    logs = made.fit(x, epochs=5, verbose=0).history["loss"]
    assert logs[-1] < logs[0]


# ---------------------------------------------------------------- optimizers and files

OPTIMIZERS = {
    "several": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.Adam(1e-2), {".*kernel.*": keras.optimizers.SGD(1e-2)})),
    "without schedule": lambda: keras.optimizers.ScheduleFreeAdamW(1e-2),
    "Muon": lambda: keras.optimizers.Muon(1e-2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(rng, optimizer, tmp_path):
    x, y = batch(rng, 32)
    made = distill.Distiller(dense(16), dense(8), "logits")
    made.compile(optimizer(), CLASSES)
    logs = made.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert logs[-1] < logs[0]
    made.save(tmp_path / "made.keras")
    loaded = keras.saving.load_model(tmp_path / "made.keras")
    for model in (made, loaded):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for mine, theirs in zip(loaded.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_forms_of_files(rng, tmp_path):
    x, y = batch(rng)
    made = distill.Distiller(dense(16), dense(4), "logits")
    made.compile("adam", CLASSES)
    made.fit(x, y, verbose=0)
    expected = made.predict(x, verbose=0)
    made.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-6)
    made.save_weights(tmp_path / "made.weights.h5")
    made.student.set_weights([0 * value for value in made.student.get_weights()])
    made.load_weights(tmp_path / "made.weights.h5")
    np.testing.assert_array_equal(made.predict(x, verbose=0), expected)
    with pytest.raises(ValueError, match=r"saved in the .keras format"):
        made.save(tmp_path / "made.h5")
    assert not (tmp_path / "made.h5").exists()


def test_losses_show_their_arguments():
    assert repr(distill.Values(0.5, output="price")) == "distill.Values(delta=0.5, output='price')"
    assert repr(distill.Features({"a": "b"})) == "distill.Features(layers={'a': 'b'})"


def by_step(activation, shape, last):
    x = keras.Input(shape)
    y = keras.layers.GRU(5, return_sequences=True)(keras.layers.Masking()(x))
    y = keras.layers.TimeDistributed(keras.layers.Dense(4, activation=activation))(y)
    return keras.Model(x, y if last is None else last(y))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "shape", "last"), [
    ("softmax", (6, 3), None), ("sigmoid", (None, 3), None), ("softmax", (6, 3), keras.layers.Reshape((2, 3, 4)))])
def test_probabilities_of_each_step_have_logits_behind_them(activation, shape, last):
    """The same training as with a teacher and a student that put out logits."""
    x, losses = np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32"), []
    x[::2, 4:] = 0
    probable = [by_step(activation, shape, last) for _ in range(2)]
    plain = [by_step(None, shape, last) for _ in range(2)]
    for one, other in zip(probable, plain, strict=True):
        other.set_weights(one.get_weights())
    for teacher, student in (probable, plain):
        model = distill.Distiller(teacher, student, distill.Logits(temperature=2.0, activation=activation))
        model.compile("sgd")
        losses.append(model.fit(x, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_mixture_of_probabilities_is_no_logit():
    x = keras.Input((6,))
    share = keras.layers.Dense(3, activation="softmax")(x)
    parts = keras.layers.Reshape((3, 4))(keras.layers.Dense(12)(x))
    mixed = keras.Model(x, keras.layers.Dot(1)([share, keras.layers.Softmax()(parts)]))
    with pytest.raises(ValueError, match="must end in logits, a softmax or a sigmoid"):
        distill.Distiller(mixed, keras.models.clone_model(mixed), distill.Logits())
    model = distill.Distiller(mixed, keras.models.clone_model(mixed), distill.Logits(from_logits=False))
    model.compile("sgd")
    assert np.isfinite(model.fit(np.ones((4, 6)), verbose=0).history["loss"][0])
