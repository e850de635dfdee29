"""Losses that were not written here: those of keras.distillation, and any other with the same interface."""

import inspect
import warnings

from .._check import require
from .._keras import keras, tf
from . import _formulas
from ._losses import Logits
from ._output_loss import OutputLoss


def parts_of(loss):
    """The losses between outputs that a loss of keras.distillation stands for, or None if it is of another kind."""
    if type(loss) is not keras.distillation.LogitsDistillation:
        return None
    return [_part(leaf, loss.temperature, path[0] if path else None)
            for path, leaf in keras.tree.flatten_with_path(loss.loss) if leaf is not None]


def _part(leaf, temperature, output):
    """Keras compares outputs as they are and knows no weights: the same comparison, of logits and with weights."""
    if leaf is keras.losses.kl_divergence:
        warnings.warn('keras.distillation.LogitsDistillation(loss="kl_divergence") compares logits as if they were '
                      "probabilities; the Distiller computes distill.Logits with this temperature instead.",
                      stacklevel=6)
    if leaf is keras.losses.kl_divergence or isinstance(leaf, keras.losses.KLDivergence):
        return Logits(temperature, activation="softmax", output=output)
    return _Compared(leaf, temperature, output)


class _Compared(OutputLoss):
    """Outputs divided by the temperature, compared by a loss of Keras; of probabilities the logits."""

    def __init__(self, leaf, temperature, output):
        super().__init__(output)
        self.leaf, self.temperature = leaf, temperature

    def term(self, teacher, student, theirs, own):
        self.require_alike(theirs.shape, own.shape)
        kinds = {output.kind for output in (theirs, own)} - {"logits"}
        require(len(kinds) < 2, "teacher and student must end in the same kind of output",
                teacher=theirs.kind or theirs.last, student=own.kind or own.last,
                do="Change the last activation of one, or leave it out.")
        probability = kinds.pop() if kinds else None

        def seen(side, result, output):
            if probability is None:
                return side.value(result, output)
            return side.logits(result, output, output.kind, probability)

        def term(target, predicted, y, sample_weight):
            pair = _formulas.pair(seen(teacher, target, theirs), seen(student, predicted, own))
            return _formulas.mean(_per_example(self.leaf, *(part / self.temperature for part in pair)), sample_weight)

        return term


def connect(loss, teacher, student):
    """(teacher `Result`, student `Result`, y, sample_weight) -> scalar, for losses that see whole models."""
    if teacher.model is not None:
        loss.validate_model_compatibility(teacher.model, student.model)
    if type(loss) is keras.distillation.FeatureDistillation:
        return _features(loss, teacher, student)
    return _other(loss, teacher)


def _features(loss, teacher, student):
    names = loss.teacher_layer_name, loss.student_layer_name
    shapes = [side.tap(name) for side, name in zip((teacher, student), names, strict=True) if name]
    require(len({shape[1:] for shape in shapes}) < 2, "FeatureDistillation of Keras needs features of one shape",
            shapes=shapes, do="Use distill.Features, which projects them.")

    def term(target, predicted, y, sample_weight):
        t, s = (result.features[name] if name else side.all_values(result, predicted.outputs)
                for side, result, name in zip((teacher, student), (target, predicted), names, strict=True))
        loss.validate_outputs(t, s)
        values = keras.tree.map_structure(
            lambda leaf, a, b: 0. if leaf is None else _formulas.mean(
                _per_example(leaf, _formulas.to_float(a), _formulas.to_float(b)), sample_weight), loss.loss, t, s)
        return tf.add_n(keras.tree.flatten(values))

    return term


def _per_example(leaf, teacher, student):
    """One value per example: a Loss object would divide by the number of replicas, which the Distiller does itself."""
    return leaf.call(teacher, student) if isinstance(leaf, keras.losses.Loss) else leaf(teacher, student)


def _other(loss, teacher):
    accepted = inspect.signature(loss.compute_loss).parameters

    def term(target, predicted, y, sample_weight):
        require(sample_weight is None or "sample_weight" in accepted,
                "`sample_weight` needs a distillation loss that respects it", loss=type(loss).__name__,
                do="Add `sample_weight` to the arguments of its compute_loss, or use a loss of tfopt.distill.")
        extra = {name: value for name, value in (("y", y), ("sample_weight", sample_weight)) if name in accepted}
        given = teacher.all_values(target, predicted.outputs)
        loss.validate_outputs(given, predicted.outputs)
        value = tf.convert_to_tensor(loss.compute_loss(given, predicted.outputs, **extra))
        require(value.shape.rank == 0, "a distillation loss must be a scalar", loss=type(loss).__name__,
                shape=tuple(value.shape), do="Take the mean over the batch.")
        return value

    return term
