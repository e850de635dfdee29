"""States on disk: whole or not there, checked when read. And a real SIGKILL or two."""

import collections
import hashlib
import importlib.util
import json
import pathlib
import random
import shutil

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tfopt._files import Lock
from tfopt.callbacks import Resume
from tfopt.callbacks._resume import _is_state
from tfopt.callbacks._states import DamagedError, Folder
from tfopt.callbacks._values import Memory, NoDataError, pack, settings_of, unpack

VERIFY = pathlib.Path(__file__).parent.parent / "benchmarks" / "verify" / "resume.py"


@pytest.fixture
def verify():
    spec = importlib.util.spec_from_file_location("verify_resume", VERIFY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path, count=3, keep=2):
    folder = Folder(path, keep)
    for number in range(1, count + 1):
        folder.write({"number": number, "nested": [None, {"a": 0.1}]},
                     {"one": np.arange(5.) * number, "two": np.array(3, ml_dtypes.bfloat16), "none": np.zeros((0, 2))})
    return Folder(path, keep)


def test_states_come_back_as_they_were(tmp_path):
    folder = written(tmp_path)
    assert folder.numbers() == [3, 2]
    number, (state, arrays) = folder.newest()
    assert (number, state["number"], state["nested"]) == (3, 3, [None, {"a": 0.1}])
    np.testing.assert_array_equal(arrays["one"], np.arange(5.) * 3)
    assert arrays["two"].dtype == ml_dtypes.bfloat16
    assert arrays["none"].shape == (0, 2)


def test_an_empty_folder_holds_nothing(tmp_path):
    assert Folder(tmp_path / "absent", 2).newest() == (0, None)


@pytest.mark.parametrize("file", ["arrays.npz", "state.json", "manifest.json"])
@pytest.mark.parametrize("fault", ["cut in half", "empty", "with a bit flipped", "missing", "nested too deep"])
def test_a_damaged_state_is_named_and_passed_over(tmp_path, verify, file, fault):
    folder = written(tmp_path)
    deep = {"nested too deep": lambda path: path.write_bytes(b"[" * 100_000)}
    {**verify.DAMAGES, **deep}[fault](folder.at(3) / file)
    with pytest.warns(UserWarning, match=rf"state-000003 is damaged: .*{file}"):
        assert folder.newest()[0] == 2
    folder.write({}, {})
    assert folder.numbers() == [4, 2], "the damaged one makes room, the good one stays"


def test_a_bit_flipped_anywhere_is_seen_or_does_no_harm(tmp_path):
    folder = written(tmp_path, 1)
    expected, draw = folder.read(1), random.Random(0)
    seen = collections.Counter()
    for file in ("arrays.npz", "state.json", "manifest.json"):
        whole = (folder.at(1) / file).read_bytes()
        for _ in range(150):
            broken = bytearray(whole)
            broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (folder.at(1) / file).write_bytes(broken)
            try:
                found = folder.read(1)
            except DamagedError:
                seen[file] += 1
                continue
            assert found[0] == expected[0]
            for name, array in expected[1].items():
                np.testing.assert_array_equal(found[1][name], array)
        (folder.at(1) / file).write_bytes(whole)
    assert seen["state.json"] == 150
    assert min(seen.values()) > 50


