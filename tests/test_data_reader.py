"""The reader of `data`: every form, what it becomes, and one sentence for everything else."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfopt import _data

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(10, 4)).astype("float32"), RNG.integers(0, 3, 10), RNG.uniform(size=10).astype("float32")
A, B = X[:, :3], X[:, 3:]
ONE = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def two_inputs(nest):
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    return keras.Model(nest(a, b), keras.layers.Concatenate()([a, b]))


LISTED, NAMED = two_inputs(lambda a, b: [a, b]), two_inputs(lambda a, b: {"a": a, "b": b})


class Batches(keras.utils.PyDataset):
    def __init__(self, *columns):
        super().__init__()
        self.columns = columns

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, i):
        return tuple(column[4 * i:4 * i + 4] for column in self.columns)


def dataset(*columns, batch=4):
    made = tf.data.Dataset.from_tensor_slices(columns if len(columns) > 1 else columns[0])
    return made.batch(batch) if batch else made


def joined(batches):
    """What the batches hold, put together by NumPy alone."""
    columns = zip(*batches, strict=True)
    return [None if column[0] is None else keras.tree.map_structure(lambda *parts: np.concatenate(parts), *column)
            for column in columns]


FORMS = {
    "x": (X, ONE, X, None, None), "(x,)": ((X,), ONE, X, None, None), "(x, y)": ((X, Y), ONE, X, Y, None),
    "[x, y]": ([X, Y], ONE, X, Y, None), "(x, y, w)": ((X, Y, W), ONE, X, Y, W),
    "(x, None)": ((X, None), ONE, X, None, None), "a table": (pd.DataFrame(X), ONE, X, None, None),
    "lists": ((X.tolist(), Y.tolist()), ONE, X, Y, None), "a list of rows": (X.tolist(), ONE, X, None, None),
    "tensors": ((tf.constant(X), tf.constant(Y)), ONE, X, Y, None),
    "float64": (X.astype("float64"), ONE, X, None, None),
    "a table and a column": ((pd.DataFrame(X), pd.Series(Y)), ONE, X, Y, None),
    "a dict for one input": ({"a": X}, ONE, X, None, None), "no model": ((X, Y), None, X, Y, None),
    "(a, b) without a model": ((A, B), None, A, B, None), "[a, b] without a model": ([A, B], None, [A, B], None, None),
    "(a, b)": ((A, B), LISTED, [A, B], None, None), "[a, b]": ([A, B], LISTED, [A, B], None, None),
    "((a, b), y)": (((A, B), Y), LISTED, [A, B], Y, None), "([a, b], y, w)": (([A, B], Y, W), LISTED, [A, B], Y, W),
    "a dict for a list": (({"b": B, "a": A}, Y), LISTED, [A, B], Y, None),
    "a dict": ({"a": A, "b": B}, NAMED, {"a": A, "b": B}, None, None),
    "a dict with more": ({"a": A, "b": B, "c": Y}, NAMED, {"a": A, "b": B}, None, None),
    "a list for a dict": ([A, B], NAMED, {"a": A, "b": B}, None, None),
    "targets in a dict": ((X, {"p": Y, "q": W}), ONE, X, {"p": Y, "q": W}, None),
    "no last axis": ((A, B[:, 0]), LISTED, [A, B], None, None),
    "columns": (pd.DataFrame({"a": W, "b": Y}), [keras.Input((1,), name="b"), keras.Input((1,), name="a")],
                [Y[:, None], W[:, None]], None, None),
    "a data set of x": (dataset(X), ONE, X, None, None), "a data set": (dataset(X, Y), ONE, X, Y, None),
    "a data set of (x, y, w)": (dataset(X, Y, W), ONE, X, Y, W),
    "a data set of (a, b)": (dataset(A, B), LISTED, [A, B], None, None),
    "a data set of ((a, b), y)": (dataset((A, B), Y), LISTED, [A, B], Y, None),
    "a data set of (dict, y)": (dataset({"a": A, "b": B}, Y), NAMED, {"a": A, "b": B}, Y, None),
    "a PyDataset": (Batches(X, Y), ONE, X, Y, None), "a PyDataset of (x, y, w)": (Batches(X, Y, W), ONE, X, Y, W),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form):
    given, model, *right = FORMS[form]
    found = _data.read(given, model)
    whole = found.whole()
    for got in (joined(found.batches(4)), [whole.x, whole.y, whole.sample_weight],
                joined([(*part, None, None)[:3] if right[1] is not None else (part, None, None)
                        for part in found.dataset(4).as_numpy_iterator()])):
        for one, other in zip(got, right, strict=True):
            assert isinstance(one, dict) == isinstance(other, dict)
            ours, theirs = keras.tree.flatten(one), keras.tree.flatten(other)
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert a is b is None or np.array_equal(a, b)
    assert (found.count(4), found.length) in ((3, 10), (3, None))
    assert [len(keras.tree.flatten(x)[0]) for x, _, _ in found.batches(4)] == [4, 4, 2]
    keras.tree.map_structure(lambda a, b: np.testing.assert_array_equal(a, b[:5]), found.head(5).x, right[0])


@pytest.mark.parametrize("given", [(X, Y, W), dataset(X, Y, W), Batches(X, Y, W)],
                         ids=["arrays", "dataset", "PyDataset"])
def test_fit_takes_it(given):
    """One step over all rows equals Keras' own on the arrays."""
    losses = []
    for arguments in ({"x": X, "y": Y, "sample_weight": W, "batch_size": 4}, _data.read(given, ONE).fit_arguments(4)):
        model = keras.models.clone_model(ONE)
        model.set_weights(ONE.get_weights())
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses.append(model.fit(**arguments, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def nan(rows, at):
    rows = rows.copy()
    rows[at] = np.nan
    return rows


def refused(given, words, model=ONE, **how):
    with pytest.raises(ValueError, match=words) as caught:
        for _ in _data.read(given, model, **how).batches(4):
            pass
    assert "\n" not in str(caught.value)
    assert "`data`" in str(caught.value)


@pytest.mark.parametrize("given", [
    None, 3, "photos", b"x", True, len, ONE, {1, 2}, object(), iter([X]), (x for x in [X]), range(3), (), [], {}, "",
    np.float32(3), np.array(3), [object()], (object(), 3), np.array([object()]), [[1, 2], [3]],
    tf.ragged.constant([[1], [2, 3]]), {"a": None}], ids=lambda given: type(given).__name__)
def test_what_is_no_data(given):
    refused(given, "must be arrays or a data set|must hold")


def test_what_does_not_fit():
    refused((X[:0], Y[:0]), "at least one example")
    refused((X, Y[:9]), r"one length\. Received: data=\(shape \(10, 4\), shape \(9,\)")
    refused((A, Y), r"shape of the model's inputs\. Received: data=shape \(10, 3\)\. These are \{'")
    refused(X[0], "Put the examples in batches first")
    refused(dataset(X, Y, batch=None), "Put the examples in batches first")
    refused((A, B), "shape of the model's inputs")
    refused({"a": A}, "shape of the model's inputs", NAMED)
    refused((A, A), "shape of the model's inputs", LISTED)
    refused(pd.DataFrame({"a": ["x", "y"]}), "a table with words in a")


def test_what_a_data_set_must_be():
    refused(dataset(X, Y).repeat(), "must end")
    refused(dataset(X, Y).take(0), "at least one batch")
    refused(dataset(X, Y).filter(lambda x, y: False), "at least one example")
    refused(tf.data.Dataset.range(3), "batches", None)


def test_targets():
    refused(X, "must hold targets too", targets="required")
    refused(dataset(X), "must hold targets too", targets="required")
    refused((A, B), "must hold targets too", LISTED, targets="required")
    assert _data.read((X, Y), ONE, targets="ignored").y is None
    assert _data.read([X, Y], None, targets="required").y is not None


def test_finite_numbers():
    refused((nan(X, 5), Y), r"finite\. Received: data=NaN or infinite x in 1 of 10 examples, first in example 5",
            finite=True)
    refused((X, nan(W, [2, 3])), "infinite y in 2 of 10 examples, first in example 2", finite=True)
    refused(dataset(nan(X, 5), Y), "infinite x in 1 of 4 examples, first in example 5", finite=True)
    assert _data.read((nan(X, 5), Y), ONE).length == 10


def test_batches_of_several_lengths_cannot_be_joined():
    rows = tf.data.Dataset.from_generator(lambda: iter([np.ones((2, 3)), np.ones((2, 4))]),
                                          output_signature=tf.TensorSpec((None, None)))
    with pytest.raises(ValueError, match="must be of one shape to be put together"):
        _data.read(rows).whole()


class Towers(keras.Model):
    """Several inputs, and no graph that tells of them."""

    def call(self, inputs):
        return inputs["a"] + inputs["b"]


def test_a_subclassed_model_tells_how_many_inputs_it_was_called_with():
    model, x = Towers(), {"a": np.ones((4, 2)), "b": np.ones((4, 2))}
    assert _data.read((x["a"], x["b"]), model).y is not None           # nothing is known yet
    model({key: value[:2] for key, value in x.items()})
    assert _data.read(x, model).y is None
    assert _data.read((x, np.zeros(4)), model).y.shape == (4,)


def test_words_without_a_second_axis_can_be_fitted():
    words = keras.Input((), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Model(words, keras.layers.Dense(1)(keras.layers.Embedding(3, 2)(lookup(words))))
    model.compile("sgd", "mse")
    given = _data.read((tf.constant(["a", "b", "c"]), np.ones(3)), model).fit_arguments(2)
    assert np.isfinite(model.fit(**given, verbose=0).history["loss"][0])
