"""One client for every server that speaks the OpenAI chat protocol or answers typed questions."""

import asyncio
import functools
import ipaddress
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from .completion import MAX_BODY, Completion, read_completion, read_models, unpack
from .decisions import MAX_OPTIONS, PATHS, Api, Question, read_decisions, read_outputs, request_body
from .throttle import CallFailed, retry_after

Structured = Literal["json_schema", "structured_outputs", "none"]

DEFAULT_KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # the SDK requires a key; a local server accepts any
_FILTERED = re.compile(r"content.?(?:filter|policy|management)|data_inspection_failed|safety|moderation", re.IGNORECASE)
_OPTIONAL = {
    # how the message of a server that does not support an option mentions it
    "max_tokens": re.compile(r"max_tokens|max_completion_tokens", re.IGNORECASE),
    "temperature": re.compile(r"temperature", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
    "structured": re.compile(r"response_format|json_schema|structured|guided|grammar|schema", re.IGNORECASE),
}
_MOST_OPTIONS = re.compile(r"options?\b.*\bat most (\d+)|at most (\d+)\b.*\boptions?", re.IGNORECASE)
_LIST_TIMEOUT = 30.0  # seconds


class Key:
    """A secret that never shows: not in its representation, not when formatted, and it cannot be pickled."""

    __slots__ = ("_value", "origin")

    def __init__(self, value: str, origin: str) -> None:
        self._value = value
        self.origin = origin

    def reveal(self) -> str:
        """Return the secret."""
        return self._value

    def redact(self, text: str) -> str:
        """Return a text in which the secret is replaced by its origin."""
        forms = {self._value, json.dumps(self._value)[1:-1], quote(self._value, safe="")} - {""}
        for form in sorted(forms, key=len, reverse=True):  # as it is, and as JSON and addresses write it
            text = text.replace(form, f"[{self.origin}]")
        return text

    def __repr__(self) -> str:
        return f"Key(from {self.origin})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a key cannot be pickled or copied")


def read_key(name: str, environ: Mapping[str, str] | None = None) -> Key:
    """Read a key from the environment variable of this name (or from `environ`).

    Raises:
        ValueError: If it is no name of a variable, such as the key itself; it is not shown.
        PermissionError: If the variable is not set or empty; names it.
    """
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name, re.IGNORECASE):
        raise ValueError("a key is given as the name of the environment variable that holds it, such as OPENAI_API_KEY")
    value = (os.environ if environ is None else environ).get(name, "").strip()
    if not value:
        shown = f"the environment variable {name}" if name.upper() == name else "the environment variable you name"
        raise PermissionError(f"the key is missing: set {shown} (keys are read nowhere else)")
    return Key(value, name)


