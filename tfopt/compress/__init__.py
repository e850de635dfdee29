"""The whole ladder in one call: distil, shrink, prune, cluster, quantise, each step guarded by the accuracy."""

from ._run import STAGES, Result, run

__all__ = ["STAGES", "Result", "run"]
