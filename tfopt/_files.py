"""Files that the library writes: whole or not at all, checked when read again, inside their directory.

Linux and macOS. Where a system has no `flock` (Windows) or a file system does not support it, locks warn and let
everybody in; where a directory cannot be forced to the disk (Windows), only the file is.

    with whole(path) as part: model.save(part)          atomic write by whatever takes a path
    write(path, content)                                atomic write of bytes, text, or what `fill(file)` writes
    write_json / read_json                              JSON with kind, format version and checksum
    checksum(path), require_whole(path, sum)            for files that cannot carry their own
    fingerprint(*parts)                                 of arrays, bytes, text and JSON-like values
    Lines(path, kind)                                   locked JSON lines that survive being killed
    Lock(path), inside(directory, name), out_of_space(error)
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import time
import warnings

from ._check import refusal

try:
    import fcntl
except ImportError:                                                          # Windows
    fcntl = None

AN_HOUR = 3600.


class DamagedError(ValueError):
    """A file is missing, cut, changed, or not the one that belongs there."""


@contextlib.contextmanager
def whole(path):
    """Gives a temporary path (a file, or a folder that the block makes) which becomes `path` when the block ends well.

    Both the content and the name are forced to the disk. If the block raises, nothing stays. The umask decides the
    mode. What a killed process left is removed an hour later, by the next writer of the same name.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with whole(pathlib.Path(folder, "a.txt")) as part:
      ...         _ = part.write_text("all of it")
      ...     os.listdir(folder)
      ['a.txt']
    """
    path = pathlib.Path(path)
    for left in path.parent.glob(".part-*"):
        with contextlib.suppress(OSError):
            if left.name[14:] == path.name and time.time() - left.stat().st_mtime > AN_HOUR:
                remove(left)
    part = path.with_name(f".part-{secrets.token_hex(4)}{path.name}")        # the ending says the format: it stays last
    try:
        yield part
        for file in [*part.rglob("*"), part]:
            sync(file)
        os.replace(part, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(part)
        _put_name(error, path)
        raise


def _put_name(error, path):
    """Says which file it is about: a full disk does not."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def write(path, content):
    """Writes bytes, text, or what `content(file)` writes, as `whole` does; makes the directory."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def make_folder(path, name="directory"):
    """Makes a folder, if it is not there; `name`: of the argument that says where."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise refusal(f"`{name}` must be a folder, and a file is in its place", **{name: str(path)},
                      do="Choose another name.") from None


def remove(path):
    """Removes a file or a folder, if it is there."""
    path = pathlib.Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path):
    """Forces a file, or the names in a folder, to the disk; not every system can do that for folders."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or out_of_space(error):
            raise
    finally:
        os.close(handle)


def fingerprint(*parts):
    """SHA-256, in hex, of arrays (values, shape, type), bytes, text and whatever JSON can tell.

    A stream is chained: `total = fingerprint(total, next_part)`.

    Example:
      >>> fingerprint(b"ab", "c") == fingerprint(b"a", "bc"), len(fingerprint({"a": [1, 2.5, None]}))
      (False, 64)
    """
    total = hashlib.sha256()
    for part in parts:
        head, body = _bytes_of(part)
        total.update(f"{head} {len(body)};".encode())
        total.update(body)
    return total.hexdigest()


def _bytes_of(part):
    """(what it is, its bytes) of one part of a fingerprint."""
    if isinstance(part, bytes | bytearray | memoryview):
        return "bytes", memoryview(part).cast("B")
    if isinstance(part, str):
        return "text", part.encode("utf-8", "surrogateescape")
    if hasattr(part, "__array__"):
        import numpy as np

        array = np.asarray(part)
        if array.dtype.hasobject:
            body = json.dumps(array.tolist(), default=repr).encode()
        else:
            body = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)) if array.size else b""
        return f"array {array.dtype} {array.shape}", body
    return "json", json.dumps(part, sort_keys=True, default=repr).encode()


def checksum(path):
    """SHA-256, in hex, of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_whole(path, expected):
    """Raises DamagedError unless the file is there with the checksum it was written with."""
    try:
        found = checksum(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}).") from None
    if found != expected:
        raise DamagedError(f"{path} ({os.path.getsize(path):,} bytes) is not as it was written: its checksum is "
                           f"{found[:16]}, recorded is {str(expected)[:16]}.")


def write_json(path, content, *, kind, version=1):
    """Writes JSON with what it is, the version of its format and a checksum of all three.

    Args:
      path: of the file.
      content: what JSON can tell, without NaN.
      kind: what the file is and whose; another kind in its place is refused when it is read.
      version: of the format.
    """
    body = _body(content)
    write(path, f'{{"kind":{json.dumps(kind)},"version":{version},"sha256":"{fingerprint(kind, version, body)}",'
                f'"content":{body}}}\n')


