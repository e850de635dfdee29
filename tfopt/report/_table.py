"""A row, a table, and how they are shown."""

import dataclasses
import functools
import html
import shutil
from collections.abc import Iterable

import pandas as pd

from .. import _plots
from .._check import require
from .._plots import Figure
from .._tables import Frame
from .._typing import PathLike
from . import _figures


@dataclasses.dataclass(frozen=True)
class Row:
    """Evaluation of one model: its size, work, speed and accuracy; None where something was not measured.

    The columns are explained under `compare`. `outputs` holds accuracy or error by output where there are several.

    Args:
      name: of the model.
      parameters, nonzeros, macs, bytes, gzip, integer_ops: size and work.
      latency_ms, latency_low_ms, latency_high_ms: speed.
      accuracy, mae, low, high, examples: on data.
      outputs: {output: {accuracy or mae, low, high, examples}}, with the columns of its measures.
      measures: {column: number} of the measures that were asked for; they stand in the frame too.
      notes: what could not be measured.

    Example:
      >>> Row("small", parameters=10, nonzeros=9, macs=8, bytes=40, gzip=30).nonzeros
      9
    """

    name: str
    parameters: int
    nonzeros: int
    macs: int | None
    bytes: int
    gzip: int
    integer_ops: float | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    accuracy: float | None = None
    mae: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int | None = None
    outputs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Table:
    """Evaluations of models side by side. Prints as text, whole at any width; shows as HTML in a notebook.

    Attributes:
      rows: list of `Row`.
      title: what stands above.
      frame: pandas DataFrame, one line per model, the rows' attributes as columns, numbers in full.

    Args:
      rows, title: as above.

    Example:
      >>> Table([Row("small", parameters=10, nonzeros=9, macs=8, bytes=40, gzip=30)])
      | model | parameters | non-zeros | MACs | bytes | gzip |
      | ----- | ---------: | --------: | ---: | ----: | ---: |
      | small |         10 |         9 |    8 |  40 B | 30 B |
    """

    def __init__(self, rows: Iterable[Row], title: str = ""):
        self.rows: list[Row] = list(rows)
        self.title: str = title

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """The numbers in full."""
        records = []
        for row in self.rows:
            record = dataclasses.asdict(row)
            record |= record.pop("measures")
            record |= {f"{output}_{key}": value for output, part in record.pop("outputs").items()
                       for key, value in part.items()}
            records.append({**record, "notes": "; ".join(row.notes)})
        return Frame(records).set_index("name").rename_axis("model")

    def markdown(self) -> str:
        """The table for people, as aligned markdown; below it what could not be measured."""
        return self._text(None)

    def _text(self, width):
        """The table in blocks of columns that fit the width; in one block without a width."""
        columns = [_aligned(column, left=i == 0) for i, column in enumerate(zip(*self._cells(), strict=True))]
        first, *rest = columns
        blocks = [[first]]
        for column in rest:
            room = sum(len(other[0]) + 3 for other in blocks[-1]) + len(column[0]) + 4
            if width is not None and room > width and len(blocks[-1]) > 1:
                blocks.append([first])
            blocks[-1].append(column)
        texts = ["\n".join(f"| {' | '.join(line)} |" for line in zip(*block, strict=True)) for block in blocks]
        return "\n\n".join([*([f"**{self.title}**"] if self.title else []), *texts,
                            *(f"{row.name}: {note}." for row in self.rows for note in row.notes)])

    def plot(self, path: PathLike | None = None, *, x: str = "gzip") -> Figure:
        """Draws accuracy against cost; the line joins the models that no other beats in both (1% of cost is a tie).

        Args:
          path: where the figure is saved (.png, .svg, .pdf); None saves nothing.
          x: the cost: `gzip`, `bytes`, `parameters`, `nonzeros`, `macs` or `latency_ms`.

        Returns:
          The matplotlib Figure.
        """
        require(x in _figures.COSTS, f"`x` must be one of {', '.join(_figures.COSTS)}", x=x)
        return _plots.save(_figures.pareto(self.rows, x, self.title), path)

    def __str__(self) -> str:
        return self._text(shutil.get_terminal_size().columns).replace("**", "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *lines = [[html.escape(cell) for cell in line] for line in self._cells()]
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        notes = "".join(f"<p>{html.escape(f'{row.name}: {note}.')}</p>" for row in self.rows for note in row.notes)
        return (f"<table><caption>{html.escape(self.title)}</caption>"
                f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>"
                f"<tbody>{rows}</tbody></table>{notes}")

    def _cells(self):
        """Head and lines as text, without the columns that nobody has."""
        columns = {head: [show(row) for row in self.rows] for head, show in COLUMNS.items()}
        if any("accuracy" in row.measures for row in self.rows):     # which stands there with its difference
            del columns["accuracy %"]
        for output in dict.fromkeys(output for row in self.rows for output in row.outputs):
            for head in ("accuracy %", "mean abs. error"):
                columns[f"{output}: {head}"] = [_of_output(row, output, head) for row in self.rows]
        columns |= _measured("", [row.measures for row in self.rows])
        for output in dict.fromkeys(output for row in self.rows for output in row.outputs):
            columns |= _measured(f"{output}: ", [row.outputs.get(output, {}) for row in self.rows])
        columns = {head: cells for head, cells in columns.items() if any(cells)}
        return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _measured(before, parts):
    """{head: cells} of the measures in the columns `parts` of each row."""
    columns = {}
    for name in dict.fromkeys(key.removesuffix("_high") for part in parts for key in part
                              if key.endswith("_high") and not key.endswith("_difference_high")):
        columns[before + name] = [_spread(*(part.get(name + end) for end in ("", "_low", "_high")), ".3f")
                                  for part in parts]
        columns[f"{before}{name} - first"] = [_difference(part, f"{name}_difference", part.get(f"{name}_p"))
                                              for part in parts]
    return columns


def _difference(part, name, p):
    spread = _spread(*(part.get(name + end) for end in ("", "_low", "_high")), "+.3f")
    return f"{spread}, p {p:.2g}" if spread else ""


def _aligned(column, left):
    """The cells of a column at one width, with the rule under its head."""
    width = max(map(len, column))
    rule = "-" * width if left else "-" * (width - 1) + ":"
    head, *cells = (cell.ljust(width) if left else cell.rjust(width) for cell in column)
    return [head, rule, *cells]


def _of_output(row, output, head):
    part = row.outputs.get(output, {})
    return COLUMNS[head](dataclasses.replace(row, **{key: part.get(key) for key in ("accuracy", "mae", "low", "high")}))


def _short(value, unit=""):
    """1234567 -> 1.23 M."""
    if value is None:
        return ""
    for power, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _spread(value, low, high, form):
    return "" if value is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _percent(row):
    return "" if row.accuracy is None else _spread(100 * row.accuracy, 100 * row.low, 100 * row.high, ".1f")


COLUMNS = {
    "model": lambda row: row.name,
    "parameters": lambda row: f"{row.parameters:,}",
    "non-zeros": lambda row: f"{row.nonzeros:,}",
    "MACs": lambda row: _short(row.macs) + "+" * any(note.startswith("macs leave out") for note in row.notes),
    "bytes": lambda row: _short(row.bytes, "B"),
    "gzip": lambda row: _short(row.gzip, "B"),
    "integer ops": lambda row: "" if row.integer_ops is None else f"{row.integer_ops:.0%}",
    "latency ms": lambda row: _spread(row.latency_ms, row.latency_low_ms, row.latency_high_ms, ".2g"),
    "accuracy %": _percent,
    "mean abs. error": lambda row: _spread(row.mae, row.low, row.high, ".3g"),
}
