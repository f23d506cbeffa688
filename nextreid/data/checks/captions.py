"""Captions that are missing, defective, longer than the text tower's window, or belong to no image."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import zip_longest
from typing import NamedTuple

from ..captions import LISTED_CHOICES, UNFILLED_SLOT, UNKNOWN
from ..sample import ReIDDataset
from .findings import Finding, Level, each_sample, found, found_in, tally

# level, code, pattern, what is wrong, what to do
_DEFECTS: tuple[tuple[Level, str, re.Pattern[str], str, str], ...] = (
    ("warning", "open-slot", UNFILLED_SLOT, "with a slot that was never filled", "caption them again"),
    ("warning", "choices", LISTED_CHOICES, "that list choices instead of one", "keep one choice"),
    ("note", "unknown-word", UNKNOWN, "that say something is unknown", "better leave such parts out"),
)


class _Caption(NamedTuple):
    place: str
    key: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def check_captions(
    dataset: ReIDDataset, count_tokens: Callable[[str], int] | None = None, window: int = 77
) -> list[Finding]:
    """Return the findings about captions.

    Args:
        dataset: A dataset with captions; one without any has no findings.
        count_tokens: Number of tokens of a text with the start and end marks; None leaves lengths unchecked.
        window: Most tokens that the text tower reads at once.
    """
    captions: list[_Caption] = []
    missing: list[tuple[str, str]] = []
    stray: list[tuple[str, str]] = []
    for split, sample in each_sample(dataset):
        for modality, image, sentences in zip_longest(dataset.modalities, sample.images, sample.captions, fillvalue=()):
            place = (f"{split} {modality}", sample.key)
            if sentences:
                captions.append(_Caption(*place, sentences))
            if bool(sentences) == (image is None):
                (stray if sentences else missing).append(place)
    if not captions:
        return []
    blank = [(c.place, c.key) for c in captions if not any(char.isalpha() for char in c.text)]
    return [
        *found_in("warning", "no-caption", "images without caption", "caption them, or do without captions", missing),
        *found_in("warning", "stray-caption", "captions whose image is missing", "check the paths", stray),
        *found_in("warning", "blank-caption", "captions without a word", "caption these images again", blank),
        *_defects(captions),
        *(_lengths(captions, cache(count_tokens), window) if count_tokens else ()),
    ]


def _defects(captions: list[_Caption]) -> Iterator[Finding]:
    total = Counter(caption.place for caption in captions)
    for level, code, pattern, what, hint in _DEFECTS:
        if hits := [(c, match) for c in captions if (match := pattern.search(c.text))]:
            places = [c.place for c, _ in hits]
            where = _shares(places, total) if level == "note" else tally(places)
            names = (f"{c.place} {c.key}: {_excerpt(match)}" for c, match in hits)
            yield found(level, code, f"captions {what}: {len(hits):,} ({where})", hint, names)


def _lengths(captions: list[_Caption], tokens: Callable[[str], int], window: int) -> Iterator[Finding]:
    def finding(level: Level, code: str, what: str, where: str, hint: str, names: list[str]) -> Iterator[Finding]:
        if names:
            message = f"{what} longer than the text tower's window of {window} tokens: {len(names):,} ({where})"
            yield found(level, code, message, hint, names)

    sentences = [(c, s) for c in captions for s in c.sentences if tokens(s) > window]
    names = [f"{c.place} {c.key}: {tokens(s)} tokens: {s[:60]}…" for c, s in sentences]
    hint = "they are read in pieces that are cut between words: split them into sentences"
    yield from finding("warning", "long-sentence", "sentences", tally(c.place for c, _ in sentences), hint, names)
    long = [c for c in captions if tokens(c.text) > window]
    names = [f"{c.place} {c.key}: {tokens(c.text)} tokens" for c in long]
    shares = _shares((c.place for c in long), Counter(c.place for c in captions))
    hint = "nothing is cut: their sentences are packed into several windows; models that cut lose the end"
    yield from finding("note", "long-caption", "captions", shares, hint, names)


def _excerpt(match: re.Match[str], width: int = 30) -> str:
    text, start, end = match.string, max(0, match.start() - width), match.end() + width
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _shares(places: Iterable[str], total: Counter[str]) -> str:
    return ", ".join(f"{place} {count / total[place]:.1%}" for place, count in Counter(places).items())
