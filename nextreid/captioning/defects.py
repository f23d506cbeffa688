"""Defects of captions: what a composer that follows rules never writes."""

import re

from ..data.captions import LISTED_CHOICES, UNFILLED_SLOT, UNKNOWN
from .text import AN, DOUBLED

_COLOR = re.compile(r"\b(?:black|white|gr[ae]y|red|blue|green|yellow|orange|brown|purple|pink|beige|silver)\b")

DEFECTS: dict[str, re.Pattern[str]] = {
    "empty": re.compile(r"\A\s*\Z"),
    "unknown": UNKNOWN,
    "carrying none": re.compile(r"\b(?:carrying|holding) (?:a )?none\b"),
    "none visible": re.compile(r"\bnone[ _]visible\b", re.IGNORECASE),
    "(possibly": re.compile(r"\((?:possibly|likely)\b", re.IGNORECASE),
    "unfilled slot": UNFILLED_SLOT,
    "choices left in": LISTED_CHOICES,
    "e.g. left in": re.compile(r"\be\.g\."),
    "words doubled": DOUBLED,
    "a before a vowel": re.compile(rf"\ba (?=[aeiou])(?:{AN.pattern})", re.IGNORECASE),
    "carrying handbag": re.compile(r"\bcarrying handbag\b"),
    "dress with dress": re.compile(r"\bdress with (?:a )?(?:\w+ )*dress\b"),
    "bright night": re.compile(r"\bnighttime in bright\b|\bbright nighttime\b"),
    "N/A": re.compile(r"\bn/a\b", re.IGNORECASE),
    "not ASCII": re.compile(r"[^\x00-\x7f]"),
}
"""Patterns by name, in the order of the report."""


def find_defects(caption: str, modality: str) -> tuple[str, ...]:
    """Return the names of a caption's defects: those of `DEFECTS`, and ``"color"`` where the modality shows none."""
    names = tuple(name for name, pattern in DEFECTS.items() if pattern.search(caption))
    return (*names, "color") if modality in ("nir", "tir") and _COLOR.search(caption) else names
