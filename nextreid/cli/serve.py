"""``nextreid serve``."""

import argparse
from typing import Any

from .arguments import pick_device


def add(command: Any) -> None:
    """Add the command to the parser."""
    serve = command(
        "serve",
        run,
        "Answer requests to a gallery over HTTP: search, match, add, delete.",
        epilog="/openapi.json says what it answers. It listens on this machine alone; with --host elsewhere too, and\n"
        "then requests need the token that the environment variable NEXTREID_TOKEN holds.\n\nexample:\n"
        "  nextreid serve people --port 8000",
    )
    serve.add_argument("folder", help="folder of the gallery, or lancedb:URI")
    serve.add_argument("--model", help="where the gallery's model is now, if not where it was")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    serve.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")
    limits = (
        ("--max-bytes", 2**24, "of a request"),
        ("--max-pixels", 2**24, "of an image"),
        ("--at-once", 2, "requests that are computed at a time"),
        ("--waiting", 32, "requests that may wait; more are answered 503"),
    )
    for option, default, help in limits:
        serve.add_argument(option, type=int, default=default, metavar="N", help=f"{help} (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import os

    try:
        from nextreid.app import Limits, serve
        from nextreid.app.server import TOKEN, check_address
    except ImportError as error:
        raise ImportError(f"serving needs {error.name}: pip install 'nextreid[serve]'") from error
    from nextreid.engine import open_gallery

    token = os.environ.get(TOKEN) or None
    check_address(args.host, token)
    limits = Limits(args.max_bytes, args.max_pixels, args.at_once, args.waiting)
    with open_gallery(args.folder, args.model, write=True, device=pick_device(args.device)) as gallery:
        print(f"{gallery}: http://{args.host}:{args.port}/openapi.json", flush=True)
        serve(gallery, host=args.host, port=args.port, limits=limits, token=token)
