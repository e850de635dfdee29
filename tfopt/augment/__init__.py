"""Augmentation: one resample and one colour matrix per image, replayable from (seed, epoch, index)."""

from ._pipeline import Pipeline

__all__ = ["Pipeline"]
