"""What captions alone reveal of an identity: retrieval by their words, compared with chance."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..retrieval import Identities, get_protocol, rank

_WORD = re.compile(r"\b\w\w+\b")


class TextRetrieval(NamedTuple):
    """Retrieval by text alone: queries with a match, metrics in [0, 1], and what a random order would give."""

    queries: int
    mAP: float
    rank1: float
    chance_mAP: float
    chance_rank1: float


def word_features(texts: Sequence[str], min_count: int = 2) -> np.ndarray:
    """Weigh the words and word pairs of each text, see `term_features`."""
    words = [_WORD.findall(text.lower()) for text in texts]
    return term_features([Counter([*w, *(f"{a} {b}" for a, b in pairwise(w))]) for w in words], min_count)


def term_features(counted: Sequence[Counter[str]], min_count: int = 1) -> np.ndarray:
    """Weigh the terms of each text (TF-IDF).

    A term that occurs c times in a text and in d of the n texts weighs ``(1 + ln c) (1 + ln((1 + n) / (1 + d)))``; rows
    are scaled to unit length.

    Args:
        counted: The terms of n texts, counted.
        min_count: In how many texts a term must occur to be used.

    Returns:
        ``(n, terms)`` float32; a row of zeros if a text has no term.
    """
    n = len(counted)
    spread: Counter[str] = Counter()
    for terms in counted:
        spread.update(terms.keys())
    columns = {term: i for i, term in enumerate(t for t, d in spread.items() if d >= min_count)}
    weight = {term: 1 + np.log((1 + n) / (1 + spread[term])) for term in columns}
    features = np.zeros((n, max(1, len(columns))), dtype=np.float32)
    for row, terms in zip(features, counted, strict=True):
        for term, count in terms.items():
            if term in columns:
                row[columns[term]] = (1 + np.log(count)) * weight[term]
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def text_retrieval(features: np.ndarray, identities: Identities, protocol: str) -> TextRetrieval:
    """Rank each text against all others under a protocol.

    Args:
        features: ``(n, F)`` features of the texts; query and gallery alike.
        identities: Labels of the n images.
        protocol: Rule for what a query ignores. An image without a match under it is no query.

    Returns:
        The metrics, and what chance gives.

    Raises:
        ValueError: If no image has a match.
    """
    rule = get_protocol(protocol)
    matches, others = _counts(identities, rule.exclude)
    queries = np.flatnonzero(matches)
    if not len(queries):
        raise ValueError(f"no image has a match under the protocol {rule.name!r}; {rule.hint}")
    labels = (identities.pid, identities.camid, identities.sceneid)
    asked = Identities(*(np.asarray(column)[queries] for column in labels))
    result = rank(features[queries], features, asked, identities, rule)
    chance_map, chance_first = chance(matches[queries], others[queries])
    return TextRetrieval(len(queries), result.mAP, result.metric("rank-1"), chance_map, chance_first)


def chance(matches: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return mean average precision and rank-1 that a random order is expected to have.

    With R matches among N entries and ``H = 1 + 1/2 + … + 1/N``, the expected average precision is
    ``(H + (R - 1) (N - H) / (N - 1)) / N`` and the first entry is a match with probability ``R / N``.

    Args:
        matches: ``(Q,)`` number of matches R of each query, at least 1.
        others: ``(Q,)`` number of other entries, N - R.
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
    matches = pids[of_pid] - both[of_both.ravel()]
    return matches, len(pid) - pids[of_pid]
