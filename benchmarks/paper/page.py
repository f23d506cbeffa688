"""The tables of ``docs/zoo.md``: every method of the field, every model of the zoo, and what was measured of them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nextreid._files import write_whole
from nextreid.models import is_model, list_models, model_entrypoint

from .rows import load_published

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
DATASETS = {"rgbnt201": "RGBNT201", "msvr310": "MSVR310", "rgbnt100": "RGBNT100", "wmveid863": "WMVEID863"}
_SECTION = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is known of one method of the field.

    Attributes:
        method: As its paper names it.
        tower: Its image towers.
        track: What it may use, see `BenchRow`.
        code: Repository of its authors, or in words why there is none.
        license: Of the repository, ``"none"`` where it says nothing.
        weights: Released ones: datasets, ``"link"`` where a page names a download, or ``"none"``.
        here: Beginning of its names in the zoo, or one whole name; empty where it is not there.
        why: Why it is not there; empty where it is.
        note: What else a reader must know.
        venue: Where it was published; for methods of NEXT's tables as the tables say.
        figures: Published ``(mAP, rank-1)`` in percent by dataset; for methods of NEXT's tables as the tables say.
        source: Who states the figures.
    """

    method: str
    tower: str
    track: str
    code: str
    license: str
    weights: str
    here: str = ""
    why: str = ""
    note: str = ""
    venue: str = ""
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    source: str = "NEXT's tables"


def load_methods() -> list[Method]:
    """Read the methods, those of NEXT's tables with the tables' figures.

    Raises:
        ValueError: A method of the tables is missing, or an entry is not what it must be.
    """
    known: dict[str, dict[str, list[float]]] = {}
    venues = {}
    for figure in load_published():
        known.setdefault(figure["method"], {})[figure["dataset"]] = [figure["mAP"], figure["rank-1"]]
        venues[figure["method"]] = figure["venue"]
    entries = json.loads(Path(__file__).with_name("methods.json").read_text(encoding="utf-8"))
    if missing := known.keys() - {entry["method"] for entry in entries}:
        raise ValueError(f"methods.json has no {', '.join(sorted(missing))}")
    found = []
    for entry in entries:
        name = entry["method"]
        method = Method(**({"venue": venues[name], "figures": known[name], **entry} if name in known else entry))
        if bool(method.here) == bool(method.why):
            raise ValueError(f"methods.json: {name} is either in the zoo or not there for a reason")
        found.append(method)
    return found


def sections() -> dict[str, str]:
    """Tables of the page by their names."""
    return {"methods": _methods(), "models": _models()}


def render(text: str) -> str:
    """Put today's tables into the text of a page, between the lines that name them.

    Raises:
        ValueError: The page lacks a table's lines.
    """
    tables = sections()
    if missing := tables.keys() - {name for _, name, _ in _SECTION.findall(text)}:
        raise ValueError(f"the page has no lines <!-- begin: {missing.pop()} --> and <!-- end: ... -->")
    return _SECTION.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def write_page(path: Path = PAGE) -> None:
    """Write today's tables into a page."""
    text = render(path.read_text(encoding="utf-8"))
    write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))


def _methods() -> str:
    columns = ["method", "venue", "may use", "towers", *DATASETS.values(), "stated by", "code, license", "here"]
    lines = []
    for method in load_methods():
        figures = [method.figures.get(name) for name in DATASETS]
        cells = [method.method, method.venue, method.track, method.tower]
        cells += [f"{pair[0]} / {pair[1]}" if pair else "–" for pair in figures]
        terms = f"{method.code}, {method.license}" if method.code != "none" else "none"
        named = method.here if is_model(method.here) else f"{method.here}_*"
        here = f"`{named}`" if method.here else f"no: {method.why}"
        cells += [method.source, terms, here + (f"; {method.note}" if method.note else "")]
        lines.append(cells)
    return "<!-- figures: published -->\n" + _table(columns, lines)


def _models() -> str:
    rows = []
    for name in list_models():
        summary = (model_entrypoint(name).__doc__ or "").strip().partition("\n\n")[0]
        rows.append([f"`{name}`", " ".join(summary.split()).rstrip(".").replace("``", "`")])
    return _table(["model", "what"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
