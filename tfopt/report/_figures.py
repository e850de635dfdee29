"""The two figures: accuracy against cost, and a training run."""

from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .. import _plots
from .._check import require
from .._keras import keras
from .._plots import BLUE, COLORS, GRAY, INK, Figure, canvas, front

COSTS = {"gzip": ("gzip size, kB", 1e3), "bytes": ("size, kB", 1e3), "parameters": ("parameters, thousands", 1e3),
         "nonzeros": ("non-zero parameters, thousands", 1e3), "macs": ("multiply-accumulates, millions", 1e6),
         "latency_ms": ("latency of one example, ms", 1)}


def pareto(rows, x, title):
    """Figure of accuracy (or error) against the cost `x`."""
    measure = "accuracy" if all(row.accuracy is not None for row in rows) else "mae"
    require(all(getattr(row, key) is not None for row in rows for key in (x, measure)),
            f"a figure needs `{x}` and an accuracy or an error of every model",
            lacking=[row.name for row in rows if None in (getattr(row, x), getattr(row, measure))],
            do="Pass `data` to report.compare.")
    label, unit = COSTS[x]
    scale, better = (100, 1) if measure == "accuracy" else (1, -1)
    cost = np.array([getattr(row, x) / unit for row in rows])
    value, low, high = (scale * np.array([getattr(row, key) for row in rows]) for key in (measure, "low", "high"))
    figure, ((axes,),) = canvas(7.2, 4.2)
    first = sorted(front(np.column_stack([cost, -better * value]), (0.01, 0)), key=lambda i: cost[i])
    axes.plot(cost[first], value[first], color=BLUE, alpha=.35, lw=1.5, zorder=1)
    colors = [BLUE if i in first else GRAY for i in range(len(rows))]
    axes.vlines(cost, low, high, colors=colors, lw=1.2, alpha=.6, zorder=2)
    axes.scatter(cost, value, s=48, color=colors, zorder=3)
    if cost.min() > 0 and cost.max() / cost.min() > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=.18, y=.15)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, % (95% interval)" if measure == "accuracy" else "mean absolute error (95% interval)")
    _plots.title(axes, title)
    _label(figure, axes, [row.name for row in rows], cost, value, (low, high))
    return figure


def _label(figure, axes, names, xs, ys, bars):
    """Puts each name beside its point, where it covers least of what is already there."""
    figure.draw_without_rendering()                                  # so that the layout is settled
    at, ends, starts = (axes.transData.transform(np.column_stack([xs, y])) for y in (ys, *bars[::-1]))
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    taken += [(x - 2, bottom, x + 2, top) for (x, bottom), (_, top) in zip(starts, ends, strict=True)]
    frame = axes.get_window_extent()
    sides = [(8, 0, "left", "center"), (-8, 0, "right", "center"), (8, 9, "left", "bottom"), (8, -9, "left", "top"),
             (-8, 9, "right", "bottom"), (-8, -9, "right", "top")]
    for name, x, y in zip(names, xs, ys, strict=True):
        tries = []
        for dx, dy, ha, va in sides:
            text = axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9,
                                 color=INK, zorder=4)
            box = text.get_window_extent()
            text.remove()
            covered = sum(max(0, min(box.x1, x1) - max(box.x0, x0)) * max(0, min(box.y1, y1) - max(box.y0, y0))
                          for x0, y0, x1, y1 in taken)
            outside = max(0, frame.x0 - box.x0) + max(0, box.x1 - frame.x1)
            tries.append((covered + 50 * outside, len(tries), (dx, dy, ha, va), box))
        _, _, (dx, dy, ha, va), box = min(tries, key=lambda entry: entry[:2])
        axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9, color=INK, zorder=4,
                      path_effects=[withStroke(linewidth=3, foreground="white")])
        taken.append((box.x0, box.y0, box.x1, box.y1))


def curves(history: Any) -> Figure:
    """Learning curves: a panel for each metric, solid on the training data, dashed on the validation data.

    Args:
      history: what `fit` returned, or its `.history`; or `{name: either}` for several runs in one figure.

    Returns:
      The matplotlib Figure; `figure.savefig(path)` saves it.

    Raises:
      ValueError: there is nothing to draw.

    Example:
      >>> figure = curves({"loss": [1., .5], "val_loss": [1.1, .7], "accuracy": [.5, .8]})
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['loss', 'accuracy']
    """
    runs = _runs(history)
    metrics = list(dict.fromkeys(key.removeprefix("val_") for run in runs.values() for key in run))
    require(metrics, "report.curves needs a History that saw at least one epoch", history=history,
            do="Pass what model.fit returned.")
    figure, (axes,) = canvas(4.2 * len(metrics), 3.4, columns=len(metrics))
    for panel, metric in zip(axes, metrics, strict=True):
        for color, (name, run) in zip(COLORS * len(runs), runs.items(), strict=False):
            for key, style in ((metric, "-"), (f"val_{metric}", "--")):
                if key in run:
                    part = "validation" if key.startswith("val_") else "training"
                    panel.plot(range(1, len(run[key]) + 1), run[key], style, color=color, lw=1.6,
                               label=f"{name}, {part}" if name and part == "validation" else name or part)
        _plots.title(panel, metric.replace("_", " "))
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(frameon=False, fontsize=8)
    return figure


def _runs(history):
    """{name: {metric: values}} of whatever `curves` takes."""
    history = getattr(history, "history", history)
    kinds = keras.callbacks.History, dict
    require(isinstance(history, dict), "report.curves needs a History, its `.history`, or a dict of them",
            history=type(history).__name__)
    runs = history if history and all(isinstance(run, kinds) for run in history.values()) else {"": history}
    found = {str(name): getattr(run, "history", run) for name, run in runs.items()}
    require(all(isinstance(key, str) and hasattr(values, "__len__") and not isinstance(values, str)
                for run in found.values() for key, values in run.items()),
            "report.curves needs a list of numbers, one each epoch, for each metric", history=history)
    return found
