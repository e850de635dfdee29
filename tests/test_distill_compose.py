"""A pruned or quantization-aware student in a distiller; afterwards `strip` and `convert` give what they promise."""

import keras
import numpy as np
import pytest
import scipy.special

from tfopt import distill

prune = pytest.importorskip("tfopt.prune")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units, *, activation=None, seed=0):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([
        keras.Input((8,)), keras.layers.Dense(units, "relu", kernel_initializer=start, name="hidden"),
        keras.layers.Dense(3, activation, kernel_initializer=start, name="head")])


def data(rng, count=256):
    x = rng.normal(size=(count, 8)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0)


def divergence(teacher, student, x, temperature, *, teacher_is_probable=False, student_is_probable=False):
    z = [np.log(m(x)) if probable else np.float64(m(x))
         for m, probable in ((teacher, teacher_is_probable), (student, student_is_probable))]
    p, q = (scipy.special.softmax(logits / temperature, -1) for logits in z)
    return temperature ** 2 * scipy.special.rel_entr(p, q).sum(-1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_pruned_student(rng, activation):
    x, y = data(rng)
    teacher, student = dense(32), prune.wrap(dense(16, activation=activation, seed=1), 0.75, end=8)
    made = distill.Distiller(teacher, student, distill.Logits(2.), student_loss_weight=0.3)
    made.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=not activation))
    made.fit(x, y, epochs=3, batch_size=32, verbose=0)
    slim = prune.strip(made.student)
    assert float((slim.get_layer("hidden").kernel.numpy() == 0).mean()) == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(slim.predict(x, verbose=0), made.predict(x, verbose=0), atol=1e-5)
    made.compile(keras.optimizers.SGD(0.))
    loss = made.evaluate(x, batch_size=256, verbose=0)
    assert loss == pytest.approx(divergence(teacher, slim, x, 2., student_is_probable=bool(activation)), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_quantization_aware_student(rng, activation):
    quantize = pytest.importorskip("tfopt.quantize")
    x, y = data(rng)
    student = quantize.wrap(dense(16, activation=activation, seed=1))
    made = distill.Distiller(dense(32), student, distill.Logits(2.), student_loss_weight=0.3)
    made.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=not activation))
    history = made.fit(x, y, epochs=6, batch_size=32, verbose=0).history
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]
    lite = quantize.convert(made.student, "int8", calibration=x)
    same = np.argmax(lite.predict(x), -1) == np.argmax(made.predict(x, verbose=0), -1)
    assert same.mean() > 0.97


def test_a_pruned_student_with_cached_logits(rng):
    x, y = data(rng)
    student = prune.wrap(dense(16, seed=1), 0.5)
    made = distill.Distiller(None, student, distill.Logits(2.))
    made.compile("adam", SPARSE)
    made.fit(distill.cache_teacher(dense(32), (x, y)), verbose=0)
    assert float((prune.strip(student).get_layer("hidden").kernel.numpy() == 0).mean()) == 0.5
