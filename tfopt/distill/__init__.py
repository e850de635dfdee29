"""A small model learns from a large one."""

from ._distiller import Distiller
from ._losses import Logits

__all__ = ["Distiller", "Logits"]
