"""What a run has tried, on disk: one line of JSON and one file a candidate, so that a killed run goes on."""

import pathlib
import warnings

import keras
import numpy as np

from .. import _files, quantize
from .._check import require


class StorageError(OSError):
    """What was tried cannot be kept: the disk is full, or the directory is gone."""


def _is_event(event):
    """Is it the head of a run, or a candidate."""
    row = event.get("row")
    return isinstance(event.get("run"), dict) or (isinstance(row, dict) and isinstance(row.get("name"), str))


class Record:
    """Candidates by name, in a directory or, without one, in memory alone.

    A candidate's file is written whole before its line is added, and the line holds its checksum.

    Args:
      directory: where to; made if it is not there. None keeps nothing.
      run: JSON-like dict of what makes two runs the same one.
    Attributes:
      rows: {name: row} of what was tried.
    """

    def __init__(self, directory, run):
        self.folder, self.rows, self.lines = directory and pathlib.Path(directory), {}, None
        if self.folder is None:
            return
        self.lines = _files.Lines(self.folder / "tried.jsonl", f"compress.run: another run writes to {self.folder}.",
                                  _is_event)
        try:
            first, *rest = self.lines.events or [None]
            if first is None:
                self._append({"run": run})
            else:
                recorded = first.get("run", {}) if isinstance(first, dict) else {}
                require(recorded == run, "compress.run: `directory` must be empty or hold the same run",
                        directory=str(directory), differs=sorted(key for key in run if recorded.get(key) != run[key]),
                        do="Pass another directory, or what was passed before.")
            self.rows = {event["row"]["name"]: event for event in rest}
        except BaseException:
            self.close()
            raise

    def close(self):
        """Lets another run write to the directory."""
        if self.lines is not None:
            self.lines.close()

    def row(self, name):
        """The row of a candidate, None if it was not tried."""
        return self.rows[name]["row"] if name in self.rows else None

    def keep(self, row, model=None):
        """Adds a candidate, with what must be saved of it: a Keras model, a LiteModel, or nothing."""
        event = {"row": row}
        if self.folder is not None:
            try:
                if model is not None:
                    event |= self._saved(row["name"], model)
                self._append(event)
            except OSError as error:
                raise StorageError(
                    f"compress.run stopped: {self.folder} cannot be written ({error.strerror or error}). Make room, or "
                    "bring the directory back, and run the same call again: it goes on with what is recorded."
                ) from error
        self.rows[row["name"]] = event

    def restore(self, name, structure):
        """The saved candidate: a LiteModel if `structure` is None, else `structure()` with its variables.

        None, with a warning, if its file is not there as it was written: the candidate has to be made again.
        """
        if self.folder is None or "file" not in self.rows[name]:
            return None
        try:
            path = _files.inside(self.folder, self.rows[name]["file"])
            _files.require_whole(path, self.rows[name]["sha256"])
        except ValueError as error:
            warnings.warn(f"compress.run: {error} This candidate is made again.", stacklevel=6)
            return None
        if structure is None:
            return quantize.load(path)
        model = structure()
        with np.load(path, allow_pickle=False) as file:
            for variable, key in zip(model.variables, file.files, strict=True):
                variable.assign(file[key])
        return model

    def _saved(self, name, model):
        """Writes a candidate's file: its name, and its checksum."""
        is_keras = isinstance(model, keras.Model)
        path = self.folder / f"{_files.fingerprint(name)[:16]}{'.npz' if is_keras else '.tflite'}"
        if is_keras:
            arrays = [np.asarray(variable) for variable in model.variables]
            _files.write(path, lambda file: np.savez(file, *arrays))
        else:
            model.save(path)
        return {"file": path.name, "sha256": _files.checksum(path)}

    def _append(self, event):
        self.lines.append(event)
