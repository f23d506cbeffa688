"""A caption server that answers what no server should: the call may fail, by name; nothing else may happen."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from nextreid.captioning.client import Client, Server
from nextreid.captioning.throttle import CallFailed


class Odd(NamedTuple):
    """One answer of the server."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def _json(**fields: Any) -> bytes:
    choice = {"message": {"content": "{}"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "model": "m"} | fields).encode()


def _message(**fields: Any) -> bytes:
    return _json(choices=[{"message": fields, "finish_reason": "stop"}])


_NO_CHOICES: tuple[Any, ...] = (5, None, [], [5], {}, "x", [{"message": 5}])
_NO_USAGE: tuple[Any, ...] = (5, "x", [], {"prompt_tokens": "many"})
_NO_JSON = (
    b"",
    b"\x00",
    b"<html>",
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b"9" * 100_000,
    b"\xff\xfe",
    b'{"choices": NaN}',
)
ANSWERS: dict[str, Odd] = {
    **{f"choices {value!r}": Odd(_json(choices=value)) for value in _NO_CHOICES},
    **{f"usage {value!r}": Odd(_json(usage=value)) for value in _NO_USAGE},
    **{f"{n:.0e} tokens": Odd(_json(usage={"completion_tokens": n})) for n in (-5, -(10**9), 10**300, 0.5)},
    "10^400 tokens": Odd(_json(usage={"prompt_tokens": 10**400})),
    "1e999 tokens": Odd(_json().replace(b'"model"', b'"usage": {"prompt_tokens": 1e999}, "model"')),
    "finish reason NaN": Odd(_json(choices=[{"message": {"content": "{}"}, "finish_reason": float("nan")}])),
    "content in parts": Odd(_message(content=[{"type": "text", "text": "{}"}])),
    "content of numbers": Odd(_message(content=[1, 2])),
    "content in a reasoning field": Odd(_message(content="", reasoning_content="{}")),
    "lone surrogate": Odd(_message(content="\ud800")),
    "refusal as a list": Odd(_message(content=None, refusal=["no"])),
    **{f"body {number} that is not JSON": Odd(body) for number, body in enumerate(_NO_JSON)},
    "20 MB of blanks": Odd(b" " * 20_000_000),
    "compressed 100 MB": Odd(gzip.compress(b" " * 100_000_000), headers=(("Content-Encoding", "gzip"),)),
    "damaged gzip": Odd(b"\x1f\x8b\x08no", headers=(("Content-Encoding", "gzip"),)),
    "compressed in an unknown way": Odd(_json(), headers=(("Content-Encoding", "x-odd"),)),
    "superscript Retry-After": Odd(b"{}", 429, (("Retry-After-Ms", "²"), ("Retry-After", "²"))),
    "endless Retry-After": Odd(b"{}", 503, (("Retry-After", "1e400"),)),
    "redirection to elsewhere": Odd(b"", 302, (("Location", "http://127.0.0.1:9/"),)),
    **{f"status {status}": Odd(b"[" * 50_000, status) for status in (400, 404, 418, 500, 599)},
}  # fmt: skip


def servers(folder: Path) -> Iterator[dict[str, Any]]:
    """One row: every odd answer once."""
    outcomes = {name: ask(odd) for name, odd in ANSWERS.items()}
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome not in ("read", "rejected")}
    values = list(outcomes.values())
    yield {
        "attack": "odd server", "target": "answer of a caption server", "tries": len(outcomes),
        "unharmed": values.count("read"), "rejected": values.count("rejected"), "wrong": len(wrong),
        "note": "; ".join(f"{name}: {outcome}"[:120] for name, outcome in list(wrong.items())[:3]),
    }  # fmt: skip


def ask(odd: Odd) -> str:
    """Ask a server that answers so; return ``"read"``, ``"rejected"`` for a failed call, or what happened instead."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(odd.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(odd.body)))
            for header, value in odd.headers:
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(odd.body)

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client has heard enough
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    async def once(url: str) -> None:
        async with asyncio.timeout(20), Client(Server(url, "m", price=(1.0, 1.0))) as client:
            reply = await client.ask("What is it?")
            cost = client.server.cost(reply.prompt_tokens, reply.completion_tokens)
            assert cost is None or 0 <= cost < 10, f"cost {cost}"
            json.dumps([reply.text, reply.finish, reply.refusal], allow_nan=False).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        asyncio.run(once(f"http://127.0.0.1:{server.server_port}"))
        return "read"
    except CallFailed:
        return "rejected"
    except Exception as error:  # whatever it is, it would end the run
        return f"{type(error).__name__}: {error}"
    finally:
        server.shutdown()
        server.server_close()
