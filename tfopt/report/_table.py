"""A row, a table, and how they are shown."""

import dataclasses
import functools
import html

import pandas as pd

from .. import _plots
from .._check import require
from . import _figures


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one model; None where it was not. The columns are explained under `compare`."""

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
    notes: tuple[str, ...] = ()


class Table:
    """Rows side by side.

    Attributes:
      rows: list of rows.
      title: what stands above.
      frame: pandas DataFrame, one line per model, the rows' attributes as columns, numbers in full.
    """

    def __init__(self, rows, title=""):
        self.rows, self.title = list(rows), title

    @functools.cached_property
    def frame(self):
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.rows]).set_index("name").rename_axis("model")
        return frame.assign(notes=["; ".join(row.notes) for row in self.rows])

    def markdown(self):
        """The table for people, as aligned markdown; below it what could not be measured."""
        head, *lines = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        text = [[cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in
                 enumerate(zip(line, widths, strict=True))] for line in (head, rule, *lines)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in text)
        return "\n\n".join([*([f"**{self.title}**"] if self.title else []), text,
                            *(f"{row.name}: {note}." for row in self.rows for note in row.notes)])

    def plot(self, path=None, *, x="gzip"):
        """Draws accuracy against cost; the line joins the models that no other beats in both (1% of cost is a tie).

        Args:
          path: where the picture is saved (.png, .svg, .pdf); None saves nothing.
          x: the cost: `gzip`, `bytes`, `parameters`, `nonzeros`, `macs` or `latency_ms`.

        Returns:
          The matplotlib Figure.
        """
        require(x in _figures.COSTS, f"`x` must be one of {', '.join(_figures.COSTS)}", x=x)
        return _plots.save(_figures.pareto(self.rows, x, self.title), path)

    def __str__(self):
        return self.markdown().replace("**", "")

    __repr__ = __str__

    def _repr_html_(self):
        head, *lines = [[html.escape(cell) for cell in line] for line in self._cells()]
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        notes = "".join(f"<p>{html.escape(f'{row.name}: {note}.')}</p>" for row in self.rows for note in row.notes)
        return (f"<table><caption>{html.escape(self.title)}</caption>"
                f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>"
                f"<tbody>{rows}</tbody></table>{notes}")

    def _cells(self):
        """Head and lines as text, without the columns that nobody has."""
        columns = {head: [show(row) for row in self.rows] for head, show in COLUMNS.items()}
        columns = {head: cells for head, cells in columns.items() if any(cells)}
        return [list(columns), *map(list, zip(*columns.values(), strict=True))]


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
