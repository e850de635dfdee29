"""Folders of images to batches: listed, checked, decoded once, split for good, shuffled, augmented."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import typing
import warnings

import numpy as np

from .._check import (
    BATCH_SIZE,
    FLAG,
    NO,
    PATH,
    SEED,
    ListOf,
    Number,
    OneOf,
    Rule,
    Whole,
    checked,
    refusal,
    require,
)
from .._keras import tf
from .._typing import Dataset, PathLike
from ._arrays import AUGMENT, batches, training_view, validation_view
from ._cache import Store, choose
from ._decode import MAX_PIXELS, BadImageError, each, load, oddity
from ._listing import SUFFIXES, list_images, list_labeled

SIZE = Rule("a side, (height, width) or (height, width, channels) with 1 or 3 channels",
            lambda size: Whole(low=1)(size) is not NO or (
                isinstance(size, tuple | list) and len(size) in (2, 3) and ListOf(Whole(low=1))(size) is not NO
                and tuple(size[2:]) in ((), (1,), (3,))))
CACHE = Rule("'auto', 'memory', 'disk', a folder or None", lambda cache: cache is None or (PATH(cache) is not NO and (
    cache in ("auto", "memory", "disk") or isinstance(cache, os.PathLike) or os.sep in cache or os.path.isdir(cache))))


def is_validation(name, fraction):
    """True for `fraction` of all names: those whose hash is low. The same for ever, whatever else is in the folder.

    Example:
      >>> [is_validation(f"cat/{i}.jpg", 0.3) for i in range(6)]
      [True, True, False, True, False, True]
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2 ** 64


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """What was found in a folder of images, and what was done about it.

    Args:
      files: how many image files there are.
      bad: {name: why it cannot be decoded}.
      odd: {name: what is unusual about it}, though it can be decoded.
      ignored: names of other files that were passed over.
      replaced: {name of a bad one: name of the example that stands in its place}.
      empty: names of sub-folders without a single image.
    Example:
      >>> print(ImageReport(files=120, bad={"cat/3.jpg": "empty file"}))
      1 of 120 images is bad: cat/3.jpg (empty file).
    """

    noun: typing.ClassVar[str] = "image"
    files: int
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    odd: dict[str, str] = dataclasses.field(default_factory=dict)
    ignored: list[str] = dataclasses.field(default_factory=list)
    replaced: dict[str, str] = dataclasses.field(default_factory=dict)
    empty: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.bad)} of {self.files} {self.noun}s {'is' if len(self.bad) == 1 else 'are'} bad"
                 + _first(self.bad, ": ")]
        if self.odd:
            lines.append(f"{len(self.odd)} can be decoded but {'is' if len(self.odd) == 1 else 'are'} unusual"
                         + _first(self.odd, ": "))
        if self.ignored:
            lines.append(f"{len(self.ignored)} other files: {', '.join(self.ignored[:5])}.")
        if self.empty:
            lines.append(f"{len(self.empty)} sub-folders without {self.noun}s: {', '.join(self.empty[:5])}.")
        return " ".join(lines)


@checked(directory=PATH, root=PATH, max_pixels=Whole(low=1))
def scan_images(directory: PathLike, *, root: PathLike | None = None, max_pixels: int = MAX_PIXELS) -> ImageReport:
    """Data validation: decodes every image below a folder and tells which are bad, which are odd, and why.

    Args:
      directory: a folder, or a CSV of files and labels: as in `image_folder`.
      root: see `image_folder`.
      max_pixels: see `image_folder`.
    Returns:
      An `ImageReport`. Printing it names the first few; `.bad`, `.odd` and `.empty` hold all.
    Raises:
      ValueError: there is no such folder, or it holds no images.
    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.jpg").write_bytes(b""), (folder / "b.png").write_text("<html>")
      >>> print(scan_images(folder))
      2 of 2 images are bad: a.jpg (empty file), b.png (not a BMP, GIF, JPEG, PNG or WEBP image).
    """
    found = list_images(pathlib.Path(directory), root)
    require(found.files, "no images were found", directory=str(directory), suffixes=SUFFIXES)

    def inspect(item):
        name, path = item
        try:
            load(path, 8, 8, 3, max_pixels)
        except BadImageError as error:
            return name, error.why, None
        return name, None, oddity(path)

    seen = each(inspect, list(found.files.items()))
    return ImageReport(files=len(found.files), bad={name: why for name, why, _ in seen if why},
                       odd={name: odd for name, _, odd in seen if odd}, ignored=found.ignored, empty=found.empty)


