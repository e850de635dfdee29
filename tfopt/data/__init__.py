"""Input pipelines: arrays, tables, folders of images and of audio as tf.data; batches that grow.

    train, validation = data.image_folder("photos", 224, 32, validation_split=0.2, augment=pipeline)
    train, validation, fitted = data.table("wine.csv", "cultivar", 32)
    train = data.arrays(x, y, 32)

What is slow is done once, before shuffling: images are decoded into a uint8 cache, tables are read and scaled by
pandas and Keras layers. What an epoch then costs is one seeded permutation, and one gather for each batch.
"""

from ._arrays import arrays, full_batches
from ._audio import AudioReport, audio_folder
from ._images import ImageReport, image_folder, scan_images
from ._table import TablePreprocessor, raw_features, table

__all__ = ["AudioReport", "ImageReport", "TablePreprocessor", "arrays", "audio_folder", "full_batches", "image_folder",
           "raw_features", "scan_images", "table"]


def __dir__() -> list[str]:
    return __all__
