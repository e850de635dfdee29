"""Ready-made spaces: what is worth searching, in ranges worth searching in."""

from typing import Protocol, runtime_checkable

from .. import augment, distill, regularizers, schedules
from .._check import FLAG, SEED, Number, Rule, Whole, checked, require
from .._keras import keras
from ._oracles import keras_tuner

HP = Rule("a keras_tuner.HyperParameters", lambda value: not isinstance(value, type) and hasattr(value, "Choice")
          and hasattr(value, "Float"))


@runtime_checkable
class KnowsSteps(Protocol):
    """The hyper-parameters that a search hands to `build`: they know how long the trial trains."""

    def steps(self) -> int | None: ...


@checked(hp=HP, total=Whole(low=1), low=Number(above=0), high=Number(above=0))
def schedule(hp: keras_tuner.HyperParameters, *, total: int | None = None, low: float = 1e-4,
             high: float = 1e-1) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning-rate schedule: one of four shapes, and its peak.

    Shapes: constant, half a cosine, one-cycle, and warm-up then cosine (a twentieth of the steps). Parameters:
    `schedule`, `peak_rate` (logarithmic).

    Args:
      hp: keras_tuner.HyperParameters.
      total: optimizer steps of the training; None asks the search, which knows epochs and batches.
      low, high: bounds of the peak, > 0.
    Returns:
      A learning-rate schedule.
    Raises:
      ValueError: a bound is out of range, or nobody knows the number of steps.
    Example:
      >>> import keras_tuner
      >>> type(schedule(keras_tuner.HyperParameters(), total=100)).__name__
      'CosineDecay'
    """
    require(low <= high, "`low` must be at most `high`", low=low, high=high)
    if total is None:
        total = hp.steps() if isinstance(hp, KnowsSteps) else None
    require(total is not None, "a schedule needs the number of optimizer steps", total=total,
            do="Pass total=batches per epoch * epochs: these data do not say how many batches they have.")
    shape = hp.Choice("schedule", ["cosine", "constant", "one_cycle", "warmup_cosine"])
    peak = hp.Float("peak_rate", low, high, sampling="log", default=(low * high) ** 0.5)
    total = max(int(total), 4)
    warmup = max(total // 20, 1)
    return {"constant": lambda: schedules.Constant(peak),
            "cosine": lambda: schedules.CosineDecay(peak, total),
            "one_cycle": lambda: schedules.OneCycle(peak, total),
            "warmup_cosine": lambda: schedules.Warmup(schedules.CosineDecay(peak, total - warmup), warmup)}[shape]()


@checked(hp=HP, low=Number(above=0), high=Number(above=0))
def regularizer(hp: keras_tuner.HyperParameters, *, low: float = 1e-6,
                high: float = 1e-2) -> keras.regularizers.Regularizer | None:
    """A penalty for kernels, or None: L2, GroupLasso (empties units) or Hoyer (drives small weights to zero).

    Parameters: `penalty`, and `penalty_strength` (logarithmic) where there is one.

    Args:
      hp: keras_tuner.HyperParameters.
      low, high: bounds of the strength, > 0.
    Returns:
      A Keras regularizer or None, for `regularizers.add` or a layer.
    Raises:
      ValueError: a bound is out of range.
    Example:
      >>> import keras_tuner
      >>> regularizer(keras_tuner.HyperParameters()) is None
      True
    """
    require(low <= high, "`low` must be at most `high`", low=low, high=high)
    kind = hp.Choice("penalty", ["none", "l2", "group_lasso", "hoyer"])
    with hp.conditional_scope("penalty", ["l2", "group_lasso", "hoyer"]):
        strength = hp.Float("penalty_strength", low, high, sampling="log")
    made = {"l2": regularizers.L2, "group_lasso": regularizers.GroupLasso, "hoyer": regularizers.Hoyer}
    return None if kind == "none" else made[kind](strength)


@checked(hp=HP, flip=FLAG, seed=SEED)
def augmentation(hp: keras_tuner.HyperParameters, *, flip: bool = True, seed: int = 0) -> augment.Pipeline | None:
    """An augmentation of images: none, one strength for the classic operations, RandAugment or TrivialAugment.

    Parameters: `augmentation`, and `augmentation_strength` for those that have one. It belongs into `train`, a function
    of `hp`: `lambda hp: data.arrays(x, y, 64, augment=tune.augmentation(hp))`.

    Args:
      hp: keras_tuner.HyperParameters.
      flip: may images be mirrored: not digits or text.
      seed: of the pipeline.
    Returns:
      An augment.Pipeline, or None.
    Raises:
      ValueError: see `augment.Pipeline`.
    Example:
      >>> import keras_tuner
      >>> space = keras_tuner.HyperParameters()
      >>> augmentation(space) is None, [one.name for one in space.space]
      (True, ['augmentation', 'augmentation_strength'])
    """
    kind = hp.Choice("augmentation", ["none", "classic", "rand", "trivial"])
    with hp.conditional_scope("augmentation", ["classic", "rand"]):
        strength = hp.Float("augmentation_strength", 0.1, 1.0, default=0.3)
    if kind == "none":
        return None
    if kind == "rand":
        ops = [augment.RandAugment(2, strength)]
    elif kind == "trivial":
        ops = [augment.TrivialAugment()]
    else:
        ops = [augment.Rotate(0.1 * strength), augment.Zoom(0.3 * strength), augment.Translate(0.2 * strength),
               augment.Brightness(0.3 * strength), augment.Contrast(0.3 * strength)]
    return augment.Pipeline([augment.Flip(), *ops] if flip else ops, seed=seed)


@checked(hp=HP)
def distillation(hp: keras_tuner.HyperParameters) -> tuple[distill.Logits, float]:
    """How a student learns from a teacher: the temperature, and the weight of the labels.

    Parameters: `temperature` (1 to 20, logarithmic) and `student_loss_weight` (0 to 0.9).

    Args:
      hp: keras_tuner.HyperParameters.
    Returns:
      (distill.Logits, student_loss_weight), for
      `distill.Distiller(teacher, student, loss, student_loss_weight=weight)`.
    Example:
      >>> import keras_tuner
      >>> loss, weight = distillation(keras_tuner.HyperParameters())
      >>> loss.temperature, weight
      (4.0, 0.5)
    """
    temperature = hp.Float("temperature", 1.0, 20.0, sampling="log", default=4.0)
    return distill.Logits(temperature), hp.Float("student_loss_weight", 0.0, 0.9, default=0.5)


@checked(hp=HP, low=Number(above=0, below=1), high=Number(above=0, below=1))
def sparsity(hp: keras_tuner.HyperParameters, *, low: float = 0.3, high: float = 0.95) -> float:
    """The share of weights that `prune.wrap` sets to zero.

    Parameter: `density` = 1 - sparsity, logarithmic.

    Args:
      hp: keras_tuner.HyperParameters.
      low, high: bounds, 0 < low < high < 1.
    Returns:
      A float.
    Raises:
      ValueError: a bound is out of range.
    Example:
      >>> import keras_tuner
      >>> round(sparsity(keras_tuner.HyperParameters()), 2)
      0.81
    """
    require(low <= high, "`low` must be at most `high`", low=low, high=high)
    return 1 - hp.Float("density", 1 - high, 1 - low, sampling="log", default=((1 - high) * (1 - low)) ** 0.5)


@checked(hp=HP, low=Number(above=0, below=1), high=Number(above=0, high=1))
def shrink_ratio(hp: keras_tuner.HyperParameters, *, low: float = 0.2, high: float = 0.9) -> float:
    """The share of the multiply-accumulates that `shrink.channels(model, macs=...)` leaves.

    Parameter: `shrink_ratio`.

    Args:
      hp: keras_tuner.HyperParameters.
      low, high: bounds, 0 < low < high <= 1.
    Returns:
      A float.
    Raises:
      ValueError: a bound is out of range.
    Example:
      >>> import keras_tuner
      >>> shrink_ratio(keras_tuner.HyperParameters())
      0.5
    """
    require(low <= high, "`low` must be at most `high`", low=low, high=high)
    return hp.Float("shrink_ratio", low, high, default=min(max(0.5, low), high))

