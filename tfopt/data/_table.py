"""Tables to batches: what is fitted on the training rows becomes Keras layers, and only those layers touch data."""

import dataclasses
import os
import warnings

import numpy as np
import pandas as pd

from .._check import BATCH_SIZE, FLAG, NO, PATH, SEED, TEXT, Instance, Number, OneOf, checked, require
from .._keras import graph_of, keras, tf
from .._tables import Frame
from .._typing import Dataset, PathLike
from ._arrays import View, arrays, batches

MANY = 1000                                                  # values of a column of text that is no category
TABLE = PATH | Instance(pd.DataFrame)
RULES = ("iqr", "zscore")
MISSING = OneOf("median", "mean", "mode") | Number()
CHUNK = 16384                                                # rows that pass through the layers at once


def bounds(values, rule):
    """Lowest and highest value that is no outlier, per column; none where the rule sees no spread.

        "iqr":     q1 - 1.5 (q3 - q1),  q3 + 1.5 (q3 - q1)
        "zscore":  mean - 3 std,        mean + 3 std

    Args:
      values: DataFrame of numbers; missing ones are left out.
      rule: "iqr" or "zscore".
    Example:
      >>> low, high = bounds(pd.DataFrame({"a": [1., 2., 3., 4., 100.]}), "iqr")
      >>> low.tolist(), high.tolist()
      ([-1.0], [7.0])
    """
    if rule == "iqr":
        first, third = values.quantile(0.25), values.quantile(0.75)
        reach = 1.5 * (third - first)
        low, high = first - reach, third + reach
    else:
        reach = 3 * values.std(ddof=0)
        low, high = values.mean() - reach, values.mean() + reach
    huge = np.finfo(np.float64).max
    return low.where(reach > 0, -huge), high.where(reach > 0, huge)


def encode_target(values, classes=None):
    """Targets as an array, and the names of the classes: None for numbers, which stay as they are.

    Args:
      values: a Series. Text, bool and category become 0, 1, ... in the order of the sorted (or given) classes.
      classes: as returned for the training rows.
    Example:
      >>> encode_target(pd.Series(["b", "a", "b"]))
      (array([1, 0, 1], dtype=int32), ['a', 'b'])
    """
    require(not values.isna().any(), "the target must not be missing", column=values.name,
            missing=int(values.isna().sum()), do="Drop those rows: frame.dropna(subset=[target]).")
    values = values.infer_objects()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        whole = pd.api.types.is_integer_dtype(values)
        with np.errstate(over="ignore"):
            numbers = values.to_numpy(np.int64 if whole else np.float32)
        fit = numbers == values.to_numpy() if whole else np.isfinite(numbers)
        require(fit.all(), "the target must be finite numbers within int64 or float32", column=values.name,
                beyond=int((~fit).sum()), do="Look at these rows, or scale the column.")
        return numbers, None
    text = values.astype(str)
    classes = classes or sorted(text.unique())
    unknown = sorted(set(text) - set(classes))
    require(not unknown, "every class must be among the training rows", column=values.name, unknown=unknown,
            classes=classes)
    return pd.Categorical(text, categories=classes).codes.astype(np.int32), classes


