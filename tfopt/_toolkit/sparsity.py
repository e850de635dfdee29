"""TFMOT's pruning, on a tf_keras graph."""

import contextlib

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry, pruning_wrapper

from .._keras import tf
from . import tfmot

_sparsity = tfmot.sparsity.keras


def prunable_shapes(layer):
    """Shapes of the weights of a tf_keras layer that TFMOT can prune; [] if there are none."""
    registry = prune_registry.PruneRegistry
    if not layer.weights or not registry.supports(layer):
        return []
    return [tuple(weight.shape) for weight in registry.make_prunable(layer).get_prunable_weights()]


def prune(twin, names, *, sparsity, begin, end, every, block, pattern):
    """`twin` with the layers `names` wrapped, ready to train without a callback.

    TFMOT counts calls, not optimizer steps: a layer used n times in the graph is called n times a step, so its schedule
    is stretched by n. The count starts at 0, which tells TFMOT that the graph itself advances it.
    """
    def wrap(layer):
        if layer.name not in names:
            return layer
        uses = len(layer.inbound_nodes)
        if end is None:
            schedule = _sparsity.ConstantSparsity(sparsity, begin * uses, frequency=every * uses)
        else:
            schedule = _sparsity.PolynomialDecay(0.0, sparsity, begin * uses, end * uses, frequency=every * uses)
        return pruning_wrapper.PruneLowMagnitude(layer, pruning_schedule=schedule, block_size=tuple(block or (1, 1)),
                                                 sparsity_m_by_n=tuple(pattern) if pattern else None)

    model = tf_keras.models.clone_model(twin, clone_function=wrap)
    for layer in wrapped(model):
        layer.pruning_step.assign(0)
    return model


def wrapped(model):
    return [layer for layer in model.layers if isinstance(layer, pruning_wrapper.PruneLowMagnitude)]


def steps(layer):
    """Optimizer steps this wrapper has seen."""
    return int(tf.convert_to_tensor(layer.pruning_step)) // (len(layer.inbound_nodes) or 1)


@contextlib.contextmanager
def masked(model):
    """While it lasts, the pruned weights are exactly zero: training's last update has moved them again."""
    triples = [(weight, np.array(tf.convert_to_tensor(weight)), np.array(tf.convert_to_tensor(mask)))
               for layer in wrapped(model) for weight, mask, _ in layer.pruning_vars]
    try:
        for weight, value, mask in triples:
            weight.assign(value * mask)
        yield
    finally:
        for weight, value, _ in triples:
            weight.assign(value)


def strip(model):
    return _sparsity.strip_pruning(model)


def xnnpack_allows(model):
    """The layers of a tf_keras model that XNNPACK's sparse kernels can speed up, by TFMOT's policy."""
    policy = _sparsity.PruneForLatencyOnXNNPack()
    policy.ensure_model_supports_pruning(model)
    return [layer.name for layer in model.layers if policy.allow_pruning(layer)]
