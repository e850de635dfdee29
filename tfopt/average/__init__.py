"""Averages of models: ensembles, weight averaging (soups, SWA), and batch-norm update."""

from ._ensemble import outputs, weights
from ._swa import SWA, update_batch_norm

__all__ = ["SWA", "outputs", "update_batch_norm", "weights"]


def __dir__() -> list[str]:
    return __all__
