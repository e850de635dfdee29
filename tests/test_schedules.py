"""Schedules equal float64 closed forms; `find` leaves no trace; `Plateau` works with what the optimizer holds."""

import random

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt import schedules
from tfopt._keras import schedule_of

RATES = st.floats(1e-6, 10)
COUNTS = st.integers(2, 5_000_000)


def one_cycle(t, peak, total, warmup, start, end):
    rise = start + (peak - start) * (1 - np.cos(np.pi * np.minimum(t / warmup, 1))) / 2
    fall = end + (peak - end) * (1 + np.cos(np.pi * np.clip((t - warmup) / (total - warmup), 0, 1))) / 2
    return np.where(t < warmup, rise, fall)


def knee(t, peak, total, warmup, explore):
    rise = np.where(warmup == 0, 1, t / max(warmup, 1))
    cool = total - warmup - explore
    fall = (total - t) / cool if cool else np.where(t < total, 1, 0)
    return peak * np.clip(np.minimum(rise, fall), 0, 1)


def linear(t, start, total, end):
    return start + (end - start) * np.minimum(t / total, 1)


@st.composite
def cases(draw):
    """(schedule, closed form in float64, highest rate, steps where something happens)."""
    a, b, total = draw(RATES), draw(RATES), draw(COUNTS)
    warmup = draw(st.integers(1, total - 1))
    low, high = sorted((a, b))
    name = draw(st.sampled_from(["constant", "linear", "step", "cycle", "knee", "inverse", "cyclic", "warmup", "join",
                                 "scaled"]))
    if name == "constant":
        return schedules.Constant(a), lambda t: a + 0 * t, a, []
    if name == "linear":
        return schedules.Linear(a, total, end=b), lambda t: linear(t, a, total, b), high, [total]
    if name == "step":
        factor = draw(st.floats(0.01, 1))
        return (schedules.Step(a, factor=factor, every=total), lambda t: a * factor ** np.floor(t / total), a,
                [total, 2 * total])
    if name == "cycle":
        return (schedules.OneCycle(high, total, warmup=warmup, start=low, end=0),
                lambda t: one_cycle(t, high, total, warmup, low, 0), high, [warmup, total])
    if name == "knee":
        explore = draw(st.integers(0, total - warmup))
        warmup *= draw(st.booleans())
        return (schedules.Knee(a, total, warmup=warmup, explore=explore),
                lambda t: knee(t, a, total, warmup, explore), a, [warmup, warmup + explore, total])
    if name == "inverse":
        return (schedules.InverseSqrt(a, warmup=warmup),
                lambda t: a * np.minimum(t / warmup, np.sqrt(warmup / np.maximum(t, 1))), a, [warmup])
    if name == "cyclic":
        high = low + b
        return (schedules.Cyclic(low, high, every=total),
                lambda t: low + (high - low) * (1 - np.abs(2 * (t % total) / total - 1)), high,
                [total // 2, total, 3 * total])
    if name == "warmup":
        return (schedules.Warmup(schedules.Linear(a, total, end=b), warmup),
                lambda t: np.where(t < warmup, a * t / warmup, linear(np.maximum(t - warmup, 0), a, total, b)), high,
                [warmup, warmup + total])
    if name == "join":
        return (schedules.Join([b, schedules.Linear(a, total, end=0), schedules.Constant(b)], [warmup, total + 7]),
                lambda t: np.where((t < warmup) | (t >= total + 7), b, linear(t - warmup, a, total, 0)), high,
                [warmup, total + 7])
    factor = draw(st.floats(0, 1))
    return (schedules.Scaled(schedules.Linear(a, total, end=b), factor), lambda t: factor * linear(t, a, total, b),
            high, [total])


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True)
@given(cases(), st.lists(st.integers(0, 20_000_000), min_size=5, max_size=20))
def test_equal_to_the_closed_form_at_any_step(case, steps):
    schedule, closed, peak, joints = case
    steps = [0, 1, 10_000_000, *steps, *(max(joint + i, 0) for joint in joints for i in (-1, 0, 1))]
    t = np.array(steps, np.int64)
    found = schedule(tf.constant(t)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, closed(t.astype(np.float64)), rtol=0, atol=1e-6 * peak)


PLAIN = {
    "constant": schedules.Constant(0.5),
    "linear": schedules.Linear(0.5, 90, end=0.01),
    "step": schedules.Step(0.5, factor=0.3, every=30),
    "one_cycle": schedules.OneCycle(0.5, 100),
    "knee": schedules.Knee(0.5, 100, warmup=10, explore=40),
    "inverse": schedules.InverseSqrt(0.5, warmup=10),
    "cyclic": schedules.Cyclic(0.1, 0.5, every=20),
    "warmup": schedules.Warmup(schedules.CosineDecay(0.5, 90), 10),
    "join": schedules.Join([schedules.Warmup(schedules.Constant(0.5), 10), schedules.CosineDecayRestarts(0.5, 20),
                            schedules.PiecewiseConstantDecay([10, 20], [0.5, 0.2, 0.1])], [30, 70]),
    "scaled": schedules.Scaled(schedules.Warmup(schedules.ExponentialDecay(0.5, 10, 0.5), 5), 0.5),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_for_every_kind_of_step_in_graph_and_xla(name):
    schedule = PLAIN[name]
    graph, xla = tf.function(schedule), tf.function(schedule, jit_compile=True)
    for step in (0, 1, 9, 10, 30, 55, 100, 10_000_000):
        expected = float(schedule(step))
        for kind in (tf.constant(step), tf.constant(step, tf.int64), np.int64(step), float(step)):
            assert float(schedule(kind)) == expected
        assert float(graph(tf.constant(step, tf.int64))) == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert float(xla(tf.constant(step, tf.int64))) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("schedule", "turns"), [
    (schedules.Linear(1, 1000), 0), (schedules.Step(1, factor=0.5, every=7), 0), (schedules.OneCycle(1, 1000), 1),
    (schedules.Knee(1, 1000, warmup=100, explore=300), 1), (schedules.InverseSqrt(1, warmup=100), 1),
    (schedules.Cyclic(0, 1, every=400), 4), (schedules.Warmup(schedules.Linear(1, 900), 100), 1)])
def test_rises_and_falls_only_where_it_should(schedule, turns):
    change = np.diff(schedule(np.arange(1001)).numpy().astype(float))
    signs = np.sign(change)[change != 0]
    assert (np.diff(signs) != 0).sum() == turns
    if not isinstance(schedule, schedules.Step):
        assert np.abs(change).max() < 0.02                   # no jump anywhere


def test_one_cycle_has_the_numbers_of_fastai():
    rate = schedules.OneCycle(1.0, 1000)
    assert [float(rate(t)) for t in (0, 250, 1000, 2000)] == pytest.approx([0.04, 1, 1e-5, 1e-5])


@pytest.mark.parametrize("name", ["Constant", "Linear", "ExponentialDecay", "Step", "CosineDecay", "one_cycle", "Knee"])
def test_by_name(name):
    rates = schedules.get(name, 0.1, 90)(np.arange(91)).numpy()
    assert rates.max() == pytest.approx(0.1)
    assert name == "Constant" or rates[-1] <= 0.1 / 99


def test_by_what_else_identifies_one():
    schedule = schedules.OneCycle(0.1, 90)
    assert schedules.get(schedule) is schedule
    assert float(schedules.get(0.3)(5)) == pytest.approx(0.3)
    assert float(schedules.get("Constant", 0.3)(5)) == pytest.approx(0.3)
    for one in (schedule, schedules.CosineDecay(0.1, 90)):
        again = schedules.get(keras.saving.serialize_keras_object(one))
        assert again.get_config() == one.get_config()


def test_keras_six_are_keras_own():
    for name in ("CosineDecay", "CosineDecayRestarts", "ExponentialDecay", "InverseTimeDecay", "PiecewiseConstantDecay",
                 "PolynomialDecay"):
        assert getattr(schedules, name) is getattr(keras.optimizers.schedules, name)


def line(rate=0.1, optimizer=keras.optimizers.SGD, **compiled):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dropout(0.2),
                              keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    model.compile(optimizer(rate) if optimizer else None, "mse", **compiled)
    return model


def points(n=64):
    x = np.random.default_rng(0).normal(size=(n, 4)).astype("float32")
    return x, x @ np.array([[1.0], [2], [3], [4]], "float32")


@pytest.mark.slow
def test_saved_in_a_compiled_model_and_loaded_in_a_new_process(tmp_path, run_python):
    for name, schedule in PLAIN.items():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(schedule), "mse")
        model.fit(np.ones((4, 1)), np.ones(4), epochs=3, verbose=0)
        model.save(tmp_path / f"{name}.keras")
    printed = run_python(
        "import sys, pathlib, keras, numpy as np\nfrom tfopt import schedules\n"
        "models = {p.stem: keras.models.load_model(p) for p in pathlib.Path(sys.argv[1]).glob('*.keras')}\n"
        "print({n: [float(m.optimizer.learning_rate)]"
        " + m.optimizer._learning_rate(np.arange(0, 100, 7)).numpy().tolist() for n, m in models.items()})", tmp_path)
    found = eval(printed.splitlines()[-1])
    assert set(found) == set(PLAIN)
    for name, values in found.items():
        assert values == [float(PLAIN[name](3)), *PLAIN[name](np.arange(0, 100, 7)).numpy().tolist()], name


