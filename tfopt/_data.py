"""The one reader of what users call `data`: arrays, tables and data sets, with or without targets.

    data = _data.read(data, model, targets="required")     # in a function that is `checked`, which names itself
    for x, y, sample_weight in data.batches(64): ...       # NumPy arrays, x nested as the model takes it
    model.fit(**data.fit_arguments(64))

`data` may be x, (x, y) or (x, y, sample_weight); each an array, a tensor, a list of numbers, a pandas table, or a dict,
list or tuple of those for several inputs or outputs; or a tf.data.Dataset or keras.utils.PyDataset of such batches. A
tuple of two is a pair of inputs where that is what the model takes, and (x, y) elsewhere.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ._check import Rule, refusal, require, shown
from ._keras import graph_of, keras, tf

_FORMS = "Pass arrays x, (x, y) or (x, y, sample_weight), or a tf.data.Dataset or keras.utils.PyDataset of batches."
BATCHES = Rule("a tf.data.Dataset of batches", lambda value: isinstance(value, tf.data.Dataset) and all(
    spec.shape.rank != 0 for spec in keras.tree.flatten(value.element_spec)))
_WEIGHTS = ("x", "y", "sample_weight")


def read(data: Any, model: Any = None, *, name: str = "data", finite: bool = False,
         targets: Literal["required", "optional", "ignored"] = "optional",
         endless: bool = False) -> "Arrays | Stream":
    """What the user passed as `data`, looked at once.

    Args:
      data: see above.
      model: whose inputs it must fit: a model (without a graph nothing is known), or the inputs (KerasTensors or
        whatever has shape, dtype and name), nested as it takes them; None for no check.
      name: what the argument is called.
      finite: NaN and infinite values are refused; of a data set when a batch with some comes.
      targets: must there be a y, may there be one, or is it left out.
      endless: a data set may have no end: whoever reads it counts the batches.

    Raises:
      ValueError: it is none of the forms, empty or endless, of several lengths, without the targets, or does not fit.

    Example:
      >>> pair = read((np.ones((3, 2)), np.zeros(3)))
      >>> [(x.shape, y.shape) for x, y, _ in pair.batches(2)]
      [((2, 2), (2,)), ((1, 2), (1,))]
      >>> two = keras.Input((2,), name="a"), keras.Input((1,), name="b")
      >>> read((np.ones((3, 2)), np.ones((3, 1))), two).y is None        # both are inputs
      True
    """
    form = _Form(inputs_of(model), name, targets, finite)
    if isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        return Stream(data, form, endless=endless)
    require(data is not None and not isinstance(data, str | bytes | bool | int | float | set) and not callable(data),
            f"`{name}` must be arrays or a data set", do=_FORMS, **{name: data})
    require(not hasattr(data, "__next__") and (hasattr(data, "shape") or isinstance(data, list | tuple | dict)),
            f"`{name}` must be arrays or a data set, which can be read again", do=_FORMS, **{name: data})
    require(not isinstance(data, list | tuple | dict) or data, f"`{name}` must hold at least one array", **{name: data})
    return _arrays(form.split(_converted(data, form, top=True)), form)


@dataclasses.dataclass(frozen=True)
class _Form:
    """What is expected of the data."""

    inputs: Any
    name: str
    targets: str
    finite: bool

    def split(self, element):
        """(x, y, sample_weight) of what a user passes as one; decided by the model's inputs, else as Keras does."""
        x, rest = element, ()
        if isinstance(element, list | tuple) and len(element) in (1, 2, 3):
            known = self.inputs is not None
            first, all_of_it = known and self.fits(element[0]), known and self.fits(element)
            if first or (not all_of_it and (isinstance(element, tuple) or self.targets == "required")):
                x, *rest = element
        y, sample_weight = (*rest, None, None)[:2]
        if self.targets == "required":
            require(y is not None, f"`{self.name}` must hold targets too: (x, y)", **{self.name: _shapes(element)})
        return (x, None, None) if self.targets == "ignored" else (x, y, sample_weight)

    def fits(self, x):
        found, wanted = self.in_order(x), keras.tree.flatten(self.inputs)
        return found is not None and len(found) == len(wanted) and all(
            part is not None and _rank_change_of(part, tensor) for part, tensor in zip(found, wanted, strict=True))

    def in_order(self, x):
        """The parts of x in the model's order, None if they are not all there."""
        if isinstance(x, dict) and not isinstance(self.inputs, dict) and len(keras.tree.flatten(self.inputs)) > 1:
            names = [tensor.name for tensor in keras.tree.flatten(self.inputs)]
            return [x[name] for name in names] if set(names) <= set(x) else None
        if isinstance(x, dict) and isinstance(self.inputs, dict):
            if not set(self.inputs) <= set(x):
                return None
            x = {key: x[key] for key in self.inputs}
        return keras.tree.flatten(x)

    def require_fit(self, x):
        if self.inputs is None:
            return
        if self.fits(x):
            for part, tensor in zip(self.in_order(x), keras.tree.flatten(self.inputs), strict=True):
                require(not _is_text(part.dtype) or _is_text(tensor.dtype),
                        f"`{self.name}` must hold numbers where the model takes numbers",
                        **{self.name: _Text(f"{part.dtype} for {tensor.dtype}")},
                        do="Turn words into numbers first, e.g. with keras.layers.StringLookup or `astype`.")
            return
        wanted = {tensor.name: tuple(tensor.shape) for tensor in keras.tree.flatten(self.inputs)}
        do = f"These are {shown(wanted)}, examples first."
        single = keras.tree.map_structure(lambda part: None if part is None else _Shape((None, *(part.shape or ()))), x)
        if self.fits(single):
            do = "Put the examples in batches first: `.batch(32)`, or x[None] for one."
        raise refusal(f"`{self.name}` must hold x of the shape of the model's inputs", do=do,
                      **{self.name: _shapes(x)})

    def arranged(self, x):
        """x, nested as the model takes it, with or without a last axis of 1 as the model has it."""
        if self.inputs is None:
            return x
        parts = [part if change == "same" else part[..., None] if change == "expand" else part[..., 0]
                 for part, change in ((part, _rank_change_of(part, tensor)) for part, tensor in
                                      zip(self.in_order(x), keras.tree.flatten(self.inputs), strict=True))]
        return keras.tree.pack_sequence_as(self.inputs, parts)

    def require_finite(self, parts, start):
        if not self.finite:
            return
        for what, part in zip(_WEIGHTS, parts, strict=True):
            for array in keras.tree.flatten(part):
                if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
                    continue
                rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
                raise refusal(f"`{self.name}` must be finite", do="Leave these rows out, or fill in what is missing.",
                              **{self.name: _Text(f"NaN or infinite {what} in {len(rows)} of {len(array)} examples, "
                                                  f"first in example {start + rows[0]}")})


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Data in memory.

    Args:
      x, y, sample_weight: NumPy arrays, nested as the user nests them (x as the model does); None where there are none.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None

    @property
    def length(self) -> int:
        """Number of examples."""
        return len(keras.tree.flatten(self.x)[0])

    def count(self, batch_size: int) -> int:
        """Number of batches."""
        return math.ceil(self.length / batch_size)

    def batches(self, batch_size: int) -> Iterator[tuple[Any, Any, Any]]:
        """(x, y, sample_weight) of one batch after the other, the last one perhaps smaller."""
        for start in range(0, self.length, batch_size):
            part = self.rows(slice(start, start + batch_size))
            yield part.x, part.y, part.sample_weight

    def head(self, examples: int) -> "Arrays":
        """The first examples."""
        return self.rows(slice(examples))

    def whole(self) -> "Arrays":
        """All of it in memory."""
        return self

    def dataset(self, batch_size: int) -> tf.data.Dataset:
        """A tf.data.Dataset of the batches, as `fit` takes it: x, (x, y) or (x, y, sample_weight)."""
        parts = _trimmed((self.x, self.y, self.sample_weight))
        return tf.data.Dataset.from_tensor_slices(in_tuples(parts)).batch(batch_size)

    def fit_arguments(self, batch_size: int) -> dict[str, Any]:
        """Keyword arguments of `fit` and `evaluate`."""
        def plain(part):                                   # without a second axis Keras takes no words but tensors
            return tf.constant(part) if part is not None and part.dtype.kind in "SU" else part

        return {"x": keras.tree.map_structure(plain, self.x), "y": keras.tree.map_structure(plain, self.y),
                "sample_weight": self.sample_weight, "batch_size": batch_size}

    def rows(self, chosen: Any) -> "Arrays":
        """Some of the examples: a slice, or an array of their numbers."""
        return Arrays(*(keras.tree.map_structure(lambda part: None if part is None else part[chosen], part)
                        for part in (self.x, self.y, self.sample_weight)))


