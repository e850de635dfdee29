"""Losses between the outputs of teacher and student."""

import re
from collections.abc import Callable
from typing import Any, Literal

from .._check import FLAG, Number, OneOf, checked, require
from .._keras import serializable, tf
from . import _formulas
from ._output_loss import OUTPUT, LogitLoss, OutputLoss

Activation = Literal["softmax", "sigmoid"] | None
Key = str | int | None
POSITIVE, WEIGHT = Number(above=0), Number(low=0)


@serializable
class Logits(LogitLoss):
    """Knowledge distillation (KD): the divergence of the student's softened predictions from the teacher's.

        loss = mean over the batch of  T^2 * sum_c p_c * log(p_c / q_c),
        p = softmax(teacher / T), q = softmax(student / T)

    T^2 keeps the size of the gradient, so that `student_loss_weight` means the same for every temperature. With
    independent labels (sigmoid) the sum runs over labels, each a two-class problem.

    Args:
      temperature: T > 0; 1 compares the probabilities as they are, 3 to 5 shows the small ones, beyond 20 nothing
        changes.
      activation: "softmax", "sigmoid", or None: what teacher and student end in; softmax if both end in logits.
      from_logits: what outputs are that end in nothing that can be recognized: True or False. None refuses these.
        `compute_loss` called alone takes outputs for logits unless this is False.
      output: for models with several outputs a key, an index or a name. None for all that are logits or
        probabilities of classes; their losses are added.
      standardize: compare logits of mean 0 and deviation 1 per example, so that the student need not copy the
        teacher's scale (Sun et al. 2024).

    Raises:
      ValueError: an argument is out of range; the outputs have different shapes, or are of an unknown kind.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]])
      >>> round(float(Logits(temperature=1.0).compute_loss(teacher, student)), 4)
      0.3278

    Reference:
      Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015). https://arxiv.org/abs/1503.02531
      Sun et al.: Logit Standardization in Knowledge Distillation (2024). https://arxiv.org/abs/2403.01427
    """

    activations = ("softmax", "sigmoid")

    @checked(temperature=POSITIVE, activation=OneOf("softmax", "sigmoid"), from_logits=FLAG, output=OUTPUT,
             standardize=FLAG)
    def __init__(self, temperature: float = 4.0, *, activation: Activation = None, from_logits: bool | None = None,
                 output: Key = None, standardize: bool = False) -> None:
        super().__init__(activation, from_logits, output)
        self.temperature = temperature
        self.standardize = standardize

    def value(self, teacher: tf.Tensor, student: tf.Tensor, activation: str, y: Any, sample_weight: Any) -> tf.Tensor:
        formula = _formulas.divergence if activation == "softmax" else _formulas.binary_divergence
        if self.standardize:
            teacher, student = (_formulas.standardized(logits) for logits in _formulas.pair(teacher, student))
        return _formulas.mean(formula(teacher, student, self.temperature), sample_weight)


@serializable
class DecoupledKD(LogitLoss):
    """Decoupled knowledge distillation (DKD): the right class and the other classes are weighted apart.

        loss = mean over the batch of  T^2 * (target * KL(b(p) || b(q)) + others * KL(p' || q'))

    b(p) = (p_y, 1 - p_y) for the label y; p' is p without class y, summing to 1. In `Logits` what a
    confident teacher (p_y near 1) knows about the other classes has almost no weight; here its weight is `others`.

    Args:
      temperature: T > 0.
      target: weight of the part about the right class, >= 0.
      others: weight of the part about the other classes, >= 0. With 8 start the term with a warm-up of its weight.
      from_logits, output: see `Logits`.

    Call:
      y: class numbers or one-hot; without labels the teacher's most probable class takes their place.

    Raises:
      ValueError: an argument is out of range, or the outputs do not fit; see `Logits`.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[2.0, 1.0, 0.0]]), np.array([[2.0, 0.0, 1.0]])
      >>> round(float(DecoupledKD(temperature=1.0).compute_loss(teacher, student, y=np.array([0]))), 4)
      3.6969

    Reference:
      Zhao et al.: Decoupled Knowledge Distillation (2022). https://arxiv.org/abs/2203.08679
    """

    @checked(temperature=POSITIVE, target=WEIGHT, others=WEIGHT, from_logits=FLAG, output=OUTPUT)
    def __init__(self, temperature: float = 4.0, *, target: float = 1.0, others: float = 8.0,
                 from_logits: bool | None = None, output: Key = None) -> None:
        super().__init__(None, from_logits, output)
        self.temperature, self.target, self.others = temperature, target, others

    def value(self, teacher: tf.Tensor, student: tf.Tensor, activation: str, y: Any, sample_weight: Any) -> tf.Tensor:
        label = tf.argmax(teacher, -1) if y is None else _class_numbers(y, student)
        target, others = _formulas.decoupled(teacher, student, label, self.temperature)
        return _formulas.mean(self.target * target + self.others * others, sample_weight)