def test_without_a_whole_state_it_stops(tmp_path):
    folder = written(tmp_path)
    for number in (2, 3):
        (folder.at(number) / "arrays.npz").unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="finds no whole state") as caught:
        folder.newest()
    assert "\n" not in str(caught.value)


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    folder = written(tmp_path, 1)
    shutil.copytree(folder.at(1), tmp_path / ".part-1a2b3c4dstate-000002")
    assert folder.newest()[0] == 1
    folder.write({}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state-000001", "state-000002"]


def test_a_state_of_another_format_is_not_read(tmp_path):
    folder = written(tmp_path, 1)
    manifest = folder.at(1) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(DamagedError, match="its format is 2, not 1"):
        folder.read(1)


def test_plain_data_come_back_and_nothing_else_goes_in():
    arrays = {}

    def keep(array):
        arrays[str(len(arrays))] = array
        return str(len(arrays) - 1)

    thing = {"a": [1, 2.5, None, True, "word", (1, 2)], 3: np.arange(3), "s": {4}, "f": np.float32(0.1),
             "nan": float("nan"), "op": keras.ops.less, "u": np.greater, ("k", 1): np.array(["x"])}
    packed = json.loads(json.dumps(pack(thing, keep)))
    found = unpack(packed, arrays)
    assert found.keys() == thing.keys()
    assert found["a"] == thing["a"]
    assert found["op"] is keras.ops.less
    assert found["u"] is np.greater
    assert type(found["f"]) is np.float32
    assert found["s"] == {4}
    assert np.isnan(found["nan"])
    np.testing.assert_array_equal(found[3], np.arange(3))
    for other in (object(), lambda: 1, open, np.array([object()]), [keras.Model], iter([1])):
        with pytest.raises(NoDataError):
            pack(other, keep)


def test_what_is_there_is_filled_in_place():
    counter, variable, seen = collections.defaultdict(int, a=1), tf.Variable(1.), [1]
    arrays = {"v": np.float32(5)}
    unpack({"dict": [["a", 2]]}, arrays, counter)
    unpack({"list": [1, 2]}, arrays, seen)
    unpack({"variable": "v"}, arrays, variable)
    assert counter == {"a": 2}
    assert counter["b"] == 0
    assert seen == [1, 2]
    assert float(variable) == 5


def test_arguments_of_a_callback_are_the_users():
    class Mine(keras.callbacks.Callback):
        def __init__(self, patience, data):
            super().__init__()
            self.patience, self.data, self.best = patience, data, None

    callback = Mine(3, np.zeros(4))
    memory = Memory(callback)
    callback.best = 0.5
    assert memory.packed(None) == {"best": 0.5}
    callback.patience = 2
    assert memory.packed(None) == {"best": 0.5, "patience": 2}
    assert Memory(Mine(3, [1])).packed(None) == {"data": {"list": [1]}, "best": None}


def test_settings_tell_optimizers_apart():
    assert settings_of(keras.optimizers.Adam(0.1)) == settings_of(keras.optimizers.Adam(0.1, name="other"))
    assert settings_of(keras.optimizers.Adam(0.1)) != settings_of(keras.optimizers.Adam(0.2))


@pytest.mark.slow
def test_killed_at_a_batch_and_while_it_writes(verify, tmp_path):
    """Real processes and SIGKILLs; benchmarks/verify/resume.py has many more of them."""
    rows = list(verify.chain("arrays", [("SIGKILL at a batch", {"kill": 17}),
                                        ("SIGKILL in a write", {"kill_sync": 8})], tmp_path))
    assert [row["equal"] for row in rows] == ["yes", "yes"]
    assert all(row["redone"] <= verify.EVERY for row in rows)


def test_a_state_names_no_functions_but_comparisons():
    assert unpack({"operation": ["numpy", "less"]}, {}) is np.less
    with pytest.raises(ValueError, match=r"no functions but comparisons.*numpy\.load"):
        unpack({"operation": ["numpy", "load"]}, {})


def test_a_path_is_never_taken_from_a_state(tmp_path):
    """Negative control: numbers of the same callback are."""
    callback = keras.callbacks.ModelCheckpoint(tmp_path / "mine.keras", save_best_only=True)
    memory = Memory(callback)
    callback.best = 0.5
    packed = memory.packed(None)
    assert packed["best"] == 0.5
    assert not {"filepath", "monitor"} & set(packed)
    memory.restore({"best": 0.25}, {})
    assert callback.best == 0.25
    for forged in ({"filepath": "/elsewhere.keras"}, {"on_epoch_end": 1}, {"_model": 1}):
        with pytest.raises(ValueError, match="attributes that are never saved, so somebody changed it"):
            memory.restore(forged, {})
    assert callback.filepath == str(tmp_path / "mine.keras")


def test_two_processes_do_not_share_a_directory(tmp_path, run_python):
    program = """
import sys, keras, numpy as np
from tfopt import callbacks
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[callbacks.Resume(sys.argv[1])])
"""
    path = tmp_path / "states"
    with Lock(path / ".lock", "not the first"):
        done = run_python(program, path, check=False)
        assert done.stderr.splitlines()[-1].startswith("ValueError: callbacks.Resume: another process trains with")
    run_python(program, path)                                                       # control: the lock is free again
    assert Folder(path, 2).numbers() == [1]


def test_callbacks_of_other_modules_are_here_too():
    from tfopt import average, callbacks, prune, schedules

    assert callbacks.SWA is average.SWA
    assert callbacks.Plateau is schedules.Plateau
    assert callbacks.SparsitySummaries is prune.SparsitySummaries
    with pytest.raises(AttributeError, match=r"tfopt.callbacks has SWA, .*Resume, SparsitySummaries. Received"):
        callbacks.EarlyStopping  # noqa: B018


def test_a_state_sets_only_attributes_that_a_callback_knows():
    class Late(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.best = logs

    callback = Late()
    memory = Memory(callback)
    memory.restore({"best": 3}, {})
    assert callback.best == 3
    for name in ("unknown", "on_epoch_end", "_model"):
        with pytest.raises(ValueError, match="attributes that are never saved"):
            memory.restore({name: 3}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a real state, and the function that trains with it."""
    def train(path, epochs):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        return model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=epochs, verbose=0,
                         callbacks=[Resume(path, max_to_keep=3)]).history["loss"]

    path = tmp_path_factory.mktemp("states")
    train(path, 1)
    return path, train


@pytest.mark.parametrize("change", [
    *({name: other} for name in ("epoch", "batch", "stopped", "forms", "source", "callbacks", "random", "begun",
                                 "built_for") for other in ("x", None, [1])),
    {"epoch": -1}, {"batch": -3}, {"forms": {}}, {"source": {}}, {"forms of arrays": [1]},
    {"forms of arrays": {"none": "float32"}}], ids=str)
def test_a_state_of_other_content_is_passed_over_whatever_its_checksums(tmp_path, trained, change):
    shutil.copytree(trained[0], tmp_path / "states")
    folder = Folder(tmp_path / "states", 3, _is_state)
    state, arrays = folder.read(1)
    folder.write(state, arrays)
    text = json.dumps({**state, **change}).encode()
    manifest = json.loads((folder.at(2) / "manifest.json").read_text())
    (folder.at(2) / "state.json").write_bytes(text)
    (folder.at(2) / "manifest.json").write_text(
        json.dumps({**manifest, "state.json": hashlib.sha256(text).hexdigest()}))
    with pytest.warns(UserWarning, match=r"state-000002 is damaged: state.json does not (hold|fit)"):
        assert folder.newest()[0] == 1
    if change == {"epoch": "x"}:
        with pytest.warns(UserWarning, match="state-000002 is damaged"):
            assert len(trained[1](tmp_path / "states", 2)) == 2
