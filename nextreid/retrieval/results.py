"""The outcome of a ranking: three numbers per query, and the averages that papers print."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .protocol import Protocol
from .rerank import Rerank
from .significance import Interval, bootstrap_mean

MAX_RANK = 50

_ARRAYS = ("ap", "inp", "first", "pid")
_FORMAT = "nextreid.retrieval 1"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Retrieval quality over Q queries. All measures are shares in [0, 1], averaged over the valid queries.

    Attributes:
        ap: ``(Q,)`` float64 average precision, the mean precision at the ranks of the matches (no interpolation);
            nan where the query has no valid match.
        inp: ``(Q,)`` float64 inverse negative penalty, the number of matches over the rank of the last one
            (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021); nan likewise.
        first: ``(Q,)`` int64 rank of the first match, counted from 1; 0 where there is none.
        pid: ``(Q,)`` int64 identities of the queries.
        protocol: What produced the numbers.
        keys: Names of the queries, or None where none were given.
        rerank: The re-ranking that produced the numbers, or None.
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

    def per_query(self, measure: str) -> np.ndarray:
        """Return ``(Q,)`` float64 of one measure, nan where the query has no valid match; its mean is the measure.

        Args:
            measure: ``"mAP"``, ``"mINP"``, or ``"rank-k"`` for any k of 1 and above.

        Raises:
            ValueError: If there is no such measure.
        """
        if measure == "mAP":
            return self.ap
        if measure == "mINP":
            return self.inp
        word, _, k = measure.partition("-")
        if word != "rank" or not k.isdecimal() or int(k) < 1:
            raise ValueError(f"unknown measure {measure!r}; there are mAP, mINP and rank-1, rank-5, ... rank-k")
        return np.where(self.first > 0, self.first <= int(k), np.nan)

    def bootstrap(self, measure: str = "mAP", *, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
        """Return a confidence interval of a measure over identities.

        Queries of one identity succeed and fail together, so whole identities are drawn, with replacement, and the
        measure is taken over the queries of the drawn ones (percentile bootstrap over clusters: Davison and Hinkley,
        "Bootstrap Methods and their Application", 1997, section 3.8). The interval answers how the number would move
        with other identities; it says nothing about another training run.

        Args:
            measure: As for `per_query`.
            samples: Number of draws.
            level: Share of the draws inside the interval.
            seed: Of the draws; the interval is a function of it.

        Raises:
            ValueError: If there is no such measure, or `samples` or `level` is out of range.
        """
        return bootstrap_mean(self.per_query(measure), self.pid, samples=samples, level=level, seed=seed)

    def checked(self) -> "RetrievalResult":
        """Return self; warn about queries without a valid match, and raise ValueError if no query has one."""
        if self.num_valid == 0:
            raise ValueError(
                f"none of {self.num_query} queries has a valid match under protocol {self.protocol.name!r}: "
                f"{self.protocol.remedy}"
            )
        if self.num_valid < self.num_query:
            _logger.warning(
                "%d of %d queries have no valid match under protocol %r and are left out of the averages: %s",
                self.num_query - self.num_valid,
                self.num_query,
                self.protocol.name,
                self.protocol.remedy,
            )
        return self

    @classmethod
    def concat(cls, parts: Sequence["RetrievalResult"]) -> "RetrievalResult":
        """Join the shares that `rank` computes with `part`, in order.

        Raises:
            ValueError: If there is no part, they come from different protocols, or no query has a valid match.
        """
        if not parts:
            raise ValueError("there is no part to join")
        one = parts[0]
        for other in parts[1:]:
            if (other.protocol, other.rerank, other.keys is None) != (one.protocol, one.rerank, one.keys is None):
                raise ValueError(f"the parts were computed differently: {_origin(one)} and {_origin(other)}")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        keys = None if one.keys is None else tuple(key for part in parts for key in part.keys or ())
        return cls(**arrays, protocol=one.protocol, keys=keys, rerank=one.rerank).checked()

    def to_dict(self) -> dict[str, Any]:
        """Return the averages and what produced them as a JSON-able dictionary."""
        return {
            "mAP": self.mAP,
            "rank-1": self.rank1,
            "rank-5": self.rank5,
            "rank-10": self.rank10,
            "mINP": self.mINP,
            "queries": self.num_query,
            "valid_queries": self.num_valid,
            "protocol": self.protocol.name,
            "protocol_details": self.protocol.to_dict(),
            "rerank": None if self.rerank is None else asdict(self.rerank),
        }

    def __str__(self) -> str:
        return (
            f"mAP {self.mAP:.2%}, rank-1 {self.rank1:.2%}, rank-5 {self.rank5:.2%}, rank-10 {self.rank10:.2%}, "
            f"mINP {self.mINP:.2%} ({self.num_valid} of {self.num_query} queries, {_origin(self)})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers of every query and what produced them to one safetensors file, whole or not at all."""
        origin = {
            "format": _FORMAT,
            "protocol": self.protocol.to_dict(),
            "rerank": None if self.rerank is None else asdict(self.rerank),
            "keys": self.keys,
        }
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        try:
            save_file(arrays, temporary, metadata={name: json.dumps(value) for name, value in origin.items()})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # the new name must not reach the disk before the new bytes
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def load_result(path: str | os.PathLike[str]) -> RetrievalResult:
    """Read what `RetrievalResult.save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is something else, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no retrieval result {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            origin = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            if origin.get("format") != _FORMAT:
                raise ValueError(f"its format is {origin.get('format')!r}, not {_FORMAT!r}")
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        keys = None if origin["keys"] is None else tuple(origin["keys"])
        rerank = None if origin["rerank"] is None else Rerank(**origin["rerank"])
        return RetrievalResult(**arrays, protocol=Protocol(**origin["protocol"]), keys=keys, rerank=rerank)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no retrieval result that this version can read: {error}") from error


def _origin(result: RetrievalResult) -> str:
    """Say what produced a result, as far as it is not the usual."""
    words = [f"protocol {result.protocol.name}"]
    if result.protocol.ties != "stable":
        words.append(f"{result.protocol.ties} ties")
    if result.rerank is not None:
        words.append(str(result.rerank))
    return ", ".join(words)
