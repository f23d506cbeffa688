"""A model's reply parsed into answers: lenient about form, strict about values, every repair flagged."""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

from .distribution import answer_of
from .schema import Answer, Schema
from .text import is_refusal

Status = Literal["ok", "refused", "unusable"]

_LONGEST = 50_000  # characters that are looked at
_MOST_STARTS = 50  # braces at which an object is looked for
_DEEPEST = 16  # levels of an answer
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
# each alternative also matches to the end of the text: one that can fail there makes the walk quadratic
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*(?:"|\\?\Z))|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_TRAILING = re.compile(r'("(?:\\.|[^"\\])*(?:"|\\?\Z))|,(?=\s*[}\]])', re.DOTALL)
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)  # a text, perhaps cut off, or a mark
_START = re.compile(r"[{\[]")
_VALUE_KEYS = ("value", "answer", "label", "val")
_CONFIDENCE_KEYS = ("confidence", "confidencescore", "score", "probability", "conf")
_NAME_KEYS = ("name", "attribute", "field", "key")


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The answers of one reply.

    Attributes:
        status: ``"ok"`` if at least one field was answered, ``"refused"`` or ``"unusable"``.
        answers: By field name, for the fields the modality can show; a field that was not answered is absent.
        flags: Flaws in the form of the whole: ``"thinking"``, ``"fenced"``, ``"prose"``, ``"trailing-comma"``,
            ``"python"``, ``"truncated"``, ``"list"``, ``"wrapped"``, ``"extra-fields"``, ``"empty"``, ``"no-json"``,
            ``"no-fields"``. Flags of single answers are with these.
        missing: Share of the requested fields that were not answered.
    """

    status: Status
    answers: Mapping[str, Answer] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    missing: float = 1.0

    @property
    def needs_repair(self) -> bool:
        """Whether to ask once more: it is unusable, or was cut off before half of the fields."""
        return self.status == "unusable" or (self.status == "ok" and "truncated" in self.flags and self.missing > 0.5)


def parse_reply(
    text: str | None,
    schema: Schema,
    modality: str,
    *,
    finish: str | None = None,
    refusal: str | None = None,
    reasoned: bool = False,
) -> ParsedReply:
    """Parse a model's reply to a request of this schema and modality; nothing is raised whatever the model wrote.

    Accepted with a flag: thinking or prose around the object, fences, a trailing comma, comments, Python instead of
    JSON, an object cut off in the middle, a list or another object around it, field names spelled differently, values
    as lists or bare words, confidences in percent, as words, out of range or absent. A value outside the choices
    becomes unknown. The server's finish reason ``"length"`` means cut off, ``"content_filter"`` refused.

    Text that was `reasoned`, as it comes from a reasoning field, is an answer only if it is the whole object and
    nothing else: what stands amid a thought is a draft.
    """
    if refusal or finish == "content_filter":
        return ParsedReply("refused")
    flags: list[str] = ["truncated"] if finish == "length" else []
    text = _without_thoughts((text or "")[-_LONGEST:], flags).strip()
    if not text:
        return ParsedReply("unusable", flags=(*flags, "empty"))
    names = {_plain(f.name): f.name for f in schema.for_modality(modality)}
    table: dict[str, Any] = {}
    found: list[str] = []
    for value, flaws in _objects(text):
        notes: list[str] = []
        candidate = _table(value, names, notes)
        if len(candidate) > len(table):
            table, found = candidate, [*flaws, *notes]
            if "truncated" not in flaws and len(table) * 2 > len(names):
                break
    if reasoned:
        flags.append("thinking")
        if "prose" in found or "truncated" in (*flags, *found):
            table = {}
    if not table:
        if is_refusal(text):
            return ParsedReply("refused", flags=tuple(flags))
        return ParsedReply("unusable", flags=(*flags, "no-fields" if "{" in text else "no-json"))
    answers = {name: _answer(schema, name, table[name]) for name in names.values() if name in table}
    flags = list(dict.fromkeys([*flags, *found]))
    return ParsedReply("ok", answers, tuple(flags), 1 - len(answers) / len(names))


def parse_distributions(text: str | None, schema: Schema, modality: str, *, refusal: str | None = None) -> ParsedReply:
    """Read what a typed endpoint or a classifier gave: JSON, probabilities by value and field.

    It was checked before it was stored; whatever else it holds is unusable.
    """
    if refusal:
        return ParsedReply("refused")
    names = [f.name for f in schema.for_modality(modality)]
    try:
        table = json.loads(text or "")
        answers = {name: answer_of(table[name]) for name in names if name in table}
        strangers = any(
            set(a.probabilities) - set(schema[name].values or a.probabilities) for name, a in answers.items()
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ParsedReply("unusable", flags=("no-json",))
    if strangers or not answers:
        return ParsedReply("unusable", flags=("no-fields",))
    return ParsedReply("ok", answers, missing=1 - len(answers) / len(names))


def read_confidence(raw: Any) -> tuple[float | None, tuple[str, ...]]:
    """Read a confidence in any form, such as ``0.9``, ``"0.9"``, ``"95%"`` or ``"high"``: a share in [0, 1] or None.

    Flags: ``"percent"`` for 2 to 100 and ``"…%"``, ``"clamped"`` for what lies outside, ``"word"`` and
    ``"no-confidence"`` for what is not a number.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None, ("no-confidence",)
    flags: tuple[str, ...] = ()
    percent = False
    if isinstance(raw, str):
        text = raw.strip().replace(",", ".")
        percent = text.endswith("%")
        try:
            raw = float(text.rstrip("% "))
        except ValueError:
            return None, ("word",) if text else ("no-confidence",)
    if isinstance(raw, int) and abs(raw) > 10**9:
        raw = 1e9 if raw > 0 else -1e9  # the longest integers do not fit a float
    value = float(raw)
    if not math.isfinite(value):
        return None, ("no-confidence",)
    if percent or 2 <= value <= 100:
        value, flags = value / 100, ("percent",)
    if not 0 <= value <= 1:
        value, flags = min(1.0, max(0.0, value)), (*flags, "clamped")
    return value, flags


