"""Marks of damaged captions: what a composer that follows rules never writes."""

import re
from collections.abc import Callable

from .text import DOUBLED, UNKNOWN, with_article

_COLORS = r"black|white|gr[ae]y|red|blue|green|yellow|orange|brown|purple|pink|beige|silver"
_ARTICLE = re.compile(r"\b[Aa] ([aeiouAEIOU][\w-]*)")


def _wrong_article(caption: str) -> bool:
    return any(with_article(word)[1] == "n" for word in _ARTICLE.findall(caption))


def _found(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> Callable[[str], bool]:
    compiled = re.compile(pattern, flags)
    return lambda caption: bool(compiled.search(caption))


DAMAGE: dict[str, Callable[[str], bool]] = {
    "empty": lambda caption: not caption.strip(),
    "unknown": lambda caption: bool(UNKNOWN.search(caption)),
    "carrying none": _found(r"\b(?:carrying|holding) (?:a )?none\b"),
    "none visible": _found(r"\bnone[ _]visible\b", re.IGNORECASE),
    "(possibly": _found(r"\((?:possibly|likely)\b", re.IGNORECASE),
    "unfilled slot": _found(r"\[\w+\]"),
    "menu left in": _found(r"\|"),
    "e.g. left in": _found(r"\be\.g\."),
    "words doubled": lambda caption: bool(DOUBLED.search(caption)),
    "a before a vowel": _wrong_article,
    "carrying handbag": _found(r"\bcarrying handbag\b"),
    "dress with dress": _found(r"\bdress with (?:a )?(?:\w+ )*dress\b"),
    "bright night": _found(r"\bnighttime in bright\b|\bbright nighttime\b"),
    "N/A": _found(r"\bn/a\b", re.IGNORECASE),
    "not ASCII": _found(r"[^\x00-\x7f]"),
}
"""Marks by name, in the order of the report; each tells whether a caption has it."""

_HAS_COLOR = _found(rf"\b(?:{_COLORS})\b")


def damage_of(caption: str, modality: str) -> tuple[str, ...]:
    """Return the names of a caption's damages: those of `DAMAGE`, and ``"color"`` where the modality has none.

    Args:
        caption: The text.
        modality: ``"nir"`` and ``"tir"`` show no colours.
    """
    names = tuple(name for name, shows in DAMAGE.items() if shows(caption))
    return (*names, "color") if modality in ("nir", "tir") and _HAS_COLOR(caption) else names
