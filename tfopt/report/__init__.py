"""Evaluation: size, MACs, latency and accuracy of Keras models and LiteRT files in one table."""

from ._figures import curves
from ._measure import compare, measure

__all__ = ["compare", "curves", "measure"]


def __dir__() -> list[str]:
    return __all__
