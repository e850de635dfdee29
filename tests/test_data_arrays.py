import random

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfopt import augment, data, distill, distribute


def passes(dataset, count):
    """The examples of each pass, as lists."""
    return [np.concatenate([np.ravel(x) for x in dataset.as_numpy_iterator()]).tolist() for _ in range(count)]


def test_each_epoch_has_an_order_of_its_own_drawn_from_the_seed():
    first, second, again = (passes(data.arrays(np.arange(50), None, 8, seed=seed), 3) for seed in (0, 1, 0))
    assert first == again
    assert len({tuple(order) for order in first + second}) == 6
    assert all(sorted(order) == list(range(50)) for order in first)


def test_the_order_is_numpys_permutation():
    for epoch, order in enumerate(passes(data.arrays(np.arange(20), None, 6, seed=5), 3)):
        assert order == np.random.default_rng((5, epoch)).permutation(20).tolist()


def test_repeat_goes_on_to_the_next_epoch():
    dataset = data.arrays(np.arange(10), None, 5)
    first, second = passes(dataset, 2)
    assert first + second == passes(data.arrays(np.arange(10), None, 5).repeat(2), 1)[0]


def test_without_shuffling_the_order_stays():
    assert passes(data.arrays(np.arange(10), None, 3, shuffle=False), 2) == [list(range(10))] * 2


def test_x_and_y_stay_together_in_any_nesting(rng):
    x = {"a": np.arange(23), "b": rng.normal(size=(23, 2))}
    for part, y in data.arrays(x, (np.arange(23) * 10, np.arange(23)), 5):
        np.testing.assert_array_equal(part["a"] * 10, y[0])
        np.testing.assert_allclose(part["b"], x["b"][part["a"].numpy()], rtol=1e-6)
        assert part["b"].dtype == tf.float32


def test_no_random_state_is_read_or_changed():
    def draws(with_data, seed):
        tf.random.set_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        got = passes(data.arrays(np.arange(30), None, 4), 2) if with_data else None
        return [float(tf.random.uniform([])), np.random.rand(), random.random()], got

    with_data, order = draws(True, 1)
    assert with_data == draws(False, 1)[0]
    assert draws(True, 2)[1] == order


def test_no_pass_ends_with_a_wait_for_the_tuner(rng):
    """See `_keras.without_autotune`. What is built on these has no tuner either; what is not ours has one (control)."""
    theirs = tf.data.Dataset.range(6).batch(2)
    given = (rng.normal(size=(6, 3)).astype("float32"), np.arange(6))
    teacher = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    ours = {"arrays": data.arrays(*given, 2), "full": data.full_batches(theirs, 2),
            "even": distribute.equal_batches(theirs, replicas=2),
            "cached": distill.cache_teacher(teacher, given, batch_size=2),
            "stream": distill.cache_teacher(teacher, tf.data.Dataset.from_tensor_slices(given).batch(2))}
    assert {name: dataset.map(lambda *x: x).options().autotune.enabled for name, dataset in ours.items()} == (
        dict.fromkeys(ours, False))
    assert theirs.options().autotune.enabled is not False


def test_shapes_are_static_where_they_can_be():
    assert data.arrays(np.zeros((12, 3)), None, 4).element_spec.shape == (4, 3)
    short = data.arrays(np.zeros((13, 3)), np.zeros(13), 4)
    assert short.element_spec[0].shape.as_list() == [None, 3]
    assert int(short.cardinality()) == len(list(short)) == 4
    full = data.full_batches(short, 4)
    assert full.element_spec[0].shape.as_list() == [4, 3]
    assert [len(x) for x, _ in full] == [4, 4, 4]


