"""What the pages share: templates, the fields of an address, paging, and the card of a sample."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from nextreid._names import show, unknown
from nextreid.captioning.audit import AuditTable, printed_cell
from nextreid.data import Sample
from nextreid.viz import Table
from nextreid.viz.table import format_value

from .library import BrowsedDataset, Library, as_text

_LONGEST = 1000  # characters of a field
_DIGITS = 9  # of a number


class Templates:
    """Pages from templates; every value is escaped, and one that is missing is an error."""

    def __init__(self, library: Library) -> None:
        loader = PackageLoader("nextreid.app.browse")
        self._env = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._env.globals["library"] = library
        self._env.filters.update(text=as_text, value=format_value, percent=percent)

    def page(
        self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, /, **values: Any
    ) -> HTMLResponse:
        r"""Render a template as an answer; bytes of a name that are not UTF-8 stand there as ``\udce9``."""
        text = self._env.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status, headers)


class Card(NamedTuple):
    """A sample as pages show it.

    Attributes:
        image: Address of its stack of images.
        href: Where a click leads; empty: nowhere.
        key: Its key.
        labels: Identity, camera, scene.
        mark: ``"query"``, ``"right"``, ``"wrong"``, or empty.
        note: Such as rank and score.
    """

    image: str
    href: str
    key: str
    labels: str
    mark: str = ""
    note: str = ""


class Pages(NamedTuple):
    """Which part of a list a page shows.

    Attributes:
        number: Of the page, from 1.
        last: Number of the last page.
        total: Items of all pages.
        first: Place of the first item on the page, from 0.
        stop: Place behind the last.
        previous: Address of the page before; empty where there is none.
        next: Of the one after.
    """

    number: int
    last: int
    total: int
    first: int
    stop: int
    previous: str
    next: str


def pages(request: Request, total: int, size: int) -> Pages:
    """Find the page that a request asks for; the last one where it asks for more."""
    last = max(1, -(-total // size))
    number = min(whole(request, "page", 1, 10**_DIGITS, least=1), last)

    def link(other: int) -> str:
        return address("", [(n, v) for n, v in request.query_params.multi_items() if n != "page"], page=other)

    before, after = link(number - 1) if number > 1 else "", link(number + 1) if number < last else ""
    return Pages(number, last, total, (number - 1) * size, min(total, number * size), before, after)


def address(path: str, fields: Sequence[tuple[str, Any]] = (), **more: Any) -> str:
    """An address with fields; those that are empty are left out."""
    given = [(name, value) for name, value in (*fields, *more.items()) if value not in ("", None)]
    # a name may hold bytes that are no UTF-8
    return f"{path}?{urlencode(given, errors='surrogatepass')}" if given else path


def word(request: Request, name: str, known: Sequence[str] | None = None) -> str:
    """A field of the address as text, empty where it is not given; ValueError if it is none of `known`."""
    value = request.query_params.get(name, "").strip()
    if len(value) > _LONGEST:
        raise ValueError(f"{name} has {len(value)} characters; it takes {_LONGEST}")
    if known is not None and value and value not in known:
        raise ValueError(unknown(name, value, known))
    return value


def whole(request: Request, name: str, default: int, most: int, least: int = 0) -> int:
    """A field of the address as a number; ValueError if it is none, or out of range."""
    given = word(request, name)
    return as_whole(name, given, most, least) if given else default


def as_whole(name: str, given: str, most: int, least: int = 0) -> int:
    """A text as a number; ValueError if it is none, or out of range."""
    if not (given.isascii() and given.isdigit() and len(given) <= _DIGITS and least <= int(given) <= most):
        raise ValueError(f"{name} must be a whole number of {least} to {most}; got {show(given)}")
    return int(given)


def item(what: str, items: Sequence[Any], number: int) -> Any:
    """One of several by its number; KeyError names what there is not."""
    if not 0 <= number < len(items):
        raise KeyError(f"there is no {what} {number}; there are {len(items)}")
    return items[number]


def card(
    number: int, browsed: BrowsedDataset, sample: int, hide: Sequence[str] = (), href: str | None = None, **more: Any
) -> Card:
    """The card of a sample of the dataset of a number; a click leads to its own page."""
    shown: Sample = browsed.samples[sample]
    image = address(f"/dataset/{number}/stack/{sample}", [("hide", name) for name in hide])
    link = f"/dataset/{number}/sample/{sample}" if href is None else href
    return Card(image, link, shown.key, labels(browsed, shown), **more)


def labels(browsed: BrowsedDataset, sample: Sample) -> str:
    """Identity, camera and scene of a sample, as its files name them."""
    words = [f"id {browsed.label('pid', sample)}"]
    words += [f"cam {browsed.label('camid', sample)}"] if sample.camid >= 0 else []
    words += [f"scene {browsed.label('sceneid', sample)}"] if sample.sceneid >= 0 else []
    return ", ".join(words)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "", note: str = "") -> Markup:
    """A table of plain values, escaped."""
    return Markup(Table(title, columns, rows, note).html())


def audit_table(found: AuditTable) -> Markup:
    """A table of an audit of captions."""
    rows = [[printed_cell(cell, name) for cell, name in zip(row, found.columns, strict=True)] for row in found.rows]
    return table(found.columns, rows, found.title, found.note)


def percent(value: float | None) -> str:
    """A share in percent; a dash for None and nan."""
    return "–" if value is None or value != value else f"{100 * value:.1f}"
