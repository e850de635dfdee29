"""The training step: equal to formulas written down by hand, and to what Keras does where it is right."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt import distill

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units, *, classes=3, activation=None, seed=0, **options):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(units, "relu", kernel_initializer=start, name="hidden", **options),
        keras.layers.Dense(classes, activation, kernel_initializer=start, name="head")])


def batch(rng, count=24, classes=3):
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, classes, count)


def softened_divergence(teacher, student, temperature):
    """T^2 * KL per example, float64, straight from the definition."""
    log_p = scipy.special.log_softmax(np.float64(teacher) / temperature, axis=-1)
    log_q = scipy.special.log_softmax(np.float64(student) / temperature, axis=-1)
    return temperature ** 2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


def value_and_gradient(loss, teacher, student, **extra):
    student = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(teacher, student, **extra)
    return value.numpy(), tape.gradient(value, student).numpy()


# ---------------------------------------------------------------- the formula

@settings(deadline=None, max_examples=40)
@given(temperature=st.floats(1, 20), count=st.integers(1, 9), classes=st.integers(2, 30), size=st.floats(0.01, 30),
       dtype=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 99))
def test_logits_equal_the_definition(temperature, count, classes, size, dtype, seed):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(0, size, (2, count, classes)).astype(dtype)
    weight = rng.uniform(0, 2, count)
    value, gradient = value_and_gradient(distill.Logits(temperature), teacher, student, sample_weight=weight)
    expected = softened_divergence(teacher, student, temperature) * weight
    assert value.dtype == dtype
    scale = 1e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(value, expected.mean(), rtol=4 * scale, atol=scale)
    p, q = (scipy.special.softmax(np.float64(z) / temperature, axis=-1) for z in (teacher, student))
    np.testing.assert_allclose(gradient, temperature * weight[:, None] * (q - p) / count, rtol=0, atol=4 * scale)


@pytest.mark.parametrize("temperature", [1, 3, 20])
def test_independent_labels_equal_the_definition(temperature, rng):
    teacher, student = rng.normal(0, 4, (2, 5, 7)).astype("float32")
    value, gradient = value_and_gradient(distill.Logits(temperature, activation="sigmoid"), teacher, student)
    p, q = (scipy.special.expit(np.float64(z) / temperature) for z in (teacher, student))
    expected = temperature ** 2 * (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(-1)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 5, atol=1e-5)


def test_half_precision_is_computed_in_float32(rng):
    teacher, student = rng.normal(0, 3, (2, 8, 10)).astype("float16")
    value = distill.Logits(20.).compute_loss(teacher, student)
    assert value.dtype == "float32"
    np.testing.assert_allclose(value, softened_divergence(teacher, student, 20.).mean(), rtol=1e-5)


def test_logits_far_apart_stay_finite():
    value, gradient = value_and_gradient(distill.Logits(1.), np.float32([[500., 0., 0.]]), np.float32([[0., 500., 0.]]))
    assert value == pytest.approx(500.)
    np.testing.assert_allclose(gradient, [[-1, 1, 0]], atol=1e-6)


def test_dense_predictions_average_over_positions_as_keras_does(rng):
    teacher, student = rng.normal(size=(2, 2, 5, 5, 3)).astype("float32")
    weight = np.float32([1, 3])
    expected = (softened_divergence(teacher, student, 2.) * weight[:, None, None]).mean()
    np.testing.assert_allclose(distill.Logits(2.).compute_loss(teacher, student, sample_weight=weight), expected,
                               rtol=1e-5)


def test_keras_own_loss_agrees_where_it_is_right(rng):
    teacher, student = rng.normal(size=(2, 6, 3)).astype("float32")
    keras_loss = keras.distillation.LogitsDistillation(3., loss=keras.losses.KLDivergence())
    wrong = keras.distillation.LogitsDistillation(3.)
    mine = distill.Logits(3.).compute_loss(teacher, student)
    np.testing.assert_allclose(keras_loss.compute_loss(teacher, student), mine, rtol=1e-5)
    assert abs(float(wrong.compute_loss(teacher, student)) - float(mine)) > 0.1          # the negative control


# ---------------------------------------------------------------- one step, by hand

def by_hand(teacher, student, x, y, *, weight, temperature, rate, sample_weight=None):
    """The student's weights after one SGD step, from tf.GradientTape and the plain formulas."""
    with tf.GradientTape() as tape:
        q, p = student(x), tf.nn.log_softmax(teacher(x) / temperature)
        kl = temperature ** 2 * tf.reduce_sum(tf.exp(p) * (p - tf.nn.log_softmax(q / temperature)), -1)
        task = tf.nn.sparse_softmax_cross_entropy_with_logits(y, q)
        loss = tf.reduce_mean((weight * task + (1 - weight) * kl) * (1. if sample_weight is None else sample_weight))
        loss += sum(student.losses)
    variables = student.trainable_variables
    return [v - rate * g for v, g in zip(variables, tape.gradient(loss, variables), strict=True)], float(loss)


