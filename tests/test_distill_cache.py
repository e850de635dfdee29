"""Cached outputs: those of the teacher, for the example and view they belong to, whatever was broken off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfopt import distill
from tfopt.distill._packing import unpack

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units, *, classes=12, activation=None, seed=0):
    start = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu", kernel_initializer=start),
                             keras.layers.Dense(classes, activation, kernel_initializer=start)])


def arrays(rng, count=50):
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, 12, count)


class Shift:
    """The replay contract: a view depends on (epoch, index) and the example alone."""

    replayable = True

    def apply(self, images, labels=None, *, epoch, index):
        return images + tf.cast(epoch, tf.float32) * 10 + tf.cast(index, tf.float32)[:, None] / 100

    def get_config(self):
        return {}


def logits_in(element, classes=12):
    """float32 logits of a teacher with one output."""
    (_, packed), = element["teacher"]["output"].items()
    return unpack(packed, classes).numpy()


def everything(dataset):
    return [tf.nest.map_structure(lambda *parts: np.concatenate(parts), *list(dataset.as_numpy_iterator()))][0]


@pytest.fixture(params=["memory", "folder"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "cache"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("tfopt.distill._cache._ROWS", 16)



def test_lists_of_inputs_and_targets(rng):
    left, right = keras.Input((4,)), keras.Input((4,))
    merged = keras.layers.Subtract()([left, right])
    teacher = keras.Model([left, right], [keras.layers.Dense(2)(merged), keras.layers.Dense(3)(merged)])
    x = [rng.normal(size=(20, 4)).astype("float32") for _ in range(2)]
    y = [rng.integers(0, 2, 20), rng.integers(0, 3, 20)]
    cached = distill.cache_teacher(teacher, (x, y), batch_size=5, verbose=0)
    found = np.concatenate([np.stack(inputs, 1) for inputs, _ in cached.as_numpy_iterator()])
    order = np.argsort(found[:, 0, 0])
    np.testing.assert_array_equal(found[order], np.stack(x, 1)[np.argsort(x[0][:, 0])])
    distiller = distill.Distiller(None, keras.models.clone_model(teacher), [distill.Logits(), distill.Logits()])
    distiller.compile("sgd", [SPARSE, SPARSE])
    assert np.isfinite(distiller.fit(cached, verbose=0).history["loss"]).all()


def test_outputs_belong_to_their_examples(rng, path):
    (x, y), teacher = arrays(rng), dense(16)
    cached = distill.cache_teacher(teacher, (x, y), directory=path, batch_size=8)
    first, second = everything(cached), everything(cached)
    for seen, outputs in (first, second):
        np.testing.assert_allclose(logits_in(outputs), teacher(seen), atol=2e-3)
        lookup = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
        assert [lookup[row.tobytes()] for row in seen] == outputs["y"].tolist()
        assert sorted(map(bytes, seen)) == sorted(map(bytes, x))
    assert not np.array_equal(first[0], second[0])                                   # shuffled anew in each pass


def test_a_data_set_keeps_its_order_and_batches(rng, path):
    (x, y), teacher = arrays(rng), dense(16, activation="softmax")
    weight = rng.uniform(size=50).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(7)
    cached = distill.cache_teacher(teacher, data, directory=path)
    assert [len(batch[0]) for batch in cached] == [7] * 7 + [1]
    seen, outputs, weights = everything(cached)
    np.testing.assert_array_equal(seen, x)
    np.testing.assert_array_equal(outputs["y"], y)
    np.testing.assert_array_equal(weights, weight)
    found = scipy.special.softmax(logits_in(outputs), -1)
    np.testing.assert_allclose(found, teacher(x), atol=2e-3)


def test_the_first_classes_and_what_is_left(rng, path):
    (x, y), teacher = arrays(rng), dense(16)
    cached = distill.cache_teacher(teacher, (x, y), directory=path, top_k=3)
    seen, outputs = everything(cached)
    packed = outputs["teacher"]["output"]["logits"]
    assert {name: (part.dtype.name, part.shape[1:]) for name, part in packed.items()} == {
        "values": ("float16", (3,)), "indices": ("uint8", (3,)), "rest": ("float16", ())}
    p = scipy.special.softmax(teacher(seen), -1)
    q = scipy.special.softmax(unpack(packed, 12), -1)
    np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-5)
    for exact, found in zip(p, q, strict=True):
        order = np.argsort(-exact)
        np.testing.assert_allclose(found[order[:3]], exact[order[:3]], rtol=5e-3)
        np.testing.assert_allclose(found[order[3:]], exact[order[3:]].mean(), rtol=2e-2)


def test_views_are_replayed(rng, path):
    (x, y), teacher = arrays(rng, 20), dense(16)
    cached = distill.cache_teacher(teacher, (x, y), directory=path, augment=Shift(), views=3, batch_size=6)
    seen, outputs = everything(cached)
    assert len(seen) == 60
    np.testing.assert_allclose(logits_in(outputs), teacher(seen), rtol=2e-3, atol=2e-2)
    offsets = np.rint((seen - np.tile(seen.min(), 4)).mean(-1) / 10)
    assert offsets[:20].mean() < offsets[20:40].mean() < offsets[40:].mean()
    data = tf.data.Dataset.from_tensor_slices(x).batch(6)
    seen, outputs = everything(distill.cache_teacher(teacher, data, augment=Shift(), views=2))
    np.testing.assert_array_equal(seen[20:], Shift().apply(x, epoch=1, index=np.arange(20)))
    assert set(outputs) == {"teacher"}


@pytest.mark.slow
def test_views_of_the_pipeline_are_replayed(rng):
    augment = pytest.importorskip("tfopt.augment")
    images = rng.integers(0, 256, (20, 8, 8, 1)).astype("uint8")
    teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                                keras.layers.Dense(5)])
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate(), augment.Brightness()], seed=3)
    cached = distill.cache_teacher(teacher, (images, np.zeros(20)), augment=pipeline, views=2, batch_size=8)
    seen, outputs = everything(cached)
    np.testing.assert_allclose(logits_in(outputs), teacher(seen), atol=5e-3)
    assert seen.dtype == np.uint8
    with pytest.raises(ValueError, match="that is replayable"):
        distill.cache_teacher(teacher, (images, np.zeros(20)), augment=augment.Pipeline([augment.MixUp()]))


@pytest.mark.slow
@pytest.mark.parametrize("top", [None, 4])
def test_training_on_cached_logits_equals_the_live_teacher(rng, path, top):
    (x, y), teacher = arrays(rng, 48), dense(16)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    students = [dense(5, seed=1), dense(5, seed=1)]
    for student, source, told in ((students[0], teacher, data),
                                  (students[1], None, distill.cache_teacher(teacher, data, directory=path, top_k=top))):
        made = distill.Distiller(source, student, distill.Logits(2.))
        made.compile(keras.optimizers.SGD(0.1), SPARSE, metrics=["accuracy"])
        logs = made.fit(told, epochs=3, validation_data=data, verbose=0).history
        assert {"val_loss", "val_accuracy", "distillation_loss"} <= set(logs)
        made.evaluate(told, verbose=0)
    for mine, theirs in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-3 if top is None else 0.05)
    assert np.abs(students[0].get_weights()[0] - dense(5, seed=1).get_weights()[0]).max() > 0.05


def test_outputs_of_the_users_own_train_as_the_live_teacher_does(rng):
    (x, y), teacher = arrays(rng, 48), dense(16)
    students = [dense(5, seed=1), dense(5, seed=1), dense(5, seed=1)]
    own = {"y": y, "teacher": teacher.predict(x, verbose=0)}
    wrong = {"y": y, "teacher": own["teacher"][::-1]}                      # another example's: a negative control
    for student, source, targets in zip(students, (teacher, None, None), (y, own, wrong), strict=True):
        made = distill.Distiller(source, student, distill.Logits(2.))
        made.compile(keras.optimizers.SGD(0.1), SPARSE)
        made.fit(tf.data.Dataset.from_tensor_slices((x, targets)).batch(16), epochs=3, verbose=0)
    live, mine, theirs = (student.get_weights() for student in students)
    assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(live, mine, strict=True))
    assert not all(np.allclose(one, other, atol=1e-3) for one, other in zip(live, theirs, strict=True))


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_of_examples_with_outputs_of_the_users_own(labeled, nested, rng):
    """Keras copies the weights for each part of the targets; numpy weighs both terms once."""
    (x, y), weight, student = arrays(rng, 16), rng.uniform(0, 3, 16).astype("float32"), dense(5)
    teacher = rng.normal(size=(16, 12)).astype("float32")
    q = scipy.special.log_softmax(np.asarray(student(x), float), -1)
    p = scipy.special.log_softmax(teacher.astype(float), -1)
    task = -(weight * q[np.arange(16), y]).mean()
    divergence = (weight * (np.exp(p) * (p - q)).sum(-1)).mean()
    if nested:
        student = keras.Model(student.inputs, {"kind": student.outputs[0]})
        y, teacher = {"kind": y}, {"kind": teacher}
    made = distill.Distiller(None, student, distill.Logits(1.), student_loss_weight=0.3)
    made.compile(keras.optimizers.SGD(0.0), ({"kind": SPARSE} if nested else SPARSE) if labeled else None)
    targets = {"y": y, "teacher": teacher} if labeled else {"teacher": teacher}
    data = {"x": x, "y": targets, "batch_size": 16, "sample_weight": weight, "verbose": 0}
    history = made.fit(**data, validation_data=(x, targets, weight)).history
    np.testing.assert_allclose(history["loss"], [0.3 * task + 0.7 * divergence if labeled else divergence], rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], [task if labeled else divergence], rtol=1e-5)
    with pytest.raises(ValueError, match=r"^distill.Distiller.fit: `class_weight` .* Pass `sample_weight`"):
        made.fit(x, targets, class_weight={0: 2.0}, verbose=0)


def test_outputs_of_the_users_own_are_nested_as_the_students(rng):
    x = rng.normal(size=(16, 4)).astype("float32")
    inputs = keras.Input((4,))
    student = keras.Model(inputs, {"kind": keras.layers.Dense(3)(inputs), "price": keras.layers.Dense(1)(inputs)})
    made = distill.Distiller(None, student, {"kind": distill.Logits(), "price": distill.Values()})
    made.compile(keras.optimizers.SGD(0.0))
    numbers = {"kind": rng.normal(size=(16, 3)), "price": rng.normal(size=(16, 1))}
    loss = made.fit(x, {"teacher": numbers}, batch_size=16, verbose=0).history["loss"][0]
    logits, price = (np.asarray(student(x)[key], float) for key in ("kind", "price"))
    p, q = (scipy.special.log_softmax(part / 4, -1) for part in (numbers["kind"], logits))
    divergence = 16 * (np.exp(p) * (p - q)).sum(-1).mean()
    np.testing.assert_allclose(loss, divergence + ((price - numbers["price"]) ** 2).mean(), rtol=1e-5)
    for bad in ({"kind": numbers["kind"]}, numbers["kind"], {**numbers, "kind": np.zeros((16, 5))}):
        made = distill.Distiller(None, student, {"kind": distill.Logits(), "price": distill.Values()})
        made.compile("sgd")
        with pytest.raises(ValueError, match=r"distill.Distiller.fit: .*(nested alike|the shape of the student)"):
            made.fit(x, {"teacher": bad}, batch_size=16, verbose=0)


@pytest.mark.slow
def test_cached_logits_alone_need_no_labels(rng):
    x, _ = arrays(rng)
    made = distill.Distiller(None, dense(5), [distill.DecoupledKD(), distill.DIST()])
    made.compile("adam")
    cached = distill.cache_teacher(dense(16), x)
    assert set(made.fit(cached, validation_data=cached, verbose=0).history) == {"loss", "distillation_loss", "val_loss"}
    with pytest.raises(ValueError, match="`evaluate` needs something to measure"):
        made.evaluate(x, verbose=0)


def test_kinds_of_outputs_are_not_mixed_up(rng):
    (x, y), teacher = arrays(rng), dense(16, activation="sigmoid")
    cached = distill.cache_teacher(teacher, (x, y))
    made = distill.Distiller(None, dense(5), distill.Logits())
    made.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"must be of the same kind.*cached='sigmoid'.*activation=\"sigmoid\""):
        made.fit(cached, verbose=0)
    made = distill.Distiller(None, dense(5), distill.Logits(activation="sigmoid"))
    made.compile("sgd")
    made.fit(cached, verbose=0)


# ---------------------------------------------------------------- folders

class Counting(keras.layers.Layer):
    """Counts the examples that were really computed."""

    seen = 0

    def call(self, x):
        def count(batch):
            Counting.seen += len(batch)
            return batch

        y = tf.numpy_function(count, [x], x.dtype)
        y.set_shape(x.shape)
        return y


def test_a_finished_folder_is_only_read(rng, tmp_path):
    x, y = arrays(rng)
    teacher = keras.Sequential([keras.Input((4,)), Counting(), keras.layers.Dense(12)])
    Counting.seen = 0
    first = everything(distill.cache_teacher(teacher, (x, y), directory=tmp_path, batch_size=8))
    assert Counting.seen == 50
    again = everything(distill.cache_teacher(teacher, (x, y), directory=tmp_path, batch_size=8))
    assert Counting.seen == 50
    np.testing.assert_array_equal(logits_in(first[1])[np.lexsort(first[0].T)],
                                  logits_in(again[1])[np.lexsort(again[0].T)])
    sorted(tmp_path.glob("*.npy"))[1].unlink()
    with pytest.warns(UserWarning, match=r"shard-00001.npy cannot be read .* outputs are computed again"):
        distill.cache_teacher(teacher, (x, y), directory=tmp_path, batch_size=8)
    assert Counting.seen == 50 + 16                                                  # the lost shard alone


KILLED = """
import sys, time, pathlib, numpy as np, keras, tensorflow as tf
from tfopt import distill
from tfopt.distill import _cache
from tfopt.distill._packing import unpack
_cache._ROWS = 16
calls = pathlib.Path(sys.argv[2])

