"""Folders of images to batches: listed, checked, decoded once, split for good, shuffled, augmented."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import warnings

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from .._check import require, require_number
from .._keras import tf
from ._arrays import batches, training_view, validation_view
from ._cache import choose, open_store
from ._table import encode_target

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")             # what is opened; others of Pillow's start programs
Image.init()                      # now: the first threads to open a file would meet a half-filled table of formats


def is_validation(name, fraction):
    """True for `fraction` of all names: those whose hash is low. The same for ever, whatever else is in the folder.

    Example:
      >>> [is_validation(f"cat/{i}.jpg", 0.3) for i in range(6)]
      [True, True, False, True, False, True]
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2 ** 64


def decode(path, height, width, channels):
    """uint8[height, width, channels] of an image file, resized with antialiasing, turned as its EXIF tag says.

    The content counts, not the suffix. Of an animation the first frame; 16 bits are cut to 8; alpha is dropped.
    """
    with Image.open(path, formats=FORMATS) as image:
        image.draft(None, (2 * max(height, width),) * 2)    # a JPEG far too large is decoded at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        if image.mode == "P":
            image = image.convert("RGBA")
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels)


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """What was found in a folder of images, and what was done about it.

    Args:
      files: how many image files there are.
      bad: {name: why it cannot be decoded}.
      odd: {name: what is unusual about it}, though it can be decoded.
      ignored: names of other files that were passed over.
      replaced: {name of a bad one: name of the example that stands in its place}.
    Example:
      >>> print(ImageReport(files=120, bad={"cat/3.jpg": "empty file"}))
      1 of 120 images is bad: cat/3.jpg (empty file).
    """

    files: int
    bad: dict = dataclasses.field(default_factory=dict)
    odd: dict = dataclasses.field(default_factory=dict)
    ignored: list = dataclasses.field(default_factory=list)
    replaced: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        lines = [f"{len(self.bad)} of {self.files} images {'is' if len(self.bad) == 1 else 'are'} bad"
                 + _first(self.bad, ": ")]
        if self.odd:
            lines.append(f"{len(self.odd)} can be decoded but {'is' if len(self.odd) == 1 else 'are'} unusual"
                         + _first(self.odd, ": "))
        if self.ignored:
            lines.append(f"{len(self.ignored)} other files: {', '.join(self.ignored[:5])}.")
        return " ".join(lines)


def scan_images(directory):
    """Decodes every image below a folder and tells which are bad, which are odd, and why.

    Args:
      directory: a folder, or a CSV of files and labels: as in `image_folder`.
    Returns:
      A `ImageReport`. Printing it names the first few; `.bad` and `.odd` hold all.
    Raises:
      ValueError: there is no such folder, or it holds no images.
    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.jpg").write_bytes(b""), (folder / "b.png").write_text("<html>")
      >>> print(scan_images(folder))
      2 of 2 images are bad: a.jpg (empty file), b.png (not a BMP, GIF, JPEG, PNG or WEBP image).
    """
    path = pathlib.Path(directory)
    if _is_csv(path):
        found = _from_csv(path)
        files, ignored = found.files, found.ignored
    else:
        _, files, ignored = _walk(path, "data.scan_images")
    require(files, "data.scan_images found no images", path=str(path), suffixes=SUFFIXES)

    def inspect(item):
        name, path = item
        try:
            _load(path, 8, 8, 3)
        except _BadImageError as error:
            return name, error.why, None
        return name, None, _odd(path)

    seen = _each(inspect, list(files.items()))
    return ImageReport(files=len(files), bad={name: why for name, why, _ in seen if why},
                odd={name: odd for name, _, odd in seen if odd}, ignored=ignored)