@dataclasses.dataclass(frozen=True)
class TablePreprocessor:
    """What `table` learned from the training rows, as a Keras model of Keras' own layers and operations.

        whole = keras.Model(fitted.model.input, net(fitted.model.output))      from raw columns to predictions
        whole.save("whole.keras")                                              loads without tfopt

    Args:
      model: dict of raw columns, each [batch, 1], float64 or string -> float32[batch, features].
      frame: one row per column: kind, missing (how many were), fill, low, high, outliers (how many), center, scale,
        categories.
      target: name of the target column.
      classes: names of the classes in the order of their numbers, or None if the target is a number.
      dropped: training rows that were left out for their outliers.
    Example:
      >>> frame = pd.DataFrame({"a": [1., 2., 3., np.nan], "y": ["no", "yes", "no", "yes"]})
      >>> _, _, fitted = table(frame, "y", 2, validation_split=0)
      >>> fitted.classes, fitted.frame.loc["a", "fill"]
      (['no', 'yes'], np.float64(2.0))
      >>> x, y = next(iter(fitted.dataset(pd.DataFrame({"a": [2., np.nan]}).assign(y="yes"), 2)))
      >>> x.numpy().tolist(), y.numpy().tolist()
      ([[0.0], [0.0]], [1, 1])
    """

    model: keras.Model
    frame: pd.DataFrame
    target: str
    classes: list[str] | None
    dropped: int

    @checked(path_or_frame=TABLE, batch_size=BATCH_SIZE)
    def dataset(self, path_or_frame: PathLike | pd.DataFrame, batch_size: int) -> Dataset:
        """Batches of new rows in their order, treated as the training rows were: (x, y), or x without the target.

        Warns of categories that the training rows did not have; their columns are all zeros.
        """
        frame = _read(path_or_frame)
        _warn_of_unknown(frame, self.frame)
        return _dataset(frame, self, batch_size)


@checked(path_or_frame=TABLE, model=Instance("keras.Model", text="a Keras 3 model"), batch_size=BATCH_SIZE)
def raw_features(path_or_frame: PathLike | pd.DataFrame, model: keras.Model,
                 batch_size: int = 1024) -> Dataset:
    """Batches of raw columns for a model that begins with `TablePreprocessor.model`.

        whole.predict(raw_features(new, whole))

    Args:
      path_or_frame: CSV or DataFrame. Columns the model does not ask for are passed over.
      model: a Keras model whose input is a dict of columns, such as one loaded from a file.
      batch_size: rows in a batch.
    Returns:
      A tf.data.Dataset of {name: float64 or string [batch, 1]}. (A dict of arrays would lose digits: `predict` rounds
      them to float32 before the model has taken the mean off.)
    Raises:
      ValueError: a column is not there, holds text in place of numbers, or is not finite.
    Example:
      >>> frame = pd.DataFrame({"a": [1., 2.], "y": ["no", "yes"]})
      >>> _, _, fitted = table(frame, "y", 2, validation_split=0)
      >>> fitted.model.predict(raw_features(frame, fitted.model), verbose=0).tolist()
      [[-1.0], [1.0]]
    """
    graph = graph_of(model)
    require(graph is not None and isinstance(graph.input, dict), "`model` must take a dict of columns",
            model=model, do="Pass `.model` of what data.table returns, or such a model loaded from its file.")
    frame = _read(path_or_frame)
    raw = raw_columns(frame, model)
    return batches(len(frame), batch_size, lambda rows: {name: tf.gather(value, rows) for name, value in raw.items()},
                   view=View(lambda element, epoch, rows: element), shuffle=False, seed=0)


@checked(path_or_frame=TABLE, target=TEXT, batch_size=BATCH_SIZE, missing=MISSING | Instance(dict),
         outliers=OneOf(*RULES, *((rule, act) for rule in RULES for act in ("clip", "drop"))),
         scale=OneOf("standard", "minmax", None), validation_split=Number(low=0, below=1), shuffle=FLAG, seed=SEED)
