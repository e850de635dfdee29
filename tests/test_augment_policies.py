"""AutoAugment and RandAugment against Pillow and single operations; several views of each example."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tfopt import augment
from tfopt.augment import _autoaugment, _random

COUNT = 300
LIKE_PILLOW = {
    "identity": lambda image, strength, sign: image,
    "brightness": lambda image, strength, sign: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength * sign),
    "saturation": lambda image, strength, sign: ImageEnhance.Color(image).enhance(1 + 0.9 * strength * sign),
    "sharpness": lambda image, strength, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength * sign),
    "posterize": lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, 255 * (1 - strength)),
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "invert": lambda image, strength, sign: ImageOps.invert(image)}
MOVES = {
    "rotate": lambda amount: augment.Rotate((amount * 30 / 360,) * 2),
    "shear_x": lambda amount: augment.Shear((-0.3 * amount,) * 2),
    "shear_y": lambda amount: augment.Shear(0, (-0.3 * amount,) * 2),
    "translate_x": lambda amount: augment.Translate(0, (-0.45 * amount,) * 2),
    "translate_y": lambda amount: augment.Translate((-0.45 * amount,) * 2, 0)}


def view(ops, images, epoch=0, index=None, **settings):
    pipeline = augment.Pipeline(ops, jit_compile=False, **settings)
    return pipeline.apply(images, epoch=epoch, index=range(len(images)) if index is None else index).numpy()


def numbers(op, count):
    keys = _random.example_keys(0, tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64))
    return _random.uniform(keys, {0: op.draws})[0].numpy()


@pytest.fixture
def image(rng):
    """Blocks of few levels, so that no value lies on the edge of a posterize or solarize step by chance."""
    levels = rng.integers(0, 8, (6, 6, 3)).repeat(4, 0).repeat(4, 1)
    return (13 + 29 * levels).astype("uint8")


def drawn(policy, u):
    """((name, strength, sign), ...) of an image, from the table and its numbers."""
    pair = _autoaugment.sub_policies(policy)[int(u[0] * 25)]
    return tuple((name, strength, -1 if u[2 + 2 * turn] < 0.5 else 1) if u[1 + 2 * turn] < probability
                 else ("identity", 0, 1) for turn, (name, probability, strength) in enumerate(pair))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_auto_augment_is_its_table(image, policy):
    op = augment.AutoAugment(policy)
    views = view([op], np.repeat(image[None], COUNT, axis=0))
    compared = {}
    for found, u in zip(views, numbers(op, COUNT), strict=True):
        pair = drawn(policy, u)
        if "contrast" in [name for name, *_ in pair]:                # about another mean than Pillow's
            continue
        if pair not in compared:
            moves = [MOVES[name](strength * sign) for name, strength, sign in pair if name in MOVES]
            expected = Image.fromarray(view(moves, image[None])[0] if moves else image)      # geometry comes first
            for name, strength, sign in pair:
                expected = LIKE_PILLOW.get(name, LIKE_PILLOW["identity"])(expected, strength, sign)
            compared[pair] = np.asarray(expected).astype(int)
        far = np.abs(found.astype(int) - compared[pair]) > 3
        assert far.mean() < 0.12, (pair, far.mean())                 # Pillow rounds in between
    wanted = {name for pair in _autoaugment.sub_policies(policy) for name, probability, _ in pair if probability}
    assert wanted - {name for pair in compared for name, *_ in pair} <= {"contrast"}


def test_the_tables_are_those_of_the_paper():
    """25 pairs; sums and counts that a wrong digit or name would change."""
    sums = {"imagenet": (31.0, 159, 17, 3), "cifar10": (26.5, 187, 9, 3)}
    for policy, (probabilities, ninths, equalized, inverted) in sums.items():
        pairs = _autoaugment.sub_policies(policy)
        assert len(pairs) == 25
        flat = [one for pair in pairs for one in pair]
        assert sum(name == "equalize" for name, *_ in flat) == equalized
        assert sum(name == "invert" for name, *_ in flat) == inverted
        assert sum(p for _, p, _ in flat) == pytest.approx(probabilities)
        assert sum(s * 9 for *_, s in flat) == pytest.approx(ninths)


def test_brightness_of_the_policies_multiplies():
    """As Pillow's, of which the papers speak: half gray is nowhere white."""
    gray = np.full((COUNT, 4, 4, 3), 100, "uint8")
    seen = np.unique(view([augment.RandAugment(1, 1.0)], gray)[:, 0, 0, 0])
    assert {10, 190} <= set(seen)
    assert 255 not in seen


def test_several_views_of_each_example(rng):
    images, labels, index = rng.integers(0, 256, (6, 8, 8, 3)).astype("uint8"), np.arange(6), np.arange(10, 16)
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate()], jit_compile=False)
    for k in range(2):
        views, after = pipeline.map(index, (images, labels), repeats=3)
        np.testing.assert_array_equal(after, labels.repeat(3))
        for v in range(3):
            np.testing.assert_array_equal(views[v::3], pipeline.apply(images, epoch=3 * k + v, index=index))
    assert len(np.unique(views.numpy().reshape(18, -1), axis=0)) == 18


@pytest.mark.slow
def test_several_views_through_a_data_set_without_an_index(rng):
    """With boxes, ragged targets and MixUp's labels, in batches of which the last is short."""
    images = rng.integers(0, 256, (6, 8, 8, 3)).astype("uint8")
    words = tf.ragged.constant([[1], [2, 3], [], [4], [5], [6]])
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate()], jit_compile=False)
    dataset = tf.data.Dataset.from_tensor_slices((images, {"words": words, "boxes": np.ones((6, 2, 4))})).batch(4)
    dataset = dataset.map(lambda *element: pipeline.map(*element, repeats=3))
    first, second = ([list(part) for part in zip(*dataset, strict=True)] for _ in range(2))
    seen = np.concatenate(first[0] + second[0]).reshape(36, -1)
    assert len(np.unique(seen, axis=0)) == 36
    assert [len(part["boxes"]) for part in first[1]] == [12, 6]
    assert first[1][0]["words"].to_list()[:6] == [[1]] * 3 + [[2, 3]] * 3
    mixed = augment.Pipeline([augment.MixUp(num_classes=6)], jit_compile=False)
    views, labels = mixed.map(images, np.arange(6), repeats=2)
    assert views.shape[0] == len(labels) == 12


@pytest.mark.slow
@pytest.mark.parametrize("op", [augment.Equalize(), augment.AugMix()], ids=["equalize", "augmix"])
def test_inside_a_compiled_graph_equals_outside(rng, op):
    """XLA has no bincount: the histogram is another computation there."""
    images = rng.integers(0, 256, (8, 20, 20, 3)).astype("uint8")
    images[0] = 7                                                                # flat: nothing to equalize
    pipeline = augment.Pipeline([op], seed=3)
    compiled = tf.function(lambda x: pipeline.apply(x, epoch=0, index=tf.range(8)), jit_compile=True)
    inside, outside = compiled(images).numpy(), pipeline.apply(images, epoch=0, index=range(8)).numpy()
    assert np.abs(inside.astype(int) - outside).max() <= 1                       # two compilers round
    assert (inside == outside).mean() > 0.99
    assert (outside != images).mean() > 0.3
