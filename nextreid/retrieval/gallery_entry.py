"""What a gallery knows of one vector, and conditions on it."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeAlias

from nextreid._names import show, unknown
from nextreid._schema import mapping, plain_texts, text

Where: TypeAlias = Mapping[str, Any]
"""Conditions that all hold: a name and its value; a list of values, one of which it has; a pair ``(low, high)`` between
which it lies, None for no end."""

COLUMNS = ("key", "identity", "camera", "time", "modalities", "source", "caption", "metadata")
FIXED = ("key", "identity", "camera", "time", "modalities")
_key, _sources, _plain = text(1000), mapping(text()), mapping(plain_texts, 1000)
_VALUE = "CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE CAST(value AS TEXT) END"


@dataclass(frozen=True)
class Entry:
    """What is known of one vector.

    Attributes:
        key: Unique in its gallery; empty for one that the gallery chooses.
        identity: Any name or number; None where unknown.
        camera: Likewise.
        time: When it was seen: seconds since 1970, a `datetime`, or ISO text such as ``"2026-11-28T21:00"``; kept as
            seconds. None where unknown.
        modalities: Those that the vector was made of; empty for all of the gallery's.
        source: Files of the images by modality.
        caption: Sentences by modality.
        metadata: Anything plain: numbers, texts, lists and mappings of them.

    Raises:
        ValueError: A value does not fit; names it.

    Example:
        >>> Entry("a.png", identity="anna", camera=3, metadata={"upper_clothing_color": "red"}).camera
        '3'
    """

    key: str = ""
    identity: str | int | None = None
    camera: str | int | None = None
    time: Any = None
    modalities: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    caption: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("key", _portable(_key("key", self.key)))
        put("identity", as_label("identity", self.identity))
        put("camera", as_label("camera", self.camera))
        put("time", as_seconds(self.time))
        put("modalities", (self.modalities,) if isinstance(self.modalities, str) else tuple(self.modalities))
        put("source", _sources(f"source of {show(self.key)}", {k: str(v) for k, v in dict(self.source).items()}))
        caption = {name: (value,) if isinstance(value, str) else value for name, value in dict(self.caption).items()}
        put("caption", {k: tuple(v) for k, v in _plain(f"caption of {show(self.key)}", caption).items()})
        put("metadata", json.loads(json.dumps(_plain(f"metadata of {show(self.key)}", self.metadata))))
        if wrong := sorted(set(self.metadata) & set(COLUMNS)):
            raise ValueError(f"metadata of {show(self.key)}: {', '.join(wrong)} is a field of its own, not metadata")

    def row(self) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        tables = (json.dumps(dict(table), sort_keys=True) for table in (self.source, self.caption, self.metadata))
        return self.key, self.identity, self.camera, self.time, "+".join(self.modalities), *tables

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "Entry":
        """The entry whose `row` this is: it was checked before it was stored."""
        entry, (key, identity, camera, time, modalities, *tables) = object.__new__(cls), row
        source, caption, metadata = ({} if table == "{}" else json.loads(table) for table in tables)
        caption = {name: tuple(sentences) for name, sentences in caption.items()}
        values = key, identity, camera, time, tuple(modalities.split("+")), source, caption, metadata
        for name, value in zip(COLUMNS, values, strict=True):
            object.__setattr__(entry, name, value)
        return entry

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as a JSON-able dictionary, without what is not."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["modalities"] = list(self.modalities)
        values["caption"] = {name: list(sentences) for name, sentences in self.caption.items()}
        return {name: value for name, value in values.items() if value not in (None, {}, "")}


def as_entry(value: "Entry | Mapping[str, Any]") -> Entry:
    """Return an entry as it is, or make one of a mapping whose unknown names are metadata."""
    if isinstance(value, Entry):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"an entry is an Entry or a mapping of its fields; got {show(value)}")
    known = {name: item for name, item in value.items() if name in COLUMNS}
    more = {name: item for name, item in value.items() if name not in COLUMNS}
    return Entry(**{**known, "metadata": {**known.get("metadata", {}), **more}})


def as_label(name: str, value: Any) -> str | None:
    """Return the text of a label; None for None, -1 and empty text."""
    if value is None:
        return None
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = str(int(value))
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, a whole number, or None; got {show(value)}")
    word = _portable(_key(name, value))
    return None if word in ("", "-1") else word


def as_seconds(value: Any) -> float | None:
    """Return a moment as seconds since 1970.

    Raises:
        ValueError: It is neither a number, a `datetime` nor ISO text.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(f"time must be seconds or like 2026-11-28T21:00; got {show(value)}") from error
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) < 1e12:
        raise ValueError(f"time must be seconds or like 2026-11-28T21:00; got {show(value)}")
    return float(value)


def condition(where: Where | None) -> tuple[str, list[Any]]:
    """Return the SQL of conditions on table ``entries``, and its parameters.

    Texts are compared without regard to the case of ASCII letters. A name that is no field is one of the metadata; a
    list there fits if one of its values does.
    """
    parts, values = ["1"], list[Any]()
    for name, wanted in (where or {}).items():
        if not isinstance(name, str) or not name or '"' in name or len(name) > 100:
            raise ValueError(f"a condition needs the name of a field or of metadata; got {show(name)}")
        pair = isinstance(wanted, tuple) and len(wanted) == 2
        options = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        if not options or len(options) > 10_000:
            raise ValueError(f"condition {name!r} takes 1 to 10,000 values; got {len(options)}")
        if name in ("source", "caption", "metadata"):
            raise ValueError(f"{unknown('field of a condition', name, FIXED)}, and the names of the metadata")
        column = name if name in FIXED else None
        inside = f"{column} " if column else "value "
        given = list[Any]()
        if pair:
            low, high = (as_seconds(end) if name == "time" else _end(name, end) for end in wanted)
            tests = [
                f"CAST({inside.strip()} AS REAL) {sign} ?"
                for sign, end in ((">=", low), ("<=", high))
                if end is not None
            ]
            given = [end for end in (low, high) if end is not None]
            test = " AND ".join([f"{inside}IS NOT NULL", *tests])
        elif name == "time":
            given = [as_seconds(option) for option in options]
            test = f"time IN ({', '.join('?' * len(given))})"
        else:
            given = [_as_text(option) for option in options]
            compared = inside if column else _VALUE
            test = f"({compared}) COLLATE NOCASE IN ({', '.join('?' * len(given))})"
            if name in ("identity", "camera") and None in options:
                test = f"({test} OR {column} IS NULL)"
        if column:
            parts.append(f"({test})")
            values += given
        else:
            parts.append(f"EXISTS (SELECT 1 FROM json_each(metadata, ?) WHERE {test})")
            values += [f'$."{name}"', *given]
    return " AND ".join(parts), values


def _end(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"condition {name!r}: a range needs numbers or None at its ends; got {show(value)}") from error


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return _portable(str(value))


def _portable(word: str) -> str:
    return word.encode("utf-8", "backslashreplace").decode()
