"""Knowledge distillation: a small student learns from one teacher or several."""

from ._cache import cache_teacher
from ._distiller import Distiller
from ._features import AttentionTransfer, Features, RelationalKD
from ._losses import DIST, DecoupledKD, Logits, Values
from ._moving_average import MovingAverage

__all__ = ["DIST", "AttentionTransfer", "DecoupledKD", "Distiller", "Features", "Logits", "MovingAverage",
           "RelationalKD", "Values", "cache_teacher"]


def __dir__() -> list[str]:
    return __all__
