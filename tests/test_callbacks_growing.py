"""GrowingBatch: each epoch has the steps that its batches make, also where a training goes on after a kill."""

import keras
import numpy as np
import pytest

from tfopt import callbacks, data

X = np.random.default_rng(1).normal(size=(37, 3)).astype("float32")
SIZES = [4, 8, 8, 16, 64]
STEPS = [10, 5, 5, 3, 1]


class BrokenOffError(Exception):
    pass


class Watch(keras.callbacks.Callback):
    """Tells the number of each step; raises after so many."""

    def __init__(self, tell, last):
        super().__init__()
        self.tell, self.last = tell, last

    def on_train_batch_end(self, batch, logs=None):
        if self.tell(batch) == self.last:
            raise BrokenOffError


def build(*layers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.3),
                              keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, sum(STEPS))), "mse")
    return model


def fit(model, *more, last=None, epochs=5):
    seen = []                                               # where no restart brings it back
    watch = Watch(lambda batch: seen.append(batch) or len(seen), last)
    model.fit(data.arrays(X, X[:, :1], SIZES.__getitem__), epochs=epochs, verbose=0, callbacks=[*more, watch])
    return seen


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Your input ran out")
def test_each_epoch_has_its_steps_and_one_trace_serves_all():
    traced = []
    model = build(keras.layers.Lambda(lambda x: traced.append(x.shape) or x))
    traced.clear()
    assert fit(model, callbacks.GrowingBatch()) == [step for steps in STEPS for step in range(steps)]
    assert int(model.optimizer.iterations) == sum(STEPS)
    assert {tuple(shape) for shape in traced} == {(None, 3)}

    by_hand = build()                                       # Keras alone: a fit for each epoch
    orders = [np.random.default_rng((0, epoch)).permutation(len(X)) for epoch in range(5)]
    for epoch, (order, size) in enumerate(zip(orders, SIZES, strict=True)):
        by_hand.fit(X[order], X[order, :1], batch_size=size, shuffle=False, verbose=0, initial_epoch=epoch,
                    epochs=epoch + 1)
    for a, b in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_without_it_keras_warns_and_counts_steps_that_were_not_made():
    model = build()
    with pytest.warns(UserWarning, match="ran out of data"):
        assert len(fit(model)) == sum(STEPS)
    assert int(model.optimizer.iterations) > sum(STEPS)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Your input ran out")
@pytest.mark.parametrize("last", [3, 11, 21])
def test_a_broken_training_ends_as_a_whole_one(tmp_path, last):
    whole, again = build(), build()
    fit(whole, callbacks.GrowingBatch())
    with pytest.raises(BrokenOffError):
        fit(build(), callbacks.GrowingBatch(), callbacks.Resume(tmp_path, every=2), last=last)
    assert len(fit(again, callbacks.Resume(tmp_path, every=2), callbacks.GrowingBatch())) < sum(STEPS)
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(again.optimizer.iterations) == sum(STEPS)


PROGRAM = """
import keras
import numpy as np
import tensorflow as tf
from tfopt import callbacks, data

keras.utils.set_random_seed(0)
x = np.random.default_rng(1).normal(size=(40, 3)).astype("float32")
strategy = tf.distribute.MirroredStrategy() if len(tf.config.list_logical_devices("CPU")) > 1 else (
    tf.distribute.get_strategy())
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile("sgd", "mse")
model.fit(data.arrays(x, x[:, :1], lambda epoch: 4 * 2 ** epoch), epochs=3, verbose=0,
          callbacks=[callbacks.GrowingBatch()])
print([int(keras.ops.convert_to_numpy(model.optimizer.iterations)), *np.ravel(model.get_weights()[0]).tolist()])
"""


@pytest.mark.slow
def test_two_devices_train_as_one(run_python, tmp_path):
    one, two = (eval(run_python(PROGRAM, tmp_path, devices=n).splitlines()[-1]) for n in (1, 2))
    assert one[0] == 10 + 5 + 3
    np.testing.assert_allclose(two, one, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"steps_per_epoch": 2}])
def test_batches_of_one_size_are_refused(more):
    batches = data.arrays(X, X[:, :1], SIZES.__getitem__ if more else 4)
    with pytest.raises(ValueError, match=r"callbacks.GrowingBatch needs data.arrays\(x, y, batch_size=function"):
        build().fit(batches, verbose=0, callbacks=[callbacks.GrowingBatch()], **more)
