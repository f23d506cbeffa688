"""Captions that are missing, stray, damaged, or longer than the text tower's window."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...captioning.defects import DAMAGE
from ...captioning.text import UNKNOWN
from ..sample import ReIDDataset
from .findings import Finding, Level, each_sample, found, tally

# level, code, its name among the damages, what to show an example of, what is so, what to do
_DAMAGES: tuple[tuple[Level, str, str, re.Pattern[str], str, str], ...] = (
    (
        "warning",
        "open-slot",
        "unfilled slot",
        re.compile(r"\["),
        "with a slot that was never filled",
        "caption them again",
    ),
    ("warning", "menu", "menu left in", re.compile(r"\|"), "that list choices instead of one", "keep one choice"),
    ("note", "unknown-word", "unknown", UNKNOWN, "that say something is unknown", "better leave such parts out"),
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
        dataset: A set with captions; of one without any, nothing is said.
        count_tokens: Number of tokens of a text with the start and end marks; None leaves lengths unchecked.
        window: Most tokens that the text tower reads at once.
    """
    captions = list(_each_caption(dataset))
    if not captions:
        return []
    findings = [*_presence(dataset, captions), *_damage(captions)]
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
        *_places("warning", "no-caption", "images without caption", "caption them, or do without captions", missing),
        *_places("warning", "stray-caption", "captions whose image is missing", "check the paths", stray),
        *_places("warning", "blank-caption", "captions without a word", "caption these images again", blank),
    ]


def _damage(captions: list[_Caption]) -> list[Finding]:
    total = Counter(caption.place for caption in captions)
    findings = []
    for level, code, damage, mark, what, remedy in _DAMAGES:
        hits = [c for c in captions if DAMAGE[damage](c.text)]
        if hits:
            places = [c.place for c in hits]
            where = _shares(places, total) if level == "note" else tally(places)
            names = (f"{c.place} {c.key}: {_around(c.text, mark)}" for c in hits)
            findings.append(found(level, code, f"captions {what}: {len(hits):,} ({where})", remedy, names))
    return findings


def _lengths(captions: list[_Caption], count_tokens: Callable[[str], int], window: int) -> list[Finding]:
    known: dict[str, int] = {}

    def tokens(text: str) -> int:
        if text not in known:
            known[text] = count_tokens(text)
        return known[text]

    findings = []
    runs = [(c, s) for c in captions for s in c.sentences if tokens(s) > window]
    if runs:
        names = [f"{c.place} {c.key}: {tokens(s)} tokens: {s[:60]}…" for c, s in runs]
        places = tally(c.place for c, _ in runs)
        message = f"sentences longer than the text tower's window of {window} tokens: {len(runs):,} ({places})"
        remedy = "they are read in pieces that are cut between words: split them into sentences"
        findings.append(found("warning", "long-sentence", message, remedy, names))
    long = [c for c in captions if tokens(c.text) > window]
    if long:
        shares = _shares((c.place for c in long), Counter(c.place for c in captions))
        names = [f"{c.place} {c.key}: {tokens(c.text)} tokens" for c in long]
        message = f"captions longer than the text tower's window of {window} tokens: {len(long):,} ({shares})"
        remedy = "nothing is cut: their sentences are packed into several windows; models that cut lose the end"
        findings.append(found("note", "long-caption", message, remedy, names))
    return findings


def _around(text: str, mark: re.Pattern[str], width: int = 30) -> str:
    match = mark.search(text)
    assert match is not None
    start, end = max(0, match.start() - width), min(len(text), match.end() + width)
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _shares(places: Iterable[str], total: Counter[str]) -> str:
    return ", ".join(f"{place} {count / total[place]:.1%}" for place, count in Counter(places).items())


def _places(level: Level, code: str, what: str, remedy: str, pairs: list[tuple[str, str]]) -> list[Finding]:
    if not pairs:
        return []
    message = f"{what}: {len(pairs):,} ({tally(place for place, _ in pairs)})"
    return [found(level, code, message, remedy, map(" ".join, pairs))]
