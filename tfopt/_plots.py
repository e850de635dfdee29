"""What the library's figures share: canvas, colors, the Pareto front."""

import io
import pathlib
import textwrap

import matplotlib.figure
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from . import _files
from ._check import require

INK, GRAY, BLUE, ORANGE, GRID = "#1f2933", "#7b8794", "#2563a8", "#d9822b", "#e4e7eb"
COLORS = (BLUE, ORANGE, "#2e8b57", "#a23b72", "#6b7280", "#8c6d1f")


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that a notebook shows where it is the last value, without pyplot and so only once."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def shades(color):
    """A color map from white to `color`."""
    return LinearSegmentedColormap.from_list("shades", ["white", color])


def canvas(width, height, rows=1, columns=1):
    """(figure, array [rows, columns] of styled axes); sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        style(panel)
    return figure, axes


def style(axes):
    """Gray grid behind the data, no box, small gray ticks."""
    axes.grid(color=GRID, lw=.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(colors=GRAY, labelsize=8)


def title(axes, text):
    axes.set_title(text, loc="left", color=INK, fontsize=11)


def wrapped(text, width):
    """A name on as many lines of up to `width` characters as it takes.

    Example:
      >>> wrapped("activation_of_the_layer", 15)
      'activation_of_\\nthe_layer'
    """
    return "\n".join(part.replace("_ ", "_") for part in textwrap.wrap(text.replace("_", "_ "), max(width, 4)))


def save(figure, path, dpi=150):
    """Writes the figure, if there is a path, in the format of its ending, and makes its folder; returns the figure."""
    if path is not None:
        require(pathlib.Path(path).suffix in (".png", ".pdf", ".svg"), "`path` must end with .png, .pdf or .svg",
                path=path)
        _files.make_folder(pathlib.Path(path).parent, "path")
        with _files.whole(path) as part:
            figure.savefig(part, dpi=dpi)
    return figure


def front(costs, tolerance=0.):
    """Indices of the Pareto front: the rows that no other row dominates (no worse in any column, better in one).

        j dominates i  <=>  all_c cost_jc <= (1 + t_c) cost_ic  and  any_c (1 + t_c) cost_jc < cost_ic

    Args:
      costs: array [n, columns]; less is better.
      tolerance: relative, one for all columns or one a column: what differs by less is a tie.

    Example:
      >>> front([[1, 9], [2, 5], [3, 6], [2, 5]])
      [0, 1, 3]
    """
    costs = np.asarray(costs, float)
    factor = 1 + np.broadcast_to(tolerance, costs.shape[1:])

    def dominated(cost):
        return ((costs <= factor * cost).all(axis=1) & (factor * costs < cost).any(axis=1)).any()

    return [i for i, cost in enumerate(costs) if not dominated(cost)]
