"""From the losses a user names to functions of what teacher and student computed."""

from .._check import require
from . import _keras_losses
from ._features import FeatureLoss
from ._losses import Values, named
from ._output_loss import OutputLoss


def resolved(losses):
    """The list of losses that a loss, a name, a list of them, or a dict by output stands for."""
    if isinstance(losses, dict):
        return [_for_output(named(loss), output) for output, loss in losses.items()]
    losses = list(losses) if isinstance(losses, list | tuple) else [losses]
    return [named(loss) for loss in losses]


def _for_output(loss, output):
    require(isinstance(loss, OutputLoss) and loss.output in (None, output), "a dict of `losses` must hold a loss "
            "between outputs for each key", output=output, loss=loss, do='Pass {"output name": distill.Logits()}.')
    return type(loss).from_config({**loss.get_config(), "output": output})


def connect(losses, teacher, student, own):
    """For each loss (teacher `Result`, student `Result`, y, sample_weight) -> scalar.

    Args:
      losses: distillation losses of whatever origin.
      teacher: a `Network` or a `Cache`.
      student: a `Network`.
      own: (channels, shape) -> a projector of features of this shape, owned by the distiller.
    """
    parts = [_keras_losses.parts_of(loss) or [loss] for loss in losses]
    between = [loss for group in parts for loss in group if isinstance(loss, OutputLoss)]
    chosen = _assigned(between, teacher, student) if between else {}
    terms = []
    for group in parts:
        made = []
        for loss in group:
            if isinstance(loss, OutputLoss):
                made.append(loss.connect(teacher, student, chosen[id(loss)]))
            elif isinstance(loss, FeatureLoss):
                made.append(loss.connect(teacher, student, own))
            else:
                made.append(_keras_losses.connect(loss, teacher, student))
        terms.append(lambda *batch, made=made: sum(term(*batch) for term in made))
    return terms


def _assigned(losses, teacher, student):
    """{id of a loss: pairs of outputs it compares}."""
    pairs = _pairs(teacher.outputs, student.outputs)
    chosen = {}
    for loss in losses:
        if loss.output is not None:
            chosen[id(loss)] = [_named(loss.output, pairs)]
        elif len(pairs) == 1 or not any(loss.fits(*pair) for pair in pairs):
            chosen[id(loss)] = pairs                                            # which refuses in its own words
        elif not isinstance(loss, Values):
            chosen[id(loss)] = [pair for pair in pairs if loss.fits(*pair)]
    left = [pair for pair in pairs if not any(pair in taken for taken in chosen.values())]
    for loss in losses:
        chosen.setdefault(id(loss), left or pairs)
    covered = [own for taken in chosen.values() for _, own in taken]
    left = [own.key for own in student.outputs if own not in covered]
    require(not left or all(loss.output is not None for loss in losses),
            "every output needs a distillation loss that fits it, or `losses` name those that have one", without=left,
            do="Add distill.Values() for outputs that are numbers, or pass a dict such as "
               f"{ {own.key: 'values' if own.key in left else 'logits' for _, own in pairs} }.")
    return chosen


def _pairs(teacher, student):
    """[(output of the teacher, output of the student)] that belong together."""
    if len(teacher) == len(student) == 1:
        return [(teacher[0], student[0])]
    by_path = {output.path: output for output in teacher}
    pairs = [(by_path[output.path], output) for output in student if output.path in by_path]
    require(pairs, "teacher and student must nest their outputs alike", teacher=[output.key for output in teacher],
            student=[output.key for output in student], do="Give the student the outputs of the teacher.")
    return pairs


def _named(output, pairs):
    found = [pair for pair in pairs if output in (pair[1].key, pair[1].name)]
    require(found and output is not None, "`output` must be the key or the index of one output of both models, or its "
            "name", output=output, do=f"Choose one of {[pair[1].key for pair in pairs]}.")
    return found[0]


