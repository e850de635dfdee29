"""95% intervals of measures, and paired tests of each model against the first one."""

import numpy as np
import scipy.stats

from ._measures import MEASURES, value
from ._score import wilson

DRAWS, SEED, NUMBERS = 1000, 0, 4_000_000                            # of the bootstrap; weights in memory at once


def measured(samples, names):
    """{model: {column: number}} of the measures `names`, on samples of the same examples.

    The columns of a measure are itself, `_low`, `_high` and, but for the first model, `_difference` from it with its
    interval, `_difference_low` and `_difference_high`, and `_p`. Of measures by class there is a set for each class.
    """
    drawn = _drawn({(model, name): MEASURES[name].draw(sample) for model, sample in samples.items() for name in names},
                   len(next(iter(samples.values())).labels))
    first = next(iter(samples))
    values = {(model, name): np.atleast_1d(value(name, sample)) for model, sample in samples.items() for name in names}
    found = {model: {} for model in samples}
    for (model, name), sample in ((key, samples[key[0]]) for key in values):
        several = name.endswith("_per_class")
        lows, highs = _interval(MEASURES[name], sample, values[model, name], drawn[model, name])
        p = None if model == first else _p(MEASURES[name], samples[first], sample, drawn[first, name],
                                           drawn[model, name])
        for k, own in enumerate(values[model, name]):
            column = f"{name.removesuffix('per_class')}{k}" if several else name
            found[model] |= {column: float(own), f"{column}_low": float(lows[k]), f"{column}_high": float(highs[k])}
            if p is not None:
                low, high = _percentiles(drawn[model, name][:, k] - drawn[first, name][:, k])
                found[model] |= {f"{column}_difference": float(own - values[first, name][k]),
                                 f"{column}_difference_low": float(low), f"{column}_difference_high": float(high),
                                 f"{column}_p": float(p[k])}
    return found


def _drawn(draws, n):
    """{key: [DRAWS, values]}: each on the same resampled examples."""
    random, found = np.random.default_rng(SEED), {key: [] for key in draws}
    for part in np.array_split(np.arange(DRAWS), max(1, DRAWS * n // NUMBERS)):
        weights = np.stack([np.bincount(random.integers(0, n, n), minlength=n) for _ in part]).astype(float)
        for key, draw in draws.items():
            values = draw(weights)
            if isinstance(values, tuple):
                values = np.divide(*values, out=np.zeros_like(values[0]), where=values[1] > 0)
            found[key].append(values.reshape(len(part), -1))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _percentiles(values):
    return np.nanpercentile(values, (2.5, 97.5), axis=0)             # a draw may lack the class it is about


def _interval(measure, sample, values, drawn):
    """(low, high), each [values]: Wilson's of a share of examples, else the bootstrap's."""
    if sample.labels.shape[1] == 1 or measure.hits:                  # positions of one example are no separate ones
        shares = measure.draw(sample)(np.ones((1, len(sample.labels))))
        if isinstance(shares, tuple):
            pairs = zip(*(part.ravel() for part in shares), strict=True)
            return np.array([wilson(right / n * n, n) if n else (0., 1.) for right, n in pairs]).T
    low, high = _percentiles(drawn)
    if measure.biased:                                               # the "basic" bootstrap: it moves as far down
        low, high = np.clip(2 * values - high, 0, values), np.maximum(2 * values - low, values)
    return low, high


def _p(measure, first, other, drawn_first, drawn_other):
    """Two-sided p-values [values] of "no difference"."""
    if measure.hits:
        one, two = measure.hits(first), measure.hits(other)
        if np.isin([one, two], (0, 1)).all():
            return [mcnemar(int((one > two).sum()), int((two > one).sum()))]
    return paired_bootstrap(drawn_other - drawn_first)


def mcnemar(lost, won):
    """McNemar's exact test: `lost` examples only the first has right, `won` only the other."""
    return 1. if lost + won == 0 else scipy.stats.binomtest(lost, lost + won, .5).pvalue


def paired_bootstrap(differences):
    """Twice the share of draws [draws, values] on the side of 0 that holds fewer, the sample itself counted as one."""
    known = np.isfinite(differences)
    sides = [((side <= 0) & known).sum(axis=0) + 1 for side in (differences, -differences)]
    return np.minimum(1, 2 * np.minimum(*sides) / (known.sum(axis=0) + 1))