def test_configs_are_the_arguments():
    for schedule in PLAIN.values():
        again = type(schedule).from_config(schedule.get_config())
        assert again.get_config() == schedule.get_config()


# find


class Walking(keras.Model):
    """A subclassed model with a train_step, a raw seed and a sublayer of its own."""

    def __init__(self):
        super().__init__()
        self.dense, self.noise = keras.layers.Dense(1), keras.layers.GaussianNoise(0.1)

    def call(self, x, training=False):
        return self.noise(self.dense(x), training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables,
                                           strict=True))
        return {"loss": loss}


def walking(optimizer="sgd"):
    model = Walking()
    model(np.ones((1, 4)))
    model.compile(optimizer)
    return model


def everything(model):
    """All that must be as it was, in comparable form."""
    tf_rng = [float(tf.random.uniform(())), float(keras.random.uniform(()))]    # advances both, the same each time
    return {"weights": [v.numpy().tolist() for v in [*model.variables, *model.metrics_variables]],
            "optimizer": [(v.path, v.numpy().tolist()) for v in model.optimizer.variables],
            "built": model.optimizer.built, "rate": schedule_of(model.optimizer),
            "held": model.optimizer, "step": model.train_function, "history": getattr(model, "history", None),
            "executions": model.steps_per_execution, "stop": model.stop_training,
            "random": [random.random(), np.random.random(), *tf_rng]}