@serializable
class DIST(LogitLoss):
    """DIST: correlation of predictions within examples and within classes, in place of equality.

        loss = T^2 * (between * mean_b (1 - r(p_b, q_b)) + within * mean_c (1 - r(p_c, q_c)))

    r is Pearson's correlation: of one example's classes (p_b), and of one class over the batch (p_c). Made for teachers
    that are much stronger than the student. The batch is the one of all replicas.

    Args:
      temperature: T > 0.
      between: weight of the relation between classes, >= 0.
      within: weight of the relation between examples within a class, >= 0.
      from_logits, output: see `Logits`.

    Raises:
      ValueError: an argument is out of range, or the outputs do not fit; see `Logits`.

    Example:
      >>> import numpy as np
      >>> teacher = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
      >>> round(float(DIST().compute_loss(teacher, teacher)), 4)
      0.0

    Reference:
      Huang et al.: Knowledge Distillation from A Stronger Teacher (2022). https://arxiv.org/abs/2205.10536
    """

    @checked(temperature=POSITIVE, between=WEIGHT, within=WEIGHT, from_logits=FLAG, output=OUTPUT)
    def __init__(self, temperature: float = 1.0, *, between: float = 1.0, within: float = 1.0,
                 from_logits: bool | None = None, output: Key = None) -> None:
        super().__init__(None, from_logits, output)
        self.temperature, self.between, self.within = temperature, between, within

    def value(self, teacher: tf.Tensor, student: tf.Tensor, activation: str, y: Any, sample_weight: Any) -> tf.Tensor:
        require(len(student.shape) == 2, "distill.DIST relates outputs of shape (batch, classes)", shape=student.shape)
        p, q = (tf.nn.softmax(logits / self.temperature) for logits in _formulas.pair(teacher, student))
        between = _formulas.mean(1 - _formulas.correlation(p, q, -1), sample_weight)
        weight = None if sample_weight is None else tf.reshape(tf.cast(sample_weight, q.dtype), (-1, 1))
        p, q, weight = (_formulas.all_replicas(x) for x in (p, q, weight))
        within = tf.reduce_mean(1 - _formulas.correlation(p, q, 0, weight))
        return self.temperature ** 2 * (self.between * between + self.within * within)


@serializable
class Values(OutputLoss):
    """Regression distillation: mean squared error, or Huber's, between outputs that are numbers.

        loss = mean over the batch and all numbers of an output of  l(student - teacher),
        l(d) = d^2,   or with `delta`   d^2 / 2 up to |d| = delta, and delta * (|d| - delta / 2) beyond

    Outputs are compared as the models give them, whatever they end in.

    Args:
      delta: None for the squared error; else the difference > 0, in units of the output, from which on the error grows
        linearly, so that single far-off predictions of the teacher do not dominate.
      output: for models with several outputs a key, an index or a name. None for all that no other loss takes.

    Raises:
      ValueError: an argument is out of range, or the outputs have different shapes.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[1.0], [5.0]]), np.array([[2.0], [2.0]])
      >>> float(Values().compute_loss(teacher, student)), float(Values(delta=1.0).compute_loss(teacher, student))
      (5.0, 1.5)

    Reference:
      Saputra et al.: Distilling Knowledge From a Deep Pose Regressor Network (2019). https://arxiv.org/abs/1908.00858
    """

    @checked(delta=POSITIVE, output=OUTPUT)
    def __init__(self, delta: float | None = None, *, output: Key = None) -> None:
        super().__init__(output)
        self.delta = delta

    def of_tensors(self, teacher: tf.Tensor, student: tf.Tensor, y: Any, sample_weight: Any) -> tf.Tensor:
        self.require_alike(teacher.shape, student.shape)
        teacher, student = _formulas.pair(teacher, student)
        difference = student - teacher
        error = difference ** 2 if self.delta is None else _formulas.huber(difference, self.delta)
        return _formulas.mean(error, sample_weight)

    def term(self, teacher: Any, student: Any, theirs: Any, own: Any) -> Callable[..., tf.Tensor]:
        self.require_alike(theirs.shape, own.shape)
        return lambda target, predicted, y, sample_weight: self.of_tensors(
            teacher.value(target, theirs), student.value(predicted, own), y, sample_weight)


def named(loss):
    """The loss of a name such as "logits" or "decoupled_kd"; anything else as it is."""
    if not isinstance(loss, str):
        return loss
    classes = {cls.__name__.lower(): cls for cls in (Logits, DecoupledKD, DIST, Values)}
    found = classes.get(re.sub("[^a-z]", "", loss.lower()))
    require(found, "a distillation loss by name must be one of logits, decoupled_kd, dist, values", loss=loss,
            do="Losses between layers need to be told which: pass distill.Features({teacher layer: student layer}).")
    return found()


def _class_numbers(y, logits):
    """Labels as class numbers, from class numbers or one-hot."""
    y = tf.convert_to_tensor(y)
    if y.shape.rank == logits.shape.rank:
        return y[..., 0] if y.shape[-1] == 1 else tf.argmax(y, -1)
    return y
