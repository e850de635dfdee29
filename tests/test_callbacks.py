"""Resume: a training that is broken off and started again ends as one that is not."""

import functools
import gc
import pathlib
import shutil
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import augment, average, callbacks, distill, prune, schedules
from tfopt import data as batches

VERIFY = pathlib.Path(__file__).parent.parent / "benchmarks" / "verify" / "resume.py"
X = np.random.default_rng(1).normal(size=(50, 6)).astype("float32")
Y = np.random.default_rng(2).integers(0, 3, 50)
SUM = "sparse_categorical_crossentropy"


class BrokenOffError(Exception):
    pass


class Break(keras.callbacks.Callback):
    """Raises after so many batches; counts them where no restart brings them back."""

    def __init__(self, batches):
        super().__init__()
        self.left = iter(range(batches - 1))

    def on_train_batch_end(self, batch, logs=None):
        if next(self.left, None) is None:
            raise BrokenOffError


class Tally(keras.callbacks.Callback):
    """A user's callback that holds plain data of several kinds."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.counts, self.last = seen, {}, None

    def on_train_batch_end(self, batch, logs=None):
        self.counts[batch] = self.counts.get(batch, 0) + 1

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["loss"]))
        self.last = np.float32(logs["loss"])


def classifier(optimizer="adam", units=5, metrics=("accuracy",)):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, "relu"), keras.layers.Dropout(0.4),
                              keras.layers.BatchNormalization(), keras.layers.Dense(3, "softmax")])
    model.compile(optimizer, SUM, metrics=list(metrics))
    return model


def train(folder=None, *, broken=None, every=2, seed=3, build=classifier, data=None, epochs=4, others=(), **options):
    """(values of all variables, history) of a training from scratch, or of what a broken one left in `folder`."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    model = build()
    acting = [*([] if folder is None else [callbacks.Resume(folder, every=every)]), *(make() for make in others)]
    acting += [] if broken is None else [Break(broken)]
    given = dict(x=X, y=Y, batch_size=10) if data is None else dict(x=data(), shuffle=False)
    try:
        history = model.fit(**given, epochs=epochs, verbose=0, callbacks=acting, **options)
    except BrokenOffError:
        return None
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]], history.history


def same(one, other):
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)


OTHERS = [
    lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10),
    lambda: keras.callbacks.EarlyStopping("val_accuracy", patience=9, restore_best_weights=True),
    lambda: average.SWA(start=3, every=2, data=X),
]


MORE = {"others": OTHERS, "validation_data": (X, Y)}


@functools.cache
def whole(more=False):
    """Never broken off, and without Resume."""
    return train(**(MORE if more else {}))


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "every"), [(1, 2), (10, 5), (18, 3), (11, None)])
def test_a_broken_training_ends_as_a_whole_one(tmp_path, broken, every):
    train(tmp_path, broken=broken, every=every, **MORE)
    same(train(tmp_path, every=every, **MORE), whole(more=True))


@pytest.mark.slow
def test_broken_again_and_again(tmp_path):
    seen, counted = [], []
    tally = lambda: counted.append(Tally(seen)) or counted[-1]             # noqa: E731
    for broken in (3, 6, 4):
        train(tmp_path, broken=broken, others=[tally])
    result = train(tmp_path, others=[tally])
    same(result, whole())
    assert [loss for _, loss in counted[-1].seen] == result[1]["loss"]
    assert counted[-1].counts == dict.fromkeys(range(5), 4)
    assert type(counted[-1].last) is np.float32


@pytest.mark.slow
def test_without_a_restart_nothing_is_changed(tmp_path):
    same(train(tmp_path), whole())


def linear():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", SUM)
    return model


def shuffled(seed):
    return lambda: tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(30, seed=seed).batch(10)


class Slices(keras.utils.PyDataset):
    """Shuffles its rows after each epoch, as users do."""

    def __init__(self):
        super().__init__()
        self.rows = np.arange(50)

    def __len__(self):
        return 5

    def __getitem__(self, number):
        rows = self.rows[10 * number:10 * number + 10]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.rows)


def generated():
    rng = np.random.default_rng(0)
    while True:
        rows = rng.integers(0, 50, 10)
        yield X[rows], Y[rows]


