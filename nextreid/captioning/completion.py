"""A server's answer, read through one schema: whatever it holds, the result is typed, bounded and clean text."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_BODY = 1 << 23
"""Bytes of an answer, unpacked; a longer one is no answer to what is asked here."""
_MAX_TEXT = 100_000  # characters that are kept, from the end, where the answer is
_MAX_NAME = 200
_MAX_TOKENS = 10**6  # a larger count is no count of one call's tokens
_FINISHES = {
    "max_tokens": "length", "max_output_tokens": "length", "model_length": "length",
    "safety": "content_filter", "refusal": "content_filter", "recitation": "content_filter",
    "blocklist": "content_filter", "prohibited_content": "content_filter", "content_filtered": "content_filter",
}  # fmt: skip
_TEXT_PARTS = ("text", "output_text")


@dataclass(frozen=True, slots=True)
class Completion:
    """The content of a chat completion.

    Attributes:
        text: The content; that of the reasoning field where there is no other.
        reasoned: Whether `text` was taken from the reasoning field.
        finish: Why it ended, such as ``"stop"``, ``"length"`` or ``"content_filter"``.
        refusal: The refusal field.
        reported_model: The model's name as the server reports it.
        prompt_tokens, completion_tokens: As counted by the server; 0 if it reports no number that can be one.
    """

    text: str | None
    reasoned: bool
    finish: str | None
    refusal: str | None
    reported_model: str
    prompt_tokens: int
    completion_tokens: int


def read_completion(body: bytes, redact: Callable[[str], str] = lambda text: text) -> Completion:
    """Read the body of a chat completion.

    Servers put the text in different places: as one string, as a list of content parts (those that are text are
    joined), or, with a reasoning parser over constrained output, in ``reasoning_content`` or ``reasoning`` while the
    content is empty. Numbers, names and reasons of another type or out of range count as not reported.

    Args:
        body: The bytes.
        redact: Applied to every text that is kept.

    Raises:
        ValueError: If it is no chat completion.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({type(error).__name__})") from error
    choices = field_of(answer, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = field_of(choice, "message")
    if not isinstance(message, dict):
        raise ValueError(f"it holds no message: {redact(_text(field_of(answer, 'error', answer)))[:300]}")
    content, usage = _content(message.get("content")), field_of(answer, "usage")
    thought = _content(message.get("reasoning_content")) or _content(message.get("reasoning"))
    reasoned = not content.strip() and bool(thought.strip())
    text = redact(thought if reasoned else content)[-_MAX_TEXT:]
    refusal = _refusal(message)
    return Completion(
        text=text if text or isinstance(message.get("content"), str | list) else None,
        reasoned=reasoned,
        finish=_finish(field_of(choice, "finish_reason"), redact),
        refusal=redact(refusal)[:_MAX_NAME] if refusal else None,
        reported_model=redact(plain_string(field_of(answer, "model")))[:_MAX_NAME],
        prompt_tokens=plain_count(field_of(usage, "prompt_tokens")),
        completion_tokens=plain_count(field_of(usage, "completion_tokens")),
    )


def read_models(body: bytes, redact: Callable[[str], str] = lambda text: text) -> list[str]:
    """Return the names in a list of models, each passed through `redact`; empty if it is none."""
    try:
        entries = field_of(json.loads(body), "data")
    except (ValueError, RecursionError):
        return []
    names = (
        redact(plain_string(field_of(entry, "id")))[:_MAX_NAME]
        for entry in (entries if isinstance(entries, list) else ())
    )
    return [name for name in names if name]


def unpack(body: bytes, encoding: str) -> bytes:
    """Decompress a body of at most `MAX_BODY` bytes; `encoding` is its Content-Encoding.

    Raises:
        ValueError: If it unpacks to more, is damaged, or is compressed in another way.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"it is compressed as {encoding[:40]!r}, which was not asked for")
    unpacker = zlib.decompressobj(47)  # gzip or zlib, by its first bytes
    try:
        plain = unpacker.decompress(body, MAX_BODY + 1)
    except zlib.error as error:
        raise ValueError(f"it is no {encoding} ({error})") from error
    if len(plain) > MAX_BODY:
        raise ValueError(f"it unpacks to more than {MAX_BODY} bytes")
    if not unpacker.eof:
        raise ValueError(f"its {encoding} is cut off")
    return plain


def field_of(table: Any, key: str, default: Any = None) -> Any:
    """Return an entry of what may be a JSON object."""
    return table.get(key, default) if isinstance(table, dict) else default


def plain_string(value: Any) -> str:
    """Return a text that can be encoded, ``""`` for anything else: lone surrogates become question marks."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _text(value: Any) -> str:
    return plain_string(value) or repr(value)[:1000]


def _content(value: Any) -> str:
    """Return the text of a content field: one string, or the parts that are text, joined."""
    parts = value if isinstance(value, list) else [value]
    texts = (
        part.get("text") if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS else part
        for part in parts
    )
    return "".join(map(plain_string, texts))


def _refusal(message: dict[str, Any]) -> str:
    """Return the refusal of a message or of one of its content parts; anything but nothing counts as one."""
    parts = message.get("content")
    places = [message, *(parts if isinstance(parts, list) else ())]
    return next((_text(said) for place in places if (said := field_of(place, "refusal"))), "")


def _finish(value: Any, redact: Callable[[str], str]) -> str | None:
    reason = redact(plain_string(value)).strip()[:40]
    return _FINISHES.get(reason.lower(), reason.lower()) or None


def plain_count(value: Any) -> int:
    """Return a count of tokens, 0 for what can be none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= _MAX_TOKENS else 0
