"""Teachers that are no other model: the student's own past, and answers that were written down."""

from .. import _models
from .._check import require, require_number
from .._keras import serializable, tf
from ._outputs import Result


@serializable
class MovingAverage:
    """The student's own moving average as its teacher (mean teacher).

        teacher <- momentum * teacher + (1 - momentum) * student       after every step, for every variable

    Args:
      momentum: 0 to 1 (exclusive). 0.99 remembers some 100 steps, 0.999 some 1000.

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

    def __init__(self, momentum=0.999):
        require_number("momentum", momentum, low=0, below=1)
        self.momentum = momentum

    def start(self, student):
        """The teacher at the beginning: a copy of the student."""
        _models.require_graph(student, "distill.MovingAverage")
        return _models.copy(student)

    def follow(self, teacher, student):
        """One step towards the student, in a training step on any number of replicas."""
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

    def get_config(self):
        return {"momentum": self.momentum}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def pack(logits, kind, top):
    """What is written down of a batch of logits: {kind: {name: float16 or whole numbers}}.

    With `top`, the log-probabilities of the k first classes, and of all the others together.
    """
    if top is None:
        return {kind: {"logits": tf.cast(logits, tf.float16)}}
    classes = logits.shape[-1]
    values, indices = tf.math.top_k(tf.nn.log_softmax(logits), top)
    rest = tf.math.log(tf.maximum(-tf.math.expm1(tf.minimum(tf.reduce_logsumexp(values, -1), 0.)), 1e-30))
    whole = tf.uint8 if classes <= 256 else tf.uint16 if classes <= 65536 else tf.int32
    return {kind: {"values": tf.cast(values, tf.float16), "indices": tf.cast(indices, whole),
                   "rest": tf.cast(rest, tf.float16)}}


def unpack(answers, classes):
    """float32 logits (batch, classes) of what `pack` wrote: the classes beyond the top share their probability."""
    answers = {name: tf.convert_to_tensor(value) for name, value in answers.items()}
    if "logits" in answers:
        return tf.cast(answers["logits"], tf.float32)
    values, indices = tf.cast(answers["values"], tf.float32), tf.cast(answers["indices"], tf.int32)
    others = max(classes - values.shape[-1], 1)
    fill = tf.repeat((tf.cast(answers["rest"], tf.float32) - tf.math.log(float(others)))[:, None], classes, 1)
    rows = tf.repeat(tf.range(tf.shape(values)[0])[:, None], values.shape[-1], 1)
    return tf.tensor_scatter_nd_update(fill, tf.stack([rows, indices], -1), values)


def recall(answers, student, losses):
    """The `Result` of a teacher whose answers came with the data, as {kind: packed}."""
    (kind, packed), = answers.items()
    for loss in losses:
        answer = student.answer(getattr(loss, "output", None))
        expected = getattr(loss, "activation", None) or (answer.kind if answer.kind == "sigmoid" else "softmax")
        require(kind in ("logits", expected), "remembered answers and the student must mean the same", remembered=kind,
                student=expected, do=f'Pass activation="{kind}" to the loss.')
    return Result(unpack(packed, answer.shape[-1]), {})
