"""Each loss against a slow float64 implementation of its own; then inside a distiller, on one device and on two."""

import itertools
import json

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt import distill


def decoupled(teacher, student, labels, *, temperature, target, others, **_):
    total = []
    for t, s, y in zip(teacher, student, labels, strict=True):
        p, q = scipy.special.softmax(t / temperature), scipy.special.softmax(s / temperature)
        binary = [np.array([z[y], 1 - z[y]]) for z in (p, q)]
        rest = [np.delete(z, y) / np.delete(z, y).sum() for z in (p, q)]
        total.append(temperature ** 2 * (target * scipy.stats.entropy(*binary) + others * scipy.stats.entropy(*rest)))
    return np.array(total)


def dist(teacher, student, labels, *, temperature, between, within, weight, **_):
    p, q = scipy.special.softmax(teacher / temperature, -1), scipy.special.softmax(student / temperature, -1)
    rows = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = []
    for a, b in zip(p.T, q.T, strict=True):
        covariance = np.cov(a, b, aweights=weight, ddof=0)
        columns.append(1 - covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return temperature ** 2 * (between * (rows * weight).mean() + within * np.mean(columns))


def standardized(teacher, student, labels, *, temperature, **_):
    p, q = (scipy.special.softmax(scipy.stats.zscore(z, axis=-1) / temperature, -1) for z in (teacher, student))
    return temperature ** 2 * scipy.special.rel_entr(p, q).sum(-1)


def attention(teacher, student, **_):
    maps = [(z ** 2).mean(-1).reshape(len(z), -1) for z in (teacher, student)]
    t, s = (m / np.linalg.norm(m, axis=-1, keepdims=True) for m in maps)
    return ((s - t) ** 2).mean(-1)


def features(teacher, student, **_):
    return ((student - teacher) ** 2).reshape(len(teacher), -1).mean(-1)


def huber(x):
    return np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5)


def relations(teacher, student, *, distance, angle, weight, **_):
    count, flat = len(teacher), [z.reshape(len(z), -1) for z in (teacher, student)]
    lengths = [np.array([[np.linalg.norm(a - b) for b in z] for a in z]) for z in flat]
    t, s = (d / d[d > 0].mean() for d in lengths)
    value = distance * (np.outer(weight, weight) * huber(s - t)).mean()
    cosines = []
    for z in flat:
        def unit(v):
            return v / max(np.linalg.norm(v), 1e-12)
        cosines.append([unit(z[i] - z[j]) @ unit(z[k] - z[j]) for j, i, k in itertools.product(range(count), repeat=3)])
    weights = [weight[i] * weight[j] * weight[k] for j, i, k in itertools.product(range(count), repeat=3)]
    return value + angle * (np.array(weights) * huber(np.subtract(cosines[1], cosines[0]))).mean()


OUTPUT_LOSSES = {
    "DecoupledKD": (lambda heat: distill.DecoupledKD(heat, target=0.7, others=3.0), decoupled,
                  {"target": 0.7, "others": 3.0}),
    "DIST": (lambda heat: distill.DIST(heat, between=0.5, within=2.0), dist, {"between": 0.5, "within": 2.0}),
    "standardized": (lambda heat: distill.Logits(heat, standardize=True), standardized, {}),
}
PAIR = {"a": "b"}
FEATURES = {
    "AttentionTransfer": (distill.AttentionTransfer(PAIR), attention, {}),
    "Features": (distill.Features(PAIR), features, {}),
    "RelationalKD": (distill.RelationalKD(PAIR, distance=2., angle=3.), relations, {"distance": 2., "angle": 3.}),
}


def compare(loss, reference, teacher, student, weight, **extra):
    """Value, and the gradient along a random direction by central differences in float64."""
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(teacher, variable, sample_weight=weight, **extra)

    def exact(s):
        found = reference(np.float64(teacher), s, weight=weight)
        return float((found * weight).mean() if np.ndim(found) else found)

    scale = 1e-5 if student.dtype == "float32" else 1e-9
    np.testing.assert_allclose(value, exact(np.float64(student)), rtol=scale, atol=scale)
    direction = np.random.default_rng(5).normal(size=student.shape)
    step = 1e-5 / np.linalg.norm(direction)
    slope = (exact(student + step * direction) - exact(student - step * direction)) / (2 * step)
    gradient = tape.gradient(value, variable).numpy()
    size = np.linalg.norm(gradient) * np.linalg.norm(direction)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=0, atol=max(scale, 1e-6) * max(size, 1))


@settings(deadline=None, max_examples=25)
@given(name=st.sampled_from(sorted(OUTPUT_LOSSES)), temperature=st.floats(1, 20), count=st.integers(3, 7),
       classes=st.integers(3, 9), dtype=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 99))
