"""The training data of a fit: which batches have been used, and how they are brought back in the same order."""

import zlib

import numpy as np

from .._keras import datasets_in, global_seed, holds_resources, keras, shuffled_by, tf

# Data sets whose passes differ only by how many iterators were made of them before.
_STRAIGHT = {"CacheDataset", "TFRecordDatasetV2", "TextLineDatasetV2", "_AssertCardinalityDataset", "_BatchDataset",
             "_FilterDataset", "_MapDataset", "_OptionsDataset", "_PaddedBatchDataset", "_ParallelBatchDataset",
             "_ParallelMapDataset", "_PrefetchDataset", "_RangeDataset", "_ShardDataset", "_ShuffleDataset",
             "_SkipDataset", "_TFRecordDataset", "_TakeDataset", "_TensorDataset", "_TensorSliceDataset",
             "_TextLineDataset", "_ZipDataset"}
ADVICE = ("Seed every shuffle and random change, or call keras.utils.set_random_seed first, or pass data.arrays or "
          "data.image_folder, whose order is a function of seed and epoch.")


class Source:
    """The batches of one `fit`. `first` is a checksum of the first batch of the last pass; of arrays, whose order is
    known, of some rows and the seed.

    `form` is how many batches an epoch has, None if that is not known, and what they hold, as JSON has it.

    Args:
      fit: the `_keras.Fit` that is running.
      saved: what `saved` told in the run that is resumed, or None.
      seed: draws the order of shuffled arrays if TensorFlow has no seed.
    """

    def __init__(self, fit, saved, seed):
        self.fit = fit
        self.seed = saved["seed"] if saved else seed if fit.shuffle and global_seed() is None else None
        self.watch = _Watch(self.seed)
        self.draws_a_pass = fit.iterator.num_batches if fit.shuffle == "batch" else 1
        dataset = self._dataset()
        self.spec = dataset.element_spec
        self.form = self._form()
        self._count(dataset, saved)
        self._look_at(dataset)

    def _dataset(self):
        """The data set of one epoch; arrays without a seed in an order drawn by `watch`."""
        if self.seed is None:
            return self.fit.dataset
        with shuffled_by(self.watch.shuffled):
            return self.fit.iterator.data_adapter.get_tf_dataset()

    def _form(self):
        leaves = [leaf for leaf in tf.nest.flatten(self.spec, expand_composites=True) if hasattr(leaf, "shape")]
        return {"batches": self.fit.iterator.num_batches, "arrays": [
            [None if leaf.shape.rank is None else list(leaf.shape), leaf.dtype.name] for leaf in leaves]}

    def _count(self, dataset, saved):
        """Finds what counts epochs inside the data, and whether a pass can be skipped without drawing its batches."""
        self.counters, self.starts, self.straight = [], [], False
        if isinstance(dataset, tf.data.Dataset):                         # else the user has distributed it already
            self.counters = [node.epochs for node in datasets_in(dataset) if hasattr(node, "epochs")]
            self.starts = saved["starts"] if saved else [counter.next for counter in self.counters]
            self.straight = bool(self.form["batches"]) and not self.fit.iterator.steps_per_epoch and (
                self.fit.arrays is not None or _is_straight(dataset))

    def _look_at(self, dataset):
        """From now on `watch` knows the first batch of each pass; of arrays, some rows and the seed."""
        if self.fit.arrays is not None:
            seed = 0 if self.seed is not None else global_seed() or 0
            self.watch.look(*map(_some_rows, self.fit.arrays), np.array([seed]))
            if self.seed is not None:
                self.fit.dataset = dataset
        elif isinstance(dataset, tf.data.Dataset):
            self.fit.dataset = dataset.enumerate().map(self.watch.watched)

    @property
    def first(self):
        return self.watch.first

    def saved(self):
        """What the next run has to know."""
        return {"seed": self.seed, "starts": self.starts, "first": self.first}

    def symbols(self):
        """A batch of KerasTensors, to build what is not built yet."""
        return keras.tree.map_structure(lambda leaf: keras.KerasTensor(tuple(leaf.shape), leaf.dtype.name)
                                        if hasattr(leaf, "shape") else None, self.spec)

    def replay(self, epochs, steps):
        """Brings the data to where they were after `epochs` passes, and `first` to what it was then.

        Args:
          epochs: passes that are over.
          steps: the epoch iterator's own generator of steps; it makes new iterators when Keras would.
        """
        self._set_pass(epochs - 1 if self.straight else 0)
        for epoch in range(epochs):
            with self.fit.iterator.catch_stop_iteration():
                self._pass(steps(), first_only=self.straight, last=epoch == epochs - 1)
        if self.straight:
            self._set_pass(epochs)

    def _set_pass(self, number):
        """Whatever draws an order by the number of the pass begins with this one."""
        self.watch.draws = number * self.draws_a_pass
        for counter, start in zip(self.counters, self.starts, strict=True):
            counter.next = start + number

    def _pass(self, steps, first_only, last):
        """Draws the batches of a pass; with `first_only` those of the first step of the last pass alone."""
        for number, (begin, end, batches) in enumerate(steps):
            if not first_only or (number == 0 and last):
                for _ in range(begin, end + 1):
                    next(batches)


class _Watch:
    """Draws the order of arrays and looks at batches. TensorFlow never forgets what it calls: this knows no model."""

    def __init__(self, seed):
        self.seed, self.draws, self.first = seed, 0, None

    def watched(self, number, element):
        parts = [part for part in tf.nest.flatten(element, expand_composites=True)
                 if part is not None and part.dtype not in (tf.variant, tf.resource)]
        tf.cond(number == 0, lambda: tf.numpy_function(self.look, parts, tf.int64), lambda: tf.constant(0, tf.int64))
        return element

    def look(self, *parts):
        total = 0
        for part in parts:
            whole = b"\0".join(part.ravel()) if part.dtype == object else np.ascontiguousarray(part).tobytes()
            total = zlib.crc32(whole, total)
        self.first = total
        return np.int64(total)

    def shuffled(self, rows):
        def draw(rows):
            number, self.draws = self.draws, self.draws + 1
            return np.random.default_rng((self.seed, number)).permutation(rows)

        return tf.ensure_shape(tf.numpy_function(draw, [rows], rows.dtype), rows.shape)


def _some_rows(array, rows=64):
    """Evenly spaced rows of an array, as an array; of one that is not dense only how it looks."""
    if array is None or not hasattr(array, "__getitem__") or not hasattr(array, "__array__"):
        return np.array(str(type(array)))
    return np.asarray(array[::max(len(array) // rows, 1)])


def take(batches, count):
    """The next `count` batches are passed over; says whether they were there."""
    missing = object()
    return all(next(batches, missing) is not missing for _ in range(count))


def _is_straight(dataset):
    """Does making an iterator do to the next pass all that a whole pass would do?"""
    for node in datasets_in(dataset, lambda node: not hasattr(node, "epochs")):
        name = type(node).__name__
        cached = [type(inner).__name__ for inner in datasets_in(node)] if name == "CacheDataset" else []
        if name not in _STRAIGHT or holds_resources(node) or "_ShuffleDataset" in cached:
            return False
    return True
