"""A LiteRT file as an object: run it, measure it, look inside."""

import functools
import pathlib
import threading
import typing

import numpy as np
import pandas as pd

from .. import _data, _files, _models
from .._check import BATCH_SIZE, PATH, VERBOSE, Rule, Whole, checked, refusal, require
from .._keras import keras, tf
from .._litert import file, run
from .._tables import Frame
from .._typing import Data, PathLike, Verbose

_CONTENT = Rule("the bytes of a .tflite file, as quantize.convert makes them",
                lambda value: isinstance(value, bytes) and value[4:8] == b"TFL3")
_CHANGED = "must be whole, as quantize.convert wrote it, and its checksum says that it was cut or changed"
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
      inputs: KerasTensors of its inputs, nested as the Keras model nested them.
      report: what `quantize.convert` saw, see there.
      plan: table of what was quantized, what was not, and why: that of `quantize.plan` for a model from
        `quantize.wrap`, else one row an operation of the file.
      kernels: {name: array} of the constant kernels as the file stores them; in int8, 0 stands for 0.0.
      ops: table of the operations: op, name, dtype of what it computes on, dtype of its weights, macs.
      parsed: the file as an object of LiteRT's schema.

    Args:
      content: bytes of a .tflite file.
      threads: CPU threads to run on, >= 1.

    Raises:
      ValueError: `content` is not a LiteRT file, or one of `quantize.convert` that was changed.

    Example:
      >>> import keras, numpy as np
      >>> from tfopt import quantize
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
      >>> lite = quantize.convert(model, "float32")
      >>> x = np.ones((3, 4), "float32")
      >>> lite.predict(x).shape, bool(np.allclose(lite.predict(x), model(x), atol=1e-6))
      ((3, 2), True)
    """

    @checked(content=_CONTENT, threads=Whole(low=1))
    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        require(file.is_sealed(content), f"`content` {_CHANGED}", bytes=len(content))
        self.content: bytes = content
        self._threads = threads
        self._interpreters, self._lock = {}, threading.Lock()

    def __repr__(self) -> str:
        ends = {x.name: x.shape for x in keras.tree.flatten(self.inputs)}
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
    def report(self) -> dict[str, typing.Any]:
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
            return Frame(self._note["plan"])
        table = self.ops[file.computing(self.ops)]
        whole = file.integer(table)
        return Frame({
            "layer": table["name"], "class": table["op"], "status": np.where(whole, "selected", "skipped"),
            "why": np.where(whole, "", np.where(table["weights"].isin(["int8", "float16"]),
                                                table["weights"] + " weights, float arithmetic", "computes in float"))})

    @property
    def _interpreter(self):
        return self._for_batches_of(None)

    def _for_batches_of(self, batch):
        if batch not in self._interpreters:
            try:
                self._interpreters[batch] = run.interpreter(self.content, batch=batch, num_threads=self._threads)
            except (RuntimeError, ValueError) as error:
                raise refusal(f"this file cannot take batches of {batch} ({run.reason(error)})",
                              do="Leave `batch_size` out.") from None
        return self._interpreters[batch]

    def __call__(self, x: Data) -> typing.Any:
        """The same as `predict(x)`."""
        return self.predict(x)

    @checked(batch_size=BATCH_SIZE, verbose=VERBOSE)
    def predict(self, x: Data, *, batch_size: int | None = None, verbose: Verbose = 0) -> typing.Any:
        """The file's outputs for any number of samples, nested as the Keras model nested them.

        Args:
          x: array (samples, ...); for several inputs a dict by input name or a list in the model's order; or a data
            set of batches, of which only the inputs are used.
          batch_size: samples in one run; None for the file's own number. Others resize the file's inputs, which files
            of `quantize.convert` allow if `report["resizable"]`.
          verbose: 1 or 2 show a progress bar; 0 or "auto" none.

        Raises:
          ValueError: `x` does not fit the file's inputs; the file does not take batches of this size.
        """
        arrays = self.arrays_of(_data.read(x, self.inputs, name="x", targets="ignored").whole().x)
        bar = keras.utils.Progbar(None) if verbose in (1, 2) else None
        with self._lock:
            interpreter = self._for_batches_of(batch_size)
            try:
                outputs = run.batches(interpreter, arrays, tick=(lambda: bar.add(1)) if bar else None)
            except RuntimeError as error:                  # such as a division by what is zero in eight bits
                raise refusal(f"LiteRT cannot run this file on `x` ({run.reason(error)})",
                              do="Convert the model in another mode.") from None
        return _nest(self._order(len(outputs)), outputs)

    @checked()
    def evaluate(self, x: Data, y: typing.Any = None, sample_weight: typing.Any = None, *, loss: typing.Any = None,
                 metrics: typing.Any = ("accuracy",), weighted_metrics: typing.Any = ()) -> dict[str, float]:
        """Loss and metrics, as `keras.Model.evaluate(..., return_dict=True)` computes them.

        Args:
          x: as for `predict`; or a data set of (inputs, targets) or (inputs, targets, sample weights).
          y: targets; None if `x` is a data set.
          sample_weight: weights of the samples in the loss and the weighted metrics; None if `x` is a data set.
          loss: any Keras loss, by name or object; None leaves it out.
          metrics: Keras metrics that leave the weights out, as in `compile`; for several outputs nested like these, or
            a list for each of them.
          weighted_metrics: Keras metrics that take the weights, likewise.
        """
        require(y is not None or isinstance(x, tf.data.Dataset | keras.utils.PyDataset), "needs targets", y=None,
                do="Pass `y`, or a data set of (inputs, targets).")
        parts = (x, y, sample_weight) if sample_weight is not None else (x, y) if y is not None else x
        data = _data.read(parts, self.inputs, name="x", targets="required").whole()
        outputs = self.predict(data.x)
        nothing = keras.tree.map_structure(lambda _: (lambda y, outputs: 0.0), outputs)
        try:
            found = _models.evaluate_outputs(
                outputs, data.y, data.sample_weight, loss=nothing if loss is None else loss,
                metrics=_for_each(metrics, outputs), weighted_metrics=_for_each(weighted_metrics, outputs))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise refusal("`loss`, `metrics` and `y` must be such as Keras takes for these outputs",
                          loss=loss, metrics=metrics, weighted_metrics=weighted_metrics,
                          do=f"Keras says: {' '.join(str(error).split())[:300]}") from error
        return {name: value for name, value in found.items() if loss is not None or not name.endswith("loss")}

    @checked(path=PATH)
    def save(self, path: PathLike) -> None:
        """Writes the file: whole or not at all.

        Args:
          path: where to; ends with ".tflite".
        """
        path = pathlib.Path(path)
        require(path.suffix == ".tflite", "`path` must end with .tflite", path=str(path))
        _files.write(path, self.content)

    @functools.cached_property
    def inputs(self) -> typing.Any:
        """The file's inputs as KerasTensors, nested as the Keras model nested them."""
        flat = [keras.KerasTensor((None, *map(int, detail["shape"][1:])), tf.as_dtype(dtype).name, name=detail["name"])
                for detail, dtype in ((detail, np.float32 if detail["quantization"][0] else detail["dtype"])
                                      for detail in self._interpreter.get_input_details())]
        return _nest(self._note.get("inputs", 0 if len(flat) == 1 else list(range(len(flat)))), flat)

    def arrays_of(self, x: typing.Any) -> list[np.ndarray]:
        """Inputs, nested like `inputs`, as a list in the file's order."""
        order, arrays = keras.tree.flatten(self._note.get("inputs", 0)), keras.tree.flatten(x)
        return [arrays[place] for place in np.argsort(order)] if len(order) == len(arrays) else arrays

    def _order(self, count):
        return self._note.get("outputs", 0 if count == 1 else list(range(count)))


