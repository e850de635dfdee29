"""Evaluation: size, MACs, latency and accuracy of Keras models and LiteRT files in one table."""

from ._card import card
from ._classes import ClassReport, classes
from ._explain import Explanation, explain
from ._figures import curves
from ._measure import compare, measure
from ._robustness import Robustness, robustness
from ._table import Row, Table
from ._temperature import temperature

__all__ = ["ClassReport", "Explanation", "Robustness", "Row", "Table", "card", "classes", "compare", "curves",
           "explain", "measure", "robustness", "temperature"]


def __dir__() -> list[str]:
    return __all__
