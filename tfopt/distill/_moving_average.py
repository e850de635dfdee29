"""A teacher that is no other model: the moving average of the student itself."""

from .. import _models
from .._check import Number, checked
from .._keras import ConfigFromArguments, keras, serializable, tf


@serializable
class MovingAverage(ConfigFromArguments):
    """Mean teacher: the moving average of the student's own variables is the teacher.

        teacher <- momentum * teacher + (1 - momentum) * student       after every step, for every variable

    Args:
      momentum: 0 to 1 (exclusive). 0.99 averages over some 100 steps, 0.999 over some 1000.

    Raises:
      ValueError: `momentum` is out of range; the student is no functional or Sequential model.

    Example:
      >>> import keras
      >>> from tfopt import distill
      >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
      >>> distiller = distill.Distiller(distill.MovingAverage(0.99), student, distill.Logits())
      >>> distiller.teacher is student
      False

    Reference:
      Tarvainen, Valpola: Mean Teachers are Better Role Models (2017). https://arxiv.org/abs/1703.01780
    """

    @checked(momentum=Number(low=0, below=1))
    def __init__(self, momentum: float = 0.999) -> None:
        self.momentum = momentum

    def start(self, student: keras.Model) -> keras.Model:
        """The teacher at the beginning: a copy of the student."""
        _models.require_graph(student, "distill.MovingAverage")
        return _models.copy(student)

    def follow(self, teacher: keras.Model, student: keras.Model) -> None:
        """Updates the average after a training step, on any number of replicas."""
        pairs = [(mine.value, theirs.value) for mine, theirs in zip(teacher.variables, student.variables, strict=True)
                 if theirs.dtype.startswith(("float", "bfloat"))]

        def update(strategy):
            for mine, theirs in pairs:
                strategy.extended.update(mine, lambda v, new: v.assign_sub((1 - self.momentum) * (v - new)), (theirs,))

        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            context.merge_call(update)
        else:
            for mine, theirs in pairs:
                mine.assign_sub((1 - self.momentum) * (mine - theirs))
