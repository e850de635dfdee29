"""Losses that were not written here: those of keras.distillation, and any other with the same interface."""

import inspect
import warnings

from .._check import require
from .._keras import keras, tf
from . import _formulas
from ._features import FeatureLoss
from ._losses import AnswerLoss, Logits


def connect(loss, teacher, student, own):
    """(teacher `Result`, student `Result`, y, sample_weight) -> scalar, for any distillation loss.

    Args:
      loss: a distillation loss of whatever origin.
      teacher, student: a `Side` each.
      own: (channels, shape) -> a projector of features of this shape, owned by the distiller.
    """
    if isinstance(loss, AnswerLoss | FeatureLoss):
        return loss.connect(teacher, student, own)
    if teacher.model is not None:
        loss.validate_model_compatibility(teacher.model, student.model)
    if type(loss) is keras.distillation.LogitsDistillation:
        return _logits(loss, teacher, student)
    if type(loss) is keras.distillation.FeatureDistillation:
        return _features(loss, teacher, student)
    return _other(loss)


def _logits(loss, teacher, student):
    """Keras hands the outputs over as they are and knows no weights: the same comparison, done right."""
    terms = []
    for path, leaf in keras.tree.flatten_with_path(loss.loss):
        if leaf is None:
            continue
        output = path[0] if path else None
        if leaf is keras.losses.kl_divergence:
            warnings.warn('keras.distillation.LogitsDistillation(loss="kl_divergence") compares logits as if they were '
                          "probabilities; the Distiller computes distill.Logits with this temperature instead.",
                          stacklevel=5)
        if leaf is keras.losses.kl_divergence or isinstance(leaf, keras.losses.KLDivergence):
            right = Logits(loss.temperature, activation="softmax", output=output)
        else:
            right = _Compared(leaf, loss.temperature, output)
        terms.append(right.connect(teacher, student, None))
    return lambda *batch: tf.add_n([term(*batch) for term in terms])


class _Compared(AnswerLoss):
    """Softened logits compared by another loss of Keras."""

    activations = ("softmax", "sigmoid")

    def __init__(self, leaf, temperature, output):
        super().__init__(None, None, output)
        self.leaf, self.temperature = leaf, temperature

    def value(self, teacher, student, activation, y, sample_weight):
        teacher, student = (logits / self.temperature for logits in _formulas.pair(teacher, student))
        return _formulas.mean(_per_example(self.leaf, teacher, student), sample_weight)


def _features(loss, teacher, student):
    names = loss.teacher_layer_name, loss.student_layer_name
    shapes = [side.tap(name) for side, name in zip((teacher, student), names, strict=True) if name]
    require(len({shape[1:] for shape in shapes}) < 2, "FeatureDistillation of Keras needs features of one shape",
            shapes=shapes, do="Use distill.Features, which projects them.")

    def term(taught, learnt, y, sample_weight):
        t, s = (side.features[name] if name else side.outputs
                for side, name in zip((taught, learnt), names, strict=True))
        loss.validate_outputs(t, s)
        values = keras.tree.map_structure(
            lambda leaf, a, b: 0. if leaf is None else _formulas.mean(
                _per_example(leaf, _formulas.to_float(a), _formulas.to_float(b)), sample_weight), loss.loss, t, s)
        return tf.add_n(keras.tree.flatten(values))

    return term


def _per_example(leaf, teacher, student):
    """One value per example: a Loss object would divide by the number of replicas, which the Distiller does itself."""
    return leaf.call(teacher, student) if isinstance(leaf, keras.losses.Loss) else leaf(teacher, student)


def _other(loss):
    accepted = inspect.signature(loss.compute_loss).parameters

    def term(taught, learnt, y, sample_weight):
        require(sample_weight is None or "sample_weight" in accepted,
                "`sample_weight` needs a distillation loss that respects it", loss=type(loss).__name__,
                do="Add `sample_weight` to the arguments of its compute_loss, or use a loss of tfopt.distill.")
        extra = {name: value for name, value in (("y", y), ("sample_weight", sample_weight)) if name in accepted}
        loss.validate_outputs(taught.outputs, learnt.outputs)
        value = tf.convert_to_tensor(loss.compute_loss(taught.outputs, learnt.outputs, **extra))
        require(value.shape.rank == 0, "a distillation loss must be a scalar", loss=type(loss).__name__,
                shape=tuple(value.shape), do="Take the mean over the batch.")
        return value

    return term
