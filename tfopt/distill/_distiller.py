"""The training step: a student learns from labels and from a teacher at once."""

import math

from .. import _models
from .._check import require, require_number
from .._keras import forget_compiled, keras, loss_tracker, serializable, task_loss, tf
from . import _borrowed
from ._outputs import Remembered, Side, inputs_of, run
from ._teachers import MovingAverage, recall


class _Hidden:
    """Holds what Keras must not track: a teacher's variables, penalties and flags are not the distiller's."""

    def __init__(self, **held):
        self.__dict__.update(held)


@serializable
class Distiller(keras.Model):
    """Trains a student on its labels and on what a teacher answers.

        loss = student_loss_weight * task loss + (1 - student_loss_weight) * sum_i loss_weights_i * losses_i
             + penalties of the student

    Without a loss in `compile` the teacher alone teaches, `loss = sum_i loss_weights_i * losses_i`, without labels.
    `fit` trains the student's own variables; `evaluate` and `predict` are the student's; logs report the loss and its
    parts. The teacher runs in inference mode, gets no gradient, and neither model's flags or compile state change.
    `sample_weight` weights both terms. Under a strategy every term is divided by the number of replicas, as Keras does.

    Args:
      teacher: a built keras.Model; a list of them, whose losses are averaged (for `Logits` that has the gradient of
        the mean of their softened answers); `MovingAverage()`, the student's own past; or None for remembered answers,
        which come with the data, see `remember`.
      student: a built keras.Model with outputs of the teacher's shape. Outputs may be logits or probabilities: the loss
        finds the logits behind a softmax or a sigmoid, and refuses outputs of an unknown kind.
      losses: a loss of `tfopt.distill` or `keras.distillation`, or a list of them.
      loss_weights: for each loss a number >= 0, or a learning-rate schedule of them over optimizer steps. None: 1.
      student_loss_weight: the share of the task loss, 0 to 1. With 1 the teacher does not run.
      name: the model's name.

    Call:
      As the student. With remembered answers `y` of `fit` is {"y": labels, "teacher": answers}.

    Raises:
      ValueError: a model is not built, teacher and student do not fit each other or a loss, a weight is out of range.
      FloatingPointError: the loss is not finite at the end of an epoch.

    Example:
      >>> import numpy as np
      >>> from tfopt import distill
      >>> keras.utils.set_random_seed(0)
      >>> def dense(units):
      ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(3)])
      >>> distiller = distill.Distiller(dense(32), dense(4), distill.Logits(temperature=4.0))
      >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
      >>> x, y = np.random.normal(size=(8, 4)), np.array([0, 1, 2, 0, 1, 2, 0, 1])
      >>> sorted(distiller.fit(x, y, verbose=0).history)
      ['accuracy', 'distillation_loss', 'loss', 'student_loss']
      >>> distiller.student.count_params()
      35

    Reference:
      Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015). https://arxiv.org/abs/1503.02531
    """

    def __init__(self, teacher, student, losses, *, loss_weights=None, student_loss_weight=0.5, name="distiller"):
        _models.require_model(student, "distill.Distiller")
        models = [] if isinstance(teacher, MovingAverage | None) else _as_list(teacher)
        for model in models:
            _models.require_model(model, "distill.Distiller")
            require(model is not student, "teacher and student must be two models", teacher=model.name,
                    do="Pass distill.MovingAverage() for a student that teaches itself.")
        require(models or not isinstance(teacher, list | tuple), "`teacher` must hold at least one model",
                teacher=teacher)
        losses = _as_list(losses)
        weights = [1.] * len(losses) if loss_weights is None else _as_list(loss_weights)
        _require_losses(losses, weights)
        require_number("student_loss_weight", student_loss_weight, low=0, high=1)
        with _models.scope_of(student):
            super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
            if isinstance(teacher, MovingAverage):
                models = [teacher.start(student)]
            self._student_loss = keras.metrics.Mean(name="student_loss")
            self._distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.student = student
        self.student_loss_weight = student_loss_weight
        self.projectors = []
        inputs = inputs_of(student, *models)
        learner = Side(student, "student", inputs)
        sides = [Side(model, "teacher", inputs) for model in models] or [Remembered(learner)]
        with _models.scope_of(student):
            terms = [[_borrowed.connect(loss, side, learner, self._projector) for side in sides] for loss in losses]
        self._hidden = _Hidden(given=teacher, models=models, losses=losses, weights=weights, terms=terms,
                               sides=sides, student=learner)
        self.built = True

    @property
    def teacher(self):
        """The teacher or teachers; saved with the distiller, and not counted among its variables."""
        models = self._hidden.models
        return models if len(models) > 1 else models[0] if models else None

    def _projector(self, channels, shape):
        layer = keras.layers.Dense(channels, name=f"projector_{len(self.projectors)}", dtype=self.variable_dtype,
                                   kernel_initializer=keras.initializers.GlorotUniform(len(self.projectors)))
        layer.build(shape)
        self.projectors.append(layer)
        return layer

    @property
    def output_names(self):
        """The student's, so that losses and metrics may be given by name."""
        return self.student.output_names

    def call(self, inputs, training=None):
        return run(self.student, inputs, training)

    def compile(self, *args, **kwargs):
        """As keras.Model.compile. Without a `loss` only the teacher teaches."""
        forget_compiled(self)
        super().compile(*args, **kwargs)

    def compile_from_config(self, config):
        """As keras.Model.compile_from_config, which would leave a model with its own `compile` uncompiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, *args, **kwargs):
        """As keras.Model.fit; stops with one sentence at the end of an epoch whose loss is not finite."""
        dropped = kwargs.get("sample_weight") is not None and len(args) < 2 and kwargs.get("y") is None
        require(not dropped, "Keras drops a `sample_weight` that comes without labels", y=None,
                do="Pass any `y` of the same length with it.")
        callbacks = kwargs.pop("callbacks", None)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(_Finite())
        else:
            callbacks = [*_as_list(callbacks or []), _Finite()]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        taught = self._ask_teachers(x, y)
        require(taught or (self.student_loss_weight == 1 and self.loss is not None),
                "without a teacher the data must bring its answers", y=type(y).__name__,
                do="Pass the data set that distill.cache_teacher returns.")
        with tf.GradientTape() as tape:
            learnt = self._hidden.student(x, training=True)
            loss = self._training_loss(taught, learnt, y, sample_weight, count=_length(x))
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        require(variables, "the student must have something to train", student=self.student.name,
                do="Set `trainable = True` on its layers.")
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        if isinstance(self._hidden.given, MovingAverage):
            self._hidden.given.follow(self.teacher, self.student)
        logs = self.compute_metrics(x, y, learnt.outputs, sample_weight=sample_weight)
        unused = ["student_loss"] if self.loss is None else ["distillation_loss"] if taught is None else []
        return {name: value for name, value in logs.items() if name not in unused}

    def test_step(self, data):
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        measured = self.loss is not None or self._is_taught(y)
        unused = ["student_loss", "distillation_loss", *([] if measured else ["loss"])]
        logs = {name: value for name, value in super().test_step(data).items() if name not in unused}
        require(logs, "`evaluate` needs something to measure",
                do="Compile a loss or metrics, or pass remembered answers.")
        return logs

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, self._labels(y), y_pred, sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of one batch: of distillation when training, the student's own task loss otherwise."""
        if not training and self.loss is None and not self._is_taught(y):
            return tf.zeros(())
        if training or self.loss is None:
            learnt = self._hidden.student(x, training=training)
            return self._training_loss(self._ask_teachers(x, y), learnt, y, sample_weight, count=_length(x))
        return super().compute_loss(x, self._labels(y), y_pred, sample_weight)

    def _labels(self, y):
        remembered = not self._hidden.models and isinstance(y, dict) and "teacher" in y
        return y.get("y") if remembered else y

    def _is_taught(self, y):
        return (self.student_loss_weight < 1 or self.loss is None) and (
            bool(self._hidden.models) or (isinstance(y, dict) and "teacher" in y))

    def _ask_teachers(self, x, y):
        """A `Result` of each teacher, or None where none is needed or there."""
        if not self._is_taught(y):
            return None
        if self._hidden.models:
            return [side(x, training=False) for side in self._hidden.sides]
        return [recall(y["teacher"], self._hidden.student, self._hidden.losses)]

    def _training_loss(self, taught, learnt, y, sample_weight, count):
        """Everything is a mean over this replica's examples, divided by the number of replicas."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        share, parts, labels = 0., [], self._labels(y)
        if self.loss is not None:
            require(labels is not None, "the compiled loss needs labels", y=labels,
                    do="Pass them to `fit`, or compile without a loss to learn from the teacher alone.")
            task = tf.cast(task_loss(self, labels, learnt.outputs, sample_weight), self.variable_dtype)
            self._student_loss.update_state(task * replicas, sample_weight=count)
            share = self.student_loss_weight
            parts.append(share * task)
        if taught is not None:
            values = [[tf.cast(term(result, learnt, labels, sample_weight), self.variable_dtype)
                       for term, result in zip(terms, taught, strict=True)] for terms in self._hidden.terms]
            distillation = tf.add_n([self._now(weight) * tf.add_n(of_teachers) / len(of_teachers)
                                     for weight, of_teachers in zip(self._hidden.weights, values, strict=True)])
            self._distillation_loss.update_state(distillation, sample_weight=count)
            parts.append((1 - share) * distillation / replicas)
        parts += [tf.cast(tf.reduce_sum(penalty), self.variable_dtype) / replicas for penalty in self.losses]
        loss = tf.add_n(parts)
        loss_tracker(self).update_state(loss * replicas, sample_weight=count)
        return loss

    def _now(self, weight):
        """A weight's value at this step."""
        if isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
            return tf.cast(weight(self.optimizer.iterations), self.variable_dtype)
        return weight

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {"teacher": serialize(self._hidden.given), "student": serialize(self.student),
                "losses": serialize(self._hidden.losses), "loss_weights": serialize(self._hidden.weights),
                "student_loss_weight": self.student_loss_weight, "name": self.name}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls(deserialize(config["teacher"]), deserialize(config["student"]),
                   deserialize(config["losses"]), loss_weights=deserialize(config["loss_weights"]),
                   student_loss_weight=config["student_loss_weight"], name=config["name"])


