"""Weight -> penalty; a layer that drops whole branches; both put into a model that is already trained."""

from ._regularizers import L1, L1L2, L2, DropPath, GroupLasso, Hoyer, Kurtosis, OrthogonalRegularizer, Sum, add, dropout

__all__ = ["L1", "L1L2", "L2", "DropPath", "GroupLasso", "Hoyer", "Kurtosis", "OrthogonalRegularizer", "Sum", "add",
           "dropout"]