def test_several_inputs_tables_and_lists_become_batches():
    a, b = np.arange(6.0).reshape(6, 1), np.arange(6)
    for inputs in ([a, b], (a, b)):
        (first, second), y = next(iter(data.arrays(inputs, b, 4, shuffle=False)))
        np.testing.assert_array_equal(first[:, 0], second)
        np.testing.assert_array_equal(second, y)
        (first, second), = next(iter(data.arrays(inputs, None, 4, shuffle=False)))
        np.testing.assert_array_equal(first[:, 0], second)
    x, y = next(iter(data.arrays(pd.DataFrame({"a": a[:, 0], "b": b}), [0, 1, 2, 3, 4, 5], 6, shuffle=False)))
    np.testing.assert_array_equal(x, np.stack([b, b], 1))
    assert (x.dtype, y.numpy().tolist()) == (keras.config.floatx(), [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("make", [lambda: data.arrays(np.zeros((0, 2)), None, 2),
                                  lambda: data.arrays(np.zeros(3), np.zeros(2), 2),
                                  lambda: data.arrays(np.zeros(3), None, 0),
                                  lambda: data.arrays(np.zeros(3), None, 2, seed=-1),
                                  lambda: data.full_batches(data.arrays(np.zeros(3), None, 2), 1.5)])
def test_refusals(make):
    with pytest.raises(ValueError, match="Received: "):
        make()


def test_augment_must_be_callable():
    with pytest.raises(TypeError, match="`augment` must be"):
        data.arrays(np.zeros(3), None, 2, augment=3)


class Stamp:
    """Stands for augment.Pipeline: shows which epoch and index it was given."""

    replayable = True

    def apply(self, images, labels=None, *, epoch, index):
        stamped = tf.stack([tf.cast(images, tf.int64), tf.fill(tf.shape(index), epoch), index], axis=1)
        return stamped if labels is None else (stamped, labels)


@pytest.mark.parametrize("batch", [3, 7])
def test_a_pipeline_is_told_epoch_and_index(batch):
    dataset = data.arrays(np.arange(100, 110), np.arange(10), batch, augment=Stamp())
    for epoch in range(2):
        for stamped, y in dataset:
            np.testing.assert_array_equal(stamped, np.stack([y + 100, np.full(len(y), epoch), y], axis=1))
    alone = data.arrays(np.arange(100, 110), None, batch, augment=Stamp())
    np.testing.assert_array_equal(next(iter(alone))[:, 0] - 100, next(iter(data.arrays(np.arange(10), None, batch))))


def test_a_layer_augments_images_alone_and_a_callable_both(rng):
    images, labels = rng.integers(0, 255, (6, 4, 4, 3)).astype(np.uint8), np.arange(6)
    flip = keras.layers.RandomFlip("horizontal", seed=1)
    x, y = next(iter(data.arrays(images, labels, 6, augment=flip, shuffle=False)))
    same = [np.allclose(a, b) for a, b in zip(x, images, strict=True)]
    assert 0 < sum(same) < 6
    assert all(np.allclose(a, b) or np.allclose(a, b[:, ::-1]) for a, b in zip(x, images, strict=True))
    np.testing.assert_array_equal(y, labels)
    x, y = next(iter(data.arrays(images, labels, 6, augment=lambda x, y: (255 - x, y + 1), shuffle=False)))
    np.testing.assert_array_equal(x, 255 - images)
    np.testing.assert_array_equal(y, labels + 1)


FIT = """
import pathlib, sys, keras, numpy as np, tensorflow as tf
from PIL import Image
from tfopt import augment, data
rng = np.random.default_rng(0)
x, y = rng.normal(size=(26, 3)).astype("float32"), rng.normal(size=(26, 1)).astype("float32")
for name in "ab":
    (pathlib.Path(sys.argv[1]) / name).mkdir(exist_ok=True)
    for i in range(13):
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).save(f"{sys.argv[1]}/{name}/{i}.png")
flips = augment.Pipeline([augment.Flip(), augment.Rotate(0.1)], seed=1, output_range=(0, 1))
strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))
for shape, batches in (((3,), data.arrays(x, y, 8)), ((4, 4, 3), data.image_folder(sys.argv[1], 4, 8, augment=flips))):
    with strategy.scope():
        model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(),
                                  keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(data.full_batches(batches, 8), epochs=3, verbose=0)
    print(np.concatenate([w.ravel() for w in model.get_weights()]).tolist())
"""


@pytest.mark.slow
def test_two_devices_train_as_one(run_python, tmp_path):
    """On arrays, and on a folder of images with augmentation."""
    one, two = ([np.array(eval(line)) for line in run_python(FIT, tmp_path, devices=n).splitlines()[-2:]]
                for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a - 1).max() > 0.02, "negative control: it did train"


def test_workers_share_the_examples_of_an_epoch():
    from tensorflow.python.data.experimental.ops.distribute import _AutoShardDataset

    shares = [passes(_AutoShardDataset(data.arrays(np.arange(24), None, 4), 2, worker), 2) for worker in (0, 1)]
    for mine, other in zip(*shares, strict=True):
        assert len(mine) == len(other) == 12
        assert sorted(mine + other) == list(range(24))


def test_weights_go_with_their_examples():
    x = np.arange(10.0)[:, None]
    weighted = data.arrays(x, x[:, 0] > 4, 4, sample_weight=10 * x[:, 0], augment=lambda x, y: (x + 100, y), seed=3)
    plain = data.arrays(x, x[:, 0] > 4, 4, seed=3)
    for (views, labels, weights), (expected, same, *_) in zip(weighted, plain, strict=True):
        np.testing.assert_array_equal(views, expected + 100)
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_array_equal(weights, 10 * expected[:, 0])
    with pytest.raises(ValueError, match=r"data.arrays: `sample_weight` needs targets"):
        data.arrays(x, None, 4, sample_weight=x[:, 0])


def test_batches_grow_by_a_function_of_the_epoch():
    sizes = [2, 4, 4, 16]
    dataset = data.arrays(np.arange(10), None, lambda epoch: sizes[epoch], seed=5)
    for epoch, size in enumerate(sizes):
        order = np.random.default_rng((5, epoch)).permutation(10)
        assert [batch.tolist() for batch in dataset.as_numpy_iterator()] == [
            order[start:start + size].tolist() for start in range(0, 10, size)]
    for wrong in (lambda epoch: 0.5, lambda epoch: 0, lambda epoch: None):
        with pytest.raises(ValueError, match=r"data.arrays: `batch_size` must give a whole number >= 1 for each epoch"):
            data.arrays(np.arange(10), None, wrong)
    with pytest.raises(tf.errors.OpError, match=r"never less than for the one before. Received: epoch=1"):
        passes(data.arrays(np.arange(10), None, lambda epoch: 4 - epoch), 2)


def test_several_views_of_each_example(rng):
    """Beside targets and weights; the last batch is short."""
    images, labels = rng.integers(0, 256, (7, 6, 6, 3)).astype("uint8"), np.arange(7)
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate()], jit_compile=False)
    dataset = data.arrays(images, labels, 3, sample_weight=labels + 1.0, augment=pipeline, repeats=2, shuffle=False)
    for epoch in range(2):
        batches = list(dataset)
        assert [len(views) for views, *_ in batches] == [6, 6, 2]
        views, after, weights = (np.concatenate(part) for part in zip(*batches, strict=True))
        np.testing.assert_array_equal(after, labels.repeat(2))
        np.testing.assert_array_equal(weights, labels.repeat(2) + 1)
        for v in range(2):
            np.testing.assert_array_equal(views[v::2], pipeline.apply(images, epoch=2 * epoch + v, index=range(7)))
    with pytest.raises(ValueError, match="`repeats` needs an augmentation"):
        data.arrays(images, labels, 3, repeats=2)
