"""Embeddings to rankings to numbers, under a named protocol."""

from .distance import distances
from .identities import Identities
from .metrics import rank, rank_distances
from .protocol import Protocol, get_protocol, list_protocols
from .rerank import Rerank
from .results import RetrievalResult, load_result
from .significance import Comparison, Interval, compare
from .streaming import rank_shards
from .top import top_k

__all__ = [
    "Comparison",
    "Identities",
    "Interval",
    "Protocol",
    "Rerank",
    "RetrievalResult",
    "compare",
    "distances",
    "get_protocol",
    "list_protocols",
    "load_result",
    "rank",
    "rank_distances",
    "rank_shards",
    "top_k",
]