class Stream:
    """A data set of batches, which decides their size; see `Arrays` for what it can do.

    `length` is None: how many examples there are shows when they have all come.
    """

    length = x = y = sample_weight = None

    def __init__(self, data, form, *, endless=False):
        self.source, self.form, self.ended = data, form, False
        size = data.cardinality() if isinstance(data, tf.data.Dataset) else data.num_batches
        size = tf.data.INFINITE_CARDINALITY if size is None else int(size)
        require(endless or size != tf.data.INFINITE_CARDINALITY, f"`{form.name}` must end", **{form.name: data},
                do="Leave `repeat` out, or use `take(n)`.")
        require(size, f"`{form.name}` must hold at least one batch", **{form.name: data})
        self.batches_known = size if size > 0 else None
        self._look(data.element_spec if isinstance(data, tf.data.Dataset) else _converted(data[0], form, top=True))

    def _look(self, element):
        """Refuses what does not fit by its shapes, before any batch is made."""
        x, _, _ = self.form.split(element)
        self.shapes = str(_shapes(element))
        self.form.require_fit(x)
        for part in keras.tree.flatten(x):
            require(part.shape is None or getattr(part.shape, "rank", len(part.shape)) != 0,
                    f"`{self.form.name}` must come in batches", **{self.form.name: self.source},
                    do="Put the examples in batches first: `.batch(32)`.")

    def count(self, batch_size: int) -> int | None:
        """Number of batches, None if it is not known."""
        return self.batches_known

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
        """(x, y, sample_weight) of the batches as they come; `batch_size` is the data set's own."""
        seen = 0
        for element in self._elements():
            x, y, sample_weight = self.form.split(element)
            parts = self.form.arranged(x), y, sample_weight
            self.form.require_finite(parts, seen)
            seen += len(keras.tree.flatten(x)[0])
            yield parts
        require(seen, f"`{self.form.name}` must hold at least one example", **{self.form.name: self.source})

    def _elements(self):
        if isinstance(self.source, tf.data.Dataset):
            return self.source.as_numpy_iterator()
        numbers = itertools.count() if self.batches_known is None else range(self.batches_known)
        return (_converted(self.source[i], self.form, top=True) for i in numbers)

    def head(self, examples: int) -> Arrays:
        """The first examples, in memory."""
        found, seen = [], 0
        for parts in self.batches():
            found.append(parts)
            seen += len(keras.tree.flatten(parts[0])[0])
            if seen >= examples:
                break
        return self._joined(found).head(examples)

    def whole(self) -> Arrays:
        """All of it, in memory."""
        return self._joined(list(self.batches()))

    def dataset(self, batch_size: int | None = None) -> tf.data.Dataset:
        """A tf.data.Dataset of the batches, as `fit` takes it: x, (x, y) or (x, y, sample_weight)."""
        if isinstance(self.source, tf.data.Dataset):
            return self.source.map(lambda *element: self._arranged(element[0] if len(element) == 1 else element))
        first = in_tuples(_trimmed(next(self.batches())))
        signature = keras.tree.map_structure(lambda part: tf.TensorSpec((None, *part.shape[1:]), part.dtype), first)
        made = tf.data.Dataset.from_generator(self._epoch, output_signature=signature)
        return made.apply(tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if self.batches_known is None else self.batches_known))

    def _epoch(self):
        """The batches of a PyDataset, which is told when epochs begin and end, as in `fit`.

        The end is told before the next epoch: who counts the batches does not ask for one more.
        """
        if self.ended:
            self.source.on_epoch_end()
        self.source.on_epoch_begin()
        for number, parts in enumerate(self.batches(), 1):
            self.ended = number == self.batches_known
            yield in_tuples(_trimmed(parts))

    def fit_arguments(self, batch_size: int | None = None) -> dict[str, Any]:
        """Keyword arguments of `fit` and `evaluate`."""
        return {"x": self.dataset() if isinstance(self.source, tf.data.Dataset) else self.source}

    def _joined(self, batches):
        shapes = {tuple(tuple(part.shape[1:]) for part in keras.tree.flatten(parts) if part is not None)
                  for parts in batches}
        require(len(shapes) == 1, f"the batches of `{self.form.name}` must be of one shape to be put together",
                **{self.form.name: sorted(shapes)[:2]})
        return Arrays(*(keras.tree.map_structure(lambda *parts: None if parts[0] is None else np.concatenate(parts),
                                                 *column) for column in zip(*batches, strict=True)))

    def _arranged(self, element):
        x, y, sample_weight = self.form.split(element)
        return in_tuples(_trimmed((self.form.arranged(x), y, sample_weight)))


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple


