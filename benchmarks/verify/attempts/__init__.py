"""Faults of faults.py: each is a function that does one thing to the library and looks at what is left."""

import dataclasses
import typing
import warnings


@dataclasses.dataclass(frozen=True)
class Fault:
    """`attempt(folder)` yields (what the library says, {what could be lost: is it there, as it was}) for each case."""

    kind: str
    module: str
    words: str
    attempt: typing.Callable


FAULTS = []


def fault(kind, module, words):
    """Decorator: puts a function among FAULTS."""
    def add(attempt):
        FAULTS.append(Fault(kind, module, words, attempt))
        return attempt

    return add


def said(call, *arguments, **named):
    """(what the library says, what the call returned): the one sentence of a refusal and None, or its warnings.

    Any other exception is a fault of the library, and passes through.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            result = call(*arguments, **named)
        except (ValueError, OSError, RuntimeError) as error:
            if "\n" in str(error) or not str(error):
                raise
            return str(error), None
    return " ".join(str(warning.message) for warning in heard if warning.category is UserWarning), result


def cut(path):
    """The second half is gone."""
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def changed(path, at=0.6):
    """One bit is another one."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


def noise(path):
    """JSON that nests too deep, in the place of the file."""
    path.write_bytes(b"[" * 100_000)


HARMS = (cut, changed, emptied, missing, noise)


def contents(folder):
    """{path below a folder: bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
