"""Which image files a folder or a CSV names, and their labels."""

import dataclasses
import os
import pathlib

import numpy as np
import pandas as pd

from .. import _files
from .._check import refusal, require
from ._table import encode_target

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files, sorted: {name below the root: path}, and a label for each.

    Args:
      root: the folder.
      files: {name: path}.
      ignored: names of files that are no images, or stand where none is expected.
      empty: sub-folders without a single image.
      labels: array of as many labels, or None.
      class_names: of the labels, or None if these are numbers.
    """

    root: pathlib.Path
    files: dict[str, pathlib.Path]
    ignored: list[str]
    empty: list[str] = dataclasses.field(default_factory=list)
    labels: np.ndarray | None = None
    class_names: list[str] | None = None


def list_images(path, root):
    """The Listing of all images below a folder, or that a CSV names."""
    return _from_csv(path, root) if _is_csv(path) else walk(path)


def list_labeled(path, root):
    """The Listing of the images with labels: of sub-folders, or of a CSV."""
    if _is_csv(path):
        return _from_csv(path, root)
    found = walk(path)
    if not _classes(found):
        tables = [name for name in found.ignored if name.endswith(".csv")]
        require(len(tables) == 1, "there must be a sub-folder for each class, or one CSV of files and labels",
                directory=str(found.root), csv=tables)
        return _from_csv(found.root / tables[0], root)
    return by_class(found)


def by_class(found, suffixes=SUFFIXES, noun="images"):
    """A Listing with labels, by the sub-folders of its root."""
    classes = _classes(found)
    stray = [name for name in found.files if "/" not in name]
    files = {name: path for name, path in found.files.items() if "/" in name}
    require(files, f"there must be {noun} in the sub-folders",
            directory=str(found.root), suffixes=suffixes)
    number = {name: number for number, name in enumerate(classes)}
    labels = np.array([number[name.split("/")[0]] for name in files], np.int32)
    return dataclasses.replace(found, files=files, ignored=sorted(found.ignored + stray), labels=labels,
                               class_names=classes)


def _classes(found):
    return sorted(entry.name for entry in found.root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _from_csv(path, root):
    """The Listing of a CSV, whose files lie in its own folder, or in `root`."""
    try:
        frame = pd.read_csv(path, converters={0: str})
    except ValueError as error:                              # no UTF-8, an open quotation mark, rows of several lengths
        raise refusal("a CSV of labels must be a table in UTF-8", path=str(path),
                      do=f"pandas says: {' '.join(str(error).split())}.") from None
    require(frame.shape[1] == 2 and len(frame), "a CSV of labels needs a header, two columns (file, label) and rows",
            path=str(path), columns=list(frame.columns), rows=len(frame))
    frame = frame.sort_values(frame.columns[0])
    names = frame.iloc[:, 0]
    nameless = [name for name in names if not isinstance(name, str) or not name]
    require(not nameless, "a CSV of labels must name a file in each row, and have as many values in it as columns",
            path=str(path), rows_without=len(nameless))
    require(names.is_unique, "a CSV of labels must name each file once", path=str(path),
            twice=names[names.duplicated()].iloc[:3].tolist())
    labels, class_names = encode_target(frame.iloc[:, 1])
    home = path.resolve().parent
    files = {name: _allowed(home, name, path, root) for name in names}
    others = walk(home)
    ignored = sorted({*others.files, *others.ignored} - {*files, path.name})
    return Listing(home, files, ignored, labels=labels, class_names=class_names)


def _allowed(home, name, csv, root):
    """The path of a file that a CSV names, unless it leads out of the CSV's folder, or of `root`."""
    path = home / name
    try:
        _files.inside(home if root is None else root, str(path.resolve()))
    except ValueError:
        raise refusal("a CSV of labels must name files inside its folder, or inside `root`", path=str(csv), file=name,
                      root=root, do="If you trust the CSV, pass as `root` the folder that holds them all.") from None
    return path


def _is_csv(path):
    return path.suffix == ".csv" and path.is_file()


def walk(path, suffixes=SUFFIXES):
    """The Listing of the images (or other files) below a folder, through links too; hidden files are passed over."""
    require(path.is_dir(), "`directory` must be a folder, or a CSV of files and labels", directory=str(path))
    root = path.resolve()
    names = sorted(pathlib.Path(folder, file).relative_to(root).as_posix()
                   for folder, files in _folders(root) for file in files)
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    files = {name: root / name for name in names if name.lower().endswith(suffixes)}
    filled = {name.split("/")[0] for name in files}
    empty = sorted(entry.name for entry in root.iterdir()
                   if entry.is_dir() and not entry.name.startswith(".") and entry.name not in filled)
    return Listing(root, files, [name for name in names if name not in files], empty)


def _folders(root):
    """(folder, names of its files) below a folder; a link that leads back to where it stands is not followed."""
    for folder, inner, files in os.walk(root, followlinks=True):
        here = pathlib.Path(folder).resolve()
        inner[:] = [name for name in inner if not here.is_relative_to(pathlib.Path(folder, name).resolve())]
        yield folder, files
