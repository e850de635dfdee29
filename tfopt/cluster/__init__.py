"""Weight clustering: the weights of a kernel share a few values."""

from ._cluster import plan, strip, wrap

__all__ = ["plan", "strip", "wrap"]


def __dir__() -> list[str]:
    return __all__