def test_losses_of_outputs_equal_their_definition(name, temperature, count, classes, dtype, seed):
    make, reference, settings_ = OUTPUT_LOSSES[name]
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(0, 3, (2, count, classes)).astype(dtype)
    labels = rng.integers(0, classes, count)

    def exact(t, s, weight):
        return reference(t, s, labels, temperature=temperature, weight=weight, **settings_)

    compare(make(temperature), exact, teacher, student, rng.uniform(0.1, 2, count), y=labels)


@settings(deadline=None, max_examples=15)
@given(name=st.sampled_from(sorted(FEATURES)), shape=st.sampled_from([(4, 3, 5), (5, 2, 3, 4)]),
       dtype=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 99))
def test_losses_of_features_equal_their_definition(name, shape, dtype, seed):
    loss, reference, settings_ = FEATURES[name]
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(2, *shape)).astype(dtype)
    compare(loss, lambda t, s, weight: reference(t, s, weight=weight, **settings_), teacher, student,
            rng.uniform(0.1, 2, shape[0]))


def test_decoupled_with_equal_parts_is_logits(rng):
    """Identity of the paper: KD = target part + (1 - p_y) * the others' part."""
    teacher, student = rng.normal(size=(2, 6, 5))
    p = scipy.special.softmax(teacher / 2, -1)[:, 0]
    parts = [distill.DecoupledKD(2., target=a, others=b) for a, b in ((1, 0), (0, 1))]
    one = [[float(loss.compute_loss(teacher[i:i + 1], student[i:i + 1], y=np.zeros(1, int))) for loss in parts]
           for i in range(6)]
    expected = float(distill.Logits(2.).compute_loss(teacher, student))
    assert np.mean([a + (1 - q) * b for (a, b), q in zip(one, p, strict=True)]) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [np.array([1, 0]), np.array([[1], [0]]), np.eye(3)[[1, 0]], None], ids=str)
def test_decoupled_takes_labels_of_every_form(labels, rng):
    teacher, student = np.array([[0., 5, 0], [5, 0, 0]]), rng.normal(size=(2, 3))
    loss = distill.DecoupledKD()
    expected = loss.compute_loss(teacher, student, y=np.array([1, 0]))
    np.testing.assert_allclose(loss.compute_loss(teacher, student, y=labels), expected)


@pytest.mark.parametrize("loss", [
    distill.DecoupledKD(2., target=0.5, others=4.), distill.DIST(2., between=2., within=3.),
    distill.Features({"a": "b"}), distill.AttentionTransfer({"a": "b"}),
    distill.RelationalKD({"a": "b"}, distance=1., angle=2.), distill.MovingAverage(0.9),
    distill.Logits(3., standardize=True)], ids=lambda loss: type(loss).__name__)
def test_losses_survive_their_config(loss):
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(loss))))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


# ---------------------------------------------------------------- inside a distiller

def images(width, *, size=12, classes=3, seed=0, strides=2):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([
        keras.Input((size, size, 1)), keras.layers.Conv2D(width, 3, strides, activation="relu", name="conv",
                                                          kernel_initializer=start),
        keras.layers.GlobalAveragePooling2D(name="pool"), keras.layers.Dense(classes, name="head",
                                                                             kernel_initializer=start)])


def batch(rng, count=24):
    return rng.normal(size=(count, 12, 12, 1)).astype("float32"), rng.integers(0, 3, count)


def tapped(model, name, x):
    return keras.Model(model.inputs[0], model.get_layer(name).output)(x).numpy().astype("float64")


def test_features_project_train_and_leave_no_trace(rng):
    x, y = batch(rng)
    teacher, student = images(8, strides=1), images(3, seed=1)
    plain = student.count_params()
    made = distill.Distiller(teacher, student, distill.Features({"conv": "conv", "pool": "pool"}))
    made.compile(keras.optimizers.Adam(0.03))
    assert [layer.kernel.shape for layer in made.projectors] == [(3, 8), (3, 8)]
    before = [layer.kernel.numpy() for layer in made.projectors]
    logs = made.fit(x, epochs=8, batch_size=24, verbose=0).history["loss"]
    assert logs[-1] < 0.7 * logs[0]
    assert all(np.abs(layer.kernel - old).max() > 1e-3 for layer, old in zip(made.projectors, before, strict=True))
    assert made.student is student
    assert student.count_params() == plain
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(x, y, verbose=0)


