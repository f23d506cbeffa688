"""How far a number would move with other identities, and whether two runs differ."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .results import RetrievalResult

_AT_ONCE = 2**22  # draws times identities


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        value: The measure itself.
        low: Lower end.
        high: Upper end.
        level: Share of the draws inside.
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


@dataclass(frozen=True)
class Comparison:
    """What two runs on the same queries have to do with each other.

    Attributes:
        measure: What is compared.
        a: The measure of the first run.
        b: The measure of the second run.
        difference: ``b - a`` with its interval over identities.
        p_value: How often chance alone makes a difference as large, of either sign.
    """

    measure: str
    a: float
    b: float
    difference: Interval
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{self.measure} {self.a:.2%} and {self.b:.2%}: {d.value:+.2%} "
            f"({d.level:.0%} interval {d.low:+.2%} to {d.high:+.2%}, p = {self.p_value:.4f})"
        )


def compare(
    a: "RetrievalResult",
    b: "RetrievalResult",
    measure: str = "mAP",
    *,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two runs query by query.

    The p value is that of a paired sign-flip test over identities: if the runs were equally good, the summed
    difference of each identity could as well have the other sign, so signs are drawn at random and the share of draws
    whose mean difference is at least as far from zero is counted, the observed one among them. The interval is the
    bootstrap of `RetrievalResult.bootstrap` on the differences. Both treat identities as the independent units, and
    neither knows how the runs would differ with another seed of training.

    Args:
        a: The first run.
        b: The second run, on the same queries in the same order, under the same rule of exclusion.
        measure: ``"mAP"``, ``"mINP"`` or ``"rank-k"``.
        samples: Number of draws.
        level: Of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the queries differ, or which of them have a valid match; there is no such measure; or
            `samples` or `level` is out of range.
    """
    _check_same_queries(a, b)
    one, two = a.per_query(measure), b.per_query(measure)
    difference = bootstrap_mean(two - one, a.pid, samples=samples, level=level, seed=seed)
    sums, counts = _by_identity(two - one, a.pid)
    total = counts.sum()
    observed = abs(sums.sum()) / total
    rng = np.random.default_rng([seed, 1])
    as_far = 0
    for drawn in _parts(samples, len(sums)):
        signs = rng.integers(0, 2, (drawn, len(sums)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ sums) / total >= observed - 1e-12).sum())
    means = float(np.nanmean(one)), float(np.nanmean(two))
    return Comparison(measure, *means, difference, (1 + as_far) / (1 + samples))


def bootstrap_mean(values: np.ndarray, pid: np.ndarray, *, samples: int, level: float, seed: int) -> Interval:
    """Return the mean over queries, nan left out, and its percentile interval over drawn identities.

    Args:
        values: ``(Q,)`` float64, nan where a query does not count.
        pid: ``(Q,)`` identities.
        samples: Number of draws.
        level: Share of the draws inside the interval.
        seed: Of the draws.

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


def _check_same_queries(a: "RetrievalResult", b: "RetrievalResult") -> None:
    named = a.keys is not None and b.keys is not None
    if not np.array_equal(a.pid, b.pid) or (named and a.keys != b.keys):
        raise ValueError(
            f"the runs have different queries ({a.num_query} and {b.num_query}, or in another order): a paired test "
            "needs the same queries in the same order"
        )
    if a.protocol.exclude != b.protocol.exclude or not np.array_equal(a.first > 0, b.first > 0):
        raise ValueError(
            f"the runs ignore different gallery entries (protocols {a.protocol.name!r} and {b.protocol.name!r}, "
            f"{a.num_valid} and {b.num_valid} queries with a match): a paired test needs one rule"
        )
