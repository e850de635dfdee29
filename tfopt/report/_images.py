"""What `robustness` and `explain` share: images, models that are run on them, and one of their outputs."""

import contextlib

from .._check import require
from ._measure import subject_of
from ._quality import by_output


@contextlib.contextmanager
def running(models, example):
    """{name: subject} of models that are put back as they were; `example` is a batch of inputs."""
    subjects = {name: subject_of(model, name, example[:1]) for name, model in models.items()}
    with contextlib.ExitStack() as stack:
        for subject in subjects.values():
            stack.enter_context(subject.unchanged())
        yield subjects


def as_images(x):
    """x as [images, height, width, channels], uint8 or floating; refuses what are no images of 1 or 3 channels."""
    require(hasattr(x, "shape"), "the models must have one input: images", x=x,
            do="Make a model of the one input with the others held, or leave such models out.")
    images = x[..., None] if x.ndim == 3 else x
    require(images.ndim == 4 and images.shape[3] in (1, 3) and min(images.shape[1:3]) >= 8
            and images.dtype.kind in "uif",
            "x must be images [images, height, width, channels] of 1 or 3 channels, 8 pixels or more on each side", x=x)
    return images if images.dtype in ("uint8", "float32") else images.astype("float32")


def require_range(images, value_range):
    """Refuses images outside of the range, and such as must be from 0 .. 1 where it is wider."""
    least, most = float(images.min()), float(images.max())
    slack = 1e-3 * (value_range[1] - value_range[0])
    require(value_range[0] - slack <= least and most <= value_range[1] + slack
            and not (value_range[1] > 2 and least >= -1 and most <= 1 and (images != images.round()).any()),
            "the images must be of the `value_range`", value_range=value_range, found=(least, most),
            do="Say what they are, e.g. value_range=(0, 1).")


def names_of(subjects):
    """The names of the outputs, from the first model that has some."""
    return next((list(subject.output_names) for subject in subjects.values() if subject.output_names), [])


def one_output(values, names, output):
    """The output that is meant, of what a model (or y) holds for all of them."""
    found = by_output(values, names)
    if output is None:
        require(len(found) == 1, "`output` must say which output is meant", output=output, outputs=list(found))
        return next(iter(found.values()))
    require(output in found, "`output` must name one of the outputs", output=output, outputs=list(found))
    return found[output]
