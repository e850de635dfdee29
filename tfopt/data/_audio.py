"""Folders of sounds to batches, on Keras' own reader: bad files named, one length, spectrograms of each by itself."""

import pathlib
import struct
import typing
import warnings

import numpy as np

from .._check import (
    BATCH_SIZE,
    FLAG,
    NO,
    PATH,
    SEED,
    Instance,
    ListOf,
    Number,
    OneOf,
    Rule,
    Whole,
    checked,
    refusal,
    require,
    said,
)
from .._keras import keras, read_audio, tf
from .._typing import Dataset, PathLike
from ._arrays import AUGMENT, View, batches, training_view, validation_view
from ._cache import free_memory
from ._decode import each
from ._images import ImageReport, class_weight, is_validation
from ._listing import by_class, walk

_SUFFIXES = (".wav",)                                       # all that Keras' reader takes
_BOTH = ListOf(Rule("an augmentation or None", lambda one: one is None or AUGMENT(one) is not NO), length=2)


class AudioReport(ImageReport):
    """What was found in a folder of sounds, and what was done about it.

    Args:
      files: how many .wav files there are.
      bad: {name: why it was left out}.
      odd: {name: what is unusual about it}, though it can be read.
      ignored: names of other files, which Keras' reader passes over.
      replaced: always empty.
      empty: names of sub-folders without a single sound.

    Example:
      >>> print(AudioReport(files=12, bad={"cat/3.wav": "empty file"}))
      1 of 12 sounds is bad: cat/3.wav (empty file).
    """

    noun: typing.ClassVar[str] = "sound"


@typing.overload
def audio_folder(directory: PathLike, batch_size: int, *, output_sequence_length: int | None = None,
                 spectrogram: typing.Any = None, validation_split: typing.Literal[0] = 0, augment: typing.Any = None,
                 shuffle: bool = True, seed: int = 0, on_error: str = "raise") -> Dataset: ...


@typing.overload
def audio_folder(directory: PathLike, batch_size: int, *, output_sequence_length: int | None = None,
                 spectrogram: typing.Any = None, validation_split: float, augment: typing.Any = None,
                 shuffle: bool = True, seed: int = 0, on_error: str = "raise") -> tuple[Dataset, Dataset]: ...


@checked(directory=PATH, batch_size=BATCH_SIZE, output_sequence_length=Whole(low=1),
         spectrogram=Instance("keras.layers.Layer", text="a Keras layer such as keras.layers.MelSpectrogram"),
         validation_split=Number(low=0, below=1), augment=AUGMENT | _BOTH, shuffle=FLAG, seed=SEED,
         on_error=OneOf("raise", "skip"))
