"""Waveforms and spectrograms: closed forms, slow references in numpy, distributions of masks, replay."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfopt import augment


def view(ops, signals, epoch=0, **settings):
    pipeline = augment.Pipeline(ops, **{"jit_compile": False, **settings})
    return pipeline.apply(signals, epoch=epoch, index=range(len(signals))).numpy()


@pytest.fixture
def waves(rng):
    return rng.normal(0, 0.2, (12, 800)).astype("float32")


@pytest.mark.parametrize("shape", [(12, 800), (12, 400, 2)])
@pytest.mark.parametrize("snr_db", [-5, 20])
def test_noise_has_the_ratio_that_was_asked_for(waves, shape, snr_db):
    waves = waves.reshape(shape)
    added = (view([augment.AddNoise(snr_db)], waves) - waves.astype(float)).reshape(12, -1)
    ratios = 10 * np.log10((waves.reshape(12, -1).astype(float)**2).sum(1) / (added**2).sum(1))
    np.testing.assert_allclose(ratios, snr_db, atol=1e-3)
    white = added / added.std(1, keepdims=True)
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(white) - np.eye(12)).max() < 0.2
    assert np.abs((white[:, 1:] * white[:, :-1]).mean()) < 0.03            # no memory from sample to sample


def test_ratios_and_gains_are_drawn_evenly_in_decibels():
    waves = np.tile(np.sin(np.arange(50.0)), (4000, 1))
    added = view([augment.AddNoise((0, 30))], waves) - waves
    drawn = 10 * np.log10((waves**2).sum(1) / (added**2).sum(1))
    assert stats.kstest(drawn, stats.uniform(0, 30).cdf).pvalue > 1e-3
    gains = 20 * np.log10(view([augment.Gain(12)], waves)[:, 1] / waves[:, 1])
    assert stats.kstest(gains, stats.uniform(-12, 24).cdf).pvalue > 1e-3
    assert stats.kstest(gains, stats.uniform(-10.8, 21.6).cdf).pvalue < 1e-3          # negative control: 10% off


def test_silence_stays_silence():
    assert not view([augment.AddNoise(0), augment.Gain(60), augment.Speed()], np.zeros((3, 50))).any()


@pytest.mark.parametrize("wrap", [True, False])
def test_time_shift_equals_a_roll(waves, wrap):
    for factor in (0.25, -0.25, 1.0):
        moved = round(factor * 800)
        expected = np.roll(waves, moved, axis=1)
        if not wrap:
            expected[:, :moved] = 0 if moved > 0 else expected[:, :moved]
            expected[:, 800 + min(moved, 0):] = 0
        np.testing.assert_array_equal(view([augment.TimeShift((factor, factor), wrap=wrap)], waves), expected)
    ramp = np.arange(1, 401, dtype="float32") + np.zeros((600, 1), "float32")
    shifts = 1 - view([augment.TimeShift(0.1, wrap=True)], ramp)[:, 200] + 200
    assert stats.kstest(shifts + np.random.default_rng(0).uniform(-0.5, 0.5, 600),
                        stats.uniform(-40, 80).cdf).pvalue > 1e-3


def slow_speed(wave, speed, zeros=6):
    """The formula, in float64."""
    cutoff = min(1.0, 1 / speed)
    k = np.arange(len(wave))
    result = []
    for n in range(len(wave)):
        d = cutoff * (speed * n - k)
        window = np.where(np.abs(d) < zeros, np.cos(np.pi * d / (2 * zeros))**2, 0)
        result.append((cutoff * np.sinc(d) * window * wave).sum())
    return np.array(result)


@pytest.mark.parametrize("factor", [-0.4, -0.07, 0.0, 0.1, 1.5])
def test_speed_equals_a_slow_reference(waves, factor):
    found = view([augment.Speed((factor, factor))], waves[:2, :400])
    for wave, expected in zip(found, [slow_speed(row.astype(float), 1 + factor) for row in waves[:2, :400]],
                              strict=True):
        np.testing.assert_allclose(wave, expected, atol=2e-5)


@pytest.mark.slow
def test_speed_of_a_tone_is_another_tone():
    """Long rows too; and what lies above half of the sampling rate afterwards is gone, where interpolation folds it."""
    time = np.arange(16000)
    for factor in (-0.1, 0.1, 0.5):
        found = view([augment.Speed((factor, factor))], np.sin(0.3 * time)[None], jit_compile=True)[0]
        inside = slice(30, int(16000 / (1 + max(factor, 0))) - 30)
        np.testing.assert_allclose(found[inside], np.sin(0.3 * (1 + factor) * time)[inside], atol=2e-3)
    high = np.sin(0.85 * np.pi * time)
    folded = np.interp(1.5 * time, time, high)
    found = view([augment.Speed((0.5, 0.5))], high[None])[0]
    assert np.abs(found[100:10000]).max() < 0.02 < 0.2 < np.abs(folded[100:10000]).max()


# ---------------------------------------------------------------------------------------------- spectrograms

def runs(covered):
    """(start, width) of the covered stretch of each row, of which there is at most one; start -1 for none."""
    return [(int(row.argmax()) if row.any() else -1, int(row.sum())) for row in covered]


@pytest.mark.parametrize(("op", "axis"), [(augment.TimeMask, 2), (augment.FrequencyMask, 1)])
def test_masks_have_the_distribution_of_the_paper(op, axis):
    """Widths even over 0 ... F, beginnings over 0 ... n - f."""
    shape, width = [3000, 5, 5], 6
    shape[axis] = 16
    views = view([op(width, count=1, fill_value=-9)], np.ones(shape, "float32"))
    covered = np.moveaxis(views == -9, axis, 1)
    assert (covered.all(2) == covered.any(2)).all()
    found = runs(covered[:, :, 0])
    for row, (start, wide) in zip(covered[:, :, 0], found, strict=True):
        assert not wide or row[start:start + wide].all()
    widths = np.bincount([wide for _, wide in found], minlength=width + 1)
    assert len(widths) == width + 1
    assert stats.chisquare(widths).pvalue > 1e-3
    for wide in (1, 4, 6):
        starts = np.bincount([start for start, w in found if w == wide], minlength=17 - wide)
        assert len(starts) == 17 - wide
        assert stats.chisquare(starts).pvalue > 1e-3


def test_several_masks_and_their_limit(rng):
    spectra = rng.normal(size=(400, 7, 20)).astype("float32")
    views = view([augment.TimeMask(100, count=3, fraction=0.25, fill_value=7)], spectra)
    covered = (views == 7).all(1)
    np.testing.assert_array_equal(np.where(covered[:, None], 7, spectra), views)
    assert covered.sum(1).max() in range(10, 16)                           # three of at most 0.25 * 20
    assert max(map(len, (np.flatnonzero(np.diff(row.astype(int)) == 1) for row in covered))) >= 2
    np.testing.assert_array_equal(view([augment.TimeMask(100, fraction=0.04)], spectra), spectra)


def test_masks_are_filled_with_the_mean_of_each_channel(rng):
    spectra = rng.normal(3, 1, (20, 6, 8, 2)).astype("float32")
    views = view([augment.FrequencyMask(5, count=1)], spectra)
    for one, other in zip(views, spectra, strict=True):
        changed = (one != other).any((1, 2))
        expected = np.broadcast_to(other.astype(float).mean((0, 1)), one[changed].shape)
        np.testing.assert_allclose(one[changed], expected, atol=1e-5)


def test_the_other_arrangement(rng):
    spectra = rng.normal(size=(30, 6, 8)).astype("float32")
    turned = view([augment.TimeMask(5, axis=1), augment.FrequencyMask(4, axis=2)], spectra.swapaxes(1, 2))
    np.testing.assert_allclose(turned.swapaxes(1, 2), view([augment.TimeMask(5), augment.FrequencyMask(4)], spectra),
                               atol=1e-6)


# ---------------------------------------------------------------------------------------------- replay and pipelines

OPS = [augment.Speed(), augment.TimeShift(), augment.Gain(probability=0.5), augment.AddNoise(10)]
MASKS = [augment.FrequencyMask(5), augment.TimeMask(9)]


def passes(dataset, count=1):
    return [np.concatenate([np.asarray(batch) for batch in dataset]) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("ops", [OPS, MASKS])
def test_replayed_in_batches_of_any_length(waves, ops):
    signals = waves if ops is OPS else waves.reshape(12, 20, 40)
    pipeline = augment.Pipeline(ops, seed=3)
    expected = [pipeline.apply(signals, epoch=epoch, index=range(12)).numpy() for epoch in (0, 1)]
    assert (expected[0] != expected[1]).reshape(12, -1).any(1).all()
    source = tf.data.Dataset.from_tensor_slices(signals)
    for batch in (5, 12):
        for views, wanted in zip(passes(source.enumerate().batch(batch).map(pipeline.map), 2), expected, strict=True):
            np.testing.assert_allclose(views, wanted, atol=2e-4)
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(pipeline.apply(signals[order], epoch=0, index=order), expected[0][order])
    by_content, shuffled = (passes(tf.data.Dataset.from_tensor_slices(part).batch(12).map(pipeline.map))[0]
                            for part in (signals, signals[order]))
    np.testing.assert_array_equal(shuffled, by_content[order])


@pytest.mark.slow
@pytest.mark.parametrize("ops", [OPS, MASKS])
def test_lengths_that_are_not_known_before(waves, ops):
    """As Keras' reader yields them."""
    signals = waves[..., None] if ops is OPS else waves.reshape(12, 20, 40)
    pipeline = augment.Pipeline(ops, seed=3)
    shape = [None, *[None] * (signals.ndim - 2), signals.shape[-1]]
    source = tf.data.Dataset.from_tensor_slices(signals).batch(5).map(lambda x: tf.ensure_shape(
        tf.py_function(lambda x: x, [x], tf.float32), shape))
    views, = passes(tf.data.Dataset.zip(tf.data.Dataset.range(12).batch(5), source).map(pipeline.map))
    np.testing.assert_allclose(views, pipeline.apply(signals, epoch=0, index=range(12)), atol=2e-4)
    known, unknown = (passes(data.map(pipeline.map))[0] for data in (
        tf.data.Dataset.from_tensor_slices(signals).batch(5), source))
    np.testing.assert_allclose(unknown, known, atol=2e-4)                  # named by their content


