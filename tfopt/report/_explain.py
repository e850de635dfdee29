"""Saliency maps: where in an image a model finds its output, model beside model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import pandas as pd

from .. import _data, _models, _plots
from .._check import TEXT, VERBOSE, ListOf, Number, OneOf, Whole, checked, require
from .._keras import keras
from .._plots import Figure, canvas
from .._tables import Frame
from .._typing import Data, PathLike, Verbose
from . import _gradients
from ._images import as_images, names_of, one_output, running
from ._measure import MODELS, _first_inputs, _named
from ._quality import BATCH
from ._subject import is_lite

if TYPE_CHECKING:
    from ..quantize import LiteModel

TENTH = 0.1                                                # of the pixels are the ones that count most


class Explanation:
    """Saliency maps of models, and how much they agree. Prints as text, shows as HTML in a notebook.

    Attributes:
      maps: {model: float array [images, height, width]}: the higher, the more a pixel speaks for the target class.
      frame: Frame, a row for each model: the means of `images`, `same_class` (share of images whose predicted class is
        the target), and how many `maps` there are and are `constant`, which agree with nothing and are left out.
      images: Frame, a row for each (model, image): `target`, `predicted` (None of one output), `score` (the output of
        the target); and, compared with the first model's map, `correlation` (Spearman's, of ranks), `iou`
        (intersection over union of the tenth of the pixels with the largest positive values; about .05 by chance)
        and `pointing` (is its largest value within the first model's tenth; .1 by chance). Of integrated gradients also
        `lacking`: what the sum of the map lacks of the difference between the scores of image and baseline.
      x: the images, float array [images, height, width, channels].
      method: how the maps were made.

    Args:
      maps, images, x, method: as above.

    Example:
      >>> index = pd.MultiIndex.from_tuples([("net", 0)], names=["model", "image"])
      >>> table = Frame({"target": [1], "predicted": [1], "correlation": [1.0], "iou": [1.0], "pointing": [1.0]}, index)
      >>> Explanation({"net": np.eye(8)[None]}, table, np.zeros((1, 8, 8, 1)), "occlusion").frame
             correlation  iou  pointing  same_class  maps  constant
      model
      net            1.0  1.0       1.0         1.0     1         0
    """

    def __init__(self, maps: dict[str, np.ndarray], images: pd.DataFrame, x: np.ndarray, method: str):
        self.maps: dict[str, np.ndarray] = maps
        self.images: pd.DataFrame = images
        self.x: np.ndarray = x
        self.method: str = method

    @property
    def frame(self) -> pd.DataFrame:
        """The means over the images, a row for each model."""
        rows = {}
        for name, maps in self.maps.items():
            own = self.images.loc[name]
            known = own[own["predicted"].notna()]
            rows[name] = {**own[["correlation", "iou", "pointing"]].mean().to_dict(),
                          "same_class": (known["predicted"] == known["target"]).mean() if len(known) else math.nan,
                          "maps": len(maps), "constant": sum(map(_constant, maps))}
        return Frame(rows.values(), index=pd.Index(rows, name="model"))

    @checked(images=Whole(low=1))
    def plot(self, path: PathLike | None = None, *, images: int = 6) -> Figure:
        """Draws a row for each image: the image, then each model's map over it, red for the class and blue against it.

        Each map is scaled by its own largest absolute value; below it stands the rank correlation with the first's.

        Args:
          path: where the figure is saved (.png, .svg, .pdf); None saves nothing.
          images: the first so many are drawn, >= 1.

        Returns:
          The matplotlib Figure.

        Raises:
          ValueError: `images` is no whole number >= 1.
        """
        count = min(images, len(self.x))
        figure, axes = canvas(1.7 * (1 + len(self.maps)), 1.75 * count + .3, count, 1 + len(self.maps))
        least, most = self.x.min(), self.x.max()
        shown = (self.x[:count] - least) / (most - least or 1)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        for row, (image, (first, *others)) in enumerate(zip(shown, axes, strict=True)):
            first.imshow(image, cmap="gray", vmin=0, vmax=1)
            for axis, (name, maps) in zip(others, self.maps.items(), strict=True):
                axis.imshow(_overlay(image, maps[row]))
                found = self.images.loc[(name, row)]
                text = [] if found["predicted"] is None else [f"class {found['predicted']}"]
                if axis is not others[0] and not math.isnan(found["correlation"]):
                    text.append(f"\N{GREEK SMALL LETTER RHO} {found['correlation']:.2f}")
                axis.set_xlabel(", ".join(text), fontsize=8)
            first.set_xlabel(f"target {self.images.loc[(next(iter(self.maps)), row), 'target']}", fontsize=8)
        _plots.title(axes[0, 0], "image")
        for axis, name in zip(axes[0, 1:], self.maps, strict=True):
            _plots.title(axis, _plots.wrapped(name, 17))
        return _plots.save(figure, path)

    def __str__(self) -> str:
        return f"{self.method}, agreement with {next(iter(self.maps))}:\n{self.frame.round(3)}"

    __repr__ = __str__

    def _repr_html_(self) -> Any:
        return self.frame.round(3)._repr_html_()


@checked(models=MODELS, method=OneOf("gradcam", "integrated", "occlusion"),
         target=Whole(low=0) | ListOf(Whole(low=0)), output=TEXT, layer=TEXT, baseline=Number(), window=Whole(low=1),
         verbose=VERBOSE)
def explain(models: "dict[str, keras.Model | LiteModel] | list[keras.Model | LiteModel]", x: Data, *,
            method: Literal["gradcam", "integrated", "occlusion"] = "gradcam",
            target: int | Sequence[int] | None = None, output: str | None = None, layer: str | None = None,
            baseline: float = 0.0, window: int | None = None, verbose: Verbose = "auto") -> Explanation:
    """Saliency maps: which pixels speak for a class, and whether the models look at the same ones.

    - "gradcam": `relu(sum over channels of  a A)`, A the features of a layer, a the mean over positions of the gradient
      of the class' score with respect to A; resized to the image (bilinear). Functional and Sequential models.
    - "integrated" gradients: `(x - b) * integral over t in 0 .. 1 of  gradient(b + t (x - b))`, summed over channels:
      the map adds up to `score(x) - score(b)`. All Keras models.
    - "occlusion": how much the output of the class falls when a window that holds the pixel is filled with the
      baseline; the mean over the windows, which overlap by half. Keras models and LiteRT files.

    A score is the output before a softmax or sigmoid at its end, where the model is functional or Sequential; occlusion
    takes outputs as they are, so that models and files compare. Of outputs with positions (segmentation) it is the mean
    over them. The models are left as they were.

    Args:
      models: `{name: model}` or a list of models with one input: built Keras models; `quantize.LiteModel`s too for
        occlusion. The first is the one that others are compared with.
      x: images of 1 or 3 channels (the last axis; gray ones may leave it out), 8 pixels or more on each side, as the
        models take them. All maps are kept in memory: pass tens of images.
      method: see above.
      target: the class that is looked at, one or one for each image; None for the one that the first model predicts.
        Of a model with one output there is only 0: the output itself.
      output: name of the output that is looked at; None if there is one.
      layer: of "gradcam": name, or path `outer/inner` in a nested model, of a layer that every model has; None for the
        last one with positions.
      baseline: value that stands for nothing to see, in units of x: of "integrated" and "occlusion".
      window: pixels on a side, of "occlusion"; None for an eighth of the shorter side.
      verbose: 0 is silent, 1, 2 and "auto" show a progress bar.

    Returns:
      An `Explanation`: `.maps`, `.frame`, `.images`, `.plot(path)`; prints as text.

    Raises:
      ValueError: a model is not built or has several inputs, x are no such images, the class or the layer does not
        exist, or gradients are asked of a file.

    Example:
      >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
      ...                           keras.layers.Dense(3)], name="net")
      >>> found = explain([model], np.random.default_rng(0).normal(size=(2, 8, 8, 1)), verbose=0)
      >>> found.maps["net"].shape
      (2, 8, 8)

    Reference:
      Selvaraju et al., Grad-CAM, 2017. https://arxiv.org/abs/1610.02391
      Sundararajan et al., Axiomatic Attribution for Deep Networks (integrated gradients), 2017.
      https://arxiv.org/abs/1703.01365
      Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (occlusion), 2014.
      https://arxiv.org/abs/1311.2901
    """
    models = _named(models)
    for model in models.values():
        if not is_lite(model):
            _models.require_model(model, "report.explain")
    files = [name for name, model in models.items() if is_lite(model)]
    require(method == "occlusion" or not files, "a LiteRT file has no gradients", method=method, files=files,
            do='Use method="occlusion", which runs every model.')
    given = _data.read(x, _first_inputs(models), name="x", targets="ignored", finite=True).whole().x
    images = as_images(given).astype("float32")
    window = window or max(1, round(min(images.shape[1:3]) / 8))
    require(window <= min(images.shape[1:3]), "`window` must fit into the images", window=window, images=images)
    bar = keras.utils.Progbar(len(models), verbose=1 if verbose == "auto" else verbose, unit_name="model")
    maps, tables, chosen = {}, {}, None
    with running(models, images[:1].reshape(1, *given.shape[1:])) as subjects:
        names = names_of(subjects)
        for done, (name, subject) in enumerate(subjects.items(), 1):

            def predict(batch, subject=subject):
                found = one_output(subject.predict(batch.reshape(-1, *given.shape[1:])),
                                   subject.output_names or names, output)
                return _gradients.flat_scores(np.asarray(found)).numpy()

            outputs = np.concatenate([predict(images[i:i + BATCH]) for i in range(0, len(images), BATCH)])
            chosen = _targets(target, outputs, name) if chosen is None else chosen
            require(max(chosen) < outputs.shape[1], "the models must have the same classes", model=name,
                    classes=outputs.shape[1], target=int(max(chosen)))
            lacking = {}
            if method == "occlusion":
                maps[name] = np.stack([_occluded(predict, image, baseline, window, k)
                                       for image, k in zip(images, chosen, strict=True)])
            else:
                scores = _gradients.Scores(subject, output, subject.output_names or names, given.shape[1:])
                maps[name], lacking = _by_gradients(scores, images, outputs, chosen, method, layer, baseline,
                                                    name)
            predicted = outputs.argmax(1).tolist() if outputs.shape[1] > 1 else [None] * len(images)
            tables[name] = pd.DataFrame({
                "target": chosen, "predicted": np.array(predicted, object),
                "score": outputs[np.arange(len(images)), chosen],
                **_agreement(next(iter(maps.values())), maps[name]), **lacking})
            bar.update(done)
    return Explanation(maps, Frame(pd.concat(tables, names=["model", "image"])), images, method)


def _targets(target, outputs, name):
    """int[images]: the class of each."""
    count, classes = outputs.shape
    if target is None:
        return outputs.argmax(1)
    chosen = np.full(count, target) if np.ndim(target) == 0 else np.asarray(target)
    require(len(chosen) == count and max(chosen) < classes,
            "`target` must be a class, or one for each image", target=target, images=count, model=name, classes=classes)
    return chosen


def _by_gradients(scores, images, outputs, chosen, method, layer, baseline, name):
    """(maps, {column: what is lacking in their sums})."""
    require(np.allclose(scores.outputs(images[:1]), outputs[:1], rtol=1e-3, atol=1e-4),
            f'method="{method}" cannot follow this model layer by layer', model=name, do='Use method="occlusion".')
    one_hot = np.eye(outputs.shape[1], dtype="float32")[chosen]
    cam = _gradients.GradCAM(scores, images[:1], layer, name) if method == "gradcam" else None
    found = []
    for start in range(0, len(images), _gradients.BATCH):
        rows = slice(start, start + _gradients.BATCH)
        found.append((cam(images[rows], one_hot[rows]),) if cam else
                     _gradients.integrated(scores, images[rows], one_hot[rows], baseline))
    maps, *lacking = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return maps, {"lacking": lacking[0]} if lacking else {}


def _occluded(predict, image, baseline, window, target):
    """float[height, width]: the mean fall of an output over the windows that hold a pixel."""
    size, step = image.shape[:2], max(1, window // 2)
    tops, lefts = (sorted({*range(0, side - window + 1, step), side - window}) for side in size)
    places = [(slice(top, top + window), slice(left, left + window)) for top in tops for left in lefts]
    whole, total, times = predict(image[None])[0, target], np.zeros(size), np.zeros(size)
    for start in range(0, len(places), BATCH):
        batch = np.repeat(image[None], len(places[start:start + BATCH]), 0)
        for covered, place in zip(batch, places[start:], strict=False):
            covered[place] = baseline
        for place, left in zip(places[start:], predict(batch)[:, target], strict=False):
            total[place] += whole - left
            times[place] += 1
    return total / times


def _constant(values):
    return np.ptp(values) <= 1e-6 * np.abs(values).max()


def _agreement(first, maps):
    """{column: [images]} of how the maps agree with the first model's; NaN where one is constant."""
    rows = []
    for one, other in zip(first, maps, strict=True):
        if _constant(one) or _constant(other):
            rows.append((math.nan,) * 3)
            continue
        ranks = [pd.Series(part.ravel()).rank() for part in (one, other)]
        most, others = _tenth(one), _tenth(other)
        union = (most | others).sum()
        rows.append((np.corrcoef(*ranks)[0, 1], (most & others).sum() / union if union else math.nan,
                     float(most[other.argmax()])))
    return dict(zip(("correlation", "iou", "pointing"), np.transpose(rows), strict=True))


def _tenth(values):
    """bool[pixels]: the tenth of the pixels with the largest values, as far as they are positive."""
    flat, chosen = values.ravel(), np.zeros(values.size, bool)
    chosen[np.argsort(-flat, kind="stable")[:math.ceil(TENTH * values.size)]] = True
    return chosen & (flat > 0)


def _overlay(image, values):
    """RGB image: a pale image with the map over it."""
    gray = np.repeat(image.mean(-1, keepdims=True), 3, -1) if image.shape[-1] == 1 else image
    share = values / (np.abs(values).max() or 1)
    color = matplotlib.colormaps["RdBu_r"]((1 + share) / 2)[..., :3]
    weight = .85 * np.sqrt(np.abs(share))[..., None]
    return (1 - weight) * (.25 + .6 * gray) + weight * color
