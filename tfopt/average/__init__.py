"""Averages of models: ensembles, test-time augmentation, weight averaging (soups, SWA), batch-norm update."""

from ._ensemble import outputs, weights
from ._swa import SWA, update_batch_norm
from ._views import views

__all__ = ["SWA", "outputs", "update_batch_norm", "views", "weights"]


def __dir__() -> list[str]:
    return __all__