def image_folder(directory, image_size, batch_size, *, validation_split=0.0, augment=None, cache="auto", shuffle=True,
                 seed=0, on_error="raise"):
    """Batches of (images, labels) from a folder: each file is decoded once, then cached as uint8.

        decode + resize -> cache -> shuffle -> batch -> augment -> float32 in 0 .. 255 -> prefetch

    Every image is decoded before the first batch, in parallel, so bad files are known before training begins.
    Each pass over the dataset is an epoch with an order of its own, drawn from (seed, epoch).

    Args:
      directory: a folder with one sub-folder per class (sorted: class 0, 1, ...); or a CSV with a header and two
        columns, file (relative to the CSV) and label; or a flat folder that holds such a CSV. Text labels become
        classes, numbers stay as they are. Files: jpeg, png, bmp, gif (its first frame), webp.
      image_size: side in pixels, `(height, width)` or `(height, width, channels)` with 3 (default) or 1 channels.
      batch_size: examples in a batch over all replicas, >= 1; the last one may be shorter, see `full_batches`.
      validation_split: share of the files in [0, 1) that is set aside. A file's side depends on its path below the
        folder alone: it stays there when files are added, and for every seed.
      augment: for training only. An `augment.Pipeline` (anything with `apply(images, labels, *, epoch, index)`), a
        Keras layer (images alone; outside training it is called with training=False), or a callable
        `(images, labels) -> (images, labels)`. It is given uint8.
      cache: "memory"; "disk" (below `$KERAS_HOME/tfopt`) or a folder: kept between runs, and made anew for files
        whose size or time changed; None: decoded again in every epoch; "auto": memory if the images take less than
        half of what is free, else disk by the same rule, else None.
      shuffle: False keeps the order of the sorted paths.
      seed: whole number >= 0.
      on_error: what to do about files that cannot be decoded: "raise"; "skip"; "replace", by the next good example of
        the same class and side of the split. The last two warn with counts and names.
    Returns:
      A tf.data.Dataset, or `(train, validation)` if `validation_split` > 0. Each has `.class_names` (None if labels
      are numbers), `.file_paths`, `.class_weight` (as `fit` takes it: each class counts alike) and `.report`, an
      `ImageReport`.
    Raises:
      ValueError: there are no images, an image is bad and `on_error` is "raise", or a side of the split is empty.
    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from PIL import Image
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> for name in ("cat", "dog"):
      ...     (root / name).mkdir()
      ...     for i in range(4):
      ...         Image.fromarray(np.full((9, 9, 3), 20 * i, np.uint8)).save(root / name / f"{i}.png")
      >>> train, validation = image_folder(root, 8, 2, validation_split=0.3)
      >>> train.class_names, len(train.file_paths), len(validation.file_paths)
      (['cat', 'dog'], 6, 2)
      >>> images, labels = next(iter(train))
      >>> images.shape, images.dtype
      (TensorShape([2, 8, 8, 3]), tf.float32)
    """
    height, width, channels = _shape_of(image_size)
    require_number("validation_split", validation_split, low=0, below=1)
    require(on_error in ("raise", "skip", "replace"), '`on_error` must be "raise", "skip" or "replace"',
            on_error=on_error)
    is_folder = isinstance(cache, os.PathLike) or (isinstance(cache, str) and (os.sep in cache or os.path.isdir(cache)))
    require(cache in (None, "auto", "memory", "disk") or is_folder,
            '`cache` must be "auto", "memory", "disk", a folder or None', cache=cache,
            do="Pass a new folder as a path: pathlib.Path(name).")
    view = training_view(augment)
    found = _labeled(directory)
    if cache == "auto":
        cache = choose(len(found.files) * height * width * channels)
        if cache is None:
            warnings.warn("data.image_folder: neither memory nor disk holds the decoded images; they will be decoded "
                          "again in every epoch.", stacklevel=2)
    read, problems = open_store(found.root, found.files, (height, width, channels),
                                lambda path: _load(path, height, width, channels), _each, cache)
    paths = list(found.files.values())
    held_out = np.array([is_validation(name, validation_split) for name in found.files])
    examples, report = _examples(found, {name: error.why for name, error in problems.items()}, held_out, on_error)
    if report.bad:
        warnings.warn(f"data.image_folder: {report} {len(report.replaced)} replaced, "
                      f"{len(report.bad) - len(report.replaced)} left out.", stacklevel=2)

    def side(chosen, view, shuffle):
        require(chosen.any(), "each side of the split needs an example", files=len(found.files),
                validation_split=validation_split, do="Add images, or change `validation_split`.")
        ids, sources = np.flatnonzero(chosen), examples[chosen]
        labels = found.labels[sources]

        def read_batch(rows):
            images = tf.numpy_function(read, [tf.gather(sources, rows)], tf.uint8)
            return tf.ensure_shape(images, [rows.shape[0], height, width, channels]), tf.gather(labels, rows)

        def seen(element, epoch, rows):
            images, *rest = view(element, epoch, tf.gather(ids, rows))
            return tf.cast(images, tf.float32) if images.dtype == tf.uint8 else images, *rest

        dataset = batches(len(ids), batch_size, read_batch, view=seen, shuffle=shuffle, seed=seed)
        dataset.class_names, dataset.report = found.class_names, report
        dataset.file_paths = [str(paths[source]) for source in sources]
        dataset.class_weight = _class_weight(labels) if found.class_names else None
        return dataset

    good = examples >= 0
    train = side(good & ~held_out, view, shuffle)
    return (train, side(good & held_out, validation_view(augment), False)) if validation_split else train


