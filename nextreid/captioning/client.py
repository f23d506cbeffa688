"""One client for every server that speaks the OpenAI chat protocol, and a probe of it before anything is paid."""

import asyncio
import ipaddress
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from .image import data_url
from .throttle import REAL_TIME, CallFailed, RateLimits, Throttle, Timing, retry_after

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
_COLOURS = {"red": (220, 20, 20), "blue": (20, 40, 220)}
_QUESTION = "Which colour fills this image? Answer with one English word, the name of the colour."
_ATTEMPTS = 5
_NO_IMAGES = re.compile(r"image|vision|multi-?modal|picture|content.*(?:type|string)|unknown variant", re.IGNORECASE)


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
        return text.replace(self._value, f"[{self.origin}]") if self._value else text

    def __repr__(self) -> str:
        return f"Key(from {self.origin})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a key cannot be pickled or copied")


def read_key(name: str, environ: Mapping[str, str] | None = None) -> Key:
    """Read a key from the environment variable of this name (or from `environ`).

    Raises:
        PermissionError: If the variable is not set or empty; names it.
    """
    value = (os.environ if environ is None else environ).get(name, "").strip()
    if not value:
        raise PermissionError(f"the key is missing: set the environment variable {name} (keys are read nowhere else)")
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

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a server's address looks like http://127.0.0.1:8000/v1, got {parts.hostname!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("a server's address must hold no user, password or query; keys come from the environment")
        if not self.model:
            raise ValueError("a server needs the name of a model")
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

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the cost of so many tokens, None without a price."""
        return self.price and (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply.

    Attributes:
        text: Content, None if there was none.
        finish: Why it ended, such as ``"stop"`` or ``"length"``.
        refusal: The refusal field.
        reported_model: The model's name as the server reports it.
        request: Our random id of the call.
        left_out: Options the server does not support.
        prompt_tokens, completion_tokens: As counted by the server, 0 if it does not report them.
        date: Time of the reply in UTC, ISO 8601.
    """

    text: str | None
    finish: str | None
    refusal: str | None
    reported_model: str
    request: str
    left_out: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


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
        self._sdk = openai.AsyncOpenAI(
            base_url=server.url,
            api_key=server.key.reveal() if server.key else _NO_KEY,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not is_loopback(server.url)),
            default_headers={"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit},
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

    async def list_models(self) -> list[str]:
        """Return the names of the server's models; empty if it does not list them."""
        try:
            page = await self._sdk.models.list()
        except self._openai.OpenAIError:
            return []
        return [self._redact(str(model.id)) for model in page.data or ()]

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
        openai = self._openai
        request = uuid.uuid4().hex
        given = {name: value for name, value in options.items() if name not in self._left_out}
        schema = given.pop("structured", None)
        if schema is not None and self.server.structured == "json_schema":
            wanted = {"name": "answers", "schema": schema, "strict": True}
            given["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif schema is not None:
            given["structured_outputs"] = {"json": schema}
        if self._renamed and "max_tokens" in given:
            given["max_completion_tokens"] = given.pop("max_tokens")
        try:
            # not the typed method, which first walks through the whole body: a millisecond for every call
            done = await self._sdk.post(
                "/chat/completions",
                cast_to=openai.types.chat.ChatCompletion,
                body={"model": self.server.model, "messages": [{"role": "user", "content": content}], **given},
                options={"headers": {"X-Request-Id": request}},
            )
        except openai.APIStatusError as error:
            if error.status_code in (400, 403, 422) and _FILTERED.search(str(error)):
                why = self._redact(str(error))[:500]
                return Reply(None, "content_filter", why, "", request, tuple(sorted(self._left_out)))
            raise self._status_error(error) from None
        except openai.APIConnectionError as error:
            raise self._failed(f": {error.__cause__ or error or 'no connection'}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise self._failed(f" sent no chat completion: {error}") from None
        return self._reply(done, request)

    def _reply(self, done: Any, request: str) -> Reply:
        """Convert a completion; servers leave out or null almost anything."""
        choices = getattr(done, "choices", None)
        if not choices:
            raise self._failed(f" sent no chat completion: {done}")
        choice, usage = choices[0], getattr(done, "usage", None)
        message = getattr(choice, "message", None)
        text, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
        return Reply(
            text=self._redact(text) if isinstance(text, str) else None,
            finish=getattr(choice, "finish_reason", None),
            refusal=self._redact(str(refusal)) if refusal else None,
            reported_model=self._redact(str(getattr(done, "model", None) or "")),
            request=request,
            left_out=tuple(sorted(self._left_out)),
            prompt_tokens=int(getattr(usage, "prompt_tokens", None) or 0),
            completion_tokens=int(getattr(usage, "completion_tokens", None) or 0),
        )

    def _status_error(self, error: Any) -> CallFailed:
        status, headers = error.status_code, error.response.headers
        milliseconds = headers.get("retry-after-ms", "")
        wait = float(milliseconds) / 1000 if milliseconds.isdigit() else retry_after(headers.get("retry-after"))
        retry = status in (408, 409, 425, 429) or status >= 500
        if status == 429 and re.search(r"insufficient_quota|billing|credit", str(error), re.IGNORECASE):
            retry = False  # the account is empty, waiting does not help
        return self._failed(f" answered {status}: {error}", status=status, retry=retry, retry_after=wait)

    def _failed(self, what: str, *, retry: bool = True, **details: Any) -> CallFailed:
        return CallFailed(self.server.host + self._redact(what)[:500], retry=retry, **details)

    def _redact(self, text: str) -> str:
        text = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]*", "[image]", text)
        return self.server.key.redact(text) if self.server.key else text


async def probe(client: Client, *, timeout: float = 120.0, timing: Timing = REAL_TIME) -> None:
    """Show the model two synthetic images of one colour each and ask for the colour.

    Two, because a model that sees nothing also names a colour, the same one both times. `timeout` includes the retries,
    few and short, because somebody waits at the screen.

    Raises:
        ConnectionError: No server answers at the address.
        PermissionError: The server requires a key, or another one.
        ValueError: The server does not have the model, or the model cannot see; the message names it.
    """
    server = client.server
    limits = RateLimits(timeout=timeout, attempts=_ATTEMPTS, backoff=0.2, longest_wait=30.0)
    throttle = Throttle(limits, timing=timing)
    for colour, value in _COLOURS.items():
        image = data_url(Image.new("RGB", (224, 224), value))
        try:
            async with asyncio.timeout(timeout):
                reply = await throttle.call(partial(client.ask, _QUESTION, image, max_tokens=1000))
        except (TimeoutError, CallFailed) as error:
            failure = error if isinstance(error, CallFailed) else CallFailed(f"no answer within {timeout:g} s")
            raise await _explained(client, failure) from None
        answer = re.sub(r"<think>.*?</think>", "", reply.text or reply.refusal or "", flags=re.DOTALL)
        named = re.findall(r"\b(red|blue)\b", answer, re.IGNORECASE)
        if not named or named[-1].lower() != colour:
            raise ValueError(
                f"model {server.model!r} on {server.host} cannot see: for a {colour} image it answered "
                f"{answer[:80]!r}; use a model that accepts images"
            )


async def _explained(client: Client, error: CallFailed) -> Exception:
    """Return the exception that tells the user what to change."""
    server = client.server
    if error.status is None or error.status >= 500 or error.status == 429:
        return ConnectionError(
            f"no server answers at {server.url} ({error}); start one, such as 'vllm serve MODEL', or correct --server"
        )
    if error.status in (401, 403):
        wrong = f"the key in {server.key.origin} is not accepted" if server.key else ""
        return PermissionError(
            f"{server.host} answered {error.status}: {wrong or 'it requires a key: add --key-env NAME'}"
        )
    if error.status in (400, 415, 422) and _NO_IMAGES.search(str(error)):
        return ValueError(
            f"model {server.model!r} on {server.host} cannot see, the server accepts no images for it ({error}); "
            "use a model that does"
        )
    models = await client.list_models() if error.status in (400, 404) else []
    if error.status == 404 or (models and server.model not in models):
        listed = f"it has {', '.join(models[:10])}" if models else "check the name and the address"
        return ValueError(f"{server.host} does not know the model {server.model!r}; {listed}")
    return error
