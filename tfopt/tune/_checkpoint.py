"""The folder of one training: the weights of its best epoch, and a note about them."""

import pathlib
import warnings

import numpy as np

from .. import _files
from .._check import require
from .._keras import keras, tf

NOTE = "best.json"


class Checkpoint:
    """Keeps the weights of the best epoch. They are written first and the note last, so that a note is never wrong.

    The note: values (of the trial's start), epoch, logs, file and its sha256, inputs (to build the model), over.

    Args:
      folder: of this training alone.
      owner: what the training is called; the note of another one is refused.
    """

    def __init__(self, folder, owner):
        self.folder, self.kind, self.note = pathlib.Path(folder), f"best epoch of {owner}", {}

    def open(self, values):
        """Goes on with what an interrupted training left; what is damaged or of other values is removed."""
        try:
            self.read()
            if self.note["values"] != values:
                raise _files.DamagedError(f"{self.folder} holds a trial of other values.")
        except ValueError as error:
            if self.folder.exists() and any(self.folder.iterdir()):
                warnings.warn(f"{error} This trial is trained from its start.", stacklevel=2)
            _files.remove(self.folder)
            self._write({"values": values})

    def read(self):
        """Reads the note and checks the weights; ValueError names what is wrong."""
        note = _files.read_json(self.folder / NOTE, kind=self.kind)
        sound = isinstance(note, dict) and isinstance(note.get("values"), dict) and (
            "file" not in note or isinstance(note.get("logs"), dict))
        if not sound:
            raise _files.DamagedError(f"{self.folder / NOTE} does not hold what a trial notes.")
        self.note = note
        if "file" in note:
            _files.require_whole(self.weights, note.get("sha256"))

    @property
    def weights(self):
        """The file of weights, which must lie in the folder whatever the note says."""
        return _files.inside(self.folder, self.note["file"])

    def save(self, model, epoch, logs, inputs):
        """Replaces the weights by those the model has now; `epoch` None: after its training."""
        old = self.weights if "file" in self.note else None
        new = self.folder / ("trained.weights.h5" if epoch is None else f"epoch-{epoch}.weights.h5")
        with _files.whole(new) as part:
            model.save_weights(part)
        self._write({**self.note, "epoch": epoch, "logs": logs, "file": new.name, "sha256": _files.checksum(new),
                     "inputs": inputs})
        if old not in (None, new):
            old.unlink(missing_ok=True)

    def finish(self, **course):
        """Notes that this training is over, and what became of it."""
        self._write({**self.note, "over": True, **course})

    def load(self, model):
        """Gives a model the weights, after building it if it has seen no data yet."""
        build(model, lambda: zeros(self.note["inputs"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                          # the state of the optimizer stays behind
            model.load_weights(self.weights)
        return model

    def _write(self, note):
        _files.write_json(self.folder / NOTE, note, kind=self.kind)
        self.note = note


class Best(keras.callbacks.Callback):
    """Keeps the best epoch in a `Checkpoint`.

    Args:
      checkpoint: where to.
      name, way: of the objective, "min" or "max".
      inputs: what `inputs_of` says of the data.
      alive: called after each batch; raises when the trial belongs to another worker.
      pruner: `curve -> is this training to be stopped`, or None.
      own_fit: the training is a `HyperModel.fit`, which may score itself after training and then says when it is over.
    """

    def __init__(self, checkpoint, name, way, *, inputs, alive, pruner=None, own_fit=False):
        super().__init__()
        self.checkpoint, self.name, self.sign = checkpoint, name, 1 if way == "max" else -1
        self.inputs, self.alive, self.pruner, self.own_fit = inputs, alive, pruner, own_fit
        self.curve, self.pruned = [], False                          # plain data: `Resume` brings them back

    def on_train_batch_end(self, batch, logs=None):
        self.alive()

    def on_epoch_end(self, epoch, logs=None):
        logs, note = plain(logs or {}), self.checkpoint.note
        if self.own_fit and self.name not in logs:
            return
        require(self.name in logs, "the objective must be among the logs of training", objective=self.name,
                logs=sorted(logs), error=KeyError)
        require_finite({self.name: logs[self.name]})
        self.alive()
        if note.get("epoch", -1) < epoch and (
                "logs" not in note or self.sign * logs[self.name] > self.sign * note["logs"][self.name]):
            self.checkpoint.save(self.model, epoch, finite(logs), self.inputs)
        if self.pruner:
            self.curve.append(logs[self.name])
            over = self.model.stop_training or epoch + 1 == (self.params or {}).get("epochs")
            if self.pruner(self.curve) and not over:
                self.pruned = self.model.stop_training = True

    def on_train_end(self, logs=None):
        if not self.own_fit:
            self.checkpoint.finish(**self.course)

    @property
    def course(self):
        """What a search that prunes notes of a training."""
        return {"curve": self.curve, "pruned": self.pruned} if self.pruner else {}


def plain(logs):
    """Logs as floats."""
    return {name: float(np.mean(value)) for name, value in logs.items()}


def finite(logs):
    return {name: value for name, value in logs.items() if np.isfinite(value)}


def require_finite(scores):
    """Refuses scores that are not finite: they must not win."""
    require(not (wrong := {name: value for name, value in scores.items() if not np.isfinite(value)}),
            "a score must be finite", **wrong)


def build(model, example):
    """Builds a model that has seen no data yet; one with a `train_step` of its own may have no `call`."""
    if not model.built and type(model).call is not keras.Model.call:
        model(example())
    model.built = True


def inputs_of(dataset):
    """The inputs in the batches of a data set, as JSON: {"shape": without the batch, "dtype"} for each tensor."""
    spec = dataset.element_spec
    return _described(spec[0] if isinstance(spec, tuple) else spec)


def _described(spec):
    if isinstance(spec, dict):
        return {"dict": {key: _described(value) for key, value in spec.items()}}
    if isinstance(spec, tuple | list):
        return {"list": [_described(value) for value in spec]}
    return {"shape": [size or 1 for size in spec.shape[1:]], "dtype": spec.dtype.name}


def zeros(inputs):
    """One example of what `inputs_of` described: zeros, or empty strings."""
    if "dict" in inputs:
        return {key: zeros(value) for key, value in inputs["dict"].items()}
    if "list" in inputs:
        return [zeros(value) for value in inputs["list"]]
    return tf.zeros([1, *inputs["shape"]], inputs["dtype"])
