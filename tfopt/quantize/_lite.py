"""A LiteRT file as an object: run it, measure it, look inside."""

import functools
import os
import pathlib
import threading
import typing

import numpy as np
import pandas as pd

from .. import _files
from .._check import require, require_number
from .._keras import keras, tf
from .._litert import file, run

_MOST = 256                                                # samples that calibrate and check; more change little


class LiteModel:
    """A LiteRT (TFLite) file in memory, with the interface of a model: floats in, floats out.

    Where the file stores integers, `predict` computes `round(x / scale) + zero` on the way in and
    `scale * (q - zero)` on the way out. It runs on one CPU thread, and by default batch by batch of the file's own size
    (1, if `quantize.convert` made it): for small networks as fast as larger batches, and what a device does. Several
    threads may use one LiteModel; they take turns.

    Attributes:
      content: the file, bytes.
      size: its length in bytes.
      report: what `quantize.convert` saw: mode, samples, max_difference and agreement with the float model, seconds.
      plan: table of what was quantized, what was not, and why: that of `quantize.plan` for a model from
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

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        require(isinstance(content, bytes) and content[4:8] == b"TFL3",
                "quantize.LiteModel: `content` must be the bytes of a .tflite file", content=type(content).__name__,
                do="Make one with quantize.convert, or read one with quantize.load.")
        require_number("threads", threads, low=1, integer=True)
        self.content, self._threads = content, int(threads)
        self._interpreters, self._lock = {}, threading.Lock()

    def __repr__(self) -> str:
        ends = {name: tuple(map(int, detail["shape"])) for name, detail in zip(
            self._names, self._interpreter.get_input_details(), strict=True)}
        return f"<LiteModel {self.report.get('mode', 'of unknown making')}, {self.size:,} bytes, inputs {ends}>"

    @property
    def size(self) -> int:
        return len(self.content)

    @functools.cached_property
    def parsed(self) -> typing.Any:
        """The file as an object of LiteRT's schema."""
        return file.parse(self.content)

    @functools.cached_property
    def _note(self):
        return file.read_note(self.parsed)

    @property
    def report(self) -> dict:
        return dict(self._note.get("report", {}))

    @functools.cached_property
    def ops(self) -> pd.DataFrame:
        return file.operations(self.parsed)

    @functools.cached_property
    def kernels(self) -> dict[str, np.ndarray]:
        return {name: values for _, name, _, values in file.kernels(self.parsed)}

    @property
    def plan(self) -> pd.DataFrame:
        if "plan" in self._note:
            return pd.DataFrame(self._note["plan"])
        table = self.ops[file.computing(self.ops)]
        whole = file.integer(table)
        return pd.DataFrame({
            "layer": table["name"], "class": table["op"], "status": np.where(whole, "selected", "skipped"),
            "why": np.where(whole, "", np.where(table["weights"].isin(["int8", "float16"]),
                                                table["weights"] + " weights, float arithmetic", "computes in float"))})

    @property
    def _interpreter(self):
        return self._for_batches_of(None)

    @functools.cached_property
    def _names(self):
        return [detail["name"] for detail in self._interpreter.get_input_details()]

    def _for_batches_of(self, batch):
        if batch not in self._interpreters:
            try:
                self._interpreters[batch] = run.interpreter(self.content, batch=batch, num_threads=self._threads)
            except RuntimeError as error:
                raise ValueError(f"LiteModel.predict: this file cannot take batches of {batch} ({_reason(error)}). "
                                 "Leave `batch_size` out.") from None
        return self._interpreters[batch]

    def __call__(self, x: typing.Any) -> typing.Any:
        """The same as `predict(x)`."""
        return self.predict(x)

    def predict(self, x: typing.Any, *, batch_size: int | None = None, verbose: int | str = 0) -> typing.Any:
        """The file's outputs for any number of samples, nested as the Keras model nested them.

        Args:
          x: array (samples, ...); for several inputs a dict by input name or a list in the model's order; or a
            tf.data.Dataset of batches, of which only the inputs are used.
          batch_size: samples in one run; None for the file's own number. Others resize the file's inputs, which files
            of `quantize.convert` allow if `report["resizable"]`.
          verbose: 1 shows a progress bar; 0 or "auto" none.

        Raises:
          ValueError: `x` does not fit the file's inputs; the file does not take batches of this size.
        """
        if batch_size is not None:
            require_number("batch_size", batch_size, low=1, integer=True)
        require(verbose in (0, 1, "auto"), 'LiteModel.predict: `verbose` must be 0, 1 or "auto"', verbose=verbose)
        arrays = self.inputs_of(x, "LiteModel.predict")
        with self._lock:
            interpreter = self._for_batches_of(batch_size and int(batch_size))
            bar = keras.utils.Progbar(None) if verbose == 1 else None
            outputs = run.batches(interpreter, arrays, tick=(lambda: bar.add(1)) if bar else None)
        return _nest(self._note.get("outputs", 0 if len(outputs) == 1 else list(range(len(outputs)))), outputs)

    def evaluate(self, x: typing.Any, y: typing.Any = None, sample_weight: typing.Any = None, *,
                 loss: typing.Any = None, metrics: typing.Any = ("accuracy",),
                 weighted_metrics: typing.Any = ()) -> dict[str, float]:
        """Loss and metrics, as `keras.Model.evaluate(..., return_dict=True)` computes them.

        Args:
          x: as for `predict`; or a tf.data.Dataset of (inputs, targets) or (inputs, targets, sample weights).
          y: targets; None if `x` is a Dataset.
          sample_weight: weights of the samples in the loss and the weighted metrics; None if `x` is a Dataset.
          loss: any Keras loss, by name or object; None leaves it out.
          metrics: Keras metrics that leave the weights out, as in `compile`; for several outputs a dict by output.
          weighted_metrics: Keras metrics that take the weights.
        """
        if isinstance(x, tf.data.Dataset):
            require(y is None and sample_weight is None, "LiteModel.evaluate takes targets and sample weights from the "
                    "Dataset", do="Leave `y` and `sample_weight` out.")
            x, y, sample_weight = _columns(x)
        require(y is not None, "LiteModel.evaluate needs targets", y=None,
                do="Pass `y`, or a tf.data.Dataset of (inputs, targets).")
        outputs = self.predict(x)
        pipes = keras.tree.map_structure(lambda array: keras.Input(array.shape[1:], dtype=array.dtype), outputs)
        through = keras.Model(pipes, keras.tree.map_structure(keras.ops.copy, pipes))
        nothing = keras.tree.map_structure(lambda _: (lambda y, outputs: 0.0), outputs)
        metrics, weighted_metrics = (given if isinstance(given, dict) else list(given)
                                     for given in (metrics, weighted_metrics))
        through.compile(loss=nothing if loss is None else loss, metrics=metrics, weighted_metrics=weighted_metrics)
        found = through.evaluate(outputs, y, sample_weight=sample_weight, verbose=0, return_dict=True)
        return {name: value for name, value in found.items() if loss is not None or not name.endswith("loss")}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file: whole or not at all.

        Args:
          path: where to; ends with ".tflite".
        """
        path = pathlib.Path(path)
        require(path.suffix == ".tflite", "LiteModel.save: `path` must end with .tflite", path=str(path))
        _files.write(path, self.content)

    def inputs_of(self, x: typing.Any, caller: str) -> list[np.ndarray]:
        """`x`, as `predict` takes it, as a list of arrays in the file's order."""
        details, names, shape = self._interpreter.get_input_details(), self._names, self._note.get("inputs")
        arrays = [np.asarray(array) for array in flatten(x, names if shape is None else shape, names, caller)]
        received = [array.shape for array in arrays]
        expected = [tuple(int(size) for size in detail["shape"][1:]) for detail in details]
        require([shape[1:] for shape in received] == expected and len({shape[:1] for shape in received}) == 1
                and received[0][0] > 0, f"{caller} needs one array of shape (samples, ...) for each input",
                shapes=received,
                do=f"The file's inputs are {dict(zip(names, expected, strict=True))}, without the samples.")
        return arrays


