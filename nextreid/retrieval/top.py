"""The nearest gallery entries of each query, for rank lists and search."""

from collections.abc import Sequence

import numpy as np

from .arithmetic import PADDING, HostArithmetic, order_keys
from .distance import Embeddings, nearness_blocks
from .identities import Identities, SameIdentity
from .metrics import check_lengths
from .protocol import Protocol, get_protocol


def top_k(
    query_emb: Embeddings,
    gallery_emb: Embeddings,
    query_ids: Identities,
    gallery_ids: Identities,
    protocol: str | Protocol,
    k: int = 10,
    *,
    query_keys: Sequence[str] | None = None,
    gallery_keys: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest gallery entries of each query, nearest first, by the order that `rank` measures.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        gallery_emb: ``(G, F)`` embeddings.
        query_ids: Labels of the queries.
        gallery_ids: Labels of the gallery.
        protocol: A name that `list_protocols` returns, or a `Protocol`.
        k: Entries per query.
        query_keys: As for `rank`.
        gallery_keys: As for `rank`.

    Returns:
        Gallery indices ``(Q, k)`` int64, without the entries that the protocol takes out and -1 where fewer than k
        are left; and whether each shows the query's identity ``(Q, k)`` bool.

    Raises:
        ValueError: If `k` is below 1, shapes or labels do not fit, or an embedding is not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    protocol = get_protocol(protocol)
    check_lengths(query_emb, gallery_emb, query_ids, gallery_ids)
    same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
    width = min(k, len(gallery_ids))
    indices = np.full((len(query_ids), k), -1, np.int64)

    for start, values in nearness_blocks(query_emb, gallery_emb, protocol, HostArithmetic()):
        stop = start + len(values)
        index, _, out = same_identity.rows(start, stop)
        keys = order_keys(values).numpy()
        row, column = np.nonzero(out)
        keys[row, index[row, column]] = PADDING
        nearest = np.sort(np.partition(keys, width - 1, axis=1)[:, :width], axis=1)
        indices[start:stop, :width] = np.where(nearest == PADDING, -1, nearest & 0xFFFFFFFF)

    matches = (indices >= 0) & (gallery_ids.pid[indices] == query_ids.pid[:, None])
    return indices, matches
