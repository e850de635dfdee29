"""Models -> one table of size, work, speed and accuracy, and the pictures of it."""

from ._figures import curves
from ._measure import compare, measure

__all__ = ["compare", "curves", "measure"]
