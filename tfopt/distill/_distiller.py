"""The training step: a student learns from labels and from a teacher at once."""

import contextlib
import inspect
import math
from collections.abc import Sequence
from typing import Any

from .. import _models
from .._check import MODEL, NAME, NO, Instance, ListOf, Number, OneOf, Rule, checked, require
from .._keras import compiled_as, forget_compiled, keras, loss_tracker, serializable, task_loss, tf
from ._moving_average import MovingAverage
from ._networks import Cache, Network, Result, inputs_of
from ._outputs import run
from ._terms import connect, resolved

Teacher = keras.Model | Sequence[keras.Model] | MovingAverage | None
Loss = str | keras.distillation.DistillationLoss
Losses = Loss | Sequence[Loss] | dict[str, Loss]
Weight = float | keras.optimizers.schedules.LearningRateSchedule

_WEIGHT = Number(low=0) | Instance("keras.optimizers.schedules.LearningRateSchedule", text="a learning-rate schedule")
_WEIGHTS = _WEIGHT | ListOf(_WEIGHT) | Rule("a dict of these by output", lambda value: isinstance(value, dict)
                                            and ListOf(_WEIGHT)(list(value.values())) is not NO)
_TEACHER = MODEL | Instance(MovingAverage) | OneOf(None) | ListOf(MODEL)


class _Hidden:
    """Holds what Keras must not track: a teacher's variables, penalties and flags are not the distiller's."""

    def __init__(self, **held):
        self.__dict__.update(held)


