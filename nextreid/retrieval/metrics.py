"""Rankings and their exact metrics by counting: no gallery is ever sorted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from nextreid._names import show

from .arithmetic import PADDING, count_nearer, count_smaller, merge_nearest, order_keys
from .distance import (
    BLOCK,
    CPU,
    Embeddings,
    PreparedGallery,
    Tile,
    check_finite,
    check_shapes,
    distance_blocks,
    prepared,
    query_block,
    value_spans,
)
from .protocol import Identities, Protocol, SameIdentity, Ties, get_protocol, is_known
from .rerank import Rerank, reranked_blocks
from .results import RetrievalResult

QueryMetrics: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Average precision, inverse negative penalty and first rank of some queries, as `RetrievalResult` has them."""


def rank(
    query_emb: Embeddings,
    gallery_emb: Embeddings | PreparedGallery,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
    rerank: Rerank | None = None,
    device: torch.device | str | None = None,
    part: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> RetrievalResult:
    """Rank the gallery for every query and score where the matches stand.

    The metrics need only the ranks of the matches. The j-th nearest match has rank j + n, where n counts the entries
    of other identities before it. Entries that the protocol ignores share the query's identity, so n is the
    number of all nearer entries less the number of nearer entries of the query's identity. Both are counted; the
    result equals that of a full stable sort. Memory is that of 384 rows of distances, whatever the number of queries.

    Distances are float32, and equal means equal in float32. Where a match ranks among other entries at its distance
    is the protocol's tie rule, `Protocol.ties`.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        gallery_emb: ``(G, F)`` embeddings, or a gallery that was prepared for many calls (not with `rerank`). Never
            copied on the CPU: what is not float32 is converted a tile at a time.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: A name that `get_protocol` takes, or a `Protocol`.
        query_keys: Unique names of the queries. With `gallery_keys`, an entry that is the query itself is ignored
            under every protocol; ``"none"`` needs this when query and gallery share samples.
        gallery_keys: Unique names of the gallery entries.
        rerank: Rank by k-reciprocal re-ranked distances instead; the result records it.
        device: Where to compute; None means the CPU.
        part: ``(i, n)`` ranks only the i-th of n parts of the queries, for n processes that work in parallel.
            `RetrievalResult.concat` of all parts is the whole result, bit for bit.
        progress: Called with the number of queries ranked and of all to rank.

    Returns:
        Average precision, inverse negative penalty and first rank of every query. Queries without a valid match, such
        as those of unknown identity, are nan, are left out of the averages, and are reported by one logged warning. If
        there are no others, every metric is None.

    Raises:
        ValueError: If shapes, dtypes or labels do not fit, or an embedding is not finite.
    """
    protocol, device = get_protocol(protocol), torch.device(device or "cpu")
    check_labels("query", query_emb, query_ids)
    check_labels("gallery", gallery_emb, gallery_ids)
    queries = queries_of_part(len(query_ids), part)
    if rerank is None:
        blocks = distance_blocks(query_emb, gallery_emb, protocol, device, queries)
    elif isinstance(gallery_emb, PreparedGallery):
        raise ValueError("re-ranking compares the gallery with itself: give the embeddings, not a prepared gallery")
    else:
        blocks = reranked_blocks(query_emb, gallery_emb, protocol, rerank, device, queries)
    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    if progress is not None:
        blocks = _counted(blocks, queries, progress)
    metrics = _block_metrics(blocks, same_identity, protocol.ties)
    return collect(metrics, query_ids, query_keys, protocol, rerank, part)


def rank_distances(
    distances: np.ndarray | Tensor,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
) -> RetrievalResult:
    """Score a matrix of distances that was computed elsewhere, as `rank` does.

    Args:
        distances: ``(Q, G)``, smaller is nearer; compared in float32 on the CPU.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: Says what a query ignores, and the tie rule; its distance is not used.
        query_keys: As for `rank`.
        gallery_keys: As for `rank`.

    Raises:
        ValueError: If shapes or labels do not fit, or a distance is not finite.
    """
    protocol = get_protocol(protocol)
    check_ids("query", query_ids)
    check_ids("gallery", gallery_ids)
    if tuple(distances.shape) != (len(query_ids), len(gallery_ids)) or 0 in distances.shape:
        raise ValueError(
            f"distances must be (queries, gallery entries) = {(len(query_ids), len(gallery_ids))}, neither of them "
            f"zero; got {tuple(distances.shape)}"
        )

    def blocks() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(distances), BLOCK):
            values = torch.as_tensor(distances[start : start + BLOCK]).to("cpu", torch.float32)
            if not np.isfinite(values.numpy()).all():
                row = start + int(torch.nonzero(~values.isfinite().all(dim=1))[0])
                raise ValueError(f"the distances of query {row} hold NaN or infinite values")
            yield start, values

    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    return collect(_block_metrics(blocks(), same_identity, protocol.ties), query_ids, query_keys, protocol)


