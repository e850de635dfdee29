"""Folders of sounds: what Keras' reader reads, what it does not, and batches that can be replayed."""

import struct

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import augment, data


def write(path, wave, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.asarray(wave, "float32")
    path.write_bytes(tf.audio.encode_wav(wave if wave.ndim == 2 else wave[:, None], rate).numpy())


def header(kind, bits, samples, rate=8000):
    """A WAV file of that format, of zeros."""
    form = struct.pack("<HHIIHH", kind, 1, rate, rate * bits // 8, bits // 8, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", samples * bits // 8)
    return b"RIFF" + struct.pack("<I", len(body) + samples * bits // 8) + body + bytes(samples * bits // 8)


@pytest.fixture
def folder(tmp_path, rng):
    for name in ("high", "low"):
        for k in range(6):
            write(tmp_path / "sounds" / name / f"{k}.wav", rng.uniform(-0.5, 0.5, 300 + 10 * k))
    return tmp_path / "sounds"


@pytest.mark.parametrize("length", [None, 320, 500])
def test_it_yields_what_keras_reads(folder, length):
    (folder / "low" / "deep").mkdir()
    write(folder / "low" / "deep" / "x.wav", np.zeros(100))
    reader = keras.utils.audio_dataset_from_directory(folder, batch_size=20, shuffle=False, verbose=False,
                                                      output_sequence_length=length)
    (expected, labels), = reader
    assert reader.class_names == ["high", "low"]
    found = data.audio_folder(folder, 20, shuffle=False, output_sequence_length=length)
    waves, ours = next(iter(found))
    np.testing.assert_array_equal(waves, expected[..., 0])
    np.testing.assert_array_equal(ours, labels)
    assert found.file_paths == sorted(map(str, folder.rglob("*.wav")))
    assert (found.class_names, found.sampling_rate) == (["high", "low"], 8000)
    assert found.class_weight == {0: 13 / 12, 1: 13 / 14}


BAD = {"empty.wav": (b"", "empty file"), "page.wav": (b"<html>" * 20, "not a WAV file"),
       "deep.wav": (header(1, 24, 50), r"24 bits \(PCM\), where 16-bit PCM is read"),
       "float.wav": (header(3, 32, 50), r"32 bits \(floats\), where 16-bit PCM is read"),
       "cut.wav": (header(1, 16, 50)[:30], "damaged"), "none.wav": (header(1, 16, 0), "no sample|damaged"),
       "fast.wav": (header(1, 16, 50, 44100), "44100 Hz, where most have 8000")}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_before_training(folder, name):
    content, why = BAD[name]
    good = np.concatenate([waves for waves, _ in data.audio_folder(folder, 5, shuffle=False)])
    (folder / "low" / f"2{name}").write_bytes(content)                      # in the midst of the others
    with pytest.raises(ValueError, match=rf"data.audio_folder: all sounds must be .*low/2{name}: ({why}).*and_more=0"):
        data.audio_folder(folder, 5)
    with pytest.warns(UserWarning, match=rf"1 of 13 sounds is bad: low/2{name} \(({why})\)"):
        found = data.audio_folder(folder, 5, shuffle=False, on_error="skip")
    np.testing.assert_array_equal(np.concatenate([waves for waves, _ in found]), good)
    assert list(found.report.bad) == [f"low/2{name}"]


def test_the_faults_of_keras_reader(folder):
    """When this fails, Keras has corrected them, and the page can say so."""
    (folder / "low" / "float.wav").write_bytes(BAD["float.wav"][0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(keras.utils.audio_dataset_from_directory(folder, verbose=False))
    mel = keras.layers.MelSpectrogram(num_mel_bins=4, fft_length=64, sequence_stride=32, sampling_rate=8000)
    noise = np.random.default_rng(0).normal(size=(1, 400)).astype("float32")
    both = mel(np.concatenate([1e-4 * noise, 1000 * noise]))
    assert np.abs(both[:1] - mel(1e-4 * noise)).max() > 10                  # top_db counts from the whole batch


def test_odd_files_are_told(folder, rng):
    stereo = rng.uniform(-0.5, 0.5, (50, 2))
    write(folder / "high" / "stereo.wav", stereo)
    (folder / "high" / "song.mp3").write_bytes(b"ID3")
    (folder / "none").mkdir()
    with pytest.warns(UserWarning, match="1 sub-folders without sounds: none"):
        found = data.audio_folder(folder, 20, shuffle=False)
    assert found.report.odd == {"high/stereo.wav": "2 channels, averaged"}
    assert found.report.ignored == ["high/song.mp3"]
    waves, _ = next(iter(found))
    np.testing.assert_allclose(waves[found.file_paths.index(str(folder / "high" / "stereo.wav")), :50],
                               stereo.mean(1), atol=1e-4)


def spectrograms():
    return keras.layers.MelSpectrogram(num_mel_bins=8, fft_length=64, sequence_stride=32, sampling_rate=8000)


@pytest.mark.slow
@pytest.mark.parametrize("waves_too", [False, True])
def test_replayed_by_seed_epoch_and_place(folder, waves_too):
    noisy = augment.Pipeline([augment.AddNoise(10)], seed=1, jit_compile=False) if waves_too else None
    masks = augment.Pipeline([augment.TimeMask(4), augment.FrequencyMask(3)], seed=2, jit_compile=False)
    found, validation = data.audio_folder(folder, 5, validation_split=0.3, seed=3, spectrogram=spectrograms(),
                                          augment=(noisy, masks))
    plain = data.audio_folder(folder, 20, shuffle=False)
    waves, labels = next(iter(plain))
    place = {path: k for k, path in enumerate(plain.file_paths)}
    assert sorted([*map(place.get, found.file_paths), *map(place.get, validation.file_paths)]) == list(range(12))
    rows = np.array([place[path] for path in found.file_paths])
    for epoch in range(2):
        order = rows[np.random.default_rng((3, epoch)).permutation(len(rows))]
        heard = tf.gather(waves, order)
        if waves_too:
            heard = noisy.apply(heard, epoch=epoch, index=order)
        each = tf.concat([spectrograms()(wave[None]) for wave in heard], 0)
        expected = masks.apply(each, epoch=epoch, index=order)
        batches = list(found)
        np.testing.assert_allclose(np.concatenate([x for x, _ in batches]), expected, atol=1e-3)
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), tf.gather(labels, order))
    held_out = tf.gather(waves, [place[path] for path in validation.file_paths])
    np.testing.assert_allclose(np.concatenate([x for x, _ in validation]),
                               tf.concat([spectrograms()(wave[None]) for wave in held_out], 0), atol=1e-3)


def test_refusals(folder):
    for settings, rule in [({"spectrogram": keras.layers.MelSpectrogram()}, "Write sampling_rate=8000"),
                           ({"augment": (None, augment.Pipeline([augment.TimeMask()]))}, "Pass `spectrogram`"),
                           ({"validation_split": 1e-9}, "each side of the split needs an example")]:
        with pytest.raises(ValueError, match=rf"data.audio_folder: .*{rule}"):
            data.audio_folder(folder, 5, **settings)
    with pytest.raises(ValueError, match=r"there must be sounds in the sub-folders"):
        data.audio_folder(folder / "low", 5)
