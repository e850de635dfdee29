"""A teacher's answers, asked for once: in memory or in files that a broken run goes on writing."""

import hashlib
import json
import os
import pathlib
import zlib

import numpy as np

from .. import _models
from .._check import require, require_number
from .._keras import keras, tf, without_autotune
from ._formulas import to_float
from ._outputs import Side, inputs_of, logits_of
from ._teachers import pack

_SHARD = 8192                                   # examples; a shard ends with the batch that fills it


def cache_teacher(teacher, data, *, directory=None, top_k=None, augment=None, views=1, batch_size=64):
    """Asks the teacher once; the data set that comes back carries its answers, so training no longer runs it.

        answers[k, i] = teacher(augment(x_i; epoch=k, index=i)),   k = 0 ... views - 1

    One pass over the result shows every example once in each view, `views` epochs in one: with the very pixels the
    teacher saw, which is what makes a teacher of augmented data consistent. Answers are logits in float16, or the
    log-probabilities of the `top_k` first classes, beside which all others share what is left.

    Args:
      teacher: a built keras.Model with one output: logits, softmax or sigmoid.
      data: arrays x, (x, y) or (x, y, sample_weight), which are shuffled anew in every pass; or a finite, batched
        tf.data.Dataset of the same, which must yield the same batches in the same order each time, and does so here.
      directory: a folder for the answers, written shard by shard. A run that was broken off goes on after the last
        whole shard; a finished folder is read. None keeps the answers in memory.
      top_k: how many classes to keep, 1 up to the number of classes (exclusive). None keeps all.
      augment: None or a replayable augmentation: `augment.apply(x, epoch=, index=)` depends on nothing else and
        `augment.replayable` is true, as for `tfopt.augment.Pipeline` without MixUp and CutMix.
      views: how many augmented views of each example, >= 1.
      batch_size: batch size for arrays.

    Returns:
      A tf.data.Dataset of (x, {"y": y, "teacher": answers}[, sample_weight]) for `Distiller(None, student, losses)`.

    Raises:
      ValueError: the data come in another order or form each time, are endless or not batched; the augmentation is not
        replayable; the folder holds answers of another teacher or to other data; an answer is not finite.

    Example:
      >>> import contextlib, io, numpy as np
      >>> from tfopt import distill
      >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
      >>> x, y = np.zeros((10, 4), "float32"), np.zeros(10, "int64")
      >>> with contextlib.redirect_stdout(io.StringIO()):                            # without the progress bar
      ...     taught = distill.cache_teacher(teacher, (x, y), batch_size=5)
      >>> distiller = distill.Distiller(None, keras.models.clone_model(teacher), distill.Logits())
      >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
      >>> sorted(distiller.fit(taught, verbose=0).history)
      ['distillation_loss', 'loss', 'student_loss']

    Reference:
      Beyer et al.: Knowledge Distillation: A Good Teacher is Patient and Consistent (2022).
      https://arxiv.org/abs/2106.05237
    """
    _models.require_model(teacher, "distill.cache_teacher")
    require_number("views", views, low=1, integer=True)
    require_number("batch_size", batch_size, low=1, integer=True)
    replayable = augment is None or (hasattr(augment, "apply") and getattr(augment, "replayable", False))
    require(replayable, "`augment` must be replayable: its views may depend on (epoch, index) alone", augment=augment,
            do="Pass a tfopt.augment.Pipeline without MixUp and CutMix.")
    require(augment is not None or views == 1, "several `views` need an augmentation", views=views,
            do="Pass `augment`.")
    source = _Stream(data, teacher) if isinstance(data, tf.data.Dataset) else _Arrays(data, batch_size)
    ask, kind = _question(teacher, top_k, augment)
    asked = {"teacher": _fingerprint(teacher), "top_k": top_k, "views": views,
             "augment": None if augment is None else _canonical(augment)}
    answers = _write(source, ask, views, _Folder(directory, asked) if directory is not None else _Memory())
    return source.taught(answers, kind, augment, views)