def same(before, after, skip=()):
    for key in before:
        if key not in skip:
            assert before[key] == after[key], key


def leaves_no_trace(model, act, trained=False):
    if trained:
        model.fit(*points(), verbose=0, epochs=2)
    states = []
    for perform in (lambda: None, act):
        keras.utils.set_random_seed(7)
        keras.random.uniform(())                                   # the generator behind seed=None is there
        tf.random.uniform(())
        perform()
        states.append(everything(model))
    same(*states)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate", "trained"), [
    (keras.optimizers.SGD, 0.1, False), (keras.optimizers.SGD, schedules.Linear(0.1, total=100), True),
    (keras.optimizers.Adam, 0.1, True), (keras.optimizers.Adam, schedules.Linear(0.1, total=100), False)])
def test_find_leaves_no_trace(optimizer, rate, trained):
    model = line(rate, optimizer, metrics=["mae"], steps_per_execution=2)
    if not trained:
        model.evaluate(*points(), verbose=0)                       # makes the metrics, not the optimizer
    leaves_no_trace(model, lambda: schedules.find(model, points(), steps=40, verbose=0), trained)
    assert model.optimizer.built == trained


@pytest.mark.slow
def test_training_after_find_goes_on_as_without():
    histories = []
    for search in (False, True):
        keras.utils.set_random_seed(3)
        model = line(schedules.Linear(0.1, 100), keras.optimizers.Adam)
        model.fit(*points(), verbose=0)
        if search:
            schedules.find(model, points(), steps=40, verbose=0)
        histories.append(model.fit(*points(), epochs=3, verbose=0).history["loss"])
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_find_on_a_subclassed_model_with_its_own_step(optimizer):
    model = walking(optimizer)
    finding = []
    leaves_no_trace(model, lambda: finding.append(schedules.find(model, points(), verbose=0)))
    assert 1e-5 < finding[0].rate < 10


