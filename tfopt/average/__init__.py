"""Model averaging: ensembles, model soups, stochastic weight averaging (SWA)."""

from ._average import SWA, outputs, update_batch_norm, weights

__all__ = ["SWA", "outputs", "update_batch_norm", "weights"]


def __dir__() -> list[str]:
    return __all__
