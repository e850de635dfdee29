"""States of a training in a folder: written as a whole or not at all, checked when read, the newest good one first.

    directory/state-000017/manifest.json     checksums of the other two
                           state.json        numbers, words and their nesting
                           arrays.npz        everything large
"""

import hashlib
import json
import pathlib
import re
import shutil
import warnings
import zipfile
import zlib

import numpy as np

from .. import _files
from .._check import require
from .._keras import tf

FORMAT = 1
NAME = re.compile(r"state-(\d{6,})")


class DamagedError(Exception):
    """What is wrong with a state."""


class Folder:
    """The states in a directory, numbered in the order they were written.

    Args:
      path: the directory; made when the first state is written.
      keep: how many good states to leave there.
      known: `state -> bool`: does it hold what a state holds.
    """

    def __init__(self, path, keep, known=lambda state: True):
        self.path, self.keep, self.known = pathlib.Path(path), keep, known
        self.damaged = {}

    def numbers(self):
        """Of the states that are there, the newest first."""
        names = [NAME.fullmatch(entry.name) for entry in self.path.iterdir()] if self.path.is_dir() else []
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def at(self, number):
        return self.path / f"state-{number:06}"

    def newest(self):
        """(number, (state, arrays)) of the newest good one, or (0, None); warns of each that is damaged."""
        for number in self.numbers():
            try:
                return number, self.read(number)
            except DamagedError as error:
                self.damaged[number] = str(error)
                warnings.warn(f"callbacks.Resume: {self.at(number)} is damaged: {error}. It is passed over for the "
                              "state before it.", stacklevel=2)
        require(not self.damaged, "callbacks.Resume finds no whole state to go on from", directory=str(self.path),
                damaged={self.at(number).name: why for number, why in self.damaged.items()},
                do="Bring the files back from a copy, or delete the directory to train from the start.")
        return 0, None

    def read(self, number):
        """(state, arrays) of one, checked against its manifest."""
        folder = self.at(number)
        manifest = _json(folder / "manifest.json", _bytes(folder / "manifest.json"))
        try:
            form, digest, sums = manifest["format"], manifest["state.json"], dict(manifest["arrays.npz"])
        except (KeyError, TypeError, ValueError):
            raise DamagedError("manifest.json is not a manifest") from None
        if form != FORMAT:
            raise DamagedError(f"its format is {form}, not {FORMAT}")
        text = _bytes(folder / "state.json")
        if hashlib.sha256(text).hexdigest() != digest:
            raise DamagedError(f"state.json ({len(text)} bytes) does not fit its checksum in manifest.json")
        state = _json(folder / "state.json", text)
        arrays = _arrays(folder / "arrays.npz", sums)
        try:
            for name, form in state["forms of arrays"].items():
                arrays[name] = arrays[name].view(tf.as_dtype(form).as_numpy_dtype)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DamagedError("state.json does not fit arrays.npz") from None
        if not self.known(state):
            raise DamagedError("state.json does not hold what a state holds")
        return state, arrays

    def write(self, state, arrays):
        """Adds a state, then removes damaged ones and the oldest beyond `keep`."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".part-*"):                       # `Resume` holds the lock: nobody else is writing
            shutil.rmtree(left)
        # numpy's files know no bfloat16 and its like
        forms = {name: array.dtype.name for name, array in arrays.items() if array.dtype.kind == "V"}
        plain = {name: array.view(f"u{array.itemsize}") if name in forms else array for name, array in arrays.items()}
        text = json.dumps({**state, "forms of arrays": forms}).encode()
        with _files.whole(self.at(max(self.numbers(), default=0) + 1)) as part:
            part.mkdir()
            np.savez(part / "arrays.npz", **plain)
            with zipfile.ZipFile(part / "arrays.npz") as archive:
                sums = {info.filename: info.CRC for info in archive.infolist()}
            (part / "state.json").write_bytes(text)
            manifest = {"format": FORMAT, "state.json": hashlib.sha256(text).hexdigest(), "arrays.npz": sums}
            (part / "manifest.json").write_text(json.dumps(manifest))
        good = [number for number in self.numbers() if number not in self.damaged]
        for number in [*self.damaged, *good[self.keep:]]:
            shutil.rmtree(self.at(number), ignore_errors=True)
        self.damaged = {}


def _bytes(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from None
    if not content:
        raise DamagedError(f"{path.name} is empty")
    return content


def _json(path, content):
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise DamagedError(f"{path.name} is not JSON") from None


def _arrays(path, sums):
    """{name: array}; the archive checks each member's sum as it is read, the manifest holds the same sums."""
    _bytes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename: info.CRC for info in archive.infolist()}
        if found != sums:
            raise DamagedError("arrays.npz does not hold what manifest.json lists")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise DamagedError(f"arrays.npz fails its checksum ({error})") from None
