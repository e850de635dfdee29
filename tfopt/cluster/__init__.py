"""Weights that share a few values, through TFMOT's clustering: wrap, fit, strip."""

from ._cluster import plan, strip, wrap

__all__ = ["plan", "strip", "wrap"]
