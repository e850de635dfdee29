"""What strangers, damage, full disks, threads and numbers that are not finite do to the library.

    python -P benchmarks/verify/faults.py [words ...]

Does each fault of `attempts`, and looks at what is left. Writes docs/measured/faults.csv: the kind of the fault, the
module, what was done, in how many cases, what the library said (verbatim, the first two sentences where the cases
differ; in parentheses where it says nothing and does right), and what was lost: "nothing" stands where each case
looked. With words only the faults that hold one of them, without writing. Kills are in resume.csv and tune.csv.
"""

import os
import pathlib
import re
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PROJECT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "benchmarks" / "verify")]

import pandas as pd  # noqa: E402
from arguments import limit  # noqa: E402
from attempts import FAULTS, damage, figures, running, strangers  # noqa: E402, F401  (these fill FAULTS)


def shortened(text, folder):
    """A sentence without the temporary folder and what differs from run to run."""
    for name in sorted({str(folder.resolve()), str(folder)}, key=len, reverse=True):
        text = text.replace(name, "...")
    text = re.sub(r"/(?:tmp|work|home|root)/[^\s'\",]*/", ".../", text)
    text = re.sub(r"here also [^.]*(?:\.\d+|[0-9a-f:]+)+", "here also ADDRESS", text)
    text = re.sub(r"\btmp[a-z0-9_]{8}\b", "TMP", text)
    text = re.sub(r"\.part-[0-9a-f]{8}", ".part-", text)
    return text if len(text) <= 400 else f"{text[:397]}..."


def row_of(fault):
    """The row of a fault, after doing it."""
    with tempfile.TemporaryDirectory() as name, limit(300):
        folder = pathlib.Path(name)
        cases = [(shortened(text, folder), kept) for text, kept in fault.attempt(folder)]
    if not cases or not all(text and kept for text, kept in cases):
        raise AssertionError(f"{fault.words}: a case without a sentence, or that looks at nothing: {cases}")
    lost = sorted({what for _, kept in cases for what, there in kept.items() if not there})
    return {"kind": fault.kind, "module": fault.module, "fault": fault.words, "tried": len(cases),
            "what happened": " | ".join(list(dict.fromkeys(text for text, _ in cases))[:2]),
            "lost": "; ".join(lost) or "nothing"}


def main(words):
    chosen = [fault for fault in FAULTS if not words or any(word in fault.words for word in words)]
    rows = []
    for fault in chosen:
        start = time.perf_counter()
        rows.append(row_of(fault))
        print(f"{rows[-1]['lost']:12} {time.perf_counter() - start:5.1f} s  {fault.module}: {fault.words}\n"
              f"{'':22}{rows[-1]['what happened']}", flush=True)
    table = pd.DataFrame(rows).sort_values(["kind", "module", "fault"])
    if not words:
        table.to_csv(PROJECT / "docs" / "measured" / "faults.csv", index=False)
    print(table.groupby("kind").tried.agg(["size", "sum"]).to_string())
    sys.exit(int((table.lost != "nothing").any()))


if __name__ == "__main__":
    main(sys.argv[1:])