def table(path_or_frame: PathLike | pd.DataFrame, target: str, batch_size: int, *,
          missing: str | float | dict[str, str | float] = "median", outliers: str | tuple[str, str] | None = None,
          scale: str | None = "standard", validation_split: float = 0.2, shuffle: bool = True,
          seed: int = 0) -> tuple[Dataset, Dataset | None, TablePreprocessor]:
    """Batches of (features, target) from a CSV or DataFrame; everything is fitted on the training rows alone.

        numbers:     clip to the bounds -> fill what is missing -> (x - center) / scale
        categories:  fill what is missing -> one column per category of the training rows; unknown ones are all zeros

    Columns of numbers and bool are numbers; text and category are categories. The validation rows are drawn from each
    class alike. Outliers in validation rows and in new ones are clipped as in training, but no row of them is dropped.

    Args:
      path_or_frame: CSV with a header, or a DataFrame (read anything else with pandas first). It is not changed.
      target: name of the target column. Text, bool and category become classes 0, 1, ... in sorted order; numbers stay.
      batch_size: examples in a batch, >= 1; the last one may be shorter, see `full_batches`.
      missing: "median", "mean", "mode" or a number, for columns of numbers; categories take the mode. Or a dict
        {column: one of these, or for a category any text}; columns not in it take the median.
      outliers: None; "iqr" (beyond 1.5 interquartile ranges) or "zscore" (beyond 3 standard deviations) to clip them;
        ("iqr", "drop") or ("zscore", "drop") to leave those training rows out.
      scale: "standard" (mean 0, variance 1), "minmax" (0 to 1) or None.
      validation_split: share of the rows in [0, 1).
      shuffle: False keeps the training rows in their order.
      seed: whole number >= 0: which rows are for validation, and the order of each epoch.
    Returns:
      `(train, validation, fitted)`: two tf.data.Datasets, the second None if `validation_split` is 0, and a
      `TablePreprocessor`.
    Raises:
      ValueError: an argument is out of range, the target is missing somewhere, or a column has nothing to fit: dates,
        infinite numbers, numbers mixed with text, no value at all, or more than 1000 categories.
    Example:
      >>> frame = pd.DataFrame({"a": [1., 2., np.nan, 4., 5.], "b": list("xyxyx"), "y": [0.1, 0.2, 0.3, 0.4, 0.5]})
      >>> train, validation, fitted = table(frame, "y", 2)
      >>> [len(y) for x, y in train], [len(y) for x, y in validation], fitted.model.output.shape
      ([2, 2], [1], (None, 3))
    """
    rule, act = (outliers, "clip") if outliers is None or isinstance(outliers, str) else outliers
    frame = _read(path_or_frame)
    require(target in frame.columns, "the target must be among the columns", target=target, columns=list(frame))
    _check_names(frame, target, missing)
    held_out = _held_out(encode_target(frame[target]), validation_split, seed)
    rows = frame[~held_out]
    require(len(rows) > 0 and (held_out.any() or not validation_split), "each side of the split needs a row",
            rows=len(frame), validation_split=validation_split)
    fits, keep = _fit(rows.drop(columns=target), missing, rule, act, scale)
    require(keep.any(), "dropping outliers must leave a row", rows=len(rows), do='Pass outliers="iqr" to clip them.')
    rows = rows[keep]
    y, classes = encode_target(rows[target])
    fitted = TablePreprocessor(_layers(fits), fits, target, classes, int((~keep).sum()))
    train = arrays(_matrix(fitted.model, rows), y, batch_size, shuffle=shuffle, seed=seed)
    if not validation_split:
        return train, None, fitted
    _warn_of_unknown(frame[held_out], fits)
    return train, _dataset(frame[held_out], fitted, batch_size), fitted


def _read(path_or_frame: PathLike | pd.DataFrame) -> pd.DataFrame:
    if isinstance(path_or_frame, pd.DataFrame):
        return path_or_frame
    require(os.path.isfile(path_or_frame) or "://" in str(path_or_frame), "`path_or_frame` must be a file that exists",
            path_or_frame=path_or_frame)
    return pd.read_csv(path_or_frame)


def _check_names(frame, target, missing):
    names = list(frame.columns)
    wrong = [name for name in names if not isinstance(name, str) or not name or "/" in name or names.count(name) > 1]
    require(not wrong, "names of columns must be text, without a slash, and different", columns=wrong,
            do="Rename them: frame.rename(columns={...}).")
    require(len(names) > 1, "there must be a column beside the target", columns=names)
    if isinstance(missing, dict):
        unknown = [name for name in missing if name not in names or name == target]
        require(not unknown, "`missing` must name columns", unknown=unknown, columns=names)


def _held_out(encoded, share, seed):
    """bool[n]: `share` of the rows, of each class alike."""
    values, classes = encoded
    chosen = np.zeros(len(values), bool)
    order = np.random.default_rng(seed).permutation(len(values))
    for group in range(len(classes)) if classes else [None]:
        rows = order if group is None else order[values[order] == group]
        chosen[rows[:round(share * len(rows))]] = True
    return chosen