def _examples(found, bad, held_out, on_error):
    """For every file the row of the example that is shown for it, -1 for none; and the report."""
    if bad and on_error == "raise":
        name, why = next(iter(bad.items()))
        require(False, "data.image_folder needs images that can be decoded", first=f"{found.files[name]}: {why}",
                and_more=len(bad) - 1,
                do='Repair or remove them, or pass on_error="skip" or "replace"; data.scan_images lists them all.')
    names, replaced = list(found.files), {}
    examples = np.array([-1 if name in bad else row for row, name in enumerate(names)])
    if on_error == "replace":
        # a number is no class: the next example is as good as any, and brings its own label along
        kinds = list(zip(held_out, found.labels if found.class_names else np.zeros(len(names)), strict=True))
        good = collections.defaultdict(list)
        for row, kind in enumerate(kinds):
            if examples[row] >= 0:
                good[kind].append(row)
        for row in np.flatnonzero(examples < 0):
            stand_ins = good[kinds[row]]
            if stand_ins:
                examples[row] = next((other for other in stand_ins if other > row), stand_ins[0])
                replaced[names[row]] = names[examples[row]]
    return examples, ImageReport(files=len(names), bad=bad, ignored=found.ignored, replaced=replaced)


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The image files of a folder, sorted: {name below the root: path}, and a label for each."""

    root: pathlib.Path
    files: dict
    labels: np.ndarray
    class_names: list
    ignored: list


def _labeled(path):
    path = pathlib.Path(path)
    if _is_csv(path):
        return _from_csv(path)
    root, images, ignored = _walk(path, "data.image_folder")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        tables = [name for name in ignored if name.endswith(".csv")]
        require(len(tables) == 1, "data.image_folder needs a sub-folder for each class, or one CSV of files and labels",
                path=str(root), csv=tables)
        return _from_csv(root / tables[0])
    stray = [name for name in images if "/" not in name]
    inside = {name: path for name, path in images.items() if "/" in name}
    require(inside, "data.image_folder needs images in the sub-folders", path=str(root), suffixes=SUFFIXES)
    number = {name: number for number, name in enumerate(classes)}
    labels = np.array([number[name.split("/")[0]] for name in inside], np.int32)
    return _Listing(root, inside, labels, classes, sorted(ignored + stray))


def _from_csv(path):
    frame = pd.read_csv(path, converters={0: str})
    require(frame.shape[1] == 2 and len(frame), "a CSV of labels needs a header, two columns (file, label) and rows",
            path=str(path), columns=list(frame.columns), rows=len(frame))
    frame = frame.sort_values(frame.columns[0])
    names = frame.iloc[:, 0]
    require(names.is_unique, "a CSV of labels must name each file once", path=str(path),
            twice=names[names.duplicated()].iloc[:3].tolist())
    labels, class_names = encode_target(frame.iloc[:, 1])
    root = path.resolve().parent
    files = {name: root / name for name in names}
    _, images, others = _walk(root, "data.image_folder")
    return _Listing(root, files, labels, class_names, sorted({*images, *others} - {*files, path.name}))


def _is_csv(path):
    return path.suffix == ".csv" and path.is_file()


def _walk(path, caller):
    """The folder, {name: path} of the images below it in order, and the names of all other files; hidden ones apart."""
    require(path.is_dir(), f"{caller} needs a folder, or a CSV of files and labels", path=str(path))
    root = path.resolve()
    names = sorted(pathlib.Path(folder, file).relative_to(root).as_posix()
                   for folder, _, files in os.walk(root) for file in files)
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    images = {name: root / name for name in names if name.lower().endswith(SUFFIXES)}
    return root, images, [name for name in names if name not in images]


class _BadImageError(OSError):
    """A file that cannot be decoded, and why."""

    def __init__(self, path, why):
        super().__init__(f"{path}: {why}")
        self.why = why


def _load(path, height, width, channels):
    try:
        return decode(path, height, width, channels)
    except FileNotFoundError:
        why = "no such file"
    except PermissionError:
        why = "permission denied"
    except UnidentifiedImageError:
        why = "empty file" if not os.path.getsize(path) else "not a BMP, GIF, JPEG, PNG or WEBP image"
    except Exception as error:                               # what Pillow's decoders raise has no common class
        why = f"damaged: {error}"
    raise _BadImageError(path, why)


def _odd(path):
    """What is unusual about an image that can be decoded, or None."""
    with Image.open(path, formats=FORMATS) as image:
        kind = "JPEG" if image.format == "MPO" else image.format         # a JPEG with a second picture behind it
        suffix = pathlib.Path(path).suffix[1:].upper().replace("JPG", "JPEG")
        notes = {f"{kind} content": kind != suffix, "CMYK": image.mode == "CMYK", "16 bits": image.mode.startswith("I"),
                 "animation, of which the first frame is used": kind != "JPEG" and getattr(image, "is_animated", False)}
    return ", ".join(note for note, holds in notes.items() if holds) or None


def _each(function, items):
    """[function(item) ...] in parallel: Pillow reads and resizes outside Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return [result for start in range(0, len(items), 4096)           # few enough to wait in line
                for result in threads.map(function, items[start:start + 4096])]


def _shape_of(image_size):
    shape = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    shape = (*shape, 3) if len(shape) == 2 else shape
    require(len(shape) == 3 and shape[2] in (1, 3),
            "`image_size` must be a side, (height, width) or (height, width, channels) with 1 or 3 channels",
            image_size=image_size)
    for side in shape[:2]:
        require_number("image_size", side, low=1, integer=True)
    return shape


def _class_weight(labels):
    found, counts = np.unique(labels, return_counts=True)
    return {int(label): len(labels) / (len(found) * int(count)) for label, count in zip(found, counts, strict=True)}


def _first(reasons, start):
    shown = ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:5])
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"{start}{shown}{more}." if reasons else "."