def _answer(schema: Schema, name: str, raw: Any) -> Answer:
    flags: list[str] = []
    share: Any = None
    if isinstance(raw, dict):
        entry = {_plain(str(key)): value for key, value in raw.items()}
        keys = (_VALUE_KEYS, _CONFIDENCE_KEYS)
        value, share = (next((entry[key] for key in known if key in entry), None) for known in keys)
    elif isinstance(raw, list) and len(raw) == 2 and isinstance(raw[1], int | float) and not isinstance(raw[1], bool):
        value, share = raw
    else:
        value, flags = raw, ["bare"]
    if isinstance(value, list):
        flags.append("list")
        value = value[0] if value else None
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, dict | list):
        flags.append("nested")
        value = None
    confidence, noticed = read_confidence(share)
    answer = schema.answer(name, value, confidence)
    return replace(answer, flags=(*answer.flags, *flags, *noticed))


@lru_cache(4096)
def _plain(name: str) -> str:
    """Return a field name as it is compared: letters and digits in lower case."""
    return re.sub(r"[\W_]", "", name).casefold()


def _without_thoughts(text: str, flags: list[str]) -> str:
    """Remove the thinking; a thought that never ends is removed to the end of the text."""
    rest = _THOUGHT_END.split(_THOUGHT.sub("", text))[-1]  # an end alone: the server removed the opening tag
    if rest != text:
        flags.append("thinking")
    return rest


def _table(value: Any, names: Mapping[str, str], flags: list[str], depth: int = 0) -> dict[str, Any]:
    """Find the fields in a JSON value: raw entry by field name."""
    if depth > _DEEPEST:
        return {}
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        named: dict[str, Any] = {}
        for entry in entries:
            plain = {_plain(str(key)): item for key, item in entry.items()}
            name = next((plain[key] for key in _NAME_KEYS if isinstance(plain.get(key), str)), None)
            if name is not None:
                named[name] = entry
        flags.append("list")
        if not named and len(entries) == 1:
            return _table(entries[0], names, flags, depth + 1)
        value = named or {key: item for entry in entries for key, item in entry.items()}
    if not isinstance(value, dict):
        return {}
    table = {names[_plain(str(key))]: item for key, item in value.items() if _plain(str(key)) in names}
    inner = [item for item in value.values() if isinstance(item, dict | list)]
    if not table and len(inner) <= 3:
        for item in inner:
            notes: list[str] = ["wrapped"]
            if deeper := _table(item, names, notes, depth + 1):
                flags.extend(notes)
                return deeper
    elif len(table) < len(value):
        flags.append("extra-fields")
    return table


def _objects(text: str) -> Iterator[tuple[Any, list[str]]]:
    """Yield the JSON values in a text, each with the flaws of its form."""
    form = ["fenced"] if "```" in text else []
    decoder = json.JSONDecoder()
    position = starts = 0
    inner: Any = None
    with suppress(ValueError):
        inner = json.loads(text) if text[0] == '"' else None  # JSON written as a JSON text
    if isinstance(inner, str) and inner.strip():
        yield from ((value, [*flags, "wrapped"]) for value, flags in _objects(inner.strip()))
        return
    while (match := _START.search(text, position)) and starts < _MOST_STARTS:
        start = match.start()
        starts += 1
        outside = "`\n\r\t jsonJSON"
        flags = [*form, *(["prose"] if text[:start].strip(outside) else [])]
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            segment, whole = _closed(text[start:])
            value, more = _repaired(segment)
            flags += [*([] if whole else ["truncated"]), *more]
            position = start + (len(segment) if whole and value is not None else 1)
        if isinstance(value, dict | list):
            if position > start + 1 and text[position:].strip(outside) and "prose" not in flags:
                flags.append("prose")
            yield value, flags


def _repaired(segment: str) -> tuple[Any, list[str]]:
    """Read an almost-JSON text: comments and trailing commas dropped, else as a Python literal."""
    plain = _COMMENT.sub(lambda m: m[1] or "", segment)
    flags = ["comments"] if plain != segment else []
    without = _TRAILING.sub(lambda m: m[1] or "", plain)
    flags += ["trailing-comma"] if without != plain else []
    for load, noticed in ((partial(json.loads, strict=False), []), (_literal, ["python"])):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return load(without), flags + noticed
    return None, flags


def _literal(text: str) -> Any:
    """Read a Python literal, as the JSON value that stands for it."""
    return json.loads(json.dumps(ast.literal_eval(text), default=str))


def _closed(text: str) -> tuple[str, bool]:
    """Return the object or list that a text begins with, and whether it is whole; else it is closed after an entry.

    One that is nested deeper than any answer gives ``""``.
    """
    stack: list[str] = []
    last = depth = 0  # where the last entry ends, and how many brackets are open there, all of them to the end
    for match in _TOKEN.finditer(text):
        token, end = match[0], match.end()
        if token in "{[":
            stack.append("}" if token == "{" else "]")
            if len(stack) > _DEEPEST:
                return "", False
        elif token in "}]":
            stack.pop()
            if not stack:
                return text[:end], True
            last, depth = end, len(stack)
        elif token == "," and len(stack) == 1:
            last, depth = end - 1, 1
    return text[:last] + "".join(reversed(stack[:depth])), False
