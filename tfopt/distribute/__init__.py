"""Every device alike: the right strategy, Keras on several machines, a check, and `python -m tfopt.distribute`."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from ._corrected import Synchronous, even, synchronize
    from ._findings import check
    from ._strategy import precision, strategy

__all__ = ["Synchronous", "check", "even", "precision", "strategy", "synchronize"]

_FILE = {"Synchronous": "_corrected", "check": "_findings", "even": "_corrected", "precision": "_strategy",
         "strategy": "_strategy", "synchronize": "_corrected"}


def __getattr__(name):                                     # the launcher must not load TensorFlow
    if name in _FILE:
        return getattr(importlib.import_module(f"{__name__}.{_FILE[name]}"), name)
    raise AttributeError(f"tfopt.distribute has {', '.join(__all__)}. Received: {name!r}. Choose one of them.")
