"""Requests to a gallery: bounded in size, number and time, answered by threads that share the model."""

import hmac
import ipaddress
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nextreid.retrieval import Entry, Gallery
from nextreid.retrieval.gallery_match import Hit

from .openapi import document
from .requests import ENTRY, MATCH, SEARCH, decode_images, parse

TOKEN = "NEXTREID_TOKEN"
LOCAL = ("localhost", "127.0.0.1")
"""Names by which this machine calls itself."""
_SHORTEST = 16  # characters of a token
_logger = logging.getLogger(__name__)

Work = Callable[[Request, bytes], tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class Limits:
    """What requests may cost.

    Attributes:
        bytes: Of a body.
        pixels: Of an image.
        at_once: Requests that are computed at a time.
        waiting: Requests that are read, wait or are computed; more are answered 503.
        seconds: In which a body must have arrived.

    Raises:
        ValueError: A limit is below 1.
    """

    bytes: int = 2**24
    pixels: int = 2**24
    at_once: int = 2
    waiting: int = 32
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if wrong := [name for name, value in vars(self).items() if not value >= 1]:
            raise ValueError(f"limits must be at least 1; {wrong[0]} is {getattr(self, wrong[0])}")


def make_app(
    gallery: Gallery, *, token: str | None = None, hosts: Sequence[str] = LOCAL, limits: Limits = Limits()
) -> Starlette:
    """Make the application that answers for a gallery.

    Pages of a browser cannot reach it: bodies must be declared as JSON, which other origins may not send, and requests
    under another host's name are rejected. Answers name no file of the machine.

    Args:
        gallery: What `open_gallery` gave, open for writing.
        token: What a request must have as ``Authorization: Bearer TOKEN``; None: nothing.
        hosts: Names by which it may be called; ``"*"`` is any.
        limits: What requests may cost.

    Example:
        >>> app = make_app(open_gallery("people", write=True))  # doctest: +SKIP
    """
    api, crowd = document(gallery.modalities, token is not None), _Crowd(limits)
    images = partial(decode_images, modalities=gallery.modalities, max_pixels=limits.pixels)

    def health(request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        return 200, {"status": "ok", "entries": len(gallery)}

    def search(request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        given = parse(body, SEARCH)
        query = images(given["images"]) if "images" in given else None
        hits = gallery.search(query, given.get("k", 10), text=given.get("text"), where=given.get("where"))
        return 200, {"hits": list(map(_hit, hits))}

    def match(request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        given = parse(body, MATCH)
        options = {name: given[name] for name in ("where", "least", "false_match_rate") if name in given}
        found = gallery.match(images(given["images"]), **options)
        nearest = None if found.hit is None else _hit(found.hit)
        return 200, {"identity": found.identity, "probability": found.probability, "nearest": nearest}

    def add(request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        given = parse(body, ENTRY)
        pixels = images(given.pop("images"))
        entry = Entry(**given, modalities=tuple(name for name in gallery.modalities if name in pixels))
        if entry.key and entry.key in gallery:
            raise FileExistsError("there is an entry of this key; delete it first, or leave the key out")
        assert gallery.encoder is not None  # as it was opened with its model
        vector, _ = gallery.encoder.encode(pixels)
        return 201, {"key": gallery.add(vector[None], [entry])[0]}

    def delete(name: str, request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        return 200, {"deleted": gallery.delete(**{name: request.path_params[name]})}

    def compact(request: Request, body: bytes) -> tuple[int, Mapping[str, Any]]:
        dead = gallery.info().get("deleted_rows_on_disk") or 0
        gallery.compact()
        return 200, {"deleted": dead}

    async def openapi(request: Request) -> Response:
        return JSONResponse(api)

    def route(path: str, method: str, work: Work, *, json_body: bool = False, free: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            if token is not None and not free:
                _check_token(request, token)
            return await crowd.answer(request, work, str(gallery.folder), json_body)

        return Route(path, endpoint, methods=[method])

    routes = [
        Route("/openapi.json", openapi),
        route("/health", "GET", health, free=True),
        route("/search", "POST", search, json_body=True),
        route("/match", "POST", match, json_body=True),
        route("/entries", "POST", add, json_body=True),
        route("/entries/{key:path}", "DELETE", partial(delete, "key")),
        route("/identities/{identity:path}", "DELETE", partial(delete, "identity")),
        route("/compact", "POST", compact),
    ]
    middleware = [] if "*" in hosts else [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _error})


def serve(
    gallery: Gallery, *, host: str = "127.0.0.1", port: int = 8000, limits: Limits = Limits(), token: str | None = None
) -> None:
    """Answer requests to a gallery until the process is stopped; see `make_app`.

    Args:
        gallery: What `open_gallery` gave, open for writing.
        host: Address to listen on.
        port: Port.
        limits: What requests may cost.
        token: See `make_app`; needed unless the address is this machine's own (loopback).

    Raises:
        ValueError: The address is not this machine's own and there is no token, or the token is shorter than 16
            characters.
        ImportError: uvicorn is not installed.
    """
    hosts = check_address(host, token)
    import uvicorn

    app = make_app(gallery, token=token, hosts=hosts, limits=limits)
    # No access log: paths hold keys and identities.
    uvicorn.run(app, host=host, port=port, access_log=False, server_header=False, limit_concurrency=4 * limits.waiting)


def check_address(host: str, token: str | None) -> Sequence[str]:
    """Names by which a server at an address may be called; ValueError if it needs a token, or a longer one."""
    if token is not None and len(token) < _SHORTEST:
        raise ValueError(f"the token in {TOKEN} has {len(token)} characters, take at least {_SHORTEST}")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False  # a name, which may mean any address
    if not local and token is None:
        raise ValueError(f"listening on {host} lets others in: set a token in the environment variable {TOKEN}")
    return (*LOCAL, host) if local else ("*",)


class _Crowd:
    """Lets requests in, reads them, has them computed in threads, and makes errors answers."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._inside = limits, 0
        self._threads: anyio.CapacityLimiter | None = None  # belongs to an event loop

    async def answer(self, request: Request, work: Work, folder: str, json_body: bool) -> Response:
        if (
            json_body
            and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
        ):
            raise HTTPException(415, "send the body as application/json")
        if self._inside >= self._limits.waiting:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"})
        self._threads = self._threads or anyio.CapacityLimiter(self._limits.at_once)
        self._inside += 1
        try:
            body = await read_body(request, self._limits)
            job = partial(_compute, work, request, body, folder)
            status, answer = await anyio.to_thread.run_sync(job, limiter=self._threads)
        finally:
            self._inside -= 1
        return JSONResponse(answer, status)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read a body; HTTPException if it is too large or does not arrive in time."""
    most, body = limits.bytes, bytearray()
    declared = request.headers.get("content-length", "0")
    too_large = HTTPException(413, f"a body has at most {most} bytes", {"Connection": "close"})
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    try:
        with anyio.fail_after(limits.seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from error
    return bytes(body)


def _compute(work: Work, request: Request, body: bytes, folder: str) -> tuple[int, Mapping[str, Any]]:
    """Run the work; what users can cause becomes an answer that names no folder of this machine."""
    try:
        return work(request, body)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        status, message = 400, f"the body is no JSON in UTF-8: {error}"
    except KeyError as error:
        status, message = 404, str(error.args[0])
    except FileNotFoundError:
        status, message = 409, "the gallery's model is not calibrated: 'nextreid calibrate' does it"
    except FileExistsError as error:
        status, message = 409, str(error)
    except ValueError as error:
        status, message = 422, str(error)
    except OSError as error:
        _logger.warning("a request failed: %s", error)
        status, message = 503, f"the gallery cannot be changed: {error.strerror or 'see the log'}"
    return status, {"error": message.replace(folder, "here")}


def _check_token(request: Request, token: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "send the token as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _hit(hit: Hit) -> dict[str, Any]:
    entry = hit.entry.to_dict()
    entry.pop("source", None)  # files of this machine
    return entry if hit.score is None else {**entry, "score": hit.score}
