"""The pipeline: runs of operations become few passes over the pixels."""

import inspect
import types
import typing

from .._check import FLAG, NO, Instance, ListOf, Number, OneOf, Rule, Whole, checked, require
from .._keras import in_xla, keras, serializable, tf
from . import _elements, _mix, _random, _signals
from ._color import Normalize
from ._elements import element_of
from ._geometry import FILL_MODES
from ._op import Op, kind
from ._points import FORMATS
from ._program import Memory, Program, pad, resizes, to_dtype

OPERATION = Instance(Op, text="an operation of tfopt.augment", do="Write for example [augment.Flip()].")
ENDS = Rule("a pair (lowest, highest) of numbers",
            lambda pair: ListOf(Number(), length=2)(pair) is not NO and pair[0] < pair[1])


@serializable
class Pipeline(keras.layers.Layer):
    """Data augmentation of batches of images: random operations, replayable from (seed, epoch, index).

        view = f(seed, epoch, index, image)

    Every random number is a hash (Threefry) of the pipeline's seed, an epoch number and the example's index: no state,
    so a view does not depend on batch size, order, parallelism or process: bit for bit with batches of one size on one
    kind of CPU; XLA compiles each size by itself, and on some CPUs its sums then round a few of a million pixels to the
    next gray level. Four ways to use it:

    - `pipeline.apply(images, labels=None, *, epoch, index)`: you name epoch and index. This is the replay contract:
      the same seed, epoch and index give the same view.
    - `dataset.enumerate().batch(64).map(pipeline.map)`: elements `(index, element)`; the epoch is how often this data
      set has yielded that index before (0, 1, 2 ...), so pass k equals `apply(..., epoch=k, index=index)`.
    - `dataset.batch(64).map(pipeline.map)`: without an index, the image itself is the index (a hash of its pixels).
      Also independent of batch size, order and parallelism; only identical images share their views.
    - as a layer of a model: acts when `training=True`. The index is a counter of the examples seen (saved with the
      model), so a run is repeated exactly only with the same batches in the same order on the same number of replicas.

    Operations take effect in their order. A run of geometric ones is one bilinear resample about the image's center, a
    run of linear color ones one matrix, clipped to the value range at its end; put alike beside alike. `replayable` is
    False if the pipeline holds MixUp or CutMix, whose result depends on which images share a batch.

    Args:
      ops: list of operations of this module or of your own (`Op`). MixUp and CutMix come last, Normalize before them.
      seed: whole number.
      fill_mode: what geometric operations show from outside the image: "reflect" (d c b a | a b c d | d c b a),
        "constant", "nearest" or "wrap".
      value_range: (lowest, highest) value of the images that come in: (0, 255), (0, 1), (-1, 1) ...
      output_range: the range of the views; None keeps the range and the dtype. Otherwise the views are of the layer's
        dtype (float32), also when not training.
      fill_value: what "constant" shows, within `value_range`.
      jit_compile: compile with XLA. False computes the same (to 0.01 of 255) with single kernels, several times slower:
        where TensorFlow has no XLA, or to look inside.
      bounding_box_format: of boxes, one of Keras' names: "xyxy" (left, top, right, bottom), "xywh", "center_xywh",
        "yxyx", "center_yxhw" in pixels; "rel_xyxy", "rel_xywh", "rel_center_xywh", "rel_yxyx" in parts of the image.

    Call:
      images: [batch, height, width, channels]; uint8 (then the value range is (0, 255)) or floating. The size must be
        known when the pipeline acts; a model may be built with `keras.Input((None, None, 3))`.
      `map` also takes (images, targets) and (images, targets, weights), each an array, a dict or a tuple, of which one
        input is images. Whatever else has the images' height and width ([batch, height, width] or one axis more: a
        mask, a depth map, a weight for each pixel) moves with them: whole numbers by the nearest pixel, floating ones
        bilinearly; with "constant", 0 comes from outside. All the rest passes unchanged.
      Under the names `boxes` or `bounding_boxes` ([batch, n, 4]) and `keypoints` ([batch, n, 2 or more]: x, y in pixels
        and what stays), dense or ragged, in any dict of these: boxes and keypoints move too. A moved box holds what its
        corners (with Elastic, its edges) became, clipped; one that has left the image has no area; one that had none
        (padding) stays. Keypoints are not clipped.
      A dict with `images` has any of `labels`, `sample_weights`, `masks` (moved by the nearest pixel, whatever their
        dtype), `boxes` and `keypoints`. Keras' names `segmentation_masks` and `bounding_boxes` do too, the latter also
        as a dict of `boxes` and `labels`.

    Raises:
      ValueError: an argument is out of range; images of another rank, dtype or range; labels missing for MixUp.

    Example:
      >>> from tfopt import augment
      >>> pipeline = augment.Pipeline([augment.Flip(), augment.Rotate(), augment.Brightness()], seed=1)
      >>> images = tf.cast(tf.random.stateless_uniform((8, 16, 16, 3), (0, 0), 0, 256, tf.int32), tf.uint8)
      >>> views = pipeline.apply(images, epoch=0, index=range(8))
      >>> again = pipeline.apply(images[5:], epoch=0, index=range(5, 8))
      >>> bool(tf.reduce_all(again == views[5:])), views.dtype.name
      (True, 'uint8')
      >>> dataset = tf.data.Dataset.from_tensor_slices(images).enumerate().batch(3).map(pipeline.map)
      >>> bool(tf.reduce_all(tf.concat(list(dataset), 0) == views))
      True
    """

    @checked(ops=Instance(Op, text="an operation of tfopt.augment") | ListOf(OPERATION, low=0), seed=Whole(),
             fill_mode=OneOf(*FILL_MODES), value_range=ENDS, output_range=ENDS, fill_value=Number(), jit_compile=FLAG,
             bounding_box_format=OneOf(*FORMATS))
    def __init__(self, ops: Op | typing.Sequence[Op], *, seed: int = 0, fill_mode: str = "reflect",
                 value_range: tuple[float, float] = (0, 255), output_range: tuple[float, float] | None = None,
                 fill_value: float = 0.0, jit_compile: bool = True, bounding_box_format: str = "xyxy",
                 **kwargs: typing.Any):
        super().__init__(**kwargs)
        listed = [ops] if isinstance(ops, Op) else list(ops)
        for op in listed:
            _require_kind(op)
        order = [2 if isinstance(op, _mix.Mix) else isinstance(op, Normalize) for op in listed]
        require(order == sorted(order) and order.count(1) <= 1,
                "Normalize comes after all other operations (once), and MixUp and CutMix after it",
                ops=[type(op).__name__ for op in listed], do="Move them to the end.")
        require(output_range is None or 1 not in order, "Normalize decides on the range of the views",
                output_range=output_range, do="Leave `output_range` or Normalize out.")
        self._kind = _signals.kind_of(listed)
        set_ = {"fill_mode": fill_mode, "value_range": tuple(value_range), "output_range": output_range,
                "fill_value": fill_value, "bounding_box_format": bounding_box_format}
        for name, value in set_.items() if self._kind else ():
            default = inspect.signature(type(self).__init__).parameters[name].default
            require(value == default, f"`{name}` is about images", ops=[type(op).__name__ for op in listed],
                    do="Leave it out.", **{name: value})
        for owner in () if self._kind else [*listed, *([self] if fill_mode == "constant" else [])]:
            fill = fill_value if owner is self else getattr(owner, "fill_value", None)
            require(fill is None or value_range[0] <= fill <= value_range[1],
                    "`fill_value` must lie within `value_range`, whose units it has", fill_value=fill,
                    value_range=tuple(value_range), of=type(owner).__name__)
        self.ops, self.seed, self.fill_mode, self.fill_value = listed, seed, fill_mode, float(fill_value)
        self.value_range = tuple(map(float, value_range))
        self.output_range = output_range and tuple(map(float, output_range))
        self.jit_compile, self.bounding_box_format = jit_compile, bounding_box_format
        self._made = types.SimpleNamespace(programs={}, memory=None)

    @property
    def replayable(self) -> bool:
        """Does a view depend on nothing but seed, epoch, index and image?"""
        return not any(isinstance(op, _mix.Mix) for op in self.ops)

    def build(self, input_shape: typing.Any) -> None:
        self.seen = self.add_weight(name="seen", shape=(), dtype="int64", initializer="zeros", trainable=False,
                                    aggregation="only_first_replica")

    @checked()
    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        element = self._element((inputs,))
        if not training:
            views, = self._augment(element, training=False)
            return views
        size = tf.shape(element.at(element.image), out_type=tf.int64)[0]
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        start = tf.convert_to_tensor(self.seen)
        self.seen.assign_add(size)
        views, = self._augment(element, epoch=-1 - tf.cast(replica, tf.int64), index=start + tf.range(size))
        return views

    def compute_output_spec(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        """The views of inputs whose size need not be known yet."""
        if self._kind:
            return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)
        shape = self.compute_output_shape(keras.tree.map_structure(lambda x: x.shape, inputs))
        if isinstance(inputs, dict):
            views = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)
            changed = {key: self._dtype_of(inputs[key].dtype) if key == "images" else inputs[key].dtype
                       for key in ("images", *_elements.MASKS) if key in inputs}
            return views | {key: keras.KerasTensor(shape[key], dtype) for key, dtype in changed.items()}
        require(len(inputs.shape) == 4, "it takes batches of images [batch, height, width, channels]",
                shape=inputs.shape)
        return keras.KerasTensor(shape, self._dtype_of(inputs.dtype))

    def compute_output_shape(self, input_shape: typing.Any) -> typing.Any:
        if isinstance(input_shape, dict):
            return {key: self.compute_output_shape(shape) if key in ("images", *_elements.MASKS) else shape
                    for key, shape in input_shape.items()}
        size = tuple(input_shape[1:3])
        for op in self.ops:
            size = op.size(size) if resizes(op) else size
        return (input_shape[0], *size, *input_shape[3:])

    @checked()
    def apply(self, images: typing.Any, labels: typing.Any = None, *, epoch: typing.Any, index: typing.Any,
              dtype: str | None = None) -> typing.Any:
        """Images, and labels if they were given, as they are seen in `epoch`.

        Args:
          images: a batch, or a dict; see the class.
          labels: passed through, mixed by MixUp and CutMix, or moved if they have the image's size.
          epoch: whole number, or int64[batch].
          index: int64[batch], the position of each example in the data set, or any number that names it.
          dtype: of the views; None is that of the images (see `output_range`). float32 leaves the views of uint8 images
            unrounded.

        Returns:
          images, or (images, labels) if labels were given; a dict for a dict.
        """
        require(labels is None or not isinstance(images, dict) or "images" not in images,
                "labels go into the dict", labels=labels)
        parts = (images,) if labels is None else (images, labels)
        views = self._augment(self._element(parts), epoch=epoch, index=index, dtype=dtype)
        return views[0] if len(views) == 1 else views

    @checked(repeats=Whole(low=1))
    def map(self, *element: typing.Any, repeats: int = 1) -> typing.Any:
        """An element of a batched tf.data.Dataset, augmented: `dataset.batch(64).map(pipeline.map)`.

        Args:
          *element: inputs, (inputs, targets), (inputs, targets, weights), or a dict with `images`; or (index, one of
            these), as `dataset.enumerate().batch(64)` has it. See the class.
          repeats: views of each example, side by side in a batch so many times as long (repeated augmentation):
            `lambda *element: pipeline.map(*element, repeats=4)`. View v of pass k is that of epoch k * repeats + v.

        Returns:
          The same without the index.

        Reference: Hoffer et al. 2020, Augment your batch. https://arxiv.org/abs/1901.09335
        """
        index, parts = None, element
        if len(element) == 2 and _is_index(element[0]):
            index, *parts = element
        while len(parts) == 1 and isinstance(parts[0], tuple | list):
            parts = parts[0]
        require(1 <= len(parts) <= 3, "it takes images, (images, labels), (images, labels, weights) or a dict",
                parts=len(parts))
        given = self._element(parts)
        if repeats > 1:
            given, index = given.repeated(repeats), None if index is None else tf.repeat(index, repeats)
        views = self._augment(given, index=index, counting=True, repeats=repeats)
        return views[0] if len(views) == 1 else views

    def _augment(self, element, *, epoch=None, index=None, training=True, counting=False, repeats=1,
                 dtype=None):
        """The parts of an element, augmented; `counting` takes the epoch from how often an example has come by."""
        images = element.at(element.image) if self._kind else self._images(element.at(element.image), training)
        mixes = [(place, op) for place, op in enumerate(self.ops) if isinstance(op, _mix.Mix)] if training else []
        labels = _soft_labels(element, mixes)
        maps, rows, count = element.maps_to_move(), tf.shape(images)[0], images.shape[0]
        if training:
            memory = None if in_xla() else self._memory()
            more = memory.rows(rows) - rows if memory and None not in images.shape[1:] else 0
            images, maps = pad(images, more), [(pad(part, more), nearest) for part, nearest in maps]
            index = self._index(index, images, count, more)
            epoch = self._epoch(epoch, index, rows, more, memory if counting else None, repeats)
        else:
            index = epoch = tf.zeros(rows[None], tf.int64)
        result = self._dtype_of(images.dtype) if dtype is None else tf.as_dtype(dtype)
        program = self._program(images, training, tf.float32 if mixes else result)
        images, maps, points = program(images, epoch, index, rows, maps=maps,
                                       points=element.points_to_move(self.bounding_box_format))
        if mixes:
            images, labels = self._mix(mixes, images, labels, epoch[:rows], index[:rows])
            images = to_dtype(images, result)
        views = element.replaced(images, labels, maps, points, self.bounding_box_format)
        return views if isinstance(views, tuple) else (views,)

    def _element(self, parts):
        return self._kind.element(parts) if self._kind else element_of(parts)

    def _images(self, images, training):
        """The images, after all checks."""
        require(isinstance(images, tf.Tensor) and images.shape.rank == 4,
                "it takes batches of images [batch, height, width, channels]",
                shape=tuple(images.shape) if images.shape.rank is not None else None,
                do="Call `batch` before `map`; give gray images a last axis of 1.")
        height, width, channels = images.shape[1:]
        changes = self.ops if training else [op for op in self.ops if resizes(op)]
        require(channels is not None and (None not in (height, width) or not changes),
                "it needs images of one known size", shape=tuple(images.shape),
                do="Resize them when they are decoded, or call `set_shape`.")
        require(not (height in (1, 3) and channels > 4 and width > 4),
                "it takes channels last: [batch, height, width, channels]", shape=tuple(images.shape),
                do="Transpose them: tf.transpose(images, (0, 2, 3, 1)).")
        require(images.dtype == tf.uint8 or images.dtype.is_floating,
                "it takes uint8 or floating images", dtype=images.dtype.name, do="Cast them.")
        require(images.dtype != tf.uint8 or self.value_range == (0.0, 255.0),
                "uint8 images have the value range (0, 255)", value_range=self.value_range,
                do="Leave `value_range` out, and choose the range of the views with `output_range`.")
        if images.dtype.is_floating and not in_xla():
            _check_values(images, *self.value_range)
        return images

    def _index(self, index, images, count, more):
        """int64[count + more]: the number that names each example, by default a hash of its pixels."""
        if index is None:
            return _random.fingerprint(images, self.jit_compile)
        index = tf.cast(index, tf.int64)
        require(index.shape.is_compatible_with([count]), "`index` has one number per image",
                index=tuple(index.shape), images=count)
        return pad(index, more)

    def _epoch(self, epoch, index, rows, more, memory, repeats):
        """int64[rows + more]: the epoch of each example, counted if there is a memory to count in."""
        if epoch is None:
            epoch = memory.times_met(index[:rows]) if memory else 0
        epoch = tf.broadcast_to(tf.cast(epoch, tf.int64), rows[None])
        if repeats > 1:
            epoch = epoch * repeats + tf.range(tf.cast(rows, tf.int64)) % repeats
        return pad(epoch, more)

    def _mix(self, mixes, images, labels, epoch, index):
        """float32 images and soft labels after MixUp and CutMix."""
        keys = _random.example_keys(self.seed, epoch, index)
        numbers = _random.uniform(keys, {place: op.draws for place, op in mixes})
        for place, op in mixes:
            images, labels = op.mix(images, labels, numbers[place], keys[0])
        return images, labels

    def _memory(self):
        if not tf.executing_eagerly():
            return Memory()
        self._made.memory = self._made.memory or Memory()
        return self._made.memory

    def _dtype_of(self, given):
        """dtype of the views of images of a dtype."""
        stays = self.output_range is None and not any(isinstance(op, Normalize) for op in self.ops)
        return tf.as_dtype(given if stays else self.compute_dtype)

    def _program(self, images, training, result):
        key = tuple(images.shape[1:]), result, training
        if key not in self._made.programs:
            settings = {name: getattr(self, name) for name in
                        ("seed", "fill_mode", "fill_value", "value_range", "output_range", "jit_compile")}
            ops = [op for op in self.ops if not isinstance(op, _mix.Mix)]
            self._made.programs[key] = _signals.SignalProgram(ops if training else [], settings, key[0], self._kind) \
                if self._kind else Program(ops, settings, key[0], result=result, random=training)
        return self._made.programs[key]

    def get_config(self) -> dict[str, typing.Any]:
        names = ("seed", "fill_mode", "value_range", "output_range", "fill_value", "jit_compile",
                 "bounding_box_format")
        return {**super().get_config(), **{name: getattr(self, name) for name in names},
                "ops": [keras.saving.serialize_keras_object(op) for op in self.ops]}

    @classmethod
    def from_config(cls, config: dict[str, typing.Any]) -> "Pipeline":
        return cls(**{**config, "ops": [keras.saving.deserialize_keras_object(op) for op in config["ops"]]})

    def __repr__(self) -> str:
        return f"<augment.Pipeline {self.ops}, seed={self.seed}, value_range={self.value_range}>"


