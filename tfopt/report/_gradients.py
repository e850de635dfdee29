"""Gradients of a Keras model's scores: with respect to its inputs, or to the features of a layer."""

import inspect
from typing import Any

import numpy as np

from .._check import require
from .._keras import fresh_operation, graph_of, keras, replay, tf
from ._images import one_output

BATCH = 32
ENDS = (keras.activations.softmax, keras.activations.sigmoid)


def flat_scores(outputs):
    """[images, classes]: the mean over positions, where there are any."""
    outputs = tf.cast(outputs, tf.float32)
    if outputs.shape.rank == 1:
        return outputs[:, None]
    return tf.reduce_mean(outputs, list(range(1, outputs.shape.rank - 1))) if outputs.shape.rank > 2 else outputs


class Scores:
    """`images -> scores [images, classes]` of one output, before a softmax or sigmoid at its end if there is a graph.

    Args:
      subject: a Keras model that is being measured.
      output, names: which output, by which names.
      shape: of one image, as the model takes it.
    """

    def __init__(self, subject, output, names, shape):
        self.model, self.graph = subject.model, subject.graph
        self.output, self.names, self.shape = output, names, shape
        self.ends: tuple[Any, ...] = ()                    # the last tensors: the output, what the scores are made of

    def __call__(self, x, seen=None):
        """The scores; `seen(path, tensor)` is called with what each layer hands on, in order."""
        x = tf.reshape(x, (-1, *self.shape))
        if self.graph is None:
            self.ends = (one_output(self.model(x, training=False), self.names, self.output),)
            return flat_scores(self.ends[0])
        calls = {}                                         # id of a tensor: (tensor, layer, what it was called with)

        def run(graph, prefix, inputs):
            def operation(op):
                def call(*args, **kwargs):
                    inner = graph_of(op)
                    if inner is not None:
                        found = run(inner, f"{prefix}{op.name}/", args[0] if len(args) == 1 else list(args))
                    else:
                        found = op(*args, **_in_inference(op, kwargs))
                        if tf.is_tensor(found):
                            calls[id(found)] = found, op, args
                    if seen is not None and tf.is_tensor(found):
                        seen(f"{prefix}{op.name}", found)
                    return found

                return call

            return replay(graph, inputs, operation)

        found = given = one_output(run(self.graph, "", x), self.names, self.output)
        op, args = calls.get(id(found), (found, None, []))[1:]
        if isinstance(op, keras.layers.Softmax) or (isinstance(op, keras.layers.Activation) and op.activation in ENDS):
            found = args[0]
        elif isinstance(op, keras.layers.Layer) and getattr(op, "activation", None) in ENDS:
            linear = fresh_operation(op)
            vars(linear)["activation"] = keras.activations.linear
            found = linear(*args)
        self.ends = given, found
        return flat_scores(found)

    def outputs(self, x):
        """What `self.model` itself should give, [images, classes]."""
        self(x)
        return flat_scores(self.ends[0])


def _in_inference(op, kwargs):
    takes = isinstance(op, keras.layers.Layer) and "training" in inspect.signature(op.call).parameters
    return {**kwargs, "training": False} if takes else kwargs


def integrated(scores, x, chosen, baseline):
    """(maps [images, height, width], scores lacking in their sums): integrated gradients from a constant image.

    The integral is Gauss and Legendre's, of twice as many nodes until the maps add up to within 1%.
    """

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, *x.shape[1:])),
                                                   tf.TensorSpec((None, chosen.shape[1]))])
    def slopes(x, chosen):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(scores(x) * chosen, 1)
        return total, tape.gradient(total, x, unconnected_gradients="zero")

    end, start = slopes(x, chosen)[0].numpy(), slopes(tf.fill(x.shape, float(baseline)), chosen)[0].numpy()
    for nodes in (32, 64, 128, 256):
        places, weights = np.polynomial.legendre.leggauss(nodes)
        mean = sum(weight / 2 * slopes(np.float32(baseline + (1 + place) / 2 * (x - baseline)), chosen)[1].numpy()
                   for place, weight in zip(places, weights, strict=True))
        maps = ((x - baseline) * mean).reshape(*x.shape[:3], -1).sum(-1)
        lacking = end - start - maps.sum((1, 2))
        if (np.abs(lacking) <= 0.01 * np.abs(end - start)).all():
            break
    return maps, lacking


class GradCAM:
    """Class activation maps by gradients, of one layer.

    Args:
      scores: of a model with a graph.
      x: one image, to look for the layer with.
      layer: its name or path (`outer/inner`); None for the last one with positions that the scores depend on.
      name: what the model is called.
    """

    def __init__(self, scores, x, layer, name):
        require(scores.graph is not None, 'method="gradcam" needs a functional or Sequential model', model=name,
                do='Use method="integrated" or "occlusion".')
        self.scores, maps = scores, {}
        with tf.GradientTape() as tape:

            def seen(path, tensor):
                if tensor.shape.rank == 4 and min(tensor.shape[1:3]) > 1 and tensor.dtype.is_floating:
                    tape.watch(tensor)
                    maps[path] = tensor

            total = scores(tf.constant(x), seen)
        slopes = tape.gradient(total, list(maps.values()))
        fit = [path for (path, tensor), slope in zip(maps.items(), slopes, strict=True)
               if slope is not None and not any(tensor is end for end in scores.ends)]
        require(fit, 'method="gradcam" needs a layer [images, height, width, channels] before the output', model=name,
                do='Use method="integrated" or "occlusion".')
        found = [path for path in fit if layer in (None, path) or path.endswith(f"/{layer}")]
        require(found, "`layer` must be a layer [images, height, width, channels] before the output", model=name,
                layer=layer, do=f"There are {', '.join(fit)}.")
        self.path = found[-1]

    def __call__(self, x, chosen):
        """Maps [images, height, width] of images, for the scores `chosen` (one-hot)."""
        features = []
        with tf.GradientTape() as tape:

            def seen(path, tensor):
                if path == self.path:
                    tape.watch(tensor)
                    features[:] = [tensor]

            total = tf.reduce_sum(self.scores(tf.constant(x), seen) * chosen)
        slopes = tape.gradient(total, features[0])
        weights = tf.reduce_mean(slopes, (1, 2), keepdims=True)
        coarse = tf.nn.relu(tf.reduce_sum(tf.cast(weights * features[0], tf.float32), 3, keepdims=True))
        return tf.image.resize(coarse, x.shape[1:3])[..., 0].numpy()
