"""What acts at a moment of training: an exact restart."""

from ._resume import Resume

__all__ = ["Resume"]