@serializable
class Distiller(keras.Model):
    """Knowledge distillation: trains a student on labels and on the outputs of a teacher.

        loss = student_loss_weight * task loss + (1 - student_loss_weight) * sum_i loss_weights_i * losses_i
             + penalties of the student

    Without a loss in `compile` the student learns from the teacher alone, `loss = sum_i loss_weights_i * losses_i`.
    `fit` trains the student's own variables; `evaluate` and `predict` are the student's; logs report the loss and its
    parts. The teacher runs in inference mode, gets no gradient, and neither model's flags or compile state change.
    `sample_weight` weights both terms. Under a strategy every term is divided by the number of replicas, as Keras does.

    A student whose class has a `train_step`, `test_step` or `compute_loss` of its own keeps it: its `compute_loss`,
    penalties included, is the task loss, and inside its `train_step` what `compute_loss` returns is the loss above.

    Args:
      teacher: a built keras.Model; a list of them, whose losses are averaged (for `Logits` that has the gradient of
        the mean of their softened predictions); `MovingAverage()` of the student; or None for outputs that come with
        the data: those of `cache_teacher`, or your own arrays of logits (numbers for `Values`), nested as the
        student's outputs, in targets {"y": labels, "teacher": outputs}.
      student: a built keras.Model with outputs of the teacher's shape. For losses between logits these may be logits or
        probabilities: the logits behind a softmax or a sigmoid are found, and outputs of an unknown kind are refused.
      losses: a loss of `tfopt.distill` or `keras.distillation`, a name ("logits", "decoupled_kd", "dist", "values"), a
        list of these, or a dict {output: loss}. A loss that names no output is for every output it fits.
      loss_weights: for each loss a number >= 0, or a learning-rate schedule of them over optimizer steps. None: 1.
      student_loss_weight: the share of the task loss, 0 to 1. With 1 the teacher does not run.
      name: the model's name.

    Call:
      As the student.

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

    @checked(teacher=_TEACHER, student=MODEL, loss_weights=_WEIGHTS, student_loss_weight=Number(low=0, high=1),
             name=NAME)
    def __init__(self, teacher: Teacher, student: keras.Model, losses: Losses, *,
                 loss_weights: Weight | Sequence[Weight] | dict[str, Weight] | None = None,
                 student_loss_weight: float = 0.5, name: str = "distiller") -> None:
        _models.require_model(student, "distill.Distiller")
        models = [] if isinstance(teacher, MovingAverage | None) else _as_list(teacher)
        for model in models:
            _models.require_model(model, "distill.Distiller")
            require(model is not student, "teacher and student must be two models", teacher=model.name,
                    do="Pass distill.MovingAverage() for self-distillation.")
        weights, losses = _weights(losses, loss_weights), resolved(losses)
        _require_losses(losses, weights)
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
        learner = Network(student, "student", inputs)
        teachers = [Network(model, "teacher", inputs) for model in models] or [Cache(learner)]
        with _models.scope_of(student):
            terms = [connect(losses, network, learner, self._projector) for network in teachers]
        self._hidden = _Hidden(given=teacher, models=models, losses=losses, weights=weights, terms=terms,
                               teachers=teachers, student=learner)
        self.built = True

    @property
    def teacher(self) -> keras.Model | list[keras.Model] | None:
        """The teacher or teachers; saved with the distiller, and not counted among its variables."""
        models = self._hidden.models
        return models if len(models) > 1 else models[0] if models else None

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self._hidden.models) or "cached logits"
        given = "a moving average" if isinstance(self._hidden.given, MovingAverage) else names
        return f"<Distiller {given} -> {self.student.name}: {', '.join(map(repr, self._hidden.losses))}>"

    def _projector(self, channels, shape):
        layer = keras.layers.Dense(channels, name=f"projector_{len(self.projectors)}", dtype=self.variable_dtype,
                                   kernel_initializer=keras.initializers.GlorotUniform(len(self.projectors)))
        layer.build(shape)
        self.projectors.append(layer)
        return layer

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics may be given by name."""
        return self.student.output_names

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The distiller's, and those that a student with its own `train_step` or `test_step` keeps."""
        own = self.student.metrics if self._overrides("train_step", "test_step") else []
        return [*super().metrics, *own]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return run(self.student, inputs, training)

    @checked()
    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, loss_weights: Any = None, metrics: Any = None,
                weighted_metrics: Any = None, run_eagerly: bool = False, steps_per_execution: int = 1,
                jit_compile: bool | str = "auto", auto_scale_loss: bool = True) -> None:
        """As keras.Model.compile. Without a `loss` the student learns from the teacher alone."""
        forget_compiled(self)
        super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics, run_eagerly, steps_per_execution,
                        jit_compile, auto_scale_loss)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As keras.Model.compile_from_config, which would leave a model with its own `compile` uncompiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @checked()
    def fit(  # noqa: PLR0913 - as keras.Model.fit
            self, x: Any = None, y: Any = None, batch_size: int | None = None, epochs: int = 1,
            verbose: int | str = "auto", callbacks: Any = None, validation_split: float = 0.0,
            validation_data: Any = None, shuffle: bool | str = True, class_weight: dict[int, float] | None = None,
            sample_weight: Any = None, initial_epoch: int = 0, steps_per_epoch: int | None = None,
            validation_steps: int | None = None, validation_batch_size: int | None = None,
            validation_freq: int | Sequence[int] = 1) -> keras.callbacks.History:
        """As keras.Model.fit; stops with one sentence at the end of an epoch whose loss is not finite."""
        require(sample_weight is None or y is not None, "Keras drops a `sample_weight` that comes without labels", y=y,
                do="Pass any `y` of the same length with it.")
        require(class_weight is None or self._hidden.models or self.student_loss_weight == 1,
                "`class_weight` does not know which of the targets are the labels",
                class_weight=class_weight, do="Pass `sample_weight`, the weight of each example's class.")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(_Finite())
        else:
            callbacks = [*_as_list(callbacks or []), _Finite()]
        return super().fit(
            x, y, batch_size=batch_size, epochs=epochs, verbose=verbose, callbacks=callbacks,
            validation_split=validation_split, validation_data=validation_data, shuffle=shuffle,
            class_weight=class_weight, sample_weight=sample_weight, initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch, validation_steps=validation_steps,
            validation_batch_size=validation_batch_size, validation_freq=validation_freq)

    def export(self, filepath: str, format: str = "tf_saved_model", verbose: bool | None = None,
               input_signature: Any = None, **kwargs: Any) -> None:
        """As keras.Model.export, of the student, which computes all that the distiller puts out."""
        self.student.export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)

    @checked()
    def save(self, filepath: Any, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any) -> None:
        """As keras.Model.save, in the .keras format: what Keras writes as .h5 of such a model it cannot load."""
        require(not str(filepath).endswith((".h5", ".hdf5")), "a distill.Distiller is saved in the .keras format",
                filepath=str(filepath), do="Pass a path that ends in .keras, or save `distiller.student` as .h5.")
        super().save(filepath, overwrite, zipped, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = self._unpacked(data)
        targets = self._run_teachers(x, y)
        require(targets or (self.student_loss_weight == 1 and self._has_task()),
                "without a teacher the data must bring its outputs", y=type(y).__name__,
                do="Pass the data set that distill.cache_teacher returns.")
        variables = self.trainable_variables
        require(variables, "the student must have something to train", student=self.student.name,
                do="Set `trainable = True` on its layers.")
        step = self._own_train_step if self._overrides("train_step") and self.student_loss_weight else self._step
        logs = step(x, self._labels(y), sample_weight, targets, variables)
        if isinstance(self._hidden.given, MovingAverage):
            self._hidden.given.follow(self.teacher, self.student)
        unused = [*([] if self._has_task() else ["student_loss"]), *([] if targets else ["distillation_loss"])]
        return {name: value for name, value in logs.items() if name not in unused}

    def _step(self, x, y, sample_weight, targets, variables):
        with tf.GradientTape() as tape:
            predicted = self._hidden.student(x, training=True)
            loss = self._training_loss(targets, predicted, x, y, sample_weight)
            loss_tracker(self).update_state(loss * _replicas(), sample_weight=_length(x))
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return self.compute_metrics(x, y, predicted.outputs, sample_weight=sample_weight)

    def _own_train_step(self, x, y, sample_weight, targets, variables):
        """The student's own `train_step`, in which `compute_loss` includes what it learns from the teacher."""
        require(len(variables) == len(self.student.trainable_variables) and not self._hidden.student.taps,
                "a student with its own `train_step` needs losses between outputs", losses=self._hidden.losses,
                do="Use distill.Logits or distill.Values, or a student without a `train_step`.")
        called = []

        # named as Keras names them: train steps pass them by keyword
        def compute_loss(x=x, y=None, y_pred=None, sample_weight=None, training=True):
            called.append(training)
            return self._training_loss(targets, Result(y_pred, {}), x, y, sample_weight)

        with self._as_student(compute_loss=compute_loss):
            logs = self.student.train_step(keras.utils.pack_x_y_sample_weight(x, y, sample_weight))
        require(called or not targets, "the student's own `train_step` must call `self.compute_loss`, which adds the "
                "distillation losses", student=type(self.student).__name__,
                do="Compute its loss there, or pass student_loss_weight=0 to learn from the teacher alone.")
        return {**logs, **{metric.name: metric.result() for metric in (self._student_loss, self._distillation_loss)}}

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = self._unpacked(data)
        if self._overrides("test_step"):
            with self._as_student():
                return self.student.test_step(keras.utils.pack_x_y_sample_weight(x, self._labels(y), sample_weight))
        measured = self._has_task() or self._is_distilled(y)
        unused = ["student_loss", "distillation_loss", *([] if measured else ["loss"])]
        data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        logs = {name: value for name, value in super().test_step(data).items() if name not in unused}
        require(logs, "`evaluate` needs something to measure",
                do="Compile a loss or metrics, or pass the data set that distill.cache_teacher returns.")
        return logs

    def predict_step(self, data: Any) -> Any:
        return self.student.predict_step(data) if self._overrides("predict_step") else super().predict_step(data)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        if not self._overrides("compute_metrics"):
            return super().compute_metrics(x, self._labels(y), y_pred, sample_weight)
        with self._as_student():
            logs = self.student.compute_metrics(x, self._labels(y), y_pred, sample_weight)
        return {**self.get_metrics_result(), **logs}

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:
        """The loss of one batch: of distillation when training, the student's own task loss otherwise."""
        if training or (self._is_distilled(y) and not self._has_task()):
            predicted = self._hidden.student(x, training=training)
            return self._training_loss(self._run_teachers(x, y), predicted, x, self._labels(y), sample_weight)
        if not self._has_task():
            return tf.zeros(())
        if self._overrides("compute_loss"):
            return self._task(x, self._labels(y), y_pred, sample_weight, training)
        return super().compute_loss(x, self._labels(y), y_pred, sample_weight)

    def _overrides(self, *methods):
        """Does the student's class have a method of its own among these?"""
        return any(getattr(type(self.student), method) is not getattr(keras.Model, method) for method in methods)

    @contextlib.contextmanager
    def _as_student(self, **methods):
        """Inside, methods of the student's class run with what the distiller was compiled with."""
        held = vars(self.student)
        own = {name: held[name] for name in methods if name in held}
        with compiled_as(self.student, self):
            held.update(methods)
            try:
                yield
            finally:
                for name in methods:
                    del held[name]
                held.update(own)

    def _has_task(self):
        """Is there a loss on labels: a compiled one, or the student's own?"""
        return self.loss is not None or (self._overrides("compute_loss") and self.student_loss_weight > 0)

    def _unpacked(self, data):
        """Inputs, targets and weights of the examples: Keras gives each part of the targets a copy of the weights."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self._brings_outputs(y) and isinstance(sample_weight, dict) and "teacher" in sample_weight:
            sample_weight = sample_weight.get("y", sample_weight["teacher"])
        return x, y, sample_weight

    def _brings_outputs(self, y):
        return not self._hidden.models and isinstance(y, dict) and "teacher" in y

    def _labels(self, y):
        return y.get("y") if self._brings_outputs(y) else y

    def _is_distilled(self, y):
        return (self.student_loss_weight < 1 or not self._has_task()) and (
            bool(self._hidden.models) or self._brings_outputs(y))

    def _run_teachers(self, x, y):
        """A `Result` of each teacher, or None where none is needed or there."""
        if not self._is_distilled(y):
            return None
        if self._hidden.models:
            return [teacher(x, training=False) for teacher in self._hidden.teachers]
        return [Result(y["teacher"], {})]

    def _task(self, x, y, y_pred, sample_weight, training):
        """The loss on labels, divided by the number of replicas: the student's own `compute_loss`, or the compiled."""
        if not self._overrides("compute_loss"):
            require(y is not None, "the compiled loss needs labels", y=y,
                    do="Pass them to `fit`, or compile without a loss to learn from the teacher alone.")
            return task_loss(self, y, y_pred, sample_weight)
        compute_loss = type(self.student).compute_loss.__get__(self.student)
        extra = {"training": training} if "training" in inspect.signature(compute_loss).parameters else {}
        with compiled_as(self.student, self):
            return compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **extra)

    def _training_loss(self, targets, predicted, x, y, sample_weight):
        """Everything is a mean over this replica's examples, divided by the number of replicas."""
        share, parts, count = 0., [], _length(x)
        if self._has_task():
            task = tf.cast(self._task(x, y, predicted.outputs, sample_weight, True), self.variable_dtype)
            self._student_loss.update_state(task * _replicas(), sample_weight=count)
            share = self.student_loss_weight
            parts.append(share * task)
        if targets is not None:
            distillation = self._distillation(targets, predicted, y, sample_weight)
            self._distillation_loss.update_state(distillation, sample_weight=count)
            parts.append((1 - share) * distillation / _replicas())
        if not (self._has_task() and self._overrides("compute_loss")):                # else the task includes them
            parts += [tf.cast(tf.reduce_sum(penalty), self.variable_dtype) / _replicas() for penalty in self.losses]
        return tf.add_n(parts)

    def _distillation(self, targets, predicted, y, sample_weight):
        """The weighted sum of the distillation losses, each the mean over the teachers."""
        by_teacher = [[tf.cast(term(result, predicted, y, sample_weight), self.variable_dtype) for term in terms]
                      for terms, result in zip(self._hidden.terms, targets, strict=True)]
        by_loss = [tf.add_n(values) / len(values) for values in zip(*by_teacher, strict=True)]
        return tf.add_n([self._now(weight) * value
                         for weight, value in zip(self._hidden.weights, by_loss, strict=True)])

    def _now(self, weight):
        """A weight's value at this step."""
        if isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
            return tf.cast(weight(self.optimizer.iterations), self.variable_dtype)
        return weight

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {"teacher": serialize(self._hidden.given), "student": serialize(self.student),
                "losses": serialize(self._hidden.losses), "loss_weights": serialize(self._hidden.weights),
                "student_loss_weight": self.student_loss_weight, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Distiller":
        deserialize = keras.saving.deserialize_keras_object
        return cls(deserialize(config["teacher"]), deserialize(config["student"]), deserialize(config["losses"]),
                   loss_weights=deserialize(config["loss_weights"]),
                   student_loss_weight=config["student_loss_weight"], name=config["name"])


class _Finite(keras.callbacks.Callback):
    """Stops a run whose loss is not a number, and says which part was lost."""

    def on_epoch_end(self, epoch, logs=None):
        parts = {name: float(value) for name, value in (logs or {}).items() if name.endswith("loss")}
        require(math.isfinite(parts.get("loss", 0.)), f"the loss must stay finite, and it did not in epoch {epoch + 1}",
                error=FloatingPointError, **parts,
                do="Lower the learning rate, or look for infinite values in the data and the teacher's outputs.")


def _as_list(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def _weights(losses, weights):
    """One weight for each loss; by output where the losses are."""
    if isinstance(weights, dict):
        require(isinstance(losses, dict) and set(weights) == set(losses),
                "a dict of `loss_weights` must have the keys of a dict of `losses`", loss_weights=weights,
                losses=losses)
        return [weights[output] for output in losses]
    count = len(losses) if isinstance(losses, dict | list | tuple) else 1
    return [1.] * count if weights is None else _as_list(weights)


def _require_losses(losses, weights):
    require(losses, "`losses` must hold at least one distillation loss", losses=losses, do="Pass distill.Logits().")
    for loss in losses:
        require(isinstance(loss, keras.distillation.DistillationLoss), "`losses` must be distillation losses",
                loss=loss, do="Pass distill.Logits(), or a subclass of keras.distillation.DistillationLoss.",
                error=TypeError)
    require(len(weights) == len(losses), "`loss_weights` must hold one number for each loss", loss_weights=weights,
            losses=len(losses))
    require(any(weights), "one of the `loss_weights` must be > 0", loss_weights=weights,
            do="Pass student_loss_weight=1 to train without the teacher.")


def _length(x):
    return tf.shape(keras.tree.flatten(x)[0])[0]


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync
