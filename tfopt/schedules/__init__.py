"""Learning-rate schedules, a range test that suggests a rate, a plateau callback that works with schedules."""

from .._keras import keras
from ._find import Finding, find
from ._plateau import Plateau
from ._shapes import (
    Constant,
    Cyclic,
    InverseSqrt,
    Join,
    Knee,
    Linear,
    OneCycle,
    Scaled,
    Step,
    Warmup,
    get,
)

CosineDecay = keras.optimizers.schedules.CosineDecay
CosineDecayRestarts = keras.optimizers.schedules.CosineDecayRestarts
ExponentialDecay = keras.optimizers.schedules.ExponentialDecay
InverseTimeDecay = keras.optimizers.schedules.InverseTimeDecay
PiecewiseConstantDecay = keras.optimizers.schedules.PiecewiseConstantDecay
PolynomialDecay = keras.optimizers.schedules.PolynomialDecay

__all__ = ["Constant", "CosineDecay", "CosineDecayRestarts", "Cyclic", "ExponentialDecay", "Finding", "InverseSqrt",
           "InverseTimeDecay", "Join", "Knee", "Linear", "OneCycle", "PiecewiseConstantDecay", "Plateau",
           "PolynomialDecay", "Scaled", "Step", "Warmup", "find", "get"]


def __dir__() -> list[str]:
    return __all__
