"""Quantization: quantization-aware training, LiteRT (TFLite) files after training, a diagnosis of what they lose.

    wrap -> fit -> convert        quantization-aware training (the TF Model Optimization toolkit's 8-bit scheme)
    convert                       after training, for any Keras model
    diagnose                      which layers of a file lose, and what to do
"""

from ._convert import convert
from ._diagnose import diagnose
from ._lite import LiteModel, load
from ._train import calibrate, plan, wrap

__all__ = ["LiteModel", "calibrate", "convert", "diagnose", "load", "plan", "wrap"]


def __dir__() -> list[str]:
    return __all__