REPLAYABLE = {
    "reshuffled": shuffled(1),
    "cached in a shuffled order": lambda: shuffled(1)().cache(),
    "two in a row": lambda: shuffled(1)().take(3).concatenate(shuffled(2)().take(2)),
    "filtered, of unknown length": lambda: shuffled(1)().filter(lambda x, y: tf.reduce_sum(y) >= 0),
    "PyDataset": Slices,
    "data.arrays, mapped": lambda: batches.arrays(X, Y, 10).map(lambda x, y: (x * 2, y)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPLAYABLE)
def test_data_come_again_in_their_order(tmp_path, kind):
    options = {"data": REPLAYABLE[kind], "build": linear, "epochs": 3}
    train(tmp_path, broken=12, **options)
    same(train(tmp_path, **options), train(**options))


def test_a_shuffled_pydataset(tmp_path):
    """Keras draws the order of its batches from Python's random numbers."""
    def trained(folder=None, broken=None):
        keras.utils.set_random_seed(3)
        model = linear()
        given = [] if folder is None else [callbacks.Resume(folder, every=2)]
        try:
            model.fit(Slices(), epochs=3, verbose=0, shuffle=True,
                      callbacks=[*given, *([Break(broken)] if broken else [])])
        except BrokenOffError:
            return None
        return model.get_weights()

    trained(tmp_path, broken=9)
    for mine, theirs in zip(trained(tmp_path), trained(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", ["repeated", "generator"])
def test_data_without_an_end(tmp_path, kind):
    data = {"repeated": lambda: shuffled(1)().repeat(), "generator": generated}[kind]
    options = {"data": data, "steps_per_epoch": 4, "build": linear}
    train(tmp_path, broken=10, **options)
    same(train(tmp_path, **options), train(**options))


@pytest.mark.slow
def test_shuffled_arrays_without_a_seed(run_python):
    """In a process of its own, where TensorFlow has no seed: each epoch has an order, and it comes again."""
    run_python(f"""
import shutil, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import keras, numpy as np
import test_callbacks as here

def build():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax", kernel_initializer="zeros")])
    model.compile("adam", here.SUM)
    return model

for shuffle in (True, "batch"):
    options = dict(seed=None, build=build, shuffle=shuffle, every=3)
    here.train(f"one-{{shuffle}}", broken=8, **options)
    shutil.copytree(f"one-{{shuffle}}", f"two-{{shuffle}}")
    one = here.train(f"one-{{shuffle}}", **options)
    here.train(f"two-{{shuffle}}", broken=5, **options)
    here.same(here.train(f"two-{{shuffle}}", **options), one)
    other = here.train(f"three-{{shuffle}}", **options)
    assert not np.array_equal(one[0][0], other[0][0]), "the order is drawn anew for a new training"
""")


def unseeded():
    x = X + np.random.default_rng().normal(size=X.shape).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, Y)).batch(10)


def test_data_that_do_not_come_again_are_refused_in_an_epoch_and_told_after_one(tmp_path):
    options = {"data": unseeded, "build": linear, "epochs": 2}
    train(tmp_path / "inside", broken=4, **options)
    with pytest.raises(ValueError, match="in the middle of an epoch only with the same data in the same order"):
        train(tmp_path / "inside", **options)
    train(tmp_path / "after", broken=7, every=None, **options)
    with pytest.warns(UserWarning, match="the data come in another order than before"):
        train(tmp_path / "after", every=None, **options)


@pytest.mark.slow
def test_another_seed_is_refused(tmp_path):
    train(tmp_path, broken=4)
    with pytest.raises(ValueError, match="first_batch='another one'"):
        train(tmp_path, seed=4)


@pytest.mark.parametrize(("change", "words"), [
    ({"build": lambda: classifier(units=6)}, r"the model .* variable 0 differs. Received: saved=\[\[6, 5\]"),
    ({"build": lambda: classifier("sgd")}, "the optimizer .* number of variables differs"),
    ({"build": lambda: classifier(keras.optimizers.Adam(0.01))}, "the settings .* 'learning_rate' differs"),
    ({"data": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(25)}, "the data .* 'batches' differs"),
    ({"data": lambda: tf.data.Dataset.from_tensor_slices((X, Y[:, None])).batch(10)}, "the data .* 'arrays' differs"),
    ({"build": lambda: classifier(metrics=())}, "the metrics .* number of variables differs"),
])
def test_another_training_is_refused(tmp_path_factory, change, words):
    tmp_path = tmp_path_factory.getbasetemp() / "refused"
    if not tmp_path.exists():
        train(tmp_path, broken=4)
    with pytest.raises(ValueError, match=words) as caught:
        train(tmp_path, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_training_that_ended_says_so_and_goes_on_with_more_epochs(tmp_path):
    first = train(tmp_path, epochs=3, others=OTHERS[:1])
    with pytest.warns(UserWarning, match="ended after 3 epochs; nothing is left to do for epochs=3"):
        same(train(tmp_path, epochs=3, others=OTHERS[:1]), first)
    same(train(tmp_path, epochs=5, others=OTHERS[:1]), train(epochs=5, others=OTHERS[:1]))


def test_a_training_that_was_stopped_stays_so(tmp_path):
    others = [lambda: keras.callbacks.EarlyStopping("loss", min_delta=9, patience=1, restore_best_weights=True)]
    first = train(tmp_path, others=others)
    assert len(first[1]["loss"]) == 2
    with pytest.warns(UserWarning, match="was stopped by a callback after 2 epochs"):
        same(train(tmp_path, epochs=9, others=others), first)


@pytest.mark.slow
def test_a_second_fit_starts_clean(tmp_path):
    train(tmp_path, broken=12)
    keras.utils.set_random_seed(3)
    model = classifier()
    model.fit(X, Y, batch_size=10, epochs=4, verbose=0, callbacks=[callbacks.Resume(tmp_path, every=2)])
    history = model.fit(X, Y, batch_size=10, epochs=2, verbose=0)
    assert history.epoch == [0, 1]
    assert len(history.history["loss"]) == 2
    other = model.fit(X, Y, batch_size=10, epochs=1, verbose=0, callbacks=[callbacks.Resume(tmp_path / "other")])
    assert other.epoch == [0]


def mixed():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return classifier()
    finally:
        keras.config.set_dtype_policy("float32")


def held():
    return classifier(keras.optimizers.SGD(schedules.Linear(0.5, total=100), momentum=0.9))


def distilled():
    layers = keras.layers
    teacher, student = (keras.Sequential([keras.Input((6,)), layers.Dense(units, "relu"), layers.Dropout(0.2),
                                          layers.Dense(3)]) for units in (9, 4))
    model = distill.Distiller(teacher, student, distill.Logits())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def deferred():
    layers = keras.layers
    model = keras.Sequential([layers.Dense(4, "relu"), layers.Dropout(0.5), layers.Dense(3, "softmax")])
    model.compile("adam", SUM, metrics=["accuracy"])
    return model


def several():
    model = classifier()
    model.compile("rmsprop", SUM, metrics=["accuracy"], steps_per_execution=2)
    return model


def bfloat():
    return classifier(keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=7))


@pytest.mark.slow
def accumulating():
    return classifier(keras.optimizers.Adam(0.01, gradient_accumulation_steps=3))


def two_optimizers():
    return classifier(keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(
        keras.optimizers.Adam(0.01), {".*kernel.*": keras.optimizers.SGD(0.1, momentum=0.9)})))


