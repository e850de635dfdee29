"""Types of arguments that many functions take; `_check` and `_data` look at the values."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd

from ._keras import keras, tf

Array: TypeAlias = np.ndarray | tf.Tensor | pd.DataFrame | pd.Series | Sequence[Any]
if TYPE_CHECKING:
    Dataset: TypeAlias = tf.data.Dataset[Any]     # for checkers it takes an argument, at run time it does not
else:
    Dataset = tf.data.Dataset
Data: TypeAlias = Array | Mapping[str, Any] | Dataset | keras.utils.PyDataset
Predicate: TypeAlias = Callable[[keras.layers.Layer], bool]
Where: TypeAlias = str | keras.layers.Layer | Sequence[str | keras.layers.Layer] | Predicate | None
PathLike: TypeAlias = str | os.PathLike[str]
Verbose: TypeAlias = Literal[0, 1, 2, "auto"]


@runtime_checkable
class Replayable(Protocol):
    """An augmentation whose output depends on nothing but the images, the epoch and the index of each example."""

    @property
    def replayable(self) -> bool:
        """False where one part of it mixes examples or draws anew each time."""
        ...

    def apply(self, images: Any, labels: Any = None, *, epoch: Any, index: Any) -> Any:
        """The images as they are in that epoch."""
        ...


@runtime_checkable
class EpochCounted(Protocol):
    """A data set that counts how often it was read through, and can be set to an epoch."""

    epochs: tf.Variable
