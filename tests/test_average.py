"""Ensembles, soups and averages over training equal their definition in numpy; the models stay as they were."""

import json

import keras
import numpy as np
import pytest

from tfopt import augment, average, distill

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units=5, *, classes=3, activation=None, seed=0, normalize=False):
    start = keras.initializers.GlorotUniform(seed)
    layers = [keras.layers.Dense(units, kernel_initializer=start)]
    layers += [keras.layers.BatchNormalization()] if normalize else []
    layers += [keras.layers.ReLU(), keras.layers.Dropout(0.3, seed=1),
               keras.layers.Dense(classes, activation, kernel_initializer=start)]
    return keras.Sequential([keras.Input((4,)), *layers])


def batch(rng, count=64):
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, 3, count)


def snapshot(models):
    return [[w.copy() for w in model.get_weights()] for model in models]


def test_outputs_are_the_weighted_mean(rng, tmp_path):
    x, _ = batch(rng)
    models = [dense(5), dense(8, seed=1), dense(3, seed=2)]
    models[1].trainable = False
    before = snapshot(models)
    together = average.outputs(models, weights=[1, 2, 5])
    expected = sum(w * np.float64(model(x)) for w, model in zip((1, 2, 5), models, strict=True)) / 8
    np.testing.assert_allclose(together(x), expected, atol=1e-6)
    together.save(tmp_path / "together.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "together.keras")(x), together(x))
    for variable in together.variables:
        variable.assign(variable * 0)
    for now, then in zip(snapshot(models), before, strict=True):
        assert all(map(np.array_equal, now, then))


def test_outputs_of_several_heads(rng):
    def build(seed):
        inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
        hidden = keras.layers.Add()([dense(5, seed=seed)(inputs["a"]), inputs["b"][:, :3]])
        return keras.Model(inputs, {"one": hidden, "two": keras.layers.Dense(1)(hidden)})

    models, x = [build(0), build(1)], {"a": batch(rng)[0], "b": batch(rng)[0]}
    found, expected = average.outputs(models)(x), [model(x) for model in models]
    for name in ("one", "two"):
        np.testing.assert_allclose(found[name], (expected[0][name] + expected[1][name]) / 2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_an_ensemble_as_teacher(rng, activation):
    x, _ = batch(rng)
    teacher = average.outputs([dense(8, activation=activation), dense(8, activation=activation, seed=1)],
                              weights=[0.3, 0.9])
    made = distill.Distiller(teacher, dense(4, seed=2), distill.Logits(1.))
    made.compile(keras.optimizers.Adam(0.03))
    loss = made.fit(x, epochs=15, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    p = keras.ops.softmax(teacher(x)) if activation is None else teacher(x)
    q = keras.ops.sigmoid(made.student(x)) if activation == "sigmoid" else keras.ops.softmax(made.student(x))
    expected = (p * np.log(p / q)).numpy()
    if activation == "sigmoid":
        expected += ((1 - p) * np.log((1 - p) / (1 - q))).numpy()
    assert made.evaluate(x, verbose=0, batch_size=64) == pytest.approx(expected.sum(-1).mean(), rel=1e-4)


def test_weights_are_the_mean(rng):
    models = [dense(seed=seed) for seed in range(3)]
    before = snapshot(models)
    soup = average.weights(models)
    for found, *parts in zip(soup.get_weights(), *before, strict=True):
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-7)
    assert not soup.compiled
    for now, then in zip(snapshot(models), before, strict=True):
        assert all(map(np.array_equal, now, then))


def test_a_greedy_soup_leaves_out_what_hurts():
    def constant(value):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.set_weights([np.zeros((1, 1)), np.float32([value])])
        return model

    tried = []

    def score(model):
        tried.append(float(model.layers[0].bias[0]))
        return -abs(tried[-1] - 1.0)

    soup = average.weights([constant(value) for value in (100., 0., 2.5, 2.2)], score=score)
    # by score: 0 (-1), 2.2 (-1.2), 2.5 (-1.5), 100. 0 & 2.2 -> 1.1 kept; & 2.5 -> 1.567 worse; & 100 worse.
    assert float(soup.layers[0].bias[0]) == pytest.approx(1.1)
    assert len(tried) == 4 + 3


def test_a_batch_norm_update_gives_the_moments_of_the_data(rng):
    """Sorted, with a short last batch: neither the batches' means nor their number may count."""
    x = np.sort(batch(rng, 150)[0], axis=0) * 5
    model = dense(normalize=True)
    before = snapshot([model])[0]
    found = average.update_batch_norm(model, x)
    layer = next(layer for layer in found.layers if isinstance(layer, keras.layers.BatchNormalization))
    hidden = np.float64(x) @ before[0] + before[1]
    np.testing.assert_allclose(layer.moving_mean, hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, hidden.var(0), rtol=1e-5)
    assert not np.allclose(hidden[:128].reshape(2, 64, -1).var(1).mean(0), hidden.var(0), rtol=0.1)   # control
    assert layer.momentum == 0.99
    assert all(map(np.array_equal, snapshot([model])[0], before))
    for mine, theirs in zip(found.variables, model.variables, strict=True):              # the dropout's state too
        assert "moving" in mine.path or np.array_equal(mine, theirs)


class Recorder(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights = [[v.numpy() for v in self.model.trainable_variables]]

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append([v.numpy() for v in self.model.trainable_variables])


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_swa_equals_its_definition(rng, momentum):
    x, y = batch(rng)
    model, recorder = dense(), Recorder()
    model.compile(keras.optimizers.SGD(0.5), SPARSE)
    swa = average.SWA(3, 2, momentum=momentum)
    model.fit(x, y, batch_size=16, epochs=3, callbacks=[recorder, swa], verbose=0)
    moments = [[np.float64(w) for w in recorder.weights[step]] for step in (3, 5, 7, 9, 11)]
    expected = moments[0]
    for count, now in enumerate(moments[1:], 1):
        share = 1 / (count + 1) if momentum is None else 1 - momentum
        expected = [(1 - share) * old + share * new for old, new in zip(expected, now, strict=True)]
    assert swa.count == 5
    for variable, mean in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, mean, atol=1e-6)


def test_swa_estimates_statistics_of_the_mean(rng):
    x, y = batch(rng)
    model = dense(normalize=True)
    model.compile(keras.optimizers.SGD(0.5), SPARSE)
    model.fit(x, y, epochs=3, callbacks=[average.SWA(2, 2, data=x)], verbose=0)
    expected = average.update_batch_norm(model, x)
    for found, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_swa_averages_a_distillers_student(rng):
    x, y = batch(rng)
    student, recorder = dense(), Recorder()
    made = distill.Distiller(dense(8), student, distill.Logits())
    made.compile(keras.optimizers.SGD(0.5), SPARSE)
    made.fit(x, y, batch_size=32, epochs=2, callbacks=[recorder, average.SWA(1, 1)], verbose=0)
    expected = np.mean([w[0] for w in recorder.weights[1:]], 0)
    np.testing.assert_allclose(student.trainable_variables[0], expected, atol=1e-6)


STEPS = """
import json, numpy as np, keras
from tfopt import average
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, 3, 64)

def train(strategy):
    with strategy.scope():
        start = keras.initializers.GlorotUniform(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, kernel_initializer=start),
                                  keras.layers.BatchNormalization(synchronized=True), keras.layers.ReLU(),
                                  keras.layers.Dense(3, kernel_initializer=start)])
        model.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    model.fit(data, epochs=3, verbose=0, callbacks=[average.SWA(4, 2, data=x)])
    soup = average.weights([model, model])
    return np.concatenate([np.ravel(w) for w in [*model.get_weights(), *soup.get_weights()]])

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps(float(np.abs(train(one) - train(two)).max())))
"""


@pytest.mark.slow
def test_two_devices_equal_one(run_python):
    assert json.loads(run_python(STEPS, devices=2).splitlines()[-1]) < 1e-5


REFUSED = {
    "one model": (lambda: average.outputs([dense()]), "a list of at least 2"),
    "no list": (lambda: average.weights(dense()), "a list of at least 2"),
    "unbuilt": (lambda: average.outputs([dense(), keras.Sequential([keras.layers.Dense(3)])]), "needs a built"),
    "other outputs": (lambda: average.outputs([dense(), dense(classes=4)]), "the same inputs and outputs"),
    "other weights": (lambda: average.weights([dense(), dense(8)]), "the same weights"),
    "count": (lambda: average.outputs([dense(), dense()], weights=[1]), "one number for each model"),
    "negative": (lambda: average.outputs([dense(), dense()], weights=[1, -1]), "each element a number > 0"),
    "score": (lambda: average.weights([dense(), dense()], score=lambda model: float("nan")),
              r"`score\(model\)` must be a number"),
    "start": (lambda: average.SWA(-1, 1), "`start`"), "every": (lambda: average.SWA(0, 0), "`every`"),
    "momentum": (lambda: average.SWA(0, 1, momentum=1), "`momentum`"),
    "no data": (lambda: average.update_batch_norm(dense(normalize=True), np.zeros((0, 4))),
                "average.update_batch_norm: .*data"),
}


@pytest.mark.parametrize(("make", "rule"), REFUSED.values(), ids=REFUSED)
def test_refused(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_swa_refuses_what_it_could_not_do(rng):
    x, y = batch(rng)
    model = dense()
    model.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=r"must start before training ends\. Received: start=100, steps=2"):
        model.fit(x, y, callbacks=[average.SWA(100, 1)], verbose=0)
    model = dense(normalize=True)
    model.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match="needs `data` for a model with batch normalization"):
        model.fit(x, y, callbacks=[average.SWA(0, 1)], verbose=0)


def test_batch_norm_is_updated_wherever_it_is(rng):
    """In a subclassed model, inside a layer, twice in one graph; masked steps do not count; frozen ones keep theirs."""
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, x):
            return self.norm(x)

    x = rng.normal(3, 2, size=(90, 4)).astype("float32")
    net = Net()
    net(x)
    np.testing.assert_allclose(average.update_batch_norm(net, x).norm.moving_variance, np.float64(x).var(0), rtol=1e-5)

    inputs, norm = keras.Input((4,)), keras.layers.BatchNormalization(name="shared")
    twice = keras.Model(inputs, norm(inputs) + norm(inputs * 3.0))
    both = np.concatenate([np.float64(x), 3 * np.float64(x)])
    np.testing.assert_allclose(average.update_batch_norm(twice, x).get_layer("shared").moving_mean, both.mean(0),
                               rtol=1e-5)

    steps = rng.normal(2, 1, size=(20, 6, 3)).astype("float32")
    steps[::2, 3:] = 0
    masked = keras.Sequential([keras.Input((6, 3)), keras.layers.Masking(), keras.layers.BatchNormalization()])
    real = np.float64(steps)[(steps != 0).any(-1)]
    found = average.update_batch_norm(masked, steps).layers[1]
    np.testing.assert_allclose(found.moving_mean, real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.moving_variance, real.var(0), rtol=1e-5)
    masked.layers[1].trainable = False
    np.testing.assert_array_equal(average.update_batch_norm(masked, steps).layers[1].moving_mean, np.zeros(3))


