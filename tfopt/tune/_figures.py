"""The figure of a search: what happened, what mattered, which values went together."""

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .._check import require
from .._plots import BLUE, GRAY, INK, ORANGE, Figure, style, title, wrapped
from ._importance import shares
from ._study import costs, front


def require_done(trials):
    done = [trial for trial in trials if trial.status in ("completed", "stopped")]
    require(done, "tune.Search needs a completed trial", trials=len(trials), do="Call `run` first.")
    return done


def draw(trials, space, objectives):
    """The Figure that `Search.plot` promises."""
    done = require_done(trials)
    name, way = next(iter(objectives.items()))
    scores = np.array([trial.scores[name] for trial in done])
    values = tunable(done)
    several = len(objectives) > 1
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    top = figure.subfigures(2, 1, height_ratios=[1, 1.05])
    panels = top[0].subplots(1, 3 if several else 2)
    history(panels[0], done, scores, name, way)
    bars(panels[1], shares(done, space, objectives)[name] if len(done) > 1 else pd.Series(dtype=float), name)
    if several:
        pareto(panels[2], done, objectives)
    for panel in panels:
        style(panel)
    parallel(top[1].subplots(), values, scores, name, way)
    return figure


def tunable(trials):
    """Table of the values that differ between the trials."""
    values = pd.DataFrame([trial.values for trial in trials])
    values = values[[column for column in values if not column.startswith("tuner/") or column == "tuner/epochs"]]
    return values[[column for column in values if values[column].nunique(dropna=False) > 1]]


def history(axes, trials, scores, name, way):
    numbers = [trial.number for trial in trials]
    best = np.maximum.accumulate(scores) if way == "max" else np.minimum.accumulate(scores)
    axes.scatter(numbers, scores, s=22, color=GRAY, label="trial", zorder=2)
    axes.step(numbers, best, where="post", color=BLUE, lw=1.8, label="best so far", zorder=3)
    title(axes, "history")
    axes.set_xlabel("trial")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)


def bars(axes, shares, name):
    shares = shares.nlargest(10)
    axes.barh([wrapped(name, 22) for name in shares.index], shares, color=BLUE, height=.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    title(axes, "importance")
    axes.set_xlabel(f"share in reaching the best {name}")


def pareto(axes, trials, objectives):
    """The first two objectives; the front is that of all of them."""
    (first, _), (second, _) = list(objectives.items())[:2]
    best = sorted(front(trials, objectives), key=lambda trial: costs(trial, objectives)[1])
    axes.scatter([t.scores[second] for t in trials], [t.scores[first] for t in trials], s=22, color=GRAY)
    axes.plot([t.scores[second] for t in best], [t.scores[first] for t in best], "o-", color=BLUE, ms=5, lw=1.4)
    title(axes, "Pareto front")
    axes.set_xlabel(second)
    axes.set_ylabel(first)


def parallel(axes, values, scores, name, way):
    """One line for each trial through its values; the best ones on top and in color."""
    columns = [*values.columns, name]
    table = values.assign(**{name: scores})
    heights = np.column_stack([place_of(axes, at, table[column]) for at, column in enumerate(columns)])
    rank = pd.Series(scores if way == "max" else -scores).rank(pct=True).to_numpy()
    order = np.argsort(rank)
    lines = LineCollection([np.column_stack([range(len(columns)), heights[i]]) for i in order], linewidths=1.4,
                           colors=[ORANGE if rank[i] > 0.9 else BLUE for i in order],
                           alpha=[0.95 if rank[i] > 0.9 else 0.12 + 0.3 * rank[i] for i in order])
    axes.add_collection(lines)
    axes.vlines(range(len(columns)), 0, 1, color=GRAY, lw=.8)
    axes.set_xlim(-.3, len(columns) - .3)
    axes.set_ylim(-.12, 1.06)
    axes.set_xticks(range(len(columns)), [wrapped(column, 120 // len(columns)) for column in columns], fontsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    title(axes, "values of each trial (the best tenth in orange)")


def place_of(axes, at, column):
    """Heights in 0..1 of a column, with a few of its values written beside its axis."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        numbers = column.to_numpy(float)
        known = numbers[np.isfinite(numbers)]
        scale = scale_of(known)
        low, high = scale(known.min()), scale(known.max())
        heights = (scale(np.where(np.isfinite(numbers), numbers, known.min())) - low) / (high - low or 1)
        marks = {0.: f"{known.min():.4g}", 1.: f"{known.max():.4g}"}
    else:
        names = sorted(column.dropna().astype(str).unique())
        places = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
        heights = column.astype(str).map(places).to_numpy(float)
        numbers, marks = heights, {place: name for name, place in places.items()}
    for height, text in marks.items():
        axes.text(at + .02, height, text, fontsize=7.5, color=INK, va="center",
                  path_effects=[withStroke(linewidth=3, foreground="white")])
    return np.where(np.isfinite(numbers), heights, -.1)                # below the axis: this trial has no such value


def scale_of(known):
    """np.log for numbers of several magnitudes whose logarithms lie more evenly, else np.asarray."""
    if known.min() <= 0 or known.max() / known.min() < 30:
        return np.asarray

    def slant(values):
        return abs((np.median(values) - values.min()) / (values.max() - values.min()) - 0.5)

    return np.log if slant(np.log(known)) < slant(known) else np.asarray