def test_features_of_one_width_are_not_projected(rng):
    x, _ = batch(rng)
    made = distill.Distiller(images(4), images(4, seed=1), distill.Features({"conv": "conv"}))
    made.compile(keras.optimizers.SGD(0.))
    assert not made.projectors
    loss = made.fit(x, batch_size=24, verbose=0).history["loss"][0]
    t, s = (tapped(model, "conv", x) for model in (made.teacher, made.student))
    assert loss == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)


@pytest.mark.slow
def test_several_losses_are_added_with_their_weights(rng):
    x, y = batch(rng)
    losses = [distill.Logits(2.), distill.AttentionTransfer({"conv": "conv"}), distill.RelationalKD({"pool": "pool"}),
              distill.DecoupledKD(2.), distill.DIST()]

    def value(losses, **arguments):
        made = distill.Distiller(images(8), images(3, seed=1), losses, **arguments)
        made.compile(keras.optimizers.SGD(0.), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return made.fit(x, y, batch_size=24, verbose=0).history["distillation_loss"][0]

    weights = [1., 100., 0.5, 2., 3.]
    together = value(losses, loss_weights=weights)
    assert together == pytest.approx(sum(w * value(loss) for w, loss in zip(weights, losses, strict=True)), rel=1e-5)


def test_a_weight_may_be_a_schedule(rng):
    x, _ = batch(rng)
    ramp = keras.optimizers.schedules.PolynomialDecay(0., 4, end_learning_rate=1.)
    made = distill.Distiller(images(8), images(3, seed=1), distill.Logits(), loss_weights=ramp)
    made.compile(keras.optimizers.SGD(0.))
    logs = made.fit(x, batch_size=24, epochs=6, verbose=0).history["loss"]
    assert logs == pytest.approx([logs[-1] * share for share in (0, 0.25, 0.5, 0.75, 1, 1)], abs=1e-6)


@pytest.mark.slow
def test_several_teachers_are_averaged(rng):
    x, _ = batch(rng)
    teachers = [images(8), images(6, seed=3)]

    def gradient(teacher):
        made = distill.Distiller(teacher, images(3, seed=1), distill.Logits(2.))
        made.compile(keras.optimizers.SGD(1.))
        before = made.student.get_weights()
        made.fit(x, batch_size=24, verbose=0)
        return np.concatenate([np.ravel(a - b) for a, b in zip(before, made.student.get_weights(), strict=True)])

    p = np.mean([scipy.special.softmax(teacher(x) / 2, -1) for teacher in teachers], axis=0)
    inputs = keras.Input((12, 12, 1))
    mixed = keras.Model(inputs, keras.layers.Average()(
        [keras.ops.softmax(teacher(inputs) / 2, -1) for teacher in teachers]))
    np.testing.assert_allclose(mixed(x), p, rtol=1e-5)
    mixture = keras.Model(inputs, 2 * keras.layers.Activation("log_softmax")(keras.ops.log(mixed(inputs))))
    np.testing.assert_allclose(gradient(teachers), gradient(mixture), atol=1e-5)
    np.testing.assert_allclose(gradient(teachers), np.mean([gradient(t) for t in teachers], 0), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_the_moving_average_follows_the_student(rng, options):
    x, y = batch(rng)
    student = images(3)
    made = distill.Distiller(distill.MovingAverage(0.9), student, distill.Logits())
    made.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    expected = [w.astype("float64") for w in student.get_weights()]
    for _ in range(3):
        made.fit(x, y, batch_size=24, verbose=0)
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, student.get_weights(), strict=True)]
    for mine, theirs in zip(made.teacher.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert len(made.trainable_variables) == len(student.trainable_variables)


RELOAD = """
import sys, numpy as np, keras
from tfopt import distill
made, data = keras.saving.load_model(sys.argv[1]), np.load(sys.argv[2])
for found, name in ((made.teacher if sys.argv[3] == "own" else made.teacher[1], "teacher"), (made.student, "student")):
    np.testing.assert_array_equal(found.predict(data["x"], verbose=0), data[name])
made.fit(data["x"], data["y"], epochs=2, shuffle=False, verbose=0)
np.testing.assert_allclose(made.predict(data["x"], verbose=0), data["later"], atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "several"])
def test_saved_and_loaded_with_projectors_and_schedules(tmp_path, rng, run_python, kind):
    x, y = batch(rng)
    if kind == "own":
        teacher, losses, weights = distill.MovingAverage(0.9), [distill.Logits()], [1.]
    else:
        teacher = [images(8), images(6, seed=3)]
        losses = [distill.DecoupledKD(), distill.Features({"conv": "conv"})]
        weights = [keras.optimizers.schedules.PolynomialDecay(0., 4, end_learning_rate=1.), 0.1]
    made = distill.Distiller(teacher, images(3, seed=1), losses, loss_weights=weights)
    made.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    made.fit(x, y, epochs=2, shuffle=False, verbose=0)
    made.save(tmp_path / "made.keras")
    told = {"teacher": (made.teacher if kind == "own" else made.teacher[1]).predict(x, verbose=0),
            "student": made.student.predict(x, verbose=0)}
    made.fit(x, y, epochs=2, shuffle=False, verbose=0)
    np.savez(tmp_path / "data.npz", x=x, y=y, **told, later=made.predict(x, verbose=0))
    run_python(RELOAD, tmp_path / "made.keras", tmp_path / "data.npz", kind)


STEPS = """
import json, numpy as np, keras
from tfopt import distill
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 32)
weight = rng.uniform(0, 2, 32).astype("float32")
pair = {"conv": "conv"}
CASES = {"DecoupledKD": distill.DecoupledKD(2.), "DIST": distill.DIST(2.), "Features": distill.Features(pair),
         "AttentionTransfer": distill.AttentionTransfer(pair), "RelationalKD": distill.RelationalKD({"pool": "pool"}),
         "MovingAverage": distill.Logits()}

