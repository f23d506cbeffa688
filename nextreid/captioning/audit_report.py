"""Tables of an audit: as text, as CSV, and as one HTML page that needs nothing but itself."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audit import Audit

Cell = str | int | float

_STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--page:#fff;--line:#d9dde2;--soft:#f4f6f8;--bar:#9cc3f5}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--page:#15181c;--line:#343a41;--soft:#1e2329;--bar:#2c5a94}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;padding:1rem;
max-width:76rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .4rem}p{margin:.3rem 0}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
th{background:var(--soft);position:sticky;top:0}td.n{text-align:right}td.long{white-space:normal;min-width:14rem}
td:first-child{font-weight:600}tr:last-child td{border-bottom:0}.note{opacity:.75;font-size:.9rem}
td.s{background:linear-gradient(to right,var(--bar) var(--w),transparent var(--w))}
"""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: Heading.
        columns: Names of the columns.
        rows: Cells. A float is a share and is shown in percent with one digit (kappa as it is); nan shows as a dash.
        note: A sentence below the heading, or ``""``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def row(self, *keys: str) -> dict[str, Cell]:
        """Return the row whose first cells are `keys`, by column; raises KeyError that names them."""
        for row in self.rows:
            if tuple(row[: len(keys)]) == keys:
                return dict(zip(self.columns, row, strict=True))
        raise KeyError(f"table {self.title!r} has no row {keys}")

    def text(self) -> str:
        """Return the table as aligned text."""
        shown = [
            list(self.columns),
            *([_show(c, name) for c, name in zip(r, self.columns, strict=True)] for r in self.rows),
        ]
        widths = [max(len(line[i]) for line in shown) for i in range(len(self.columns))]
        numeric = [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True))
            for line in shown
        ]
        return "\n".join([self.title, *([self.note] if self.note else []), *(line.rstrip() for line in lines)])

    def csv(self) -> str:
        """Return the table as CSV with its raw numbers."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if isinstance(c, float) and math.isnan(c) else c for c in row] for row in self.rows])
        return out.getvalue()


def write_audit(audit: "Audit", out: str | Path, title: str = "Captions") -> list[Path]:
    """Write an audit into a folder: one CSV per table, and ``audit.html``.

    Args:
        audit: The outcome of `audit_captions`.
        out: Folder; made if it is not there. Files of these names are replaced.
        title: Heading of the page.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.csv": table.csv() for name, table in audit.tables.items()}
    pages["audit.html"] = audit_page(audit.tables, title, audit.notes)
    for name, text in pages.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
    return [out / name for name in pages]


def audit_page(tables: Mapping[str, Table], title: str, notes: Sequence[str] = ()) -> str:
    """Return one HTML page: no scripts, no requests, light or dark as the reader has it, tables scroll on a phone."""
    body = "".join(_table(table) for table in tables.values())
    remarks = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{remarks}{body}"
        "</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(c, name) for c, name in zip(row, table.columns, strict=True))}</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>{note}<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell, column: str) -> str:
    shown = escape(_show(cell, column))
    if isinstance(cell, str):
        return f'<td class="long">{shown}</td>' if len(cell) > 40 else f"<td>{shown}</td>"
    if isinstance(cell, float) and 0 <= cell <= 1:
        return f'<td class="n s" style="--w:{100 * cell:.0f}%">{shown}</td>'
    return f'<td class="n">{shown}</td>'


def _show(cell: Cell, column: str) -> str:
    if not isinstance(cell, float):
        return str(cell)
    if math.isnan(cell):
        return "-"
    return f"{cell:.2f}" if column == "kappa" else f"{100 * cell:.1f} %"
