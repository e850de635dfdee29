"""Evaluation: size, MACs, latency and accuracy of Keras models and LiteRT files in one table."""

from ._explain import Explanation, explain
from ._figures import curves
from ._measure import compare, measure
from ._robustness import Robustness, robustness
from ._table import Row, Table

__all__ = ["Explanation", "Robustness", "Row", "Table", "compare", "curves", "explain", "measure", "robustness"]


def __dir__() -> list[str]:
    return __all__
