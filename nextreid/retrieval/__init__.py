"""Embeddings to rankings to numbers, under a named protocol."""

from .distance import distances
from .identities import Identities
from .metrics import rank
from .protocol import Protocol, get_protocol, list_protocols
from .results import RetrievalResult
from .top import top_k

__all__ = [
    "Identities",
    "Protocol",
    "RetrievalResult",
    "distances",
    "get_protocol",
    "list_protocols",
    "rank",
    "top_k",
]
