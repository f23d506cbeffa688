"""From scores of pairs to curves, thresholds and open-set rates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FALSE_MATCH_RATES = (1e-2, 1e-3, 1e-4)
FALSE_ALARM_RATES = (0.1, 0.01)
_RESOLVED = 10  # events that a rate must rest on
_BINS = 10


@dataclass(frozen=True)
class Pairs:
    """Scores of Q queries against G gallery entries.

    Attributes:
        scores: ``(Q, G)`` float32 cosines.
        query: ``(Q,)`` identities, all known.
        gallery: ``(G,)`` identities, all known.
        counts: ``(Q, G)`` bool: pairs that count. Those that a protocol ignores, the query itself among them, do not.
    """

    scores: np.ndarray
    query: np.ndarray
    gallery: np.ndarray
    counts: np.ndarray

    @property
    def same(self) -> np.ndarray:
        """Which pairs show one identity, ``(Q, G)`` bool."""
        return self.query[:, None] == self.gallery[None]

    @property
    def identities(self) -> int:
        """Number of identities that a pair of their own stands for."""
        return len(np.unique(self.query[(self.same & self.counts).any(axis=1)]))

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and sameness of the pairs that count, ``(pairs,)`` each."""
        return self.scores[self.counts], self.same[self.counts]

    def bounds(self) -> tuple[float, float]:
        """How small and how large a likelihood ratio so many identities can show.

        One of I identities in I+1 that never failed, and one of the I(I-1)/2 pairs of identities.
        """
        count = max(2, self.identities)
        return 1 / (count + 1), count * (count - 1) / 2 + 1

    def among(self, pids: np.ndarray) -> "Pairs":
        """The pairs of some identities with each other."""
        rows, columns = np.isin(self.query, pids), np.isin(self.gallery, pids)
        grid = np.ix_(rows, columns)
        return Pairs(self.scores[grid], self.query[rows], self.gallery[columns], self.counts[grid])


def split_identities(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Divide the identities in halves at random, so that each half has pairs of its own.

    Raises:
        ValueError: If there are fewer than four identities with a pair, or no pair of two.
    """
    own = np.unique(pairs.query[(pairs.same & pairs.counts).any(axis=1)])
    if len(own) < 4:
        raise ValueError(
            f"only {len(own)} identities have a pair that counts, and four are the least: give more identities, or a "
            "protocol that ignores less, such as 'none'"
        )
    order = np.random.default_rng([seed, len(own)]).permutation(own)
    rest = np.setdiff1d(np.union1d(pairs.query, pairs.gallery), own)  # identities seen once: pairs of two
    halves = order[: len(own) // 2], order[len(own) // 2 :]
    return tuple(pairs.among(np.concatenate([half, rest[at::2]])) for at, half in enumerate(halves))  # type: ignore[return-value]


def fit_isotonic(scores: np.ndarray, same: np.ndarray, least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """The never falling log odds that fit best, by pooling adjacent violators.

    Pairs of one identity weigh as much in all as pairs of two. The steps are joined by straight lines between the mean
    scores of the pools.

    Args:
        scores: ``(n,)``.
        same: ``(n,)`` bool.
        least: Smallest likelihood ratio.
        most: Largest one.

    Returns:
        Scores, ascending, and log odds at a prior of one half, never falling.
    """
    values, index = np.unique(scores.astype(np.float64), return_inverse=True)
    weight = np.where(same, 0.5 / max(1, same.sum()), 0.5 / max(1, (~same).sum()))
    parts = np.stack([np.bincount(index, weight * is_one) for is_one in (same, ~same)])
    pools: list[tuple[float, float, float]] = []  # weight of one identity, weight of two, weighted scores
    for merged in zip(*parts, parts.sum(axis=0) * values, strict=True):
        while pools and pools[-1][0] * merged[1] >= merged[0] * pools[-1][1]:
            last = pools.pop()
            merged = (last[0] + merged[0], last[1] + merged[1], last[2] + merged[2])
        pools.append(merged)
    ones, twos, moments = np.array(pools).T
    with np.errstate(divide="ignore"):
        odds = ones / twos
    return moments / (ones + twos), np.log(np.clip(odds, least, most))


def fit_platt(scores: np.ndarray, same: np.ndarray, least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Log odds that are a straight line of the score, never falling: logistic regression by Newton's method.

    Arguments and results are those of `fit_isotonic`; the line is cut off at the smallest and the largest ratio.
    """
    values = scores.astype(np.float64)
    middle, scale = values.mean(), values.std() + 1e-12
    x = np.stack([(values - middle) / scale, np.ones_like(values)], axis=1)
    weight = np.where(same, 0.5 / max(1, same.sum()), 0.5 / max(1, (~same).sum()))
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -500, 500)))
        slope = x.T @ (weight * (p - same)) + 1e-6 * beta  # a ridge keeps separable pairs from infinity
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        beta -= step * min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    slope_, offset = max(beta[0], 0.0), beta[1]
    low, high = np.log(least), np.log(most)
    ends = np.array([values.min(), values.max()])
    if slope_ > 0:  # the corners where the line meets its bounds, as far as they lie between the scores
        corners = middle + scale * (np.array([low, high]) - offset) / slope_
        ends = np.unique(np.concatenate([ends, np.clip(corners, *ends)]))
    return ends, np.clip(slope_ * (ends - middle) / scale + offset, low, high)


