"""Agreement of two annotators, and of the images of one identity, compared with chance."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """Agreement of two annotators.

    Attributes:
        pairs: Number of items that both annotated.
        share: Share of them on which they agree; nan if there is none.
        kappa: Cohen's kappa: ``(share - chance) / (1 - chance)``, 1 for full agreement, 0 for chance; 1 if both always
            give the same single value.
    """

    pairs: int
    share: float
    kappa: float


def cohen_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Agreement:
    """Compare two annotators (Cohen, "A coefficient of agreement for nominal scales", 1960).

    Args:
        first: Values of one annotator; None: not annotated.
        second: Values of the other, about the same items in the same order.

    Returns:
        Agreement over the items that both annotated.

    Raises:
        ValueError: If the lengths differ.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return Agreement(0, float("nan"), float("nan"))
    n = len(both)
    share = sum(a == b for a, b in both) / n
    left, right = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(count * right[value] for value, count in left.items()) / n**2
    return Agreement(n, share, (share - chance) / (1 - chance) if chance < 1 else 1.0)


class Consistency(NamedTuple):
    """Share of the pairs of images that agree: of one identity, and of two; nan if there is no such pair."""

    same: float
    other: float


def identity_consistency(values: Sequence[Hashable | None], identities: Sequence[int]) -> Consistency:
    """Compare agreement within identities with agreement between them, over all pairs of images.

    Args:
        values: Value of each of n images; None leaves the image out.
        identities: n identities.

    Returns:
        Both shares; for a field that tells identities apart the first is large and the second small.
    """
    of_identity: dict[int, Counter[Hashable]] = defaultdict(Counter)
    overall: Counter[Hashable] = Counter()
    for value, pid in zip(values, identities, strict=True):
        if value is not None:
            of_identity[pid][value] += 1
            overall[value] += 1

    def pairs(counts: Counter[Hashable]) -> np.ndarray:
        return np.array([sum(c * (c - 1) for c in counts.values()), counts.total() * (counts.total() - 1)])

    same = sum(map(pairs, of_identity.values()), np.zeros(2, dtype=np.int64))
    shares = [float(agree / total) if total else float("nan") for agree, total in (same, pairs(overall) - same)]
    return Consistency(*shares)
