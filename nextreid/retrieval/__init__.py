"""Embeddings to rankings to metrics, under a named protocol."""

from .calibration import Calibration
from .distance import PreparedGallery, distances
from .gallery import Gallery
from .gallery_entry import Entry
from .gallery_match import Hit, Match
from .metrics import rank, rank_distances, top_k
from .protocol import Identities, Protocol, get_protocol, list_protocols
from .rerank import Rerank
from .results import METRICS, Comparison, RetrievalResult, compare, load_result
from .significance import Interval
from .streaming import rank_shards

__all__ = [
    "METRICS",
    "Calibration",
    "Comparison",
    "Entry",
    "Gallery",
    "Hit",
    "Identities",
    "Interval",
    "Match",
    "PreparedGallery",
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
