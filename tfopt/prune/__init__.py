"""Zeros in the weights, through TFMOT's magnitude pruning: wrap, fit, strip."""

from ._prune import SparsitySummaries, plan, sparsities, strip, wrap, xnnpack_layers

__all__ = ["SparsitySummaries", "plan", "sparsities", "strip", "wrap", "xnnpack_layers"]