def audio_folder(directory: PathLike, batch_size: int, *, output_sequence_length: int | None = None,
                 spectrogram: typing.Any = None, validation_split: float = 0, augment: typing.Any = None,
                 shuffle: bool = True, seed: int = 0, on_error: str = "raise") -> typing.Any:
    """Batches of (waveforms, labels), or (spectrograms, labels), from a folder of .wav files.

        as keras.utils.audio_dataset_from_directory reads them -> memory
        -> shuffle -> batch -> augment -> spectrogram -> augment

    Keras' reader takes 16-bit PCM alone, and stops training at the first other file; here every file is looked at
    before. All sounds are kept in memory, as float32 of one length; spectrograms too, where no waveform is augmented.
    Each pass over the dataset is an epoch with an order of its own, drawn from (seed, epoch).

    Args:
      directory: a folder with one sub-folder per class (sorted: class 0, 1, ...). Links to folders are followed.
      batch_size: examples in a batch over all replicas, >= 1; the last one may be shorter, see `full_batches`.
      output_sequence_length: samples of each sound: longer ones are cut, shorter ones filled up with silence at the
        end. None: as long as the longest.
      spectrogram: layer that makes something of [batch, samples], such as `keras.layers.MelSpectrogram`; its
        `sampling_rate` must be that of the files. It is given one sound at a time: MelSpectrogram's `top_db` counts
        from the loudest value of its whole batch. None: waveforms.
      validation_split: share of the files in [0, 1) that is set aside. A file's side depends on its path below the
        folder alone, as in `image_folder`.
      augment: for training only, as in `image_folder`: of waveforms; or a pair, of waveforms and of spectrograms, each
        of which may be None.
      shuffle: False keeps the order of the sorted paths.
      seed: whole number >= 0.
      on_error: what to do about bad files: those that cannot be read, hold no sample, or have another sampling rate
        than most: "raise"; "skip", with a warning that names them.
    Returns:
      A tf.data.Dataset of float32[batch, samples] (channels are averaged) or spectrograms, and int32 labels; or
      `(train, validation)` if `validation_split` > 0. Each has `.class_names`, `.file_paths`, `.class_weight`,
      `.sampling_rate` and `.report`, an `AudioReport`.
    Raises:
      ValueError: there are no sounds, one is bad and `on_error` is "raise", the sampling rates differ, or a side of the
        split is empty.
      MemoryError: the sounds take more than half of the memory that is free.
    Example:
      >>> import pathlib, tempfile, numpy as np, tensorflow as tf
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> for name, pitch in (("high", 0.5), ("low", 0.1)):
      ...     (root / name).mkdir()
      ...     for i in range(4):
      ...         wave = np.sin(pitch * np.arange(900 + i))[:, None].astype("float32")
      ...         _ = (root / name / f"{i}.wav").write_bytes(tf.audio.encode_wav(wave, 8000).numpy())
      >>> train, validation = audio_folder(root, 2, validation_split=0.3)
      >>> train.class_names, train.sampling_rate, len(train.file_paths), len(validation.file_paths)
      (['high', 'low'], 8000, 7, 1)
      >>> next(iter(train))[0].shape
      TensorShape([2, 903])
    """
    root = pathlib.Path(directory).resolve()
    found = by_class(walk(root, _SUFFIXES), _SUFFIXES, "sounds")
    names = list(found.files)
    seen = dict(zip(names, each(_look, [root / name for name in names]), strict=True))
    rate, bad = _rate_and_bad(seen)
    if bad:
        name, why = next(iter(bad.items()))
        require(on_error == "skip" and len(bad) < len(names), "all sounds must be readable and of one sampling rate",
                first=f"{root / name}: {why}", and_more=len(bad) - 1,
                do='Convert them (16-bit PCM of one rate), or pass on_error="skip".')
    odd = {name: f"{seen[name].channels} channels, averaged" for name in names
           if name not in bad and seen[name].channels > 1}
    report = AudioReport(files=len(names), bad=bad, odd=odd, empty=found.empty,
                         ignored=found.ignored)
    if bad or found.empty:
        warnings.warn(f"data.audio_folder: {report} {len(bad)} left out.", stacklevel=3)
    require(rate == getattr(spectrogram, "sampling_rate", rate),
            "the `sampling_rate` of `spectrogram` must be that of the files", files=rate, spectrogram=spectrogram,
            do=f"Write sampling_rate={rate}.")
    good = [name for name in names if name not in bad]
    waves = _read(root, good, output_sequence_length or max(seen[name].length for name in good))
    labels = found.labels[[name not in bad for name in names]]
    before, after = augment if isinstance(augment, tuple | list) else (augment, None)
    require(after is None or spectrogram is not None, "the second of `augment` is for spectrograms", augment=augment,
            do="Pass `spectrogram`.")
    spectra = _one_by_one(spectrogram)
    if before is None and spectrogram is not None:                         # always the same: once
        waves, spectra = np.concatenate([spectra(waves[k:k + 64]) for k in range(0, len(waves), 64)]), _one_by_one(None)
    held_out = np.array([is_validation(name, validation_split) for name in good])

    def side(chosen, views, shuffle):
        require(chosen.any(), "each side of the split needs an example", files=len(good),
                validation_split=validation_split, do="Add sounds, or change `validation_split`.")
        rows = np.flatnonzero(chosen)
        with tf.device("CPU"):
            x, y = tf.constant(waves[rows]), tf.constant(labels[rows])
        dataset = batches(len(rows), batch_size, lambda place: (tf.gather(x, place), tf.gather(y, place)),
                          view=_chain(views, spectra, rows), shuffle=shuffle, seed=seed)
        dataset.class_names, dataset.report, dataset.sampling_rate = found.class_names, report, rate
        dataset.file_paths = [str(root / good[row]) for row in rows]
        dataset.class_weight = class_weight(labels[rows])
        return dataset

    train = side(~held_out, [training_view(part) for part in (before, after)], shuffle)
    if not validation_split:
        return train
    return train, side(held_out, [validation_view(part) for part in (before, after)], False)