@typing.overload
def image_folder(directory: PathLike, image_size: int | tuple[int, ...], batch_size: int, *,
                 validation_split: typing.Literal[0] = 0, augment: typing.Any = None, cache: PathLike | None = "auto",
                 shuffle: bool = True, seed: int = 0, on_error: str = "raise", max_pixels: int = MAX_PIXELS,
                 root: PathLike | None = None) -> Dataset: ...


@typing.overload
def image_folder(directory: PathLike, image_size: int | tuple[int, ...], batch_size: int, *, validation_split: float,
                 augment: typing.Any = None, cache: PathLike | None = "auto", shuffle: bool = True, seed: int = 0,
                 on_error: str = "raise", max_pixels: int = MAX_PIXELS,
                 root: PathLike | None = None) -> tuple[Dataset, Dataset]: ...


@checked(directory=PATH, image_size=SIZE, batch_size=BATCH_SIZE, validation_split=Number(low=0, below=1),
         augment=AUGMENT, cache=CACHE, shuffle=FLAG, seed=SEED, on_error=OneOf("raise", "skip", "replace"),
         max_pixels=Whole(low=1), root=PATH)
def image_folder(  # noqa: PLR0913 (what files from outside may do is said by arguments)
        directory: PathLike, image_size: int | tuple[int, ...], batch_size: int, *,
        validation_split: float = 0, augment: typing.Any = None, cache: PathLike | None = "auto",
        shuffle: bool = True, seed: int = 0, on_error: str = "raise", max_pixels: int = MAX_PIXELS,
        root: PathLike | None = None) -> typing.Any:
    """Batches of (images, labels) from a folder: each file is decoded once, then cached as uint8.

        decode + resize -> cache -> shuffle -> batch -> augment -> float32 in 0 .. 255 -> prefetch

    Every image is decoded before the first batch, in parallel, so bad files are known before training begins.
    Each pass over the dataset is an epoch with an order of its own, drawn from (seed, epoch).

    Args:
      directory: a folder with one sub-folder per class (sorted: class 0, 1, ...); or a CSV with a header and two
        columns, file and label; or a flat folder that holds such a CSV. Text labels become classes, numbers stay as
        they are. Files: jpeg, png, bmp, gif (its first frame), webp. Links to folders are followed, as Keras does.
      image_size: side in pixels, `(height, width)` or `(height, width, channels)` with 3 (default) or 1 channels.
      batch_size: examples in a batch over all replicas, >= 1; the last one may be shorter, see `full_batches`.
      validation_split: share of the files in [0, 1) that is set aside. A file's side depends on its path below the
        folder alone: it stays there when files are added, and for every seed.
      augment: for training only. An `augment.Pipeline` (anything with `apply(images, labels, *, epoch, index)`), a
        Keras layer (images alone; outside training it is called with training=False), or a callable
        `(images, labels) -> (images, labels)`. It is given uint8.
      cache: "memory"; "disk" (below `$KERAS_HOME/tfopt`) or a folder: kept between runs, and made anew for files
        whose size or time changed, or where the cache is damaged, with a warning; None: decoded again in every
        epoch; "auto": memory if the images take less than
        half of what is free, else disk by the same rule, else None.
      shuffle: False keeps the order of the sorted paths.
      seed: whole number >= 0.
      on_error: what to do about files that cannot be decoded: "raise"; "skip"; "replace", by the next good example of
        the same class and side of the split. The last two warn with counts and names.
      max_pixels: an image of more is bad, and not decoded: a small file can unpack to fill the memory.
      root: None: files that a CSV names must lie in its folder. Otherwise the folder they must lie in, which absolute
        paths and `..` may then lead to.
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
    height, width, channels = shape = _shape_of(image_size)
    found = list_labeled(pathlib.Path(directory), root)
    if cache == "auto":
        cache = _chosen_cache(len(found.files) * height * width * channels)
    store = Store(found.root, found.files, shape, lambda path: load(path, *shape, max_pixels), each)
    read, problems = store.open(cache)
    held_out = np.array([is_validation(name, validation_split) for name in found.files])
    examples, report = _examples(found, {name: error.why for name, error in problems.items()}, held_out, on_error)
    if report.bad or report.empty:
        warnings.warn(f"data.image_folder: {report} {len(report.replaced)} replaced, "
                      f"{len(report.bad) - len(report.replaced)} left out.", stacklevel=3)

    def side(chosen, view, shuffle):
        require(chosen.any(), "each side of the split needs an example", files=len(found.files),
                validation_split=validation_split, do="Add images, or change `validation_split`.")
        rows = np.flatnonzero(chosen)
        dataset = batches(len(rows), batch_size, _reader(read, examples[rows], found.labels, shape),
                          view=view._replace(of=_as_floats(view.of, rows)), shuffle=shuffle, seed=seed)
        return _described(dataset, found, examples[rows], report)

    train = side((examples >= 0) & ~held_out, training_view(augment, floats=True), shuffle)
    if not validation_split:
        return train
    return train, side((examples >= 0) & held_out, validation_view(augment), False)


def _chosen_cache(size):
    chosen = choose(size)
    if chosen is None:
        warnings.warn("data.image_folder: neither memory nor disk holds the decoded images; they will be decoded "
                      "again in every epoch.", stacklevel=4)
    return chosen


def _reader(read, sources, labels, shape):
    """`rows of one side -> (uint8 images, labels)`; `sources` says which example stands in each row."""
    labels = labels[sources]

    def read_batch(rows):
        images = tf.numpy_function(read, [tf.gather(sources, rows)], tf.uint8)
        return tf.ensure_shape(images, [rows.shape[0], *shape]), tf.gather(labels, rows)

    return read_batch


def _as_floats(view, ids):
    """The view of one side, told each file's place in the folder; its images are floats."""

    def seen(element, epoch, rows):
        images, *rest = view(element, epoch, tf.gather(ids, rows))
        return tf.cast(images, tf.float32) if images.dtype == tf.uint8 else images, *rest

    return seen