class Slow(keras.layers.Layer):
    def call(self, x):
        def wait(batch):
            with calls.open("a") as file:
                file.write("called\\n")
            time.sleep(float(sys.argv[3]))
            return batch
        y = tf.numpy_function(wait, [x], x.dtype)
        y.set_shape(x.shape)
        return y

keras.utils.set_random_seed(0)
teacher = keras.Sequential([keras.Input((4,)), Slow(), keras.layers.Dense(3)])
x = np.arange(320, dtype="float32").reshape(80, 4)
cached = distill.cache_teacher(teacher, x, directory=sys.argv[1], batch_size=8)
seen, outputs = next(iter(cached.unbatch().batch(80)))
found = unpack(outputs["teacher"]["output"]["logits"], 3).numpy()
difference = np.abs(found - teacher(seen)).max() / np.abs(teacher(seen)).max()
print("difference", float(difference))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_after_the_last_whole_shard(tmp_path):
    program, folder, calls = tmp_path / "program.py", tmp_path / "cache", tmp_path / "calls"
    program.write_text(KILLED)
    command = [sys.executable, "-P", str(program), str(folder), str(calls)]
    run = subprocess.Popen([*command, "0.4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.npy")) if folder.exists() else []) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    whole = json.loads((folder / "index.json").read_text())["content"]["shards"]
    assert 1 <= len(whole) < 5
    calls.write_text("")
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 2e-3
    assert len(calls.read_text().splitlines()) == 10 - 2 * len(whole) + 2            # and twice for the comparison
    assert not list(folder.glob("*.half"))


