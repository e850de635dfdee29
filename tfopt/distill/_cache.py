"""A teacher's outputs, computed once: the data set that comes back carries them."""

import json
from typing import Any

import numpy as np

from .. import _data, _files, _models
from .._check import BATCH_SIZE, MODEL, PATH, VERBOSE, Rule, Whole, checked, require
from .._keras import keras, tf, without_autotune
from .._typing import Data, Dataset, PathLike
from ._formulas import to_float
from ._networks import Network, inputs_of, name_of
from ._packing import pack
from ._shards import Folder, Memory, Shard

_AUGMENT = Rule("an augmentation that is replayable: its views depend on (epoch, index) alone, as those of a "
                "tfopt.augment.Pipeline without MixUp and CutMix do", lambda value:
                not isinstance(value, type) and hasattr(value, "apply")
                and getattr(value, "replayable", False) is True)
_ROWS = 8192                                    # examples in a shard, which ends with the batch that fills it


@checked(teacher=MODEL, directory=PATH, top_k=Whole(low=1), augment=_AUGMENT, views=Whole(low=1), batch_size=BATCH_SIZE,
         verbose=VERBOSE)
def cache_teacher(teacher: keras.Model, data: Data, *, directory: PathLike | None = None,
                  top_k: int | None = None, augment: Any = None, views: int = 1, batch_size: int = 64,
                  verbose: int | str = "auto") -> Dataset:
    """Offline distillation: runs the teacher once and returns a data set that carries its outputs.

        outputs[k, i] = teacher(augment(x_i; epoch=k, index=i)),   k = 0 ... views - 1

    One pass over the result shows every example once in each view, `views` epochs in one: with the very pixels the
    teacher saw, which is what makes a teacher of augmented data consistent. Logits are stored in float16 as differences
    to the largest of their row, or as log-probabilities of the `top_k` first classes, beside which all others share
    what is left; outputs that are numbers in float32.

    Args:
      teacher: a built keras.Model with one output or several.
      data: arrays x, (x, y) or (x, y, sample_weight), which are shuffled anew in every pass; or a finite, batched
        tf.data.Dataset of the same, which must yield the same batches in the same order each time, and does so here.
      directory: a folder for the outputs, written shard by shard with checksums. A run that was broken off goes on
        after the last whole shard; a finished folder is read; what is damaged is named and computed again. None keeps
        the outputs in memory.
      top_k: how many classes to keep, 1 up to the number of classes (exclusive). None keeps all.
      augment: None or a replayable augmentation: `augment.apply(x, epoch=, index=)` depends on nothing else and
        `augment.replayable` is true, as for `tfopt.augment.Pipeline` without MixUp and CutMix.
      views: how many augmented views of each example, >= 1.
      batch_size: batch size for arrays.
      verbose: 0, or 1 and "auto" for Keras' progress bar.

    Returns:
      A tf.data.Dataset of (x, {"y": y, "teacher": outputs}[, sample_weight]) for `Distiller(None, student, losses)`.

    Raises:
      ValueError: the data come in another order or form each time, are endless or not batched; the augmentation is not
        replayable; the folder holds outputs of another teacher or for other data, or another process writes to it; an
        output is not finite.

    Example:
      >>> import numpy as np
      >>> from tfopt import distill
      >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
      >>> x, y = np.zeros((10, 4), "float32"), np.zeros(10, "int64")
      >>> cached = distill.cache_teacher(teacher, (x, y), batch_size=5, verbose=0)
      >>> distiller = distill.Distiller(None, keras.models.clone_model(teacher), distill.Logits())
      >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
      >>> sorted(distiller.fit(cached, verbose=0).history)
      ['distillation_loss', 'loss', 'student_loss']

    Reference:
      Beyer et al.: Knowledge Distillation: A Good Teacher is Patient and Consistent (2022).
      https://arxiv.org/abs/2106.05237
    """
    _models.require_model(teacher, "distill.cache_teacher")
    require(augment is not None or views == 1, "several `views` need an augmentation", views=views,
            do="Pass `augment`.")
    read = None if isinstance(data, tf.data.Dataset) else _data.read(data, teacher if augment is None else None)
    if isinstance(read, _data.Arrays):
        source = _Arrays(read, batch_size)
    else:
        source = _Stream(read.dataset() if read else data, teacher)
    compute = _computation(teacher, top_k, augment)
    made_from = {"teacher": _fingerprint(teacher), "top_k": top_k, "views": views,
                 "augment": None if augment is None else _canonical(augment)}
    with Memory() if directory is None else Folder(directory, made_from) as store:
        _fill(store, source, compute, views, int(verbose != 0))
    return source.with_outputs(store, augment, views)


def _computation(teacher, top_k, augment):
    """(x, epoch, index) -> {"output:kind:name": tensor}, what is stored of a batch."""
    network = Network(teacher, "teacher", inputs_of(teacher))
    for output in network.outputs if top_k is not None else ():
        require(output.kind not in ("sigmoid", None) and len(output.shape) == 2,
                "`top_k` needs classes that exclude each other", output=name_of(output.path),
                teacher=f"{teacher.name} ends in {output.kind or output.last}, {output.shape}", do="Leave `top_k` out.")
        require(top_k < output.shape[-1], "`top_k` must be smaller than the number of classes", top_k=top_k,
                classes=output.shape[-1])

    @tf.function(reduce_retracing=True)
    def compute(x, epoch, index):
        result = network(x if augment is None else augment.apply(x, epoch=epoch, index=index), training=False)
        columns = {}
        for output in network.outputs:
            value = network.logits(result, output, output.kind, None) if output.kind else network.value(result, output)
            packed = pack(tf.cast(to_float(value), tf.float32), output.kind, top_k)
            columns |= {f"{name_of(output.path)}:{output.kind or 'numbers'}:{name}": column
                        for name, column in packed.items()}
        return columns

    return compute


