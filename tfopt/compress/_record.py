"""What a run has tried, on disk: one line of JSON and one file a candidate, so that a killed run goes on."""

import json
import os
import pathlib
import warnings
import zipfile
import zlib

import numpy as np

from .. import quantize
from .._check import refusal, require


class Record:
    """Candidates by name, in a directory or, without one, in memory alone.

    A candidate's file is written whole before its line is added, so a line always has its file.

    Args:
      directory: where to; made if it is not there. None keeps nothing.
      run: JSON-like dict of what makes two runs the same one.
    """

    def __init__(self, directory, run):
        self.folder, self.rows = directory and pathlib.Path(directory), {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "tried.jsonl"
        first, *rows = self._lines() or [None]
        if first is None:
            self._add({"run": run})
        else:
            require(isinstance(first, dict) and first.get("run") == run,
                    "compress.run: `directory` must be empty or hold the same run", directory=str(directory),
                    differs=sorted(key for key in run if first.get("run", {}).get(key) != run[key]),
                    do="Pass another directory, or what was passed before.")
        self.rows = {row["name"]: row for row in rows}

    def keep(self, row, model=None):
        """Adds a candidate, with what must be saved of it: a Keras model, a LiteModel, or nothing."""
        self.rows[row["name"]] = row
        if self.folder is None:
            return
        if isinstance(model, quantize.LiteModel):
            model.save(self._place(row["name"], ".tflite"))
        elif model is not None:
            place = self._place(row["name"], ".npz")
            part = place.with_suffix(".part")
            with open(part, "wb") as file:
                np.savez(file, *[np.asarray(variable) for variable in model.variables])
            os.replace(part, place)
        self._add(row)

    def restore(self, name, structure=None):
        """The saved candidate: a LiteModel, or `structure()` with its variables; None if it is not there whole."""
        if self.folder is None:
            return None
        try:
            if structure is None:
                return quantize.load(self._place(name, ".tflite"))
            with open(self._place(name, ".npz"), "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = [file[key] for key in file.files]
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
            return None
        model = structure()
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in model.variables]:
            return None
        for variable, array in zip(model.variables, arrays, strict=True):
            variable.assign(array)
        return model

    def _place(self, name, suffix):
        return self.folder / f"{zlib.crc32(name.encode()):08x}{suffix}"

    def _add(self, line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self):
        """The lines there are; a last one that was cut short is taken away."""
        text = self.path.read_text() if self.path.exists() else ""
        whole, _, rest = text.rpartition("\n")
        if rest:
            warnings.warn(f"compress.run: the last line of {self.path} was cut short and is left out.", stacklevel=5)
            self.path.write_text(whole + "\n" if whole else "")
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError as error:
            raise refusal(f"compress.run cannot read {self.path}", reason=str(error),
                          do="Pass another directory, or take this file away.") from None


def fingerprint(arrays):
    """CRC-32 of arrays: values, shapes and types."""
    crc = 0
    for array in map(np.ascontiguousarray, arrays):
        crc = zlib.crc32(array.view(np.uint8) if array.size and array.ndim else array.tobytes(),
                         zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc))
    return crc