class _Text(str):
    """Text that stands in a refusal without quotes."""

    __slots__ = ()

    def __repr__(self):
        return str(self)


def _is_text(dtype):
    return getattr(dtype, "kind", dtype) in ("S", "U", "string", tf.string)


def inputs_of(model):
    """What a model's inputs look like, nested as it takes them; None where nothing is known of them."""
    if not isinstance(model, keras.Model):
        return model
    graph = graph_of(model)
    if graph is not None:
        return graph.input
    shapes = (model.get_build_config() or {}).get("input_shape")
    found = keras.tree.map_shape_structure(lambda shape: keras.KerasTensor([None] * len(shape)), shapes or ())
    return found if len(keras.tree.flatten(found)) > 1 else None       # of how many inputs it was called with


def _rank_change_of(part, tensor):
    """How `part` becomes an input of a model ("same", "expand", "squeeze": an axis of 1 at the end), None if it cannot.

    Sizes that are None fit any.
    """
    if getattr(tensor, "sparse", False) or tensor.shape is None or getattr(part.shape, "rank", 0) is None:
        return "same"
    given, wanted = tuple(part.shape), tuple(tensor.shape)
    for change, shape in (("same", given), ("expand", (*given, 1)), ("squeeze", given[:-1])):
        if change == "squeeze" and given[-1:] != (1,):
            return None
        if len(shape) == len(wanted) and all(None in (a, b) or a == b
                                             for a, b in zip(shape[1:], wanted[1:], strict=True)):
            return change
    return None