def images(width, seed):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input((8, 8, 1)),
        keras.layers.Conv2D(width, 3, 2, activation="relu", name="conv", kernel_initializer=start),
        keras.layers.GlobalAveragePooling2D(name="pool"), keras.layers.Dense(3, kernel_initializer=start)])

def train(strategy, name, loss):
    with strategy.scope():
        teacher = distill.MovingAverage(0.5) if name == "MovingAverage" else images(8, 0)
        made = distill.Distiller(teacher, images(3, 1), loss)
        made.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(16)
    logs = made.fit(data, epochs=2, verbose=0).history
    return list(logs.values()), np.concatenate([np.ravel(w) for w in made.get_weights() + made.teacher.get_weights()])

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name, loss in CASES.items():
    expected, found = train(one, name, loss), train(two, name, loss)
    print(json.dumps([name, *(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(expected, found))]))
"""


@pytest.mark.slow
def test_two_devices_equal_one(run_python):
    rows = [json.loads(line) for line in run_python(STEPS, devices=2).splitlines() if line.startswith("[")]
    assert len(rows) == 6
    for name, *differences in rows:
        assert max(differences) < 1e-5, (name, differences)


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("make", "rule"), [
    (lambda: distill.DecoupledKD(-1), "`temperature`"), (lambda: distill.DecoupledKD(target=-1), "`target`"),
    (lambda: distill.DecoupledKD(others=None), "`others`"), (lambda: distill.DIST(0), "`temperature`"),
    (lambda: distill.DIST(between=-1), "`between`"), (lambda: distill.DIST(within=-1), "`within`"),
    (lambda: distill.RelationalKD(PAIR, distance=-1), "`distance`"),
    (lambda: distill.RelationalKD(PAIR, angle="x"), "`angle`"),
    (lambda: distill.Features({}), "`layers` must be"), (lambda: distill.AttentionTransfer("conv"), "`layers` must be"),
    (lambda: distill.MovingAverage(1), "`momentum` must be a number >= 0 and < 1"),
    (lambda: distill.Distiller([], images(3), distill.Logits()), "`teacher` must be"),
    (lambda: distill.Distiller(images(8), images(3), distill.Features({"nowhere": "conv"})), "layer of this name"),
    (lambda: distill.Distiller(images(8), images(3), distill.Features({"conv": "pool"})), "as many axes"),
    (lambda: distill.Distiller(images(8), images(3), distill.AttentionTransfer({"pool": "pool"})), "at least 3 axes"),
    (lambda: distill.Distiller(None, images(3), distill.Features({"conv": "conv"})), "hold no features"),
    (lambda: distill.Distiller(
        keras.Sequential([images(8), keras.layers.Activation("sigmoid")]),
        keras.Sequential([images(3), keras.layers.Activation("sigmoid")]),
        distill.DecoupledKD()), "exclude each other"),
], ids=range(17))
def test_refused(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_a_layer_in_two_uses_is_not_tapped():
    inputs, layer = keras.Input((4,)), keras.layers.Dense(4, name="twice")
    teacher = keras.Model(inputs, keras.layers.Dense(3)(layer(layer(inputs))))
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="once"), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="must be used once"):
        distill.Distiller(teacher, student, distill.Features({"twice": "once"}))


def test_outputs_are_asked_for(rng):
    made = distill.Distiller(None, images(3), distill.Logits())
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="the data must bring its outputs"):
        made.fit(*batch(rng), verbose=0)
