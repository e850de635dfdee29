"""Regularization: weight penalties and stochastic depth, also for a model that is already trained."""

from ._drop_path import DropPath
from ._model import add, dropout
from ._penalties import L1, L1L2, L2, GroupLasso, Hoyer, Kurtosis, OrthogonalRegularizer, Sum, get

__all__ = ["L1", "L1L2", "L2", "DropPath", "GroupLasso", "Hoyer", "Kurtosis", "OrthogonalRegularizer", "Sum", "add",
           "dropout", "get"]


def __dir__() -> list[str]:
    return __all__
