"""Pages of galleries: entries, and what images or words find among them."""

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nextreid.app.requests import MOST_HITS, open_sent
from nextreid.app.server import Limits, read_body
from nextreid.data.image import Window, through_window
from nextreid.engine.gallery import load_gallery, open_gallery
from nextreid.retrieval import Entry, Gallery

from .data_views import stack_response
from .images import Thumbnails
from .library import Library
from .pages import Card, Templates, address, item, pages, whole, word

_ENTRIES, _HITS = 48, 24  # of a page
_FIELDS = ("identity", "camera")


class GalleryViews:
    """Pages of galleries. Nothing is changed: they are open for reading."""

    def __init__(
        self,
        library: Library,
        templates: Templates,
        thumbnails: Thumbnails,
        limits: Limits,
        device: Any = None,
        windows: Mapping[str, Window] | None = None,
    ) -> None:
        self._library, self._templates, self._thumbnails, self._limits = library, templates, thumbnails, limits
        self._device, self._windows = device, windows or {}
        self._open: dict[tuple[int, bool], Gallery] = {}
        self._guard = threading.Lock()

    def routes(self) -> list[Route]:
        """Addresses and what answers them."""
        of = "/gallery/{gallery:int}"
        return [
            Route(of, self.entries),
            Route(f"{of}/search", self.search, methods=["POST"]),
            Route(f"{of}/stack", self.stack),
        ]

    def entries(self, request: Request) -> Any:
        """Entries by page, or what words find."""
        number, name = self._named(request)
        words, where = word(request, "words"), _where(request)
        if words:
            count = whole(request, "count", _HITS, MOST_HITS, least=1)
            hits = self._gallery(number, True).search(text=words, k=count, where=where)
            return self._found(request, number, name, hits, f"words “{words}”")
        gallery = self._gallery(number)
        fitting = len(gallery) if not where else sum(1 for _ in gallery.entries(where))
        paged = pages(request, fitting, _ENTRIES)
        listed = list(islice(gallery.entries(where), paged.first, paged.stop))
        facts = {key: value for key, value in gallery.info().items() if value not in (None, "", {})}
        return self._templates.page(
            "gallery.html",
            number=number,
            name=name,
            gallery=gallery,
            facts=facts,
            pages=paged,
            cards=[self._card(number, entry) for entry in listed],
            entry=listed[0].to_dict() if len(listed) == 1 else {},
            wanted={field: word(request, field) for field in (*_FIELDS, "key", "metadata")},
        )

    async def search(self, request: Request) -> Any:
        """What images find, and whom they show if the gallery's model is calibrated."""
        number, name = self._named(request)
        body = await read_body(request, self._limits)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async with Request(request.scope, receive).form(max_files=16, max_fields=16) as form:
            sent = {key: await part.read() for key, part in form.items() if isinstance(part, UploadFile) and part.size}
        return await run_in_threadpool(self._search, request, number, name, sent)

    def stack(self, request: Request) -> Response:
        """The images of an entry below each other, as far as they lie in the given folders."""
        number, name = self._named(request)
        gallery, key = self._gallery(number), request.query_params.get("key", "")
        entry = next((e for e in gallery.entries({"key": key}) if e.key == key), None)
        if entry is None:
            raise KeyError(f"gallery {name} has no entry {key!r}")
        images = [
            through_window(Path(entry.source[m]), self._windows.get(m)) if m in entry.source else None
            for m in gallery.modalities
        ]
        return stack_response(self._thumbnails, images)

    def _search(self, request: Request, number: int, name: str, sent: Mapping[str, bytes]) -> Any:
        gallery = self._gallery(number, True)
        if not sent:
            raise ValueError(f"no image was sent: choose one or more of {', '.join(gallery.modalities)}")
        images = {key: open_sent(data, key, self._limits.pixels) for key, data in sent.items()}
        hits = gallery.search(images, _HITS)
        verdict, problem = "", ""
        try:
            verdict = str(gallery.match(images))
        except (FileNotFoundError, KeyError) as error:
            problem = str(error.args[0])
        what = f"images: {', '.join(name for name in gallery.modalities if name in images)}"
        return self._found(request, number, name, hits, what, list(map(_preview, images.values())), verdict, problem)

    def _found(
        self,
        request: Request,
        number: int,
        name: str,
        hits: Sequence[Any],
        what: str,
        previews: Sequence[str] = (),
        verdict: str = "",
        problem: str = "",
    ) -> Any:
        cards = [
            self._card(number, hit.entry, f"{rank} · {hit.score:.4f}" if hit.score is not None else f"{rank}")
            for rank, hit in enumerate(hits, start=1)
        ]
        return self._templates.page(
            "hits.html",
            number=number,
            name=name,
            gallery=self._gallery(number),
            cards=cards,
            what=what,
            previews=previews,
            verdict=verdict,
            problem=problem,
        )

    def _card(self, number: int, entry: Entry, note: str = "") -> Card:
        labels = f"id {entry.identity or 'unknown'}" + (f", cam {entry.camera}" if entry.camera else "")
        of = f"/gallery/{number}"
        return Card(address(f"{of}/stack", key=entry.key), address(of, key=entry.key), entry.key, labels, "", note)

    def _gallery(self, number: int, model: bool = False) -> Gallery:
        """Open a gallery once; with its model only when it is needed."""
        with self._guard:
            if (number, model) not in self._open:
                folder = list(self._library.galleries.values())[number]
                opened = open_gallery(folder, device=self._device) if model else load_gallery(folder)
                self._open[number, model] = opened
            return self._open[number, model]

    def _named(self, request: Request) -> tuple[int, str]:
        number = request.path_params["gallery"]
        return number, item("gallery", list(self._library.galleries), number)


def _where(request: Request) -> dict[str, Any]:
    """Conditions on entries from the fields of an address; ``metadata`` is NAME=VALUE."""
    where: dict[str, Any] = {name: value for name in (*_FIELDS, "key") if (value := word(request, name))}
    if given := word(request, "metadata"):
        name, sign, value = (part.strip() for part in given.partition("="))
        if not sign or not name or not value:
            raise ValueError(f"metadata takes NAME=VALUE, such as upper_clothing_color=red; got {given[:80]!r}")
        where[name] = value
    return where


def _preview(image: PILImage.Image) -> str:
    """A sent image as part of the page, as it is kept nowhere."""
    small = image.convert("RGB")
    small.thumbnail((144, 144))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
