"""A model card from a measured table."""

import importlib.metadata
import json
import pathlib
import re

from .. import _files
from .._check import PATH, TEXT, Instance, checked, require
from .._typing import PathLike
from ._table import Table

MARK = "<!-- written by tfopt.report.card -->"
HOW = """Intervals are of 95%: Wilson's of shares of examples, else from 1,000 bootstrap samples of the examples.
The definitions of the measures are scikit-learn's. A difference is that from the first model on the same examples, with
the p-value of a paired test (McNemar's where examples are right or wrong, else the bootstrap's). Latency: one example,
median and quartiles, on the machine that made the table."""


@checked(table=Instance(Table), path=PATH, task=TEXT, dataset=TEXT, license=TEXT)
def card(table: Table, path: PathLike, *, task: str = "other", dataset: str | None = None,
         license: str | None = None) -> None:
    """Model card: a README.md with the metadata `model-index` that the Hugging Face Hub reads, from a measured table.

    In the metadata stands each model with what was measured on data: accuracy or mean absolute error, and the measures
    of `compare(measures=)`; in the text the whole table, and how it was measured. What the model is for and where it
    fails is yours to add: the table does not know.

    Args:
      table: what `compare` returned, called with `data`.
      path: the file, such as "README.md". One that stands there is replaced only if `card` wrote it.
      task: the Hub's name of the task, such as "image-classification", "tabular-classification" or
        "tabular-regression".
      dataset: what the examples are; None for the table's title.
      license: the Hub's identifier of it, such as "apache-2.0"; None leaves it out.

    Raises:
      ValueError: the table has no measured values or no name of the data, or another file is at `path`.

    Example:
      >>> import pathlib, tempfile
      >>> from tfopt.report import Row
      >>> row = Row("small", 10, 9, 8, 40, 30, accuracy=0.9, low=0.6, high=0.98, examples=10)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     card(Table([row], "ten irises"), pathlib.Path(folder, "README.md"), task="tabular-classification")
      ...     print(pathlib.Path(folder, "README.md").read_text()[:162])
      ---
      library_name: keras
      tags:
      - tfopt
      model-index:
      - name: "small"
        results:
        - task:
            type: "tabular-classification"
          dataset:
            name: "ten irises"

    Reference:
      Mitchell et al., Model cards for model reporting, 2019, https://arxiv.org/abs/1810.03993
      Hugging Face, Model cards, https://huggingface.co/docs/hub/model-cards
    """
    dataset = dataset or table.title
    require(dataset, "a card needs a name of the data", do="Pass `dataset`, or `title` to report.compare.")
    results = {row.name: values_of(row) for row in table.rows}
    require(all(results.values()), "a card needs measured values of each model",
            without=[name for name, found in results.items() if not found], do="Pass `data` to report.compare.")
    path = pathlib.Path(path)
    require(not path.is_dir(), "`path` must be a file", path=str(path), do="A folder is there: pass e.g. README.md.")
    require(not path.exists() or MARK in path.read_text("utf-8"), "`path` holds a file that report.card did not write",
            path=str(path), do="Move it, or pass another path.")
    lines = ["---", "library_name: keras", *([f"license: {json.dumps(license)}"] if license else []), "tags:",
             "- tfopt", "model-index:"]
    for name, found in results.items():
        lines += [f"- name: {json.dumps(name)}", "  results:", "  - task:", f"      type: {json.dumps(task)}",
                  "    dataset:", f"      name: {json.dumps(dataset)}",
                  f"      type: {json.dumps(_identifier(dataset))}", "    metrics:"]
        for metric, number in found.items():
            lines += [f"    - type: {json.dumps(metric)}", f"      value: {json.dumps(number)}",
                      f"      name: {json.dumps(metric.replace('_', ' '))}"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("keras", "tensorflow"))
    text = [*lines, "---", MARK, "", f"# {', '.join(results)}", "", "## Evaluation", "",
            f"Data: {dataset}, {_examples(table)} examples. Versions: {versions}.", "", table.markdown(), "", HOW, ""]
    with _files.whole(path) as part:
        part.write_text("\n".join(text), "utf-8")


def values_of(row):
    """{metric: value} of what a row knows of its model's quality, without intervals and differences."""
    parts = {"": {"accuracy": row.accuracy, "mae": row.mae, **row.measures},
             **{f"{output}_": part for output, part in row.outputs.items()}}
    found = {}
    for before, part in parts.items():
        measures = {key.removesuffix("_high") for key in part if key.endswith("_high")}
        found |= {before + {"mae": "mean_absolute_error"}.get(key, key): value for key, value in part.items()
                  if value is not None and (key in ("accuracy", "mae") or key in measures)
                  and not key.endswith("_difference")}
    return found


def _examples(table):
    counts = {part["examples"] for row in table.rows for part in ({"examples": row.examples}, *row.outputs.values())
              if part["examples"] is not None}
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _identifier(text):
    """"MNIST, its test set" -> "mnist-its-test-set"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"
