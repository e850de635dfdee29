"""What happens to files: damage of each kind, a full disk, a directory that vanishes."""

import contextlib
import functools
import os
import shutil
import stat
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import test_compress
import test_distill_cache as cached
import test_tune_record as record

from tfopt import callbacks, compress, data, distill, quantize, tune
from tfopt.distill import _cache as caching
from tfopt.tune._checkpoint import Checkpoint

from . import HARMS, contents, cut, emptied, fault, missing, said
from .strangers import pictures

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")


def full(*_, **__):
    raise OSError(28, "No space left on device")


@contextlib.contextmanager
def full_disk():
    """Nothing more reaches the disk."""
    with mock.patch.object(os, "fsync", full):
        yield


def equal(first, second):
    """Are two nests of arrays the same, bit for bit."""
    first, second = keras.tree.flatten(first), keras.tree.flatten(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# Each `use` does the library's work with a directory and returns what comes of it, the same each time


def outputs(folder):
    with mock.patch.object(caching, "_ROWS", 16):
        made = distill.cache_teacher(cached.dense(8), X, directory=folder, batch_size=8, verbose=0)
        x, found = cached.everything(made)
    order = np.lexsort(x.T)
    return x[order], cached.logits_in(found)[order]


def images(folder):
    if not (folder / "photos").exists():
        pictures(folder, *(f"photos/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)))
    found = data.image_folder(folder / "photos", 8, 6, shuffle=False, cache=folder / "cache")
    return next(found.as_numpy_iterator())


def resume(folder, epochs=4):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.1), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    history = model.fit(X, X[:, :1], epochs=epochs, verbose=0, callbacks=[callbacks.Resume(folder)]).history
    return model.get_weights(), history["loss"]


def build(hp):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Int("units", 1, 9)), keras.layers.Dense(4)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def searching(folder):
    return tune.Search(build, "loss", algorithm="random", max_trials=2, directory=folder)


def search(folder):
    table = searching(folder).run((X, X), epochs=2, verbose=0).frame
    return table.loss.tolist(), table.status.tolist(), searching(folder).best().get_weights()


def compressing(folder):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
    model.compile("sgd", test_compress.LOSS, metrics=["accuracy"])
    y = (X[:, 0] > 0).astype("int32")
    result = compress.run(model, (X, y), (X, y), directory=folder, stages={"prune": (0.5,)}, epochs=1, max_drop=1.)
    return result.best.get_weights(), result.tried.kept.tolist()


def harmed(folder, use, patterns, harms=HARMS):
    """Does each harm to a file of each pattern; the work is then done again and must come out as before."""
    expected = use(folder / "whole")
    for pattern in patterns:
        for harm in harms:
            shutil.copytree(folder / "whole", folder / "harmed", symlinks=True)
            harm(sorted((folder / "harmed").rglob(pattern))[-1])
            text, found = said(use, folder / "harmed")
            yield text or f"({harm.__name__}: made again)", {"the result": found is not None and equal(found, expected)}
            shutil.rmtree(folder / "harmed")


@fault("damage", "distill", "shards of cached outputs, or their index: cut, a bit changed, emptied, missing, noise")
def cached_shards(folder):
    yield from harmed(folder, outputs, ["*.npy", "index.json"])


@fault("damage", "distill", "two shards of cached outputs are swapped")
def swapped_shards(folder):
    yield from harmed(folder, outputs, ["*00001.npy"], [cached.swapped])


@fault("damage", "data", "the cache of decoded images, or its note: cut, a bit changed, emptied, missing, noise")
def image_cache(folder):
    expected = images(folder)
    shutil.copytree(folder / "cache", folder / "sound")
    for pattern in ("*.npy", "*.json"):
        for harm in HARMS:
            shutil.rmtree(folder / "cache")
            shutil.copytree(folder / "sound", folder / "cache")
            harm(next((folder / "cache").glob(pattern)))
            text, found = said(images, folder)
            yield text or "(no note, no cache: made again)", {"the images": equal(found, expected)}


@fault("damage", "tune", "the record of a study: each line in turn with a bit changed, the last one cut")
def study_record(folder):
    whole = record.go_on(record.open_study(folder / "whole", trials=4))
    lines = (folder / "whole" / "record.jsonl").read_bytes().splitlines(keepends=True)
    for lost in [*range(len(lines)), -1]:
        broken = lines[lost][:20] if lost == -1 else lines[lost].replace(b'"kind"', b'"kine"')
        path = folder / str(lost) / "record.jsonl"
        path.parent.mkdir()
        path.write_bytes(b"".join([*lines[:lost], broken, *(lines[lost + 1:] if lost >= 0 else [])]))
        text, study = said(record.open_study, folder / str(lost), trials=4)
        found = record.go_on(study)
        done = [entry for entry in found if entry[2] != "rejected"]
        yield text, {"the other trials": len(done) == len([entry for entry in whole if entry[2] != "rejected"])}


@fault("damage", "tune", "the whole record of a study with trials is emptied or missing")
def lost_record(folder):
    for number, harm in enumerate((emptied, missing)):
        place = folder / str(number)
        record.go_on(record.open_study(place, trials=2))
        (place / "trials" / "000000").mkdir(parents=True)
        (place / "trials" / "000000" / "weights").write_text("mine")
        harm(place / "record.jsonl")
        text, found = said(record.open_study, place, trials=2)
        yield text, {"the weights": found is None and (place / "trials" / "000000" / "weights").exists()}


@fault("damage", "tune", "the weights of the best trial, or its note: cut, a bit changed, emptied, missing, noise")
def best_weights(folder):
    search(folder / "whole")
    for pattern in ("*.weights.h5", "best.json"):
        for harm in HARMS:
            shutil.copytree(folder / "whole", folder / "harmed")
            for path in (folder / "harmed").rglob(pattern):
                harm(path)
            text, found = said(searching(folder / "harmed").best)
            yield text, {"a false model": found is None, "the scores": len(searching(folder / "harmed").frame) == 2}
            shutil.rmtree(folder / "harmed")


@fault("damage", "tune", "the weights or the note of a trial that is running: cut, a bit changed, emptied, missing")
def running_trial(folder):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    for number, harm in enumerate(HARMS):
        for pattern in ("*.weights.h5", "best.json"):
            checkpoint = Checkpoint(folder / f"{number}{pattern[0]}", "trial 0")
            checkpoint.open({"units": 1})
            checkpoint.save(model, 1, {"loss": 1.}, {})
            harm(next(checkpoint.folder.glob(pattern)))
            text, _ = said(checkpoint.open, {"units": 1})
            yield text, {"a trial from its start": checkpoint.note == {"values": {"units": 1}}}


@fault("damage", "callbacks", "each file of the newest state of Resume: cut, a bit changed, emptied, missing, noise")
def resume_states(folder):
    expected = resume(folder / "whole")
    resume(folder / "half", 2)
    for name in ("arrays.npz", "state.json", "manifest.json"):
        for harm in HARMS:
            shutil.copytree(folder / "half", folder / "harmed")
            harm(folder / "harmed" / "state-000002" / name)
            text, found = said(resume, folder / "harmed")
            yield text, {"the weights": equal(found[0], expected[0]), "the history": found[1] == expected[1]}
            shutil.rmtree(folder / "harmed")


@fault("damage", "callbacks", "both states of Resume")
def all_states(folder):
    resume(folder, 2)
    for path in folder.rglob("arrays.npz"):
        cut(path)
    before = contents(folder)
    text, found = said(resume, folder)
    yield text, {"what is left of them": found is None and contents(folder) == before}


@fault("damage", "quantize", "a LiteRT file with its note: cut, 40 single bits changed, emptied, missing, noise")
def lite_file(folder):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
    lite, path = quantize.convert(model, "int8", calibration=X), folder / "model.tflite"
    for harm in (*(functools.partial(HARMS[1], at=place / 40) for place in range(40)), *HARMS):
        lite.save(path)
        harm(path)
        text, found = said(quantize.load, path)
        yield text, {"a false file": found is None}


@fault("damage", "compress", "a candidate's file or the record of a run: cut, a bit changed, missing")
def compress_directory(folder):
    yield from harmed(folder, compressing, ["*.npz", "tried.jsonl"], HARMS[:2] + HARMS[3:4])


# How files are written


@fault("damage", "all", "power fails between writing and renaming: is the content on the disk before its name")
def order_of_writes(folder):
    for use in (outputs, images, resume):
        seen, real, replace = [], os.fsync, os.replace

        def fsync(handle):
            seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")  # noqa: B023
            real(handle)  # noqa: B023

        with mock.patch.object(os, "fsync", fsync), mock.patch.object(
                os, "replace", lambda *paths: (seen.append("name"), replace(*paths))):  # noqa: B023
            use(folder / use.__name__)
        names = [at for at, what in enumerate(seen) if what == "name"]
        sound = all("content" in seen[:at] and seen[at + 1] == "folder" for at in names)
        yield "(fsync of the content, the name, fsync of the folder)", {"the order": bool(names) and sound}


@fault("damage", "all", "which mode files have under the umasks 022, 077 and 002")
def modes(folder):
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            for use in (outputs, images, resume, search):
                use(folder / oct(mask) / use.__name__)
        finally:
            os.umask(before)
        found = {stat.S_IMODE(path.stat().st_mode) for path in (folder / oct(mask)).rglob("*") if path.is_file()}
        yield "(all files have the mode that the umask leaves)", {"the mode": found == {0o666 & ~mask}}


# A full disk, a directory that vanishes


@fault("full disk", "all", "the disk is full while outputs, images, states, trials, candidates are written")
def no_room(folder):
    for use in (outputs, images, resume, search, compressing):
        expected = use(folder / "whole" / use.__name__)
        place = folder / use.__name__
        if use is images:
            shutil.copytree(folder / "whole" / use.__name__ / "photos", place / "photos")
        with full_disk():
            text, found = said(use, place)
        left = [path for path in place.rglob("*") if path.name.startswith(".part-")]
        _, again = said(use, place)
        yield text, {"the reason": found is None, "what is half-written": not left,
                     f"{use.__name__} afterwards": again is not None and equal(again, expected)}


@fault("full disk", "tune", "the disk is full while a trial saves its weights: the trial is not counted as failed")
def no_room_for_weights(folder):
    expected = search(folder / "whole")
    with mock.patch.object(keras.Model, "save_weights", full):
        text, _ = said(search, folder / "study")
    statuses = searching(folder / "study").frame.status.tolist()
    yield text, {"the trial": statuses == ["running"], "the work afterwards": equal(search(folder / "study")[0],
                                                                                     expected[0])}


@fault("full disk", "quantize", "the disk is full while a LiteRT file is saved over an older one")
def no_room_for_a_file(folder):
    lite = quantize.convert(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), "float32")
    lite.save(folder / "a.tflite")
    with full_disk():
        text, _ = said(lite.save, folder / "a.tflite")
    yield text, {"the older file": contents(folder) == {"a.tflite": lite.content}}