def _require_kind(op):
    special = isinstance(op, _mix.Mix | Normalize)
    require(special or all(kind(part) for part in op.parts()),
            "an operation must have one of the methods `matrix`, `shifts`, `affine`, `change`, `waves`, `spectra` and "
            "`tokens`", op=op,
            do="See augment.Op.", error=TypeError)


def _soft_labels(element, mixes):
    """The labels as MixUp and CutMix need them, or as they are."""
    labels = element.at(element.label)
    require(not mixes or element.mixable, "MixUp and CutMix mix one image and one label per example: no masks, no "
            "boxes, no other inputs or targets", tensors=len(element.leaves), do="Leave them out of this pipeline.")
    for _, op in mixes:
        labels = op.soft(labels)
    return labels


def _is_index(part):
    return hasattr(part, "dtype") and tf.as_dtype(part.dtype).is_integer and len(part.shape) <= 1


def _check_values(images, low, high):
    """Refuses images outside the value range, and such as must be from 0 .. 1 where it is wider; looks at a grid."""
    seen = tf.cast(images[:, ::max(1, images.shape[1] // 16), ::max(1, images.shape[2] // 16)], tf.float32)
    least, most, slack = tf.reduce_min(seen), tf.reduce_max(seen), 1e-3 * (high - low)
    fractions = tf.reduce_any(seen != tf.round(seen))
    inside = (least >= low - slack) & (most <= high + slack)
    unlike = (most <= 1) & (least >= -1) & fractions if high > 2 else tf.constant(False)
    for ok, rule in ((inside, "the images must lie within `value_range`"),
                     (tf.logical_not(unlike), "these images look like 0 .. 1 or -1 .. 1, not like `value_range`")):
        if tf.executing_eagerly():
            require(ok, rule, value_range=(low, high), found=(float(least), float(most)),
                    do="Say what they are with Pipeline(..., value_range=(lowest, highest)).")
        else:
            tf.debugging.Assert(ok, [f"augment.Pipeline: {rule}. value_range=({low}, {high}). Found:", least, most])
