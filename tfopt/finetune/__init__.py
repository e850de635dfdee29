"""Fine-tuning: blocks by depth, layer-wise learning-rate decay, freezing, gradual unfreezing."""

from ._blocks import freeze, plan
from ._rates import rates
from ._unfreeze import Unfreeze

__all__ = ["Unfreeze", "freeze", "plan", "rates"]


def __dir__() -> list[str]:
    return __all__