def distiller_of(teacher, student, loss=None, *, task=SPARSE, rate=0.5, metrics=None, options=(), **arguments):
    made = distill.Distiller(teacher, student, loss or distill.Logits(3.), **arguments)
    made.compile(keras.optimizers.SGD(rate), task, metrics=metrics, **dict(options))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}],
                         ids=str)
def test_a_step_equals_the_formula(rng, options, weighted):
    teacher, student = dense(16), dense(5, kernel_regularizer="l2", seed=1)
    x, y = batch(rng)
    sample_weight = rng.uniform(0, 3, len(x)).astype("float32") if weighted else None
    expected, loss = by_hand(teacher, student, x, y, weight=0.3, temperature=3., rate=0.5, sample_weight=sample_weight)
    made = distiller_of(teacher, student, student_loss_weight=0.3, options=options)
    history = made.fit(x, y, batch_size=len(x), sample_weight=sample_weight, verbose=0).history
    for mine, theirs in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
@pytest.mark.parametrize(("teacher_end", "student_end"), [("softmax", None), (None, "softmax"), ("softmax", "softmax")])
def test_probabilities_are_taken_back_to_logits(rng, teacher_end, student_end, options):
    x, _ = batch(rng)
    plain, probable = dense(5, seed=1), dense(5, activation=student_end, seed=1)
    expected = distiller_of(dense(16), plain, task=None)
    mine = distiller_of(dense(16, activation=teacher_end), probable, task=None, options=options)
    for made in (expected, mine):
        made.fit(x, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(probable.get_weights()[0], plain.get_weights()[0], atol=1e-5)
    assert not np.allclose(plain.get_weights()[0], dense(5, seed=1).get_weights()[0], atol=1e-2)


def test_saturated_probabilities_lose_nothing():
    """log(p) would be cut off at 1e-37, and its gradient with it; the tensor before the softmax is not."""
    student = keras.Sequential([keras.Input((2,)), keras.layers.Activation("softmax")])
    teacher = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(1.), keras.layers.Activation("softmax")])
    side_x = np.float32([[300., 0.]])
    teacher.layers[0].scale = -1.
    made = distill.Distiller(teacher, student, distill.Logits(1., activation="softmax"))
    made.compile("sgd")
    assert made.evaluate(side_x, verbose=0) == pytest.approx(300.)


