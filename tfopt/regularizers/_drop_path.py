"""Stochastic depth: a layer that drops whole residual branches."""

from typing import Any

from .._check import SEED, Number, checked
from .._keras import ConfigFromArguments, keras, serializable, tf


@serializable
class DropPath(ConfigFromArguments, keras.layers.Layer):
    """Stochastic depth: drops a whole residual branch for some of the examples of a batch.

        training:    y = x / (1 - rate) with probability 1 - rate, else 0, drawn once per example
        inference:   y = x

    Put it behind a branch, before it is added: `x + DropPath(0.1)(branch(x))`. Rates usually grow in a straight line
    from 0 at the first block to `rate` at the last.

    Args:
      rate: probability that an example loses the branch, >= 0 and < 1.
      seed: int, or None for one drawn from Python's random state.
      **kwargs: of keras.layers.Layer, such as `name` and `dtype`.

    Call:
      inputs: (batch, ...) of any float type -> the same shape and type.

    Raises:
      ValueError: `rate` is out of range.

    Example:
      >>> kept = DropPath(0.5, seed=1)(tf.ones((1000, 2)), training=True).numpy()
      >>> sorted(set(kept.ravel().tolist())), bool((kept[:, 0] == kept[:, 1]).all())
      ([0.0, 2.0], True)

    Reference:
      Huang et al., Deep Networks with Stochastic Depth, 2016. https://arxiv.org/abs/1603.09382
    """

    @checked(rate=Number(low=0, below=1), seed=SEED)
    def __init__(self, rate: float, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = float(rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self.rate:
            return inputs
        shape = (tf.shape(inputs)[0], *[1] * (len(inputs.shape) - 1))
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape
