"""What a pipeline does to images of one size: a few passes over the pixels, each one compiled function.

The resample and what follows it are compiled apart: in one piece, XLA on a CPU computes the resample once per channel.
"""

import itertools

from .._keras import tf
from . import _color, _geometry, _pixels, _policies, _random
from ._op import Op, only


class Program:
    """The passes for images of one size.

    Args:
      ops: operations without MixUp and CutMix.
      settings: what the pipeline was made with, by name.
      shape: (height, width, channels) of the images.
      result: dtype of the views.
      random: False leaves out all but the changes of size.
    """

    def __init__(self, ops, settings, shape, *, result, random=True):
        self.settings, self.result = settings, result
        self.low, self.high = settings["value_range"]
        self.normalize = next((op for op in ops if isinstance(op, _color.Normalize)), None)
        self.warps, self.clusters = [], []
        parts = [(place, part) for place, op in enumerate(ops) if op is not self.normalize
                 for part in (op.parts() if isinstance(op, _policies.Policy) else [op])
                 if random or isinstance(part, _geometry.Crop | _geometry.Resize)]
        for kind, run in itertools.groupby(parts, lambda item: _kind(item[1])):
            if kind is _geometry.Geometric:
                self.warps.append(_Warp(list(run), settings, shape, random))
                self._add(self.warps[-1])
                shape = (*self.warps[-1].new, shape[2])
            elif kind is _color.Linear:
                self._add(_Recolor(list(run), settings, shape))
            else:
                for place, part in run:
                    self._add(_Change(place, part, settings, shape))
        if not self.clusters or not self.clusters[-1][-1].compiled:
            self.clusters.append([])                          # only the way out
        self.streams = {place: part.draws for place, part in parts}
        compile_ = tf.function(jit_compile=True, autograph=False) if settings["jit_compile"] else lambda run: run
        self._draw = compile_(self._parameters)
        self._passes = [compile_(self._pass(cluster)) if all(step.compiled for step in cluster) else self._pass(cluster)
                        for cluster in self.clusters]
        self._move_masks = compile_(self._masks)

    def _add(self, step):
        last = self.clusters[-1][-1] if self.clusters else None
        alone = _Warp in (type(step), type(last)) or not (step.compiled and last and last.compiled)
        self.clusters += [[step]] if alone else []
        self.clusters[-1] += [] if alone else [step]

    def __call__(self, images, epoch, index, rows, *, masks=None, boxes=None):
        """Views, masks and boxes of the first `rows` of a batch; all but the boxes come with rows to spare."""
        keys, parameters = self._draw(epoch, index)
        parameters = list(parameters)
        matrices = [drawn for step, drawn in zip(itertools.chain(*self.clusters), parameters, strict=True)
                    if isinstance(step, _Warp)]
        for cluster, run in zip(self.clusters, self._passes, strict=True):
            images = run(images, keys, tuple(parameters[:len(cluster)]))
            del parameters[:len(cluster)]
        if masks is not None:
            masks = self._move_masks(masks, matrices)[:rows]
        if boxes is not None:
            for matrix, warp in zip(matrices, self.warps, strict=True):
                boxes = _geometry.move_boxes(boxes, matrix[:rows], warp.old, warp.new)
        return images[:rows], masks, boxes

    def _parameters(self, epoch, index):
        keys = _random.example_keys(self.settings["seed"], epoch, index)
        numbers = _random.uniform(keys, self.streams)
        return keys, tuple(step.draw(numbers, tf.shape(index)) for cluster in self.clusters for step in cluster)

    def _pass(self, steps):
        last = steps is self.clusters[-1]

        def run(images, keys, parameters):
            for step, drawn in zip(steps, parameters, strict=True):
                images = step(images, drawn, keys)
            return self._finish(images) if last else images

        return run

    def _finish(self, images):
        images = tf.clip_by_value(tf.cast(images, tf.float32), self.low, self.high)
        if self.normalize is not None:
            images = self.normalize.apply(images)
        elif self.settings["output_range"] is not None:
            low, high = self.settings["output_range"]
            images = low + (images - self.low) * ((high - low) / (self.high - self.low))
            images = tf.clip_by_value(images, low, high)
        return tf.cast(tf.round(images) if self.result.is_integer else images, self.result)

    def _masks(self, masks, matrices):
        for matrix, warp in zip(matrices, self.warps, strict=True):
            masks = _geometry.resample(masks, matrix, warp.new, fill_mode=self.settings["fill_mode"], nearest=True)
        return masks