class _Seen(typing.NamedTuple):
    """What a file holds, or why it is bad."""

    rate: int = 0
    length: int = 0
    channels: int = 0
    why: str | None = None


def _look(path):
    """The _Seen of a .wav file, by the operation that Keras' reader decodes with; it keeps the rate to itself."""
    data = b""
    try:
        data = path.read_bytes()
        with tf.device("CPU"):
            audio, rate = tf.audio.decode_wav(data)
    except OSError as error:
        return _Seen(why=error.strerror or str(error))
    except tf.errors.OpError:
        return _Seen(why=_why(data))
    return _Seen(int(rate), *audio.shape, why=None if audio.shape[0] else "no sample")


def _why(data):
    """What is wrong with the bytes of a file that is not decoded."""
    if not data:
        return "empty file"
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return "not a WAV file"
    place = data.find(b"fmt ", 12)
    if place < 0 or len(data) < place + 24:
        return "damaged"
    kind, bits = struct.unpack("<H12xH", data[place + 8:place + 24])
    if (kind, bits) != (1, 16):
        kinds = {1: "PCM", 3: "floats", 6: "A-law", 7: "mu-law", 0xFFFE: "extensible"}
        return f"{bits} bits ({kinds.get(kind, f'format {kind}')}), where 16-bit PCM is read"
    return "damaged"


def _rate_and_bad(seen):
    """The sampling rate of most files, and {name: why} of the bad ones."""
    rates = [one.rate for one in seen.values() if one.why is None]
    rate = max(sorted(set(rates)), key=rates.count) if rates else 0
    bad = {name: one.why or f"{one.rate} Hz, where most have {rate}" for name, one in seen.items()
           if one.why or one.rate != rate}
    return rate, bad


def _read(root, names, length):
    """float32[n, length] of files, read by Keras."""
    require(4 * length * len(names) <= free_memory() / 2, "all sounds together must fit into half of the free memory",
            need=f"{4 * length * len(names):,} bytes", error=MemoryError, do="Lower `output_sequence_length`.")
    waves = np.empty((len(names), length), "float32")

    def put(item):
        row, name = item
        with tf.device("CPU"):
            waves[row] = read_audio(str(root / name), output_sequence_length=length).numpy().mean(axis=1)

    each(put, list(enumerate(names)))
    return waves


def _one_by_one(layer):
    """A layer on batches, one example at a time; None leaves them."""
    if layer is None:
        return lambda waves: waves

    def apply(waves):
        try:
            spec = layer.compute_output_spec(keras.KerasTensor((1, waves.shape[1]), "float32"))
        except Exception as error:                                         # each layer has errors of its own
            raise refusal("`spectrogram` must make something of waveforms [1, samples]", spectrogram=layer,
                          samples=waves.shape[1], it_says=said(error)) from error
        return tf.map_fn(lambda wave: layer(wave[None])[0], waves,
                         fn_output_signature=tf.TensorSpec(spec.shape[1:], spec.dtype))

    return apply


def _chain(views, spectra, ids):
    """The View of one side: the first view, the spectrograms, the second; told each file's place in the folder."""
    first, second = views

    def of(element, epoch, rows):
        index = tf.gather(ids, rows)
        waves, *rest = first.of(element, epoch, index)
        return second.of((spectra(waves), *rest), epoch, index)

    return View(of, all(view.replayable for view in views))
