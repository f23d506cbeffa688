"""Exact retrieval measures by counting: no gallery is ever sorted."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .arithmetic import PADDING, Arithmetic, HostArithmetic, arithmetic_on, count_smaller, order_keys
from .distance import BLOCK, Embeddings, nearness_blocks
from .identities import Identities, SameIdentity
from .protocol import Protocol, Ties, get_protocol
from .rerank import Rerank, reranked_blocks
from .results import RetrievalResult


def rank(
    query_emb: Embeddings,
    gallery_emb: Embeddings,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
    rerank: Rerank | None = None,
    device: torch.device | str | None = None,
    part: tuple[int, int] | None = None,
) -> RetrievalResult:
    """Rank the gallery of every query and measure where the matches stand.

    The measures need only the ranks of the matches. The j-th nearest match has rank j + n, where n counts the entries
    of other identities in front of it. Entries that the protocol takes out share the query's identity, so n is the
    number of all nearer entries less the number of nearer entries of the query's identity. Both are counted; the
    result equals that of a full stable sort. Memory is that of 256 rows of distances, whatever the number of queries.

    Distances are float32, and equal means equal in float32. Where a match stands among other entries at its distance
    is the protocol's tie rule, `Protocol.ties`.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        gallery_emb: ``(G, F)`` embeddings; not copied where they are float32 and on the device.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: A name that `get_protocol` takes, or a `Protocol`.
        query_keys: Unique names of the queries. With `gallery_keys`, an entry that is the query itself is taken out
            under every protocol; ``"none"`` needs this when query and gallery share samples.
        gallery_keys: Unique names of the gallery entries.
        rerank: Rank by k-reciprocal re-ranked distances instead; the result says so.
        device: Where to compute; None means the CPU.
        part: ``(i, n)`` ranks only the i-th of n shares of the queries, for n processes that work side by side.
            `RetrievalResult.concat` of all shares is the whole result, bit for bit.

    Returns:
        Average precision, inverse negative penalty and first rank of every query. Queries without a valid match
        are nan, do not enter the averages, and are reported by one logged warning.

    Raises:
        ValueError: If shapes or labels do not fit, an embedding is not finite, or no query has a valid match.
    """
    protocol, arithmetic = get_protocol(protocol), arithmetic_on(device)
    check_lengths(query_emb, gallery_emb, query_ids, gallery_ids)
    share = share_of(len(query_ids), part)
    if rerank is None:
        blocks = nearness_blocks(query_emb, gallery_emb, protocol, arithmetic, share)
    else:
        blocks = reranked_blocks(query_emb, gallery_emb, protocol, rerank, arithmetic, share)
        arithmetic = HostArithmetic()
    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    result = _measure(blocks, same_identity, Measures(query_ids, protocol, share, query_keys, rerank), arithmetic)
    return result if part else result.checked()


def rank_distances(
    distances: np.ndarray | Tensor,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
) -> RetrievalResult:
    """Measure a matrix of distances that was computed elsewhere.

    Args:
        distances: ``(Q, G)``, smaller is nearer; compared in float32 on the CPU.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: Gives what is ignored and the tie rule; its distance is not used.
        query_keys: As for `rank`.
        gallery_keys: As for `rank`.

    Returns:
        As `rank`.

    Raises:
        ValueError: If shapes or labels do not fit, a distance is not finite, or no query has a valid match.
    """
    protocol = get_protocol(protocol)
    if tuple(distances.shape) != (len(query_ids), len(gallery_ids)) or 0 in distances.shape:
        raise ValueError(
            f"distances must be (queries, gallery entries) = {(len(query_ids), len(gallery_ids))}, neither of them "
            f"zero; got {tuple(distances.shape)}"
        )

    def blocks() -> Iterable[tuple[int, Tensor]]:
        for start in range(0, len(distances), BLOCK):
            values = torch.as_tensor(distances[start : start + BLOCK]).to("cpu", torch.float32)
            if not np.isfinite(values.numpy()).all():
                row = start + int(torch.nonzero(~values.isfinite().all(dim=1))[0])
                raise ValueError(f"the distances of query {row} hold NaN or infinite values")
            yield start, values

    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    measures = Measures(query_ids, protocol, slice(0, len(query_ids)), query_keys)
    return _measure(blocks(), same_identity, measures, HostArithmetic()).checked()


def _measure(
    blocks: Iterable[tuple[int, Tensor]], same_identity: SameIdentity, measures: "Measures", arithmetic: Arithmetic
) -> RetrievalResult:
    for start, values in blocks:
        rows = slice(start, start + len(values))
        index, match, out = same_identity.rows(rows.start, rows.stop)
        own = values.gather(1, torch.from_numpy(index).to(values.device)).cpu()
        points, family = match_points(own, index, match, out, measures.protocol.ties)
        nearer = arithmetic.count_nearer(values, 0, points)
        measures.add(rows, points, nearer - count_smaller(family, points))
    return measures.result()


def match_points(
    own: Tensor, index: np.ndarray, match: np.ndarray, out: np.ndarray, ties: Ties
) -> tuple[np.ndarray, np.ndarray]:
    """Turn the entries of each query's identity into keys to count against.

    Args:
        own: ``(B, S)`` float32 values of the entries.
        index: ``(B, S)`` gallery indices.
        match: ``(B, S)`` which of them are matches.
        out: ``(B, S)`` which of them are taken out.
        ties: The tie rule. A key counts what stands in front of a match; moved in front of all columns or behind all
            of them, it counts no other entry at the match's distance, or all.

    Returns:
        Keys of the matches, and of all entries of the identity: ``(B, S)`` int64 each, ascending, padded at the end.
    """
    keys = order_keys(own, torch.from_numpy(index)).numpy()
    points = np.sort(np.where(match, keys, PADDING), axis=1)
    family = np.sort(np.where(match | out, keys, PADDING), axis=1)
    if ties == "optimistic":
        points = np.where(points == PADDING, PADDING, points >> 32 << 32)
    if ties == "pessimistic":
        points |= 0xFFFFFFFF
    return points, family


class Measures:
    """Collects what is known of each query.

    Args:
        query_ids: Labels of all queries.
        protocol: What the ranks come from.
        share: The queries that are measured.
        query_keys: Names of all queries, or None.
        rerank: What the ranks come from, too.
    """

    def __init__(
        self,
        query_ids: Identities,
        protocol: Protocol,
        share: slice,
        query_keys: Sequence[str] | None = None,
        rerank: Rerank | None = None,
    ) -> None:
        self.protocol = protocol
        self._share, self._rerank = share, rerank
        self._pid, self._keys = query_ids.pid, query_keys
        self._ap, self._inp = np.full(len(query_ids), np.nan), np.full(len(query_ids), np.nan)
        self._first = np.zeros(len(query_ids), np.int64)

    def add(self, rows: slice, points: np.ndarray, others: np.ndarray) -> None:
        """Take in the keys of the matches of some queries, and how many entries of others stand in front of each."""
        nth = np.arange(1, points.shape[1] + 1)
        ranks = nth + others
        count = (points != PADDING).sum(axis=1)
        valid = count > 0
        precision = np.where(nth <= count[:, None], nth / np.maximum(ranks, 1), 0).sum(axis=1)
        last = np.take_along_axis(ranks, np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        np.divide(precision, count, out=self._ap[rows], where=valid)
        np.divide(count, last, out=self._inp[rows], where=valid)
        self._first[rows] = np.where(valid, ranks[:, 0], 0)

    def result(self) -> RetrievalResult:
        """Return the measures of the share."""
        keys = None if self._keys is None else tuple(self._keys[self._share])
        ap, inp, first, pid = (array[self._share] for array in (self._ap, self._inp, self._first, self._pid))
        return RetrievalResult(ap, inp, first, pid, self.protocol, keys, self._rerank)


def share_of(num_query: int, part: tuple[int, int] | None) -> slice:
    """Return the queries of one of n shares: whole blocks, so that each matrix product is that of a single process.

    Raises:
        ValueError: If `part` is not a share and a number of shares.
    """
    index, shares = part or (0, 1)
    if not 0 <= index < shares:
        raise ValueError(f"part must be (i, n) with 0 <= i < n, the i-th of n shares; got {part}")
    blocks = -(-num_query // BLOCK)
    return slice(
        min(num_query, blocks * index // shares * BLOCK), min(num_query, blocks * (index + 1) // shares * BLOCK)
    )


def check_lengths(
    query_emb: Embeddings, gallery_emb: Embeddings, query_ids: Identities, gallery_ids: Identities
) -> None:
    """Raise ValueError unless there is one label per embedding."""
    for name, embeddings, ids in (("query", query_emb, query_ids), ("gallery", gallery_emb, gallery_ids)):
        if len(embeddings) != len(ids):
            raise ValueError(f"{len(embeddings)} {name} embeddings but {len(ids)} {name} labels: give one per sample")