def test_multi_label_models_are_recognized(rng):
    x, _ = batch(rng)
    teacher, student = dense(16, activation="sigmoid"), dense(5, activation="sigmoid", seed=1)
    made = distiller_of(teacher, student, distill.Logits(2.), task=None, rate=0.)
    loss = made.fit(x, batch_size=len(x), verbose=0).history["loss"][0]
    p, q = (scipy.special.expit(scipy.special.logit(np.float64(m(x))) / 2) for m in (teacher, student))
    expected = 4 * (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(-1).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_teacher_alone_needs_no_labels(rng):
    x, _ = batch(rng, 256)
    teacher, student = dense(16), dense(16, seed=1)
    made = distiller_of(teacher, student, task=None, rate=0.1)
    history = made.fit(x, epochs=20, verbose=0, validation_data=(x,)).history
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert "student_loss" not in made.evaluate(x, return_dict=True, verbose=0)


def test_only_labels_when_the_teacher_has_no_share(rng):
    x, y = batch(rng)
    alone, student = dense(5, seed=1), dense(5, seed=1)
    alone.compile(keras.optimizers.SGD(0.5), SPARSE)
    for model in (alone, distiller_of(dense(16), student, student_loss_weight=1)):
        model.fit(x, y, shuffle=False, verbose=0)
    np.testing.assert_allclose(student.get_weights()[0], alone.get_weights()[0], atol=1e-6)


def test_one_weight_is_respected(rng):
    x, _ = batch(rng)
    losses = [distiller_of(dense(16), dense(5, seed=1), task=None, rate=0., **arguments)
              .fit(x, verbose=0).history["loss"][0] for arguments in ({}, {"loss_weights": 3.}, {"loss_weights": [3.]})]
    assert losses[1] == losses[2] == pytest.approx(3 * losses[0])


def test_evaluate_and_predict_are_the_students(rng):
    x, y = batch(rng)
    student = dense(5, seed=1, kernel_regularizer="l2")
    made = distiller_of(dense(16), student, metrics=["accuracy"])
    made.fit(x, y, verbose=0)
    student.compile(loss=SPARSE, metrics=["accuracy"])
    assert made.evaluate(x, y, verbose=0) == pytest.approx(student.evaluate(x, y, verbose=0))
    np.testing.assert_array_equal(made.predict(x, verbose=0), student.predict(x, verbose=0))
    assert set(made.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_both_models_are_left_as_they_were(rng):
    x, y = batch(rng)
    teacher, student = dense(16), dense(5, seed=1)
    teacher.layers[0].trainable = False
    student.layers[0].trainable = False
    optimizer = keras.optimizers.Adam(0.1)
    teacher.compile(optimizer, SPARSE)
    before = [w.copy() for w in teacher.get_weights()]
    made = distiller_of(teacher, student, metrics=["accuracy"])
    frozen = student.layers[0].kernel.numpy()
    made.fit(x, y, verbose=0)
    assert [layer.trainable for layer in (*teacher.layers, *student.layers)] == [False, True] * 2
    assert teacher.trainable
    assert student.trainable
    assert teacher.optimizer is optimizer
    assert not student.compiled
    for now, then in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(student.layers[0].kernel, frozen)
    assert [v.path for v in made.trainable_variables] == [v.path for v in student.trainable_variables]
    assert made.count_params() == student.count_params()
    teacher.fit(x, y, verbose=0)


def test_the_teacher_is_in_inference_mode(rng):
    x, _ = batch(rng)
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9),
                                keras.layers.Dense(3)])
    before = [w.copy() for w in teacher.get_weights()]
    made = distiller_of(teacher, dense(5), task=None, rate=0.)
    losses = made.fit(x, epochs=2, batch_size=24, verbose=0).history["loss"]
    assert losses[0] == losses[1]
    for now, then in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_layers_of_both_are_trained_and_counted_once(rng):
    x, y = batch(rng)
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(8, "relu")(inputs)
    teacher = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(9)(shared)))
    student = keras.Model(inputs, keras.layers.Dense(3)(shared))
    made = distiller_of(teacher, student)
    assert len(made.trainable_variables) == len(student.trainable_variables)
    made.fit(x, y, verbose=0)


def test_several_outputs_are_told_apart(rng):
    def build(units):
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(units)(inputs)
        return keras.Model(inputs, {"kind": keras.layers.Dense(3, "softmax")(hidden),
                                    "size": keras.layers.Dense(1)(hidden)})

    teacher, student = build(16), build(5)
    with pytest.raises(ValueError, match=r"without=\['size'\].*{'kind': 'logits', 'size': 'values'}"):
        distill.Distiller(teacher, student, distill.Logits())
    with pytest.raises(ValueError, match=r"`output` must be the key or the index.* Choose one of \['kind', 'size'\]"):
        distill.Distiller(teacher, student, distill.Logits(output="other"))
    x, y = batch(rng)
    made = distiller_of(teacher, student, distill.Logits(2., output="kind"), rate=0.,
                        task={"kind": "sparse_categorical_crossentropy", "size": "mse"})
    logs = made.fit(x, {"kind": y, "size": x[:, :1]}, batch_size=24, verbose=0).history
    p, q = (np.log(m(x)["kind"]) for m in (teacher, student))
    assert logs["distillation_loss"][0] == pytest.approx(softened_divergence(p, q, 2.).mean(), rel=1e-4)


def test_an_uneven_last_batch_is_averaged_as_keras_does(rng):
    x, y = batch(rng, 20)
    made = distiller_of(dense(16), dense(5, seed=1), rate=0., student_loss_weight=0.)
    logs = made.fit(x, y, batch_size=16, verbose=0).history
    expected = softened_divergence(made.teacher(x), made.student(x), 3.).mean()
    assert logs["distillation_loss"][0] == logs["loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(rng, policy):
    x, _ = batch(rng, 64)
    keras.config.set_dtype_policy(policy)
    try:
        models = dense(16, activation="softmax"), dense(16, activation="softmax", seed=1)
        made = distiller_of(*models, task=None, rate=0.1)
    finally:
        keras.config.set_dtype_policy("float32")
    history = made.fit(x, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    assert isinstance(made.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


def test_compiling_again_without_a_loss_forgets_it(rng):
    x, _ = batch(rng)
    made = distiller_of(dense(16), dense(5))
    made.compile("sgd")
    assert set(made.fit(x, verbose=0).history) == {"loss", "distillation_loss"}
