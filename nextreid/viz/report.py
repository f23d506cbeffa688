"""One self-contained HTML page: facts, tables and images of a run."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .drawing import write_atomic


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: Heading above it.
        columns: C headings.
        rows: Rows of C cells. Numbers are aligned to the right; give a string to choose its digits.
        note: A sentence below it, or empty.

    Raises:
        ValueError: If a row has another number of cells than there are columns.
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


def write_report(
    path: str | Path,
    *,
    title: str,
    intro: str = "",
    tables: Sequence[Table] = (),
    images: Sequence[tuple[str, Image.Image]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a page that needs nothing but itself: images are embedded, styles inline, no scripts, no requests.

    All text is escaped. The page follows the reader's light or dark setting and fits a phone.

    Args:
        path: File to write; the folder is made if it is not there.
        title: Heading of the page.
        intro: Text below it; an empty line begins a new paragraph.
        tables: In the order to show.
        images: Captions and images, in the order to show.
        facts: What was run, such as model, dataset and versions, as names and values.

    Returns:
        The path.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="intro">{escape(text.strip())}</p>' for text in intro.split("\n\n") if text.strip()]
    if facts:
        items = "".join(f"<div><dt>{escape(name)}</dt><dd>{_cell(value)}</dd></div>" for name, value in facts.items())
        parts.append(f"<dl>{items}</dl>")
    parts += [_table(table) for table in tables]
    parts += [_figure(caption, image) for caption, image in images]
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts))
    return write_atomic(Path(path), page.encode("utf-8"))


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_is_number(row[c]) or row[c] is None for row in table.rows)
        for c in range(len(table.columns))
    ]
    kinds = [' class="number"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(c)}</th>' for kind, c in zip(kinds, table.columns, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>{note}</section>"
    )


def _figure(caption: str, image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<figure><div class="wide" tabindex="0"><img src="{source}" alt="{escape(caption)}" '
        f'width="{image.width}" height="{image.height}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _is_number(value: Any) -> bool:
    """Tell whether a cell reads as a number: one itself, or a string such as ``"82.1 %"``."""
    if not isinstance(value, str):
        return isinstance(value, Real) and not isinstance(value, bool)
    try:
        float(value.strip().removesuffix("%").rstrip().replace(",", ""))
    except ValueError:
        return False
    return True


def _cell(value: Any) -> str:
    """Write a value: nothing known as a dash, yes and no, floats with four digits, the rest as it prints."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return "–" if math.isnan(value) else f"{float(value):.4g}"
    return escape(str(value))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --paper: #ffffff; --ink: #20242b; --faint: #5d6572; --rule: #dde1e7; --wash: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #e4e7ec; --faint: #9aa3b0; --rule: #333a44; --wash: #1d2127; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem; }
h1 { margin: 0 0 .8rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; line-height: 1.3; }
h1, h2, p, dd, figcaption { overflow-wrap: anywhere; }
.intro { max-width: 44rem; margin: 0 0 1rem; }
.note, figcaption { max-width: 44rem; margin: .6rem 0 0; color: var(--faint); font-size: .9rem; }
section, figure { margin: 2.5rem 0 0; }
dl { display: flex; flex-wrap: wrap; gap: .9rem 2.2rem; margin: 1.5rem 0 0; padding: 1rem 1.2rem;
  background: var(--wash); border: 1px solid var(--rule); border-radius: 8px; }
dt { color: var(--faint); font-size: .8rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { max-width: 28rem; padding: .45rem 1.4rem .45rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
th { border-bottom-width: 2px; color: var(--faint); font-size: .85rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 6px; }
@media (max-width: 40rem) {
  main { padding: 1.1rem; }
  h1 { font-size: 1.5rem; }
  img { max-width: none; }
}
@media print { .wide { overflow: visible; } figure { break-inside: avoid; } }
"""