def test_a_teacher_that_was_loaded_again_is_the_same(tmp_path, rng):
    """The state of its dropout is new at each loading."""
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    teacher.save(tmp_path / "teacher.keras")
    x = rng.normal(size=(20, 4)).astype("float32")
    for _ in range(2):
        loaded = keras.models.load_model(tmp_path / "teacher.keras")
        distill.cache_teacher(loaded, x, directory=tmp_path / "cache", batch_size=8)
    teacher.layers[-1].bias.assign([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="of another teacher"):
        distill.cache_teacher(teacher, x, directory=tmp_path / "cache", batch_size=8)


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def changed(file):
    content = bytearray(file.read_bytes())
    content[-60:] = bytes(60)
    file.write_bytes(content)


def swapped(file):
    other = file.with_name(file.name.replace("00001", "00000"))
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("damage", [cut, changed, swapped], ids=lambda damage: damage.__name__)
def test_damaged_shards_are_named_and_computed_again(rng, tmp_path, damage):
    x, teacher = arrays(rng)[0], dense(16)
    distill.cache_teacher(teacher, x, directory=tmp_path, batch_size=8, verbose=0)
    damage(sorted(tmp_path.glob("*.npy"))[1])
    with pytest.warns(UserWarning, match=r"shard-00001.npy .*not as it was written.*computed again"):
        cached = distill.cache_teacher(teacher, x, directory=tmp_path, batch_size=8, verbose=0)
    seen, outputs = everything(cached)
    np.testing.assert_allclose(logits_in(outputs), teacher(seen), atol=2e-3)


OTHER = {"a list": lambda held: [1], "empty": lambda held: {}, "lists": lambda held: {"made_from": [1], "shards": [1]},
         "a number": lambda held: {**held, "shards": dict.fromkeys(held["shards"], 3)},
         "a path": lambda held: {**held, "shards": {**held["shards"], "../../x": next(iter(held["shards"].values()))}}}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_an_index_of_other_content_is_named_whatever_its_checksum(rng, tmp_path, change):
    from tfopt import _files
    from tfopt.distill._shards import _KIND

    x, teacher = arrays(rng)[0], dense(16)
    distill.cache_teacher(teacher, x, directory=tmp_path / "a", batch_size=8, verbose=0)
    held = _files.read_json(tmp_path / "a" / "index.json", kind=_KIND)
    _files.write_json(tmp_path / "a" / "index.json", change(held), kind=_KIND)
    with pytest.warns(UserWarning, match=r"index.json does not hold what this library notes. All outputs"):
        cached = distill.cache_teacher(teacher, x, directory=tmp_path / "a", batch_size=8, verbose=0)
    seen, outputs = everything(cached)
    np.testing.assert_allclose(logits_in(outputs), teacher(seen), atol=2e-3)


def test_a_directory_that_vanishes_is_an_error(rng, tmp_path):
    class Removing(keras.layers.Layer):
        def call(self, x):
            y = tf.numpy_function(remove, [x], x.dtype)
            y.set_shape(x.shape)
            return y

    def remove(x):
        if len(list(tmp_path.glob("outputs/*.npy"))) == 1:
            shutil.rmtree(tmp_path / "outputs")
        return x

    teacher = keras.Sequential([keras.Input((4,)), Removing(), keras.layers.Dense(3)])
    with pytest.raises(FileNotFoundError, match=r"distill.cache_teacher: the directory is gone"):
        distill.cache_teacher(teacher, arrays(rng)[0], directory=tmp_path / "outputs", batch_size=8, verbose=0)
    assert not (tmp_path / "outputs").exists()


def test_a_damaged_index_is_named_and_all_computed_again(rng, tmp_path):
    x, teacher = arrays(rng)[0], dense(16)
    distill.cache_teacher(teacher, x, directory=tmp_path, batch_size=8, verbose=0)
    cut(tmp_path / "index.json")
    with pytest.warns(UserWarning, match=r"index.json .*computed again"):
        cached = distill.cache_teacher(teacher, x, directory=tmp_path, batch_size=8, verbose=0)
    seen, outputs = everything(cached)
    np.testing.assert_allclose(logits_in(outputs), teacher(seen), atol=2e-3)


def test_logits_that_share_an_offset_lose_nothing(rng):
    from tfopt.distill._packing import pack

    logits = rng.normal(8000, 3, (50, 10)).astype("float32")
    expected = scipy.special.softmax(logits, -1)
    for kind in ("logits", "softmax"):
        found = scipy.special.softmax(unpack(pack(logits, kind, None), 10), -1)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    plain = scipy.special.softmax(logits.astype("float16").astype("float32"), -1)
    assert np.abs(plain - expected).max() > 0.1                                      # negative control


# ---------------------------------------------------------------- what is refused

def shuffled(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(50).batch(8)


def jittered(x, y):
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    noise = np.random.default_rng(0)
    return data.map(lambda a, b: (a + tf.ensure_shape(
        tf.numpy_function(lambda: noise.normal(size=(8, 4)).astype("float32"), [], tf.float32), (8, 4)), b))


def careless(x, y):
    options = tf.data.Options()
    options.deterministic = False
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8).with_options(options)


class Forgetful(Shift):
    replayable = False


REFUSED = {
    "shuffled": (lambda x, y: {"data": shuffled(x, y)}, "same order and form each time, and its first batch did not"),
    "random changes": (lambda x, y: {"data": jittered(x[:8], y[:8])}, "same order and form each time"),
    "careless order": (lambda x, y: {"data": careless(x, y)}, "`data` must come in the same order each time"),
    "endless": (lambda x, y: {"data": tf.data.Dataset.from_tensors((x, y)).repeat()}, "`data` must end"),
    "not batched": (lambda x, y: {"data": tf.data.Dataset.from_tensor_slices((x, y))}, "must come in batches"),
    "lengths": (lambda x, y: {"data": (x, y[:3])}, "must be of one length"),
    "empty": (lambda x, y: {"data": (x[:0], y[:0])}, "must hold at least one example"),
    "top_k": (lambda x, y: {"data": x, "top_k": 12}, "`top_k` must be smaller than the number of classes"),
    "views": (lambda x, y: {"data": x, "views": 2}, "several `views` need an augmentation"),
    "no views": (lambda x, y: {"data": x, "views": 0}, "`views`"),
    "batch_size": (lambda x, y: {"data": x, "batch_size": 0}, "`batch_size`"),
    "augment": (lambda x, y: {"data": x, "augment": Forgetful()}, "that is replayable"),
    "a layer": (lambda x, y: {"data": x, "augment": keras.layers.RandomFlip()}, "that is replayable"),
    "infinite": (lambda x, y: {"data": x * 1e30}, "outputs must be finite"),
}


@pytest.mark.parametrize(("arguments", "rule"), REFUSED.values(), ids=REFUSED)
def test_refused(rng, arguments, rule):
    with pytest.raises(ValueError, match=rule):
        distill.cache_teacher(dense(16), **arguments(*arrays(rng)))


def test_teachers_are_refused(rng):
    x, _ = arrays(rng)
    with pytest.raises(ValueError, match="needs a built model"):
        distill.cache_teacher(keras.Sequential([keras.layers.Dense(3)]), x)
    with pytest.raises(ValueError, match=r"`top_k` needs classes that exclude each other.*ends in Relu"):
        distill.cache_teacher(dense(16, activation="relu"), x, top_k=2)
    with pytest.raises(ValueError, match="`top_k` needs classes that exclude each other"):
        distill.cache_teacher(dense(16, activation="sigmoid"), x, top_k=2)


def test_a_folder_of_other_outputs_is_refused(rng, tmp_path):
    x, y = arrays(rng)
    distill.cache_teacher(dense(16), (x, y), directory=tmp_path)
    with pytest.raises(ValueError, match=r"of another teacher.*differs=\['teacher'\]"):
        distill.cache_teacher(dense(16, seed=5), (x, y), directory=tmp_path)
    with pytest.raises(ValueError, match=r"differs=\['top_k'\]"):
        distill.cache_teacher(dense(16), (x, y), directory=tmp_path, top_k=2)
    with pytest.raises(ValueError, match="outputs for other data"):
        distill.cache_teacher(dense(16), (x[::-1], y), directory=tmp_path)
