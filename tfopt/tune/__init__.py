"""Search over everything a `build(hp)` chooses: survives being killed, reports what it can hand out."""

from ._search import Search, cross_validate
from ._spaces import augmentation, distillation, regularizer, schedule, shrink_ratio, sparsity

__all__ = ["Search", "augmentation", "cross_validate", "distillation", "regularizer", "schedule", "shrink_ratio",
           "sparsity"]
