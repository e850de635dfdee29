"""tf.data.Dataset: what one is made of, how it shuffles, and tf.data's autotuning."""

import contextlib

import tensorflow as tf
from keras.src.utils.audio_dataset_utils import read_and_decode_audio as read_audio  # noqa: F401


@contextlib.contextmanager
def shuffled_by(shuffle):
    """Graphs that are traced inside call `shuffle(tensor)` for tf.random.shuffle."""
    own = tf.random.shuffle
    tf.random.shuffle = shuffle
    try:
        yield
    finally:
        tf.random.shuffle = own


def without_autotune(dataset):
    """The dataset without tf.data's tuner; AUTOTUNE then stands for as many calls at once as there are cores.

    Whoever drops an iterator waits for its tuner to end. In TensorFlow 2.21 the tuner often misses that it was told to,
    and sleeps on: up to as long again as the pass took, with nothing to do (`benchmarks/input.py` counts it).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def datasets_in(dataset, enter=lambda dataset: True):
    """A data set and all that it is made of, where `enter(data set)` holds."""
    if enter(dataset):
        yield dataset
        for inner in dataset._inputs():
            yield from datasets_in(inner, enter)


def holds_resources(dataset):
    """Do the functions of a data set use variables or tables, which may change from pass to pass?"""
    return any(tensor.dtype == tf.resource for function in dataset._functions()
               for tensor in function.function.captured_inputs)