def adam(**options):
    return keras.optimizers.Adam(0.05, **options)


@pytest.mark.parametrize("optimizer", [
    lambda: adam(gradient_accumulation_steps=2), lambda: keras.optimizers.LossScaleOptimizer(adam()),
    lambda: keras.optimizers.ScheduleFreeAdamW(0.05), lambda: keras.optimizers.Muon(0.05),
    lambda: adam(use_ema=True, ema_momentum=0.9)], ids=["accumulation", "loss scale", "schedule free", "muon", "ema"])
def test_swa_counts_the_steps_of_every_optimizer(rng, optimizer):
    x, y = batch(rng)
    model, recorder = dense(), Recorder()
    model.compile(optimizer(), SPARSE)
    swa = average.SWA(1, 1)
    model.fit(x, y, batch_size=16, epochs=2, callbacks=[recorder, swa], verbose=0)
    every = 2 if model.optimizer.gradient_accumulation_steps else 1
    assert swa.count == 8 // every
    expected = np.mean([weights[0] for weights in recorder.weights[every::every]], 0)
    np.testing.assert_allclose(model.trainable_variables[0], expected, atol=1e-6)


def test_two_inputs_are_not_an_input_and_its_target(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], keras.layers.BatchNormalization(name="norm")(a + 2.0 * b))
    x = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 3)).astype("float32")
    found = average.update_batch_norm(model, x).get_layer("norm")
    np.testing.assert_allclose(found.moving_mean, (np.float64(x[0]) + 2 * x[1]).mean(0), atol=1e-5)


