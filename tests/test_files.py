"""What is written is there whole or not at all; what was damaged is named; nothing leads outside."""

import json
import os
import pathlib
import stat

import numpy as np
import pytest

from tfopt import _files, _plots

# Atomic writes


def test_a_write_is_whole_or_nothing(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    _files.write(path, "first")

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _files.write(path, fail)
    _files.write(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_the_mode(tmp_path, mask):
    before = os.umask(mask)
    try:
        _files.write(tmp_path / "a", b"")
        _files.Lines(tmp_path / "b", "").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o666 & ~mask}


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("rename"), replace(*paths)))
    _files.write(tmp_path / "a", b"1")
    assert seen == [False, "rename", True]


def test_a_folder_is_written_as_one(tmp_path):
    with _files.whole(tmp_path / "state") as part:
        part.mkdir()
        (part / "x").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "x"]


def test_what_a_killed_writer_left_is_removed_later(tmp_path):
    old, new, other = (tmp_path / f".part-0000000{i}{name}" for i, name in enumerate(["a", "a", "b"]))
    for left in (old, new, other):
        left.write_text("half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    _files.write(tmp_path / "a", b"1")
    assert sorted(os.listdir(tmp_path)) == [new.name, other.name, "a"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path):
    def fill(file):
        with open("/dev/full", "wb") as full:
            full.write(b"1" * 100_000)

    with pytest.raises(OSError, match=r"No space left on device: '.*/a'") as caught:
        _files.write(tmp_path / "a", fill)
    assert _files.out_of_space(caught.value)
    assert not os.listdir(tmp_path)


def test_only_a_full_disk_is_out_of_space():
    chained = RuntimeError("cannot save")
    chained.__cause__ = OSError(28, "No space left on device")
    assert _files.out_of_space(chained)
    assert _files.out_of_space(RuntimeError("h5: errno = 28, error message = 'No space left on device'"))
    assert not _files.out_of_space(OSError(2, "No such file"))
    assert not _files.out_of_space(ValueError("space"))


# Fingerprints, checksums, envelopes


def test_fingerprints_tell_apart_what_differs():
    ones = np.ones(4, "float32")
    different = [ones, ones[:2], ones.reshape(2, 2), ones.astype("float64"), -ones, b"", "", b"1", "1", 1, [1],
                 {"1": 1}, np.array(["a", "b"]), np.array(["a", "c"], object), np.zeros(0), None]
    assert len({_files.fingerprint(part) for part in different}) == len(different)
    assert _files.fingerprint(ones[::2]) == _files.fingerprint(ones[:2])
    assert _files.fingerprint({"a": 1, "b": 2}) == _files.fingerprint({"b": 2, "a": 1})
    assert _files.fingerprint("ab", "c") != _files.fingerprint("a", "bc")


def test_json_comes_back_or_is_refused_by_name(tmp_path):
    path, content = tmp_path / "note.json", {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    _files.write_json(path, content, kind="note of 3")
    assert _files.read_json(path, kind="note of 3") == content
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1
        for harm in (bytes(broken), whole[:place]):
            path.write_bytes(harm)
            with pytest.raises(_files.DamagedError, match=r"note\.json"):
                _files.read_json(path, kind="note of 3")


HOSTILE = [b"[" * 100_000, b'{"event":' + b'{"a":' * 9000 + b"1" + b"}" * 9001, b"9" * 10_000, b"1e999", b"NaN", b"[]",
           b"null", b'{"event":5}', _files.line_of([]), _files.line_of(3), b'{"kind":1,"kind":2}', b"\xff\xfe", b"\0"]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_what_no_library_wrote_is_refused(tmp_path, content):
    path = tmp_path / "note.json"
    path.write_bytes(content)
    with pytest.raises(_files.DamagedError, match=r"note\.json \(.* is empty, cut, or not a file of this library"):
        _files.read_json(path, kind="note")
    with pytest.warns(UserWarning, match=r"line 1 of .*note\.json cannot be read"):
        assert _files.read_lines(path)[0] == []


def test_a_swapped_an_older_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / "note.json"
    _files.write_json(path, 1, kind="note of 3")
    with pytest.raises(_files.DamagedError, match="is 'note of 3' of format 1; expected is 'note of 4'"):
        _files.read_json(path, kind="note of 4")
    with pytest.raises(_files.DamagedError, match="of format 2"):
        _files.read_json(path, kind="note of 3", version=2)
    path.unlink()
    with pytest.raises(_files.DamagedError, match=r"cannot be read \(No such file"):
        _files.read_json(path, kind="note of 3")


def test_a_checksum_sees_each_changed_byte(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(100))
    total = _files.checksum(path)
    _files.require_whole(path, total)
    path.write_bytes(bytes(99) + b"1")
    with pytest.raises(_files.DamagedError, match=r"a\.bin \(100 bytes\) is not as it was written"):
        _files.require_whole(path, total)
    path.unlink()
    with pytest.raises(_files.DamagedError, match="cannot be read"):
        _files.require_whole(path, total)


# Paths and locks


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "link/a", "", None, "a\0b"])
def test_nothing_leads_outside(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        _files.inside(folder, name)


def test_what_is_inside_may_be_used(tmp_path):
    assert _files.inside(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


def test_a_lock_keeps_the_second_one_out(tmp_path):
    with _files.Lock(tmp_path / "lock", "in use"), pytest.raises(ValueError, match="in use"):
        _files.Lock(tmp_path / "lock", "in use")
    _files.Lock(tmp_path / "lock", "in use").close()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match="`directory` must be a folder, and a file is in its place"):
            _files.Lock(path / "lock", "in use")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "fcntl", None)
    with pytest.warns(UserWarning, match="cannot be locked"):
        _files.Lock(tmp_path / "lock", "in use").close()


