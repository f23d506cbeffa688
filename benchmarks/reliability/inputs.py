"""Inputs that are almost right: valid documents with a few edits, as hypothesis strategies."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 10**9, -(10**12), 10**400, 0.5, 1e308, math.nan, math.inf),
    *("", " ", "x", "=1+1", "nan", "1e999", "-1", "²", "\x00", "\ud800", "x" * 5000),
    *("..", "../../x", "/etc/passwd", "~/x", "C:\\x", "http://127.0.0.1:9/x", "hf-hub:a/b"),
    *([], [None], [[[[]]]], ["x", 1], [0] * 5000, {}, {"x": None}, {"": {"": {}}}),
    *({"file": "x"}, {"checkpoint_path": "x.pth"}, {"pretrained": True}),
)
"""Values that stand where none of their type or size is meant."""

_PIECES = st.sampled_from(
    [
        *"\x00\n,;\t\"'{}[]:=\\/²é\ufeff\u202e",
        "\r\n",
        "..",
        "-1",
        "1e999",
        "nan",
        "<end_of_text>",
        "[" * 3000,
        "x" * 3000,
    ]
)


@st.composite
def text_near(draw: st.DrawFn, valid: str, most: int = 4) -> str:
    """A text with up to `most` pieces of it removed, repeated, moved or replaced."""
    text = valid
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        middle = draw(st.one_of(st.just(""), st.just(text[start:end] * 3), _PIECES, st.text(max_size=8)))
        text = text[:start] + middle + text[end:]
    return text


@st.composite
def bytes_near(draw: st.DrawFn, valid: bytes, most: int = 4) -> bytes:
    """Bytes with up to `most` of their bits flipped, stretches of them removed or repeated, or their end cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        edit = draw(st.sampled_from(("flip", "flip", "remove", "repeat", "cut", "insert")))
        if edit == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif edit == "remove":
            del data[place : place + draw(st.integers(1, 64))]
        elif edit == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        elif edit == "cut":
            del data[place:]
        elif edit == "insert":
            data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


@st.composite
def json_near(draw: st.DrawFn, valid: Any, most: int = 2) -> str:
    """The JSON text of a value of which up to `most` parts are replaced by odd ones, removed or added."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(_paths(value))))
        edit, odd = (
            draw(st.sampled_from(("replace", "replace", "remove", "add"))),
            copy.deepcopy(draw(st.sampled_from(ODD))),
        )
        if not path:
            value = odd if edit == "replace" and draw(st.integers(0, 9)) == 0 else value
            continue
        *way, last = path
        holder = value
        for step in way:
            holder = holder[step]
        if edit == "replace":
            holder[last] = odd
        elif edit == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[
                draw(st.sampled_from(("x", "", "file", "pretrained", "checkpoint_path", "weights", "__class__")))
            ] = odd
    return json.dumps(value)


def _paths(value: Any, path: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    yield tuple(path)
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _paths(item, (*path, key))
