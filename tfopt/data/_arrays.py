"""Arrays to batches: one seeded permutation an epoch, one gather a batch."""

import functools
import inspect
import typing
from collections.abc import Callable

import numpy as np

from .. import _data
from .._check import BATCH_SIZE, FLAG, FUNCTION, NO, SEED, Rule, Whole, checked, refusal, require
from .._keras import keras, tf, without_autotune
from .._typing import Dataset, Replayable


def permutation(count, seed, epoch):
    """int64[count]: the order of the examples in an epoch, a pure function of its arguments.

    Example:
      >>> permutation(5, seed=0, epoch=0), permutation(5, seed=0, epoch=1)
      (array([2, 4, 3, 0, 1]), array([1, 4, 3, 0, 2]))
    """
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int64)


AUGMENT = Rule("an augment.Pipeline, a Keras layer or a function",
               lambda value: not isinstance(value, type) and (callable(value) or isinstance(value, Replayable)))


@checked(batch_size=BATCH_SIZE | FUNCTION, augment=AUGMENT, repeats=Whole(low=1), shuffle=FLAG,
         seed=SEED)
def arrays(x: typing.Any, y: typing.Any, batch_size: int | Callable[[int], int], *, sample_weight: typing.Any = None,
           augment: typing.Any = None, repeats: int = 1, shuffle: bool = True, seed: int = 0) -> Dataset:
    """Shuffled batches of arrays that fit in memory.

        epoch e yields x[p[0:b]], x[p[b:2b]], ...   with p = a permutation drawn from (seed, e)

    Each pass over the dataset is an epoch: 0, 1, 2 ... Neither TensorFlow's nor numpy's random state is read or
    changed. Floating arrays become `keras.config.floatx()`, as in `fit`.

    Args:
      x: array [n, ...] or DataFrame, or a dict, list or tuple of arrays.
      y: the same for the targets, or None.
      batch_size: examples in a batch, >= 1; the last one may be shorter, see `full_batches`. Or a function
        `epoch -> batch_size`, for batches that grow as training goes on: epochs count from 0, and no epoch has smaller
        batches than the one before.
      sample_weight: array [n, ...] of the weights of the examples in the loss, or None.
      augment: see `image_folder`; the index of an example is its row.
      repeats: views of each example, side by side in batches so many times as long (repeated augmentation). View v of
        epoch e is that of epoch e * repeats + v.
      shuffle: False keeps the order of the rows.
      seed: whole number >= 0.
    Returns:
      A tf.data.Dataset of `(x, y, sample_weight)`, `(x, y)`, or of `x` alone.
    Raises:
      ValueError: there are no examples, the arrays differ in length, or there are weights without targets.
    Reference: Smith et al., Don't decay the learning rate, increase the batch size, 2018,
      https://arxiv.org/abs/1711.00489 (growing batches)
    Example:
      >>> import numpy as np
      >>> dataset = arrays(np.arange(5), None, 2)
      >>> [x.tolist() for x in dataset.as_numpy_iterator()], [x.tolist() for x in dataset.as_numpy_iterator()]
      ([[2, 4], [3, 0], [1]], [[1, 4], [3, 0], [2]])
    """
    parts = keras.tree.flatten(x), [] if y is None else keras.tree.flatten(y)
    require(parts[0] and not any(part is None for side in parts for part in side), "`x` and `y` must hold arrays",
            x=x, y=y)
    require(sample_weight is None or y is not None, "`sample_weight` needs targets", y=y)
    given = _data.read((x, y) if sample_weight is None else (x, y, sample_weight), name="x, y")
    x, y, sample_weight = (tuple(part) if isinstance(part, list) else part             # tf.data stacks lists
                           for part in (given.x, given.y, given.sample_weight))
    element = (x, y) if y is not None else (x,) if isinstance(x, tuple) else x
    view = training_view(augment)
    if sample_weight is not None:
        element, view = (x, y, sample_weight), _beside_weights(view)
    if repeats > 1:
        require(augment is not None, "`repeats` needs an augmentation: without one all views are the same",
                repeats=repeats, do="Pass `augment`.")
        view = _repeated(view, repeats)
    with tf.device("CPU"):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, element)

    def read(rows):
        return keras.tree.map_structure(lambda t: tf.gather(t, rows), tensors)

    return batches(given.length, batch_size, read, view=view, shuffle=shuffle, seed=seed)


def _repeated(view, repeats):
    def of(element, epoch, index):
        index = tf.repeat(index, repeats)
        element = keras.tree.map_structure(lambda part: tf.repeat(part, repeats, axis=0), element)
        return view.of(element, epoch * repeats + tf.range(tf.size(index, tf.int64)) % repeats, index)

    return View(of, view.replayable)


def _beside_weights(view):
    return View(lambda element, epoch, index: (*view.of(element[:2], epoch, index), element[2]), view.replayable)