def _fit(rows, missing, rule, act, scale):
    """What is learned from the training rows, one row per column; and bool[n]: the rows to keep."""
    kinds = {name: _kind(rows[name]) for name in rows}
    numbers = pd.DataFrame({name: _numbers(rows[name]) for name, kind in kinds.items() if kind == "number"},
                           index=rows.index)
    keep = np.ones(len(rows), bool)
    out = pd.Series(0, numbers.columns)
    low = high = pd.Series(np.nan, numbers.columns)
    if rule and len(numbers.columns):
        low, high = bounds(numbers, rule)
        beyond = numbers.lt(low) | numbers.gt(high)
        out = beyond.sum()
        if act == "drop":
            keep = ~beyond.any(axis=1).to_numpy()
        numbers = numbers.clip(low, high, axis=1)
    fits = {}
    for name, kind in kinds.items():
        how = missing.get(name, "median") if isinstance(missing, dict) else missing
        fit = {"kind": kind, "missing": int(rows[name].isna().sum())}
        if kind == "number":
            values = numbers[name] if keep.all() else numbers.loc[keep, name]
            fit |= {"low": low[name], "high": high[name], "outliers": int(out[name]), **_fit_number(values, how, scale)}
        else:
            fit |= _fit_category(_text(rows[name])[keep], how, isinstance(missing, dict) and name in missing)
        fits[name] = fit
    columns = ["kind", "missing", "fill", "low", "high", "outliers", "center", "scale", "categories"]
    return Frame.from_dict(fits, orient="index").reindex(columns=columns), keep


def _fit_number(values, how, scale):
    require(values.notna().any(), "a column of numbers needs a value among the training rows", column=values.name,
            do="Drop the column.")
    if isinstance(how, str):
        require(how in ("median", "mean", "mode"), "a missing number can be the median, the mean, the mode or a number",
                column=values.name, missing=how)
        fill = float(values.mode().iloc[0] if how == "mode" else getattr(values, how)())
    else:
        require(Number()(how) is not NO, "a missing number can be the median, the mean, the mode or a number",
                column=values.name, missing=how)
        fill = float(how)
    values = values.fillna(fill)
    center, spread = {"standard": lambda: (values.mean(), values.std(ddof=0)),
                      "minmax": lambda: (values.min(), values.max() - values.min()), None: lambda: (0., 1.)}[scale]()
    return {"fill": fill, "center": float(center), "scale": float(spread) or 1.}         # a constant column stays 0


def _fit_category(text, how, named):
    known = pd.Series(text[text != ""])
    require(len(known), "a column of categories needs a value among the training rows", do="Drop the column.")
    constant = named and how not in ("median", "mean", "mode")
    require(not constant or isinstance(how, str), "a missing category must be text", missing=how)
    fill = how if constant else known.mode().iloc[0]
    categories = sorted({*known.unique(), *([fill] if (text == "").any() else [])})
    require(len(categories) <= MANY, f"a column of categories must have at most {MANY} of them", found=len(categories),
            examples=categories[:3], do="Drop the column, or turn it into numbers.")
    return {"fill": fill, "categories": categories}


def _kind(values):
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "category"
    present = values if pd.api.types.is_numeric_dtype(values) else values.dropna().infer_objects()
    if pd.api.types.is_numeric_dtype(present) and not pd.api.types.is_complex_dtype(present):
        return "number"
    require(pd.api.types.is_object_dtype(present) or pd.api.types.is_string_dtype(present),
            "a column must hold numbers or categories", column=values.name,
            dtype=str(values.dtype), do="Turn dates into numbers first, such as days since a day.")
    numeric = pd.to_numeric(present.astype(str), errors="coerce").notna()
    require(not len(present) or not 0.5 <= numeric.mean() < 1, "a column must not mix numbers and text",
            column=values.name, text=present[~numeric].iloc[:3].tolist(),
            do='If the text means missing, say so: pd.read_csv(path, na_values=["?"]). '
               'If these are names, use frame[column].astype("category").')
    return "category"


