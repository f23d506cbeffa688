"""One self-contained HTML page: facts, tables and images of a run."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from nextreid._files import write_text

from .table import Table, format_value


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
        items = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(format_value(value))}</dd></div>" for name, value in facts.items()
        )
        parts.append(f"<dl>{items}</dl>")
    parts += [table.html() for table in tables]
    parts += [_figure(caption, image) for caption, image in images]
    write_text(Path(path), _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts)))
    return Path(path)


def _figure(caption: str, image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<figure><div class="wide" tabindex="0"><img src="{source}" alt="{escape(caption)}" '
        f'width="{image.width}" height="{image.height}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


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
