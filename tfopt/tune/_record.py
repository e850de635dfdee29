"""The record of a study: one event a line, only ever appended to, each line with its own checksum.

    {"event": {...}, "sum": "first 16 hex digits of SHA-256 of the event"}

A line is there or it is not: it is written in one piece and forced to the disk before the search goes on. What a crash
or a bad disk made of a line is found by its checksum and left out, with a warning that names it.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import warnings

from .._check import require


def line_of(event):
    """One event as the bytes of its line.

    Example:
      >>> line_of({"kind": "end", "trial": 3})
      b'{"event":{"kind":"end","trial":3},"sum":"d88717db7a9cc668"}\\n'
    """
    body = json.dumps(event, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return f'{{"event":{body},"sum":"{_sum(body)}"}}\n'.encode()


def event_of(line):
    """The event of a line, None if the line is broken.

    Example:
      >>> event_of(line_of({"kind": "end", "trial": 3})), event_of(line_of({"kind": "end", "trial": 3})[:-9])
      ({'kind': 'end', 'trial': 3}, None)
    """
    try:
        event = json.loads(line)["event"]
        return event if line_of(event) == line.rstrip(b"\n") + b"\n" else None
    except (ValueError, KeyError, TypeError):
        return None


def read(path):
    """([event], bytes that hold them) of a record; broken lines are left out with a warning that names them."""
    path = pathlib.Path(path)
    content = path.read_bytes() if path.exists() else b""
    events, good, end, broken = [], 0, 0, []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        event = event_of(line)
        if event is None:
            broken.append(str(number))
        else:
            events.append(event)
            good = end
    if broken:
        what = f"line {broken[0]} of" if len(broken) == 1 else f"lines {', '.join(broken)} of"
        warnings.warn(f"{what} {path} cannot be read and was left out: what it told is done again.", stacklevel=3)
    return events, good


class Record:
    """The record as its one writer holds it.

    Args:
      path: the file; made if it is not there.
    Raises:
      ValueError: another process writes to it.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # the system lets go of it with the process
        except OSError:
            os.close(self._file)
            require(False, "a study has one writer, and another process is running this one",
                    directory=str(self.path.parent),
                    do="Wait for it, or start a chief and workers (`python -m tfopt.distribute --search`).")
        self.events, good = read(self.path)
        os.ftruncate(self._file, good)                                       # a torn tail must not meet the next line
        if self.events and not self._tail().endswith(b"\n"):
            os.write(self._file, b"\n")
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def append(self, event):
        """Writes one event; it is on the disk when this returns."""
        line = line_of(event)
        written = os.write(self._file, line)
        while written < len(line):
            written += os.write(self._file, line[written:])
        os.fsync(self._file)
        self.events.append(event)

    def close(self):
        os.close(self._file)

    def _tail(self):
        size = os.fstat(self._file).st_size
        return os.pread(self._file, 1, size - 1)


def _sum(body):
    return hashlib.sha256(body.encode()).hexdigest()[:16]
