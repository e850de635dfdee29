"""Automatic compression: distill, shrink, prune, cluster, quantize; a stage stays only if the accuracy holds."""

from ._run import STAGES, Result, run

__all__ = ["STAGES", "Result", "run"]


def __dir__() -> list[str]:
    return __all__
