"""A LiteRT file as an object: run it, measure it, look inside."""

import contextlib
import functools
import os
import pathlib
import sys
import tempfile
import threading

import numpy as np
import pandas as pd
from ai_edge_litert.interpreter import Interpreter

from .._check import require
from .._keras import keras, tf
from . import _file

_MOST = 256                                                # samples that calibrate and check; more change little


class LiteModel:
    """A LiteRT (TFLite) file in memory, with the interface of a model: floats in, floats out.

    Where the file stores integers, `predict` computes `round(x / scale) + zero` on the way in and
    `scale * (q - zero)` on the way out. It runs on one CPU thread, batch by batch of the file's own batch size (1, if
    `quantize.convert` made it): for small networks as fast as larger batches, and what a device does.

    Attributes:
      content: the file, bytes.
      size: its length in bytes.
      report: what `quantize.convert` saw: mode, samples, max_difference and agreement with the float model, seconds.
      plan: table of what was quantised, what was not, and why: that of `quantize.plan` for a model from
        `quantize.wrap`, else one row an operation of the file.
      kernels: {name: array} of the constant kernels as the file stores them; in int8, 0 stands for 0.0.
      ops: table of the operations: op, name, dtype of what it computes on, dtype of its weights, macs.

    Args:
      content: bytes of a .tflite file.
      threads: CPU threads to run on, >= 1.

    Raises:
      ValueError: `content` is not a LiteRT file.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
      >>> lite = quantize.convert(model, "float32")
      >>> x = np.ones((3, 4), "float32")
      >>> lite.predict(x).shape, bool(np.allclose(lite.predict(x), model(x), atol=1e-6))
      ((3, 2), True)
    """

    def __init__(self, content, *, threads=1):
        require(isinstance(content, bytes) and content[4:8] == b"TFL3", "`content` must be the bytes of a .tflite file",
                content=type(content).__name__, do="Make one with quantize.convert, or read one with quantize.load.")
        self.content, self._threads = content, threads

    def __repr__(self):
        return f"<LiteModel {self.report.get('mode', 'of unknown making')}, {self.size:,} bytes>"

    @property
    def size(self):
        return len(self.content)

    @functools.cached_property
    def _note(self):
        return _file.read_note(self.content)

    @property
    def report(self):
        return dict(self._note.get("report", {}))

    @functools.cached_property
    def ops(self):
        return _file.operations(self.content)

    @functools.cached_property
    def kernels(self):
        return {name: values for _, name, _, values in _file.kernels(self.content)}

    @property
    def plan(self):
        if "plan" in self._note:
            return pd.DataFrame(self._note["plan"])
        table = self.ops[_file.computing(self.ops)]
        whole = _file.integer(table)
        return pd.DataFrame({
            "layer": table["name"], "class": table["op"], "status": np.where(whole, "done", "float"),
            "why": np.where(whole, "", np.where(table["weights"].isin(["int8", "float16"]),
                                                table["weights"] + " weights, float arithmetic", "computes in float"))})

    @functools.cached_property
    def _interpreter(self):
        with quiet():
            interpreter = Interpreter(model_content=self.content, num_threads=self._threads)
            interpreter.allocate_tensors()
        return interpreter

    def predict(self, x):
        """The file's outputs for a batch of any size, nested as the Keras model nested them.

        Args:
          x: array (samples, ...); for several inputs a dict by input name or a list in the model's order; or a
            tf.data.Dataset of batches, of which only the inputs are used.
        """
        arrays, details = self._arrays(x), self._interpreter.get_input_details()
        batch = int(details[0]["shape"][0])
        count = len(arrays[0])
        require(count > 0 and count % batch == 0, f"predict needs a multiple of {batch} samples", samples=count,
                do="Pass whole batches.")
        arrays = [_store(array, detail) for array, detail in zip(arrays, details, strict=True)]
        targets = self._interpreter.get_output_details()
        found = [np.empty((count, *detail["shape"][1:]), detail["dtype"]) for detail in targets]
        for start in range(0, count, batch):
            for array, detail in zip(arrays, details, strict=True):
                self._interpreter.set_tensor(detail["index"], array[start:start + batch])
            self._interpreter.invoke()
            for array, detail in zip(found, targets, strict=True):
                array[start:start + batch] = self._interpreter.get_tensor(detail["index"])
        outputs = [_restore(array, detail) for array, detail in zip(found, targets, strict=True)]
        return _nest(self._note.get("outputs", 0 if len(outputs) == 1 else list(range(len(outputs)))), outputs)

    def evaluate(self, x, y=None, *, loss=None, metrics=("accuracy",)):
        """Loss and metrics, as `keras.Model.evaluate(..., return_dict=True)` computes them.

        Args:
          x: as for `predict`.
          y: targets; None if `x` is a tf.data.Dataset of (inputs, targets).
          loss: any Keras loss, by name or object; None leaves it out.
          metrics: Keras metrics; for several outputs a dict by output.
        """
        if y is None:
            require(isinstance(x, tf.data.Dataset), "evaluate needs targets", y=None,
                    do="Pass `y`, or a tf.data.Dataset of (inputs, targets).")
            batches = [batch[:2] for batch in x.as_numpy_iterator()]
            x, y = (keras.tree.map_structure(lambda *parts: np.concatenate(parts), *column)
                    for column in zip(*batches, strict=True))
        outputs = self.predict(x)
        pipes = keras.tree.map_structure(lambda array: keras.Input(array.shape[1:], dtype=array.dtype), outputs)
        through = keras.Model(pipes, keras.tree.map_structure(keras.ops.copy, pipes))
        nothing = keras.tree.map_structure(lambda _: (lambda y, outputs: 0.0), outputs)
        through.compile(loss=nothing if loss is None else loss,
                        metrics=metrics if isinstance(metrics, dict) else list(metrics))
        found = through.evaluate(outputs, y, verbose=0, return_dict=True)
        return {name: value for name, value in found.items() if loss is not None or not name.endswith("loss")}

    def save(self, path):
        """Writes the file: whole or not at all.

        Args:
          path: where to; ends with ".tflite".
        """
        path = pathlib.Path(path)
        require(path.suffix == ".tflite", "`path` must end with .tflite", path=str(path))
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.content)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def _arrays(self, x):
        details = self._interpreter.get_input_details()
        names, shape = [detail["name"] for detail in details], self._note.get("inputs")
        arrays = [np.asarray(array) for array in flatten(x, shape if shape is not None else names, names)]
        received = [array.shape for array in arrays]
        expected = [tuple(int(size) for size in detail["shape"][1:]) for detail in details]
        require([shape[1:] for shape in received] == expected and len({shape[0] for shape in received}) == 1,
                "predict needs one array of shape (samples, ...) for each input", shapes=received,
                do=f"The file's inputs are {dict(zip(names, expected, strict=True))}, without the samples.")
        return arrays


