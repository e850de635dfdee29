"""compress.run on other tasks than classes of one output: what decides is told from the user's own model and data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import f1_score, log_loss

from tfopt import compress

LAYERS = keras.layers
STAGES = {"distill": (), "prune": (0.5,), "cluster": (8,), "quantize": ("int8",)}


class Batches(keras.utils.PyDataset):
    """(x, y) in batches of 16."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, i):
        return self.x[16 * i:16 * i + 16], self.y[16 * i:16 * i + 16]


class Own(keras.Model):
    """A subclassed model whose train_step computes its loss by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = LAYERS.Dense(32, "relu"), LAYERS.Dense(1)

    def call(self, x):
        return self.head(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(y - self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def table(rng):
    x = rng.normal(size=(64, 8)).astype("float32")
    return x, (x[:, :1] + 0.3 * x[:, 1:2] + 2).astype("float32")


def regression(rng):
    x, y = table(rng)
    model = keras.Sequential([keras.Input((8,)), LAYERS.Dense(32, "relu"), LAYERS.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model, (x, y), lambda y, outputs: np.mean((y - outputs) ** 2)


def segmentation(rng):
    x = rng.uniform(size=(48, 16, 16, 3)).astype("float32")
    y = (x.mean(-1) > 0.5).astype("int32")
    model = keras.Sequential([keras.Input((16, 16, 3)), LAYERS.Conv2D(16, 3, padding="same", activation="relu"),
                              LAYERS.Conv2D(2, 1)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (x, y), lambda y, outputs: 1 - np.mean(outputs.argmax(-1) == y)


def two_outputs(rng):
    x, y = table(rng)
    inputs = keras.Input((8,), name="x")
    body = LAYERS.Dense(32, "relu")(inputs)
    model = keras.Model(inputs, {name: LAYERS.Dense(1, name=name)(body) for name in ("kind", "size")})
    losses = {"kind": keras.losses.BinaryCrossentropy(from_logits=True), "size": "mae"}
    model.compile(keras.optimizers.Adam(0.01), losses,
                  loss_weights={"kind": 1.0, "size": 0.5})

    def loss(y, outputs):
        kind = np.mean(np.logaddexp(0, outputs["kind"]) - y["kind"] * outputs["kind"])
        return kind + 0.5 * np.mean(np.abs(y["size"] - outputs["size"]))

    return model, (x, {"kind": (y > 2).astype("float32"), "size": y}), loss


def several_labels(rng):
    x, _ = table(rng)
    model = keras.Sequential([keras.Input((8,)), LAYERS.Dense(32, "relu"), LAYERS.Dense(3, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    return model, (x, (x[:, :3] > 0).astype("float32")), (
        lambda y, outputs: 1 - np.mean(((outputs > 0.5) == y).all(-1)))


def padded_sequences(rng):
    x = rng.integers(1, 20, (64, 12)) * (np.arange(12) < rng.integers(3, 12, (64, 1)))
    model = keras.Sequential([keras.Input((12,), dtype="int32"), LAYERS.Embedding(20, 16, mask_zero=True),
                              LAYERS.GRU(16), LAYERS.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    return model, (x, (x[:, 0] > 10).astype("float32")), lambda y, outputs: 1 - np.mean((outputs[:, 0] > 0.5) == y)


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.slow) if slow else task for task, slow in (
    (regression, False), (segmentation, True), (two_outputs, False), (several_labels, True), (padded_sequences, True))])
def test_the_drop_is_that_of_the_users_model_and_data(task, rng):
    """Recomputed by NumPy from the models in the result: of accuracy in points, of losses as a share."""
    model, (x, y), error = task(rng)
    model.fit(x, y, epochs=3, verbose=0)
    result = compress.run(model, (x, y), (x, y), test=(x, y), stages=STAGES, max_drop=1e3, epochs=1)
    kept = result.tried[result.tried.kept].set_index("stage")
    assert set(kept.index) == {"original", *STAGES} - {"distill"} - ({"quantize"} if result.lite is None else set())
    own, best = error(y, model.predict(x, verbose=0)), error(y, result.best.predict(x, verbose=0))
    in_points = task in (segmentation, several_labels, padded_sequences)
    assert kept["drop"]["cluster"] == pytest.approx(best - own if in_points else best / own - 1, abs=1e-5)
    if result.lite is not None:
        lite = error(y, result.lite.predict(x))
        assert kept["drop"]["quantize"] == pytest.approx(lite - own if in_points else lite / own - 1, abs=1e-5)
    assert kept.sparsity["prune"] > 0.4
    assert kept["values"]["cluster"] <= 8 or task is padded_sequences            # its biases have two axes too


@pytest.mark.slow
def test_datasets_weights_and_ones_own_train_step(rng):
    x, y = table(rng)
    model = Own(name="own")
    model.compile(keras.optimizers.Adam(0.01))
    model(x)
    model.fit(x, y, epochs=3, verbose=0)
    with pytest.raises(ValueError, match="without a compiled loss needs a `measure`"):
        compress.run(model, (x, y), (x, y), stages={"prune": (0.5,)}, epochs=1)
    result = compress.run(model, Batches(x, y), Batches(x, y), stages={"prune": (0.5,)}, epochs=1, max_drop=1e3,
                          measure=lambda y, outputs: -np.mean((y - outputs) ** 2))
    assert type(result.best) is Own
    assert result.tried.kept.tolist() == [True, True]
    assert result.tried.sparsity[1] == pytest.approx(0.5, abs=0.02)

    plain, (x, y), _ = regression(rng)
    weights = (np.arange(64) < 32).astype("float32")
    unknown = tf.data.Dataset.from_generator(lambda: iter([(x, y, weights)] * 2), output_signature=tuple(
        tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y, weights)))
    for train in ((x, y, weights), unknown):
        tried = compress.run(plain, train, (x, y, weights), test=(x, y), stages={"prune": (0.5,)}, epochs=1,
                             max_drop=1e3).tried
        assert tried.kept.tolist() == [True, True]


@pytest.mark.slow
def test_a_weight_of_zero_takes_an_example_out_of_training_and_of_the_choice(rng):
    """What the weights leave out may hold anything: the run ends with the same weights and the same drop."""
    model, (x, y), _ = regression(rng)
    model.fit(x, y, verbose=0)
    weights, found = (np.arange(64) < 32).astype("float32"), []
    for there in (0.0, 1e3):
        spoilt = y + there * (1 - weights[:, None])
        result = compress.run(model, (x, spoilt, weights), (x, spoilt, weights), test=(x, y), max_drop=1e3, epochs=1,
                              stages={"prune": (0.5,)})
        found.append((result.best.get_weights(), result.tried["drop"].tolist()))
    keras.tree.map_structure(np.testing.assert_allclose, *found)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reference"), [
    ("f1_macro", lambda y, outputs: f1_score(y, outputs.argmax(-1), average="macro")),
    ("log_loss", lambda y, outputs: -log_loss(y, keras.ops.softmax(outputs).numpy(), labels=range(3)))])
def test_a_measure_by_name_is_scikit_learns(rng, name, reference):
    x = rng.normal(size=(90, 8)).astype("float32")
    y = x[:, :3].argmax(-1)
    model = keras.Sequential([keras.Input((8,)), LAYERS.Dense(32, "relu"), LAYERS.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=5, verbose=0)
    result = compress.run(model, (x, y), (x, y), test=(x, y), stages={"prune": (0.8,), "quantize": ("int8",)},
                          measure=name, max_drop=10, epochs=1)
    own = reference(y, model.predict(x, verbose=0))
    expected = [own - reference(y, outputs) for outputs in (result.best.predict(x, verbose=0), result.lite.predict(x))]
    np.testing.assert_allclose(result.tried["drop"][1:], expected, atol=1e-5)
