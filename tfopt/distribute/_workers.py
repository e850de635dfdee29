"""Several workers: does Keras train on them, the correction where it does not, and one order of the examples."""

import random

import numpy as np

from .._check import require
from .._keras import global_seed, keras, patch_workers, same_randomness, tf


def correct(strategy):
    """Corrects Keras for `strategy` if a probe shows that it needs it, and probes again.

    Keras 3.15 fails here (its issue 20585); a version that does not is left as it is.
    """
    if strategy.num_replicas_in_sync == 1 or fault(strategy) is None:
        return
    patch_workers()
    found = fault(strategy)
    require(found is None, "tfopt cannot correct this version of Keras for several workers",
            keras=keras.__version__, fault=found, do="Train on one machine.", error=RuntimeError)


def fault(strategy):
    """What goes wrong in one step of a known result, or None.

        loss = mean(x^2) at w = 1,   w - rate * dloss/dw = 1 - 0.1 * 2 * mean(x^2)
    """
    size = 2 * strategy.num_replicas_in_sync
    x = np.linspace(0, 1, size, dtype="float32")[:, None]
    try:
        with same_randomness():
            with strategy.scope():
                kernel = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="probe_kernel",
                                            dtype="float32")         # whatever the policy, which may be set already
                model = keras.Sequential([keras.Input((1,), name="probe_input"), kernel], name="probe")
                model.compile(keras.optimizers.SGD(0.1, name="probe_rate"), "mse", auto_scale_loss=False)
            loss = model.fit(x, 0 * x, size, shuffle=False, verbose=0).history["loss"][0]
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    seen, expected = (loss, kernel.kernel.numpy().item()), (np.mean(x ** 2), 1 - 0.2 * np.mean(x ** 2))
    return None if np.allclose(seen, expected) else f"loss and weight are {seen} instead of {expected}"


def agree(strategy):
    """Gives workers without a random seed a common one, and refuses workers whose seeds differ.

    Each worker shuffles all examples and takes its share. If their orders differ, some examples are seen twice and
    others never.
    """
    seed = global_seed()
    told = [seed is not None, random.randrange(2 ** 31) if seed is None else seed]
    seeds = strategy.gather(strategy.run(lambda: tf.constant([told], tf.int64)), axis=0).numpy().tolist()
    if not any(given for given, _ in seeds):
        tf.random.set_seed(seeds[0][1])
        return
    require(all(other == seeds[0] for other in seeds), "all workers must have the same random seed, or they shuffle "
            "differently", seeds=[value if given else None for given, value in seeds],
            do="Call keras.utils.set_random_seed(number) with the same number in each.")
