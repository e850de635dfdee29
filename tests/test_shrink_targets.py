"""How many channels stay: shares of channels, multiply-accumulates, measured latency; of each layer or of all."""

import keras
import numpy as np
import pytest
from graphs import EXACT, batch, classifier, gap, randomize, silenced
from keras import layers as L

from tfopt import quantize, report, shrink


def macs(model):
    return shrink.plan(model).macs.sum()


@pytest.mark.parametrize(("keep", "round_to", "widths"), [
    (0.5, 8, [16, 24, 32]), (0.5, 32, [32, 32, 32]), (0.3, 1, [9, 14, 19]), (0.01, 8, [8, 8, 8])])
def test_keep(keep, round_to, widths):
    small = shrink.channels(classifier(), keep, round_to=round_to)
    assert [small.get_layer("stem").filters, small.get_layer("wide").filters, small.get_layer("hidden").units] == widths


@pytest.mark.parametrize("target", [0.8, 0.5, 0.25])
def test_macs_are_met_from_below(target):
    model = classifier()
    small = shrink.channels(model, macs=target, round_to=2)
    assert 0.97 * target <= macs(small) / macs(model) <= target


@pytest.fixture
def counted(monkeypatch):
    """Multiply-accumulates in place of time; returns the list of what was asked."""
    asked = []

    def timer(model, samples):
        return lambda small: asked.append(macs(small) / macs(model)) or asked[-1]

    monkeypatch.setattr(shrink._latency, "timer", timer)
    return asked


@pytest.mark.parametrize(("target", "round_to"), [(0.8, 1), (0.5, 1), (0.25, 1), (0.5, 8), (0.3, 16)])
def test_latency_is_met_from_below(target, round_to, counted):
    model = classifier()
    small = shrink.channels(model, latency=target, round_to=round_to)
    share = macs(small) / macs(model)
    assert share == max(asked for asked in counted if asked <= target), "it was measured"
    assert len(counted) <= 9
    missed = min((asked for asked in counted if asked > target), default=1)
    assert share >= target - shrink._latency.CLOSE or (round_to > 1 and missed - share < 0.3), "a step more is too slow"