def log_loss(log_odds: np.ndarray, same: np.ndarray) -> float:
    """Mean log loss in nats, pairs of one identity and pairs of two weighing alike."""
    loss = np.logaddexp(0, np.where(same, -log_odds, log_odds))
    return float(0.5 * loss[same].mean() + 0.5 * loss[~same].mean())


def reliability(p: np.ndarray, same: np.ndarray) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """Expected calibration error over ten bins of probability, and a row for each bin.

    Pairs of one identity and pairs of two weigh alike in both.
    """
    weight = np.where(same, 0.5 / max(1, same.sum()), 0.5 / max(1, (~same).sum()))
    which = np.minimum((p * _BINS).astype(int), _BINS - 1)
    rows, error = [], 0.0
    for at in range(_BINS):
        inside = which == at
        if not inside.any():
            continue
        total = weight[inside].sum()
        mean, share = (weight[inside] * p[inside]).sum() / total, weight[inside & same].sum() / total
        rows.append((float(mean), float(share), int(inside.sum())))
        error += total * abs(mean - share)
    return float(error), tuple(rows)


def thresholds(
    pairs: Pairs, rates: Sequence[float], draws: int, seed: int
) -> list[tuple[float, float | None, float | None, float | None, float | None]]:
    """For each false match rate the score, its 95 % interval over drawn identities, and the true match rate.

    An identity that is drawn n times counts n times on either side. The score is None, and so is all else, where fewer
    than ten pairs would pass.
    """
    different, same = pairs.counts & ~pairs.same, pairs.scores[pairs.counts & pairs.same]
    row, column = np.nonzero(different)
    scores = pairs.scores[row, column]
    # The few highest scores decide; draws weigh some pairs several times.
    keep = min(len(scores), int(4 * max(rates) * len(scores)) + 100)
    top = np.argpartition(-scores, keep - 1)[:keep] if keep < len(scores) else np.arange(len(scores))
    top = top[np.argsort(-scores[top], kind="stable")]
    pids, index = np.unique(np.concatenate([pairs.query, pairs.gallery]), return_inverse=True)
    of_query, of_gallery = index[: len(pairs.query)], index[len(pairs.query) :]
    between = np.zeros((len(pids), len(pids)))
    np.add.at(between, (of_query[row], of_gallery[column]), 1.0)
    ranked, left, right = scores[top], of_query[row[top]], of_gallery[column[top]]

    def at(weights: np.ndarray, rate: float) -> float:
        """The lowest score at which no more than `rate` of all weight passes."""
        total = weights @ between @ weights
        passed = np.cumsum(weights[left] * weights[right]) / total
        last = np.searchsorted(passed, rate, side="right")  # so many of the highest may pass
        return float(np.nextafter(ranked[last], np.float32(2))) if last < len(ranked) else float(ranked[-1])

    ones, rng = np.ones(len(pids)), np.random.default_rng([seed, len(pids)])
    drawn = [rng.multinomial(len(pids), ones / len(pids)).astype(float) for _ in range(draws)]
    rows: list[tuple[float, float | None, float | None, float | None, float | None]] = []
    for rate in rates:
        if rate * len(scores) < _RESOLVED:
            rows.append((rate, None, None, None, None))
            continue
        score = at(ones, rate)
        low, high = np.quantile([at(weights, rate) for weights in drawn], (0.025, 0.975)) if drawn else (None, None)
        passed = float((same >= score).mean()) if len(same) else None
        rows.append((rate, score, _float(low), _float(high), passed))
    return rows


def detection_rates(pairs: Pairs, rates: Sequence[float]) -> tuple[tuple[float, float | None, float | None], ...]:
    """Open-set identification: for each false alarm rate the threshold, and the detection and identification rate.

    Each query is asked twice: as it is, when it counts if its highest score is of its own identity and reaches the
    threshold, and with its own identity taken from the gallery, when anything that reaches it is a false alarm.
    """
    lowest = np.float32(-np.inf)
    own, others = (
        np.where(pairs.counts & which, pairs.scores, lowest).max(axis=1, initial=lowest)
        for which in (pairs.same, ~pairs.same)
    )
    asked = np.isfinite(own) & np.isfinite(others)
    own, others = own[asked], others[asked]
    right, alarms = own > others, np.sort(others)[::-1]
    rows: list[tuple[float, float | None, float | None]] = []
    for rate in rates:
        allowed = int(rate * len(alarms))
        if rate * len(alarms) < _RESOLVED:
            rows.append((rate, None, None))
            continue
        threshold = float(np.nextafter(alarms[allowed], np.float32(2)))
        rows.append((rate, threshold, float((right & (own >= threshold)).mean())))
    return tuple(rows)


def _float(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