def vanishing(folder):
    """A callback that removes the directory when the second epoch begins."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch == 1 and shutil.rmtree(folder))


@fault("full disk", "tune", "the directory of a search vanishes in a trial")
def vanished_study(folder):
    place = folder / "study"
    text, found = said(searching(place).run, (X, X), epochs=2, verbose=0, callbacks=lambda hp: [vanishing(place)])
    yield text, {"the reason": found is None, "a new record in its place": not (place / "record.jsonl").exists()}


@fault("full disk", "callbacks", "the directory of Resume vanishes in training")
def vanished_states(folder):
    def train():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(X, X[:, :1], epochs=3, verbose=0,
                  callbacks=[vanishing(folder / "states"), callbacks.Resume(folder / "states")])
        return model

    text, model = said(train)
    yield text, {"the reason": model is None, "a new directory in its place": not (folder / "states").exists()}


class Removing(keras.layers.Layer):
    """Removes a directory when the model has seen 24 examples."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, 0

    def call(self, x):
        y = tf.numpy_function(self.remove, [x], x.dtype)
        y.set_shape(x.shape)
        return y

    def remove(self, x):
        self.seen += len(x)
        if self.seen == 24:
            shutil.rmtree(self.folder)
        return x


@fault("full disk", "distill", "the directory of cached outputs vanishes while it is filled")
def vanished_outputs(folder):
    place = folder / "outputs"
    teacher = keras.Sequential([keras.Input((4,)), Removing(place), keras.layers.Dense(3)])
    teacher.layers[0].seen = 0
    with mock.patch.object(caching, "_ROWS", 16):
        text, found = said(distill.cache_teacher, teacher, X, directory=place, batch_size=8, verbose=0)
    yield text, {"the reason": found is None, "an index of what is gone": not (place / "index.json").exists()}
