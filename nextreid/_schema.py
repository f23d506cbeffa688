"""What a value from a user or a file may be: small parsers that compose, each with a message for what does not fit."""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, Union, get_args, get_origin

from ._names import show, unknown

_LONGEST, _DEEPEST = 4096, 8
_NO = object()  # what a parser gives for a value that does not fit


class Kind(NamedTuple):
    """A kind of value: what it must be, in words, and how it becomes plain.

    Example:
        >>> whole(1, 8)("depth", numpy.int64(4))
        4
        >>> whole(1, 8)("depth", 9)
        ValueError: depth must be a whole number of 1 to 8; got 9
    """

    expected: str
    parse: Callable[[str, Any], Any]  # called with the name and the value; `_NO` if it does not fit

    def __call__(self, name: str, value: Any) -> Any:
        """Return the plain value; ValueError that names it if it does not fit."""
        plain_value = self.parse(name, value)
        if plain_value is _NO:
            raise ValueError(f"{name} must be {self.expected}; got {show(value)}")
        return plain_value


def whole(low: int, high: int) -> Kind:
    """Whole numbers, numpy's too, from `low` to `high`."""

    def parse(name: str, value: Any) -> Any:
        plain = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
        return plain if plain is not None and low <= plain <= high else _NO

    return Kind(f"a whole number of {low} to {high}" if low < high else str(low), parse)


def number(low: float, high: float) -> Kind:
    """Numbers, numpy's too, from `low` to `high`; NaN is none."""

    def parse(name: str, value: Any) -> Any:
        if not isinstance(value, Real) or isinstance(value, bool):
            return _NO
        plain = int(value) if isinstance(value, Integral) else float(value)
        return plain if low <= plain <= high else _NO

    return Kind(f"a number of {low:g} to {high:g}", parse)


def text(most: int = _LONGEST) -> Kind:
    """Strings of at most `most` characters."""
    return Kind(
        f"a text of at most {most} characters",
        lambda name, value: value if isinstance(value, str) and len(value) <= most else _NO,
    )


def optional(kind: Kind) -> Kind:
    """None, or a value of a kind."""
    return Kind(f"{kind.expected}, or None", lambda name, value: None if value is None else kind.parse(name, value))


def either(*kinds: Kind) -> Kind:
    """A value of the first kind that it fits."""

    def parse(name: str, value: Any) -> Any:
        return next((found for kind in kinds if (found := kind.parse(name, value)) is not _NO), _NO)

    return Kind(", or ".join(kind.expected for kind in kinds), parse)


def choice(*allowed: str) -> Kind:
    """One of some words."""
    return Kind(
        f"one of {', '.join(allowed)}",
        lambda name, value: value if isinstance(value, str) and value in allowed else _NO,
    )


def listed(kind: Kind, low: int, high: int, what: str) -> Kind:
    """A tuple, from any list, of `low` to `high` values of a kind; a single string is one of them."""

    def parse(name: str, value: Any) -> Any:
        items = [value] if isinstance(value, str) else _items(value)
        if items is None or not low <= len(items) <= high:
            return _NO
        found = tuple(kind.parse(name, item) for item in items)
        return _NO if any(item is _NO for item in found) else found

    return Kind(what, parse)


def distinct(kind: Kind) -> Kind:
    """A list of a kind without repetition."""

    def parse(name: str, value: Any) -> Any:
        items = kind.parse(name, value)
        return _NO if items is not _NO and len(set(items)) < len(items) else items

    return Kind(kind.expected, parse)


def table(fields: Mapping[str, Kind], what: str = "setting", required: Sequence[str] = ()) -> Kind:
    """A mapping with some of the named fields, the required ones at least; its parts are named ``name.field``."""

    def parse(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return _NO
        if wrong := [key for key in value if key not in fields]:
            raise ValueError(f"{name.removesuffix(': ')}: {unknown(what, wrong, fields)}")
        if missing := [key for key in required if key not in value]:
            raise ValueError(f"{name.removesuffix(': ')} has no {what} {', '.join(missing)}")
        return {key: fields[key](_part(name, key), item) for key, item in value.items()}

    return Kind("a mapping from names to values", parse)


def mapping(kind: Kind, most: int = 100) -> Kind:
    """A mapping from any names to values of a kind."""

    def parse(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or len(value) > most or not all(_name(key) for key in value):
            return _NO
        return {key: kind(_part(name, key), item) for key, item in value.items()}

    return Kind(f"a mapping of at most {most} names", parse)


def _plain(strings: Kind, depth: int = _DEEPEST) -> Kind:
    def parse(name: str, value: Any) -> Any:
        for kind in (flag, whole(-(2**53), 2**53), number(-1e300, 1e300), strings):
            if (found := kind.parse(name, value)) is not _NO:
                return found
        if value is None:
            return None
        if depth and isinstance(value, Mapping):
            return mapping(_plain(strings, depth - 1)).parse(name, value)
        items = _items(value) if depth else None
        return _NO if items is None or len(items) > 1000 else tuple(_plain(strings, depth - 1)(name, i) for i in items)

    return Kind(f"plain: numbers, {strings.expected}, lists and mappings of them", parse)


def _part(name: str, key: str) -> str:
    return f"{name}{key}" if name.endswith(": ") else f"{name}.{key}"


def _is_flag(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's, and numpy's by either of its names


def _items(value: Any) -> list[Any] | None:
    listed_value = value.tolist() if type(value).__name__ == "ndarray" else value
    return (
        list(listed_value) if isinstance(listed_value, Sequence) and not isinstance(listed_value, str | bytes) else None
    )


def _name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100


flag = Kind("True or False", lambda name, value: bool(value) if _is_flag(value) else _NO)
word = Kind(
    "a name of letters, digits, '.', '_', '+' and '-'",
    lambda name, value: value if isinstance(value, str) and re.fullmatch(r"\w[\w.+-]{0,127}", value) else _NO,
)
plain_words = _plain(word)
"""Any plain value whose strings are names: no path and no address."""
plain_texts = _plain(text())
"""Any plain value."""

_OF_TYPES: dict[Any, Kind] = {
    int: whole(-1_000_000, 1_000_000),
    float: number(-1e9, 1e9),
    str: word,
    bool: flag,
}


def kinds_of(function: Callable[..., Any], skip: Sequence[str] = ()) -> dict[str, Kind]:
    """Kinds of a function's or a class's arguments by name, from their annotations."""
    parameters = inspect.signature(function).parameters
    return {name: _of_type(parameter.annotation) for name, parameter in parameters.items() if name not in skip}


def defaults_of(function: Callable[..., Any], skip: Sequence[str] = ()) -> dict[str, Any]:
    """Defaults of a function's or a class's arguments by name, of those that have one."""
    parameters = inspect.signature(function).parameters
    return {k: p.default for k, p in parameters.items() if k not in skip and p.default is not p.empty}


def _of_type(annotation: Any) -> Kind:
    if get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation):
        rest = [one for one in get_args(annotation) if one is not type(None)]
        return optional(_of_type(rest[0])) if len(rest) == 1 else plain_words
    return _OF_TYPES.get(annotation, plain_words)
