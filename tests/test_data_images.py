import contextlib
import os
import pathlib
import shutil
import tempfile
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

from tfopt import augment, data
from tfopt.data._decode import decode
from tfopt.data._images import is_validation


def picture(rng, height=40, width=48, channels=3):
    """Smooth noise, so that JPEG keeps it."""
    small = rng.integers(0, 256, (5, 6, channels)).astype(np.uint8)
    return Image.fromarray(small.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes, 10 and 14 files."""
    root = tmp_path / "photos"
    for name, count in (("cat", 10), ("dog", 14)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(rng).save(root / name / f"{i:02}.png")
    return root


def content(dataset):
    """{path: (image, label)} of a dataset that is not shuffled."""
    pairs = [pair for batch in dataset.as_numpy_iterator() for pair in zip(*batch, strict=True)]
    return dict(zip(dataset.file_paths, pairs, strict=True))


def plain(path, **options):
    return data.image_folder(path, 16, 4, **{"shuffle": False, "cache": None, **options})


# ---------------------------------------------------------------------------------------------------- decoding

@pytest.mark.parametrize(("height", "width"), [(16, 24), (20, 20), (80, 100)])
def test_resizing_is_tensorflows_antialiased_bilinear(tmp_path, rng, height, width):
    image = picture(rng)
    image.save(tmp_path / "a.png")
    expected = tf.image.resize(np.asarray(image), (height, width), antialias=True).numpy()
    assert np.abs(decode(tmp_path / "a.png", height, width, 3) - expected).max() <= 1.01


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, rng):
    image = picture(rng, 700, 900)
    image.save(tmp_path / "a.jpg", quality=95)
    expected = tf.image.resize(np.asarray(Image.open(tmp_path / "a.jpg")), (32, 48), antialias=True).numpy()
    error = np.abs(decode(tmp_path / "a.jpg", 32, 48, 3) - expected)
    assert error.max() < 6
    assert error.mean() < 1


def test_gray_wanted_and_gray_given(tmp_path, rng):
    picture(rng).save(tmp_path / "color.png")
    picture(rng, channels=1).save(tmp_path / "gray.png")
    assert decode(tmp_path / "color.png", 8, 9, 1).shape == (8, 9, 1)
    gray = decode(tmp_path / "gray.png", 8, 9, 3)
    assert (gray[..., 0] == gray[..., 1]).all()
    assert (gray[..., 0] == gray[..., 2]).all()
    np.testing.assert_array_equal(gray[..., :1], decode(tmp_path / "gray.png", 8, 9, 1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png", 16, 16, 1)[..., 0], levels >> 8)


def test_cmyk_keeps_its_colors(tmp_path):
    image = Image.fromarray(np.full((16, 16, 3), (200, 60, 30), np.uint8))
    image.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(decode(tmp_path / "print.jpg", 8, 8, 3).astype(int) - (200, 60, 30)).max() <= 6


def test_a_photo_is_turned_as_the_camera_was(tmp_path, rng):
    image = picture(rng)
    exif = Image.Exif()
    exif[0x0112] = 6                                                       # turn by 90 degrees, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png", 48, 40, 3), np.rot90(np.asarray(image), -1))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (40, 200)]
    for name in ("moving.gif", "moving.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(decode(tmp_path / name, 8, 8, 3).astype(int) - 40).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "gif", "webp", "JPG"])
def test_every_format(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((16, 16, 3), (200, 60, 30), np.uint8)).save(tmp_path / "a" / f"x.{suffix}")
    (image, _), = content(plain(tmp_path)).values()
    assert np.abs(image - (200, 60, 30)).max() <= 6


# ------------------------------------------------------------------------------------------------------ labels

def test_images_and_labels_belong_together(folder):
    dataset = plain(folder)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.file_paths == sorted(str(path) for path in folder.rglob("*.png"))
    for path, (image, label) in content(dataset).items():
        assert label == (pathlib.Path(path).parent.name == "dog")
        np.testing.assert_array_equal(image, decode(path, 16, 16, 3))
    assert dataset.class_weight == {0: 24 / 20, 1: 24 / 28}
    assert dataset.element_spec[0] == tf.TensorSpec([4, 16, 16, 3], tf.float32)


def test_shuffled_batches_hold_the_same_pairs(folder):
    expected = {(image.tobytes(), label) for image, label in content(plain(folder)).values()}
    dataset = data.image_folder(folder, 16, 5, seed=3)
    epochs = [[(image.tobytes(), label) for batch in dataset.as_numpy_iterator() for image, label
               in zip(*batch, strict=True)] for _ in range(2)]
    assert set(epochs[0]) == set(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_labels_from_a_csv(tmp_path, rng):
    for name in ("b.png", "007.png", "c.png", "unused.png"):
        picture(rng).save(tmp_path / name)
    frame = pd.DataFrame({"file": ["b.png", "007.png", "c.png"], "label": ["yes", "no", "yes"]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    for path in (tmp_path / "labels.csv", tmp_path):
        dataset = plain(path)
        assert dataset.class_names == ["no", "yes"]
        assert {pathlib.Path(name).name: int(label) for name, (_, label) in content(dataset).items()} == {
            "007.png": 0, "b.png": 1, "c.png": 1}
        assert dataset.report.ignored == ["unused.png"]
    frame.assign(label=[0.5, 1.5, 2.5]).to_csv(tmp_path / "labels.csv", index=False)
    dataset = plain(tmp_path)
    assert dataset.class_names is None
    assert [label for _, label in content(dataset).values()] == [1.5, 0.5, 2.5]


def test_gray_size_and_rectangles(folder):
    images, _ = next(iter(data.image_folder(folder, (12, 20, 1), 4)))
    assert images.shape == (4, 12, 20, 1)


# ------------------------------------------------------------------------------------------------------- split

def test_the_split_stays_when_files_are_added(folder, rng):
    def names(dataset):
        return {path for path in dataset.file_paths}

    train, validation = plain(folder, validation_split=0.3)
    before = names(train), names(validation)
    assert not before[0] & before[1]
    assert len(before[0] | before[1]) == 24
    for i in range(20, 40):
        picture(rng).save(folder / "cat" / f"{i}.png")
    train, validation = plain(folder, validation_split=0.3, seed=9)
    assert before[0] <= names(train)
    assert before[1] <= names(validation)


def test_the_split_has_the_size_that_was_asked_for():
    share = np.mean([is_validation(f"dog/{i}.jpg", 0.2) for i in range(20000)])
    assert abs(share - 0.2) < 0.01
    assert not any(is_validation(f"dog/{i}.jpg", 0.1) and not is_validation(f"dog/{i}.jpg", 0.2) for i in range(2000))


def test_validation_is_neither_shuffled_nor_augmented(folder):
    train, validation = data.image_folder(folder, 16, 4, validation_split=0.3, augment=lambda x, y: (0 * x, y))
    assert max(float(tf.reduce_max(x)) for x, _ in train) == 0
    for path, (image, _) in content(validation).items():
        np.testing.assert_array_equal(image, decode(path, 16, 16, 3))


def test_a_layer_still_rescales_validation(folder):
    augment = keras.Sequential([keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)])
    for side in data.image_folder(folder, 16, 4, validation_split=0.3, augment=augment):
        assert 0.5 < max(float(tf.reduce_max(x)) for x, _ in side) <= 1


class Stamp:
    """Stands for augment.Pipeline: paints epoch and index into the images."""

    replayable = True

    def apply(self, images, labels, *, epoch, index):
        assert images.dtype == tf.uint8
        value = tf.cast(100 * epoch + index, tf.float32)
        return tf.zeros_like(images, tf.float32) + value[:, None, None, None], labels


def test_a_pipeline_is_told_the_place_in_the_folder_whatever_the_split(folder):
    train, _ = plain(folder, validation_split=0.3, augment=Stamp())
    everything = plain(folder).file_paths
    for epoch in range(2):
        for path, (image, _) in content(train).items():
            assert image[0, 0, 0] == 100 * epoch + everything.index(path)


@pytest.mark.slow
def test_with_the_real_pipeline(folder):
    views = augment.Pipeline([augment.Flip(), augment.Rotate(0.1)], seed=4, output_range=(0, 1))
    train, validation = data.image_folder(folder, 16, 5, validation_split=0.3, augment=views, seed=2)
    names = plain(folder).file_paths
    for epoch in range(2):
        order = np.random.default_rng((2, epoch)).permutation(len(train.file_paths))
        paths = [train.file_paths[row] for row in order]
        expected = views.apply(np.stack([decode(path, 16, 16, 3) for path in paths]), epoch=epoch,
                               index=np.array([names.index(path) for path in paths]))
        np.testing.assert_array_equal(np.concatenate([images for images, _ in train]), expected)
    for path, (image, _) in content(validation).items():
        np.testing.assert_allclose(image, decode(path, 16, 16, 3) / 255, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- cache

def same(one, other):
    one, other = content(one), content(other)
    assert list(one) == list(other)
    for path in one:
        np.testing.assert_array_equal(one[path][0], other[path][0])
        assert one[path][1] == other[path][1]


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded since the list was cleared."""
    names = []

    def spy(path, *shape):
        names.append(pathlib.Path(path).name)
        return decode(path, *shape)

    monkeypatch.setattr("tfopt.data._decode.decode", spy)
    return names


def test_the_cache_changes_nothing_but_the_work(folder, tmp_path, decoded):
    uncached = plain(folder)
    for cache in ("memory", "auto", tmp_path / "cache"):
        dataset = plain(folder, cache=cache)
        decoded.clear()
        same(dataset, uncached)
        assert len(decoded) == 24, "the 24 of the uncached one alone"


def test_a_disk_cache_decodes_only_what_changed(folder, tmp_path, decoded, rng):
    def opened():
        decoded.clear()
        dataset = plain(folder, cache=tmp_path / "cache")
        done = sorted(decoded)
        same(dataset, plain(folder))
        return done

    assert len(opened()) == 24
    assert opened() == []
    picture(rng).save(folder / "cat" / "new.png")
    picture(rng).save(folder / "dog" / "03.png")
    os.utime(folder / "dog" / "03.png", ns=(1, 1))                        # even an older time is another time
    assert opened() == ["03.png", "new.png"]
    (folder / "cat" / "04.png").unlink()
    assert opened() == []
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1, "what was replaced is gone"
    assert plain(folder, cache=tmp_path / "cache", validation_split=0.3)
    decoded.clear()
    data.image_folder(folder, 8, 4, cache=tmp_path / "cache")
    assert len(decoded) == 24, "another size is another cache"


def test_an_open_dataset_outlives_a_new_cache(folder, tmp_path):
    old = plain(folder, cache=tmp_path / "cache")
    expected = content(old)
    Image.new("RGB", (9, 9)).save(folder / "cat" / "00.png")
    plain(folder, cache=tmp_path / "cache")
    for path, (image, _) in content(old).items():
        np.testing.assert_array_equal(image, expected[path][0])


def test_a_crash_while_the_cache_is_made_leaves_the_old_one(folder, tmp_path, monkeypatch, decoded):
    plain(folder, cache=tmp_path / "cache")
    Image.new("RGB", (9, 9)).save(folder / "cat" / "00.png")
    with monkeypatch.context() as patch:                                   # the images are written, the note is not
        patch.setattr("tfopt._files.write_json", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plain(folder, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    decoded.clear()
    dataset = plain(folder, cache=tmp_path / "cache")
    assert decoded == ["00.png"]
    same(dataset, plain(folder))


@pytest.mark.parametrize("pattern", ["*.npy", "*.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b""),
                                    lambda path: os.truncate(path, path.stat().st_size // 2),
                                    lambda path: path.write_text("[1]")])
def test_a_damaged_cache_is_named_and_made_anew(folder, tmp_path, pattern, damage):
    plain(folder, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").glob(pattern))
    damage(path)
    with (contextlib.nullcontext() if not path.exists() and pattern == "*.json" else
          pytest.warns(UserWarning, match=f"image cache is damaged.*{path.stem[:20]}")):
        again = plain(folder, cache=tmp_path / "cache")
    same(again, plain(folder))


def test_changed_bytes_in_the_cache_are_found_by_their_checksum(folder, tmp_path, decoded):
    plain(folder, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").glob("*.npy"))
    size = 16 * 16 * 3
    with path.open("r+b") as file:                                         # one byte of the third image
        file.seek(path.stat().st_size - 22 * size + 5)
        before = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before[0] ^ 1]))
    decoded.clear()
    with pytest.warns(UserWarning, match=r"image cache is damaged.*1 images are not as they were.*cat/02.png"):
        again = plain(folder, cache=tmp_path / "cache")
    assert decoded == ["02.png"]
    same(again, plain(folder))
    decoded.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain(folder, cache=tmp_path / "cache")
    assert decoded == []


@pytest.mark.parametrize("change", [
    lambda note: [1], lambda note: {}, lambda note: {**note, "images": 3},
    lambda note: {**note, "images": "/etc/passwd"}, lambda note: {**note, "files": [1]},
    lambda note: {**note, "files": {k: v[:2] for k, v in note["files"].items()}},
    lambda note: {**note, "files": {k: [*v[:2], 10**9, v[3]] for k, v in note["files"].items()}},
    lambda note: {**note, "files": {k: [*v[:2], "row", v[3]] for k, v in note["files"].items()}}], ids=range(8))
def test_a_note_of_other_content_is_named_whatever_its_checksum(folder, tmp_path, change):
    from tfopt import _files
    from tfopt.data._cache import VERSION

    plain(folder, cache=tmp_path / "cache")
    path, kind = next((tmp_path / "cache").glob("*.json")), f"image cache of {folder.resolve()}"
    _files.write_json(path, change(_files.read_json(path, kind=kind, version=VERSION)), kind=kind, version=VERSION)
    with pytest.warns(UserWarning, match=r"image cache is damaged.*All images are decoded again"):
        again = plain(folder, cache=tmp_path / "cache")
    same(again, plain(folder))


def test_the_cache_of_another_folder_in_its_place_is_refused(folder, tmp_path, rng):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    picture(rng).save(other / "cat" / "00.png")
    for root in (folder, other):
        plain(root, cache=tmp_path / f"cache of {root.name}")
    mine, theirs = (next((tmp_path / f"cache of {root.name}").glob("*.json")) for root in (folder, other))
    mine.write_bytes(theirs.read_bytes())
    with pytest.warns(UserWarning, match="image cache is damaged.*expected is 'image cache of"):
        again = plain(folder, cache=mine.parent)
    same(again, plain(folder))


def test_auto_goes_by_size_and_free_memory(monkeypatch, tmp_path):
    from tfopt.data import _cache

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_cache, "free_memory", lambda: 100)
    monkeypatch.setattr(_cache, "_free_disk", lambda folder: 1000)
    assert [_cache.choose(size) for size in (50, 51, 500, 501)] == ["memory", "disk", "disk", None]


def test_auto_on_disk_and_without_room(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tfopt.data._cache.free_memory", lambda: 0)
    same(plain(folder, cache="auto"), plain(folder))
    assert len(list((tmp_path / "home" / "tfopt" / "images").iterdir())) == 2
    monkeypatch.setattr("tfopt.data._cache._free_disk", lambda folder: 0)
    with pytest.warns(UserWarning, match="neither memory nor disk"):
        same(plain(folder, cache="auto"), plain(folder))
    with pytest.raises(OSError, match="must fit on the disk"):
        plain(folder, cache=tmp_path / "other")


def test_free_memory_is_plausible():
    from tfopt.data._cache import free_memory

    assert 2 ** 20 < free_memory() < 2 ** 45


# --------------------------------------------------------------------------------------------------- bad files

def add_odd_files(root, rng):
    """What folders hold in real life; returns the names of the bad ones and why, and of the odd ones and why."""
    cat = root / "cat"
    (cat / "zero.jpg").write_bytes(b"")
    picture(rng, 200, 200).save(cat / "whole.jpg")
    (cat / "truncated.jpg").write_bytes((cat / "whole.jpg").read_bytes()[:2000])
    (cat / "whole.jpg").unlink()
    (cat / "text.jpg").write_text("<html>404</html>")
    picture(rng).save(cat / "webp.jpg", format="WEBP")
    picture(rng).convert("CMYK").save(cat / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (9, 9)).astype(np.uint16)).save(cat / "deep.png")
    picture(rng, channels=1).save(cat / "gray.jpg")
    picture(rng).save(cat / "moving.gif", save_all=True, append_images=[picture(rng)])
    return ({"cat/text.jpg": "not a BMP, GIF, JPEG, PNG or WEBP image", "cat/truncated.jpg": "damaged: ",
             "cat/zero.jpg": "empty file"},
            {"cat/webp.jpg": "WEBP content", "cat/cmyk.jpg": "CMYK", "cat/deep.png": "16 bits",
             "cat/moving.gif": "animation, of which the first frame is used"})


def matches(found, expected):
    assert sorted(found) == sorted(expected)
    assert all(found[name].startswith(why) for name, why in expected.items())


def test_scan_names_every_bad_file_and_why(folder, rng):
    bad, odd = add_odd_files(folder, rng)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.jpg").write_text("x")
    scan = data.scan_images(folder)
    matches(scan.bad, bad)
    matches(scan.odd, odd)
    assert scan.files == 24 + 8
    assert scan.ignored == ["notes.txt"]
    assert str(scan).startswith("3 of 32 images are bad: cat/text.jpg (not a BMP, GIF, JPEG, PNG or WEBP image), ")


def test_raise_names_the_first_path_and_how_many_more(folder, rng):
    add_odd_files(folder, rng)
    with pytest.raises(ValueError, match=r"first='.*cat/text.jpg: not a .*', and_more=2"):
        plain(folder)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "memory", "disk"])
