"""Names that somebody typed, and the message about one that does not exist."""

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

_LONGEST = 80


def clip(text: str, length: int = 120) -> str:
    """Return a text of at most `length` characters; a longer one loses its middle."""
    return text if len(text) <= length else f"{text[: length - length // 4 - 5]} ... {text[-(length // 4) :]}"


def show(value: object) -> str:
    """Return the repr of a value for a message, so short that no input makes a long message."""
    return clip(repr(value), _LONGEST)


def first_few(names: Iterable[object], count: int = 3) -> str:
    """Return the first names, each clipped, with dots where there are more: a message of bounded length."""
    shown = list(names)
    return ", ".join(clip(str(name)) for name in shown[:count]) + (", …" if len(shown) > count else "")


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that a misspelled one may stand for, nearest first, whatever their case."""
    by_lower = {option.lower(): option for option in known}
    near = difflib.get_close_matches(name[:_LONGEST].lower(), by_lower, n=3, cutoff=0.6)
    return [by_lower[option] for option in near]


def unknown(what: str, names: str | Iterable[str], known: Iterable[str]) -> str:
    """Return the message about one unknown name or several: what was probably meant, and all there is.

    Example:
        >>> unknown("fruit", "aple", ["apple", "pear"])
        "unknown fruit 'aple'. Did you mean 'apple'? Known: apple, pear"
    """
    wrong, options = [names] if isinstance(names, str) else sorted(names), list(known)
    near = dict.fromkeys(option for name in wrong[:3] for option in closest(name, options))
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"unknown {what} {', '.join(map(show, wrong[:3]))}{more}.{hint} Known: {', '.join(options) or 'none'}"


def select(names: Iterable[str], wildcards: str | Sequence[str] = "", exclude: str | Sequence[str] = "") -> list[str]:
    """Return the names that match a shell-style wildcard, or one of several, in natural order (``b2`` before ``b16``).

    As in timm, a wildcard without a dot matches ``arch.tag`` by its architecture.

    Args:
        names: Such as ``"next_tiny"`` or ``"next_tiny.synthetic_persons"``.
        wildcards: Those to keep; ``""`` for all.
        exclude: Those to leave out.
    """
    keep, drop = ([w for w in ([some] if isinstance(some, str) else some) if w] for some in (wildcards, exclude))

    def matches(name: str, patterns: list[str]) -> bool:
        arch = name.partition(".")[0]
        return any(fnmatchcase(name, p) or ("." not in p and fnmatchcase(arch, p)) for p in patterns)

    chosen = {name for name in names if matches(name, keep or ["*"]) and not matches(name, drop)}
    return sorted(chosen, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