def _numbers(values):
    """float64[n] with NaN for what is missing."""
    try:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        numbers = None
    require(numbers is not None, "a column that was numbers must be numbers", column=values.name,
            dtype=str(values.dtype))
    require(not np.isinf(numbers).any(), "numbers must be finite, or missing", column=values.name,
            infinite=int(np.isinf(numbers).sum()), do="Replace them: frame.replace([np.inf, -np.inf], np.nan).")
    return numbers


def _text(values):
    """object[n] of str, "" for what is missing; 1.0 and 1 are the same category."""
    categories = values.astype("category").cat
    names = [str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)
             for name in categories.categories]
    return np.array([*names, ""], object)[categories.codes]


def _warn_of_unknown(frame, fits):
    """To the caller of the public function that called this one."""
    for name, known in fits["categories"].dropna().items():
        text = _text(frame[name]) if name in frame else np.array([])
        unknown = sorted(set(text) - {"", *known})
        if unknown:
            warnings.warn(f"column {name!r}: {np.isin(text, unknown).sum()} rows hold categories that no training row "
                          f"had: {', '.join(unknown[:5])}.", stacklevel=3)


def _dataset(frame, fitted, batch_size):
    y = encode_target(frame[fitted.target], fitted.classes)[0] if fitted.target in frame else None
    return arrays(_matrix(fitted.model, frame), y, batch_size, shuffle=False)


def _matrix(model, frame):
    """float32[rows, features], a chunk at a time."""
    raw = raw_columns(frame, model)
    chunks = [model({name: value[start:start + CHUNK] for name, value in raw.items()}).numpy()
              for start in range(0, max(1, len(frame)), CHUNK)]
    return np.concatenate(chunks)


def raw_columns(frame, model):
    """{name: tensor [n, 1]} of the columns that the inputs of `model` name."""
    require(isinstance(model.input, dict), "it needs a model that takes a dict of columns",
            model=model.name,
            do="Begin it with TablePreprocessor.model: keras.Model(fitted.model.input, net(fitted.model.output)).")
    absent = [name for name in model.input if name not in frame]
    require(not absent, "every column of the training rows must be there", absent=absent, columns=list(frame))
    with tf.device("CPU"):
        return {name: tf.constant((_text if spec.dtype == "string" else _numbers)(frame[name])[:, None])
                for name, spec in model.input.items()}


def _layers(fits):
    """The Keras model that does to raw columns what `fits` says."""
    ops = keras.ops
    inputs = {name: keras.Input((1,), dtype="float64" if kind == "number" else "string", name=name)
              for name, kind in fits["kind"].items()}
    parts = []
    numbers = fits[fits["kind"] == "number"]
    if len(numbers):
        raw = ops.concatenate([inputs[name] for name in numbers.index], axis=-1)
        fill, low, high, center, scale = (
            numbers[what].to_numpy(np.float64) for what in ("fill", "low", "high", "center", "scale"))
        values = raw if np.isnan(low).any() else ops.minimum(ops.maximum(raw, low), high)
        values = ops.where(ops.isnan(raw), fill, values)
        # in float64, and not with Normalization, which rounds the mean to float32 before it takes it off
        parts.append(ops.cast((values - center) / scale, "float32"))
    for name, fit in fits[fits["kind"] == "category"].iterrows():
        names = fit["categories"]
        number = keras.layers.StringLookup(vocabulary=names, mask_token="")(inputs[name])    # 0 missing, 1 unknown
        known = names.index(fit["fill"]) + 2 if fit["fill"] in names else 1
        number = ops.where(ops.equal(number, 0), known, number)
        hot = keras.layers.CategoryEncoding(num_tokens=len(names) + 2, output_mode="one_hot")(number)
        parts.append(ops.cast(hot[:, 2:], "float32"))
    return keras.Model(inputs, ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0], name="raw_features")
