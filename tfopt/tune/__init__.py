"""Hyperparameter search over a `build(hp)`: survives being killed; several objectives, limits, folds, workers."""

from ._cross_validate import CrossValidation, cross_validate
from ._search import Search
from ._spaces import augmentation, distillation, regularizer, schedule, shrink_ratio, sparsity

__all__ = ["CrossValidation", "Search", "augmentation", "cross_validate", "distillation", "regularizer", "schedule",
           "shrink_ratio", "sparsity"]


def __dir__() -> list[str]:
    return __all__