def load(path: str | os.PathLike) -> LiteModel:
    """LiteRT file reader: a .tflite file, of whatever making.

    Args:
      path: the file.

    Raises:
      ValueError: it is not a .tflite file.

    Example:
      >>> import keras, tempfile
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     quantize.convert(model, "float16").save(f"{folder}/model.tflite")
      ...     quantize.load(f"{folder}/model.tflite").report["mode"]
      'float16'
    """
    path = pathlib.Path(path)
    require(path.is_file(), "quantize.load: `path` must be a .tflite file", path=str(path))
    content = path.read_bytes()
    require(content[4:8] == b"TFL3", "quantize.load: `path` must be a .tflite file", path=str(path))
    return LiteModel(content)


def flatten(x, structure, names, caller):
    """Inputs as the user nested them (a Dataset's batches joined) -> list in the model's order."""
    if isinstance(x, tf.data.Dataset):
        batches = [flatten(_inputs_of(batch, len(names)), structure, names, caller) for batch in x.as_numpy_iterator()]
        require(batches, f"{caller} needs data, and the Dataset is empty")
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    if isinstance(x, dict) and not isinstance(structure, dict):
        require(set(names) <= set(x), f"{caller}: the inputs' names must be those of the model", received=sorted(x),
                do=f"They are {names}.")
        return [x[name] for name in names]
    return keras.tree.flatten(x) if len(names) > 1 else [_only(x)]