def test_latency_that_falls_in_stairs(monkeypatch):
    """As kernels are: the time of every width is that of the next multiple of 16."""
    monkeypatch.setattr(shrink._latency, "timer", lambda model, _: lambda small: (
        -(-small.get_layer("wide").filters // 16) / 3))
    widths = [shrink.channels(classifier(), latency=target, round_to=4, where="wide").get_layer("wide").filters
              for target in (0.34, 0.67, 0.99)]
    assert widths[0] <= 16 < widths[1] <= 32
    assert 16 < widths[2] <= 32


def test_latency_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(shrink._latency, "timer", lambda *_: lambda small: 0.7777)
    with pytest.raises(ValueError, match=r"^shrink\.channels: cannot reach this target.*least_possible=0\.778"):
        shrink.channels(classifier(), latency=0.7)


def test_latency_needs_a_size():
    x = keras.Input((None, None, 3))
    y = L.GlobalAveragePooling2D()(L.Conv2D(16, 3, name="conv")(x))
    with pytest.raises(ValueError, match=r"^shrink\.channels: needs inputs of known size.*Pass `data`"):
        shrink.channels(keras.Model(x, L.Dense(2)(y)), latency=0.5)


@pytest.mark.slow
def test_latency_as_it_is_measured(rng):
    """Against files that `quantize.convert` makes and `report` measures; the control is asked for less."""
    x = keras.Input((None, None, 3))
    y = x
    for _ in range(3):
        y = L.Conv2D(64, 3, activation="relu")(y)
    model = keras.Model(x, L.Dense(4)(L.GlobalAveragePooling2D()(y)))
    randomize(model, rng)
    images = rng.normal(size=(4, 32, 32, 3)).astype("float32")
    models = {"model": model, **{str(target): shrink.channels(model, latency=target, data=images)
                                 for target in (0.5, 0.95)}}
    assert gap(silenced(model, models["0.5"]), models["0.5"], images) <= EXACT
    files = {name: quantize.convert(one, "float32", calibration=images) for name, one in models.items()}
    whole, half, control = (row.latency_ms for row in report.compare(files, runs=50).rows)
    assert 0.2 < half / whole < 0.65 < control / whole


# Global ranking


def importances(seed):
    """Importances of very different size and spread in each group, and a record of them: {length: numbers}."""
    rng, given = np.random.default_rng(seed), {}

    def by(parts):
        count = len(next(iter(parts.values())))
        given[count] = np.exp(3 * rng.random() * rng.normal(size=count)) * 10.0 ** rng.integers(-3, 4)
        return given[count]
    return by, given


def widths_of(model):
    return {32: model.get_layer("stem").filters, 48: model.get_layer("wide").filters,
            64: model.get_layer("hidden").units}


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_global_ranking_against_a_slow_reference(keep, seed):
    """One step after the other to the group whose next channels are worth most, until the share is used up."""
    for round_to in (1, 8):
        by, given = importances(seed)
        small = shrink.channels(classifier(), keep, ranking="global", round_to=round_to, importance=by)
        ranked = {size: np.sort(numbers / numbers.mean())[::-1] for size, numbers in given.items()}
        kept = dict.fromkeys(ranked, round_to)
        while True:
            open_ = [size for size in kept if kept[size] < size]
            best = max(open_, key=lambda size: ranked[size][kept[size]:kept[size] + round_to].mean())
            if sum(kept.values()) + round_to > keep * sum(ranked) + 1e-9:
                break
            kept[best] += round_to
        assert widths_of(small) == kept
        if round_to == 1:                                              # the threshold that all channels share
            everything = np.sort(np.concatenate(list(ranked.values())))[::-1]
            threshold = everything[int(keep * len(everything)) - 1]
            counts = {size: int((numbers >= threshold).sum()) for size, numbers in ranked.items()}
            assert kept == counts or min(counts.values()) == 0
        assert min(kept.values()) >= round_to


def test_global_ranking_keeps_the_best_of_each_group(rng):
    by, given = importances(1)
    model = classifier()
    small = shrink.channels(model, 0.5, ranking="global", importance=by, round_to=1)
    assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT
    width = small.get_layer("hidden").units
    best = np.sort(np.argsort(-given[64])[:width])
    np.testing.assert_array_equal(small.get_layer("hidden").bias, model.get_layer("hidden").bias.numpy()[best])


def test_global_ranking_does_not_care_for_the_scale_of_a_group():
    by, _ = importances(0)
    again, _ = importances(0)
    one = shrink.channels(classifier(), 0.5, ranking="global", round_to=1, importance=by)
    other = shrink.channels(classifier(), 0.5, ranking="global", round_to=1, importance=lambda parts: (
        lambda numbers: numbers * 10.0 ** len(numbers))(again(parts)))
    assert widths_of(one) == widths_of(other)
    assert len({width / size for size, width in widths_of(one).items()}) == 3, "the groups keep different shares"


@pytest.mark.parametrize("target", [0.7, 0.3])
def test_global_ranking_within_macs_and_latency(target, counted, rng):
    model = classifier()
    for by in ("macs", "latency"):
        small = shrink.channels(model, **{by: target}, ranking="global", round_to=1)
        assert target - 0.03 <= macs(small) / macs(model) <= target
        assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT
        shares = [width / size for size, width in widths_of(small).items()]
        assert max(shares) - min(shares) > 0.02


def test_global_ranking_never_empties_a_layer(rng):
    model = classifier()
    small = shrink.channels(model, 0.3, ranking="global", round_to=4, importance=lambda parts: (
        np.eye(1, len(next(iter(parts.values())))).ravel() if len(next(iter(parts.values()))) == 48 else
        np.ones(len(next(iter(parts.values()))))))
    assert widths_of(small)[48] == 4
    assert gap(silenced(model, small), small, batch(model, rng)) <= EXACT


def test_macs_count_as_by_hand():
    x = keras.Input((8, 8, 4))
    y = L.Conv2D(6, 3, groups=2)(x)                                    # 6 * 6 places, 3 * 3 * 2 weights, 6 filters
    y = L.Conv2DTranspose(5, 2, strides=2)(y)                          # 6 * 6 places, 2 * 2 * 6 * 5
    y = L.SeparableConv2D(7, 3, depth_multiplier=2)(y)                 # 10 * 10 places, 3 * 3 * 5 * 2 + 10 * 7
    y = L.DepthwiseConv2D(3)(y)                                        # 8 * 8 places, 3 * 3 * 7
    model = keras.Model(x, L.Dense(3)(L.Flatten()(y)))                 # 448 * 3
    assert macs(model) == 36 * 18 * 6 + 36 * 120 + 100 * 160 + 64 * 63 + 448 * 3