@pytest.mark.slow
def test_find_on_a_distiller():
    from tfopt import distill

    teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2))
    distiller = distill.Distiller(teacher, student, distill.Logits(2.0))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = points()[0]
    leaves_no_trace(distiller, lambda: schedules.find(distiller, (x, x[:, :3].argmax(1)), verbose=0))


def interrupting(model, how):
    """A dataset that breaks off, or poisons the loss, after some batches."""
    x, y = points()

    def batches():
        for i in range(1000):
            if i == 30 and how == "error":
                raise RuntimeError("no more data")
            yield x, y * (np.nan if i >= 30 and how == "nan" else 1)

    signature = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def test_find_does_not_take_broken_data_for_a_rate_that_is_too_high():
    model = line()
    model.evaluate(*points(), verbose=0)

    def act():
        with pytest.raises(ValueError, match=r"schedules.find: `data` must be finite.*batch 30"):
            schedules.find(model, interrupting(model, "nan"), high=0.5, verbose=0)

    leaves_no_trace(model, act)


def test_find_puts_back_when_the_data_fails():
    model = line()
    model.evaluate(*points(), verbose=0)

    def act():
        with pytest.raises(tf.errors.OpError, match="no more data"):
            schedules.find(model, interrupting(model, "error"), verbose=0)

    leaves_no_trace(model, act)


def test_find_puts_back_when_interrupted(monkeypatch):
    model = line()
    model.evaluate(*points(), verbose=0)
    update = keras.utils.Progbar.update

    def interrupt(self, current, *args, **kwargs):
        if current == 25:
            raise KeyboardInterrupt
        return update(self, current, *args, **kwargs)

    def act():
        with pytest.raises(KeyboardInterrupt):
            schedules.find(model, points(), verbose=0)

    monkeypatch.setattr(keras.utils.Progbar, "update", interrupt)
    leaves_no_trace(model, act)


def test_the_test_itself_would_see_a_trace():
    """Negative control: one step of `fit` is found."""
    model = line()
    model.evaluate(*points(), verbose=0)
    with pytest.raises(AssertionError):
        leaves_no_trace(model, lambda: model.fit(*points(32), verbose=0))


@pytest.mark.slow
def test_find_finds_what_gradient_descent_allows(tmp_path):
    """On a quadratic, plain gradient descent diverges above 2 / curvature: the suggestion lies below, within reach."""
    x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    finding = schedules.find(model, (x, x.sum(1, keepdims=True)), batch_size=128, verbose=0)
    limit = 2 / np.linalg.eigvalsh(2 * x.T @ x / len(x)).max()
    assert limit / 100 < finding.rate < limit
    assert finding.rate == finding.rates["steep"]
    assert list(finding.curve) == ["rate", "loss", "smooth"]
    assert finding.curve.rate.is_monotonic_increasing
    assert len(finding.curve) < 100                            # it stopped when the loss ran away
    figure = finding.plot(tmp_path / "find.png")
    assert figure.axes[0].get_xscale() == "log"
    assert (tmp_path / "find.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adamax", "Adafactor", "Nadam",
                                       "Lion", "Lamb", "Muon"])
