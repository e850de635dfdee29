"""Losses between the answers of teacher and student."""

from .._check import require, require_number
from .._keras import keras, serializable, tf
from . import _formulas
from ._outputs import logits_of


class AnswerLoss(keras.distillation.DistillationLoss):
    """What losses between logits share: which output they look at, and how its logits are found."""

    activations = ("softmax",)

    def __init__(self, activation, from_logits, output):
        require(activation is None or activation in self.activations,
                f"`activation` must be None or one of {', '.join(self.activations)}", activation=activation)
        require(from_logits in (None, True, False), "`from_logits` must be None, True or False",
                from_logits=from_logits)
        require(output is None or isinstance(output, str | int), "`output` must be None, a key or an index",
                output=output)
        self.activation, self.from_logits, self.output = activation, from_logits, output

    def compute_loss(self, teacher_outputs, student_outputs, y=None, sample_weight=None, **kwargs):
        """The loss between two outputs alone: logits, or probabilities if `from_logits=False`.

        Args:
          teacher_outputs, student_outputs: tensors of one shape (batch, ..., classes), or both nested the same way
            if `output` names one.
          y: labels, for the losses that use them.
          sample_weight: None or (batch,).
          **kwargs: ignored.

        Returns:
          A scalar, float32 (float64 for float64).
        """
        del kwargs
        teacher, student = (self._own(outputs) for outputs in (teacher_outputs, student_outputs))
        require(not keras.tree.is_nested(student), "several outputs need to be told apart", output=self.output,
                do="Pass `output`, one loss for each.")
        teacher, student = tf.convert_to_tensor(teacher), tf.convert_to_tensor(student)
        activation = self.activation or "softmax"
        self._require_alike(teacher.shape, student.shape, activation)
        kind = activation if self.from_logits is False else "logits"
        return self.value(logits_of(teacher, kind), logits_of(student, kind), activation, self._own(y),
                          self._own(sample_weight))

    def value(self, teacher, student, activation, y, sample_weight):
        """The loss between logits."""
        raise NotImplementedError

    def connect(self, teacher, student, own):
        """(teacher `Result`, student `Result`, y, sample_weight) -> scalar, for two `Side`s."""
        answers = teacher.answer(self.output), student.answer(self.output)
        kinds = [self._kind(side, answer) for side, answer in zip((teacher, student), answers, strict=True)]
        activation = self._activation(kinds, teacher, student)
        self._require_alike(*(answer.shape for answer in answers), activation)

        def term(taught, learnt, y, sample_weight):
            logits = (logits_of(result.at(answer.path), kind)
                      for result, answer, kind in zip((taught, learnt), answers, kinds, strict=True))
            return self.value(*logits, activation, self._own(y), self._own(sample_weight))

        return term

    def _own(self, nested):
        return nested[self.output] if self.output is not None and keras.tree.is_nested(nested) else nested

    def _kind(self, side, answer):
        if answer.kind is not None:
            return answer.kind
        require(self.from_logits is not None,
                f"the {side.role} must end in logits, a softmax or a sigmoid to be recognised",
                last_operation=answer.last, **{side.role: side.name},
                do="Say which it is: from_logits=True, or from_logits=False for probabilities.")
        return "logits" if self.from_logits else self.activation or "softmax"

    def _activation(self, kinds, teacher, student):
        found = {kind for kind in kinds if kind != "logits"} | ({self.activation} if self.activation else set())
        require(len(found) < 2, "teacher and student must end in the same kind of probability",
                teacher=f"{teacher.name} ends in {kinds[0]}", student=f"{student.name} ends in {kinds[1]}",
                activation=self.activation, do="Change the last activation of one, or leave it out.")
        activation = found.pop() if found else "softmax"
        require(activation in self.activations, f"distill.{type(self).__name__} works between classes that exclude "
                "each other", activation=activation, do="Use distill.Logits for independent labels.")
        return activation

    def _require_alike(self, teacher, student, activation):
        same = len(teacher) == len(student) and all(
            a is None or b is None or a == b for a, b in zip(teacher[1:], student[1:], strict=False))
        require(same, "teacher and student must answer in the same shape",
                teacher=tuple(teacher), student=tuple(student), do="Give the student as many outputs as the teacher.")
        require(len(teacher) > 1 and (activation == "sigmoid" or student[-1] != 1),
                "a softmax needs at least two classes", shape=tuple(student),
                do='Pass activation="sigmoid" for a binary answer.')

    def get_config(self):
        return {"from_logits": self.from_logits, "output": self.output}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@serializable
