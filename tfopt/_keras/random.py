"""The random states of Python, NumPy, TensorFlow and Keras: read, set, and put back."""

import collections
import contextlib
import random

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import global_seed_generator
from tensorflow.python.eager import context as eager_context
from tensorflow.python.ops import stateful_random_ops


def global_seed():
    """The number that tf.random.set_seed was given, or None."""
    return eager_context.global_seed()


@contextlib.contextmanager
def same_randomness():
    """On leaving, the random states of Python, NumPy, TensorFlow and Keras are what they were on entering.

    TensorFlow keeps the kernel of an eager operation, with its state, under the seed the operation drew. Inside, seeds
    come from another stream, so that no kernel that is waiting outside is advanced.
    """
    eager, name = eager_context.context(), "global_seed_generator"
    keras_seeds, tf_generator = global_state.get_global_attribute(name), stateful_random_ops.global_generator
    states = random.getstate(), np.random.get_state()
    operations = eager._rng.getstate() if getattr(eager, "_rng", None) else None
    if operations:
        eager._rng.seed(f"inside {eager._rng.random()}")
    variables = [generator.state for generator in (keras_seeds, tf_generator) if generator is not None]
    values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if operations:
            eager._rng.setstate(operations)
        global_state.set_global_attribute(name, keras_seeds)
        stateful_random_ops.global_generator = tf_generator
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def seeded(seed):
    """`same_randomness`, and inside of it everything starts from `seed`."""
    eager, name = eager_context.context(), "global_random_seed"
    kept, keras_seed = (eager._seed, getattr(eager, "_rng", None)), global_state.get_global_attribute(name)
    with same_randomness():
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            eager._seed, eager._rng = kept
            global_state.set_global_attribute(name, keras_seed)


@contextlib.contextmanager
def fresh_names():
    """Inside, layers without a name are counted from the start, as in a new process; outside, nothing has changed."""
    name = "object_name_uids"
    counted = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, counted)


def randomness():
    """The random states of Python, NumPy, TensorFlow's eager operations and Keras as {name: data or None}."""
    eager, keras_seeds = eager_context.context(), global_state.get_global_attribute("global_seed_generator")
    operations = getattr(eager, "_rng", None)
    generator = stateful_random_ops.global_generator
    return {"python": _words(random.getstate()), "numpy": np.random.get_state(),
            "operations": None if operations is None else _words(operations.getstate()),
            "keras": None if keras_seeds is None else keras_seeds.state.numpy(),
            "tensorflow": None if generator is None else generator.state.numpy()}


def set_randomness(states):
    """Brings back what `randomness` told; what was not there then is left alone."""
    if states["keras"] is not None:
        global_seed_generator().state.assign(states["keras"])
    if states["tensorflow"] is not None:
        tf.random.get_global_generator().state.assign(states["tensorflow"])
    operations = getattr(eager_context.context(), "_rng", None)
    if operations is not None and states["operations"] is not None:
        operations.setstate(_from_words(states["operations"]))
    random.setstate(_from_words(states["python"]))
    np.random.set_state(states["numpy"])


def _words(state):
    version, words, rest = state
    return version, np.array(words, np.uint32), rest


def _from_words(state):
    version, words, rest = state
    return version, tuple(map(int, words)), rest
