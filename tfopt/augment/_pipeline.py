"""The pipeline: runs of operations become few passes over the pixels."""

from .._check import require
from .._keras import keras, serializable


@serializable
class Pipeline(keras.layers.Layer):
    """Augments batches of images: one resample, one colour matrix, the same views whenever they are asked for.

        view = f(seed, epoch, index, image)

    Every random number is a hash (Threefry) of the pipeline's seed, an epoch number and the example's index: no state,
    so a view does not depend on batch size, order, parallelism or process. Three ways to name epoch and index:

    - `pipeline.apply(images, labels=None, *, epoch, index)`: you say both. `epoch`: whole number, or int64[batch];
      `index`: int64[batch], the position of each example in the data set (any number that names it). Returns `images`,
      or `(images, labels)` if labels were given. `images` may also be a dict, see Call. Works eagerly, in `tf.function`
      and in `Dataset.map`. This is the replay contract: `apply` with the same epoch and index gives the same bits.
    - `dataset.enumerate().batch(64).map(pipeline.map)`: elements `(index, element)`; the epoch is how often this data
      set has yielded that index before (0, 1, 2 ...), so it equals `apply(..., epoch=k, index=index)` in the k-th pass.
    - `dataset.batch(64).map(pipeline.map)`: without an index, the image itself is the index (a hash of its pixels).
      Also independent of batch size, order and parallelism; only identical images in one data set share their views.

    `replayable` is False if the pipeline holds MixUp or CutMix: their answer depends on which images share a batch.
    """

    def __init__(self, ops, *, seed=0, fill_mode="reflect", value_range=(0, 255), output_range=None, **kwargs):
        super().__init__(**kwargs)

    replayable = True

    def apply(self, images, labels=None, *, epoch, index):
        """Images (and labels) as they are seen in `epoch`; see the class."""
        require(False, "augment.Pipeline is not finished")

    def map(self, *element):
        """An element of a batched tf.data.Dataset, augmented; see the class."""
        require(False, "augment.Pipeline is not finished")
