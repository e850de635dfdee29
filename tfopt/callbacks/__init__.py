"""Callbacks: exact restart of an interrupted `fit`, and the callbacks of the other modules in one place."""

import importlib
import typing

from ._growing import GrowingBatch
from ._resume import Resume

if typing.TYPE_CHECKING:
    from ..average import SWA
    from ..prune import SparsitySummaries
    from ..schedules import Plateau

__all__ = ["SWA", "GrowingBatch", "Plateau", "Resume", "SparsitySummaries"]

_MODULE = {"Plateau": "schedules", "SWA": "average", "SparsitySummaries": "prune"}


def __getattr__(name: str) -> typing.Any:                  # Resume alone does not load the toolkit
    if name in _MODULE:
        return getattr(importlib.import_module(f"tfopt.{_MODULE[name]}"), name)
    raise AttributeError(f"tfopt.callbacks has {', '.join(__all__)}. Received: {name!r}. Choose one of them.")


def __dir__() -> list[str]:
    return __all__
