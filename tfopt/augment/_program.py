"""What a pipeline does to images of one size: a few passes over the pixels, each one compiled function.

Operations become steps (a run of geometric ones is one step, a run of linear color ones another), and neighboring steps
share a pass. The resample and what follows it are passes of their own: in one, XLA on a CPU computes the resample once
for each channel.
"""

import itertools

from .._check import require
from .._keras import tf
from . import _color, _geometry, _op, _random


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
        parts = [(place, part) for place, op in enumerate(ops) if op is not self.normalize
                 for part in op.parts() if random or resizes(part)]
        self.streams = {place: part.draws for place, part in parts}
        steps = _steps(parts, settings, shape, random)
        self.warps = [step for step in steps if isinstance(step, _Warp)]
        self.passes = _passes(steps)
        if not self.passes or not self.passes[-1][-1].compiled:
            self.passes.append([])                            # which ends with the clipping and the cast
        compile_ = tf.function(jit_compile=True, autograph=False) if settings["jit_compile"] else lambda run: run
        self._draw = compile_(self._parameters)
        self._runs = [compile_(self._run(steps)) if all(step.compiled for step in steps) else self._run(steps)
                      for steps in self.passes]
        self._move = {nearest: compile_(self._moved(nearest)) for nearest in (True, False)}

    def __call__(self, images, epoch, index, rows, *, maps=(), points=()):
        """Views, moved maps and points of the first `rows` of a batch, which may come with more.

        Args:
          images: [batch, height, width, channels].
          epoch, index: int64[batch].
          rows: how many examples count.
          maps: pairs (tensor [batch, height, width, channels], nearest) that move as the images do.
          points: pairs (float32[rows, n, ...], function of `_points` that moves them).
        """
        keys, parameters = self._draw(epoch, index)
        parameters = list(parameters)
        warps = [drawn for step, drawn in zip(itertools.chain(*self.passes), parameters, strict=True)
                 if isinstance(step, _Warp)]
        for steps, run in zip(self.passes, self._runs, strict=True):
            images = run(images, keys, tuple(parameters[:len(steps)]))
            del parameters[:len(steps)]
        if warps:
            maps = [(self._move[nearest](part, warps), nearest) for part, nearest in maps]
        for drawn, warp in zip(warps, self.warps, strict=True):
            here = [part[:rows] for part in drawn]
            points = [(move(part, here, warp.old, warp.new), move) for part, move in points]
        return images[:rows], [part[:rows] for part, _ in maps], [part for part, _ in points]

    def _parameters(self, epoch, index):
        keys = _random.example_keys(self.settings["seed"], epoch, index)
        numbers = _random.uniform(keys, self.streams)
        return keys, tuple(step.draw(keys, numbers, tf.shape(index)) for steps in self.passes for step in steps)

    def _run(self, steps):
        """The function of one pass; the last one also ends the views."""
        last = steps is self.passes[-1]

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
        return to_dtype(images, self.result)

    def _moved(self, nearest):
        def move(part, warps):
            dtype = part.dtype
            for (matrix, *shifts), warp in zip(warps, self.warps, strict=True):
                part = _geometry.resample(part, matrix, warp.new, shifts=shifts[0] if shifts else None,
                                          fill_mode=self.settings["fill_mode"], nearest=nearest)
            return tf.cast(part, dtype)

        return move


def resizes(op):
    """Does an operation change the size of images."""
    return type(op).size is not _op.Op.size


def to_dtype(images, dtype):
    """A cast that rounds where the dtype is whole."""
    return tf.cast(tf.round(images) if dtype.is_integer else images, dtype)


def _steps(parts, settings, shape, random):
    """[step] of [(place in the pipeline, operation)]: runs of one kind are one step, other operations one each."""
    steps = []
    for run in _runs(parts):
        kind = _op.kind(run[0][1])
        if kind in (_op.MOVES, _op.BENDS):
            steps.append(_Warp(run, settings, shape, random))
            shape = (*steps[-1].new, shape[2])
        elif kind == _op.RECOLORS:
            steps.append(_Recolor(run, settings, shape))
        else:
            steps += [_Change(place, part, settings, shape) for place, part in run]
    return steps