@pytest.mark.slow
def test_a_layer_of_a_model_saved_and_loaded(waves, tmp_path):
    mel = keras.layers.MelSpectrogram(num_mel_bins=8, fft_length=128, sequence_stride=64, sampling_rate=1000)
    model = keras.Sequential([keras.Input((800,)), augment.Pipeline(OPS[2:], seed=1), mel,
                              augment.Pipeline(MASKS, seed=2), keras.layers.GlobalAveragePooling1D(),
                              keras.layers.Dense(2)])
    plain = keras.Sequential([keras.Input((800,)), *[layer for layer in model.layers
                                                     if not isinstance(layer, augment.Pipeline)]])
    np.testing.assert_array_equal(model(waves), plain(waves))
    model.compile("sgd", "mse")
    model.fit(waves, np.zeros((12, 2)), batch_size=5, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [repr(layer) for layer in again.layers if isinstance(layer, augment.Pipeline)] == [
        repr(layer) for layer in model.layers if isinstance(layer, augment.Pipeline)]
    np.testing.assert_array_equal(again(waves, training=True), model(waves, training=True))


def test_targets_weights_and_other_inputs_pass(waves):
    pipeline = augment.Pipeline([augment.Gain((6, 6))], jit_compile=False)
    (inputs, targets, _), = tf.data.Dataset.from_tensor_slices(
        ({"wave": waves, "place": np.arange(12)}, np.arange(12), np.ones(12))).batch(12).map(pipeline.map)
    np.testing.assert_allclose(inputs["wave"], waves * 10**0.3, rtol=1e-5)
    assert inputs["place"].numpy().tolist() == targets.numpy().tolist() == list(range(12))
    views, labels = pipeline.map(np.arange(12), (waves, np.arange(12)), repeats=2)
    assert views.shape == (24, 800)
    assert labels.numpy().tolist() == np.arange(12).repeat(2).tolist()
    assert pipeline.apply(waves.astype("float16"), epoch=0, index=range(12)).dtype == "float16"


@keras.saving.register_keras_serializable("test_augment_sound")
@dataclasses.dataclass(frozen=True)
class Clip(augment.Op):
    most: float = 0.1

    def waves(self, waves, u, noise):
        return tf.clip_by_value(waves, -self.most, self.most)


def test_an_operation_of_ones_own(waves):
    pipeline = augment.Pipeline([augment.Gain((6, 6)), Clip()], jit_compile=False)
    again = augment.Pipeline.from_config(pipeline.get_config())
    np.testing.assert_allclose(again.apply(waves, epoch=0, index=range(12)), (waves * 10**0.3).clip(-0.1, 0.1),
                               atol=1e-6)


@pytest.mark.parametrize(("ops", "settings", "given", "rule"), [
    ([augment.Gain(), augment.Flip()], {}, None, "all operations of a pipeline work on the same"),
    ([augment.Gain(), augment.TimeMask()], {}, None, "all operations of a pipeline work on the same"),
    ([augment.Gain(), augment.MixUp()], {}, None, "all operations of a pipeline work on the same"),
    ([augment.Gain()], {"value_range": (0, 1)}, None, "`value_range` is about images"),
    ([augment.TimeMask()], {"fill_mode": "nearest"}, None, "`fill_mode` is about images"),
    ([augment.Gain()], {}, np.zeros((2, 9), "int16"), "exactly one input that is waveforms: floats"),
    ([augment.Gain()], {}, np.zeros((2, 9, 9, 3)), "exactly one input that is waveforms: floats"),
    ([augment.TimeMask()], {}, np.zeros((2, 9)), "exactly one input that is spectrograms: floats"),
    ([augment.Gain()], {}, {"a": np.zeros((2, 9)), "b": np.zeros((2, 9))}, "exactly one input that is waveforms")])
def test_refusals(ops, settings, given, rule):
    with pytest.raises(ValueError, match=rule):
        augment.Pipeline(ops, **settings).map(given)
