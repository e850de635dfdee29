"""The pipeline: runs of operations become few passes over the pixels."""

import types

from .._check import require, require_number
from .._keras import in_xla, keras, serializable, tf
from . import _mix, _random
from ._color import Normalize
from ._geometry import FILL_MODES
from ._op import Op
from ._program import Memory, Program, pad

MASKS = ("masks", "segmentation_masks")
BOXES = ("boxes", "bounding_boxes")
KEYS = ("images", "labels", "sample_weights", *MASKS, *BOXES)


@serializable
class Pipeline(keras.layers.Layer):
    """Augments batches of images: one resample, one color matrix, the same views whenever they are asked for.

        view = f(seed, epoch, index, image)

    Every random number is a hash (Threefry) of the pipeline's seed, an epoch number and the example's index: no state,
    so a view does not depend on batch size, order, parallelism or process. Four ways to use it:

    - `pipeline.apply(images, labels=None, *, epoch, index)`: you name epoch and index. This is the replay contract:
      the same seed, epoch and index give the same bits.
    - `dataset.enumerate().batch(64).map(pipeline.map)`: elements `(index, element)`; the epoch is how often this data
      set has yielded that index before (0, 1, 2 ...), so pass k equals `apply(..., epoch=k, index=index)`.
    - `dataset.batch(64).map(pipeline.map)`: without an index, the image itself is the index (a hash of its pixels).
      Also independent of batch size, order and parallelism; only identical images share their views.
    - as a layer of a model: acts when `training=True`. The index is a counter of the examples seen (saved with the
      model), so a run is repeated exactly only with the same batches in the same order on the same number of replicas.

    Operations take effect in their order. A run of geometric ones is one bilinear resample about the image's center, a
    run of linear color ones one matrix, clipped to the value range at its end; put alike beside alike. `replayable` is
    False if the pipeline holds MixUp or CutMix, whose answer depends on which images share a batch.

    Args:
      ops: list of operations of this module. MixUp and CutMix come last, Normalize before them.
      seed: whole number.
      fill_mode: what geometric operations show from outside the image: "reflect" (d c b a | a b c d | d c b a),
        "constant", "nearest" or "wrap".
      value_range: (lowest, highest) value of the images that come in: (0, 255), (0, 1), (-1, 1) ...
      output_range: the range of the views; None keeps the range and the dtype. Otherwise the views are of the layer's
        dtype (float32), also when not training.
      fill_value: what "constant" shows, in units of `value_range`.
      jit_compile: compile with XLA. False computes the same (to 0.01 of 255) with single kernels, several times slower:
        where TensorFlow has no XLA, or to look inside.

    Call:
      images: [batch, height, width, channels], size known; uint8 (then the value range is (0, 255)) or floating.
      Or a dict with `images` and any of `labels`, `sample_weights`; `masks` ([batch, height, width] or with a last
      axis 1; moved as the images are, nearest pixel, 0 outside for "constant"); `boxes` (float [batch, n, 4]: x1, y1,
      x2, y2 in pixels; moved by their corners and clipped; one that has left the image has no area). Keras' names
      `segmentation_masks` and `bounding_boxes` are understood too. `map` also takes (images, labels) and (images,
      labels, weights).

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

    def __init__(self, ops, *, seed=0, fill_mode="reflect", value_range=(0, 255), output_range=None, fill_value=0.0,
                 jit_compile=True, **kwargs):
        super().__init__(**kwargs)
        ops = list(ops) if isinstance(ops, list | tuple) else [ops]
        for op in ops:
            require(isinstance(op, Op), "augment.Pipeline takes operations of tfopt.augment", op=op,
                    do="Write for example augment.Pipeline([augment.Flip()]).", error=TypeError)
        order = [2 if isinstance(op, _mix.Mix) else isinstance(op, Normalize) for op in ops]
        require(order == sorted(order) and order.count(1) <= 1,
                "augment.Pipeline: Normalize comes after all other operations (once), and MixUp and CutMix after it",
                ops=[type(op).__name__ for op in ops], do="Move them to the end.")
        require_number("seed", seed, integer=True)
        require(fill_mode in FILL_MODES, f"`fill_mode` must be one of {', '.join(FILL_MODES)}", fill_mode=fill_mode)
        require_number("fill_value", fill_value)
        require(output_range is None or 1 not in order, "augment.Pipeline: Normalize decides on the range of the views",
                output_range=output_range, do="Leave `output_range` or Normalize out.")
        self.ops, self.seed, self.fill_mode, self.fill_value = ops, int(seed), fill_mode, float(fill_value)
        self.value_range = _range("value_range", value_range)
        self.output_range = output_range and _range("output_range", output_range)
        self.jit_compile = bool(jit_compile)
        self._made = types.SimpleNamespace(programs={}, memory=None)

    @property
    def replayable(self):
        """Does a view depend on nothing but seed, epoch, index and image?"""
        return not any(isinstance(op, _mix.Mix) for op in self.ops)

    def build(self, input_shape):
        self.seen = self.add_weight(name="seen", shape=(), dtype="int64", initializer="zeros", trainable=False,
                                    aggregation="only_first_replica")

    def call(self, inputs, training=None):
        batch = inputs if isinstance(inputs, dict) else {"images": inputs}
        if not training:
            views = self._views(batch, training=False)
        else:
            size = tf.shape(batch["images"], out_type=tf.int64)[0]
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            start = tf.convert_to_tensor(self.seen)
            self.seen.assign_add(size)
            views = self._views(batch, epoch=-1 - tf.cast(replica, tf.int64), index=start + tf.range(size))
        return views if isinstance(inputs, dict) else views["images"]

    def apply(self, images, labels=None, *, epoch, index):
        """Images, and labels if they were given, as they are seen in `epoch`.

        Args:
          images: a batch, or a dict; see the class.
          labels: passed through, or mixed by MixUp and CutMix.
          epoch: whole number, or int64[batch].
          index: int64[batch], the position of each example in the data set, or any number that names it.

        Returns:
          images, or (images, labels) if labels were given; a dict for a dict.
        """
        if isinstance(images, dict):
            require(labels is None, "augment.Pipeline.apply: labels go into the dict", labels=labels)
            return self._views(images, epoch=epoch, index=index)
        views = self._views({"images": images, "labels": labels}, epoch=epoch, index=index)
        return views["images"] if labels is None else (views["images"], views["labels"])

    def map(self, *element):
        """An element of a batched tf.data.Dataset, augmented: `dataset.batch(64).map(pipeline.map)`.

        Args:
          *element: images, (images, labels), (images, labels, weights) or a dict; or (index, one of these), as
            `dataset.enumerate().batch(64)` has it. See the class.

        Returns:
          The same without the index.
        """
        index = None
        if len(element) == 2 and _is_index(element[0]):
            index, *element = element
        while len(element) == 1 and isinstance(element[0], tuple | list):
            element = element[0]
        if len(element) == 1 and isinstance(element[0], dict):
            return self._views(element[0], index=index, counting=True)
        require(1 <= len(element) <= 3, "augment.Pipeline.map takes images, (images, labels), (images, labels, weights)"
                " or a dict", parts=len(element))
        views = self._views(dict(zip(("images", "labels"), element[:2], strict=False)), index=index, counting=True)
        views = (*views.values(), *element[2:])
        return views if len(views) > 1 else views[0]

    def _views(self, batch, *, epoch=None, index=None, training=True, counting=False):
        """The augmented dict; `counting` takes the epoch from how often an example has come by."""
        images, masks, boxes = self._images(batch), _masks(batch), _boxes(batch)
        mixes = [(place, op) for place, op in enumerate(self.ops) if isinstance(op, _mix.Mix)] if training else []
        require(not mixes or masks is boxes is None, "MixUp and CutMix mix images and labels, no masks and no boxes",
                keys=list(batch))
        labels = batch.get("labels")
        for _, op in mixes:
            labels = op.soft(labels)

        memory = self._memory() if training and not in_xla() else None
        rows = tf.shape(images)[0]
        more = memory.rows(rows) - rows if memory else 0
        images, masks = pad(images, more), masks if masks is None else pad(masks, more)
        if not training:
            index = epoch = tf.zeros(tf.shape(images)[:1], tf.int64)
        elif index is None:
            index = _random.fingerprint(images, self.jit_compile)
        else:
            index = tf.cast(index, tf.int64)
            require(index.shape.is_compatible_with(batch["images"].shape[:1]),
                    "augment.Pipeline: `index` has one number per image", index=tuple(index.shape),
                    images=tuple(batch["images"].shape))
            index = pad(index, more)
        if counting:
            epoch = memory.sights(index[:rows]) if memory else 0
        epoch = pad(tf.broadcast_to(tf.cast(epoch, tf.int64), rows[None]), more) if training else epoch

        program = self._program(images, training)
        images, masks, boxes = program(images, epoch, index, rows, masks=masks, boxes=boxes)
        if mixes:
            keys = _random.example_keys(self.seed, epoch[:rows], index[:rows])
            numbers = _random.uniform(keys, {place: op.draws for place, op in mixes})
        for place, op in mixes:
            images, labels = op.mix(tf.cast(images, tf.float32), labels, numbers[place], keys[0])
        if mixes and program.result.is_integer:
            images = tf.round(images)
        views = {**batch, "images": tf.cast(images, program.result)}
        if "labels" in batch:
            views["labels"] = labels
        if masks is not None:
            name = _name(batch, MASKS)
            views[name] = masks if len(batch[name].shape) == 4 else masks[..., 0]
        if boxes is not None:
            views[_name(batch, BOXES)] = boxes
        return views

    def _images(self, batch):
        unknown = [key for key in batch if key not in KEYS]
        require("images" in batch and not unknown, f"augment.Pipeline: a dict has the keys {', '.join(KEYS)}",
                keys=list(batch), do="Leave the others out, or zip them to the result.")
        images = tf.convert_to_tensor(batch["images"])
        require(images.shape.rank == 4, "augment.Pipeline takes batches of images [batch, height, width, channels]",
                shape=tuple(images.shape) if images.shape.rank is not None else None,
                do="Call `batch` before `map`; give gray images a last axis of 1.")
        require(None not in images.shape[1:], "augment.Pipeline needs images of one known size",
                shape=tuple(images.shape), do="Resize them when they are decoded, or call `set_shape`.")
        require(images.dtype == tf.uint8 or images.dtype.is_floating,
                "augment.Pipeline takes uint8 or floating images", dtype=images.dtype.name, do="Cast them.")
        require(images.dtype != tf.uint8 or self.value_range == (0.0, 255.0),
                "uint8 images have the value range (0, 255)", value_range=self.value_range,
                do="Leave `value_range` out, and choose the range of the views with `output_range`.")
        if images.dtype.is_floating and not in_xla():
            _check_values(images, *self.value_range)
        return images

    def _memory(self):
        if not tf.executing_eagerly():
            return Memory()
        self._made.memory = self._made.memory or Memory()
        return self._made.memory

    def _program(self, images, training):
        normalized = any(isinstance(op, Normalize) for op in self.ops)
        result = images.dtype if self.output_range is None and not normalized else tf.as_dtype(self.compute_dtype)
        key = tuple(images.shape[1:]), result, training
        if key not in self._made.programs:
            settings = {name: getattr(self, name) for name in
                        ("seed", "fill_mode", "fill_value", "value_range", "output_range", "jit_compile")}
            ops = [op for op in self.ops if not isinstance(op, _mix.Mix)]
            self._made.programs[key] = Program(ops, settings, key[0], result=result, random=training)
        return self._made.programs[key]

    def get_config(self):
        names = ("seed", "fill_mode", "value_range", "output_range", "fill_value", "jit_compile")
        return {**super().get_config(), **{name: getattr(self, name) for name in names},
                "ops": [keras.saving.serialize_keras_object(op) for op in self.ops]}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "ops": [keras.saving.deserialize_keras_object(op) for op in config["ops"]]})


def _range(name, value):
    ok = isinstance(value, tuple | list) and len(value) == 2
    for end in value if ok else ():
        require_number(name, end)
    require(ok and value[0] < value[1], f"`{name}` must be a pair (lowest, highest)", **{name: value})
    return tuple(float(end) for end in value)


def _name(batch, names):
    return next((name for name in names if name in batch), None)


def _masks(batch):
    if _name(batch, MASKS) is None:
        return None
    masks = tf.convert_to_tensor(batch[_name(batch, MASKS)])
    require(masks.shape.rank in (3, 4), "augment.Pipeline: masks are [batch, height, width] or have one more axis",
            shape=tuple(masks.shape))
    return masks if masks.shape.rank == 4 else masks[..., None]


def _boxes(batch):
    if _name(batch, BOXES) is None:
        return None
    boxes = tf.cast(batch[_name(batch, BOXES)], tf.float32)
    require(boxes.shape.rank == 3 and boxes.shape[2] == 4, "augment.Pipeline: boxes are [batch, n, 4]",
            shape=tuple(boxes.shape))
    return boxes


def _is_index(part):
    return hasattr(part, "dtype") and tf.as_dtype(part.dtype).is_integer and len(part.shape) <= 1


def _check_values(images, low, high):
    """Refuses images outside the value range, and such as must be from 0 .. 1 where it is wider; looks at a grid."""
    seen = tf.cast(images[:, ::max(1, images.shape[1] // 16), ::max(1, images.shape[2] // 16)], tf.float32)
    least, most, slack = tf.reduce_min(seen), tf.reduce_max(seen), 1e-3 * (high - low)
    fractions = tf.reduce_any(seen != tf.round(seen))
    inside = (least >= low - slack) & (most <= high + slack)
    unlike = (most <= 1) & (least >= -1) & fractions if high > 2 else tf.constant(False)
    for ok, rule in ((inside, "augment.Pipeline: the images must lie within `value_range`"),
                     (~unlike, "augment.Pipeline: these images look like 0 .. 1 or -1 .. 1, not like `value_range`")):
        if tf.executing_eagerly():
            require(ok, rule, value_range=(low, high), found=(float(least), float(most)),
                    do="Say what they are with Pipeline(..., value_range=(lowest, highest)).")
        else:
            tf.debugging.Assert(ok, [f"{rule}. value_range=({low}, {high}). Found:", least, most])
