"""Image augmentation: geometry, color, RandAugment, MixUp, CutMix; compiled, replayable from (seed, epoch, index)."""

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
from ._warps import Elastic, Perspective

__all__ = ["JPEG", "AugMix", "AutoAugment", "AutoContrast", "Blur", "Brightness", "CenterCrop", "ColorJitter",
           "Contrast", "Crop", "CutMix", "Elastic", "Equalize", "Erase", "Flip", "Grayscale", "GridMask", "Hue",
           "Invert", "MixUp", "MotionBlur", "Noise", "Normalize", "Op", "Perspective", "Pipeline", "Posterize",
           "RandAugment", "Resize", "Rotate", "Saturation", "Sharpness", "Shear", "Solarize", "Translate",
           "TrivialAugment", "Zoom", "preview"]


def __dir__() -> list[str]:
    return __all__
