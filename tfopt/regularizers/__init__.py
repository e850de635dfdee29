"""Regularization: weight penalties, stochastic depth, noise and robust training, also for a trained model."""

from ._drop_path import DropPath
from ._model import add, dropout
from ._penalties import L1, L1L2, L2, GroupLasso, Hoyer, Kurtosis, OrthogonalRegularizer, Sum, get
from ._weight_noise import strip, weight_noise

__all__ = ["L1", "L1L2", "L2", "DropPath", "GroupLasso", "Hoyer", "Kurtosis", "OrthogonalRegularizer", "Sum", "add",
           "dropout", "get", "strip", "weight_noise"]


def __dir__() -> list[str]:
    return __all__
