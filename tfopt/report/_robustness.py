"""Accuracy under corrupted images, model beside model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from .. import _data, _models, _plots
from .._check import SEED, TEXT, VERBOSE, ListOf, Number, OneOf, Rule, Whole, checked
from .._keras import keras
from .._plots import COLORS, Figure, canvas
from .._tables import Frame
from .._typing import Data, PathLike, Verbose
from . import _corruptions
from ._images import as_images, names_of, one_output, require_range, running
from ._measure import MODELS, _first_inputs, _named
from ._quality import BATCH
from ._score import Z, are_logits, per_example
from ._subject import is_lite

if TYPE_CHECKING:
    from ..quantize import LiteModel

CHUNK = 2**24                                              # pixels that are corrupted at once
_RANGE = Rule("a pair (lowest, highest) of numbers",
              lambda pair: isinstance(ListOf(Number(), length=2)(pair), list | tuple) and pair[0] < pair[1], tuple)


class Robustness:
    """Accuracy under corrupted images, model beside model. Prints as text, shows as HTML in a notebook.

    Attributes:
      frame: Frame, a row for each (corruption, severity), ("clean", 0) first, and a column for each model: accuracy,
        or the mean absolute error where the labels are no classes.
      summary: Frame, a row for each model: `clean`; `mean` over all corruptions and severities; `relative`, mean over
        clean; `worst`, the corruption with the worst mean; `difference` of the mean from the first model's, with its
        95% interval `low`, `high` (normal; paired, since all models saw the same images); `examples`.
      measure: "accuracy" or "mae".
      images: {(corruption, severity): the first image, float array of 0 to 1}.

    Args:
      frame, summary, measure, images: as above.

    Example:
      >>> index = pd.MultiIndex.from_tuples([("clean", 0), ("fog", 1), ("fog", 3)], names=["corruption", "severity"])
      >>> found = Robustness(Frame({"small": [.9, .8, .6]}, index), Frame({"clean": [.9]}, ["small"]), "accuracy", {})
      >>> found.by_corruption
                  small
      corruption
      clean         0.9
      fog           0.7
    """

    def __init__(self, frame: pd.DataFrame, summary: pd.DataFrame, measure: str, images: dict[Any, np.ndarray]):
        self.frame: pd.DataFrame = frame
        self.summary: pd.DataFrame = summary
        self.measure: str = measure
        self.images: dict[Any, np.ndarray] = images

    @property
    def by_corruption(self) -> pd.DataFrame:
        """`frame`, with the mean over the severities."""
        return Frame(self.frame.groupby("corruption", sort=False).mean())

    def plot(self, path: PathLike | None = None) -> Figure:
        """Draws a panel for each corruption, and one for their mean: the measure against the severity, 0 is clean.

        Args:
          path: where the figure is saved (.png, .svg, .pdf); None saves nothing.

        Returns:
          The matplotlib Figure.
        """
        corrupted = self.frame.drop(index="clean", level=0)
        panels = {"mean": corrupted.groupby("severity").mean(),
                  **{name: part.droplevel("corruption") for name, part in corrupted.groupby("corruption", sort=False)}}
        columns = min(4, len(panels) + 1)
        rows = math.ceil((len(panels) + 1) / columns)
        figure, axes = canvas(2.6 * columns, 2.1 * rows, rows, columns)
        scale = 100 if self.measure == "accuracy" else 1
        clean = self.frame.loc[("clean", 0)]
        for panel, (name, part) in zip(axes.flat, panels.items(), strict=False):
            panel.sharey(axes[0, 0])
            for i, model in enumerate(part):                           # wide ones first: equal lines show beneath
                width = 1.2 + 4 * (1 - (i + 1) / part.shape[1])
                panel.plot([0, *part.index], scale * np.array([clean[model], *part[model]]), "o-", ms=2 + width,
                           lw=width, color=COLORS[i % len(COLORS)], label=model)
            _plots.title(panel, name)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in axes.flat[len(panels):]:
            panel.set_axis_off()
        axes.flat[len(panels)].legend(*axes[0, 0].get_legend_handles_labels(), loc="center left", frameon=False)
        figure.supxlabel("severity (0: clean)", fontsize=9)
        figure.supylabel("accuracy, %" if self.measure == "accuracy" else "mean absolute error", fontsize=9)
        return _plots.save(figure, path)

    def preview(self, path: PathLike | None = None) -> Figure:
        """Draws the first image under each corruption (rows) and severity (columns), the clean one first.

        Args:
          path: where the figure is saved (.png, .svg, .pdf); None saves nothing.

        Returns:
          The matplotlib Figure.
        """
        names = list(dict.fromkeys(name for name, _ in self.images if name != "clean"))
        severities = sorted({severity for _, severity in self.images})
        figure, axes = canvas(1.3 * len(names), 1.4 * len(severities), len(severities), len(names))
        for column, name in zip(axes.T, names, strict=True):
            _plots.title(column[0], name)
            for panel, severity in zip(column, severities, strict=True):
                panel.imshow(self.images[(name, severity) if severity else ("clean", 0)], cmap="gray", vmin=0, vmax=1)
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
        for panel, severity in zip(axes[:, 0], severities, strict=True):
            panel.set_ylabel(f"severity {severity}" if severity else "clean", fontsize=9)
        return _plots.save(figure, path)

    def _parts(self):
        digits = dict(clean=4, mean=4, relative=3, difference=4, low=4, high=4)
        return self.summary.round(digits), self.by_corruption.round(4)

    def __str__(self) -> str:
        summary, table = self._parts()
        return f"{summary}\n\n{self.measure}, mean over the severities:\n{table}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        summary, table = self._parts()
        return (f"{summary._repr_html_()}<p>{self.measure}, mean over the severities:</p>{table._repr_html_()}")


@checked(models=MODELS, severities=ListOf(Whole(low=1, high=5)), corruptions=ListOf(OneOf(*_corruptions.NAMES)),
         output=TEXT, value_range=_RANGE, seed=SEED, verbose=VERBOSE)
def robustness(models: "dict[str, keras.Model | LiteModel] | list[keras.Model | LiteModel]", data: Data, *,
               severities: Sequence[int] = (1, 3, 5), corruptions: Sequence[str] | None = None,
               output: str | None = None, value_range: tuple[float, float] = (0, 255), seed: int = 0,
               verbose: Verbose = "auto") -> Robustness:
    """Corruption robustness: accuracy on corrupted images, for each corruption, severity and model.

    | corruption | what it does | strength at severity 1 .. 5, images of 32 pixels | of 224 pixels |
    |---|---|---|---|
    | `noise` | Gaussian noise | .04 .. .10 of the range | .08 .. .38 |
    | `blur` | Gaussian blur | sigma .4 .. 1 pixel | 1 .. 6 |
    | `brightness` | adds to all channels | .05 .. .3 of the range | .1 .. .5 |
    | `contrast` | squeezes colors about their mean | to .75 .. .15 | .4 .. .05 |
    | `jpeg` | JPEG compression | quality 80 .. 40 | 25 .. 7 |
    | `fog` | adds clouds, scaled back to the image's lightest value | .2 .. 1.5 of the range | 1.5 .. 3 |
    | `pixelate` | larger pixels | .95 .. .65 as many on a side | .6 .. .25 |
    | `rotation` | to the left or to the right | .1 .. .5 radians (6 .. 29 degrees) | the same |
    | `translation` | to one of the four corners | 1/28 .. 5/28 of the size | the same |
    | `occlusion` | a gray square at a random place | .04 .. .25 of the area | the same |

    The strengths of the first seven are those of CIFAR-10-C (shorter side below 48 pixels), Tiny ImageNet-C (below 128)
    and ImageNet-C; those of rotation and translation are MNIST-C's, the angles halved. What comes from outside of an
    image is its reflection. All random numbers are a hash of `seed` and the example's place in the data: every model
    sees the same images, and so does the next call. Where labels have the size of the images (segmentation), rotation
    and translation move them too. The models are left as they were.

    Args:
      models: `{name: model}` or a list of models with one input: built Keras models and `quantize.LiteModel`s. The
        first is the one that others are compared with.
      data: `(x, y)` as `fit` takes it; x: images of 1 or 3 channels (the last axis; gray ones may leave it out), 8
        pixels or more on each side. All of it is kept in memory. Labels are those of `compare`.
      severities: whole numbers from 1 to 5.
      corruptions: names from the table; None for all.
      output: name of the output that is looked at; None if there is one.
      value_range: (lowest, highest) value of the images: (0, 255), (0, 1), (-1, 1) ...
      seed: of the corruptions, >= 0.
      verbose: 0 is silent, 1, 2 and "auto" show a progress bar.

    Returns:
      A `Robustness`: `.summary`, `.frame`, `.plot(path)`, `.preview(path)`; prints as text.

    Raises:
      ValueError: a model is not built or has several inputs, x are no such images, or not of the value range.

    Example:
      >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)], name="net")
      >>> x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype("uint8")
      >>> found = robustness([model], (x, np.arange(20) % 3), corruptions=("noise", "fog"), verbose=0)
      >>> found.frame.index.tolist()
      [('clean', 0), ('noise', 1), ('noise', 3), ('noise', 5), ('fog', 1), ('fog', 3), ('fog', 5)]

    Reference:
      Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, 2019.
      https://arxiv.org/abs/1903.12261
      Mu and Gilmer, MNIST-C: A Robustness Benchmark for Computer Vision, 2019. https://arxiv.org/abs/1906.02337
    """
    models = _named(models)
    for model in models.values():
        if not is_lite(model):
            _models.require_model(model, "report.robustness")
    data = _data.read(data, _first_inputs(models), targets="required", finite=True).whole()
    images = as_images(data.x)
    require_range(images, value_range)
    low, high = value_range
    cells = [("clean", 0), *((name, severity) for name in dict.fromkeys(corruptions or _corruptions.NAMES)
                             for severity in sorted(set(severities)))]
    bar = keras.utils.Progbar(len(cells), verbose=1 if verbose == "auto" else verbose, unit_name="corruption")
    means, logits, shown, measure = {}, {}, {}, ""
    total = {name: np.zeros(len(images)) for name in models}
    with running(models, images[:1].reshape(1, *data.x.shape[1:])) as subjects:
        y = np.asarray(one_output(data.y, names_of(subjects), output))
        for done, cell in enumerate(cells, 1):
            views, labels = _corrupted(images, y, cell, value_range, seed)
            shown[cell] = np.clip((views[0].astype("float32") - low) / (high - low), 0, 1)
            for name, outputs in _outputs(subjects, views.reshape(data.x.shape), output).items():
                if cell == cells[0]:
                    stated = subjects[name].logits
                    logits[name] = are_logits(outputs) if stated is None else stated
                measure, values = per_example(outputs, labels, name, logits[name])
                means.setdefault(cell, {})[name] = values.mean()
                if cell != cells[0]:
                    total[name] += values / (len(cells) - 1)
            bar.update(done)
    frame = Frame(list(means.values()), index=pd.MultiIndex.from_tuples(means, names=["corruption", "severity"]))
    return Robustness(frame, _summary(frame, total, measure), measure, shown)


def _corrupted(images, y, cell, value_range, seed):
    """(images, labels) as a corruption leaves them."""
    name, severity = cell
    corrupt = _corruptions.pipeline(name, severity, images.shape[1:3], value_range=value_range, seed=seed)
    moves = y.ndim in (3, 4) and y.shape[1:3] == images.shape[1:3]
    labels = y.astype("int32") if moves and (y == y.round()).all() else y      # whole ones stay whole
    parts, chunk = [], max(1, min(4096, CHUNK // images[0].size))      # a call costs 0.1 s for any number of images
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        index = np.arange(start, start + len(images[rows]))
        found = corrupt.apply(images[rows], *([labels[rows]] if moves else []), epoch=0, index=index)
        parts.append([part.numpy() for part in (found if moves else [found])])
    views, *moved = (np.concatenate(column) for column in zip(*parts, strict=True))
    return views, (moved[0] if moves else y)


def _outputs(subjects, x, output):
    """{name: float32 array of the output} of all models."""
    found = {name: [] for name in subjects}
    names = names_of(subjects)
    for start in range(0, len(x), BATCH):
        for name, subject in subjects.items():
            values = one_output(subject.predict(x[start:start + BATCH]), subject.output_names or names, output)
            found[name].append(np.asarray(values, "float32"))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _summary(frame, total, measure):
    """A row for each model."""
    by_name, rows, first = frame.drop(index="clean", level=0).groupby("corruption", sort=False).mean(), {}, None
    for name, values in total.items():
        clean, mean = frame.loc[("clean", 0), name], values.mean()
        row = rows[name] = {"clean": clean, "mean": mean, "relative": mean / clean if clean else math.nan,
                            "worst": by_name[name].idxmin() if measure == "accuracy" else by_name[name].idxmax()}
        if first is not None:
            gap = values - first
            reach = Z * gap.std() / math.sqrt(len(gap))
            row |= {"difference": gap.mean(), "low": gap.mean() - reach, "high": gap.mean() + reach}
        first = values if first is None else first
        row["examples"] = len(values)
    columns = ["clean", "mean", "relative", "worst", *(["difference", "low", "high"] if len(rows) > 1 else []),
               "examples"]
    return Frame(rows.values(), index=pd.Index(rows, name="model"), columns=columns)
