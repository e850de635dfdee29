"""TFMOT's weight clustering, on a tf_keras graph."""

import contextlib

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras import cluster_wrapper, clustering_registry

from .._keras import tf
from . import tfmot

_clustering = tfmot.clustering.keras
INITS = {"kmeans++": _clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
         "linear": _clustering.CentroidInitialization.LINEAR,
         "density": _clustering.CentroidInitialization.DENSITY_BASED,
         "random": _clustering.CentroidInitialization.RANDOM}


def clusterable(layer):
    """The weights of a tf_keras layer that TFMOT can cluster; [] if there are none."""
    registry = clustering_registry.ClusteringRegistry
    if not layer.weights or not registry.supports(layer):
        return []
    return [weight for _, weight in registry.make_clusterable(layer).get_clusterable_weights()]


def is_per_channel(layer):
    """TFMOT clusters only convolution kernels by channel."""
    return isinstance(layer, tf_keras.layers.Conv2D)


def cluster(twin, names, *, clusters, init, preserve_sparsity, per_channel):
    """`twin` with the layers `names` wrapped."""
    def wrap(layer):
        if layer.name not in names:
            return layer
        by_channel = {"cluster_per_channel": True} if per_channel and is_per_channel(layer) else {}
        return _clustering.cluster_weights(layer, number_of_clusters=clusters, cluster_centroids_init=INITS[init],
                                           preserve_sparsity=preserve_sparsity, **by_channel)

    model = tf_keras.models.clone_model(twin, clone_function=wrap)
    for layer in wrapped(model):
        _remember_zeros(layer)
    return model


def _remember_zeros(layer):
    """TFMOT keeps what `preserve_sparsity` preserves outside the variables, so that a loaded model forgets it."""
    for kept in (layer.sparsity_masks, layer.zero_idx):
        for name, value in kept.items():
            variable = tf.Variable(value, trainable=False, name=f"{layer.name}/preserved_{name}".replace("/", "_"))
            setattr(layer, f"preserved_{len(layer.weights)}", variable)          # tf_keras tracks what is an attribute
            kept[name] = variable


def wrapped(model):
    return [layer for layer in model.layers if isinstance(layer, cluster_wrapper.ClusterWeights)]


@contextlib.contextmanager
def stripped(model):
    """The model without wrappers, its kernels rounded to their centroids.

    TFMOT writes to the wrapped model meanwhile; afterwards that is as it was.
    """
    kept = [(variable, np.array(tf.convert_to_tensor(variable))) for variable in model.variables]
    try:
        yield _clustering.strip_clustering(model)
    finally:
        for variable, value in kept:
            variable.assign(value)
