"""The whole ladder in one call: distil, shrink, prune, cluster, quantise, each step guarded by the accuracy."""

from ._run import STEPS, Result, run

__all__ = ["STEPS", "Result", "run"]