def take(calibration, inputs, caller="quantize.convert"):
    """At most _MOST samples of the calibration data, as a list of arrays in the model's order."""
    flat, names = keras.tree.flatten(inputs), [x.name for x in keras.tree.flatten(inputs)]
    try:
        if isinstance(calibration, tf.data.Dataset):
            calibration = calibration.unbatch().take(_MOST).batch(_MOST)
        arrays = [np.asarray(array)[:_MOST] for array in flatten(calibration, inputs, names, caller)]
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        if isinstance(error, tf.errors.InvalidArgumentError) or "inhomogeneous" in str(error):
            raise ValueError(f"{caller} needs calibration samples of one size each, and these differ ("
                             f"{_reason(error)}). Resize or pad them.") from None
        raise
    require(len(arrays) == len(flat) and len({array.shape[:1] for array in arrays}) == 1 and arrays[0].size > 0
            and all(_fits(array.shape, x.shape) for array, x in zip(arrays, flat, strict=True)),
            f"{caller} needs calibration data of one array of shape (samples, ...) for each input of the model",
            shapes=[array.shape for array in arrays], do=f"Its inputs are {({x.name: x.shape for x in flat})}.")
    for name, array in zip(names, arrays, strict=True):
        require(not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all(),
                f"{caller} needs calibration data without NaN and infinity", input=name,
                do="Clean the data: one such value would spoil a range.")
    return [array.astype(x.dtype) for array, x in zip(arrays, flat, strict=True)]


def _fits(shape, expected):
    return len(shape) == len(expected) and all(b in (None, a) for a, b in zip(shape[1:], expected[1:], strict=True))


def _inputs_of(batch, count):
    """The inputs of a batch: (x,), (x, y) and (x, y, weights) hold them first; (a, b) of a two-input model is all x."""
    if not isinstance(batch, tuple):
        return batch
    return batch if len(batch) == count > 1 and not isinstance(batch[0], tuple | dict) else batch[0]


def _columns(dataset):
    """Inputs, targets and sample weights (or None) of a Dataset, its batches joined."""
    batches = list(dataset.as_numpy_iterator())
    require(batches and all(isinstance(batch, tuple) and len(batch) in (2, 3) for batch in batches),
            "LiteModel.evaluate needs a Dataset of (inputs, targets) or (inputs, targets, sample weights)")
    columns = [keras.tree.map_structure(lambda *parts: np.concatenate(parts), *column)
               for column in zip(*batches, strict=True)]
    return columns if len(columns) == 3 else [*columns, None]


def _only(x):
    """The array of a model with one input, passed bare or wrapped in a list or dict of one."""
    if isinstance(x, dict) or (isinstance(x, list | tuple) and len(x) == 1 and np.ndim(x[0]) > 1):
        return keras.tree.flatten(x)[0]
    return x


def _reason(error):
    return str(error).strip().splitlines()[0].split("Node number")[0].rstrip(". ")


def _nest(structure, values):
    if isinstance(structure, dict):
        return {key: _nest(part, values) for key, part in structure.items()}
    return [_nest(part, values) for part in structure] if isinstance(structure, list) else values[structure]