def _fill(store, source, compute, views, verbose):
    """Fills the store, shard by shard, leaving out what is there."""
    progress = keras.utils.Progbar(source.batches and source.batches * views, unit_name="batch", verbose=verbose)
    for view in range(views):
        shard, start = Shard(store, view, 0), 0
        for x in source:
            end = start + len(keras.tree.flatten(x)[0])
            shard.add(x, tf.range(start, end, dtype=tf.int64), compute)
            start = end
            progress.add(1)
            if shard.rows >= _ROWS:
                shard = shard.close()
        shard.close()
        require(start, "`data` must hold examples", data=type(source.data).__name__)
    store.finish()


class _Arrays:
    """Arrays: read in their order when the teacher runs, shuffled in training."""

    def __init__(self, data, batch_size):
        self.data = keras.tree.map_structure(lambda part: None if part is None else tf.convert_to_tensor(part),
                                             {"x": data.x, "y": data.y, "sample_weight": data.sample_weight})
        self.length, self.batch_size = data.length, batch_size
        self.batches = -(-self.length // batch_size)

    def __iter__(self):
        for start in range(0, self.length, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield keras.tree.map_structure(lambda part: part[rows], self.data["x"])  # noqa: B023

    def with_outputs(self, store, augment, views):
        def one_view(view):
            def element(index):
                found = {name: None if part is None else keras.tree.map_structure(
                    lambda rows: tf.gather(rows, index), part) for name, part in self.data.items()}
                return _element(found, store, augment, view, index)

            rows = tf.data.Dataset.range(self.length).shuffle(self.length, seed=view, reshuffle_each_iteration=True)
            return rows.batch(self.batch_size).map(element, tf.data.AUTOTUNE)

        return _in_turn(one_view, views)


class _Stream:
    """A data set that yields the same batches each time."""

    def __init__(self, data, teacher):
        size = int(data.cardinality())
        require(size, "`data` must hold at least one batch", data=data)
        require(size != tf.data.INFINITE_CARDINALITY, "`data` must end", cardinality="infinite",
                do="Leave out `repeat`; epochs are counted in `fit`.")
        require(data.options().deterministic is not False, "`data` must come in the same order each time",
                deterministic=False, do="Set its option `deterministic` to True.")
        self.data = data
        spec = keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(data.element_spec)[0])[0]
        expected = keras.tree.flatten(inputs_of(teacher))[0]
        require(len(spec.shape) == len(expected.shape), "`data` must come in batches", element=tuple(spec.shape),
                teacher=tuple(expected.shape), do="Call `data.batch(64)`.")
        self.batches = None if size == tf.data.UNKNOWN_CARDINALITY else size
        first, again = (keras.tree.flatten(next(iter(self), None)) for _ in range(2))
        same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(first, again, strict=True))
        require(same, "`data` must come in the same order and form each time, and its first batch did not",
                do="Leave out `shuffle` and random changes: pass arrays, which are shuffled later, and `augment=`.")

    def __iter__(self):
        for element in self.data.as_numpy_iterator():
            yield keras.utils.unpack_x_y_sample_weight(element)[0]

    def with_outputs(self, store, augment, views):
        def one_view(view):
            def number(start, element):
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(element)
                end = start + tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[0]
                found = {"x": x, "y": y, "sample_weight": sample_weight}
                return end, _element(found, store, augment, view, tf.range(start, end))

            return self.data.scan(tf.constant(0, tf.int64), number)

        return _in_turn(one_view, views)


def _element(data, store, augment, view, index):
    """What the student gets of a batch."""
    x = data["x"] if augment is None else augment.apply(data["x"], epoch=view, index=index)
    outputs = {}
    for column, value in store.rows(view, index).items():
        output, kind, name = column.rsplit(":", 2)
        outputs.setdefault(output, {}).setdefault(kind, {})[name] = value
    y = {"teacher": outputs} if data["y"] is None else {"teacher": outputs, "y": data["y"]}
    return _data.in_tuples((x, y) if data["sample_weight"] is None else (x, y, data["sample_weight"]))


def _in_turn(one_view, views):
    dataset = one_view(0)
    for view in range(1, views):
        dataset = dataset.concatenate(one_view(view))
    return without_autotune(dataset.prefetch(tf.data.AUTOTUNE))


def _fingerprint(model):
    """Of what decides the outputs: the states of dropout, which are new each time a model is loaded, do not."""
    return _files.fingerprint(*(part for variable in model.weights
                                for part in (variable.path.split("/")[-1], np.asarray(variable))))


def _canonical(augment):
    """The augmentation as it stands in the folder's index."""
    return json.loads(json.dumps({"class": type(augment).__name__, "config": augment.get_config()}, default=str))
