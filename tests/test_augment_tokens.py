"""Dropped, masked and swapped tokens against what a look at each sequence says."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfopt import augment

START, END, MASK = 1, 2, 3


@pytest.fixture
def tokens(rng):
    """300 sequences of different tokens between START and END, of 0 to 14, padded with 0."""
    rows = [[START, *rng.permutation(np.arange(10, 40))[:rng.integers(0, 15)], END] for _ in range(300)]
    return np.array([row + [0] * (18 - len(row)) for row in rows])


def view(op, tokens, **settings):
    pipeline = augment.Pipeline([op], jit_compile=False, **settings)
    return pipeline.apply(tokens, epoch=0, index=range(len(tokens))).numpy()


def inside(row):
    return [int(token) for token in row if token not in (0, START, END)]


@pytest.mark.parametrize("before", [False, True])
def test_dropped_ones_are_gone_and_the_others_move_up(tokens, before):
    if before:
        tokens = np.array([np.roll(row, (row == 0).sum()) for row in tokens])
    views = view(augment.TokenDrop(0.3, protected_ids=[START, END]), tokens)
    gone = total = 0
    for one, other in zip(views, tokens, strict=True):
        kept = inside(one)
        assert kept == [token for token in inside(other) if token in kept]             # a part, in the same order
        expected = [START, *kept, END]
        padding = [0] * (18 - len(expected))
        assert one.tolist() == (padding + expected if before else expected + padding)
        assert kept or not inside(other)
        if len(inside(other)) > 3:                                                     # the last one stays: hardly seen
            gone, total = gone + len(inside(other)) - len(kept), total + len(inside(other))
    assert stats.binomtest(gone, total, 0.3).pvalue > 1e-3
    assert stats.binomtest(gone, total, 0.36).pvalue < 1e-3                            # negative control


def test_one_always_stays_and_it_is_any(tokens):
    views = view(augment.TokenDrop(1.0, protected_ids=(START, END)), tokens)
    assert {len(inside(row)) for row in views[(tokens > 3).any(1)]} == {1}
    long = np.tile(np.arange(10, 15), (600, 1))
    assert stats.chisquare(np.bincount(view(augment.TokenDrop(1.0), long)[:, 0] - 10)).pvalue > 1e-3


def test_masked_ones_are_replaced_where_they_stand(tokens):
    views = view(augment.TokenMask(0.15, mask_id=MASK, protected_ids=[START, END]), tokens)
    masked, free = views == MASK, tokens > 3
    np.testing.assert_array_equal(np.where(masked, MASK, tokens), views)
    assert not masked[~free].any()
    assert stats.binomtest(int(masked.sum()), int(free.sum()), 0.15).pvalue > 1e-3
    assert stats.binomtest(int(masked.sum()), int(free.sum()), 0.19).pvalue < 1e-3     # negative control


def test_swapped_ones_change_places_in_pairs(tokens):
    views = view(augment.TokenSwap(0.4, protected_ids=[START, END]), tokens)
    np.testing.assert_array_equal(views[tokens <= 3], tokens[tokens <= 3])
    moved = pairs = 0
    for one, other in zip(views, tokens, strict=True):
        assert sorted(one) == sorted(other)
        place = {int(token): k for k, token in enumerate(other)}
        for k in np.flatnonzero(one != other):
            assert one[place[int(one[k])]] == other[k]                                 # each with one other
        moved, pairs = moved + int((one != other).sum()) // 2, pairs + len(inside(other)) // 2
    assert stats.binomtest(moved, pairs, 0.4).pvalue > 1e-3
    assert stats.binomtest(moved, pairs, 0.48).pvalue < 1e-3                           # negative control


def test_any_two_may_be_swapped():
    found = view(augment.TokenSwap(1.0), np.tile(np.arange(1, 5), (1500, 1)))
    seen = np.unique(found, axis=0, return_counts=True)
    assert {tuple(row) for row in seen[0]} == {(2, 1, 4, 3), (3, 4, 1, 2), (4, 3, 2, 1)}
    assert stats.chisquare(seen[1]).pvalue > 1e-3


OPS = [augment.TokenDrop(0.2), augment.TokenMask(0.2, mask_id=MASK), augment.TokenSwap(0.5)]


@pytest.mark.slow
def test_replayed_in_batches_of_any_size_and_length(tokens, tmp_path):
    tokens = tokens[:40].astype("int32")
    pipeline = augment.Pipeline(OPS, seed=4)
    expected = pipeline.apply(tokens, epoch=0, index=range(40)).numpy()
    assert expected.dtype == "int32"
    assert (expected != pipeline.apply(tokens, epoch=1, index=range(40)).numpy()).any()
    ragged = tf.data.Dataset.from_generator(lambda: (row[row > 0] for row in tokens), output_signature=tf.TensorSpec(
        [None], tf.int32))
    for batch, numbered in itertools.product((5, 16), (True, False)):
        source = (ragged.enumerate() if numbered else ragged).padded_batch(batch)      # as long as its longest
        views = [row[row > 0].tolist() for part in source.map(pipeline.map) for row in part.numpy()]
        if numbered:
            assert views == [row[row > 0].tolist() for row in expected]
        elif batch == 5:
            by_content = views
        else:
            assert views == by_content
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(pipeline))
    np.testing.assert_array_equal(again.apply(tokens, epoch=0, index=range(40)), expected)
    model = keras.Sequential([keras.Input((18,), dtype="int32"), pipeline, keras.layers.Embedding(40, 2),
                              keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(tokens, np.zeros(40), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens, training=True), model(tokens, training=True))
    assert loaded.layers[0].ops == OPS


def test_refusals():
    with pytest.raises(ValueError, match=r"exactly one input that is tokens: whole numbers \[batch, length\]"):
        augment.Pipeline(OPS).apply(np.zeros((2, 3)), epoch=0, index=[0, 1])
    model = keras.Sequential([keras.Input((3,)), augment.Pipeline(OPS)])
    with pytest.raises(ValueError, match=r'A model takes whole numbers with keras.Input\(..., dtype="int32"\)'):
        model(np.zeros((2, 3)), training=True)
    with pytest.raises(ValueError, match=r"TokenDrop: `protected_ids` must be a list of whole numbers"):
        augment.TokenDrop(protected_ids=[1.5])
    with pytest.raises(TypeError, match="mask_id"):
        augment.TokenMask(0.1)