class _Finite(keras.callbacks.Callback):
    """Stops a run whose loss is not a number, and says which part was lost."""

    def on_epoch_end(self, epoch, logs=None):
        parts = {name: float(value) for name, value in (logs or {}).items() if name.endswith("loss")}
        require(math.isfinite(parts.get("loss", 0.)), f"the loss must stay finite, and it did not in epoch {epoch + 1}",
                error=FloatingPointError, **parts,
                do="Lower the learning rate, or look for infinite values in the data and the teacher's answers.")


def _as_list(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def _require_losses(losses, weights):
    require(losses, "`losses` must hold at least one distillation loss", losses=losses, do="Pass distill.Logits().")
    for loss in losses:
        require(isinstance(loss, keras.distillation.DistillationLoss), "`losses` must be distillation losses",
                loss=loss, do="Pass distill.Logits(), or a subclass of keras.distillation.DistillationLoss.",
                error=TypeError)
    require(len(weights) == len(losses), "`loss_weights` must hold one number for each loss", weights=weights,
            losses=len(losses))
    for weight in weights:
        if not isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
            require_number("loss_weights", weight, low=0)
    require(any(weights), "one of the `loss_weights` must be > 0", weights=weights,
            do="Pass student_loss_weight=1 to train without the teacher.")


def _length(x):
    return tf.shape(keras.tree.flatten(x)[0])[0]