class _Warp:
    """A run of geometric operations: one matrix, one resample."""

    compiled = True

    def __init__(self, run, settings, shape, random):
        self.run, self.settings, self.random, self.old = run, settings, random, shape[:2]
        self.new = self.old
        for _, part in run:
            self.new = part.size(self.new)

    def draw(self, numbers, batch):
        size, whole = self.old, _geometry.identity(batch)
        for place, part in self.run:
            u = numbers[place]
            matrix = _geometry.select(part.acts(u), part.matrix(u, size)) if self.random else part.still(batch, size)
            whole = _geometry.compose(whole, matrix)
            size = part.size(size)
        return tf.stack(whole, axis=1)

    def __call__(self, images, matrix, keys):
        resample = _geometry.resample if self.settings["jit_compile"] else _geometry.resample_without_xla
        return resample(images, matrix, self.new, fill_mode=self.settings["fill_mode"],
                        fill_value=self.settings["fill_value"])


class _Recolor:
    """A run of linear color operations: one affine map."""

    compiled = True

    def __init__(self, run, settings, shape):
        self.run, self.channels, (self.low, self.high) = run, shape[2], settings["value_range"]
        self.mixing = shape[2] > 1 and any(part.mixing for _, part in run)
        self.centering = any(part.centering for _, part in run)

    def draw(self, numbers, batch):
        return _color.compose([_color.select(part.acts(u), part.affine(u, self.channels, self.low, self.high))
                                for part, u in ((part, numbers[place]) for place, part in self.run)])

    def __call__(self, images, affine, keys):
        images = _color.recolor(tf.cast(images, tf.float32), affine, mixing=self.mixing, centering=self.centering)
        return tf.clip_by_value(images, self.low, self.high)


class _Change:
    """A color operation that is not linear."""

    def __init__(self, place, part, settings, shape):
        self.place, self.part, self.shape, self.compiled = place, part, shape, part.compiled
        self.low, self.high = settings["value_range"]

    def draw(self, numbers, batch):
        u = numbers[self.place]
        return self.part.acts(u), tuple(self.part.parameters(u, self.shape))

    def __call__(self, images, drawn, keys):
        images = tf.cast(images, tf.float32)
        acts, parameters = drawn
        if self.compiled:
            return tf.where(acts[:, None, None, None], self._change(images, keys, *parameters), images)
        return only(acts, lambda some, *drawn: self._change(some, keys, *drawn), images, *parameters)

    def _change(self, images, keys, *parameters):
        return self.part.change(images, parameters, lambda: _random.pixel_noise(keys, self.shape, self.place),
                                self.low, self.high)


def _kind(part):
    return next(kind for kind in (_geometry.Geometric, _color.Linear, _pixels.Pixel, Op) if isinstance(part, kind))


def pad(part, rows):
    """`part` with so many rows of zeros more; tf.pad takes longer than a resample."""
    return tf.concat([part, tf.zeros((rows, *part.shape[1:]), part.dtype)], axis=0)


class Memory:
    """What one traced `map` keeps from batch to batch: its largest batch, and how often it has met each example."""

    LARGEST = -1                         # the key under which the largest batch is kept; examples have keys >= 0
    LIMIT = 1 << 21

    def __init__(self):
        with tf.init_scope():
            self.table = tf.lookup.experimental.MutableHashTable(
                tf.int64, tf.int64, default_value=0, experimental_is_anonymous=True)

    def rows(self, batch):
        """The largest batch so far: shorter ones are padded to it, and need no compilation of their own."""
        key, batch = tf.constant([self.LARGEST], tf.int64), tf.cast(batch, tf.int64)
        largest = tf.maximum(self.table.lookup(key)[0], batch)
        self.table.insert(key, largest[None])
        return tf.cast(largest, tf.int32)

    def sights(self, keys):
        """int64[batch]: how often each key >= 0 was met before; those beyond the first two million are not counted."""
        before = self.table.lookup(keys)
        tf.cond(self.table.size() < self.LIMIT, lambda: self.table.insert(keys, before + 1), tf.no_op)
        return before
