"""A look at what a pipeline does."""

import os
import typing

import matplotlib.figure

from .. import _data, _plots
from .._check import PATH, Instance, Whole, checked, require
from .._keras import tf
from .._typing import PathLike
from ._color import Normalize
from ._pipeline import Pipeline


@checked(pipeline=Instance(Pipeline, text="an augment.Pipeline"), path=PATH, views=Whole(low=1, high=20))
def preview(pipeline: Pipeline, images: typing.Any, path: PathLike | None = None, *,
            views: int = 6) -> matplotlib.figure.Figure:
    """A grid of augmented images: a row for each image, first the original, then its views of epochs 0, 1, 2 ...

    Normalize and `output_range` are left out, since they are not for the eye. A notebook shows the figure where it is
    the last value.

    Args:
      pipeline: a Pipeline.
      images: a batch of images; the first eight are drawn.
      path: where the picture goes; its ending (.png, .pdf, .svg) names the format. None writes no file.
      views: views of each image, 1 to 20.

    Returns:
      A matplotlib Figure.

    Raises:
      ValueError: images the pipeline refuses, or `views` out of range.

    Example:
      >>> from tfopt import augment
      >>> pipeline = augment.Pipeline([augment.Flip()], jit_compile=False)
      >>> figure = augment.preview(pipeline, tf.zeros((2, 8, 8, 3)), views=1)
      >>> len(figure.axes)
      4
    """
    shown = [op for op in pipeline.ops if not isinstance(op, Normalize)]
    visible = Pipeline(shown, seed=pipeline.seed, fill_mode=pipeline.fill_mode, fill_value=pipeline.fill_value,
                       value_range=pipeline.value_range, jit_compile=pipeline.jit_compile)
    images = _data.read(images, name="images", targets="ignored").head(8).x
    require(getattr(images, "ndim", 0) == 4 and images.dtype.kind in "biuf",
            "`images` must be a batch of images [batch, height, width, channels]", images=images,
            do="Give gray images an axis of 1 at the end, and one image an axis of 1 in front.")
    ending = os.path.splitext(path or "figure.png")[1]
    require(ending in (".png", ".pdf", ".svg", ".jpg") and os.path.isdir(os.path.dirname(path or "") or "."),
            "`path` must end in .png, .jpg, .pdf or .svg and lie in a folder that exists", path=path)
    images = tf.convert_to_tensor(images)
    index = tf.range(images.shape[0], dtype=tf.int64)
    classes = next((op.num_classes for op in shown if getattr(op, "num_classes", None)), 2)
    labels = None if visible.replayable else tf.zeros((images.shape[0], classes))
    columns = [images]
    for epoch in range(views):
        seen = visible.apply(images, labels, epoch=epoch, index=index)
        columns.append(seen if labels is None else seen[0])

    low, high = pipeline.value_range
    figure, axes = _plots.canvas(1.6 * len(columns), 1.7 * images.shape[0], images.shape[0], len(columns))
    for place, (column, batch) in enumerate(zip(axes.T, columns, strict=True)):
        _plots.title(column[0], "original" if place == 0 else f"epoch {place - 1}")
        for axis, image in zip(column, (tf.cast(batch, tf.float32).numpy() - low) / (high - low), strict=True):
            axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    return _plots.save(figure, path)
