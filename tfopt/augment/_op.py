"""What every operation is: a frozen record of settings, which turns uniform numbers into parameters of each image."""

import dataclasses
import numbers
import typing

from .._check import require, require_number
from .._keras import NotALayer, in_xla, tf

MOVES, RECOLORS, CHANGES = "matrix", "affine", "change"      # the three kinds, by the method that makes them


@dataclasses.dataclass(frozen=True)
class Op(NotALayer):
    """Base of all operations of a `Pipeline`; subclass it to write one of your own.

    A subclass is a frozen dataclass of its settings, registered with Keras so that it is saved with the model, and has
    one of these methods. Each image has `draws` numbers of its own, uniform in [0, 1): `u`, float32[batch, draws]. The
    first decides with `probability` whether the operation acts on this image at all; an image it does not act on stays
    as it is, bit for bit. Nothing acts outside training, but for changes of size.

    - `matrix(u, size)`: geometry. The six float32[batch] (a, b, c, d, e, f) that say where each pixel comes from, in
      pixels from the center, x to the right and y down: `x_old = a x + b y + c`, `y_old = d x + e y + f`. It joins the
      resample of its neighbors; masks, boxes and targets of the image's size are moved too.
    - `affine(u, channels, low, high)`: linear in the colors. (M, N, o) with `x -> M x + N mean + o`: float32
      [batch, channels, channels] twice and [batch, channels]; the mean is the image's own. It joins the color matrix of
      its neighbors.
    - `change(images, parameters, *, noise, low, high)`: anything else, float32[batch, height, width, channels] to the
      same. `parameters` is what `parameters(u, shape)` returned, a tuple of tensors that begin with [batch], empty by
      default; `noise()` is one uniform number for each value; (low, high) is the value range, to which the result is
      clipped.

    Attributes of the class: `draws` (2), `compiled` (False; True lets XLA compile `change`), `size(old)` (height and
    width of the new image; the default leaves them).

    Example:
      >>> import dataclasses, keras
      >>> from tfopt import augment
      >>> @keras.saving.register_keras_serializable("mine")
      ... @dataclasses.dataclass(frozen=True)
      ... class Invert(augment.Op):
      ...     probability: float = 0.5
      ...     def change(self, images, parameters, *, noise, low, high):
      ...         return low + high - images
      >>> pipeline = augment.Pipeline([augment.Flip(), Invert(probability=1.0)])
      >>> pipeline.apply(tf.fill((1, 2, 2, 1), 55.0), epoch=0, index=[0])[0, 0, 0].numpy().tolist()
      [200.0]
    """

    draws = 2
    probability = 1.0
    compiled = False
    mixing = centering = True            # for `affine`: M is not diagonal; N is not zero

    def get_config(self) -> dict[str, typing.Any]:
        """The settings, as Keras saves them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, typing.Any]) -> "Op":
        """The operation of such settings."""
        return cls(**config)

    def parts(self) -> list["Op"]:
        """What the pipeline carries out in place of the operation, in order."""
        return [self]

    def not_a_layer(self) -> str:
        """What Sequential and a call say."""
        return f"An operation of augment is not a layer. Received: {self!r}. Put it into a pipeline, which is one: " \
               f"augment.Pipeline([{type(self).__name__}(...)])."

    def acts(self, u: tf.Tensor) -> tf.Tensor:
        """bool[batch]: on which images the operation acts."""
        return u[:, 0] < self.probability

    def size(self, old: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the new image, for geometry."""
        return old

    def still(self, batch: tf.Tensor, old: tuple[int, int]) -> tuple[tf.Tensor, ...]:
        """The matrix where nothing is random: outside training, for operations that change the size."""
        one, zero = tf.ones(batch), tf.zeros(batch)
        return one, zero, zero, zero, one, zero

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> tuple[tf.Tensor, ...]:
        """What `change` needs of each image; `shape` is (height, width, channels)."""
        return ()

    def _set_range(self, name, *, low, high, around=True, relative=False, remedy=""):
        """Replaces a number f by (-f, f), or by (0, f) if not `around`; refuses what is not within low .. high.

        A `relative` range is one of 1 + f, and (0.8, 1.2) was meant for another library's.
        """
        value = getattr(self, name)
        pair = tuple(value) if isinstance(value, tuple | list) else (-value if around else 0, value) \
            if isinstance(value, numbers.Real) else ()
        caller = f"augment.{type(self).__name__}"
        ok = len(pair) == 2 and all(isinstance(end, numbers.Real) and not isinstance(end, bool) for end in pair) \
            and low <= pair[0] <= pair[1] <= high
        require(ok, f"{caller}: `{name}` must be a number or a pair (low, high) within {low} .. {high}", do=remedy,
                **{name: value})
        require(not relative or not 0 < pair[0] < 1 < pair[1],
                f"{caller}: `{name}` is what is added to 1, not a range around 1", **{name: value},
                do=f"Write ({pair[0] - 1:g}, {pair[1] - 1:g}) for {pair[0]:g} to {pair[1]:g} times.")
        object.__setattr__(self, name, tuple(float(end) for end in pair))

    def _check_probability(self):
        require_number("probability", self.probability, low=0, high=1)


def kind(op):
    """Which of the three kinds an operation is, or None."""
    return next((name for name in (MOVES, RECOLORS, CHANGES) if hasattr(op, name)), None)


def between(u, ends):
    """Uniform numbers in [0, 1) stretched to a pair (low, high); exact where both ends are equal."""
    return ends[0] + u * (ends[1] - ends[0])


def per_image(values):
    """[batch] -> [batch, 1, 1, 1], to meet images."""
    return tf.reshape(values, (-1, 1, 1, 1))


def only(acts, change, images, *others):
    """Images of which those that `acts` chooses became `change(images, *others)`, computed for these alone."""
    if in_xla():                                              # which knows no shapes that depend on values
        return tf.where(acts[:, None, None, None], change(images, *others), images)
    chosen = tf.where(acts)[:, 0]

    def some():
        changed = change(*(tf.gather(part, chosen) for part in (images, *others)))
        return tf.tensor_scatter_nd_update(images, chosen[:, None], changed)

    return tf.cond(tf.reduce_any(acts), some, lambda: images)