def _described(dataset, found, sources, report):
    """The data set with what its user wants to know of it."""
    paths = list(found.files.values())
    dataset.class_names, dataset.report = found.class_names, report
    dataset.file_paths = [str(paths[source]) for source in sources]
    dataset.class_weight = class_weight(found.labels[sources]) if found.class_names else None
    return dataset


def _examples(found, bad, held_out, on_error):
    """For every file the row of the example that is shown for it, -1 for none; and the report."""
    if bad and on_error == "raise":
        name, why = next(iter(bad.items()))
        raise refusal("all images must be decodable", first=f"{found.files[name]}: {why}", and_more=len(bad) - 1,
                      do='Repair or remove them, or pass on_error="skip" or "replace"; data.scan_images lists all.')
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
    return examples, ImageReport(files=len(names), bad=bad, ignored=found.ignored, replaced=replaced,
                                 empty=found.empty)


def _shape_of(image_size):
    shape = tuple(map(int, image_size if isinstance(image_size, tuple | list) else (image_size, image_size)))
    return shape if len(shape) == 3 else (*shape, 3)


def class_weight(labels):
    found, counts = np.unique(labels, return_counts=True)
    return {int(label): len(labels) / (len(found) * int(count)) for label, count in zip(found, counts, strict=True)}


def _first(reasons, start):
    shown = ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:5])
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"{start}{shown}{more}." if reasons else "."
