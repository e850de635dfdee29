"""Cached outputs in shards of some thousand examples, in memory or in files that a broken run goes on writing."""

import pathlib
import re
import warnings

import numpy as np

from .. import _files
from .._check import require
from .._keras import keras, tf

_KEY = re.compile(r"view-\d{3,}-shard-\d{5,}")
_KIND = "index of a teacher's cached outputs"


class Shard:
    """Examples in a row: the unit of what is written, and of what is not computed twice."""

    def __init__(self, store, view, number):
        self.store, self.view, self.number = store, view, number
        self.rows, self.data, self.batches = 0, "", []
        self.key = f"view-{view:03}-shard-{number:05}"
        self.known = store.knows(self.key)

    def add(self, x, index, compute):
        """Adds a batch: its outputs, and its examples to the fingerprint of the data."""
        self.data = _files.fingerprint(self.data, *map(np.asarray, keras.tree.flatten(x)))
        self.rows += len(index)
        if not self.known:
            columns = compute(x, tf.constant(self.view, tf.int64), index)
            self.batches.append({name: np.asarray(column) for name, column in columns.items()})

    def close(self):
        """Puts the shard away and returns the next one."""
        if self.known:
            self.store.require_same(self.key, self.rows, self.data)
        elif self.rows:
            self.store.put(self.key, self.view, _table(self.batches), self.data)
        return Shard(self.store, self.view, self.number + 1)


def _table(batches):
    """One structured array of the outputs of several batches."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name, column in columns.items():
        require(np.isfinite(column).all(), "the teacher's outputs must be finite, and logits within 65,504 of the "
                "largest of their row (float16)", output=name.split(":")[0],
                do="Look for infinite values in the data and the teacher's weights.")
    rows = len(next(iter(columns.values())))
    table = np.empty(rows, [(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def _is_index(held):
    """Does an index tell of shards, whose names lead nowhere else."""
    parts = [held.get(name) if isinstance(held, dict) else None for name in ("made_from", "shards")]
    return all(isinstance(part, dict) for part in parts) and all(
        _KEY.fullmatch(key) and isinstance(shard, dict) and shard.keys() == {"rows", "data", "sha256"}
        for key, shard in parts[1].items())


class Memory:
    """Shards in memory."""

    def __init__(self):
        self.shards = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def knows(self, key):
        return False

    def put(self, key, view, table, data):
        self.shards.setdefault(view, []).append(table)

    def finish(self):
        self.columns = {name: tf.stack([tf.constant(np.concatenate([table[name] for table in tables]))
                                        for _, tables in sorted(self.shards.items())])
                        for name in self.shards[0][0].dtype.names}
        self.shards = {}

    def rows(self, view, index):
        return {name: tf.gather(column[view], index) for name, column in self.columns.items()}


class Folder:
    """Shards in files: one .npy each, and an index of what they hold, with checksums, that is replaced in one step.

    Inside `with` no other process can write to the folder.

    Args:
      directory: the folder; made if it is not there.
      made_from: what decides the outputs, as JSON has it.
    """

    def __init__(self, directory, made_from):
        self.directory, self.made_from, self.used = pathlib.Path(directory), made_from, []

    def __enter__(self):
        self.lock = _files.Lock(self.directory / ".lock", "distill.cache_teacher: only one process may write to a "
                                f"directory. Received: directory={str(self.directory)!r}. Wait for the other one to "
                                "end, or choose another `directory`.")
        self.index = self.directory / "index.json"
        try:
            self.shards = self._read()
        except BaseException:
            self.lock.close()
            raise
        return self

    def __exit__(self, *error):
        self.lock.close()

    def _read(self):
        """{key: what the index tells of a shard}."""
        if not self.index.exists():
            return {}
        try:
            held = _files.read_json(self.index, kind=_KIND)
        except _files.DamagedError as error:
            warnings.warn(f"distill.cache_teacher: {error} All outputs in its directory are computed again.",
                          stacklevel=4)
            return {}
        if not _is_index(held):
            warnings.warn(f"distill.cache_teacher: {self.index} does not hold what this library notes. All outputs in "
                          "its directory are computed again.", stacklevel=4)
            return {}
        other = sorted(key for key in self.made_from if held["made_from"].get(key) != self.made_from[key])
        require(not other, "the directory holds outputs of another teacher or other arguments",
                directory=str(self.directory), differs=other, do="Choose another `directory`, or delete this one.")
        return held["shards"]

    def _file(self, key):
        return self.directory / f"{key}.npy"

    def knows(self, key):
        if key not in self.shards:
            return False
        try:
            _files.require_whole(self._file(key), self.shards[key]["sha256"])
        except _files.DamagedError as error:
            warnings.warn(f"distill.cache_teacher: {error} Its outputs are computed again.", stacklevel=5)
            del self.shards[key]
        return key in self.shards

    def require_same(self, key, rows, data):
        self.used.append(key)
        require((self.shards[key]["rows"], self.shards[key]["data"]) == (rows, data), "the directory "
                "holds outputs for other data, or for the same in another order",
                directory=str(self.directory), shard=key, do="Pass the same data, or choose another `directory`.")

    def put(self, key, view, table, data):
        self.used.append(key)
        require(self.directory.is_dir(), "the directory is gone, and with it the outputs that were there",
                directory=str(self.directory), do="Bring it back, or compute them anew.", error=FileNotFoundError)
        _files.write(self._file(key), lambda file: np.save(file, table, allow_pickle=False))
        self.shards[key] = {"rows": len(table), "data": data, "sha256": _files.checksum(self._file(key))}
        _files.write_json(self.index, {"made_from": self.made_from, "shards": self.shards}, kind=_KIND)

    def finish(self):
        self.views, self.starts = {}, {}
        for key in sorted(self.used):
            table = np.load(self._file(key), mmap_mode="r", allow_pickle=False)
            self.views.setdefault(int(key.split("-")[1]), []).append(table)
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
