"""Callbacks: exact restart of an interrupted `fit`."""

from ._resume import Resume

__all__ = ["Resume"]


def __dir__() -> list[str]:
    return __all__
