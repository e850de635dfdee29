"""Weight penalties: the formulas, and the Keras regularizers made of them."""

from collections.abc import Sequence
from typing import Any

from .._check import Instance, ListOf, Number, Whole, checked, require
from .._keras import ConfigFromArguments, keras, serializable, tf

L1 = keras.regularizers.L1
L2 = keras.regularizers.L2
L1L2 = keras.regularizers.L1L2
OrthogonalRegularizer = keras.regularizers.OrthogonalRegularizer

PENALTY = Instance("keras.regularizers.Regularizer", str, text="a keras.regularizers.Regularizer or the name of one",
                   do="Pass e.g. regularizers.L2(1e-4).")


def hoyer(weights):
    """(sum |w|)^2 / sum w^2: from 1 (one weight is left) to the number of weights (all are equal); 0 for no weight."""
    return tf.math.divide_no_nan(tf.square(tf.reduce_sum(tf.abs(weights))), tf.reduce_sum(tf.square(weights)))


def group_norms(weights, axis):
    """The Euclidean norm of each group, with gradient 0 where the group is 0."""
    kept = [index % len(weights.shape) for index in axis]
    squares = tf.reduce_sum(tf.square(weights), [i for i in range(len(weights.shape)) if i not in kept])
    safe = tf.where(squares > 0, squares, 1)                # sqrt has no finite derivative at 0
    return tf.where(squares > 0, tf.sqrt(safe), 0)


def kurtosis(weights):
    """mean(((w - mean) / std)^4): 1.8 for a uniform distribution, 3 for a normal one; 0 if all weights are equal."""
    squares = tf.square(weights - tf.reduce_mean(weights))
    return tf.math.divide_no_nan(tf.reduce_mean(tf.square(squares)), tf.square(tf.reduce_mean(squares)))


@serializable
class Hoyer(ConfigFromArguments, keras.regularizers.Regularizer):
    """Hoyer-square penalty: drives small weights to zero and leaves large ones alone, whatever the scale.

    Training with it prepares for `prune`.

        penalty = strength * (sum |w|)^2 / sum w^2

    Args:
      strength: >= 0, about 1e-5 to 1e-3; the fraction itself is at most the number of weights.

    Call:
      weights: float tensor of any shape -> scalar.

    Raises:
      ValueError: `strength` is out of range.

    Example:
      >>> round(float(Hoyer(0.5)([[3.0, 0.0], [0.0, 1.0]])), 3)     # 0.5 * 4^2 / 10
      0.8

    Reference:
      Yang, Wen and Li, DeepHoyer, 2020. https://arxiv.org/abs/1908.09979
    """

    @checked(strength=Number(low=0))
    def __init__(self, strength: float = 1e-4) -> None:
        self.strength = float(strength)

    def __call__(self, weights: Any) -> tf.Tensor:
        return self.strength * hoyer(tf.convert_to_tensor(weights))


@serializable
class GroupLasso(ConfigFromArguments, keras.regularizers.Regularizer):
    """Group lasso: drives whole output channels to zero. Training with it prepares for `shrink`.

        penalty = strength * sum over groups of sqrt(size of the group) * |group|_2

    Args:
      strength: >= 0, about 1e-5 to 1e-3.
      axis: the axis, or axes, along which one group follows another; all other axes are inside a group. -1: a group is
        what leads to one output channel of Dense and Conv. Use -2 for ConvTranspose, (-2, -1) for DepthwiseConv.

    Call:
      weights: float tensor with that axis -> scalar; the gradient of a group of zeros is zero.

    Raises:
      ValueError: `strength` is out of range, or `axis` names no axis of the weights or one twice.

    Example:
      >>> round(float(GroupLasso(1.0)([[3.0, 0.0], [4.0, 0.0]])), 3)     # sqrt(2) * 5
      7.071

    Reference:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016. https://arxiv.org/abs/1608.03665
      Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006.
      https://doi.org/10.1111/j.1467-9868.2005.00532.x
    """

    @checked(strength=Number(low=0), axis=Whole() | ListOf(Whole()))
    def __init__(self, strength: float = 1e-4, *, axis: int | Sequence[int] = -1) -> None:
        self.strength = float(strength)
        self.axis = axis if isinstance(axis, int) else list(axis)

    def __call__(self, weights: Any) -> tf.Tensor:
        weights = tf.convert_to_tensor(weights)
        rank, axes = len(weights.shape), [self.axis] if isinstance(self.axis, int) else self.axis
        require(axes and all(-rank <= index < rank for index in axes) and len({i % rank for i in axes}) == len(axes),
                "`axis` of GroupLasso must name axes of the weights, each once", axis=self.axis,
                shape=tuple(weights.shape))
        norms = group_norms(weights, axes)
        size = tf.size(weights) / tf.maximum(tf.size(norms), 1)
        return self.strength * tf.cast(tf.sqrt(size), weights.dtype) * tf.reduce_sum(norms)