# JSON lines


def test_a_line_is_whole_or_it_is_not():
    line = _files.line_of({"kind": "end", "trial": 3, "score": 0.1})
    assert _files.event_of(line) == {"kind": "end", "trial": 3, "score": 0.1}
    assert _files.event_of(line[:-1]) == {"kind": "end", "trial": 3, "score": 0.1}      # only its newline is missing
    for place in range(len(line) - 1):
        for bit in range(8):
            broken = bytearray(line)
            broken[place] ^= 1 << bit
            assert _files.event_of(bytes(broken)) is None
    for length in range(len(line) - 1):
        assert _files.event_of(line[:length]) is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped_and_named(tmp_path, cut):
    path = tmp_path / "record.jsonl"
    record = _files.Lines(path, "in use")
    record.append({"n": 1})
    record.append({"n": 2, "long": "x" * 40})
    record.close()
    path.write_bytes(path.read_bytes()[:-1 - cut])
    with pytest.warns(UserWarning, match=r"line 2 of .*record.jsonl cannot be read and was left out"):
        record = _files.Lines(path, "in use")
    record.append({"n": 3})
    record.close()
    assert _files.read_lines(path)[0] == [{"n": 1}, {"n": 3}]


def test_a_newline_that_got_lost_costs_nothing(tmp_path):
    path = tmp_path / "record.jsonl"
    record = _files.Lines(path, "in use")
    record.append({"n": 1})
    record.close()
    path.write_bytes(path.read_bytes()[:-1])
    record = _files.Lines(path, "in use")
    record.append({"n": 2})
    record.close()
    assert _files.read_lines(path)[0] == [{"n": 1}, {"n": 2}]


def test_a_bad_line_in_the_middle_costs_that_line(tmp_path):
    path = tmp_path / "record.jsonl"
    record = _files.Lines(path, "in use")
    for n in range(5):
        record.append({"n": n})
    record.close()
    content = path.read_bytes().splitlines(keepends=True)
    content[1], content[3] = b"\x00\xff" + content[1][2:], b"nonsense\n"
    path.write_bytes(b"".join(content))
    with pytest.warns(UserWarning, match="lines 2, 4 of"):
        assert _files.read_lines(path)[0] == [{"n": 0}, {"n": 2}, {"n": 4}]


def test_a_line_that_does_not_fit_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "record.jsonl"
    record = _files.Lines(path, "in use")
    record.append({"n": 1})
    real = os.write

    def full(handle, data):
        if len(data) > 5:
            return real(handle, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        record.append({"n": 2})
    monkeypatch.undo()
    record.append({"n": 3})
    assert record.events == [{"n": 1}, {"n": 3}]
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == record.events


def test_lines_that_cannot_be_opened_are_not_kept_locked(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/record\.jsonl'"):
            _files.Lines(tmp_path / "record.jsonl", "in use")
    _files.Lines(tmp_path / "record.jsonl", "in use").close()


def test_a_file_that_vanishes_is_an_error(tmp_path):
    record = _files.Lines(tmp_path / "record.jsonl", "in use")
    record.append({"n": 1})
    (tmp_path / "record.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        record.append({"n": 2})


# Figures


def test_the_front_equals_the_definition(rng):
    costs = rng.integers(0, 6, (60, 3))
    expected = [i for i, a in enumerate(costs)
                if not any((b <= a).all() and (b < a).any() for b in costs)]
    assert _plots.front(costs) == expected
    assert 0 < len(expected) < 60


def test_a_tie_within_the_tolerance_is_no_victory():
    assert _plots.front([[100, 1], [100.5, 1]], (0.01, 0)) == [0, 1]
    assert _plots.front([[100, 1], [102, 1]], (0.01, 0)) == [0]


def test_a_figure_shows_itself_once(tmp_path):
    figure, axes = _plots.canvas(3, 2, columns=2)
    assert axes.shape == (1, 2)
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert _plots.save(figure, tmp_path / "a.svg") is figure
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    import matplotlib.pyplot as plt
    assert not plt.get_fignums()
