"""From the nearest entries to an identity, its probability, or unknown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextreid._names import show

from .calibration import CALIBRATION, Calibration
from .gallery_entry import Entry


class Hit(NamedTuple):
    """One answer of a search.

    Attributes:
        entry: What was found.
        score: Cosine of its vector and the query's; None where entries were not ranked.
    """

    entry: Entry
    score: float | None


class Match(NamedTuple):
    """Who a query shows.

    Attributes:
        identity: None: unknown.
        probability: That it shows the likeliest identity, named or not; 0 where no entry has an identity.
        hit: The nearest entry of that identity; None where no entry has one.
    """

    identity: str | None
    probability: float
    hit: Hit | None

    def __str__(self) -> str:
        if self.identity is not None:
            return f"identity {self.identity}, probability {self.probability:.2f}"
        near = "" if self.hit is None else f"; nearest is {self.hit.entry.identity}, probability {self.probability:.2f}"
        return f"unknown{near}"


def find_calibration(folder: Path, about: Mapping[str, Any]) -> Calibration:
    """Read the calibration of a gallery: from its folder, else from that of its model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is of another model, or of vectors that were made otherwise.
    """
    checkpoint = about.get("checkpoint")
    places = [folder, *([Path(checkpoint)] if checkpoint else [])]
    text = "" if about.get("text") else " --no-text"
    command = f"nextreid calibrate MODEL --dataset NAME --cross{text} --out {folder}"
    place = next((place for place in places if (place / CALIBRATION).is_file()), None)
    if place is None:
        raise FileNotFoundError(
            f"gallery {folder} has no {CALIBRATION}, which says what a score means: {command!r} makes it"
        )
    calibration = Calibration.read(place)
    captions = "yes" if about.get("text") else "no"
    wanted = {"digest": about.get("digest"), "embedding": about.get("embedding"), "captions": captions}
    for name, ours in wanted.items():
        theirs = calibration.about.get(name)
        if name in calibration.about and theirs != ours and (name != "digest" or None not in (ours, theirs)):
            raise ValueError(
                f"{place / CALIBRATION} has {name} {show(theirs)}, gallery {folder} has {show(ours)}: calibrate the "
                f"gallery's model as it is used here: {command!r}"
            )
    return calibration


def match_hits(
    hits: Sequence[Hit],
    calibration: Calibration,
    shown: tuple[Sequence[str], Sequence[str]],
    identities: int,
    complete: bool,
    enrolled: float,
    least: float,
    false_match_rate: float | None,
) -> Match:
    """Judge the nearest entries of one query; see `Gallery.match`.

    Args:
        hits: Nearest first.
        calibration: Of the model.
        shown: Modalities of the query and of the entries.
        identities: How many the gallery has.
        complete: Whether the hits are all entries. Else each identity that is not among them is counted as if its best
            entry had the score of the last hit: the probability is rather too low.
        enrolled: Probability that the query's identity is in the gallery.
        least: Probability below which the answer is unknown.
        false_match_rate: Whose threshold the score must reach as well.
    """
    best = dict[str, Hit]()
    for hit in hits:
        if hit.entry.identity is not None:
            best.setdefault(str(hit.entry.identity), hit)
    if not best:
        return Match(None, 0.0, None)
    unseen = 0 if complete else identities - len(best)
    scores = np.array([hit.score for hit in best.values()] + [hits[-1].score] * unseen, np.float64)
    probabilities = calibration.identify(calibration.curve(*shown).odds(scores), enrolled)
    hit, probability = next(iter(best.values())), float(probabilities[0])
    named = probability >= least
    if named and false_match_rate is not None:
        named = scores[0] >= calibration.threshold(false_match_rate, *shown)
    return Match(str(hit.entry.identity) if named else None, probability, hit)
