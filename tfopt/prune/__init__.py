"""Magnitude pruning: zeros in the weights, free, in N:M patterns or in blocks."""

from ._prune import SparsitySummaries, allocate, plan, sparsities, strip, wrap
from ._xnnpack import xnnpack_layers

__all__ = ["SparsitySummaries", "allocate", "plan", "sparsities", "strip", "wrap", "xnnpack_layers"]


def __dir__() -> list[str]:
    return __all__
