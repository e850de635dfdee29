"""Tests of what strangers, damage, kills, full disks, threads and numbers that are not finite do.

    python -P benchmarks/verify/faults.py

Each fault is a test, which does it to the library and looks at what is left. Runs them all, and writes
docs/measured/faults.csv: kind of fault, module, the test's name in words, how many cases it tries, in how many it held.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

import pandas as pd

PROJECT = pathlib.Path(__file__).parents[2]
KINDS = {
    "stranger": "strange_|strangers|the_token|leads_outside|file_outside|never_taken|too_many_pixels|umask"
                "|another_search_first|damaged_weights",
    "damage": "damage|checksum|swapped|bit_flipped|changed_byte|lost_line|lost_head|older_and_a_missing",
    "kill": "kill|crash_while|crash_inside|interrupted",
    "full disk": "full_disk|fit_the_disk|disk_before|without_room|vanish|out_of_space",
    "at once": "several_threads|lock_keeps|without_locks|share_a_directory|any_thread",
    "not finite": "(what|loss_that|score_that)_is_not_finite",
}
# Words in the names of tests; KINDS then chooses among what they find.
WORDS = ("strange", "token", "outside", "never_taken", "pixels", "umask", "another_search", "damage", "checksum",
         "lost", "swapped", "flipped", "changed_byte", "missing", "kill", "crash", "interrupted", "disk", "room",
         "vanish", "thread", "lock", "share", "not_finite")


def kind(name):
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-P", "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={report}",
                        "-k", " or ".join(WORDS), "tests"], cwd=PROJECT, check=False)
        cases = [(case.get("classname").rpartition(".")[2], case.get("name").partition("[")[0],
                  case.find("failure") is None and case.find("error") is None and case.find("skipped") is None)
                 for case in ElementTree.parse(report).iter("testcase")]
    rows = pd.DataFrame([{"kind": kind(name), "module": module.removeprefix("test_"),
                          "fault": name.removeprefix("test_").replace("_", " "), "cases": 1, "held": int(held)}
                         for module, name, held in cases if kind(name)])
    table = rows.groupby(["kind", "module", "fault"], as_index=False, sort=True).sum()
    table.to_csv(PROJECT / "docs" / "measured" / "faults.csv", index=False)
    print(table.groupby("kind")[["cases", "held"]].sum().to_string())


if __name__ == "__main__":
    main()
