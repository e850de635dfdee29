"""Audio: eight synthetic instruments told apart, without and with augmentation of waveforms and spectrograms.

    python examples/sounds.py [--quick] [--save DIR]

The sounds are made here, by formulas: tones of four timbres, rising or falling, written as .wav files. They are no
recordings, and say nothing about real sounds. The training sounds are clean and few; the test sounds begin at other
times, are faster or slower, and lie in noise of 5 dB: what augmentation prepares a network for.
"""

import argparse
import pathlib
import tempfile

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

from tfopt import augment, data, report, schedules

RATE, LENGTH, BATCH = 8000, 4000, 16
TIMBRES = {"sine": [1], "clarinet": [1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7], "saw": 1 / np.arange(1, 9),
           "bell": [1, 0, 0, 0.7, 0, 0, 0, 0.5]}


def sound(timbre, rising, rng, *, hard):
    """Half a second of one instrument, float32[4000]."""
    time = np.arange(LENGTH) / RATE
    glide = (1.0 if rising else -1.0) * time**2 / 2
    speed = rng.uniform(0.85, 1.18) if hard else 1.0
    turns = 2 * np.pi * rng.uniform(280, 360) * speed * (time + glide)
    tone = sum(a * np.sin(k * turns) for k, a in enumerate(TIMBRES[timbre], 1)) * np.exp(-3 * time)
    tone *= np.minimum(1, time / 0.02)
    if hard:
        start = rng.integers(0, LENGTH // 3)
        tone = np.concatenate([np.zeros(start), tone[:LENGTH - start]])
        noise = rng.normal(size=LENGTH)
        tone = tone + noise * np.sqrt((tone**2).sum() / (noise**2).sum() / 10**0.5)
    return (0.5 * tone / np.abs(tone).max()).astype("float32")


def write(folder, count, *, seed, hard):
    """A sub-folder of `count` sounds for each class."""
    rng = np.random.default_rng(seed)
    for timbre in TIMBRES:
        for way in ("rising", "falling"):
            (folder / f"{timbre} {way}").mkdir(parents=True)
            for number in range(count):
                wave = sound(timbre, way == "rising", rng, hard=hard)
                (folder / f"{timbre} {way}" / f"{number:03}.wav").write_bytes(
                    tf.audio.encode_wav(wave[:, None], RATE).numpy())
    return folder


def mel():
    return keras.layers.MelSpectrogram(num_mel_bins=48, fft_length=512, sequence_stride=160, sampling_rate=RATE)


def build(shape, classes):
    layers = []
    for width in (16, 32, 64):
        layers += [keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
                   keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 20, offset=1),
                             keras.layers.Reshape((*shape, 1)), *layers, keras.layers.GlobalMaxPooling2D(),
                             keras.layers.Dense(classes)])


def train(folder, epochs, augmented, seed=0):
    waves = augment.Pipeline([augment.Speed((-0.15, 0.18)), augment.TimeShift((0, 0.33)),
                              augment.AddNoise(snr_db=(-3, 20), probability=0.9)], seed=seed)
    masks = augment.Pipeline([augment.FrequencyMask(4, count=1), augment.TimeMask(6, count=1)], seed=seed)
    dataset = data.audio_folder(folder, BATCH, spectrogram=mel(), augment=(waves, masks) if augmented else None,
                                seed=seed)
    keras.utils.set_random_seed(seed)
    model = build(dataset.element_spec[0].shape[1:], len(dataset.class_names))
    model.compile(keras.optimizers.Adam(schedules.OneCycle(5e-3, total=epochs * len(dataset))),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"], jit_compile=False)
    model.fit(dataset, epochs=epochs, verbose=0)
    return model, dataset


def show(dataset, path):
    """Draws the first spectrograms as the model sees them."""
    spectra, labels = next(iter(dataset))
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    for axes, image, label in zip(figure.subplots(2, 4).flat, spectra.numpy(), labels.numpy(), strict=False):
        axes.imshow(image, origin="lower", aspect="auto")
        axes.set_title(dataset.class_names[label], fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=120)


def main(quick=False, save="results"):
    """Trains twice; prints the table, saves the picture; returns the table."""
    save = pathlib.Path(save)
    save.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        count, epochs = (12, 20) if quick else (24, 30)
        sounds = write(folder / "train", count, seed=0, hard=False)
        test = data.audio_folder(write(folder / "test", count, seed=1, hard=True), 64, spectrogram=mel(), shuffle=False)
        models = {}
        for name, augmented in (("clean sounds", False), ("augmented", True)):
            models[name], seen = train(sounds, epochs, augmented)
        show(seen, save / "sounds.png")
        print(f"Synthetic sounds, made by formulas: {len(seen.file_paths)} clean ones to train on, "
              f"{len(test.file_paths)} in noise to test, {len(seen.class_names)} classes.")
        table = report.compare(models, test)
        print(table)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sounds and epochs")
    parser.add_argument("--save", default="results", help="folder of the picture")
    main(**vars(parser.parse_args()))