def load(path):
    """Reads a .tflite file, of whatever making.

    Args:
      path: the file.

    Example:
      >>> import keras, tempfile
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     quantize.convert(model, "float16").save(f"{folder}/model.tflite")
      ...     quantize.load(f"{folder}/model.tflite").report["mode"]
      'float16'
    """
    return LiteModel(pathlib.Path(path).read_bytes())


def flatten(x, structure, names):
    """Inputs as the user nested them (a Dataset's batches joined) -> list in the model's order."""
    if isinstance(x, tf.data.Dataset):
        batches = [flatten(batch[0] if isinstance(batch, tuple) else batch, structure, names)
                   for batch in x.as_numpy_iterator()]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    if isinstance(x, dict) and not isinstance(structure, dict):
        require(set(names) <= set(x), "the inputs' names must be those of the model", received=sorted(x),
                do=f"They are {names}.")
        return [x[name] for name in names]
    return keras.tree.flatten(x) if len(names) > 1 else [_only(x)]


def take(calibration, inputs):
    """At most _MOST samples of the calibration data, as a list of arrays in the model's order."""
    flat = keras.tree.flatten(inputs)
    if isinstance(calibration, tf.data.Dataset):
        calibration = calibration.unbatch().take(_MOST).batch(_MOST)
    arrays = [np.asarray(array)[:_MOST] for array in flatten(calibration, inputs, [x.name for x in flat])]
    require(len(arrays) == len(flat) and len({len(array) for array in arrays}) == 1 and len(arrays[0]) > 0
            and all(np.ndim(array) == len(x.shape) for array, x in zip(arrays, flat, strict=True)),
            "`calibration` must hold one array of shape (samples, ...) for each input of the model",
            shapes=[array.shape for array in arrays], do=f"Its inputs are {({x.name: x.shape for x in flat})}.")
    return [array.astype(x.dtype) for array, x in zip(arrays, flat, strict=True)]


def _only(x):
    """The array of a model with one input, passed bare or wrapped in a list or dict of one."""
    if isinstance(x, dict) or (isinstance(x, list | tuple) and len(x) == 1 and np.ndim(x[0]) > 1):
        return keras.tree.flatten(x)[0]
    return x


@contextlib.contextmanager
def quiet():
    """Keeps what C++ writes to the process's standard error out of sight; yields the file that gets it."""
    with _one_at_a_time, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)


_one_at_a_time = threading.RLock()


def _store(array, detail):
    scale, zero = detail["quantization"]
    if scale == 0 or not np.issubdtype(detail["dtype"], np.integer):
        return np.ascontiguousarray(array, detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(np.float32(array) / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _restore(array, detail):
    scale, zero = detail["quantization"]
    return array if scale == 0 else np.float32(scale) * (array.astype(np.float32) - zero)


def _nest(structure, values):
    if isinstance(structure, dict):
        return {key: _nest(part, values) for key, part in structure.items()}
    return [_nest(part, values) for part in structure] if isinstance(structure, list) else values[structure]
