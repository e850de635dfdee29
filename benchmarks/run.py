"""Runs the scripts of this folder and keeps what they print in one file, from which the documents quote.

    python benchmarks/run.py [augment input ...]

Writes docs/measured/bench.txt: the machine and the versions, then the lines of each script. With names, only their
sections are made anew. Ratios are of CPU time taken in turns, so other work on the machine disturbs them little; the
absolute times it does disturb.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
FILE = HERE.parent / "docs" / "measured" / "bench.txt"
VERSIONS = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "keras-tuner", "ai-edge-litert",
            "numpy", "optuna", "albumentations")


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(name):
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def sections():
    """{script: its section} of the file as it is."""
    parts = FILE.read_text().split("\n## ")[1:] if FILE.exists() else []
    return {part.split()[0]: part.rstrip("\n") for part in parts}


def run(name):
    """The section of one script; its lines are shown as they come."""
    start, lines = time.perf_counter(), []
    with subprocess.Popen([sys.executable, "-P", HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        sys.exit(f"benchmarks/{name}.py failed; {FILE.name} keeps its old section")
    return "\n".join([f"{name} ({datetime.date.today()}, {time.perf_counter() - start:.0f} s)", "", *lines])


def main(names):
    scripts = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run")
    unknown = sorted(set(names) - set(scripts))
    if unknown:
        sys.exit(f"There is no benchmark called {', '.join(unknown)}; there are {', '.join(scripts)}.")
    head = "\n".join([f"{processor()}, {os.cpu_count()} cores; {platform.system()}, Python {platform.python_version()}",
                      ", ".join(map(version, VERSIONS))])
    for name in names or scripts:
        print(f"\n## {name}", flush=True)
        made = {**sections(), name: run(name)}
        FILE.write_text("\n\n## ".join([head, *(made[key] for key in scripts if key in made)]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
