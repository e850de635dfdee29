"""A look at what a pipeline does."""

import os

from .._check import require_number
from .._keras import tf
from ._color import Normalize
from ._pipeline import Pipeline


def preview(pipeline, images, path, *, views=6):
    """Draws a grid: a row for each image, first as it came, then as it is seen in epochs 0, 1, 2 ...

    Normalize and `output_range` are left out, since they are not for the eye.

    Args:
      pipeline: a Pipeline.
      images: a batch of images; the first eight are drawn.
      path: where the picture goes; its ending (.png, .pdf, .svg) names the format.
      views: views of each image, 1 to 20.

    Returns:
      `path`.

    Raises:
      ValueError: images the pipeline refuses, or `views` out of range.

    Example:
      >>> import os, tempfile
      >>> from tfopt import augment
      >>> pipeline = augment.Pipeline([augment.Flip()], jit_compile=False)
      >>> path = os.path.join(tempfile.mkdtemp(), "views.png")
      >>> path = augment.preview(pipeline, tf.zeros((2, 8, 8, 3)), path, views=1)
      >>> os.path.getsize(path) > 1000
      True
    """
    from matplotlib.figure import Figure

    require_number("views", views, low=1, high=20, integer=True)
    shown = [op for op in pipeline.ops if not isinstance(op, Normalize)]
    eye = Pipeline(shown, seed=pipeline.seed, fill_mode=pipeline.fill_mode, fill_value=pipeline.fill_value,
                   value_range=pipeline.value_range, jit_compile=pipeline.jit_compile)
    images = tf.convert_to_tensor(images)[:8]
    index = tf.range(images.shape[0], dtype=tf.int64)
    classes = next((op.num_classes for op in shown if getattr(op, "num_classes", None)), 2)
    labels = None if eye.replayable else tf.zeros((images.shape[0], classes))
    columns = [images]
    for epoch in range(views):
        seen = eye.apply(images, labels, epoch=epoch, index=index)
        columns.append(seen if labels is None else seen[0])

    low, high = pipeline.value_range
    figure = Figure(figsize=(1.6 * len(columns), 1.7 * images.shape[0]), layout="tight")
    axes = figure.subplots(images.shape[0], len(columns), squeeze=False)
    for place, (column, batch) in enumerate(zip(axes.T, columns, strict=True)):
        column[0].set_title("as it came" if place == 0 else f"epoch {place - 1}", fontsize=9)
        for axis, image in zip(column, (tf.cast(batch, tf.float32).numpy() - low) / (high - low), strict=True):
            axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(os.fspath(path), dpi=120)
    return path
