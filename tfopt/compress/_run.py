"""Compression in stages, each as strong as the accuracy allows."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import _data, _files, _models, cluster, prune, quantize, report
from .._check import EPOCHS, FUNCTION, MODEL, PATH, SEED, Number, OneOf, Rule, checked, refusal, require, said
from .._keras import keras, seeded, tf
from .._tables import Frame
from .._typing import Data, PathLike
from ..report._measures import MEASURES
from . import _stages
from ._quality import Quality
from ._record import Record

STAGES = ("distill", *_stages.STRENGTHS)
RUNS = 30                                                  # timed calls of each candidate
_log = logging.getLogger("tfopt.compress")


# The formula


def bisect(count, passes):
    """The largest index below `count` that passes, or -1: if i passes, so do those below it.

    Example:
      >>> tried = []
      >>> bisect(7, lambda i: tried.append(i) or i <= 4), tried
      (4, [3, 5, 4])
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


# The object


class Result:
    """What `run` found. Made by `run`.

    Attributes:
      table: `report` table of the original, the model after each stage that was kept, and the LiteRT files, on the data
        that nothing was chosen by; `table.plot(path)` draws the Pareto picture.
      tried: pandas DataFrame, one row a candidate, on the validation data that chose among them: `stage`, `strength`,
        `kept`, `accuracy` with its interval `low`, `high`, `drop` and the `allowed` one, `sparsity` (share of zeros in
        the kernels), `values` (most different values in a kernel), `bytes`, `gzip`, `macs`, `latency_ms`, `epochs`
        (trained since the original), `seconds`, `why` (of a candidate that could not be made).
      best: the last Keras model that was kept, plain and not compiled; a copy of the original if none was.
      lite: the LiteRT file made of it, a `quantize.LiteModel`; None if no form of it was good enough.

    Args:
      table, tried, best, lite: see above.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> Result(report.compare({"original": model}, runs=1), pd.DataFrame(), model, None)
      <Result original -> original: 40 to 40 bytes>
    """

    def __init__(self, table: Any, tried: pd.DataFrame, best: keras.Model, lite: quantize.LiteModel | None) -> None:
        self.table: Any = table
        self.tried: pd.DataFrame = tried
        self.best: keras.Model = best
        self.lite: quantize.LiteModel | None = lite

    def __repr__(self) -> str:
        first, last = self.table.rows[0], self.table.rows[-1]
        return f"<Result {first.name} -> {last.name}: {first.bytes:,} to {last.bytes:,} bytes>"

    def save(self, folder: PathLike) -> None:
        """Writes best.keras, best.tflite (if there is one), table.md, table.csv, tried.csv and pareto.png.

        Args:
          folder: where to; made if it is not there.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.best.save(folder / "best.keras")
        if self.lite is not None:
            self.lite.save(folder / "best.tflite")
        (folder / "table.md").write_text(self.table.markdown() + "\n")
        self.table.frame.to_csv(folder / "table.csv")
        self.tried.to_csv(folder / "tried.csv", index=False)
        self.table.plot(folder / "pareto.png")


# The helper


STAGE_NAMES = Rule("names of stages, or a dict {stage: strengths}", lambda value: isinstance(value, list | tuple | dict)
                   and all(isinstance(name, str) for name in value))


@checked(model=MODEL, max_drop=Number(low=0), measure=FUNCTION | OneOf(*MEASURES), stages=STAGE_NAMES,
         epochs=EPOCHS, directory=PATH, seed=SEED)
def run(model: keras.Model, train: Data, val: Data, *, test: Data | None = None,  # noqa: PLR0913
        max_drop: float = 0.005,
        measure: Callable[[Any, Any], float] | str | None = None,
        stages: Sequence[str] | dict[str, Sequence[Any]] = STAGES, epochs: int = 3,
        directory: PathLike | None = None, seed: int = 0) -> Result:
    """Compression pipeline: a trained model made smaller, stage by stage, as far as its quality allows.

        drop = quality of the original - quality of the candidate, on `val`;    stage i of n may use max_drop * i / n

    Each stage tries a few strengths by bisection, every candidate trained anew from the last kept model, and keeps the
    strongest whose drop is allowed; if none is, the stage is left out. Training uses what `model` was compiled with, a
    fresh optimizer, and a rate that falls along a cosine from 1/3 (shrink, prune, 4 bits) or 1/10 (cluster, 8 bits) of
    the highest the user's optimizer has. Zeros and shared values must survive every later stage: that is checked, in
    the file too. The numbers in the result's table are from `test`, which nothing was trained on or chosen by.

        "distill"    the original is the teacher of all candidates (`distill.Logits`, half the loss)
        "shrink"     share of the channels that stay: 0.875 ... 0.125
        "prune"      share of zeros in all kernels together: 0.4 ... 0.95, reached at half of the training; which layer
                     has how many says `prune.allocate`
        "cluster"    values in a kernel: 128 ... 8; zeros stay
        "quantize"   the first of "int4" after training, "int4 trained" (zeros and shared values stay), "int8", "int8
                     trained", "int16x8" and "float16" that is good enough

    Pruning and clustering leave out the smallest kernels, together 2% of the weights.

    Args:
      model: a built, compiled and trained Keras 3 model, subclassed with its own `train_step` too, with one output or
        several. It is only read. What a stage cannot do with such a model is a line in `tried`.
      train: (x, y) or (x, y, sample_weight) arrays, trained on in batches of 32 in an order that `seed` fixes; or a
        tf.data.Dataset or keras.utils.PyDataset of batches, e.g. of `data.arrays(x, y, 128)`.
      val: the same, which chooses; it must fit in memory. Drops smaller than one over its number of examples cannot be
        seen.
      test: the same, for the final table. None takes a random half of `val` away for it.
      max_drop: accuracy that may be lost, as a share, >= 0; of other tasks the share by which the loss may rise.
      measure: `(y, outputs) -> quality`, arrays nested as the model nests them, higher is better; or, of a model with
        one output, the name of a measure of `report.compare`, e.g. "f1_macro" or "r2". `max_drop` is then in its units.
        None is the accuracy of classes of one output; of other tasks and several outputs 1 - loss / loss of the
        original: the compiled losses and their weights, with sample weights, without penalties.
      stages: names of the above in this order; or {name: strengths, from the weakest to the strongest}.
      epochs: of each candidate's training, >= 1.
      directory: where candidates are kept, as numbers and JSON. The same call with the same directory goes on where
        the last was stopped. None keeps nothing.
      seed: of the split, the order of arrays and dropout; the global random states are not changed.

    Returns:
      A `Result`.

    Raises:
      ValueError: the model is not as above or not compiled, the data do not fit it, a number is out of range,
        `directory` is in use or holds another run, as far as weights, arrays (of a data set its shapes and number of
        batches), settings, compiled losses and the code of `measure` tell. A candidate that fails is a line in `tried`,
        with its reason.
      OSError: `directory` cannot be written; nothing that was recorded is lost.
      TypeError: not a Keras 3 model.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(96, 8)).astype("float32")
      >>> y = (x[:, 0] > 0).astype("int32")
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(2)])
      >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
      >>> result = run(model, (x, y), (x, y), stages={"prune": (0.5,)}, max_drop=0.5, epochs=1)
      >>> [row.name for row in result.table.rows]
      ['original', 'prune 0.5']

    Reference:
      Han, Mao and Dally, Deep compression, 2015, https://arxiv.org/abs/1510.00149
    """
    _models.require_model(model, "compress.run")
    own = _models.own_methods(model)
    require(model.compiled and (model.loss is not None or "train_step" in own),
            "compress.run needs a model that was compiled with a loss", model=model.name,
            do="Call model.compile(optimizer, loss): the candidates are trained with it.")
    chosen = _strengths(stages)
    targets = "required" if model.loss is not None else "optional"
    source = _data.read(train, model, name="train", targets=targets)
    val = _data.read(val, model, name="val", targets=targets).whole()
    test = None if test is None else _data.read(test, model, name="test", targets=targets).whole()
    with seeded(seed):
        val, test = _halves(val, seed) if test is None else (val, test)
        training = _stages.Training(model, source, int(epochs), "distill" in chosen, seed)
        training.check(model)
        settings = {"weights": _files.fingerprint(*model.get_weights()), "val": _fingerprint(val),
                    "train": _fingerprint(source), "compiled": _described(training.arguments),
                    "optimizer": _described(training.optimizer), "epochs": int(epochs), "seed": int(seed),
                    "distill": "distill" in chosen, "measure": _described(measure)}
        with contextlib.closing(Record(directory, settings)) as record:
            search = _Search(_stages.start(model, seed), training, val, record, seed,
                             Quality(model, val, training.arguments, measure))
            search.require_scored(test)
            work = [(stage, strengths) for stage, strengths in chosen.items() if stage != "distill"]
            for number, (stage, strengths) in enumerate(work, 1):
                search.take(stage, strengths, max_drop * number / len(work))
        if search.lite is not None:
            form = search.lite_name.split()[0]
            with contextlib.suppress(Exception):           # a row of the table, not worth what was made so far
                search.shown[f"original, {form}"] = quantize.convert(model, form, calibration=training.sample)
            search.shown[search.lite_name] = search.lite
        table = report.compare(search.shown, search.labeled(test),
                               title=f"{model.name}, at most {100 * max_drop:g} points lost")
    return Result(table, Frame(search.rows), search.best, search.lite)


class _Search:
    """The state of a run.

    Attributes:
      best, lite: the last kept model and file.
      shown: {name: model} of the original and all that was kept.
      rows: of `Result.tried`.
    """

    def __init__(self, model, training, val, record, seed, quality):
        self.training, self.val, self.record, self.seed, self.quality_of = training, val, record, seed, quality
        self.best, self.lite, self.lite_name, self.shown = model, None, None, {"original": model}
        self.name, self.epochs, self.zeros, self.values = "original", 0, [], []
        row = self._measured(model)
        self.quality = quality(model, row)
        require(np.isfinite(self.quality), "the quality of the model on `val` must be a finite number",
                quality=self.quality)
        self.rows = [{**self._facts(model, row, self.quality), "stage": "original", "strength": None, "kept": True,
                      "epochs": 0}]

    def labeled(self, data):
        """What `report` takes of `Arrays`: nothing where there are no labels that it can score."""
        return None if data.y is None or not self.quality_of.scored else (data.x, data.y)

    def require_scored(self, test):
        """Refuses now the data that the table at the end could not be made of."""
        try:
            report.measure(self.best, self.labeled(test), runs=1)
        except ValueError as error:
            raise refusal("`test` must be data that the model can be scored on", report=said(error)) from error

    def take(self, stage, strengths, allowed):
        """Tries a stage, and moves on to the strongest candidate whose drop is allowed."""
        found = {}

        def passes(index):
            row, model = self._try(stage, strengths[index], allowed)
            self.rows.append({**row, "allowed": allowed, "kept": False})
            if model is not None:
                found[index] = model, self.rows[-1]
            return model is not None or (stage == "cluster" and bool(row["why"]))     # too few weights for so many

        if stage == "quantize":                             # only two of its forms cost any training
            any(passes(index) for index in reversed(range(len(strengths))))
        else:
            bisect(len(strengths), passes)
        if found:
            chosen = max(found)
            self._keep(stage, strengths[chosen], *found[chosen])

    def _keep(self, stage, strength, model, row):
        row["kept"], name = True, _label(stage, strength)
        if stage == "quantize":
            self.lite, self.lite_name = model, name
            return
        if stage == "prune":
            self.zeros = _stages.large(prune.plan(self.best))
        if stage == "cluster":
            self.values = _stages.large(cluster.plan(self.best, strength, preserve_sparsity=bool(self.zeros)))
        self.best, self.name, self.epochs = model, f"{self.name} > {name}", row["epochs"]
        self.shown[name] = model

    def _try(self, stage, strength, allowed):
        """(row, model), or (row, None) if the candidate is not good enough or cannot be made."""
        name = f"{self.name} > {_label(stage, strength)}"
        row = self.record.row(name)
        if row is not None:
            good = row["drop"] is not None and row["drop"] <= allowed + 1e-9
            model = self._restore(stage, strength, name) if good else None
            if model is not None or not good:
                return row, model
        start = time.perf_counter()
        model, why = self._made(stage, strength)
        row = {"name": name, "stage": stage, "strength": strength, "why": why, "drop": None}
        if model is not None:
            epochs = self.epochs + self.training.epochs * (stage != "quantize" or strength.endswith("trained"))
            try:
                measured = self._measured(model)
                row |= self._facts(model, measured, self.quality_of(model, measured)) | {"epochs": epochs}
                if not np.isfinite(row["drop"]):
                    model, row["drop"], row["why"] = None, None, "its quality on `val` is not a finite number"
            except (ValueError, RuntimeError, tf.errors.OpError) as error:    # a file that LiteRT cannot run on `val`
                model, row["why"] = None, said(error)
        row["seconds"] = round(time.perf_counter() - start, 1)
        good = model is not None and row["drop"] <= allowed + 1e-9
        self.record.keep(row, model if good else None)
        text = row["why"] or (f"drop {100 * float(row['drop'] or 0):.2f} points of {100 * allowed:.2f}, "
                              f"gzip {row['gzip']:,} bytes, {row['seconds']:.0f} s")
        _log.info("%s: %s", name, text)
        return row, model if good else None

    def _made(self, stage, strength):
        """(candidate, ""), or (None, why the stage refused)."""
        both = {(True, True): "both", (True, False): "sparsity", (False, True): "clusters", (False, False): None}
        make = {"shrink": _stages.shrunk, "prune": _stages.pruned,
                "cluster": lambda *given: _stages.clustered(*given, zeros=bool(self.zeros)),
                "quantize": lambda *given: _stages.quantized(*given, both[bool(self.zeros), bool(self.values)])}
        with seeded(self.seed):
            try:
                made = make[stage](self.best, strength, self.training)
                model, trained = made if stage == "quantize" else (made, None)
                _stages.require_kept(stage, self.best, model, self.zeros, self.values, trained)
                return model, ""
            except Exception as error:                     # whatever it is, what was made so far goes on
                return None, said(error)

    def _measured(self, model):
        return report.measure(model, self.labeled(self.val), runs=RUNS)

    def _restore(self, stage, strength, name):
        if stage == "quantize":
            return self.record.restore(name, None)
        return self.record.restore(name, lambda: _stages.structure(stage, strength, self.best))

    def _facts(self, model, row, quality):
        if isinstance(model, quantize.LiteModel):
            kernels = list(model.kernels.values())
        else:
            kernels = [np.asarray(w) for w in model.weights if len(w.shape) > 1]
        size = sum(kernel.size for kernel in kernels)
        return {"accuracy": row.accuracy, "low": row.low, "high": row.high,
                "drop": self.quality - quality,
                "sparsity": sum(int((kernel == 0).sum()) for kernel in kernels) / max(size, 1),
                "values": max((len(np.unique(kernel)) for kernel in kernels), default=0),
                "bytes": row.bytes, "gzip": row.gzip, "macs": row.macs, "latency_ms": row.latency_ms}


def _label(stage, strength):
    return {"cluster": f"{strength} values", "quantize": strength}.get(stage, f"{stage} {strength}")


def _strengths(stages):
    """{stage: strengths} of whatever `stages` may be."""
    chosen = dict(stages) if isinstance(stages, dict) else {stage: _stages.STRENGTHS.get(stage, ()) for stage in stages}
    known = [stage for stage in STAGES if stage in chosen]
    require(list(chosen) == known and len(chosen) == len(list(stages)) and set(known) - {"distill"},
            f"`stages` must be some of {', '.join(STAGES)}, in this order, and not distill alone", stages=list(stages))
    empty = [stage for stage, strengths in chosen.items() if stage != "distill" and not len(strengths)]
    require(not empty, "each of the `stages` needs strengths to try", without=empty,
            do='Pass e.g. {"prune": (0.5, 0.8), "quantize": ("int8",)}.')
    forms = [form for form in chosen.get("quantize", ()) if form not in _stages.STRENGTHS["quantize"]]
    require(not forms, f"the forms of quantize are {', '.join(_stages.STRENGTHS['quantize'])}", unknown=forms)
    return chosen


def _halves(data, seed):
    """Two random halves of `Arrays`."""
    require(data.length >= 2, "without `test` half of `val` is put aside for it, which needs two examples",
            val=data.length)
    order = np.random.default_rng(seed).permutation(data.length)
    return [data.rows(np.sort(rows)) for rows in (order[: data.length // 2], order[data.length // 2:])]


def _fingerprint(source):
    """Of arrays all of them; of a data set, which may draw anew each time, its shapes and the number of batches."""
    if isinstance(source, _data.Arrays):
        return _files.fingerprint(*(part for part in keras.tree.flatten((source.x, source.y, source.sample_weight))
                                    if part is not None))
    return _files.fingerprint(str(source.shapes), source.batches_known)


def _described(thing):
    """A fingerprint of an optimizer, a function, or a nest of losses and metrics: of its config, or of its code.

    Names do not count: Keras counts on in those that it gives itself.
    """
    if isinstance(thing, dict | list | tuple):
        parts = sorted(thing.items()) if isinstance(thing, dict) else enumerate(thing)
        return _files.fingerprint(*(f"{key} {_described(value)}" for key, value in parts))
    if hasattr(thing, "get_config"):
        return _files.fingerprint(type(thing).__name__, {**thing.get_config(), "name": None})
    code = getattr(thing, "__code__", None)
    return _files.fingerprint(getattr(thing, "__qualname__", repr(thing) if code is None else ""),
                              *((code.co_code, repr(code.co_consts), code.co_names) if code else ()))