@checked(path=PATH)
def load(path: PathLike) -> LiteModel:
    """LiteRT file reader: a .tflite file, of whatever making.

    Args:
      path: the file.

    Raises:
      ValueError: it is not a .tflite file, or a damaged one; of a file that `quantize.convert` made, each byte counts.

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
    content = path.read_bytes() if path.is_file() else b""
    require(content[4:8] == b"TFL3", "`path` must be a .tflite file", path=str(path),
            do="" if path.is_file() else "There is no such file.")
    require(file.is_sealed(content), f"`path` {_CHANGED}", path=str(path), do="Bring the file back from a copy, or "
            "convert the model again.")
    lite = LiteModel(content)
    try:
        _ = lite.inputs, lite.report                       # these read the file
    except Exception as error:                             # whatever the schema's reader meets in damaged bytes
        raise refusal("`path` must be a whole .tflite file, and this one is cut or damaged", path=str(path),
                      reason=run.reason(error)) from None
    return lite


def take(calibration, inputs, name="calibration"):
    """At most _MOST samples of the calibration data, as a list of arrays in the model's order."""
    arrays = _data.read(calibration, inputs, name=name, finite=True, targets="ignored").head(_MOST).x
    return [array if x.dtype == "string" else np.asarray(array).astype(x.dtype) for array, x in zip(
        keras.tree.flatten(arrays), keras.tree.flatten(inputs), strict=True)]


def _for_each(metrics, outputs):
    """Metrics for each output, where the same list is given for all."""
    if isinstance(metrics, dict) or not isinstance(outputs, dict | list):
        return metrics if isinstance(metrics, dict) else list(metrics)
    same = all(not isinstance(metric, dict | list | tuple | None) for metric in metrics)
    return keras.tree.map_structure(lambda _: list(metrics), outputs) if same else list(metrics)


def _nest(structure, values):
    if isinstance(structure, dict):
        return {key: _nest(part, values) for key, part in structure.items()}
    return [_nest(part, values) for part in structure] if isinstance(structure, list) else values[structure]