def test_find_suggests_no_end_of_its_sweep(optimizer):
    """And the rate trains: one epoch at it lowers the loss."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(640, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(2)])
    model.compile(getattr(keras.optimizers, optimizer)(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    finding = schedules.find(model, (x, y), verbose=0)
    assert all(1e-6 < rate < 5 for rate in finding.rates.values())
    before = model.evaluate(x, y, verbose=0)
    model.compile(getattr(keras.optimizers, optimizer)(finding.rate), model.loss)
    model.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.7 * before


def test_find_takes_datasets_and_shows_a_bar(capsys):
    data = tf.data.Dataset.from_tensor_slices(points()).batch(16)
    schedules.find(line(), data, steps=30)
    assert "30" in capsys.readouterr().out


@pytest.mark.slow
def test_find_in_mixed_precision_with_loss_scaling():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(
        keras.layers.Dense(8, dtype="mixed_float16")(inputs)))
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedules.Linear(0.1, 10))), "mse")
    assert schedules.find(model, points(), verbose=0).rate > 0
    assert isinstance(schedule_of(model.optimizer), schedules.Linear)


# Plateau


def plateau(**arguments):
    return schedules.Plateau("loss", patience=1, min_delta=1e9, **arguments)       # no epoch improves by 1e9


def never():
    return schedules.Plateau("loss", patience=100)


def test_keras_own_callback_crashes_with_a_schedule():
    """What Plateau is for; if this fails, Keras has fixed it."""
    model = line(schedules.Linear(0.1, 100))
    own = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1e9)
    with pytest.raises(TypeError, match="not settable"):
        model.fit(*points(), epochs=4, verbose=0, callbacks=[own])


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD,
                                       lambda r: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(r))])
def test_plateau_multiplies_a_schedule(optimizer):
    schedule = schedules.Linear(0.1, 100)
    model = line(schedule, optimizer)
    history = model.fit(*points(), epochs=4, verbose=0, callbacks=[plateau(factor=0.5)]).history
    expected = [float(schedule(2 * epoch)) * 0.5 ** max(epoch - 2, 0) for epoch in (1, 2, 3, 4)]
    assert history["learning_rate"] == pytest.approx(expected, rel=1e-6)
    held = schedule_of(model.optimizer)
    assert isinstance(held, schedules.Scaled)
    assert held.schedule is schedule
    assert held.factor == pytest.approx(0.125)


def test_plateau_really_reaches_the_traced_step():
    """SGD on a constant gradient: the weight tells which rates were used."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(schedules.Constant(1.0)), lambda y, p: p)
    model.fit(np.ones((1, 1)), np.ones((1, 1)), verbose=0)         # traced with the schedule alone
    start = model.get_weights()[0].item()
    model.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=4, verbose=0, callbacks=[plateau(factor=0.5)])
    assert start - model.get_weights()[0].item() == pytest.approx(1 + 1 + 0.5 + 0.25, rel=1e-6)
    model.fit(np.ones((1, 1)), np.ones((1, 1)), verbose=0)         # what was lowered stays lowered
    assert start - model.get_weights()[0].item() == pytest.approx(2.75 + 0.125, rel=1e-6)


def test_plateau_with_a_float_is_keras_own():
    rates = []
    for callback in (plateau(factor=0.5, cooldown=1, min_lr=0.02),
                     keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, cooldown=1,
                                                       min_lr=0.02)):
        keras.utils.set_random_seed(0)
        rates.append(line().fit(*points(), epochs=6, verbose=0, callbacks=[callback]).history["learning_rate"])
    assert rates[0] == rates[1]


def test_plateau_without_a_plateau_leaves_your_schedule():
    schedule = schedules.Linear(0.1, 100)
    model = line(schedule)
    model.fit(*points(), epochs=2, verbose=0, callbacks=[never()])
    assert schedule_of(model.optimizer) is schedule


def test_plateau_leaves_a_scaled_of_yours_alone():
    schedule = schedules.Scaled(schedules.Linear(0.1, 100))
    model = line(schedule)
    model.fit(*points(), epochs=2, verbose=0, callbacks=[never()])
    assert schedule_of(model.optimizer) is schedule


def test_plateau_bounds_the_rate_of_its_epoch():
    model = line(schedules.Constant(0.1))
    history = model.fit(*points(), epochs=5, verbose=0, callbacks=[plateau(factor=0.1, min_lr=0.05)]).history
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05])