def _question(teacher, top_k, augment):
    """((x, epoch, index) -> packed answers, the kind of the teacher's output)."""
    side = Side(teacher, "teacher", inputs_of(teacher))
    answer = side.answer(None)
    require(answer.kind, "the teacher must end in logits, a softmax or a sigmoid to be remembered",
            teacher=teacher.name, last_operation=answer.last, do="Pass a model that ends in its logits.")
    if top_k is not None:
        require_number("top_k", top_k, low=1, integer=True, below=answer.shape[-1])
        require(answer.kind != "sigmoid" and len(answer.shape) == 2, "`top_k` needs classes that exclude each other",
                teacher=f"{teacher.name} ends in {answer.kind}, {answer.shape}", do="Leave `top_k` out.")

    @tf.function(reduce_retracing=True)
    def ask(x, epoch, index):
        seen = x if augment is None else augment.apply(x, epoch=epoch, index=index)
        logits = to_float(logits_of(side(seen, training=False).outputs, answer.kind))
        return pack(logits, answer.kind, top_k)[answer.kind]

    return ask, answer.kind


def _write(source, ask, views, store):
    """Fills the store, shard by shard, leaving out what is there; returns it."""
    progress = keras.utils.Progbar(source.batches and source.batches * views, unit_name="batch")
    for view in range(views):
        shard, start = _Shard(store, view, 0), 0
        for x in source:
            end = start + len(keras.tree.flatten(x)[0])
            shard.add(x, tf.range(start, end, dtype=tf.int64), ask)
            start = end
            progress.add(1)
            if shard.rows >= _SHARD:
                shard = shard.close()
        shard.close()
        require(start, "`data` must hold examples", data=type(source.data).__name__)
    store.finish()
    return store


class _Shard:
    """Some thousand examples in a row, the unit of what is written and of what is not done twice."""

    def __init__(self, store, view, number):
        self.store, self.view, self.number = store, view, number
        self.rows, self.checks, self.answers = 0, 0, []
        self.known = store.knows(view, number)

    def add(self, x, index, ask):
        for part in keras.tree.flatten(x):
            self.checks = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), self.checks)
        self.rows += len(index)
        if not self.known:
            self.answers.append({name: np.asarray(column) for name, column in
                                 ask(x, tf.constant(self.view, tf.int64), index).items()})

    def close(self):
        """Puts the shard away and returns the next one."""
        if self.known:
            self.store.check(self.view, self.number, self.rows, self.checks)
        elif self.rows:
            self.store.put(self.view, self.number, self.rows, self.checks, _table(self.answers))
        return _Shard(self.store, self.view, self.number + 1)