def schedule_free():
    return classifier(keras.optimizers.ScheduleFreeAdamW(0.01))


def pruned():
    model = prune.wrap(keras.Sequential([keras.Input((6,)), keras.layers.Dense(9, "relu"), keras.layers.Dropout(0.5),
                                         keras.layers.Dense(3, "softmax")]), 0.5, end=12)
    model.compile("adam", SUM)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("build", [mixed, held, distilled, deferred, several, bfloat, accumulating, two_optimizers,
                                   schedule_free, pruned], ids=lambda build: build.__name__)
def test_models_and_optimizers(tmp_path, build):
    others = [lambda: schedules.Plateau("loss", factor=0.5, patience=0, min_delta=9)] if build is held else []
    options = {"build": build, "others": others, "epochs": 3}
    train(tmp_path, broken=9 if build is not several else 5, **options)
    same(train(tmp_path, **options), train(**options))


@pytest.mark.slow
def test_augmentation_in_the_model_and_in_the_data(tmp_path):
    images, labels = np.random.default_rng(0).uniform(0, 1, (24, 8, 8, 1)).astype("float32"), np.arange(24) % 3
    layer = lambda: augment.Pipeline([augment.Rotate()], value_range=(0, 1), jit_compile=False)       # noqa: E731

    def build():
        model = keras.Sequential([keras.Input((8, 8, 1)), layer(), keras.layers.Flatten(),
                                  keras.layers.Dense(3, "softmax")])
        model.compile("adam", SUM)
        return model

    data = {"arrays": lambda: batches.arrays(images, labels, 6, augment=layer()),
            "map": lambda: tf.data.Dataset.from_tensor_slices((images, labels)).enumerate().batch(6).map(layer().map)}
    for kind, make in data.items():
        options = {"build": build, "data": make, "epochs": 3}
        train(tmp_path / kind, broken=10, **options)
        same(train(tmp_path / kind, **options), train(**options))


