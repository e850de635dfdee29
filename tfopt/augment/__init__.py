"""Augmentation of images, audio and tokens: geometry, color, policies, MixUp, SpecAugment; compiled, replayable."""

from ._autoaugment import AutoAugment
from ._color import Brightness, ColorJitter, Contrast, Grayscale, Hue, Invert, Normalize, Saturation
from ._degrade import JPEG, GridMask, MotionBlur
from ._geometry import CenterCrop, Crop, Flip, Resize, Rotate, Shear, Translate, Zoom
from ._mix import CutMix, MixUp
from ._op import Op
from ._pipeline import Pipeline
from ._pixels import AutoContrast, Blur, Equalize, Erase, Noise, Posterize, Sharpness, Solarize
from ._policies import AugMix, RandAugment, TrivialAugment
from ._preview import preview
from ._sound import AddNoise, FrequencyMask, Gain, Speed, TimeMask, TimeShift
from ._tokens import TokenDrop, TokenMask, TokenSwap
from ._warps import Elastic, Perspective

__all__ = ["JPEG", "AddNoise", "AugMix", "AutoAugment", "AutoContrast", "Blur", "Brightness", "CenterCrop",
           "ColorJitter", "Contrast", "Crop", "CutMix", "Elastic", "Equalize", "Erase", "Flip", "FrequencyMask",
           "Gain", "Grayscale", "GridMask", "Hue", "Invert", "MixUp", "MotionBlur", "Noise", "Normalize", "Op",
           "Perspective", "Pipeline", "Posterize", "RandAugment", "Resize", "Rotate", "Saturation", "Sharpness",
           "Shear", "Solarize", "Speed", "TimeMask", "TimeShift", "TokenDrop", "TokenMask", "TokenSwap",
           "Translate", "TrivialAugment", "Zoom", "preview"]


def __dir__() -> list[str]:
    return __all__
