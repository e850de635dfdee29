"""MixUp and CutMix: labels that sum to one and match what is in the picture."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfopt import augment
from tfopt.augment import _mix

COUNT, CLASSES = 48, 10


@pytest.fixture
def labels():
    return np.arange(COUNT) % CLASSES


@pytest.fixture
def images():
    """Example i is flat, of value i: what is in a mixed image tells where it came from."""
    return np.broadcast_to(np.arange(COUNT, dtype="float32")[:, None, None, None], (COUNT, 12, 16, 1)).copy()


def mixed(op, images, labels, index=None, epoch=0, **settings):
    pipeline = augment.Pipeline([op], jit_compile=False, value_range=(0, 64), **settings)
    views, soft = pipeline.apply(images, labels, epoch=epoch, index=range(len(images)) if index is None else index)
    return views.numpy(), np.asarray(soft)


@pytest.mark.parametrize("kind", ["whole", "one-hot", "column"])
def test_mixup_labels_match_the_blend(images, labels, kind):
    given = {"whole": labels, "one-hot": np.eye(CLASSES)[labels], "column": labels[:, None]}[kind]
    op = augment.MixUp(alpha=0.8, num_classes=None if kind == "one-hot" else CLASSES)
    views, soft = mixed(op, images, given)
    assert soft.dtype == "float32"
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    values = views[:, 0, 0, 0]
    np.testing.assert_allclose(views, np.broadcast_to(values[:, None, None, None], views.shape))
    found = set()
    for i in range(COUNT):
        partners = [j for j in range(COUNT) if j != i and abs(j - i) > 1e-6
                    and 0 <= (share := (values[i] - j) / (i - j)) <= 1
                    and np.allclose(share * np.eye(CLASSES)[labels[i]] + (1 - share) * np.eye(CLASSES)[labels[j]],
                                    soft[i], atol=1e-4)]
        assert partners, f"no partner explains example {i}"
        found.update(partners)
    assert (np.abs(values - np.arange(COUNT)) > 0.05).mean() > 0.5


def test_everyone_has_another_partner(rng):
    key = tf.constant(rng.integers(0, 2**32, 50), tf.uint32)
    partner = _mix.partners(key).numpy()
    assert sorted(partner) == list(range(50))
    assert (partner != np.arange(50)).all()
    order = rng.permutation(50)
    shuffled = _mix.partners(tf.gather(key, order)).numpy()
    np.testing.assert_array_equal(order[shuffled], partner[order])                  # the same pairs in any order
    assert _mix.partners(key[:1]).numpy().tolist() == [0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    u = tf.constant((np.arange(20000) + 0.5) / 20000, tf.float32)
    shares = augment.MixUp(alpha).share(u).numpy()
    np.testing.assert_allclose(shares, stats.beta(alpha, alpha).ppf((np.arange(20000) + 0.5) / 20000), atol=2e-3)
    assert 0 <= shares.min() <= shares.max() <= 1


def test_cutmix_labels_match_the_pasted_area(images, labels):
    views, soft = mixed(augment.CutMix(num_classes=CLASSES), images, labels)
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    pasted = 0
    for i, (image, label) in enumerate(zip(views[..., 0], soft, strict=True)):
        others = set(np.unique(image)) - {float(i)}
        assert len(others) <= 1
        expected = np.eye(CLASSES)[labels[i]]
        if others:
            rows, columns = np.nonzero(image != i)
            assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)           # one whole rectangle
            share = 1 - len(rows) / image.size
            expected = share * expected + (1 - share) * np.eye(CLASSES)[labels[int(others.pop())]]
            pasted += 1
        np.testing.assert_allclose(label, expected, atol=1e-6)
    assert pasted > COUNT / 2


@pytest.mark.parametrize("op", [augment.MixUp(0.8, num_classes=CLASSES), augment.CutMix(num_classes=CLASSES)])
def test_mixing_depends_on_who_is_in_the_batch_but_not_on_the_order(rng, images, labels, op):
    order = rng.permutation(COUNT)
    views, soft = mixed(op, images, labels)
    shuffled, shuffled_soft = mixed(op, images[order], labels[order], index=order)
    np.testing.assert_array_equal(shuffled, views[order])
    np.testing.assert_array_equal(shuffled_soft, soft[order])
    half, _ = mixed(op, images[:24], labels[:24])
    assert (half != views[:24]).any()                                               # which is why it is not replayable
    assert not augment.Pipeline([op]).replayable
    assert augment.Pipeline([augment.RandAugment()]).replayable


@pytest.mark.parametrize("op", [augment.MixUp(0.8, num_classes=CLASSES, probability=0.3),
                                augment.CutMix(num_classes=CLASSES, probability=0.3)])
def test_probability_leaves_the_rest_alone(images, labels, op):
    changed, count = 0, 0
    for epoch in range(10):
        views, soft = mixed(op, images, labels, epoch=epoch)
        same = (views == images).all((1, 2, 3))
        np.testing.assert_array_equal(soft[same], np.eye(CLASSES)[labels[same]])
        changed, count = changed + (~same).sum(), count + COUNT
    assert 0.15 < changed / count < 0.4


@pytest.mark.slow
def test_both_after_other_operations_through_map(rng):
    images = rng.integers(0, 256, (40, 16, 16, 3)).astype("uint8")
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate(),
                                 augment.MixUp(0.5, num_classes=CLASSES, probability=0.5), augment.CutMix(
                                     num_classes=CLASSES, probability=0.5)])
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(40) % CLASSES)).batch(16).map(pipeline.map)
    sizes = []
    for views, soft in dataset:
        assert views.dtype == "uint8"
        np.testing.assert_allclose(tf.reduce_sum(soft, 1), 1, atol=1e-6)
        sizes.append(len(views))
    assert sizes == [16, 16, 8]
    dict_views = pipeline.apply({"images": images, "labels": np.arange(40) % CLASSES}, epoch=0, index=range(40))
    assert dict_views["labels"].shape == (40, CLASSES)
    np.testing.assert_array_equal(pipeline(images), images)                          # not training: nothing to mix


@pytest.mark.parametrize(("op", "labels", "message"), [
    (augment.MixUp(), None, "MixUp needs labels"),
    (augment.MixUp(), [0, 1], "needs `num_classes`"),
    (augment.CutMix(), np.array([[0], [1]]), "needs `num_classes`"),
    (augment.CutMix(num_classes=2), [0, 2], "labels must be within"),
    (augment.MixUp(num_classes=3), np.eye(2), "`num_classes` must fit the labels"),
    (augment.MixUp(num_classes=3), np.array(1), "one label per image")])
def test_labels_are_refused(op, labels, message):
    with pytest.raises(ValueError, match=message):
        mixed(op, np.zeros((2, 4, 4, 1), "float32"), labels)


@pytest.mark.slow
def test_a_label_out_of_range_stops_the_data_set():
    pipeline = augment.Pipeline([augment.MixUp(num_classes=2)], jit_compile=False)
    dataset = tf.data.Dataset.from_tensor_slices((np.zeros((2, 4, 4, 1), "uint8"), [0, 2])).batch(2).map(pipeline.map)
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels must be within"):
        list(dataset)
