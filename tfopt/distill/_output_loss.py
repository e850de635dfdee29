"""What losses between outputs share: which outputs they look at, and how logits are found."""

from collections.abc import Callable
from typing import Any

from .._check import TEXT, Whole, checked, require
from .._keras import ConfigFromArguments, keras, tf
from ._networks import part_of
from ._outputs import logits_of

OUTPUT = TEXT | Whole(low=0)                     # a key, an index or a name


class DistillationLoss(ConfigFromArguments, keras.distillation.DistillationLoss):
    """A loss of this module: saved by its arguments, and shown by them."""

    def __repr__(self):
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items() if value is not None)
        return f"distill.{type(self).__name__}({shown})"


class OutputLoss(DistillationLoss):
    """A loss between outputs of teacher and student: of one output, or summed over all that it fits.

    Args:
      output: a key, an index or the name of one output; None for all.
    """

    def __init__(self, output):
        self.output = output

    @checked()
    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, y: Any = None, sample_weight: Any = None,
                     **kwargs: Any) -> tf.Tensor:
        """The loss between outputs alone: logits for losses between logits, unless `from_logits=False`.

        Args:
          teacher_outputs, student_outputs: tensors of one shape (batch, ...), or both nested the same way: then those
            of `output`, or the sum over all.
          y: labels, for the losses that use them, nested as the outputs.
          sample_weight: None or (batch,).
          **kwargs: ignored.

        Returns:
          A scalar, float32 (float64 for float64).
        """
        del kwargs
        path = () if self.output is None else (self.output,)
        pairs = [keras.tree.flatten_with_path(part_of(side, path)) for side in (teacher_outputs, student_outputs)]
        require(len(pairs[0]) == len(pairs[1]), "teacher and student must have as many outputs",
                teacher=len(pairs[0]), student=len(pairs[1]))
        return tf.add_n([self.of_tensors(*map(tf.convert_to_tensor, (teacher, student)), part_of(y, path + place),
                                         part_of(sample_weight, path + place))
                         for (_, teacher), (place, student) in zip(*pairs, strict=True)])

    def of_tensors(self, teacher: tf.Tensor, student: tf.Tensor, y: Any, sample_weight: Any) -> tf.Tensor:
        """The loss between two tensors as they are."""
        raise NotImplementedError

    def fits(self, teacher, student):
        """Can it compare this output of a teacher with this one of a student?"""
        del teacher, student
        return True

    def connect(self, teacher, student, pairs):
        """(teacher `Result`, student `Result`, y, sample_weight) -> scalar, summed over pairs of `Output`s."""
        terms = [(self.term(teacher, student, *pair), pair[1]) for pair in pairs]

        def total(target, predicted, y, sample_weight):
            return tf.add_n([term(target, predicted, *(part_of(part, output.path, output.name)
                                                    for part in (y, sample_weight))) for term, output in terms])

        return total

    def term(self, teacher: Any, student: Any, theirs: Any, own: Any) -> Callable[..., tf.Tensor]:
        """The same for one pair."""
        raise NotImplementedError

    def require_alike(self, teacher, student):
        same = len(teacher) == len(student) and all(
            a is None or b is None or a == b for a, b in zip(teacher[1:], student[1:], strict=False))
        require(same, "teacher and student must have outputs of the same shape",
                teacher=tuple(teacher), student=tuple(student), do="Give the student as many outputs as the teacher.")


class LogitLoss(OutputLoss):
    """A loss between the logits behind outputs, whether they are logits or probabilities.

    Args:
      activation: what turns the logits into probabilities; None for what the models end in.
      from_logits: what outputs are that end in nothing that can be recognized; None refuses these.
      output: see `OutputLoss`.
    """

    activations = ("softmax",)

    def __init__(self, activation, from_logits, output):
        super().__init__(output)
        self.activation, self.from_logits = activation, from_logits

    def value(self, teacher: tf.Tensor, student: tf.Tensor, activation: str, y: Any, sample_weight: Any) -> tf.Tensor:
        """The loss between logits."""
        raise NotImplementedError

    def of_tensors(self, teacher: tf.Tensor, student: tf.Tensor, y: Any, sample_weight: Any) -> tf.Tensor:
        activation = self.activation or "softmax"
        self._require_classes(teacher.shape, student.shape, activation)
        kind = activation if self.from_logits is False else "logits"
        return self.value(logits_of(teacher, kind), logits_of(student, kind), activation, y, sample_weight)

    def fits(self, teacher, student):
        kinds = {output.kind or ("logits" if self.from_logits is not None else None) for output in (teacher, student)}
        activation = self.activation or ("sigmoid" if "sigmoid" in kinds else "softmax")
        return None not in kinds and activation in self.activations and (
            activation == "sigmoid" or student.shape[-1] != 1)

    def term(self, teacher: Any, student: Any, theirs: Any, own: Any) -> Callable[..., tf.Tensor]:
        kinds = [self._kind(side, output) for side, output in ((teacher, theirs), (student, own))]
        activation = self._activation(kinds, teacher, student)
        self._require_classes(theirs.shape, own.shape, activation)

        def term(target, predicted, y, sample_weight):
            logits = (side.logits(result, output, kind, activation) for side, result, output, kind in
                      zip((teacher, student), (target, predicted), (theirs, own), kinds, strict=True))
            return self.value(*logits, activation, y, sample_weight)

        return term

    def _kind(self, side, output):
        if output.kind is not None:
            return output.kind
        require(self.from_logits is not None,
                f"the {side.role} must end in logits, a softmax or a sigmoid to be recognized",
                last_operation=output.last, **{side.role: side.name},
                do="Say which it is: from_logits=True, or from_logits=False for probabilities; for outputs that are "
                   "numbers use distill.Values.")
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

    def _require_classes(self, teacher, student, activation):
        self.require_alike(teacher, student)
        require(len(teacher) > 1 and (activation == "sigmoid" or student[-1] != 1),
                "a softmax needs at least two classes", shape=tuple(student),
                do='Pass distill.Logits(activation="sigmoid") for a binary output, or distill.Values() for a number.')
