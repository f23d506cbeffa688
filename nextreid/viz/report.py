"""One self-contained HTML page: facts, tables and images of a run."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from nextreid._files import write_text

from .plot import Plot
from .table import Table, format_value


def write_report(
    path: str | Path,
    *,
    title: str,
    intro: str = "",
    tables: Sequence[Table] = (),
    images: Sequence[tuple[str, Image.Image | Plot]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a page that needs nothing but itself: images are embedded, styles inline, no scripts, no requests.

    All text is escaped. The page follows the reader's light or dark setting and fits a phone.

    Args:
        path: File to write; the folder is made if it is not there.
        title: Heading of the page.
        intro: Text below it; an empty line begins a new paragraph.
        tables: In the order to show.
        images: Captions and images or plots, in the order to show.
        facts: What was run, such as model, dataset and versions, as names and values.

    Returns:
        The path.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="intro">{escape(text.strip())}</p>' for text in intro.split("\n\n") if text.strip()]
    if facts:
        items = ((escape(name), escape(format_value(value))) for name, value in facts.items())
        parts.append(f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in items)}</dl>")
    parts += [table.html() for table in tables]
    parts += [_figure(caption, image) for caption, image in images]
    page = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    write_text(Path(path), page.substitute(title=escape(title), body="\n".join(parts)))
    return Path(path)


def _figure(caption: str, image: Image.Image | Plot) -> str:
    image = image.image() if isinstance(image, Plot) else image
    data = BytesIO()
    image.save(data, format="PNG")
    source, text = base64.b64encode(data.getvalue()).decode("ascii"), escape(caption)
    return (
        f'<figure><div class="wide" tabindex="0"><img src="data:image/png;base64,{source}" alt="{text}" '
        f'width="{image.width}" height="{image.height}"></div><figcaption>{text}</figcaption></figure>'
    )