class Logits(AnswerLoss):
    """The student learns the teacher's softened answers.

        loss = mean over the batch of  T^2 * sum_c p_c * log(p_c / q_c),
        p = softmax(teacher / T), q = softmax(student / T)

    T^2 keeps the size of the gradient, so that `student_loss_weight` means the same for every temperature. With
    independent labels (sigmoid) the sum runs over labels, each a two-class answer.

    Args:
      temperature: T > 0; 1 compares the answers as they are, 3 to 5 shows the small ones, beyond 20 nothing changes.
      activation: "softmax", "sigmoid", or None: what teacher and student end in; softmax if both end in logits.
      from_logits: what outputs are that end in nothing that can be recognised: True or False. None refuses these.
        `compute_loss` called alone takes outputs for logits unless this is False.
      output: the output of models with several: a key or an index. None for the only one.
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

    def __init__(self, temperature=4.0, *, activation=None, from_logits=None, output=None, standardize=False):
        require_number("temperature", temperature, above=0)
        super().__init__(activation, from_logits, output)
        self.temperature = temperature
        self.standardize = bool(standardize)

    def value(self, teacher, student, activation, y, sample_weight):
        formula = _formulas.divergence if activation == "softmax" else _formulas.binary_divergence
        if self.standardize:
            teacher, student = (_formulas.standardized(logits) for logits in _formulas.pair(teacher, student))
        return _formulas.mean(formula(teacher, student, self.temperature), sample_weight)

    def get_config(self):
        return {"temperature": self.temperature, "activation": self.activation, "standardize": self.standardize,
                **super().get_config()}


@serializable
class DecoupledKD(AnswerLoss):
    """The answer on the right class and the answers among the wrong ones, weighted apart (DKD).

        loss = mean over the batch of  T^2 * (target * KL(b(p) || b(q)) + others * KL(p' || q'))

    b(p) = (p_y, 1 - p_y) for the label y; p' is p without class y, summing to 1. In `Logits` a sure teacher (p_y near
    1) silences what it knows about the wrong classes; here `others` sets it free.

    Args:
      temperature: T > 0.
      target: weight of the part about the right class, >= 0.
      others: weight of the part about the other classes, >= 0. With 8 start the term with a warm-up of its weight.
      from_logits, output: see `Logits`.

    Call:
      y: class numbers or one-hot; without labels the teacher's first choice takes their place.

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

    def __init__(self, temperature=4.0, *, target=1.0, others=8.0, from_logits=None, output=None):
        require_number("temperature", temperature, above=0)
        require_number("target", target, low=0)
        require_number("others", others, low=0)
        super().__init__(None, from_logits, output)
        self.temperature, self.target, self.others = temperature, target, others

    def value(self, teacher, student, activation, y, sample_weight):
        label = tf.argmax(teacher, -1) if y is None else _class_numbers(y, student)
        target, others = _formulas.decoupled(teacher, student, label, self.temperature)
        return _formulas.mean(self.target * target + self.others * others, sample_weight)

    def get_config(self):
        return {"temperature": self.temperature, "target": self.target, "others": self.others, **super().get_config()}


@serializable
class DIST(AnswerLoss):
    """The student need only rank as the teacher does: correlations in place of equality (DIST).

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

    def __init__(self, temperature=1.0, *, between=1.0, within=1.0, from_logits=None, output=None):
        require_number("temperature", temperature, above=0)
        require_number("between", between, low=0)
        require_number("within", within, low=0)
        super().__init__(None, from_logits, output)
        self.temperature, self.between, self.within = temperature, between, within

    def value(self, teacher, student, activation, y, sample_weight):
        require(len(student.shape) == 2, "distill.DIST relates answers of shape (batch, classes)", shape=student.shape)
        p, q = (tf.nn.softmax(logits / self.temperature) for logits in _formulas.pair(teacher, student))
        between = _formulas.mean(1 - _formulas.correlation(p, q, -1), sample_weight)
        weight = None if sample_weight is None else tf.reshape(tf.cast(sample_weight, q.dtype), (-1, 1))
        p, q, weight = (_formulas.all_replicas(x) for x in (p, q, weight))
        within = tf.reduce_mean(1 - _formulas.correlation(p, q, 0, weight))
        return self.temperature ** 2 * (self.between * between + self.within * within)

    def get_config(self):
        return {"temperature": self.temperature, "between": self.between, "within": self.within,
                **super().get_config()}


def _class_numbers(y, logits):
    """Labels as class numbers, from class numbers or one-hot."""
    y = tf.convert_to_tensor(y)
    if y.shape.rank == logits.shape.rank:
        return y[..., 0] if y.shape[-1] == 1 else tf.argmax(y, -1)
    return y
