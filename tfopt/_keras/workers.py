"""Training on several workers, which Keras alone cannot do (Keras issue 20585)."""

import functools

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer as tf_trainer
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver


def slurm_hosts(text):
    """["n1", "n2", "n3"] of "n[1-3]"."""
    return slurm_cluster_resolver.expand_hostlist(text)


def slurm_tasks(text):
    """[2, 2, 1] of "2(x2),1"."""
    return slurm_cluster_resolver.expand_tasks_per_node(text)


@functools.cache
def patch_workers():
    """Lets models train under a strategy of several workers, see Keras' issue 20585. No other strategy is touched.

    Keras builds a model from the first batch as the replicas hold it; any one replica's part tells the shapes. It takes
    the mean over the first axis of what the replicas return, which are scalars. And it gathers predictions as they are,
    though workers cannot exchange bfloat16.
    """
    build, reduce = tf_trainer.TensorFlowTrainer._maybe_symbolic_build, tf_trainer.reduce_per_replica

    def over_workers(strategy):
        return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def build_locally(self, iterator=None, data_batch=None):
        if iterator is not None and over_workers(self.distribute_strategy):
            _, _, batches = next(iter(iterator))
            first, iterator = next(batches), None
            data_batch = keras.tree.map_structure(
                lambda value: self.distribute_strategy.experimental_local_results(value)[0], first)
        return build(self, iterator, data_batch)

    def reduce_over_workers(values, strategy, reduction):
        if over_workers(strategy) and reduction in ("auto", "mean"):
            return keras.tree.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        if over_workers(strategy):
            return keras.tree.map_structure(lambda value: gathered(value, strategy, reduction), values)
        return reduce(values, strategy, reduction)

    def gathered(value, strategy, reduction):
        if strategy.experimental_local_results(value)[0].dtype != tf.bfloat16:
            return reduce(value, strategy, reduction)
        wide = strategy.run(lambda value: tf.cast(value, tf.float32), args=(value,))
        return tf.cast(reduce(wide, strategy, reduction), tf.bfloat16)

    tf_trainer.TensorFlowTrainer._maybe_symbolic_build = build_locally
    tf_trainer.reduce_per_replica = reduce_over_workers
