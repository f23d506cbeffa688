"""The application: its addresses, what it refuses, and how errors look."""

import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from nextreid.app.server import LOCAL, Limits
from nextreid.data.image import Window

from .data_views import DataViews
from .gallery_views import GalleryViews
from .images import Thumbnails
from .jobs import Jobs, StillRunning
from .library import Library
from .pages import Templates
from .rank_views import RankViews
from .ranks import Ranker, RankOptions
from .run_views import RunViews

_LIMITS = Limits(bytes=2**26)
_HEADERS = {
    # No script at all; images that were just sent are part of the page (data:).
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def make_browser(
    library: Library,
    *,
    cache: Path | None = None,
    options: RankOptions = RankOptions(),
    windows: Mapping[str, Window] | None = None,
    limits: Limits = _LIMITS,
    jobs: Jobs | None = None,
) -> Starlette:
    """Make the application that shows runs, rankings, galleries and datasets to people on this machine.

    It only reads, sends nothing anywhere, and answers requests only that call it by a name of this machine and do not
    come from another page. Files are shown as images of samples alone, which addresses number, and only from the given
    folders; all text is escaped, and pages have no script.

    Args:
        library: What is browsed.
        cache: Folder of thumbnails; None: they are kept nowhere.
        options: How models rank.
        windows: For images of galleries of more than 8 bits, by modality; see `ImageFile`.
        limits: What a search by images may send.
        jobs: Makes rankings and keeps them; None: up to 1 GiB of them.

    Example:
        >>> app = make_browser(Library(models={"next_tiny": "next_tiny"}))
    """
    templates, jobs = Templates(library), jobs or Jobs()
    thumbnails, ranker = Thumbnails(cache, library.folders), Ranker(library, jobs, options)
    device = options.embed.device
    views = (
        RunViews(library, templates),
        DataViews(library, templates, thumbnails, jobs),
        RankViews(library, templates, ranker),
        GalleryViews(library, templates, thumbnails, limits, device, windows),
    )
    routes = [route for view in views for route in view.routes()]
    static = Mount("/static", StaticFiles(directory=Path(__file__).with_name("static")))
    failed = partial(_failed, templates)
    caused = (HTTPException, ValueError, KeyError, OSError, ImportError, FloatingPointError, Exception)
    return Starlette(
        routes=[*routes, static],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL)), Middleware(_Guard)],
        exception_handlers={StillRunning: partial(_wait, templates), **dict.fromkeys(caused, failed)},
    )


def browse(
    library: Library, *, port: int = 8321, started: Callable[[str], object] | None = None, **options: Any
) -> None:
    """Show what `make_browser` makes on this machine alone, until the process is stopped.

    Args:
        library: What is browsed.
        port: Port.
        started: Called with the address once it is this program's.
        **options: See `make_browser`.

    Raises:
        OSError: The port cannot be used.
    """
    import uvicorn

    with socket.socket() as ours:
        if os.name == "posix":  # elsewhere this would let two programs have the port
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ours.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(f"port {port} cannot be used, take another one (--port): {error.strerror}") from error
        if started is not None:
            started(f"http://127.0.0.1:{port}")
        config = uvicorn.Config(
            make_browser(library, **options),
            access_log=False,
            server_header=False,
            limit_concurrency=200,
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[ours])


class _Guard:
    """Refuses requests that other pages caused, but for links to follow, and says to browsers what a page may do."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if _is_of_another_page(scope["method"], Headers(scope=scope)):
            refused = PlainTextResponse("refused: another page asked for this", 403)
            return await refused(scope, receive, guarded)
        return await self._app(scope, receive, guarded)


def _is_of_another_page(method: str, headers: Headers) -> bool:
    """Whether a page of another origin caused a request; a link that somebody follows may."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None and origin != f"http://{headers.get('host')}":
        return True
    followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return site not in ("none", "same-origin") and not followed


async def _wait(templates: Templates, request: Request, error: Exception) -> Any:
    assert isinstance(error, StillRunning)
    return templates.page("wait.html", 202, {"Retry-After": "2"}, job=error.job)


async def _failed(templates: Templates, request: Request, error: Exception) -> Any:
    """What went wrong as a page: words of the library's errors, and nothing of what is unexpected."""
    if isinstance(error, HTTPException):
        status, message = error.status_code, "there is no such page" if error.status_code == 404 else error.detail
    elif isinstance(error, KeyError | FileNotFoundError):
        status, message = 404, str(error.args[0]) if isinstance(error, KeyError) else str(error)
    elif isinstance(error, ValueError | ImportError | FloatingPointError):
        status, message = 422, str(error)
    elif isinstance(error, OSError):
        status, message = 403 if isinstance(error, PermissionError) else 503, str(error)
    else:
        status, message = 500, "this is an error of the program; the terminal in which it runs says more"
    return templates.page("error.html", status, getattr(error, "headers", None), status=status, message=message)