def test_what_cannot_be_saved_is_told(tmp_path):
    class Holder(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.thing = object()

    with pytest.warns(UserWarning, match=r"will miss what these callbacks hold: Holder.thing \(object\)"):
        train(tmp_path, others=[Holder], build=linear, epochs=1)


def test_two_that_restart_are_refused(tmp_path):
    for other in (callbacks.Resume(tmp_path), keras.callbacks.BackupAndRestore(tmp_path)):
        with pytest.raises(ValueError, match="the only callback that restarts"):
            train(tmp_path / "here", others=[lambda other=other: other], build=linear)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"directory": ""}, "`directory` must be a path"), ({"directory": 3}, "`directory` must be a path"),
    ({"directory": "x", "every": 0}, "`every` must be None or a whole number >= 1"),
    ({"directory": "x", "max_to_keep": 0}, "`max_to_keep` must be a whole number >= 1")])
def test_arguments_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.Resume(**arguments)


def test_outside_of_fit_it_is_refused(tmp_path):
    resume = callbacks.Resume(tmp_path)
    resume.set_model(classifier())
    with pytest.raises(ValueError, match="must be called by keras"):
        resume.on_train_begin()


def test_in_a_training_loop_of_ones_own_it_is_refused(tmp_path):
    model = classifier()
    by_hand = keras.callbacks.CallbackList([callbacks.Resume(tmp_path)], model=model, epochs=1)
    with pytest.raises(ValueError, match=r"works inside keras\.Model\.fit alone"):
        by_hand.on_epoch_begin(0)


def test_at_most_every_batches_are_redone(tmp_path):
    done = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            done.append(int(self.model.optimizer.iterations))

    for broken in (6, 9, 4):
        before = done[-1] if done else 0
        train(tmp_path, broken=broken, every=3, others=[Count], build=linear)
        start = done[len(done) - broken]
        assert before - 3 < start <= before + 1
    assert before == 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lambda: (X, Y), lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),)],
                         ids=["arrays", "tf.data"])
def test_keeps_no_model_alive(tmp_path, kind):
    """TensorFlow never forgets the functions that its data sets call."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", SUM)
    model.fit(*kind(), verbose=0, callbacks=[callbacks.Resume(tmp_path)])
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


class Following(keras.Model):
    """Its step moves one part by an optimizer of its own, another by the compiled one, and a third by neither."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
                                               for _ in range(3))

    def compile(self, other, **options):
        super().compile(**options)
        self.other = other

    def call(self, x):
        return self.first(x) + self.second(x) + self.third(x)

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape(persistent=True) as tape:
            loss = keras.ops.mean(self(x) ** 2)
        for optimizer, part in ((self.optimizer, self.first), (self.other, self.second)):
            weights = part.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


def test_a_step_that_moves_some_weights_by_two_optimizers(tmp_path):
    found = []
    for folder, epochs in (("whole", (3,)), ("in parts", (1, 3))):
        for last in epochs:
            keras.utils.set_random_seed(0)
            model = Following()
            model(X[:2])
            model.compile(keras.optimizers.Adam(0.01), optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
            model.fit(X, Y, batch_size=10, epochs=last, verbose=0, callbacks=[callbacks.Resume(tmp_path / folder)])
        found.append([v.numpy() for v in [*model.variables, *model.optimizer.variables, *model.other.variables]])
    for one, other in zip(*found, strict=True):            # two graphs of one step may differ in the last bit
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [None, 1])
def test_a_directory_that_vanishes_is_an_error(tmp_path, every):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", SUM)
    path = tmp_path / "a"
    vanish = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch and shutil.rmtree(path))
    with pytest.raises(FileNotFoundError, match=r"callbacks.Resume: its directory is gone, with the states and the"):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[vanish, callbacks.Resume(path, every=every)])
    assert not path.exists()
