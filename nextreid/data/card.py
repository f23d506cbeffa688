"""What is known about each dataset: where it is obtained, its terms, its defects, what it shares with others."""

import json
import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nextreid._names import unknown

from .._names import first_few
from .sample import ReIDDataset

_logger = logging.getLogger(__name__)

_CARDS = Path(__file__).with_name("cards")
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two datasets that share identities."""

    trained_on: str  # dataset whose training split holds them
    test: str  # dataset whose query or gallery holds them
    rejected: bool  # whether evaluating on the one after training on the other is an error, or only a warning
    evidence: str  # what is shared and how it is known


@dataclass(frozen=True, slots=True, repr=False)
class DataCard:
    """What is known about one dataset.

    Attributes:
        name: Name for `load_dataset`.
        title: Its published name.
        what: One line.
        object_type: ``"person"`` or ``"vehicle"``.
        modalities: What it shows, in order.
        paper: Where it was published.
        obtain: Where it is obtained.
        terms: Under which terms, as far as known.
        counts: For each split that could be counted: samples, ids, cameras.
        layout: The published tree, by one file.
        protocol: Name of its protocol.
        captions: Who published captions of it.
        defects: What is wrong with it or surprises.
        overlaps: Other sets whose test identities its training split holds.
        checked: How counts and defects were found.
        last_checked: When, as ``"YYYY-MM-DD"``.
    """

    name: str
    title: str
    what: str
    object_type: str
    modalities: tuple[str, ...]
    paper: str
    obtain: tuple[str, ...]
    terms: str
    counts: Mapping[str, Mapping[str, int]]
    layout: str
    protocol: str
    captions: tuple[str, ...]
    defects: tuple[str, ...]
    overlaps: tuple[Overlap, ...]
    checked: str
    last_checked: str

    def __repr__(self) -> str:
        return f"DataCard({self.name!r}, {self.title!r}, {'+'.join(self.modalities)}, checked {self.last_checked})"

    def __str__(self) -> str:
        """Return the card as text to read."""
        counts = {s: ", ".join(f"{n:,} {what}" for what, n in found.items()) for s, found in self.counts.items()}
        overlaps = tuple(
            f"training here, evaluating on {overlap.test} ({'an error' if overlap.rejected else 'a warning'}): "
            f"{overlap.evidence}"
            for overlap in self.overlaps
        )
        entries: dict[str, str | tuple[str, ...]] = {
            "modalities": ", ".join(self.modalities),
            "paper": self.paper,
            "obtain": self.obtain,
            "terms": self.terms,
            "layout": self.layout,
            "protocol": self.protocol,
            **counts,
            "captions": self.captions or "none published",
            "defects": self.defects or "none known",
            "overlaps": overlaps or "none known",
            "checked": f"{self.last_checked}. {self.checked}",
        }
        lines = [*textwrap.wrap(f"{self.title} ({self.name}): {self.what}", _WIDTH), ""]
        for label, value in entries.items():
            text = [_wrap(value)] if isinstance(value, str) else [_wrap(f"- {item}", "  ") for item in value]
            lines.append(label.ljust(12) + "\n".join(text)[12:])
        return "\n".join(lines)


def list_cards() -> list[str]:
    """Return the names of the datasets that have a card, sorted."""
    return sorted(_read_cards())


def data_card(name: str) -> DataCard:
    """Return the card of a dataset.

    Raises:
        ValueError: If it has none.
    """
    cards = _read_cards()
    if name not in cards:
        raise ValueError(unknown("dataset card", name, sorted(cards)))
    return cards[name]


def missing_counts(dataset: ReIDDataset) -> list[str]:
    """Return in words what a published dataset lacks of the counts on its card: nothing where the copy is whole.

    Datasets without a card, or without counted samples, lack nothing.
    """
    card = _read_cards().get(dataset.name)
    lacking = []
    for split, found in dataset.summary().items():
        published = card.counts.get(split, {}) if card is not None else {}
        if "samples" not in published:
            continue
        parts = [f"{found[what]:,} of {count:,} {what}" for what, count in published.items() if found[what] < count]
        parts += [
            f"{count:,} of {published['samples']:,} {modality} images"
            for modality, count in found["images"].items()
            if count < min(found["samples"], published["samples"])
        ]
        if found["cameras"] < published.get("cameras", 0):
            there = sorted({sample.camid for sample in dataset.splits()[split]})
            parts.append(f"cameras there are {first_few((dataset.label_name('camid', n) for n in there), 12)}")
        lacking += [f"{split}: {', '.join(parts)}"] if parts else []
    return lacking


def list_overlaps() -> tuple[Overlap, ...]:
    """Return the pairs of datasets that are known, or suspected, to share training and test identities."""
    return tuple(overlap for card in _read_cards().values() for overlap in card.overlaps)


def reject_leak(trained_on: str | Sequence[str], test_set: str, allow: bool = False) -> None:
    """Raise an error before a model is evaluated on identities that it was trained on.

    Datasets without a card, such as custom ones, pass: nothing is known about them. A suspected overlap, or one that
    is allowed, is logged as a warning.

    Args:
        trained_on: Name of the dataset that the model was trained on, or the names of several.
        test_set: Name of the dataset that it is evaluated on.
        allow: Whether to go on all the same.

    Raises:
        ValueError: If the test identities of `test_set` are known to be in a training split and `allow` is False;
            names the evidence and what to do.
    """
    names = {trained_on} if isinstance(trained_on, str) else set(trained_on)
    for overlap in list_overlaps():
        if overlap.trained_on not in names or overlap.test != test_set:
            continue
        if overlap.rejected and not allow:
            raise ValueError(
                f"a model trained on {overlap.trained_on} must not be evaluated on {test_set}: {overlap.evidence}. The "
                "metrics would not be those of unseen identities. To compute them all the same pass allow=True "
                "(--allow-leak), and state it wherever you report them"
            )
        _logger.warning("trained on %s, evaluated on %s: %s", overlap.trained_on, test_set, overlap.evidence)


@cache
def _read_cards() -> dict[str, DataCard]:
    return {path.stem: _read_card(path) for path in sorted(_CARDS.glob("*.json"))}


def _read_card(path: Path) -> DataCard:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for field in ("modalities", "obtain", "captions", "defects"):
        fields[field] = tuple(fields[field])
    fields["overlaps"] = tuple(Overlap(trained_on=fields["name"], **entry) for entry in fields["overlaps"])
    return DataCard(**fields)


def _wrap(text: str, hang: str = "") -> str:
    indent = " " * 12
    # links are never broken over lines
    wrapper = textwrap.TextWrapper(_WIDTH, indent, indent + hang, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)
