"""Models -> one table of size, work, speed and accuracy, and the pictures of it."""

from ._measure import compare, measure
from ._pictures import curves

__all__ = ["compare", "curves", "measure"]