@serializable
class Kurtosis(ConfigFromArguments, keras.regularizers.Regularizer):
    """Kurtosis penalty: spreads the weights evenly over their range, so that few bits describe them well.

    Training with it prepares for `quantize`.

        penalty = strength * (mean(((w - mean) / std)^4) - target)^2

    Args:
      strength: >= 0, about 1e-3 to 1e-1 for each kernel.
      target: kurtosis to reach, >= 1; 1.8 is that of a uniform distribution.

    Call:
      weights: float tensor of any shape -> scalar; the gradient is zero where all weights are equal.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> round(float(Kurtosis(1.0, target=2.0)([1.0, 2.0, 3.0, 4.0])), 4)     # (1.64 - 2)^2
      0.1296

    Reference:
      Chmiel et al., Robust Quantization: One Model to Rule Them All, 2020. https://arxiv.org/abs/2002.07686
    """

    @checked(strength=Number(low=0), target=Number(low=1))
    def __init__(self, strength: float = 1e-2, *, target: float = 1.8) -> None:
        self.strength, self.target = float(strength), float(target)

    def __call__(self, weights: Any) -> tf.Tensor:
        return self.strength * tf.square(kurtosis(tf.convert_to_tensor(weights)) - self.target)


@serializable
class Sum(ConfigFromArguments, keras.regularizers.Regularizer):
    """Sum of several penalties of the same weights.

        penalty = sum of penalty_i

    Args:
      penalties: one or more of keras.regularizers.Regularizer, or their names (see `get`).

    Call:
      weights: float tensor -> scalar.

    Raises:
      ValueError: an element is no Regularizer, or there is none.

    Example:
      >>> float(Sum([L1(1.0), L2(1.0)])([3.0]))
      12.0
    """

    @checked(penalties=ListOf(PENALTY))
    def __init__(self, penalties: Sequence[keras.regularizers.Regularizer | str]) -> None:
        self.penalties = list(map(found, penalties))

    def __call__(self, weights: Any) -> tf.Tensor:
        weights = tf.convert_to_tensor(weights)
        return tf.add_n([penalty(weights) for penalty in self.penalties])


@checked()
def get(identifier: str | dict[str, Any] | keras.regularizers.Regularizer | None
        ) -> keras.regularizers.Regularizer | None:
    """Weight penalty by name, as keras.regularizers.get, with those of this module.

    Args:
      identifier: a name such as "hoyer", "group_lasso", "kurtosis", "l1", "l2" (with their default strengths); a
        config; a keras.regularizers.Regularizer, which is returned; or None.

    Returns:
      A keras.regularizers.Regularizer, or None for None.

    Raises:
      ValueError: there is none of that name.

    Example:
      >>> get("hoyer").strength, get("GroupLasso").axis
      (0.0001, -1)
    """
    return found(identifier)


def found(identifier, name="identifier"):
    """`get`, for functions that name themselves and their argument in what they refuse."""
    if identifier is None or isinstance(identifier, keras.regularizers.Regularizer):
        return identifier
    if isinstance(identifier, dict):
        require({"class_name", "config"} <= identifier.keys(), "a config of a regularizer must have `class_name` and "
                "`config`", **{name: identifier}, do="Pass what keras.regularizers.serialize returns.")
        return keras.regularizers.get(identifier)
    require(isinstance(identifier, str) and identifier, f"`{name}` must be a name, a config, a "
            "keras.regularizers.Regularizer or None", **{name: identifier}, do="Pass a name such as 'hoyer'.")
    kinds = Hoyer, GroupLasso, Kurtosis, L1, L2, L1L2, OrthogonalRegularizer
    known = {kind.__name__.lower(): kind for kind in kinds}
    kind = known.get(identifier.lower().replace("_", ""))
    require(kind, f"`{name}` must be the name of a regularizer", **{name: identifier},
            do=f"The names are {', '.join(known)}.")
    return kind()
