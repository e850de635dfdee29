"""A small model learns from a large one."""

from ._distiller import Distiller
from ._features import Attention, Features, Relations
from ._losses import Decoupled, Dist, Logits
from ._remember import remember
from ._teachers import MovingAverage

__all__ = ["Attention", "Decoupled", "Dist", "Distiller", "Features", "Logits", "MovingAverage", "Relations",
           "remember"]
