"""TFMOT's weight clustering: a kernel that is looked up while its layer is called."""

from tensorflow_model_optimization.python.core.clustering.keras import clustering_algorithm, clustering_centroids

from .._keras import keras, tf
from . import tfmot

_INIT = tfmot.clustering.keras.CentroidInitialization
INITS = {"kmeans++": _INIT.KMEANS_PLUS_PLUS, "linear": _INIT.LINEAR, "density": _INIT.DENSITY_BASED,
         "random": _INIT.RANDOM}


def channel_axis(layer, per_channel):
    """The axis of a kernel whose slices have centroids of their own: TFMOT does this for Conv2D alone. Else None."""
    if not per_channel or type(layer) is not keras.layers.Conv2D:
        return None
    return 1 if layer.data_format == "channels_first" else 3


class Lookup:
    """Weight clustering: each weight of a kernel is replaced by the nearest of the kernel's centroids.

    The gradient of a centroid is the sum over its weights; that of a weight passes straight through.

    Args:
      kernel: `kernels.Kernel`.
      centroids: variable of shape (clusters,), or (channels, clusters) with an `axis`, see `channel_axis`.
      kept: None, or the boolean variable of the weights that may be other than zero.
    """

    def __init__(self, kernel, centroids, axis, kept=None):
        self.kernel, self.centroids, self.kept, self.axis = kernel, centroids, kept, axis
        self._weight = kernel.variable.value               # in float32 also where layers cast what they read
        maker = clustering_algorithm.ClusteringAlgorithm if axis is None else (
            clustering_algorithm.ClusteringAlgorithmPerChannel)
        self._algorithm = maker(centroids.value, data_format=_format(axis))

    def start(self, clusters, init):
        """Chooses the first centroids."""
        maker = clustering_centroids.CentroidsInitializerFactory.get_centroid_initializer(INITS[init])
        weight = tf.cast(tf.convert_to_tensor(self._weight), tf.float32)
        found = maker(weight, clusters, self.axis is not None, _format(self.axis), self.kept is not None)
        self.centroids.assign(tf.cast(found.get_cluster_centroids(), self.centroids.dtype))

    def __call__(self):
        """The kernel with its few values."""
        weight = tf.convert_to_tensor(self._weight)
        if self.kept is not None:
            weight = weight * tf.cast(self.kept.value, weight.dtype)
        return self._algorithm.get_clustered_weight(self._algorithm.get_pulling_indices(weight), weight)


def attributes(kernel):
    """The names under which its layer has a kernel."""
    return [name for name, value in vars(kernel.owner).items() if value is kernel.variable]


def _format(axis):
    return "channels_first" if axis == 1 else "channels_last"