@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_skip_and_replace_train_to_the_end_and_report(folder, rng, on_error, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    bad, _ = add_odd_files(folder, rng)
    for _ in range(2):                                                     # the second time from the cache on disk
        with pytest.warns(UserWarning, match="3 of 32 images are bad: cat/text.jpg.* left out"):
            train, validation = plain(folder, on_error=on_error, validation_split=0.3, cache=cache, shuffle=True)
    matches(train.report.bad, bad)
    assert len(train.file_paths) + len(validation.file_paths) == (29 if on_error == "skip" else 32)
    assert not any(name in path for path in train.file_paths + validation.file_paths for name in bad)
    assert not set(train.file_paths) & set(validation.file_paths)
    if on_error == "replace":
        assert set(train.report.replaced) == set(bad)
        assert {name.split("/")[0] for name in train.report.replaced.values()} == {"cat"}
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                              keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, validation_data=validation, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()


def test_what_cannot_be_replaced_is_skipped_and_told(folder, rng):
    (folder / "empty").mkdir()
    (folder / "empty" / "only.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="only.jpg"):
        dataset = plain(folder, on_error="replace")
    assert len(dataset.file_paths) == 24
    assert (dataset.report.bad, dataset.report.replaced) == ({"empty/only.jpg": "empty file"}, {})


def test_a_file_that_breaks_during_training_is_named(folder):
    dataset = plain(folder)
    (folder / "dog" / "05.png").write_bytes(b"")
    with pytest.raises(tf.errors.OpError, match=r"dog/05.png: empty file"):
        list(dataset)


def test_a_bad_file_in_the_cache_is_looked_at_again(folder, tmp_path, rng):
    (folder / "cat" / "late.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(plain(folder, cache=tmp_path / "cache", on_error="skip").file_paths) == 24
    picture(rng).save(folder / "cat" / "late.png")
    dataset = plain(folder, cache=tmp_path / "cache")
    assert len(dataset.file_paths) == 25
    same(dataset, plain(folder))


def test_a_file_without_permission(run_python):
    """In a process without the rights of root, who may read everything."""
    root = pathlib.Path(tempfile.mkdtemp())
    try:
        (root / "cat").mkdir()
        root.chmod(0o755)
        for name in ("open.png", "closed.png"):
            Image.new("RGB", (9, 9)).save(root / "cat" / name)
        (root / "cat" / "closed.png").chmod(0)
        printed = run_python("import os, sys\nfrom tfopt import data\nif os.getuid() == 0: os.setuid(65534)\n"
                             "print(data.scan_images(sys.argv[1]).bad)", root)
        assert printed.splitlines()[-1] == "{'cat/closed.png': 'permission denied'}"
    finally:
        shutil.rmtree(root)


@pytest.mark.slow
def test_the_formats_are_known_before_any_thread_opens_a_file(run_python):
    printed = run_python("from tfopt.data import _decode\nprint(set(_decode.FORMATS) - set(_decode.Image.OPEN))",
                         fork=False)
    assert printed.splitlines()[-1] == "set()"


def test_a_file_that_only_a_csv_knows(tmp_path, rng):
    picture(rng).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,x\ngone.png,y\n")
    assert data.scan_images(tmp_path / "labels.csv").bad == {"gone.png": "no such file"}
    with pytest.raises(ValueError, match=r"gone.png: no such file', and_more=0"):
        plain(tmp_path)


# ------------------------------------------------------------------------------------- what comes from outside

def test_an_image_of_too_many_pixels_is_named_and_not_decoded(folder):
    Image.new("1", (20000, 20000)).save(folder / "dog" / "bomb.png")       # 50 kB on the disk, 400 million pixels
    assert (folder / "dog" / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.png: .*max_pixels=90,000,000"):
        plain(folder)
    assert list(data.scan_images(folder).bad) == ["dog/bomb.png"]
    with pytest.raises(ValueError, match=r"cat/00.png: 48 x 40 are more than max_pixels=1,000"):
        plain(folder, max_pixels=1000)
    assert len(plain(folder / "..", max_pixels=2000, on_error="skip").file_paths) == 24


@pytest.mark.parametrize("absolute", [True, False])
def test_a_csv_leads_out_of_its_folder_only_when_allowed(tmp_path, rng, absolute):
    (tmp_path / "lists").mkdir()
    picture(rng).save(tmp_path / "a.png")
    picture(rng).save(tmp_path / "lists" / "b.png")
    outside = tmp_path / "a.png" if absolute else "../a.png"
    (tmp_path / "lists" / "labels.csv").write_text(f"file,label\n{outside},x\nb.png,y\n")
    for call in (plain, data.scan_images):
        with pytest.raises(ValueError, match=r"must name files inside its folder.*a\.png.*pass as `root`"):
            call(tmp_path / "lists" / "labels.csv")
    dataset = plain(tmp_path / "lists" / "labels.csv", root=tmp_path)
    assert sorted(pathlib.Path(path).resolve().name for path in dataset.file_paths) == ["a.png", "b.png"]


def test_links_to_folders_are_followed_and_circles_are_not(folder, tmp_path, rng):
    (tmp_path / "elsewhere").mkdir()
    picture(rng).save(tmp_path / "elsewhere" / "1.png")
    (folder / "emu").symlink_to(tmp_path / "elsewhere")
    (folder / "emu" / "circle").symlink_to(tmp_path / "elsewhere")
    dataset = plain(folder)
    assert dataset.class_names == ["cat", "dog", "emu"]
    assert len(dataset.file_paths) == 25
    theirs = keras.utils.image_dataset_from_directory(folder, image_size=(16, 16), verbose=False, follow_links=False)
    assert theirs.class_names == dataset.class_names


def test_pipes_and_devices_are_not_read(folder):
    """They once were, for ever."""
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "zeros.png").symlink_to("/dev/zero")
    (folder / "dog" / "inner.png").mkdir()
    assert data.scan_images(folder).bad == {"cat/pipe.png": "not a regular file", "cat/zeros.png": "not a regular file"}


@pytest.mark.parametrize("text", [b"", b"file,label\n,1\nb.png,2\n", b'file,label\n"b.png,1\n', b"\xff\xfea\0,\0b\0",
                                  b"file,label\nb.png,1,2,3\n", b"a\nb,c\nd,e,f\n", b"file,label\nb.png,inf\n",
                                  b"file,label\nb.png,1e300\n", b"file,label\nb.png,18446744073709551615\n"],
                         ids=["empty", "no name", "quotation", "UTF-16", "ragged", "several lengths", "infinite",
                              "beyond float32", "beyond int64"])
def test_a_csv_that_is_damaged_is_refused(tmp_path, rng, text):
    picture(rng).save(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(ValueError, match=r"^data.image_folder: (a CSV of labels must|the target must)") as caught:
        plain(tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)


def test_empty_class_folders_are_named(folder):
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").write_text("x")
    assert data.scan_images(folder).empty == ["emu"]
    assert str(data.scan_images(folder)).endswith("1 sub-folders without images: emu.")
    with pytest.warns(UserWarning, match="1 sub-folders without images: emu"):
        dataset = plain(folder)
    assert dataset.class_names == ["cat", "dog", "emu"]


@pytest.mark.slow
def test_views_are_not_rounded(folder):
    for images, _ in plain(folder, augment=augment.Pipeline([augment.Rotate((0.05, 0.05))], jit_compile=False)):
        assert (images != tf.round(images)).numpy().mean() > 0.3


# ---------------------------------------------------------------------------------------------------- refusals

@pytest.mark.parametrize("options", [{"image_size": (3,)}, {"image_size": 0}, {"image_size": (8, 8, 4)},
                                     {"image_size": None},
                                     {"batch_size": 0},
                                     {"seed": 0.5}, {"validation_split": 1}, {"validation_split": 1e-9},
                                     {"on_error": "ignore"}])
def test_arguments_out_of_range(folder, options):
    arguments = {"image_size": 8, "batch_size": 2} | options
    with pytest.raises(ValueError, match="Received: "):
        data.image_folder(folder, **arguments)


@pytest.mark.parametrize("cache", [3, False, "memmory"])
def test_a_cache_of_the_wrong_kind(folder, cache):
    with pytest.raises(ValueError, match="`cache` must be"):
        data.image_folder(folder, 8, 2, cache=cache)


def test_folders_that_are_none(tmp_path, rng):
    with pytest.raises(ValueError, match="must be a folder"):
        plain(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there must be a sub-folder for each class"):
        plain(tmp_path)
    with pytest.raises(ValueError, match="no images were found"):
        data.scan_images(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="there must be images in the sub-folders"):
        plain(tmp_path)


@pytest.mark.parametrize("text", ["file,label\n", "file\na.png\n", "file,label\na.png,x\na.png,y\n"])
def test_a_csv_that_is_no_list_of_labels(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match="a CSV of labels"):
        plain(tmp_path / "labels.csv")
