"""Decoded images, kept as uint8 in memory or on disk: the disk cache notices changed files and damage to itself."""

import contextlib
import os
import pathlib
import shutil
import time
import typing
import warnings
import zlib

import numpy as np

from .. import _files
from .._check import require

VERSION = 2                      # of the decoder and of the format: another one makes every cache anew
A_DAY = 24 * 3600


class Store(typing.NamedTuple):
    """Where decoded images are kept.

    Args:
      root: the folder the files belong to; a disk cache is found again by it.
      files: {name: path}.
      shape: of one image.
      decode: path -> uint8 array of that shape; raises for a bad file.
      each: `(function, items) -> results`, in parallel and in order.
    """

    root: pathlib.Path
    files: dict
    shape: tuple
    decode: typing.Callable
    each: typing.Callable

    def open(self, cache):
        """`read(rows) -> uint8[b, *shape]`, where rows count the files in order, and {name: exception} of the bad ones.

        Args:
          cache: "memory", "disk", a folder or None, see `image_folder`; "auto" was chosen before, see `choose`.
        """
        if cache == "memory":
            images = np.empty((len(self.files), *self.shape), np.uint8)
            return images.__getitem__, self.fill(images.__setitem__, enumerate(self.files.items()))
        if cache is None:
            paths = list(self.files.values())
            return (lambda rows: np.stack([self.decode(paths[row]) for row in rows]),
                    self.fill(_forget, enumerate(self.files.items())))
        return _on_disk(self, default_folder() if cache == "disk" else pathlib.Path(cache))

    def fill(self, put, rows):
        """Decodes `rows`, pairs (row, (name, path)), and calls `put(row, image)`; returns {name: exception}."""

        def one(item):
            row, (name, path) = item
            try:
                put(row, self.decode(path))
            except Exception as error:                                   # Pillow's decoders raise many kinds
                if _files.out_of_space(error):
                    raise
                return name, error
            return None

        return dict(problem for problem in self.each(one, list(rows)) if problem)


def _forget(row, image):
    """Keeps nothing: the image was decoded to see whether it can be."""


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


def _on_disk(store, folder):
    """One .npy of images and one .json that says which file, of which size and time, is in which row.

    The .json has a checksum of itself and one of each image, which are compared when the cache is opened. A new .npy
    has a name of its own; once it is on the disk, the .json that points to it is renamed into place: a reader sees the
    old pair or the new one. Rows of unchanged files are copied, those of damaged images decoded again.
    """
    _files.make_folder(folder, "cache")
    manifest = folder / f"{_files.fingerprint(VERSION, str(store.root), list(store.shape))[:24]}.json"
    kind = f"image cache of {store.root}"
    stamps = {name: _stamp(path) for name, path in store.files.items()}
    kept, images = _reopen(manifest, kind, store.shape)
    rows = {name: kept[name][2] for name in store.files if name in kept and kept[name][:2] == stamps[name]}
    again = {name: path for name, path in store.files.items() if rows.get(name) is None}
    bad_before = {name: path for name, path in again.items() if name in rows}
    problems = store.fill(_forget, enumerate(bad_before.items()))
    if len(problems) < len(again):
        images, problems = _rebuild(manifest, kind, store, stamps, rows, images)
        rows = {name: None if name in problems else row for row, name in enumerate(store.files)}
    where = np.array([rows[name] or 0 for name in store.files])          # nobody asks for the row of a bad file
    return lambda wanted: images[where[wanted]], problems


def _rebuild(manifest, kind, store, stamps, rows, old):
    """A new pair from the old one and the files; returns the new images and {name: exception}."""
    need, free = int(np.prod(store.shape)) * len(store.files), _free_disk(manifest.parent)
    require(need <= free, "the image cache must fit on the disk", need=f"{need:,} bytes", free=f"{free:,} bytes",
            do="Pass another folder as `cache`, or cache=None to decode in every epoch.", error=OSError)
    path = manifest.with_name(f"{manifest.stem}-{os.urandom(6).hex()}.npy")
    sums = [0] * len(store.files)
    try:
        with _files.whole(path) as part:
            images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(store.files), *store.shape))

            def put(row, image):
                images[row] = image
                sums[row] = _sum(image)

            for row, name in enumerate(store.files):
                if rows.get(name) is not None:
                    put(row, old[rows[name]])
            problems = store.fill(put, [(row, item) for row, item in enumerate(store.files.items())
                                        if rows.get(item[0]) is None])
            images.flush()
        note = {name: [*stamps[name], None if name in problems else row, sums[row]]
                for row, name in enumerate(store.files)}
        _files.write_json(manifest, {"images": path.name, "files": note}, kind=kind, version=VERSION)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    _remove_others(manifest, path, old)
    return np.load(path, mmap_mode="r"), problems


def _remove_others(manifest, path, old):
    """Removes what was replaced, and what a crash left a day ago or earlier."""
    replaced = old is not None and pathlib.Path(old.filename).name
    for other in manifest.parent.glob(f"{manifest.stem}*.npy"):
        with contextlib.suppress(OSError):
            left_by_a_crash = other != path and time.time() - other.stat().st_mtime > A_DAY
            if other.name == replaced or left_by_a_crash:
                other.unlink()


def _reopen(manifest, kind, shape):
    """{name: [size, time, row or None if it was bad, checksum]} and the images, or nothing if the pair is not sound."""
    if not manifest.exists():
        return {}, None
    try:
        note = _files.read_json(manifest, kind=kind, version=VERSION)
        path = _files.inside(manifest.parent, note["images"])
        images = _images_in(path, (len(note["files"]), *shape))
        damaged = [name for name, (_, _, row, total) in note["files"].items()
                   if row is not None and _sum(images[row]) != total]
    except _files.DamagedError as error:
        _warn(f"{error} All images are decoded again.")
        return {}, None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        _warn(f"{manifest} does not hold what this library notes. All images are decoded again.")
        return {}, None
    if damaged:
        _warn(f"{path} was changed: {len(damaged)} images are not as they were written, the first is {damaged[0]}. "
              "They are decoded again.")
    return {name: entry for name, entry in note["files"].items() if name not in damaged}, images


def _images_in(path, shape):
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        images = None
    if images is None or images.shape != shape or images.dtype != np.uint8:
        raise _files.DamagedError(f"{path} is missing, cut, or does not hold the images of this cache.")
    return images


def _warn(text):
    warnings.warn(f"data.image_folder: the image cache is damaged. {text}", stacklevel=7)


def _sum(image):
    """A checksum that costs far less than decoding: CRC-32."""
    return zlib.crc32(np.ascontiguousarray(image))


def _stamp(path):
    """[size, time of the last change in ns], or of a file that is not there [-1, -1]."""
    try:
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns]
    except OSError:
        return [-1, -1]
