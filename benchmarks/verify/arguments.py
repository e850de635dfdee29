"""Every argument of every public callable, with some ninety wrong values each.

    python benchmarks/verify/arguments.py [module or module.name ...]

One argument at a time is replaced in a valid call (tests/valid_calls.py). A call may work or end in one sentence that
starts with the function's name; anything else is "raw". "silent": something that no argument can mean was accepted.
"scalars": a valid number as NumPy's was refused. Writes docs/measured/arguments.csv, a row a callable (of those
that are chosen), and prints what is at fault.
"""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd

PROJECT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

import valid_calls  # noqa: E402


@contextlib.contextmanager
def limit(seconds=120):
    """A call that does not end is at fault too."""
    def stop(*_):
        raise TimeoutError(f"no end in {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def count(name, thing, valid):
    """How the calls of one callable ended: {"works": 3, "refused": 40, ...}, and the sentences of the faults."""
    counted, faults = dict.fromkeys(("works", "refused", "raw", "silent", "scalars"), 0), []

    def note(kind, argument, what, text):
        counted[kind] += 1
        if kind not in ("works", "refused"):
            faults.append(f"{kind:8}{name}({argument}={what}): {text[:160]}")

    for argument, what, attempt in valid_calls.tried(name, thing, valid):
        with limit():
            ended, text = attempt()
        note("silent" if ended == "works" and what in valid_calls.NEVER else ended, argument, what, text)
    for argument, value in valid.items():
        for what, same in valid_calls.scalars(value).items():
            ended, text = valid_calls.outcome(name, thing, {**valid, argument: same})
            note("works" if ended == "works" else "scalars", argument, what, text)
    return counted, faults


def main(chosen):
    warnings.simplefilter("ignore")
    rows = {}
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)                                             # for words that pass as paths
        for name, (thing, valid) in valid_calls.calls(directory).items():
            if not chosen or name in chosen or name.split(".")[0] in chosen:
                rows[name], faults = count(name, thing, valid)
                print(*faults, sep="\n", end="\n" if faults else "", flush=True)
        os.chdir(PROJECT)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("callable")
    print(table.sum().to_string())
    path = PROJECT / "docs" / "measured" / "arguments.csv"
    before = pd.read_csv(path, index_col="callable") if chosen and path.exists() else table.iloc[:0]
    pd.concat([before.drop(table.index, errors="ignore"), table]).sort_index().to_csv(path)


if __name__ == "__main__":
    main(sys.argv[1:])
