"""Image augmentation: geometry, color, RandAugment, MixUp, CutMix; compiled, replayable from (seed, epoch, index)."""

from ._color import Brightness, Contrast, Hue, Normalize, Saturation
from ._geometry import Crop, Flip, Resize, Rotate, Shear, Translate, Zoom
from ._mix import CutMix, MixUp
from ._op import Op
from ._pipeline import Pipeline
from ._pixels import AutoContrast, Blur, Equalize, Erase, Noise, Posterize, Sharpness, Solarize
from ._policies import RandAugment, TrivialAugment
from ._preview import preview

__all__ = ["AutoContrast", "Blur", "Brightness", "Contrast", "Crop", "CutMix", "Equalize", "Erase", "Flip", "Hue",
           "MixUp", "Noise", "Normalize", "Op", "Pipeline", "Posterize", "RandAugment", "Resize", "Rotate",
           "Saturation", "Sharpness", "Shear", "Solarize", "Translate", "TrivialAugment", "Zoom", "preview"]


def __dir__() -> list[str]:
    return __all__
