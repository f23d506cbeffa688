"""The one table of the library: printed as aligned text, Markdown or HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from typing import Any

import numpy as np

_BLANK = (None, "", "–", "-")


@dataclass(frozen=True, repr=False)
class Table:
    """A table of plain values.

    None prints as a dash, a bool as yes or no, a float with four significant digits; give a string to choose the
    digits. A column whose cells all read as numbers, such as ``"82.1 %"`` or ``"1/4/9"``, is aligned to the right.

    Attributes:
        title: Heading above it, or empty.
        columns: C headings.
        rows: Rows of C cells.
        note: A sentence below it, or empty.

    Raises:
        ValueError: If a row has another number of cells than there are columns.

    Example:
        >>> print(Table("In percent", ["model", "mAP"], [["next", "82.1"], ["baseline", "7.5"]]).text())
        In percent
        model      mAP
        next      82.1
        baseline   7.5
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells but there are {len(self.columns)} columns"
                )

    def __repr__(self) -> str:
        return f"Table({self.title!r}, {len(self.columns)} columns, {len(self.rows)} rows)"

    def text(self) -> str:
        """Return the table as lines of aligned columns, the title above and the note below."""
        lines = [[*self.columns], *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = self._numeric()
        table = [
            "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*filter(None, [self.title]), *table, *filter(None, [self.note])])

    def markdown(self) -> str:
        """Return the table in Markdown, the title in bold above and the note as a paragraph below."""
        rules = ["---:" if numeric else "---" for numeric in self._numeric()]
        lines = [[_markdown(c) for c in line] for line in ([*self.columns], *self._cells())]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rules, *lines[1:]))
        return "\n\n".join(filter(None, [self.title and f"**{self.title}**", table, self.note]))

    def html(self) -> str:
        """Return the table as an HTML section with every text escaped; `write_report` gives it its style."""
        kinds = [' class="number"' if numeric else "" for numeric in self._numeric()]

        def line(tag: str, cells: Sequence[str]) -> str:
            name = tag.split()[0]
            return "".join(f"<{tag}{k}>{escape(c)}</{name}>" for k, c in zip(kinds, cells, strict=True))

        rows = "\n".join(f"<tr>{line('td', cells)}</tr>" for cells in self._cells())
        title = f"<h2>{escape(self.title)}</h2>" if self.title else ""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        head = line('th scope="col"', self.columns)
        return (
            f'<section>{title}<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{rows}\n</tbody></table></div>{note}</section>"
        )

    def _cells(self) -> list[list[str]]:
        return [[format_value(cell) for cell in row] for row in self.rows]

    def _numeric(self) -> list[bool]:
        """Tell of each column whether its cells read as numbers."""
        columns = [[row[c] for row in self.rows] for c in range(len(self.columns))]
        return [bool(cells) and all(_reads_as_number(c) or c in _BLANK for c in cells) for cells in columns]


def format_value(value: Any) -> str:
    """Return a value as tables and reports show it: None and nan as a dash, yes and no, floats with four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return "–" if math.isnan(value) else f"{float(value):.4g}"
    return str(value)


def _reads_as_number(value: Any) -> bool:
    if isinstance(value, str):
        return any(c.isdigit() for c in value) and not any(c.isalpha() for c in value)
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _markdown(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
