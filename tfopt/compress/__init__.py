"""The whole ladder in one call: distil, shrink, prune, cluster, quantise, each step guarded by the accuracy."""

from ._run import Result, run

__all__ = ["Result", "run"]