@checked(dataset=_data.BATCHES, batch_size=BATCH_SIZE)
def full_batches(dataset: Dataset, batch_size: int) -> Dataset:
    """Drops a short last batch, so that every shape is static (TPU, XLA).

    With shuffling each epoch leaves out other examples.

    Args:
      dataset: batches, of this module or any other.
      batch_size: the size of a full one.
    Returns:
      A tf.data.Dataset whose shapes begin with `batch_size`.
    Raises:
      ValueError: a batch is larger.
    Example:
      >>> import numpy as np
      >>> dataset = full_batches(arrays(np.arange(5), None, 2), 2)
      >>> dataset.element_spec.shape, len(list(dataset))
      (TensorShape([2]), 2)
    """
    def is_full(*element):
        return tf.shape(tf.nest.flatten(element)[0])[0] >= batch_size

    def fix(*element):
        fixed = tf.nest.map_structure(lambda t: tf.ensure_shape(t, [batch_size, *t.shape[1:]]), element)
        return fixed if len(fixed) > 1 else fixed[0]

    return without_autotune(dataset.filter(is_full).map(fix).prefetch(tf.data.AUTOTUNE))


def batches(count, batch_size, read, *, view, shuffle, seed):
    """Dataset of `view(read(rows), epoch, rows)`: the rows 0 .. count - 1, epoch by epoch.

    Args:
      count: number of examples.
      batch_size: examples in a batch, or a function of the epoch.
      read: int64[b] -> `x` or `(x, y)`.
      view: see `training_view`.
      shuffle, seed: see `arrays`.
    """
    grows = callable(batch_size)
    size_of = functools.partial(_growing, batch_size) if grows else lambda epoch: batch_size
    epochs = Epochs((lambda epoch: -(-count // size_of(epoch))) if grows else None)
    size_of(0)

    def begin():
        epoch, epochs.next = epochs.next, epochs.next + 1
        order = permutation(count, seed, epoch) if shuffle else np.arange(count, dtype=np.int64)
        return np.int64(epoch), order, np.int64(size_of(epoch))

    def one_epoch(_):
        epoch, order, size = tf.numpy_function(begin, [], [tf.int64, tf.int64, tf.int64])
        epoch, order = tf.ensure_shape(epoch, []), tf.ensure_shape(order, [count])
        size = tf.ensure_shape(size, []) if grows else batch_size        # known sizes make known shapes
        full, rest = count // size, count % size
        slices = tf.data.Dataset.from_tensor_slices                      # cheaper than a function called for each batch
        short = slices(([epoch], order[None, full * size:]))
        if not grows and not full:
            return short
        long = slices((tf.fill([full], epoch), tf.reshape(order[:full * size], [full, size])))
        if grows:
            return long.concatenate(short.filter(lambda epoch, rows: tf.size(rows) > 0))
        return long.concatenate(short) if rest else long

    def fetch(epoch, rows):
        return view.of(read(rows), epoch, rows)

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    rows = tf.data.Dataset.range(1).flat_map(one_epoch)
    known = rows if grows else rows.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
    dataset = without_autotune(known.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)
                      .prefetch(tf.data.AUTOTUNE).with_options(options))
    (dataset if view.replayable else rows).epochs = epochs
    return dataset


def _growing(batch_size, epoch):
    """The size of the batches of an epoch, checked."""
    size, before = (BATCH_SIZE(batch_size(e)) for e in (epoch, max(epoch - 1, 0)))
    if NO in (size, before) or size < before:
        raise refusal("`batch_size` must give a whole number >= 1 for each epoch, never less than for the one before",
                      epoch=epoch, batch_size=batch_size(epoch))
    return size


class Epochs:
    """Which epoch the next pass is. A restart sets `next` on the data set whose passes depend on nothing else.

    `steps` tells how many batches an epoch has where that differs, else it is None.
    """

    def __init__(self, steps=None):
        self.next, self.steps = 0, steps


class View(typing.NamedTuple):
    """What an example becomes: `(element, epoch, index) -> element`, and does it depend on nothing else."""

    of: Callable[..., typing.Any]
    replayable: bool = True


def training_view(augment, *, floats=False):
    """The View of whatever the user calls augmentation; see `image_folder`. `floats`: uint8 may become float32."""
    if augment is None:
        return View(lambda element, epoch, index: element)
    if isinstance(augment, Replayable):
        return _of_pipeline(augment, floats)

    def view(element, epoch, index):
        parts = element if isinstance(element, tuple) else (element,)
        if not isinstance(augment, keras.layers.Layer):
            return augment(*parts)
        images = augment(parts[0], training=True)
        return (images, *parts[1:]) if isinstance(element, tuple) else images

    return View(view, replayable=False)


def _of_pipeline(pipeline, floats):
    """The View of what has `apply(images, labels, *, epoch, index)`."""
    unrounded = floats and "dtype" in inspect.signature(pipeline.apply).parameters
    more = {"dtype": "float32"} if unrounded else {}

    def view(element, epoch, index):
        parts = element if isinstance(element, tuple) else (element,)
        return pipeline.apply(*parts, epoch=epoch, index=index, **more)

    return View(view)


def validation_view(augment):
    """As `training_view`, outside training: a Keras layer may still change the range of values, a function rests."""
    if not isinstance(augment, keras.layers.Layer):
        return View(lambda element, epoch, index: element)
    return View(lambda element, epoch, index: (augment(element[0], training=False), *element[1:]))
