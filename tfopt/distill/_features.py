"""Losses between the outputs of layers of teacher and student: their features."""

from collections.abc import Callable
from typing import Any

from .._check import Number, Rule, checked, require
from .._keras import keras, serializable, tf
from . import _formulas
from ._output_loss import DistillationLoss

LAYERS = Rule("{teacher layer: student layer} by name", lambda value: isinstance(value, dict) and bool(value) and all(
    isinstance(name, str) for pair in value.items() for name in pair), dict)


class FeatureLoss(DistillationLoss):
    """What losses between layers share: {teacher layer: student layer}, summed over the pairs."""

    least_rank = 2

    @checked(layers=LAYERS)
    def __init__(self, layers: dict[str, str]) -> None:
        self.layers = layers

    @checked()
    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, sample_weight: Any = None,
                     **kwargs: Any) -> tf.Tensor:
        """The loss between features alone: of equal shapes, since a projector belongs to a Distiller.

        Args:
          teacher_outputs, student_outputs: a tensor each, or as many as there are pairs.
          sample_weight: None or (batch,).
          **kwargs: ignored.

        Returns:
          A scalar.
        """
        del kwargs
        pairs = zip(*(keras.tree.flatten(outputs) for outputs in (teacher_outputs, student_outputs)), strict=True)
        return tf.add_n([self.value(*_formulas.pair(*features), sample_weight) for features in pairs])

    def value(self, teacher: tf.Tensor, student: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        """The loss of one pair of layers."""
        raise NotImplementedError

    def connect(self, teacher, student, own):
        """(teacher `Result`, student `Result`, y, sample_weight) -> scalar; `own` makes a projector."""
        fit = {}
        for source, layer in self.layers.items():
            shapes = teacher.tap(source), student.tap(layer)
            for name, shape in zip((source, layer), shapes, strict=True):
                require(len(shape) >= self.least_rank, f"distill.{type(self).__name__} needs features with at least "
                        f"{self.least_rank} axes", layer=name, shape=shape)
            fit[source] = self.fitted(*shapes, own)

        def term(target, predicted, y, sample_weight):
            values = []
            for name, other in self.layers.items():
                features = _formulas.pair(target.features[name], predicted.features[other])
                values.append(self.value(*fit[name](*features), sample_weight))
            return tf.add_n(values)

        return term

    def fitted(self, teacher: tuple, student: tuple, own: Any) -> Callable[..., Any]:
        """(teacher, student) features -> the same, of comparable shapes."""
        return lambda teacher, student: (teacher, student)


@serializable
class Features(FeatureLoss):
    """Feature distillation (FitNets): squared error between the teacher's features and a projection of the student's.

        loss = mean over the batch, positions and channels of  (project(student) - teacher)^2

    Where the number of channels differs the distiller makes and trains a projector (a matrix over channels, a 1x1
    convolution); it is saved with the distiller and is no part of the student. Where maps differ in size the teacher's
    is resized (bilinear) to the student's.

    Args:
      layers: {name of the teacher's layer: name of the student's}, layers of the outer model.

    Raises:
      ValueError: a layer does not exist, or the features have another number of axes.

    Example:
      >>> import numpy as np
      >>> loss = Features({"block3": "block1"})
      >>> float(loss.compute_loss(np.ones((2, 4, 4, 8)), np.zeros((2, 4, 4, 8))))
      1.0

    Reference:
      Romero et al.: FitNets: Hints for Thin Deep Nets (2015). https://arxiv.org/abs/1412.6550
    """

    def value(self, teacher: tf.Tensor, student: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        return _formulas.mean(tf.reduce_mean((student - teacher) ** 2, list(range(1, student.shape.rank))),
                              sample_weight)

    def fitted(self, teacher: tuple, student: tuple, own: Any) -> Callable[..., Any]:
        require(len(teacher) == len(student), "features of teacher and student must have as many axes",
                teacher=teacher, student=student, do="Choose layers of the same kind.")
        project = own(teacher[-1], student) if teacher[-1] != student[-1] else lambda features: features
        resize = _resizing(teacher, student)
        return lambda teacher, student: (resize(teacher), project(student))


@serializable
class AttentionTransfer(FeatureLoss):
    """Attention transfer: squared error between the spatial attention maps of teacher and student.

        loss = mean over the batch and positions of  (a(student) - a(teacher))^2,
        a(F) = mean over channels of F^2, flattened, of length 1

    Needs no projector, since channels are averaged out. Maps of another size are resized to the student's. Values are
    small: weights of 100 to 1000 are usual.

    Args:
      layers: {name of the teacher's layer: name of the student's}; layers with positions and channels.

    Raises:
      ValueError: a layer does not exist, or has no positions.

    Example:
      >>> import numpy as np
      >>> left, right = np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 2, 3))
      >>> left[:, :, 0], right[:, :, 1] = 1, 1
      >>> float(AttentionTransfer({"block3": "block1"}).compute_loss(left, right))
      1.0

    Reference:
      Zagoruyko, Komodakis: Paying More Attention to Attention (2017). https://arxiv.org/abs/1612.03928
    """

    least_rank = 3

    def value(self, teacher: tf.Tensor, student: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        difference = _formulas.attention(student) - _formulas.attention(teacher)
        return _formulas.mean(tf.reduce_mean(difference ** 2, -1), sample_weight)

    def fitted(self, teacher: tuple, student: tuple, own: Any) -> Callable[..., Any]:
        require(len(teacher) == len(student), "features of teacher and student must have as many axes",
                teacher=teacher, student=student, do="Choose layers of the same kind.")
        resize = _resizing(teacher, student)
        return lambda teacher, student: (resize(tf.reduce_mean(teacher ** 2, -1, keepdims=True) ** 0.5), student)


@serializable
class RelationalKD(FeatureLoss):
    """Relational knowledge distillation (RKD): distances and angles between the examples of a batch.

        loss = distance * mean_ij huber(d_ij(student) - d_ij(teacher))
             + angle * mean_ijk huber(c_ijk(student) - c_ijk(teacher))

    d_ij is the distance of two examples in units of the mean distance, c_ijk the cosine at j between i and k. Widths
    may differ, and nothing is projected. The batch is the one of all replicas; `angle` takes batch^3 numbers, so set it
    to 0 for large batches. An example's weight multiplies every pair and triple it is in.

    Args:
      layers: {name of the teacher's layer: name of the student's}, such as the layer before the output.
      distance: weight of distances, >= 0.
      angle: weight of angles, >= 0.

    Raises:
      ValueError: a layer does not exist, or a weight is negative.

    Example:
      >>> import numpy as np
      >>> features = np.random.default_rng(0).normal(size=(4, 8))
      >>> round(float(RelationalKD({"a": "b"}).compute_loss(features, 3 * features)), 6)
      0.0

    Reference:
      Park et al.: Relational Knowledge Distillation (2019). https://arxiv.org/abs/1904.05068
    """

    @checked(layers=LAYERS, distance=Number(low=0), angle=Number(low=0))
    def __init__(self, layers: dict[str, str], *, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__(layers)
        self.distance, self.angle = distance, angle

    def value(self, teacher: tf.Tensor, student: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        weight = None if sample_weight is None else tf.reshape(tf.cast(sample_weight, student.dtype), (-1,))
        rows = [_formulas.all_replicas(x) for x in (teacher, student)]
        weight = _formulas.all_replicas(weight)
        teacher, student = (tf.reshape(features, (tf.shape(features)[0], -1)) for features in rows)
        weight = tf.ones_like(student[:, 0]) if weight is None else weight
        pairs, parts = weight[:, None] * weight[None], []
        if self.distance:
            values = _formulas.huber(_formulas.distances(student) - _formulas.distances(teacher))
            parts.append(self.distance * tf.reduce_mean(pairs * values))
        if self.angle:
            values = _formulas.huber(_formulas.angles(student) - _formulas.angles(teacher))
            parts.append(self.angle * tf.reduce_mean(pairs * weight[:, None, None] * values))
        return tf.add_n(parts) if parts else tf.reduce_sum(student) * 0


def _resizing(teacher, student):
    """Brings the teacher's map to the size of the student's: no gradient has to pass through it."""
    if teacher[1:-1] == student[1:-1]:
        return lambda features: features
    require(len(student) == 4 and None not in student[1:3], "only maps of images, of known size, can be resized",
            teacher=teacher, student=student, do="Choose layers of one length.")
    return lambda features: tf.cast(tf.image.resize(features, student[1:3]), features.dtype)
