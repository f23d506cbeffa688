"""Exact retrieval measures by counting: no gallery is ever argsorted."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from .distance import STRIP, Embeddings, nearness_blocks, stable_keys
from .identities import Identities, SameIdentity
from .protocol import Protocol, get_protocol
from .results import RetrievalResult

_logger = logging.getLogger(__name__)


def rank(
    query_emb: Embeddings,
    gallery_emb: Embeddings,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    *,
    block: int = STRIP,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
) -> RetrievalResult:
    """Rank the gallery of every query and measure where the matches stand.

    The measures need only the ranks of the matches. The j-th nearest match has rank j + n, where n counts the entries
    of other identities in front of it. Entries that the protocol takes out share the query's identity, so n is the
    number of all nearer entries less the number of nearer entries of the query's identity: two bisections in sorted
    values. The result equals that of a full stable sort.

    Ties: entries at equal distance keep gallery order. Distances are float32; equal means equal in float32.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        gallery_emb: ``(G, F)`` embeddings.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: A name that `list_protocols` returns, or a `Protocol`.
        block: Queries to hold at once, rounded up to a multiple of 64; memory grows with ``block * G`` and the
            result does not depend on it.
        query_keys: Unique names of the queries. With `gallery_keys`, an entry that is the query itself is taken out
            under every protocol; ``"none"`` needs this when query and gallery share samples.
        gallery_keys: Unique names of the gallery entries.

    Returns:
        Average precision, inverse negative penalty and first rank of every query. Queries without a valid match
        are nan, do not enter the averages, and are reported by one logged warning.

    Raises:
        ValueError: If shapes or labels do not fit, an embedding is not finite, or no query has a valid match.
    """
    protocol = get_protocol(protocol)
    check_lengths(query_emb, gallery_emb, query_ids, gallery_ids)
    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    num_query = len(query_ids)
    ap, inp, first = np.full(num_query, np.nan), np.full(num_query, np.nan), np.zeros(num_query, np.int64)

    for start, values in nearness_blocks(query_emb, gallery_emb, protocol, block):
        rows = slice(start, start + len(values))
        index, match, out = same_identity.rows(rows.start, rows.stop)
        ranks = _match_ranks(values, index, match, match | out)
        count = match.sum(axis=1)
        valid = count > 0
        nth = np.arange(1, ranks.shape[1] + 1)
        precision = np.where(nth <= count[:, None], nth / ranks, 0).sum(axis=1)
        last = np.take_along_axis(ranks, np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        np.divide(precision, count, out=ap[rows], where=valid)
        np.divide(count, last, out=inp[rows], where=valid)
        first[rows] = np.where(valid, ranks[:, 0], 0)

    result = RetrievalResult(ap, inp, first, protocol)
    if result.num_valid == 0:
        raise ValueError(
            f"none of {num_query} queries has a valid match under protocol {protocol.name!r}: {protocol.remedy}"
        )
    if result.num_valid < num_query:
        _logger.warning(
            "%d of %d queries have no valid match under protocol %r and are left out of the averages: %s",
            num_query - result.num_valid,
            num_query,
            protocol.name,
            protocol.remedy,
        )
    return result


def check_lengths(
    query_emb: Embeddings, gallery_emb: Embeddings, query_ids: Identities, gallery_ids: Identities
) -> None:
    """Raise ValueError unless there is one label per embedding."""
    for name, embeddings, ids in (("query", query_emb, query_ids), ("gallery", gallery_emb, gallery_ids)):
        if len(embeddings) != len(ids):
            raise ValueError(f"{len(embeddings)} {name} embeddings but {len(ids)} {name} labels: give one per sample")


def _match_ranks(values: np.ndarray, index: np.ndarray, match: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Return the ranks ``(B, S)`` int64 of the matches, nearest first; columns beyond a row's matches are arbitrary.

    Args:
        values: ``(B, G)`` float32, smaller is nearer.
        index: ``(B, S)`` gallery entries of the query's identity, padded.
        match: ``(B, S)`` which of them are matches.
        family: ``(B, S)`` which of them are real, that is matches or taken out.
    """
    nearer, not_farther = _count_others(values, index, match, family)
    matches = match.sum(axis=1, keepdims=True)
    nth = np.arange(index.shape[1])
    tied = np.flatnonzero(((nearer != not_farther) & (nth < matches)).any(axis=1))
    if tied.size:
        keys = stable_keys(values[tied])
        nearer[tied], _ = _count_others(keys, index[tied], match[tied], family[tied])
    return nth + 1 + nearer


def _count_others(
    values: np.ndarray, index: np.ndarray, match: np.ndarray, family: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each match from near to far, the entries of other identities nearer than it, and not farther."""
    beyond = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    own = np.take_along_axis(values, index, axis=1)
    everything = torch.from_numpy(np.sort(values, axis=1))
    relatives = torch.from_numpy(np.sort(np.where(family, own, beyond).astype(values.dtype), axis=1))
    matches = torch.from_numpy(np.sort(np.where(match, own, beyond).astype(values.dtype), axis=1))

    def others(right: bool) -> np.ndarray:
        before = torch.searchsorted(everything, matches, right=right)
        return (before - torch.searchsorted(relatives, matches, right=right)).numpy()

    return others(right=False), others(right=True)
