"""Names that somebody typed, and the message about one that does not exist."""

import difflib
from collections.abc import Iterable

_LONGEST = 80


def show(value: object) -> str:
    """Return the repr of a value for a message, cut in the middle so that no input makes a long message."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]} ... {text[-15:]}"


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