def is_loopback(url: str) -> bool:
    """Tell whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class Server:
    """One model on one server.

    Attributes:
        url: Base address; ``/v1`` is added where it has no path.
        model: The model's name on that server.
        key: Its key, None if it needs none.
        structured: How JSON output is requested: ``"json_schema"`` (the ``response_format`` of the protocol),
            ``"structured_outputs"`` (vLLM's name for it) or ``"none"``. It is left out after a server rejected it.
        price: Cost of a million prompt tokens and of a million answer tokens; None if unknown or free.
        send_images: Whether images may leave this machine for this server.
        api: How it is asked: ``"chat"`` for a text, ``"decisions"`` or ``"systemone"`` for typed questions that are
            answered with a probability for every option (see `decisions`).

    Raises:
        ValueError: If the address is not an HTTP address or contains a password, or images would go to another
            machine without permission; names the host.
    """

    url: str
    model: str
    key: Key | None = None
    structured: Structured = "json_schema"
    price: tuple[float, float] | None = None
    send_images: bool = field(default=False, repr=False)
    api: Api = "chat"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a server's address looks like http://127.0.0.1:8000/v1, got {parts.hostname!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("a server's address must hold no user, password or query; keys come from the environment")
        if not self.model:
            raise ValueError("a server needs the name of a model")
        if self.api not in ("chat", *PATHS):
            raise ValueError(f"a server's api is one of chat, {', '.join(PATHS)}; got {self.api!r}")
        if self.price is not None and not all(0 <= cost < 1e9 for cost in self.price):
            raise ValueError(f"the price of a million tokens must be at least 0, got {self.price!r}")
        if parts.path in ("", "/"):
            object.__setattr__(self, "url", self.url.rstrip("/") + "/v1")
        if not is_loopback(self.url) and not self.send_images:
            raise ValueError(
                f"images would be sent to {self.host}, another machine; if its terms and those of your images "
                "allow that, add --send-images-to-host (in Python: send_images=True)"
            )

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def client(self) -> "Client":
        """Return what sends calls to it."""
        return Client(self)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the cost of so many tokens, None without a price."""
        return self.price and (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6


@dataclass(frozen=True, slots=True)
class Reply(Completion):
    """A server's reply: what it says, and which call it belongs to.

    Attributes:
        request: Our random id of the call.
        left_out: Options the server does not support.
        date: Time of the reply in UTC, ISO 8601.
    """

    request: str
    left_out: tuple[str, ...] = ()
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@functools.cache
def _http_client(openai: Any) -> Any:
    """Return the SDK's HTTP client, which reads no more than `MAX_BODY` bytes of a response, packed or unpacked."""

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            response = await super().send(request, **{**options, "stream": True})
            body = bytearray()
            try:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise ConnectionError(f"its answer is longer than {MAX_BODY} bytes")
                plain = unpack(bytes(body), response.headers.get("content-encoding", ""))
            except ValueError as error:
                raise ConnectionError(f"its answer cannot be read: {error}") from None
            finally:
                await response.aclose()
            dropped = (b"content-encoding", b"content-length", b"transfer-encoding")
            headers = [(name, value) for name, value in response.headers.raw if name.lower() not in dropped]
            return type(response)(response.status_code, headers=headers, content=plain, request=request)

    return BoundedClient


class Client:
    """Sends calls to one server. Use it as an asynchronous context manager.

    The SDK's own retries are off, redirections are not followed (images go to the named host or nowhere), and the
    environment's settings of organisation, project or address for other programs are not used.

    Raises:
        ImportError: If the openai package is not installed.
    """

    def __init__(self, server: Server) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError("querying models needs the openai package: pip install 'nextreid[captions]'") from error
        self.server = server
        self._openai = openai
        self._left_out: set[str] = set()
        self._renamed = False  # newer servers call max_tokens max_completion_tokens
        self._most_options = MAX_OPTIONS + 1  # of a question, as far as the server has said
        self._sdk = openai.AsyncOpenAI(
            base_url=server.url,
            api_key=server.key.reveal() if server.key else _NO_KEY,
            max_retries=0,
            timeout=None,
            http_client=_http_client(openai)(follow_redirects=False, trust_env=not is_loopback(server.url)),
            default_headers={
                "OpenAI-Organization": openai.omit,
                "OpenAI-Project": openai.omit,
                "Accept-Encoding": "identity",
            },
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._sdk.close()

    async def ask(
        self,
        prompt: str,
        image: str | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        max_tokens: int = 1500,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Reply:
        """Make one attempt at one call; `image` is a data URL, None for text alone, `json_schema` that of the answer.

        Raises:
            CallFailed: There was no answer; the message contains neither key nor image.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.append({"type": "image_url", "image_url": {"url": image}})
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if seed is not None:
            options["seed"] = seed
        if json_schema is not None and self.server.structured != "none":
            options["structured"] = json_schema
        while True:
            try:
                return await self._send(content, options)
            except CallFailed as error:
                if error.status not in (400, 422) or not self._go_without(str(error), options):
                    raise

    async def decide(self, statement: str, questions: Sequence[Question], image: str) -> Reply:
        """Make one attempt at typed questions about an image, a data URL; the text is that of `read_decisions`.

        Questions with more options than the server has once said it allows are left out.

        Raises:
            CallFailed: There was no answer, or not one of this form; the message contains neither key nor image.
        """
        server = self.server
        while True:
            asked = [q for q in questions if len(q.options) <= self._most_options]
            body = request_body(server.api, server.model, statement, asked, image)
            read = functools.partial(read_decisions, questions=asked, redact=self._redact)
            try:
                return await self._post(PATHS[server.api], body, read, "decisions")
            except CallFailed as error:
                said = _MOST_OPTIONS.search(str(error)) if error.status in (400, 413, 422) else None
                most = int(said[1] or said[2]) if said else self._most_options
                if not any(1 < len(q.options) <= most for q in asked) or all(len(q.options) <= most for q in asked):
                    raise
                self._most_options = most
                self._left_out.add(f"questions of more than {most} options")

    async def list_models(self) -> list[str]:
        """Return the names of the server's models; empty if it does not list them, within half a minute."""
        try:
            async with asyncio.timeout(_LIST_TIMEOUT):
                return read_models(await self._sdk.get("/models", cast_to=bytes), self._redact)
        except Exception:  # as in `_post`; the list is a help, and who has none goes on without it
            return []

    async def list_outputs(self) -> list[str] | None:
        """Return what the model gives, such as ``["decisions"]``; None if the server does not say."""
        try:
            async with asyncio.timeout(_LIST_TIMEOUT):
                return read_outputs(await self._sdk.get("/models", cast_to=bytes), self.server.model)
        except Exception:  # as in `_post`
            return None

    def _go_without(self, message: str, options: Mapping[str, Any]) -> bool:
        """Record the option that a server complains about; return whether there is one to leave out."""
        left = [name for name in options if name not in self._left_out]
        blamed = [name for name in left if _OPTIONAL[name].search(message)]
        if "max_tokens" in blamed and not self._renamed:
            self._renamed = True
            return True
        # a complaint about nothing in particular: servers most often fail on the grammar
        if not blamed and "structured" in left and "image" not in message:
            blamed = ["structured"]
        self._left_out.update(blamed[:1])
        return bool(blamed)

    async def _send(self, content: list[dict[str, Any]], options: Mapping[str, Any]) -> Reply:
        given = {name: value for name, value in options.items() if name not in self._left_out}
        schema = given.pop("structured", None)
        if schema is not None and self.server.structured == "json_schema":
            wanted = {"name": "answers", "schema": schema, "strict": True}
            given["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif schema is not None:
            given["structured_outputs"] = {"json": schema}
        if self._renamed and "max_tokens" in given:
            given["max_completion_tokens"] = given.pop("max_tokens")
        body = {"model": self.server.model, "messages": [{"role": "user", "content": content}], **given}
        read = functools.partial(read_completion, redact=self._redact)
        return await self._post("/chat/completions", body, read, "chat completion")

    async def _post(self, path: str, body: Mapping[str, Any], read: Callable[[bytes], Completion], what: str) -> Reply:
        openai = self._openai
        request = uuid.uuid4().hex
        try:
            # not a typed method: it walks through the whole body first, and trusts what comes back
            answered = await self._sdk.post(
                path, cast_to=bytes, body=body, options={"headers": {"X-Request-Id": request}}
            )
            answer = read(answered)
        except openai.APIStatusError as error:
            if error.status_code in (400, 403, 422) and _FILTERED.search(f"{error} {error.response.text}"):
                why = self._redact(str(error))[:500]
                answer = Completion(None, False, "content_filter", why, "", 0, 0)
            else:
                raise self._status_error(error) from None
        except (ConnectionError, openai.APIConnectionError) as error:
            raise self._failed(f": {error.__cause__ or error or 'no connection'}") from None
        except Exception as error:
            # of what a server sends, much reaches us as an exception of the libraries below, another for each version
            raise self._failed(f" sent no {what}: {error or type(error).__name__}") from None
        return Reply(**asdict(answer), request=request, left_out=tuple(sorted(self._left_out)))

    def _status_error(self, error: Any) -> CallFailed:
        status, headers = error.status_code, error.response.headers
        milliseconds = headers.get("retry-after-ms", "")
        known = milliseconds.isascii() and milliseconds.isdigit()
        wait = retry_after(str(float(milliseconds) / 1000) if known else headers.get("retry-after"))
        retry = status in (408, 409, 425, 429) or (status >= 500 and status != 501)  # 501: it cannot, and never will
        if status == 429 and re.search(r"insufficient_quota|billing|credit", str(error), re.IGNORECASE):
            retry = False  # the account is empty, waiting does not help
        return self._failed(f" answered {status}: {error}", status=status, retry=retry, retry_after=wait)

    def _failed(self, what: str, *, retry: bool = True, **details: Any) -> CallFailed:
        return CallFailed(self.server.host + self._redact(what)[:500], retry=retry, **details)

    def _redact(self, text: str) -> str:
        text = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]*", "[image]", text.encode("utf-8", "replace").decode())
        return self.server.key.redact(text) if self.server.key else text