def read_json(path, *, kind, version=1):
    """The content of what `write_json` wrote; DamagedError names the file and what is wrong with it."""
    try:
        text = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        found = json.loads(text)
        found_kind, found_version, total, content = (found[key] for key in ("kind", "version", "sha256", "content"))
        sound = total == fingerprint(found_kind, found_version, _body(content))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(f"{path} ({len(text):,} bytes) is empty, cut, or not a file of this library.") from None
    if not sound:
        raise DamagedError(f"{path} was changed: its content does not fit its checksum.")
    if (found_kind, found_version) != (kind, version):
        raise DamagedError(f"{path} is {found_kind!r} of format {found_version}; expected is {kind!r} of format "
                           f"{version}.")
    return content


def _body(content):
    return json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)


class Lock:
    """Keeps other processes out of a file or folder until `close`, or until this process ends in any way.

    Args:
      path: the file that is locked; made if it is not there.
      message: the sentence for who comes second.
    Raises:
      ValueError: another holder has it.
    """

    def __init__(self, path, message):
        path = pathlib.Path(path)
        make_folder(path.parent)
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, "this system has no flock")
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ValueError(message) from None
        except OSError as error:
            warnings.warn(f"{path} cannot be locked ({error.strerror}): nothing keeps a second process out.",
                          stacklevel=3)

    def close(self):
        """Lets the next one in."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def line_of(event):
    """One event as the bytes of its line.

    Example:
      >>> line_of({"kind": "end", "trial": 3})
      b'{"event":{"kind":"end","trial":3},"sum":"d88717db7a9cc668"}\\n'
    """
    body = _body(event)
    return f'{{"event":{body},"sum":"{_sum(body)}"}}\n'.encode()


def event_of(line):
    """The event of a line, None if the line is broken.

    Example:
      >>> event_of(line_of({"kind": "end", "trial": 3})), event_of(line_of({"kind": "end", "trial": 3})[:-9])
      ({'kind': 'end', 'trial': 3}, None)
    """
    try:
        event = json.loads(line)["event"]
        return event if isinstance(event, dict) and line_of(event) == line.rstrip(b"\n") + b"\n" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_lines(path, known=lambda event: True):
    """([event], bytes that hold them) of JSON lines; broken ones are left out with a warning that names them.

    So are events that are not `known`: of a stranger, who may know how a checksum is made.
    """
    path = pathlib.Path(path)
    content = path.read_bytes() if path.exists() else b""
    events, good, end, broken = [], 0, 0, []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        event = event_of(line)
        if event is None or not known(event):
            broken.append(str(number))
        else:
            events.append(event)
            good = end
    if broken:
        what = f"line {broken[0]} of" if len(broken) == 1 else f"lines {', '.join(broken)} of"
        warnings.warn(f"{what} {path} cannot be read and was left out: what it recorded is done again.", stacklevel=3)
    return events, good


class Lines:
    """JSON lines as their one writer holds them: one event a line, only ever appended to, each with its checksum.

        {"event": {...}, "sum": "first 16 hex digits of SHA-256 of the event"}

    A line is there or it is not: it is forced to the disk before `append` returns, and taken back if it does not fit.

    Args:
      path: the file; made if it is not there.
      message: the sentence for a second writer.
      known: `event -> bool`, see `read_lines`.
    Attributes:
      events: list of what the file holds.
    Raises:
      ValueError: another process writes to it.
    """

    def __init__(self, path, message, known=lambda event: True):
        self.path = pathlib.Path(path)
        self._lock = Lock(self.path, message)
        try:
            self.events, good = read_lines(self.path, known)
            os.ftruncate(self._file, good)                                   # a torn tail must not meet the next line
            if good and os.pread(self._file, 1, good - 1) != b"\n":
                os.write(self._file, b"\n")
            sync(self.path.parent)
        except BaseException as error:
            self.close()
            _put_name(error, self.path)
            raise

    @property
    def _file(self):
        return self._lock.handle

    def append(self, event):
        """Writes one event; it is on the disk when this returns.

        Raises:
          OSError: the disk is full (nothing of the line stays), or the file is no longer where it was.
        """
        line, before = line_of(event), os.fstat(self._file)
        if not self.path.exists() or not os.path.samestat(before, self.path.stat()):
            raise FileNotFoundError(errno.ENOENT, "this file was removed or replaced while in use", str(self.path))
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before.st_size)
            raise
        self.events.append(event)

    def close(self):
        self._lock.close()


def _sum(body):
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def inside(directory, name):
    """The path of `name` in `directory`; ValueError if it leads outside, through `..`, an absolute path or a link.

    Example:
      >>> inside("/data", "../etc/passwd")
      Traceback (most recent call last):
      ValueError: '../etc/passwd' leads out of /data: only files inside are read, written or removed.
    """
    root = pathlib.Path(directory)
    sound = isinstance(name, str) and name and "\0" not in name
    if not sound or not (root / name).resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} leads out of {root}: only files inside are read, written or removed.")
    return root / name


def out_of_space(error):
    """Was an exception, or what caused it, a disk that is full or can no longer be written."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