def _table(batches):
    """One structured array of the answers to several batches."""
    columns = {name: np.concatenate([answers[name] for answers in batches]) for name in batches[0]}
    for column in columns.values():
        require(column.dtype != np.float16 or np.isfinite(column).all(),
                "the teacher's answers must be finite in float16",
                do="Look for infinite values in the data and the teacher's weights.")
    table = np.empty(len(column), [(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def _key(view, number):
    return f"view-{view:03}-shard-{number:05}"


class _Memory:
    """Shards in memory."""

    def __init__(self):
        self.shards = {}

    def knows(self, view, number):
        return False

    def put(self, view, number, rows, checks, table):
        self.shards.setdefault(view, []).append(table)

    def finish(self):
        self.columns = {name: tf.stack([tf.constant(np.concatenate([table[name] for table in tables]))
                                        for _, tables in sorted(self.shards.items())])
                        for name in self.shards[0][0].dtype.names}

    def rows(self, view, index):
        return {name: tf.gather(column[view], index) for name, column in self.columns.items()}


class _Folder:
    """Shards in files: one .npy each, and a table of what they hold that is replaced in one step."""

    def __init__(self, path, asked):
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.listing = self.path / "remembered.json"
        self.held = json.loads(self.listing.read_text()) if self.listing.exists() else {"asked": asked, "shards": {}}
        other = sorted(key for key in asked if self.held["asked"].get(key) != asked[key])
        require(not other, "the folder holds answers to another question", path=str(path), differs=other,
                do="Choose another `directory`, or delete this one.")

    def _file(self, key):
        return self.path / f"{key}.npy"

    def knows(self, view, number):
        key = _key(view, number)
        return key in self.held["shards"] and self._file(key).exists()

    def check(self, view, number, rows, checks):
        key = _key(view, number)
        require(self.held["shards"][key] == [rows, checks], "the folder holds answers to other data, or to the same in "
                "another order", path=str(self.path), shard=key,
                do="Pass the same data, or choose another `directory`.")

    def put(self, view, number, rows, checks, table):
        key = _key(view, number)
        _replace(self._file(key), lambda file: np.save(file, table, allow_pickle=False))
        self.held["shards"][key] = [rows, checks]
        _replace(self.listing, lambda file: file.write(json.dumps(self.held, indent=1).encode()))

    def finish(self):
        self.views, self.starts = {}, {}
        for key in sorted(self.held["shards"]):
            view = int(key.split("-")[1])
            self.views.setdefault(view, []).append(np.load(self._file(key), mmap_mode="r", allow_pickle=False))
        for view, tables in self.views.items():
            self.starts[view] = np.cumsum([0, *map(len, tables)])
        self.form = self.views[0][0].dtype

    def rows(self, view, index):
        def read(index):
            shards = np.searchsorted(self.starts[view], index, side="right") - 1
            table = np.empty(len(index), self.form)
            for shard in np.unique(shards):
                chosen = shards == shard
                table[chosen] = self.views[view][shard][index[chosen] - self.starts[view][shard]]
            return [np.ascontiguousarray(table[name]) for name in self.form.names]

        columns = tf.numpy_function(read, [index], [tf.as_dtype(self.form[name].base) for name in self.form.names])
        for name, column in zip(self.form.names, columns, strict=True):
            column.set_shape((None, *self.form[name].shape))
        return dict(zip(self.form.names, columns, strict=True))


class _Arrays:
    """Arrays: read in their order when the teacher is asked, shuffled in training."""

    def __init__(self, data, batch):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.data = keras.tree.map_structure(_tensor, {"x": x, "y": y, "sample_weight": sample_weight})
        lengths = {part.shape[0] for part in keras.tree.flatten(self.data) if part is not None}
        require(len(lengths) == 1, "the arrays of `data` must have one length", lengths=sorted(lengths))
        self.length, self.batch = lengths.pop(), batch
        self.batches = -(-self.length // batch)

    def __iter__(self):
        for start in range(0, self.length, self.batch):
            yield keras.tree.map_structure(lambda part: part[start:start + self.batch], self.data["x"])  # noqa: B023

    def taught(self, answers, kind, augment, views):
        def look_up(view):
            def element(index):
                found = {name: None if part is None else keras.tree.map_structure(
                    lambda rows: tf.gather(rows, index), part) for name, part in self.data.items()}
                return _element(found, answers, kind, augment, view, index)

            rows = tf.data.Dataset.range(self.length).shuffle(self.length, seed=view, reshuffle_each_iteration=True)
            return rows.batch(self.batch).map(element, tf.data.AUTOTUNE)

        return _in_turn(look_up, views)


class _Stream:
    """A data set that yields the same batches each time."""

    def __init__(self, data, teacher):
        size = int(data.cardinality())
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

    def taught(self, answers, kind, augment, views):
        def look_up(view):
            def number(start, element):
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(element)
                end = start + tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[0]
                found = {"x": x, "y": y, "sample_weight": sample_weight}
                return end, _element(found, answers, kind, augment, view, tf.range(start, end))

            return self.data.scan(tf.constant(0, tf.int64), number)

        return _in_turn(look_up, views)


def _element(data, answers, kind, augment, view, index):
    """What the student gets of a batch."""
    x = data["x"] if augment is None else augment.apply(data["x"], epoch=view, index=index)
    y = {"teacher": {kind: answers.rows(view, index)}}
    if data["y"] is not None:
        y["y"] = data["y"]
    return (x, y) if data["sample_weight"] is None else (x, y, data["sample_weight"])


def _in_turn(look_up, views):
    dataset = look_up(0)
    for view in range(1, views):
        dataset = dataset.concatenate(look_up(view))
    return without_autotune(dataset.prefetch(tf.data.AUTOTUNE))


def _tensor(part):
    """Floating arrays become Keras' own float, as in `fit`."""
    if part is None:
        return None
    part = tf.convert_to_tensor(part)
    return tf.cast(part, keras.config.floatx()) if part.dtype.is_floating else part


def _fingerprint(model):
    """Of what decides an answer: the states of dropout, which are new each time a model is loaded, do not."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(variable.path.split("/")[-1].encode() + np.ascontiguousarray(variable).tobytes())
    return digest.hexdigest()


def _canonical(augment):
    """The augmentation as it stands in the folder's table."""
    return json.loads(json.dumps({"class": type(augment).__name__, "config": augment.get_config()}, default=str))


def _replace(path, write):
    """Writes a file as a whole or not at all."""
    half = path.with_suffix(".half")
    with half.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
