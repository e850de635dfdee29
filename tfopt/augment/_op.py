"""What every operation is: a frozen record of settings, which turns uniform numbers into parameters of each image."""

import dataclasses

from .._check import require, require_number
from .._keras import in_xla, tf


@dataclasses.dataclass(frozen=True)
class Op:
    """Base of all operations.

    Each image has `draws` numbers of its own, uniform in [0, 1). The first decides with `probability` whether the
    operation acts on this image at all; an image it does not act on stays as it is, bit for bit.
    """

    draws = 2                            # numbers an image needs
    geometric = False                    # moves pixels: moves masks and boxes too

    def get_config(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def acts(self, u):
        """bool[batch]: on which images the operation acts."""
        return u[:, 0] < self.probability

    def set_range(self, name, *, low, high, around=True, why=""):
        """Replaces a number f by (-f, f), or by (0, f) if not `around`; refuses what is not within low .. high."""
        value = getattr(self, name)
        pair = tuple(value) if isinstance(value, tuple | list) else (-value if around else 0, value) \
            if isinstance(value, int | float) else ()
        ok = len(pair) == 2 and all(isinstance(end, int | float) and not isinstance(end, bool) for end in pair) \
            and low <= pair[0] <= pair[1] <= high
        require(ok, f"augment.{type(self).__name__}: `{name}` must be a number or a pair (low, high) within "
                    f"{low} .. {high}", do=why, **{name: value})
        object.__setattr__(self, name, tuple(float(end) for end in pair))

    def check_probability(self):
        require_number("probability", self.probability, low=0, high=1)


def between(u, ends):
    """Uniform numbers in [0, 1) stretched to a pair (low, high); exact where both ends are equal."""
    return ends[0] + u * (ends[1] - ends[0])


def per_image(values):
    """[batch] -> [batch, 1, 1, 1], to meet images."""
    return tf.reshape(values, (-1, 1, 1, 1))


def only(acts, change, images, *others):
    """Images of which those that `acts` chooses became `change(images, *others)`, worked out for these alone."""
    if in_xla():                                              # which knows no shapes that depend on values
        return tf.where(acts[:, None, None, None], change(images, *others), images)
    chosen = tf.where(acts)[:, 0]

    def some():
        changed = change(*(tf.gather(part, chosen) for part in (images, *others)))
        return tf.tensor_scatter_nd_update(images, chosen[:, None], changed)

    return tf.cond(tf.reduce_any(acts), some, lambda: images)