def top_k(
    query_emb: Embeddings,
    gallery_emb: Embeddings | PreparedGallery,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    k: int = 10,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest gallery entries of each query, nearest first, in the order that `rank` scores.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        gallery_emb: ``(G, F)`` embeddings, or a gallery that was prepared for many calls.
        query_ids: Labels of the queries; -1 for an unknown identity, which matches nothing and ignores only itself.
        gallery_ids: Labels of the gallery.
        protocol: A name that `get_protocol` takes, or a `Protocol`.
        k: Entries per query.
        query_keys: As for `rank`.
        gallery_keys: As for `rank`.

    Returns:
        Gallery indices ``(Q, k)`` int64, without the entries that the protocol ignores and -1 where fewer than k
        are left; and whether each shows the query's identity ``(Q, k)`` bool.

    Raises:
        ValueError: If `k` is below 1, shapes, dtypes or labels do not fit, or an embedding is not finite.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be an integer of at least 1; got {show(k)}")
    protocol = get_protocol(protocol)
    check_labels("query", query_emb, query_ids)
    check_labels("gallery", gallery_emb, gallery_ids)
    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    check_shapes(query_emb, gallery_emb)
    check_finite("query", query_emb, 0, len(query_emb))
    tiles = prepared(gallery_emb, protocol, CPU)
    nearest = np.full((len(query_ids), min(k, len(gallery_ids))), PADDING)
    for start in range(0, len(query_ids), BLOCK):
        rows = slice(start, min(start + BLOCK, len(query_ids)))
        block = query_block(query_emb[rows], protocol, CPU)
        index, _, ignored = same_identity.entries(rows.start, rows.stop)
        row, place = np.nonzero(ignored)
        column = index[row, place]

        def hide(first: int, values: np.ndarray, row: np.ndarray = row, column: np.ndarray = column) -> None:
            inside = (column >= first) & (column < first + values.shape[1])
            values[row[inside], column[inside] - first] = np.inf

        nearest[rows] = nearest_keys(nearest[rows], block, tiles, hide)
    indices = np.full((len(query_ids), k), -1, np.int64)
    indices[:, : nearest.shape[1]] = np.where(nearest == PADDING, -1, nearest & 0xFFFFFFFF)
    same = gallery_ids.pid[indices] == query_ids.pid[:, None]
    return indices, same & (indices >= 0) & is_known(query_ids.pid)[:, None]


def nearest_keys(
    nearest: np.ndarray, block: Tensor, tiles: Iterable[Tile], hide: Callable[[int, np.ndarray], None]
) -> np.ndarray:
    """Merge the entries of tiles into the nearest of each query of a block so far.

    Args:
        nearest: ``(B, K)`` int64 keys, ascending in each row and padded; see `merge_nearest`.
        block: What `query_block` gave for the B queries.
        tiles: Gallery entries behind those of `nearest`.
        hide: Called with the gallery index of a first column and ``(B, W)`` values; makes those infinite that do not
            count.

    Returns:
        ``(B, K)`` the smallest keys of both.
    """
    for first, span in value_spans(block, tiles):
        values = span[: len(nearest)].numpy()
        hide(first, values)
        nearest = merge_nearest(nearest, values, first)
    return nearest


def _counted(
    blocks: Iterable[tuple[int, Tensor]], queries: slice, progress: Callable[[int, int], object]
) -> Iterator[tuple[int, Tensor]]:
    for start, values in blocks:
        yield start, values
        progress(start + len(values) - queries.start, queries.stop - queries.start)


def _block_metrics(
    blocks: Iterable[tuple[int, Tensor]], same_identity: SameIdentity, ties: Ties
) -> Iterator[QueryMetrics]:
    for start, values in blocks:
        index, match, ignored = same_identity.entries(start, start + len(values))
        same = values.gather(1, torch.from_numpy(index).to(values.device)).cpu()
        points, keys = match_points(same, index, match, ignored, ties)
        yield query_metrics(points, count_nearer(values, 0, points) - count_smaller(keys, points))


def match_points(
    values: Tensor, index: np.ndarray, match: np.ndarray, ignored: np.ndarray, ties: Ties
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of the matches, and of all entries of each query's identity: ``(B, S)``, ascending, padded.

    A key counts what comes before a match. Moved before all gallery columns or after them by the tie rule, it counts
    no other entry at the match's distance, or all.
    """
    keys = order_keys(values, torch.from_numpy(index)).numpy()
    points = np.sort(np.where(match, keys, PADDING), axis=1)
    same_identity = np.sort(np.where(match | ignored, keys, PADDING), axis=1)
    if ties == "optimistic":
        points = np.where(points == PADDING, PADDING, points >> 32 << 32)
    if ties == "pessimistic":
        points |= 0xFFFFFFFF
    return points, same_identity


def query_metrics(points: np.ndarray, others: np.ndarray) -> QueryMetrics:
    """Return the metrics of B queries from the ``(B, S)`` keys of their matches and the others that precede each."""
    nth = np.arange(1, points.shape[1] + 1)
    ranks = nth + others
    count = (points != PADDING).sum(axis=1)
    valid = count > 0
    precision = np.where(nth <= count[:, None], nth / np.maximum(ranks, 1), 0).sum(axis=1)
    last = np.take_along_axis(ranks, np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    ap = np.divide(precision, count, out=np.full(len(count), np.nan), where=valid)
    inp = np.divide(count, last, out=np.full(len(count), np.nan), where=valid)
    return ap, inp, np.where(valid, ranks[:, 0], 0)


def collect(
    metrics: Iterable[QueryMetrics],
    query_ids: Identities,
    query_keys: Sequence[str] | None,
    protocol: Protocol,
    rerank: Rerank | None = None,
    part: tuple[int, int] | None = None,
) -> RetrievalResult:
    """Join the metrics of consecutive queries; warn of all queries without a match, not of those of a part."""
    queries = queries_of_part(len(query_ids), part)
    nothing = np.empty(0), np.empty(0), np.empty(0, np.int64)
    ap, inp, first = (np.concatenate(arrays) for arrays in zip(nothing, *metrics, strict=True))
    keys = None if query_keys is None else tuple(query_keys[queries])
    result = RetrievalResult(ap, inp, first, query_ids.pid[queries], protocol, keys, rerank)
    if not part:
        result.warn()
    return result


def queries_of_part(num_query: int, part: tuple[int, int] | None) -> slice:
    """Return the queries of one of n parts: whole blocks, so that each matrix product is that of a single process."""
    index, parts = part or (0, 1)
    if not 0 <= index < parts:
        raise ValueError(f"part must be (i, n) with 0 <= i < n, the i-th of n parts; got {part}")
    blocks = -(-num_query // BLOCK)
    start, stop = (min(num_query, blocks * i // parts * BLOCK) for i in (index, index + 1))
    return slice(start, stop)


def check_labels(name: str, embeddings: Embeddings | PreparedGallery, ids: Identities) -> None:
    """Raise ValueError unless there is one label per embedding."""
    check_ids(name, ids)
    if len(embeddings) != len(ids):
        raise ValueError(f"{len(embeddings)} {name} embeddings but {len(ids)} {name} labels: give one per sample")


def check_ids(name: str, ids: Identities) -> None:
    """Raise ValueError unless labels are `Identities`."""
    if not isinstance(ids, Identities):
        raise ValueError(f"{name} labels must be Identities(pid, camid, sceneid); got {type(ids).__name__}")
