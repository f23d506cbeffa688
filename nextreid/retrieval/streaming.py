"""Ranking against a gallery that comes in shards and never is in memory as a whole."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch

from .arithmetic import count_nearer, count_smaller, pad_rows
from .distance import BLOCK, Embeddings, check_finite, check_matrix, check_shapes, gallery_tiles, query_block
from .metrics import check_ids, check_labels, collect, match_points, queries_of_part, query_metrics
from .protocol import Identities, Protocol, SameIdentity, get_protocol
from .results import RetrievalResult

Shard: TypeAlias = tuple[Embeddings, Identities, Sequence[str] | None]
"""Embeddings ``(n, F)``, their labels, and their unique names or None."""
Shards: TypeAlias = Sequence[Shard] | Callable[[], Iterable[Shard]]


def rank_shards(
    query_emb: Embeddings,
    query_ids: Identities,
    shards: Shards,
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    part: tuple[int, int] | None = None,
) -> RetrievalResult:
    """Rank a gallery that does not fit in memory; as `rank` does on the shards joined in their order, bit for bit.

    The shards are read twice. The first time the distances to the entries of each query's own identity are kept,
    the second time the entries before them are counted. Memory is that of a shard, the queries, and the labels.

    Args:
        query_emb: ``(Q, F)`` embeddings.
        query_ids: Labels of the queries.
        shards: Pieces of the gallery, each ``(embeddings, labels, keys or None)``: a sequence, or a function that
            returns a new iterator over the same pieces each time, such as one that reads files. Their order is the
            gallery order of the tie rule.
        protocol: A name that `get_protocol` takes, or a `Protocol`.
        query_keys: As for `rank`; every shard needs its keys then.
        device: As for `rank`.
        part: As for `rank`.

    Raises:
        ValueError: As for `rank`, or if the second reading differs from the first.
    """
    protocol, device = get_protocol(protocol), torch.device(device or "cpu")
    check_labels("query", query_emb, query_ids)
    check_matrix("query", query_emb)
    queries = queries_of_part(len(query_ids), part)
    check_finite("query", query_emb, queries.start, queries.stop)
    cuts = [slice(start, min(start + BLOCK, queries.stop)) for start in range(queries.start, queries.stop, BLOCK)]
    blocks = [(rows, query_block(query_emb[rows], protocol, device)) for rows in cuts]
    reader = _Reader(shards, query_emb, query_keys is not None)

    found = [tuple(np.empty(0, dtype) for dtype in (np.int64, np.float32, np.int64, bool, bool))]
    for tile in gallery_tiles(reader, protocol, device):
        gallery_ids, gallery_keys = reader.entries(slice(tile.start, tile.start + tile.count))
        same_identity = SameIdentity(query_ids, gallery_ids, protocol, query_keys, gallery_keys)
        for rows, block in blocks:
            index, match, ignored = same_identity.entries(rows.start, rows.stop)
            real = np.nonzero(match | ignored)
            if len(real[0]):
                values = tile.values(block)[: len(index)]
                same = values.gather(1, torch.from_numpy(index).to(device)).cpu().numpy()
                found.append((rows.start + real[0], same[real], tile.start + index[real], match[real], ignored[real]))
    row, *columns = (np.concatenate(column) for column in zip(*found, strict=True))
    order, count = np.argsort(row, kind="stable"), np.bincount(row, minlength=len(query_ids))
    same, index, match, ignored = (pad_rows(column[order], row[order], count, 0) for column in columns)
    points, keys = match_points(torch.from_numpy(same), index, match, ignored, protocol.ties)
    nearer = np.zeros_like(points)
    for tile in gallery_tiles(reader, protocol, device):
        for rows, block in blocks:
            if match[rows].any():
                values = tile.values(block)[: rows.stop - rows.start, : tile.count]
                nearer[rows] += count_nearer(values, tile.start, points[rows])
    metrics = query_metrics(points[queries], (nearer - count_smaller(keys, points))[queries])
    return collect([metrics], query_ids, query_keys, protocol, part=part)


class _Reader:
    """Iterates over the embeddings of the shards, and keeps the labels of all that was read."""

    def __init__(self, shards: Shards, query_emb: Embeddings, with_keys: bool) -> None:
        if not callable(shards) and iter(shards) is shards:
            raise ValueError("shards are read twice: give a list, or a function that returns a new iterator each time")
        self._shards, self._query_emb, self._with_keys = shards, query_emb, with_keys
        self._ids: list[np.ndarray] = []
        self._recent: list[np.ndarray] = []  # labels from entry `_passed` on
        self._passed = 0
        self._keys: list[str] = []
        self._before: np.ndarray | None = None

    def __iter__(self) -> Iterator[Embeddings]:
        self._ids, self._recent, self._keys, self._passed = [np.empty((0, 3), np.int64)], [], [], 0
        seen: set[str] = set()
        for embeddings, ids, keys in self._shards() if callable(self._shards) else self._shards:
            if not len(embeddings):
                continue
            check_shapes(self._query_emb, embeddings)
            check_ids("shard", ids)
            if len(embeddings) != len(ids) or (keys is not None and len(keys) != len(ids)):
                raise ValueError(f"a shard has {len(embeddings)} embeddings, {len(ids)} labels or other keys: one each")
            if self._with_keys and keys is None:
                raise ValueError("query_keys and the keys of every shard belong together: give all or none")
            self._ids.append(np.stack([getattr(ids, name) for name in ("pid", "camid", "sceneid")], axis=1))
            self._recent.append(self._ids[-1])
            self._keys.extend(keys or ())
            seen.update(keys or ())
            if len(seen) != len(self._keys):
                raise ValueError("the shards repeat keys; keys must be unique in the whole gallery")
            yield embeddings
        read = np.concatenate(self._ids)
        if not len(read):
            raise ValueError("the gallery has no shard")
        if self._before is not None and not np.array_equal(read, self._before):
            raise ValueError("the second reading of the shards differs from the first: it must give the same pieces")
        self._before = read

    def entries(self, rows: slice) -> tuple[Identities, list[str] | None]:
        """Return the labels and, where there are any, the keys of entries that were read, and forget those before."""
        recent = self._recent[0] if len(self._recent) == 1 else np.concatenate(self._recent)
        labels = recent[rows.start - self._passed : rows.stop - self._passed]
        self._recent, self._passed = [recent[rows.stop - self._passed :]], rows.stop
        return Identities(*labels.T), self._keys[rows] if self._with_keys else None
