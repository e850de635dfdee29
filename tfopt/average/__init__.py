"""Several models, or several moments of one, become one model."""

from ._average import SWA, outputs, update_batch_norm, weights

__all__ = ["SWA", "outputs", "update_batch_norm", "weights"]
