"""The outcome of a ranking: three numbers per query, and the averages that papers print."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .protocol import Protocol

MAX_RANK = 50


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Retrieval quality over Q queries. All measures are shares in [0, 1], averaged over the valid queries.

    Attributes:
        ap: ``(Q,)`` float64 average precision, the mean precision at the ranks of the matches (no interpolation);
            nan where the query has no valid match.
        inp: ``(Q,)`` float64 inverse negative penalty, the number of matches over the rank of the last one
            (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021); nan likewise.
        first: ``(Q,)`` int64 rank of the first match, counted from 1; 0 where there is none.
        protocol: What produced the numbers.
    """

    ap: np.ndarray
    inp: np.ndarray
    first: np.ndarray
    protocol: Protocol

    @property
    def num_query(self) -> int:
        """Number of queries Q."""
        return len(self.ap)

    @property
    def num_valid(self) -> int:
        """Number of queries with at least one valid match."""
        return int((self.first > 0).sum())

    @property
    def mAP(self) -> float:
        """Mean average precision."""
        return float(np.nanmean(self.ap))

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty."""
        return float(np.nanmean(self.inp))

    @property
    def cmc(self) -> np.ndarray:
        """``(50,)`` float64: the share of queries whose first match is at rank 1, at most 2, ... at most 50."""
        first = self.first[self.first > 0]
        return (first[:, None] <= np.arange(1, MAX_RANK + 1)).mean(axis=0)

    @property
    def rank1(self) -> float:
        """Share of queries whose nearest entry is a match."""
        return float(self.cmc[0])

    @property
    def rank5(self) -> float:
        """Share of queries with a match among the nearest five."""
        return float(self.cmc[4])

    @property
    def rank10(self) -> float:
        """Share of queries with a match among the nearest ten."""
        return float(self.cmc[9])

    def to_dict(self) -> dict[str, Any]:
        """Return the averages as a JSON-able dictionary."""
        return {
            "mAP": self.mAP,
            "rank-1": self.rank1,
            "rank-5": self.rank5,
            "rank-10": self.rank10,
            "mINP": self.mINP,
            "queries": self.num_query,
            "valid_queries": self.num_valid,
            "protocol": self.protocol.name,
        }

    def __str__(self) -> str:
        return (
            f"mAP {self.mAP:.2%}, rank-1 {self.rank1:.2%}, rank-5 {self.rank5:.2%}, rank-10 {self.rank10:.2%}, "
            f"mINP {self.mINP:.2%} ({self.num_valid} of {self.num_query} queries, protocol {self.protocol.name})"
        )
