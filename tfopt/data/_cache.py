"""Decoded images, kept as uint8 in memory or on disk: the disk cache knows when its files changed."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time

import numpy as np

from .._check import require

_VERSION = 1                     # of the decoder: another one makes every cache anew
_A_DAY = 24 * 3600


def open_store(root, files, shape, decode, each, cache):
    """Where the decoded images are.

    Args:
      root: the folder the files belong to; a disk cache is found again by it.
      files: {name: path}.
      shape: of one image.
      decode: path -> uint8 array of that shape; raises for a bad file.
      each: `(function, items) -> results`, in parallel and in order.
      cache: "memory", "disk", a folder or None, see `image_folder`; "auto" was chosen before, see `choose`.
    Returns:
      `read(rows) -> uint8[b, *shape]`, where rows count the files in order, and {name: exception} of the bad ones.
    """
    if cache == "memory":
        images = np.empty((len(files), *shape), np.uint8)
        return images.__getitem__, _fill(images, enumerate(files.items()), decode, each)
    if cache is None:
        paths = list(files.values())

        def read(rows):
            return np.stack([decode(paths[row]) for row in rows])

        return read, _fill(_Nowhere(), enumerate(files.items()), decode, each)
    return _on_disk(root, files, shape, decode, each, default_folder() if cache == "disk" else pathlib.Path(cache))


def choose(size):
    """"memory", "disk" or None for `size` bytes: at most half of what is free is taken.

    Example:
      >>> choose(1)
      'memory'
    """
    if size <= free_memory() / 2:
        return "memory"
    return "disk" if size <= _free_disk(default_folder()) / 2 else None


def default_folder():
    """The folder of cache="disk": beside the data sets of Keras."""
    return pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras")) / "tfopt" / "images"


def free_memory():
    """Bytes that can be taken without swapping, inside the container's limit if there is one."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):                       # "max" means no limit: a ValueError
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(free)) if free else 2 ** 30                        # unknown, as on macOS: stay small


def _free_disk(folder):
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _fill(images, rows, decode, each):
    """Decodes `rows`, pairs (row, (name, path)), into `images`; returns {name: exception}."""

    def put(item):
        row, (name, path) = item
        try:
            images[row] = decode(path)
        except Exception as error:                                       # Pillow's decoders raise many kinds
            return name, error
        return None

    return dict(problem for problem in each(put, list(rows)) if problem)


class _Nowhere:
    """Takes images and keeps none."""

    def __setitem__(self, row, image):
        pass


def _on_disk(root, files, shape, decode, each, folder):
    """One .npy of images and one .json that says which file, of which size and time, is in which row.

    A new .npy has a name of its own until the .json, renamed into place, points to it: a reader sees the old pair or
    the new one. Rows of unchanged files are copied; a damaged pair is made anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.blake2b(json.dumps([_VERSION, str(root), shape]).encode(), digest_size=12).hexdigest()
    manifest = folder / f"{key}.json"
    stamps = {name: _stamp(path) for name, path in files.items()}
    kept, images = _reopen(manifest, shape)
    rows = {name: kept[name][2] for name in files if name in kept and kept[name][:2] == stamps[name]}
    again = {name: path for name, path in files.items() if rows.get(name) is None}
    bad_before = {name: path for name, path in again.items() if name in rows}
    problems = _fill(_Nowhere(), enumerate(bad_before.items()), decode, each)
    if len(problems) < len(again):
        images, problems = _rebuild(manifest, files, stamps, rows, images, shape, decode, each)
        rows = {name: None if name in problems else row for row, name in enumerate(files)}
    where = np.array([rows[name] or 0 for name in files])                # nobody asks for the row of a bad file
    return lambda wanted: images[where[wanted]], problems


def _rebuild(manifest, files, stamps, rows, old, shape, decode, each):
    """A new pair from the old one and the files; returns the new images and {name: exception}."""
    need, free = int(np.prod(shape)) * len(files), _free_disk(manifest.parent)
    require(need <= free, "the image cache must fit on the disk", need=f"{need:,} bytes", free=f"{free:,} bytes",
            do="Pass another folder as `cache`, or cache=None to decode in every epoch.", error=OSError)
    handle, path = tempfile.mkstemp(dir=manifest.parent, prefix=manifest.stem, suffix=".npy")
    os.close(handle)
    path = pathlib.Path(path)
    try:
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (len(files), *shape))
        for row, name in enumerate(files):
            if rows.get(name) is not None:
                images[row] = old[rows[name]]
        problems = _fill(images, [(row, item) for row, item in enumerate(files.items()) if rows.get(item[0]) is None],
                         decode, each)
        images.flush()
        note = {"images": path.name, "files": {name: [*stamps[name], None if name in problems else row]
                                               for row, name in enumerate(files)}}
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(note))
        draft.replace(manifest)
    except BaseException:
        path.unlink()
        raise
    replaced = old is not None and pathlib.Path(old.filename).name
    for other in manifest.parent.glob(f"{manifest.stem}*.npy"):
        with contextlib.suppress(OSError):
            left_by_a_crash = other != path and time.time() - other.stat().st_mtime > _A_DAY
            if other.name == replaced or left_by_a_crash:
                other.unlink()
    return np.load(path, mmap_mode="r"), problems


def _reopen(manifest, shape):
    """{name: [size, time, row or None if it was bad]} and the images, or nothing if the pair is not sound."""
    try:
        note = json.loads(manifest.read_text())
        images = np.load(manifest.parent / note["images"], mmap_mode="r")
        sound = (images.shape == (len(note["files"]), *shape) and images.dtype == np.uint8
                 and all(len(entry) == 3 for entry in note["files"].values()))
        return (note["files"], images) if sound else ({}, None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return {}, None


def _stamp(path):
    """[size, time of the last change in ns], or of a file that is not there [-1, -1]."""
    try:
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns]
    except OSError:
        return [-1, -1]
