"""Distributed training: the right strategy, Keras on several machines, a check, a launcher."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from ._corrected import GlobalBatchOptimizer, equal_batches, sync_batch_norm
    from ._findings import diagnose
    from ._strategy import precision, strategy

__all__ = ["GlobalBatchOptimizer", "diagnose", "equal_batches", "precision", "strategy", "sync_batch_norm"]

_FILE = {"GlobalBatchOptimizer": "_corrected", "diagnose": "_findings", "equal_batches": "_corrected",
         "precision": "_strategy", "strategy": "_strategy", "sync_batch_norm": "_corrected"}


def __getattr__(name: str) -> typing.Any:                                     # the launcher must not load TensorFlow
    if name in _FILE:
        return getattr(importlib.import_module(f"{__name__}.{_FILE[name]}"), name)
    raise AttributeError(f"tfopt.distribute has {', '.join(__all__)}. Received: {name!r}. Choose one of them.")


def __dir__() -> list[str]:
    return __all__