class Own(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + 100.0


def test_a_soup_and_an_update_keep_the_class(rng):
    inputs = keras.Input((4,))
    model, (x, y) = Own(inputs, keras.layers.Dense(3)(keras.layers.BatchNormalization()(inputs))), batch(rng)
    for made in (average.weights([model, model]), average.update_batch_norm(model, x)):
        made.compile("sgd", SPARSE)
        assert made.evaluate(x, y, verbose=0) > 100


def pictures():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu"),
                             keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])


def test_views_of_a_list_are_averaged(rng):
    model, x = pictures(), rng.normal(size=(5, 8, 8, 3)).astype("float32")
    turned = [lambda x: x, lambda x: x[:, :, ::-1], lambda x: x[:, ::-1]]
    expected = np.mean([model(view(x)) for view in turned], axis=0)
    np.testing.assert_allclose(average.views(model, turned)(x), expected, atol=1e-6)


@pytest.mark.slow
def test_views_of_a_pipeline_are_those_of_its_epochs(rng, tmp_path):
    model, x = pictures(), rng.uniform(0, 255, size=(5, 8, 8, 3)).astype("float32")
    pipeline = augment.Pipeline([augment.Flip(), augment.Translate(0.2)], seed=4, jit_compile=False)
    made = average.views(model, pipeline, n=4)
    seen = [x, *(pipeline.apply(x, epoch=epoch, index=np.zeros(5, "int64")) for epoch in (1, 2, 3))]
    assert not np.allclose(seen[1], x)
    np.testing.assert_allclose(made(x), np.mean([model(view) for view in seen], axis=0), atol=1e-5)
    np.testing.assert_allclose(made(x)[2:3], made(x[2:3]), atol=1e-6)                    # wherever it stands in a batch
    made.save(tmp_path / "views.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "views.keras")(x), made(x))


@pytest.mark.parametrize(("given", "rule"), [
    ([], "`views` must be"), (keras.layers.ReLU(), "must be an augment.Pipeline"),
    (augment.Pipeline([augment.MixUp()]), "does not mix examples"),
    ([lambda x: x[:, 1:]], "must have the shape of the input")])
def test_views_refused(given, rule):
    with pytest.raises(ValueError, match=rf"^average\.views: .*{rule}"):
        average.views(pictures(), given)
