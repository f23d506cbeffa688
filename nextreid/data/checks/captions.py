"""Captions that are missing, defective, longer than the text tower's window, or belong to no image."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from ..captions import LISTED_CHOICES, UNFILLED_SLOT, UNKNOWN
from ..sample import ReIDDataset
from .findings import Finding, Level, each_sample, found, tally

# level, code, pattern, what is wrong, what to do
_DEFECTS: tuple[tuple[Level, str, re.Pattern[str], str, str], ...] = (
    ("warning", "open-slot", UNFILLED_SLOT, "with a slot that was never filled", "caption them again"),
    ("warning", "choices", LISTED_CHOICES, "that list choices instead of one", "keep one choice"),
    ("note", "unknown-word", UNKNOWN, "that say something is unknown", "better leave such parts out"),
)


@dataclass(frozen=True, slots=True)
class _Caption:
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
    captions = list(_each_caption(dataset))
    if not captions:
        return []
    findings = [*_presence(dataset, captions), *_defects(captions)]
    return findings if count_tokens is None else [*findings, *_lengths(captions, count_tokens, window)]


def _each_caption(dataset: ReIDDataset) -> Iterator[_Caption]:
    for split, sample in each_sample(dataset):
        for modality, sentences in zip(dataset.modalities, sample.captions, strict=False):
            if sentences:
                yield _Caption(f"{split} {modality}", sample.key, sentences)


def _presence(dataset: ReIDDataset, captions: list[_Caption]) -> list[Finding]:
    has = {(caption.place, caption.key) for caption in captions}
    missing, stray = [], []
    for split, sample in each_sample(dataset):
        for modality, image in zip(dataset.modalities, sample.images, strict=True):
            place = f"{split} {modality}"
            if image is not None and (place, sample.key) not in has:
                missing.append((place, sample.key))
            elif image is None and (place, sample.key) in has:
                stray.append((place, sample.key))
    blank = [(c.place, c.key) for c in captions if not any(char.isalpha() for char in c.text)]
    return [
        found("warning", code, f"{what}: {len(pairs):,} ({tally(p for p, _ in pairs)})", hint, map(" ".join, pairs))
        for code, what, hint, pairs in (
            ("no-caption", "images without caption", "caption them, or do without captions", missing),
            ("stray-caption", "captions whose image is missing", "check the paths", stray),
            ("blank-caption", "captions without a word", "caption these images again", blank),
        )
        if pairs
    ]


def _defects(captions: list[_Caption]) -> list[Finding]:
    total = Counter(caption.place for caption in captions)
    findings = []
    for level, code, pattern, what, hint in _DEFECTS:
        if hits := [(c, match) for c in captions if (match := pattern.search(c.text))]:
            places = [c.place for c, _ in hits]
            where = _shares(places, total) if level == "note" else tally(places)
            names = (f"{c.place} {c.key}: {_excerpt(match)}" for c, match in hits)
            findings.append(found(level, code, f"captions {what}: {len(hits):,} ({where})", hint, names))
    return findings


def _lengths(captions: list[_Caption], count_tokens: Callable[[str], int], window: int) -> list[Finding]:
    tokens = cache(count_tokens)
    findings = []
    sentences = [(c, s) for c in captions for s in c.sentences if tokens(s) > window]
    if sentences:
        names = [f"{c.place} {c.key}: {tokens(s)} tokens: {s[:60]}…" for c, s in sentences]
        places = tally(c.place for c, _ in sentences)
        message = f"sentences longer than the text tower's window of {window} tokens: {len(sentences):,} ({places})"
        hint = "they are read in pieces that are cut between words: split them into sentences"
        findings.append(found("warning", "long-sentence", message, hint, names))
    long = [c for c in captions if tokens(c.text) > window]
    if long:
        shares = _shares((c.place for c in long), Counter(c.place for c in captions))
        names = [f"{c.place} {c.key}: {tokens(c.text)} tokens" for c in long]
        message = f"captions longer than the text tower's window of {window} tokens: {len(long):,} ({shares})"
        hint = "nothing is cut: their sentences are packed into several windows; models that cut lose the end"
        findings.append(found("note", "long-caption", message, hint, names))
    return findings


def _excerpt(match: re.Match[str], width: int = 30) -> str:
    text, start, end = match.string, max(0, match.start() - width), match.end() + width
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _shares(places: Iterable[str], total: Counter[str]) -> str:
    return ", ".join(f"{place} {count / total[place]:.1%}" for place, count in Counter(places).items())