def _runs(parts):
    """[[part]] of neighbors of one kind; a field of shifts ends the run of matrices before it."""
    runs, before = [], None
    for item in parts:
        kind = _op.kind(item[1])
        if (before, kind) == (_op.MOVES, _op.BENDS) or before == kind != _op.BENDS:
            runs[-1].append(item)
        else:
            runs.append([item])
        before = kind
    return runs


def _passes(steps):
    """[[step]]: compiled neighbors share a pass, but for resamples."""
    passes = []
    for before, step in zip([None, *steps], steps, strict=False):
        shared = before is not None and before.compiled and step.compiled \
            and not isinstance(before, _Warp) and not isinstance(step, _Warp)
        if shared:
            passes[-1].append(step)
        else:
            passes.append([step])
    return passes


class _Warp:
    """A run of geometric operations: one matrix, at its end perhaps a field of shifts; one resample."""

    compiled = True

    def __init__(self, run, settings, shape, random):
        self.run, self.settings, self.random, self.old = run, settings, random, shape[:2]
        self.new = self.old
        for _, part in run:
            self.new = part.size(self.new)

    def draw(self, keys, numbers, batch):
        size, whole, shifts = self.old, _geometry.identity(batch), ()
        for place, part in self.run:
            u = numbers[place]
            if _op.kind(part) == _op.BENDS:
                field = part.shifts(u, lambda shape, place=place: _random.pixel_noise(keys, shape, place), size)
                shifts = (tf.where(part.acts(u)[:, None, None, None], field, 0.0),)
                continue
            matrix = _geometry.select(part.acts(u), part.matrix(u, size)) if self.random else part.still(batch, size)
            whole = _geometry.compose(whole, matrix)
            size = part.size(size)
        return tf.stack(whole, axis=1), *shifts

    def __call__(self, images, drawn, keys):
        matrix, *shifts = drawn
        resample = _geometry.resample if self.settings["jit_compile"] else _geometry.resample_without_xla
        return resample(images, matrix, self.new, shifts=shifts[0] if shifts else None,
                        fill_mode=self.settings["fill_mode"], fill_value=self.settings["fill_value"])


class _Recolor:
    """A run of linear color operations: one affine map."""

    compiled = True

    def __init__(self, run, settings, shape):
        self.run, self.channels, (self.low, self.high) = run, shape[2], settings["value_range"]
        self.mixing = shape[2] > 1 and any(part.mixing for _, part in run)
        self.centering = any(part.centering for _, part in run)

    def draw(self, keys, numbers, batch):
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
        self.settings = {"settings": settings} if part.moving else {}

    def draw(self, keys, numbers, batch):
        u = numbers[self.place]
        return self.part.acts(u), tuple(self.part.parameters(u, self.shape))

    def __call__(self, images, drawn, keys):
        images = tf.cast(images, tf.float32)
        acts, parameters = drawn
        if self.compiled:
            return tf.where(acts[:, None, None, None], self._change(images, keys, *parameters), images)
        return _op.only(acts, lambda some, *drawn: self._change(some, drawn[:2], *drawn[2:]), images, *keys,
                        *parameters)

    def _change(self, images, keys, *parameters):
        changed = self.part.change(images, parameters, low=self.low, high=self.high, **self.settings,
                                   noise=lambda: _random.pixel_noise(keys, self.shape, self.place))
        require(changed.shape.is_compatible_with(images.shape),
                f"augment.{type(self.part).__name__}.change must keep the shape of the images",
                given=tuple(images.shape), returned=tuple(changed.shape))
        return tf.clip_by_value(tf.cast(changed, tf.float32), self.low, self.high)


def pad(part, rows):
    """`part` with so many rows of zeros more; tf.pad takes longer than a resample."""
    shape = part.shape[1:] if part.shape[1:].is_fully_defined() else tf.unstack(tf.shape(part)[1:])
    return tf.concat([part, tf.zeros((rows, *shape), part.dtype)], axis=0)


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

    def times_met(self, keys):
        """int64[batch]: how often each key >= 0 was met before; those beyond the first two million are not counted."""
        before = self.table.lookup(keys)
        tf.cond(self.table.size() < self.LIMIT, lambda: self.table.insert(keys, before + 1), tf.no_op)
        return before
