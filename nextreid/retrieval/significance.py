"""Statistics over identities: how far a mean would vary with other identities, and whether it differs from zero."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_AT_ONCE = 2**22  # draws times identities


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        value: The mean itself.
        low: Lower end.
        high: Upper end.
        level: Fraction of the draws inside.
        samples: Number of draws.
        identities: Number of identities that were drawn from.
    """

    value: float
    low: float
    high: float
    level: float
    samples: int
    identities: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.level:.0%} interval {self.low:.2%} to {self.high:.2%})"


def bootstrap_mean(values: np.ndarray, pid: np.ndarray, *, samples: int, level: float, seed: int) -> Interval:
    """Return the mean over ``(Q,)`` queries, nan left out, and its percentile interval over drawn identities.

    Raises:
        ValueError: If `samples` or `level` is out of range, or no query counts.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    sums, counts = _by_identity(values, pid)
    rng = np.random.default_rng([seed, 0])
    even = np.full(len(sums), 1 / len(sums))
    means = []
    for drawn in _parts(samples, len(sums)):
        times = rng.multinomial(len(sums), even, size=drawn).astype(np.float64)
        means.append((times @ sums) / (times @ counts))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.nanmean(values)), float(low), float(high), level, samples, len(sums))


def sign_flip_test(values: np.ndarray, pid: np.ndarray, *, samples: int, seed: int) -> float:
    """Return how often the mean over ``(Q,)`` is as far from zero with a random sign for each identity: a p value."""
    sums, counts = _by_identity(values, pid)
    total = counts.sum()
    observed = abs(sums.sum()) / total
    rng = np.random.default_rng([seed, 1])
    as_far = 0
    for drawn in _parts(samples, len(sums)):
        signs = rng.integers(0, 2, (drawn, len(sums)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ sums) / total >= observed - 1e-12).sum())
    return (1 + as_far) / (1 + samples)


def _by_identity(values: np.ndarray, pid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the values of each identity and how many there are."""
    valid = ~np.isnan(values)
    if not valid.any():
        raise ValueError("no query has a valid match: there is nothing to draw from")
    _, identity = np.unique(pid[valid], return_inverse=True)
    return np.bincount(identity, weights=values[valid]), np.bincount(identity).astype(np.float64)


def _parts(samples: int, identities: int) -> list[int]:
    """Cut the draws into parts that fit in memory."""
    size = max(1, _AT_ONCE // identities)
    return [min(size, samples - done) for done in range(0, samples, size)]