def test_what_a_plateau_lowered_is_saved(tmp_path):
    schedule = schedules.Linear(0.1, 100)
    model = line(schedule)
    model.fit(*points(), epochs=3, verbose=0, callbacks=[plateau(factor=0.5)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert float(again.optimizer.learning_rate) == float(model.optimizer.learning_rate)
    again.fit(*points(), epochs=3, verbose=0, callbacks=[plateau(factor=0.5)])
    assert schedule_of(again.optimizer).factor == pytest.approx(0.25 * 0.25)
    assert isinstance(schedule_of(again.optimizer).schedule, schedules.Linear)     # not one Scaled around another


def test_plateau_with_several_optimizers():
    model = line()
    kernels, rest = keras.optimizers.SGD(schedules.Constant(0.1)), keras.optimizers.SGD(0.01)
    model.compile(keras.optimizers.MultiOptimizer(lambda v: kernels if v.name == "kernel" else rest), "mse")
    model.fit(*points(), epochs=3, verbose=0, callbacks=[plateau(factor=0.5)])
    assert [float(kernels.learning_rate), float(rest.learning_rate)] == pytest.approx([0.025, 0.0025])


@pytest.mark.slow
def test_plateau_on_two_devices_equals_one(run_python):
    program = """
import keras, numpy as np
from tfopt import schedules
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(32, 4))
strategy = tf.distribute.MirroredStrategy() if DEVICES == 2 else tf.distribute.get_strategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedules.Warmup(schedules.Linear(0.1, 90), 3)), "mse")
callback = schedules.Plateau("loss", factor=0.5, patience=1, min_delta=1e9)
history = model.fit(x, x.sum(1), batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[callback]).history
print(history["loss"] + history["learning_rate"])
"""
    one = run_python(f"import tensorflow as tf\nDEVICES = 1\n{program}")
    two = run_python(f"DEVICES = 2\n{program}", devices=2)
    np.testing.assert_allclose(eval(one.splitlines()[-1]), eval(two.splitlines()[-1]), rtol=1e-5)


# refusals


def silent():
    model = walking()
    model.train_step = lambda data: {"other": tf.constant(1.0)}
    model.train_function = None
    return model


def idle():
    model = walking()
    model.train_step = lambda data: {"loss": tf.reduce_mean(model(data[0]) ** 2)}
    return model


def uncompiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def several():
    model = line()
    model.compile(keras.optimizers.MultiOptimizer(lambda v: keras.optimizers.SGD(0.1)), "mse")
    return model


def no_number():
    x, y = points()
    return x, y * np.nan


def nothing():
    return tf.data.Dataset.from_tensor_slices(points()).batch(8).take(0)


def flat():
    x, y = points()
    return x * 0, y * 0


def still():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile("sgd", "mse")
    return model


REFUSED = [
    (lambda: schedules.Constant(-1), ValueError, "`learning_rate` must be"),
    (lambda: schedules.Linear(-1, 10), ValueError, "`start` must be"),
    (lambda: schedules.Linear(1, 0), ValueError, "`total` must be a whole number >= 1"),
    (lambda: schedules.Linear(1, 10, end=-1), ValueError, "`end` must be"),
    (lambda: schedules.Step(-1, factor=0.5, every=1), ValueError, "`start` must be"),
    (lambda: schedules.Step(1, factor=0, every=1), ValueError, "`factor` must be"),
    (lambda: schedules.Step(1, factor=0.5, every=0.5), ValueError, "`every` must be"),
    (lambda: schedules.OneCycle(0, 10), ValueError, "`peak` must be"),
    (lambda: schedules.OneCycle(1, 1), ValueError, "`total` must be"),
    (lambda: schedules.OneCycle(1, 10, warmup=10), ValueError, "`warmup` must be"),
    (lambda: schedules.OneCycle(1, 10, start=2), ValueError, "`start` must be"),
    (lambda: schedules.OneCycle(1, 10, end=2), ValueError, "`end` must be"),
    (lambda: schedules.Knee(0, 10), ValueError, "`peak` must be"),
    (lambda: schedules.Knee(1, 0), ValueError, "`total` must be"),
    (lambda: schedules.Knee(1, 10, warmup=-1), ValueError, "`warmup` must be"),
    (lambda: schedules.Knee(1, 10, explore=-1), ValueError, "`explore` must be"),
    (lambda: schedules.Knee(1, 10, warmup=6, explore=5), ValueError, "`warmup \\+ explore` must be at most `total`"),
    (lambda: schedules.InverseSqrt(0, warmup=1), ValueError, "`peak` must be"),
    (lambda: schedules.InverseSqrt(1, warmup=0), ValueError, "`warmup` must be"),
    (lambda: schedules.Cyclic(-1, 1, every=2), ValueError, "`low` must be"),
    (lambda: schedules.Cyclic(1, 1, every=2), ValueError, "`high` must be"),
    (lambda: schedules.Cyclic(1, 2, every=1), ValueError, "`every` must be"),
    (lambda: schedules.Warmup("cosine", 5), TypeError, "`schedule` must be a LearningRateSchedule or a number"),
    (lambda: schedules.Warmup(0.1, 0), ValueError, "`steps` must be"),
    (lambda: schedules.Join([0.1, None], [5]), TypeError, "`schedules` must be a list, each element a Learning"),
    (lambda: schedules.Join(0.1, [5]), TypeError, "`schedules` must be a list"),
    (lambda: schedules.Join([0.1, 0.2], 5), TypeError, "`boundaries` must be a list"),
    (lambda: schedules.Join([0.1, 0.2], [5, 6]), ValueError, "one element more"),
    (lambda: schedules.Join([0.1], []), ValueError, "`boundaries` must be a list"),
    (lambda: schedules.Join([0.1, 0.2, 0.3], [5, 5]), ValueError, "`boundaries` must rise"),
    (lambda: schedules.Join([0.1, 0.2], [0]), ValueError, "`boundaries` must be"),
    (lambda: schedules.Scaled(0.1, -1), ValueError, "`factor` must be"),
    (lambda: setattr(schedules.Scaled(0.1), "factor", -1), ValueError, "`factor` must be"),
    (lambda: schedules.Scaled("linear"), TypeError, "`schedule` must be"),
    (lambda: schedules.get("cosinus", 0.1, 10), ValueError, "`identifier` must be one of Constant, Linear"),
    (lambda: schedules.get("Constant", 0, 10), ValueError, "`learning_rate` must be"),
    (lambda: schedules.get("Linear", 0.1, 1), ValueError, "`total` must be"),
    (lambda: schedules.get("Linear", 0.1), ValueError, "needs `total`"),
    (lambda: schedules.get("Linear", total=9), ValueError, "needs `learning_rate`"),
    (lambda: schedules.get({"class_name": "Adam"}), ValueError, "must be the config of a schedule"),
    (lambda: schedules.get(keras.saving.serialize_keras_object(keras.optimizers.Adam())), ValueError, "the config of"),
    (lambda: schedules.OneCycle(max_lr=1, total=10), TypeError, "Did you mean `peak`"),
    (lambda: schedules.find(line(optimizer=keras.optimizers.ScheduleFreeAdamW), points()), ValueError,
     "must not average"),
    (lambda: schedules.find(3, points()), TypeError, "`model` must be a Keras 3 model"),
    (lambda: schedules.find(uncompiled(), points()), ValueError, "the model must be compiled"),
    (lambda: schedules.find(line(optimizer=None), points()), ValueError, "the model must be compiled"),
    (lambda: schedules.find(unbuilt(), points()), ValueError, "the model must be built"),
    (lambda: schedules.find(several(), points()), ValueError, "the optimizer must have one rate that can be set"),
    (lambda: schedules.find(line(), [1, 2]), ValueError, "`data` must hold x of the shape of the model"),
    (lambda: schedules.find(line(), points(), low=0), ValueError, "`low` must be"),
    (lambda: schedules.find(line(), points(), high=1e-9), ValueError, "`high` must be"),
    (lambda: schedules.find(line(), points(), steps=5), ValueError, "`steps` must be"),
    (lambda: schedules.find(line(), points(), batch_size=0), ValueError, "`batch_size` must be"),
    (lambda: schedules.find(line(), no_number(), verbose=0), ValueError, "`data` must be finite"),
    (lambda: schedules.find(line(), nothing(), verbose=0), ValueError, "at least one batch"),
    (lambda: schedules.find(still(), flat(), verbose=0), ValueError, "the loss must fall"),
    (lambda: schedules.find(silent(), points(), verbose=0), ValueError, "must return a `loss`"),
    (lambda: schedules.find(idle(), points(), verbose=0), ValueError, "train_step must use `self.optimizer`"),
    (lambda: schedules.Plateau(factor=1), ValueError, "`factor` must be"),
    (lambda: schedules.Plateau(patience=-1), ValueError, "`patience` must be"),
    (lambda: schedules.Plateau(mode="up"), ValueError, "`mode` must be"),
    (lambda: schedules.Plateau(min_delta=-1), ValueError, "`min_delta` must be"),
    (lambda: schedules.Plateau(cooldown=-1), ValueError, "`cooldown` must be"),
    (lambda: schedules.Plateau(min_lr=-1), ValueError, "`min_lr` must be"),
    (lambda: line(lambda: 0.1).fit(*points(), verbose=0, callbacks=[never()]), TypeError, "Plateau needs an optimizer"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "error", "words"), REFUSED)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_finding_shows_its_rates():
    finding = schedules.Finding(0.1, {"steep": 0.1}, pd.DataFrame())
    assert repr(finding) == "Finding(rate=0.1, rates={'steep': 0.1})"