def _arrays(parts, form):
    """Arrays that fit each other and the model."""
    x, y, sample_weight = parts
    for what, part in zip(_WEIGHTS, parts, strict=True):
        flat = keras.tree.flatten(part)
        require(flat and all(array is not None for array in flat) if part is not None else what != "x",
                f"`{form.name}` must hold an array as {what}", **{form.name: _shapes(parts)})
    form.require_fit(x)
    found = Arrays(form.arranged(x), y, sample_weight)
    lengths = {len(part) for part in keras.tree.flatten(parts) if part is not None}
    require(len(lengths) == 1, f"the arrays of `{form.name}` must be of one length", **{form.name: _shapes(parts)})
    require(found.length, f"`{form.name}` must hold at least one example", **{form.name: _shapes(x)})
    form.require_finite((found.x, y, sample_weight), 0)
    return found


def _converted(data, form, *, top=False):
    """NumPy arrays in place of whatever stands for one; floats in Keras' own precision, as in `fit`."""
    if type(data).__module__.split(".")[0] == "pandas":
        return _table(data, form)
    if isinstance(data, dict):
        require(data, f"`{form.name}` must hold at least one array", **{form.name: data})
        return {key: _converted(part, form) for key, part in data.items()}
    if isinstance(data, list | tuple) and not (_is_numbers(data) and not (top and isinstance(data, tuple))):
        return (list if isinstance(data, list) else tuple)(_converted(part, form) for part in data)
    return None if data is None else _array(data, form)


def _is_numbers(data):
    """Is a list one array, written in Python?"""
    return bool(data) and all(np.isscalar(part) or (isinstance(part, list | tuple) and _is_numbers(part))
                              for part in data)


def _table(data, form):
    names = [] if form.inputs is None else [tensor.name for tensor in keras.tree.flatten(form.inputs)]
    if len(names) > 1 and hasattr(data, "columns") and set(names) <= set(data.columns):
        return {name: _array(data[name].to_numpy(), form) for name in names}
    words = [str(column) for column in getattr(data, "columns", []) if data[column].dtype.kind not in "biufc"]
    require(not words, f"`{form.name}` must hold numbers", do="Encode these columns first, e.g. with data.table.",
            **{form.name: _Text(f"a table with words in {', '.join(words)}")})
    return _array(data.to_numpy(), form)


def _array(data, form):
    try:
        array = np.asarray(data)
    except (ValueError, TypeError, NotImplementedError):
        raise refusal(f"`{form.name}` must hold dense arrays of one shape", **{form.name: data}) from None
    if array.dtype == object and set(map(type, array.flat)) in ({str}, {bytes}):           # TensorFlow's are bytes
        array = array.astype(type(array.flat[0]))
    require(array.dtype.kind in "biufcSUV" and array.ndim, f"`{form.name}` must hold arrays, examples first",
            do=_FORMS, **{form.name: data})
    require(array.dtype.kind != "c" or any("complex" in str(getattr(tensor, "dtype", ""))
                                           for tensor in keras.tree.flatten(form.inputs)),
            f"`{form.name}` must hold real numbers", do="Pass real and imaginary parts as two channels.",
            **{form.name: data})
    return array.astype(keras.config.floatx(), copy=False) if array.dtype.kind == "f" else array


def _shapes(data):
    """The data as it stands in a refusal: its shapes."""
    return _Text(shown(keras.tree.map_structure(
        lambda part: None if part is None else _Text(f"shape {tuple(part.shape)}"), data)))


def _trimmed(parts):
    """x, (x, y) or (x, y, sample_weight)."""
    kept = tuple(itertools.takewhile(lambda part: part is not None, parts))
    return kept[0] if len(kept) == 1 else kept


def in_tuples(parts):
    """With tuples for lists, which tf.data takes for one tensor."""
    if isinstance(parts, dict):
        return {key: in_tuples(part) for key, part in parts.items()}
    return tuple(map(in_tuples, parts)) if isinstance(parts, list | tuple) else parts
