"""What every operation is: a frozen record of settings, which turns uniform numbers into parameters of each image."""

import dataclasses
import numbers
import typing

from .._check import NO, Constraint, Number, Whole, checked
from .._keras import NotALayer, in_xla, serializable, tf

Tensors = tuple[tf.Tensor, ...]
Noise = typing.Callable[[typing.Sequence[int]], tf.Tensor]                  # shape -> uniform numbers [batch, *shape]
PROBABILITY = Number(low=0, high=1)
TURN = "It is a fraction of a full turn: 15 degrees are 15 / 360."
MOVES, BENDS, RECOLORS, CHANGES = "matrix", "shifts", "affine", "change"    # the kinds, by the method that makes them
WAVES, SPECTRA, TOKENS = "waves", "spectra", "tokens"                       # and those of what is no image


@dataclasses.dataclass(frozen=True)
class Op(NotALayer):
    """Base of all operations of a `Pipeline`; subclass it to write one of your own.

    A subclass is a frozen dataclass of its settings, registered with Keras so that it is saved with the model, and has
    one of these methods. Each example has `draws` numbers of its own, uniform in [0, 1): `u`, float32[batch, draws].
    The first decides with `probability` whether the operation acts on this example at all; one it does not act on stays
    as it is, bit for bit. Nothing acts outside training, but for changes of size.

    - `matrix(u, old)`: geometry, from the (height, width) of the old image. The six float32[batch] (a, b, c, d, e, f)
      that say where each pixel comes from, in pixels from the center, x to the right and y down:
      `x_old = a x + b y + c`, `y_old = d x + e y + f`; or nine, whose last three (g, h, i) are a perspective: both are
      divided by `g x + h y + i`. It joins the resample of its neighbors; masks, boxes, keypoints and targets of the
      image's size are moved too.
    - `shifts(u, noise, old)`: geometry that is no matrix. float32[batch, height, width, 2]: how far to the right and
      down of itself each pixel comes from; `noise(shape)` are uniform numbers [batch, *shape] for a shape of three. It
      ends a resample.
    - `affine(u, channels, low, high)`: linear in the colors. (M, N, o) with `x -> M x + N mean + o`: float32
      [batch, channels, channels] twice and [batch, channels]; the mean is the image's own. It joins the color matrix of
      its neighbors.
    - `change(images, parameters, *, noise, low, high)`: anything else, float32[batch, height, width, channels] to the
      same. `parameters` is what `parameters(u, shape)` returned, a tuple of tensors that begin with [batch], empty by
      default; `noise()` is one uniform number for each value; (low, high) is the value range, to which the result is
      clipped.
    - `waves(waves, u, noise)`, `spectra(spectra, u, noise)`, `tokens(tokens, u, noise)`: waveforms, float32[batch,
      samples, channels], spectrograms, float32[batch, rows, columns, channels], or token sequences, int64[batch,
      length], to the same; `noise(shape)` are uniform numbers [batch, *shape]. A size may be unknown before it runs.

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

    draws: typing.ClassVar[int] = 2
    if typing.TYPE_CHECKING:                           # at run time, an annotated one comes first in subclasses
        probability: typing.ClassVar[float]
    probability = 1.0
    compiled: typing.ClassVar[bool] = False
    mixing: typing.ClassVar[bool] = True               # for `affine`: M is not diagonal
    centering: typing.ClassVar[bool] = True            # for `affine`: N is not zero
    moving: typing.ClassVar[bool] = False              # for `change`: it also takes the pipeline's settings

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

    def still(self, batch: tf.Tensor, old: tuple[int, int]) -> Tensors:
        """The matrix where nothing is random: outside training, for operations that change the size."""
        one, zero = tf.ones(batch), tf.zeros(batch)
        return one, zero, zero, zero, one, zero

    def parameters(self, u: tf.Tensor, shape: tuple[int, int, int]) -> Tensors:
        """What `change` needs of each image; `shape` is (height, width, channels)."""
        return ()


class Range(Constraint):
    """A pair (low, high) of which each image draws its value, or a number f that stands for one.

    Args:
      low, high: what both ends lie within.
      number: what f stands for: "around" (-f, f), "up" (0, f) or "both" (f, f).
      relative: it is added to 1, and (0.8, 1.2) or (0.8, 1) was meant for a library that multiplies by it.
      whole: whole numbers only.
      do: what to say of a value that does not fit.

    Example:
      >>> Range(-1, 1)(0.5), Range(0, 1, number="up")((0.1, 1)), Range(-1, 1)(2) is NO
      ((-0.5, 0.5), (0.1, 1.0), True)
    """

    def __init__(self, low, high, *, number="around", relative=False, whole=False, do=""):
        self.end, self.number, self.relative, self.do = (Whole if whole else Number)(low=low, high=high), number, \
            relative, do
        self.plain = int if whole else float
        self.text = f"a number or a pair (low, high) within {low} .. {high}"

    def __call__(self, value):
        pair = tuple(value) if isinstance(value, tuple | list) else self._pair(value)
        ends = [self.end(end) for end in pair]
        if len(ends) != 2 or NO in ends or ends[0] > ends[1] or self._around_one(ends):
            return NO
        return tuple(map(self.plain, ends))

    def _pair(self, value):
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return ()
        return {"around": (-value, value), "up": (0, value), "both": (value, value)}[self.number]

    def _around_one(self, ends):
        return self.relative and 0 < ends[0] <= 1 <= ends[1] and ends[0] < ends[1]

    def hint(self, value):
        if (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, numbers.Real) for end in value)
                and self._around_one(value)):
            low, high = value
            return f"It is added to 1: write ({low - 1:g}, {high - 1:g}) for {low:g} to {high:g} times."
        return self.do


@typing.dataclass_transform(frozen_default=True)
def operation(**constraints: Constraint) -> typing.Callable[[type], type]:
    """Class decorator: a frozen dataclass whose arguments are checked, saved by Keras under `tfopt.augment`."""

    def decorate(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
        cls.__init__ = checked(**constraints)(cls.__init__)
        return serializable(cls)

    return decorate


def kind(op):
    """Which of the kinds an operation is, or None."""
    return next((name for name in (MOVES, BENDS, RECOLORS, CHANGES, WAVES, SPECTRA, TOKENS) if hasattr(op, name)), None)


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
