"""What captions reveal, compared with chance: agreement of annotators and images, retrieval by words."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from ..retrieval import Identities, get_protocol, rank

WORD = re.compile(r"\b\w\w+\b")


class Agreement(NamedTuple):
    """Agreement of two annotators on the items that both annotated: their number, the share they agree on, and kappa.

    Cohen's kappa is ``(share - chance) / (1 - chance)``, 1 for full agreement, 0 for chance; 1 if both always give the
    same single value. Share and kappa are nan without a common item.
    """

    pairs: int
    share: float
    kappa: float


class Consistency(NamedTuple):
    """Share of the pairs of images that agree: of one identity, and of two; nan if there is no such pair."""

    same: float
    other: float


class TextRetrieval(NamedTuple):
    """Retrieval by text alone: queries with a match, metrics in [0, 1], and what a random order would give."""

    queries: int
    mAP: float
    rank1: float
    chance_mAP: float
    chance_rank1: float


def cohen_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Agreement:
    """Compare two annotators of the same items; None: not annotated (Cohen, "A coefficient of agreement", 1960)."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return Agreement(0, float("nan"), float("nan"))
    n = len(both)
    share = sum(a == b for a, b in both) / n
    left, right = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(count * right[value] for value, count in left.items()) / n**2
    return Agreement(n, share, (share - chance) / (1 - chance) if chance < 1 else 1.0)


def identity_consistency(values: Sequence[Hashable | None], identities: Sequence[int]) -> Consistency:
    """Compare agreement within identities with agreement between them, over all pairs of n images with a value.

    For a field that tells identities apart the first share is large and the second small.
    """
    of_identity: dict[int, Counter[Hashable]] = defaultdict(Counter)
    for value, pid in zip(values, identities, strict=True):
        if value is not None:
            of_identity[pid][value] += 1

    def pairs(counts: Counter[Hashable]) -> np.ndarray:
        return np.array([sum(c * (c - 1) for c in counts.values()), counts.total() * (counts.total() - 1)])

    same = sum(map(pairs, of_identity.values()), np.zeros(2, dtype=np.int64))
    other = pairs(sum(of_identity.values(), Counter())) - same
    return Consistency(*(float(agree / total) if total else float("nan") for agree, total in (same, other)))


def word_features(texts: Sequence[str], min_count: int = 2) -> np.ndarray:
    """Weigh the words and word pairs of each text, see `term_features`."""
    words = [WORD.findall(text.lower()) for text in texts]
    return term_features([Counter([*w, *(f"{a} {b}" for a, b in pairwise(w))]) for w in words], min_count)


def term_features(counted: Sequence[Counter[str]], min_count: int = 1) -> np.ndarray:
    """Weigh the counted terms of n texts by TF-IDF: ``(n, terms)`` float32, rows of unit length or zero.

    A term that occurs c times in a text and in d of the texts weighs ``(1 + ln c) (1 + ln((1 + n) / (1 + d)))``; one
    that occurs in fewer than `min_count` texts is left out.
    """
    n, spread = len(counted), Counter(chain.from_iterable(counted))
    columns = {term: i for i, term in enumerate(t for t, d in spread.items() if d >= min_count)}
    features = np.zeros((n, max(1, len(columns))), dtype=np.float32)
    for row, terms in zip(features, counted, strict=True):
        for term in terms.keys() & columns:
            row[columns[term]] = (1 + np.log(terms[term])) * (1 + np.log((1 + n) / (1 + spread[term])))
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def text_retrieval(features: np.ndarray, identities: Identities, protocol: str) -> TextRetrieval:
    """Rank each of n texts against all others under a protocol; one without a match under it is no query.

    Args:
        features: ``(n, F)`` features of the texts; query and gallery alike.
        identities: Labels of the n images.
        protocol: Rule for what a query ignores.

    Raises:
        ValueError: If no image has a match.
    """
    rule = get_protocol(protocol)
    matches, others = _counts(identities, rule.exclude)
    queries = np.flatnonzero(matches)
    if not len(queries):
        raise ValueError(f"no image has a match under the protocol {rule.name!r}; {rule.hint}")
    keys = [str(place) for place in range(len(features))]  # without them each text would find itself first
    asked = [keys[place] for place in queries]
    result = rank(
        features[queries], features, identities[queries], identities, rule, query_keys=asked, gallery_keys=keys
    )
    mean_ap, rank_1 = (float(np.nanmean(result.per_query(metric))) for metric in ("mAP", "rank-1"))
    return TextRetrieval(len(queries), mean_ap, rank_1, *chance(matches[queries], others[queries]))


def chance(matches: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return mean average precision and rank-1 that a random order is expected to have.

    With R matches among N entries and ``H = 1 + 1/2 + … + 1/N``, the expected average precision is
    ``(H + (R - 1) (N - H) / (N - 1)) / N`` and the first entry is a match with probability ``R / N``. Both arguments
    are ``(Q,)``: R of each query, at least 1, and N - R.
    """
    total = matches + others
    harmonic = np.cumsum(1 / np.arange(1, total.max() + 1))[total - 1]
    rest = np.where(total > 1, (matches - 1) * (total - harmonic) / np.maximum(total - 1, 1), 0.0)
    return float(((harmonic + rest) / total).mean()), float((matches / total).mean())


def _counts(identities: Identities, exclude: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the matches and the other entries of each image, without those that the protocol excludes."""
    pid = identities.pid
    places = {"camera": identities.camid, "scene": identities.sceneid, "none": np.arange(len(pid))}
    _, of_pid, pids = np.unique(pid, return_inverse=True, return_counts=True)
    _, of_both, both = np.unique(np.array((pid, places[exclude])), axis=1, return_inverse=True, return_counts=True)
    matches = np.where(pid < 0, 0, pids[of_pid] - both[of_both.ravel()])  # an unknown identity matches nothing
    return matches, len(pid) - pids[of_pid]
