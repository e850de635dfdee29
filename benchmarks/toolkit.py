"""Cost of a training step: tfopt's wrapped Keras 3 models beside the same TFMOT models trained in tf_keras.

Both sides live in one process and take turns; each figure is the ratio of the medians of CPU time per epoch. "plain" is
the model that is not wrapped: what the two Keras cost by themselves, which differs by processor.
"""

import statistics
import time

import keras
import numpy as np

from tfopt import cluster, prune, quantize

# isort: split
import tensorflow_model_optimization as tfmot  # after tfopt: importing it first sets TF_USE_LEGACY_KERAS
import tf_keras

ROUNDS = 7


def small_cnn(api):
    layers = api.layers
    return api.Sequential([
        layers.InputLayer((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(32, activation="relu"), layers.Dense(10)])


def mobilenet(api):
    return api.applications.MobileNetV2((96, 96, 3), weights=None, classes=10, classifier_activation=None)


def toolkit_prune(model):
    return tfmot.sparsity.keras.prune_low_magnitude(model, tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=10))


def toolkit_cluster(model):
    return tfmot.clustering.keras.cluster_weights(model, 16)


KINDS = {"plain": (lambda model: model, lambda model: model),
         "prune": (lambda model: prune.wrap(model, 0.5, every=10), toolkit_prune),
         "cluster": (lambda model: cluster.wrap(model, 16), toolkit_cluster),
         "quantize": (quantize.wrap, tfmot.quantization.keras.quantize_model)}
MODELS = {"small CNN": (small_cnn, (28, 28, 1), 64, 30), "MobileNetV2": (mobilenet, (96, 96, 3), 16, 4)}


def compiled(model, api):
    model.compile(api.optimizers.SGD(0.01), api.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def epoch(model, x, y, batch, callbacks):
    start = time.process_time()
    model.fit(x, y, batch_size=batch, verbose=0, callbacks=callbacks)
    return time.process_time() - start


def main():
    rng = np.random.default_rng(0)
    names = "tfopt / TFMOT in tf_keras", "Keras 3 / tf_keras       "
    for name, (make, shape, batch, steps) in MODELS.items():
        x, y = rng.normal(size=(batch * steps, *shape)).astype("float32"), rng.integers(0, 10, batch * steps)
        for kind, (ours, theirs) in KINDS.items():
            callbacks = [tfmot.sparsity.keras.UpdatePruningStep()] if kind == "prune" else []
            sides = [(compiled(ours(make(keras)), keras), []), (compiled(theirs(make(tf_keras)), tf_keras), callbacks)]
            times = [[], []]
            for turn in range(ROUNDS + 1):
                for side, (model, calls) in enumerate(sides):
                    spent = epoch(model, x, y, batch, calls)
                    if turn:                                                       # the first traces the graph
                        times[side].append(spent)
            mine, stock = (statistics.median(side) for side in times)
            print(f"{name:12} {kind:9} {names[kind == 'plain']} = {mine / stock:.2f}"
                  f"   ({1e3 * mine / steps:.1f} and {1e3 * stock / steps:.1f} CPU ms a step)")


if __name__ == "__main__":
    main()
