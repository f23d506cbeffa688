"""The result of a ranking: three values per query, the averages that papers print, and whether two runs differ."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextreid._files import read_tensors, write_tensors
from nextreid._names import unknown

from .protocol import Protocol, is_known
from .rerank import Rerank
from .significance import Interval, bootstrap_mean, sign_flip_test

METRICS = ("mAP", "rank-1", "rank-5", "rank-10", "mINP")
"""The metrics of every report, in the order in which they are printed."""
MAX_RANK = 50

_ARRAYS = ("ap", "inp", "first", "pid")
_FORMAT = "nextreid.retrieval 1"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalResult:
    """Retrieval quality over Q queries. All metrics are fractions in [0, 1], averaged over the valid queries.

    A query is valid if its identity is known and the gallery holds a match that the protocol does not ignore. Without a
    valid query every metric is None, and `hint` says what to do.

    Attributes:
        ap: ``(Q,)`` float64 average precision, the mean precision at the ranks of the matches (no interpolation);
            nan where the query has no valid match.
        inp: ``(Q,)`` float64 inverse negative penalty, the number of matches over the rank of the last one
            (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021); nan likewise.
        first: ``(Q,)`` int64 rank of the first match, counted from 1; 0 where there is none.
        pid: ``(Q,)`` int64 identities of the queries, -1 where unknown.
        protocol: The protocol of the ranking.
        keys: Names of the queries, or None where none were given.
        rerank: The re-ranking, or None.
    """

    ap: np.ndarray
    inp: np.ndarray
    first: np.ndarray
    pid: np.ndarray
    protocol: Protocol
    keys: tuple[str, ...] | None = None
    rerank: Rerank | None = None

    @property
    def num_query(self) -> int:
        """Number of queries Q."""
        return len(self.ap)

    @property
    def num_valid(self) -> int:
        """Number of queries with at least one valid match."""
        return int((self.first > 0).sum())

    @property
    def mAP(self) -> float | None:
        """Mean average precision."""
        return self.metric("mAP")

    @property
    def mINP(self) -> float | None:
        """Mean inverse negative penalty."""
        return self.metric("mINP")

    @property
    def cmc(self) -> np.ndarray:
        """``(50,)`` float64: the fraction of queries whose first match is at rank 1, at most 2, ... at most 50.

        nan if no query is valid.
        """
        first = self.first[self.first > 0]
        hits = (first[:, None] <= np.arange(1, MAX_RANK + 1)).sum(axis=0)
        return hits / len(first) if len(first) else np.full(MAX_RANK, np.nan)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The value of each of `METRICS`; None if no query is valid."""
        return {name: self.metric(name) for name in METRICS}

    def metric(self, name: str) -> float | None:
        """Return a metric, the mean of `per_query`; None if no query is valid.

        Args:
            name: ``"mAP"``, ``"mINP"``, or ``"rank-k"`` for any k of 1 and above.

        Raises:
            ValueError: If there is no such metric.
        """
        values = self.per_query(name)
        return float(np.nanmean(values)) if self.num_valid else None

    def per_query(self, name: str) -> np.ndarray:
        """Return ``(Q,)`` float64 values of a metric, named as for `metric`; nan where there is no valid match."""
        if name in ("mAP", "mINP"):
            return self.ap if name == "mAP" else self.inp
        word, _, k = name.partition("-")
        if word != "rank" or not k.isdecimal() or int(k) < 1:
            raise ValueError(f"{unknown('metric', name, METRICS)}, rank-k for any k of 1 and above")
        return np.where(self.first > 0, self.first <= int(k), np.nan)

    def bootstrap(self, metric: str = "mAP", *, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
        """Return a confidence interval of a metric over identities.

        Queries of one identity succeed and fail together, so whole identities are drawn, with replacement, and the
        metric is averaged over the queries of the drawn ones (percentile bootstrap over clusters: Davison and Hinkley,
        "Bootstrap Methods and their Application", 1997, section 3.8). The interval answers how the metric would vary
        with other identities; it says nothing about another training run.

        Args:
            metric: As for `metric`.
            samples: Number of draws.
            level: Fraction of the draws inside the interval.
            seed: Of the draws; the interval is a function of it.

        Raises:
            ValueError: If there is no such metric, `samples` or `level` is out of range, or no query is valid.
        """
        return bootstrap_mean(self.per_query(metric), self.pid, samples=samples, level=level, seed=seed)

    @property
    def hint(self) -> str:
        """What to do about the queries without a valid match."""
        unknown_ids = int((~is_known(self.pid)).sum())
        hints = (
            [f"{unknown_ids} have an unknown identity (-1), which matches nothing: label them"] if unknown_ids else []
        )
        if self.num_query - self.num_valid > unknown_ids:
            hints.append(self.protocol.hint)
        return "; ".join(hints)

    def warn(self) -> None:
        """Log one warning if there are queries without a valid match."""
        if self.num_valid < self.num_query:
            message = "%d of %d queries have no valid match under protocol %r and are left out of the averages: %s"
            _logger.warning(message, self.num_query - self.num_valid, self.num_query, self.protocol.name, self.hint)

    @classmethod
    def concat(cls, parts: Sequence["RetrievalResult"]) -> "RetrievalResult":
        """Join the parts that `rank` computes with `part`, in order.

        Raises:
            ValueError: If there is no part, or they come from different protocols.
        """
        if not parts:
            raise ValueError("there is no part to join")
        one = parts[0]
        for other in parts:
            if (other.protocol, other.rerank, other.keys is None) != (one.protocol, one.rerank, one.keys is None):
                raise ValueError(f"the parts were computed differently: {one._provenance()} and {other._provenance()}")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        keys = None if one.keys is None else tuple(key for part in parts for key in part.keys or ())
        whole = cls(**arrays, protocol=one.protocol, keys=keys, rerank=one.rerank)
        whole.warn()
        return whole

    def to_dict(self) -> dict[str, Any]:
        """Return the averages and what produced them as a JSON-able dictionary; without a valid query also `hint`."""
        hint = {} if self.num_valid else {"hint": self.hint}
        return {
            **self.metrics,
            "queries": self.num_query,
            "valid_queries": self.num_valid,
            "protocol": self.protocol.name,
            "protocol_details": self.protocol.to_dict(),
            "rerank": self.rerank and asdict(self.rerank),
            **hint,
        }

    def __str__(self) -> str:
        if not self.num_valid:
            return f"none of {self.num_query} queries has a valid match ({self._provenance()}): {self.hint}"
        values = ", ".join(f"{name} {value:.2%}" for name, value in self.metrics.items())
        return f"{values} ({self.num_valid} of {self.num_query} queries, {self._provenance()})"

    def __repr__(self) -> str:
        return f"RetrievalResult({self})"

    def _provenance(self) -> str:
        """Describe what produced the result, as far as it is not the default."""
        words = [f"protocol {self.protocol.name}"]
        if self.protocol.ties != "stable":
            words.append(f"{self.protocol.ties} ties")
        if self.rerank is not None:
            words.append(str(self.rerank))
        return ", ".join(words)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the values of every query and what produced them to one safetensors file, whole or not at all."""
        provenance = {
            "format": _FORMAT,
            "protocol": self.protocol.to_dict(),
            "rerank": self.rerank and asdict(self.rerank),
            "keys": self.keys,
        }
        arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _ARRAYS}
        write_tensors(Path(path), arrays, provenance)


def load_result(path: str | os.PathLike[str]) -> RetrievalResult:
    """Read what `RetrievalResult.save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is something else, or damaged.
    """
    try:
        tensors, provenance = read_tensors(Path(path))
        if provenance.get("format") != _FORMAT:
            raise ValueError(f"its format is {provenance.get('format')!r}, not {_FORMAT!r}")
        arrays = {name: tensors[name].numpy() for name in _ARRAYS}
        keys, rerank = provenance["keys"], provenance["rerank"]
        keys, rerank = None if keys is None else tuple(keys), rerank and Rerank(**rerank)
        return RetrievalResult(**arrays, protocol=Protocol(**provenance["protocol"]), keys=keys, rerank=rerank)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no retrieval result that this version can read: {error}") from error


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two runs on the same queries.

    Attributes:
        metric: Name of the metric that is compared.
        a: Its value in the first run.
        b: Its value in the second run.
        difference: ``b - a`` with its interval over identities.
        p_value: How often chance alone makes a difference as large, of either sign.
    """

    metric: str
    a: float
    b: float
    difference: Interval
    p_value: float

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{self.metric} {self.a:.2%} and {self.b:.2%}: {d.value:+.2%} "
            f"({d.level:.0%} interval {d.low:+.2%} to {d.high:+.2%}, p = {self.p_value:.4f})"
        )


def compare(
    a: RetrievalResult,
    b: RetrievalResult,
    metric: str = "mAP",
    *,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two runs query by query.

    The p value is that of a paired sign-flip test over identities: if the runs were equally good, the summed
    difference of each identity could as well have the other sign, so signs are drawn at random and the draws whose
    mean difference is at least as far from zero are counted, the observed one among them. The interval is the
    bootstrap of `RetrievalResult.bootstrap` on the differences. Both treat identities as the independent units, and
    neither knows how the runs would differ with another seed of training.

    Args:
        a: The first run.
        b: The second run, on the same queries in the same order, under the same rule of exclusion.
        metric: ``"mAP"``, ``"mINP"`` or ``"rank-k"``.
        samples: Number of draws.
        level: Of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the queries differ, or which of them have a valid match; none has; there is no such metric; or
            `samples` or `level` is out of range.
    """
    if not np.array_equal(a.pid, b.pid) or (a.keys and b.keys and a.keys != b.keys):
        raise ValueError(
            f"the runs have different queries ({a.num_query} and {b.num_query}, or in another order): a paired test "
            "needs the same queries in the same order"
        )
    if a.protocol.exclude != b.protocol.exclude or not np.array_equal(a.first > 0, b.first > 0):
        raise ValueError(
            f"the runs ignore different gallery entries (protocols {a.protocol.name!r} and {b.protocol.name!r}, "
            f"{a.num_valid} and {b.num_valid} queries with a match): a paired test needs one rule"
        )
    value_a, value_b = a.metric(metric), b.metric(metric)
    if value_a is None or value_b is None:
        raise ValueError(f"no query of these runs has a valid match: {a.hint}")
    change = b.per_query(metric) - a.per_query(metric)
    difference = bootstrap_mean(change, a.pid, samples=samples, level=level, seed=seed)
    p_value = sign_flip_test(change, a.pid, samples=samples, seed=seed)
    return Comparison(metric, value_a, value_b, difference, p_value)
