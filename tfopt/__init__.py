"""Make a Keras model better, smaller and faster, and measure it.

Importing `tfopt` loads nothing heavy: a module, and TensorFlow with it, is imported when its name is first used.

    from tfopt import distill, schedules
"""

import importlib
import types
import typing

if typing.TYPE_CHECKING:
    from . import (
        augment,
        average,
        callbacks,
        cluster,
        compress,
        data,
        distill,
        distribute,
        finetune,
        prune,
        quantize,
        regularizers,
        report,
        schedules,
        shrink,
        tune,
    )

__version__ = "0.1.0"

__all__ = ["augment", "average", "callbacks", "cluster", "compress", "data", "distill", "distribute", "finetune",
           "prune", "quantize", "regularizers", "report", "schedules", "shrink", "tune"]


def __getattr__(name: str) -> types.ModuleType:
    if name in __all__:
        return importlib.import_module(f"tfopt.{name}")
    raise AttributeError(f"tfopt has the modules {', '.join(__all__)}. Received: {name!r}. Choose one of them.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
