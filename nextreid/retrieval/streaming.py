"""Ranking against a gallery that comes in shards and is never whole."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch

from .arithmetic import arithmetic_on, count_smaller
from .distance import BLOCK, Embeddings, check_finite, check_shapes, gallery_tiles, query_block
from .identities import Identities, SameIdentity
from .metrics import Measures, match_points, share_of
from .protocol import Protocol, get_protocol
from .results import RetrievalResult

Shard: TypeAlias = tuple[Embeddings, Identities, Sequence[str] | None]
"""Embeddings ``(n, F)``, their labels, and their unique names or None."""


def rank_shards(
    query_emb: Embeddings,
    query_ids: Identities,
    shards: Sequence[Shard] | Callable[[], Iterable[Shard]],
    protocol: str | Protocol,
    *,
    query_keys: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    part: tuple[int, int] | None = None,
) -> RetrievalResult:
    """Rank a gallery that does not fit in memory; equal to `rank` on the shards joined in their order, bit for bit.

    The shards are read twice. The first time the distances to the entries of each query's own identity are kept,
    the second time the entries in front of them are counted. Memory is that of a shard, the queries, and the labels.

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

    Returns:
        As `rank`.

    Raises:
        ValueError: As for `rank`, or if the second reading differs from the first.
    """
    protocol, arithmetic = get_protocol(protocol), arithmetic_on(device)
    if len(query_emb) != len(query_ids):
        raise ValueError(f"{len(query_emb)} query embeddings but {len(query_ids)} query labels: give one per sample")
    share = share_of(len(query_ids), part)
    check_finite("query", query_emb, share.start, share.stop)
    shares = [slice(start, min(start + BLOCK, share.stop)) for start in range(share.start, share.stop, BLOCK)]
    blocks = [(rows, query_block(query_emb[rows], protocol, arithmetic)) for rows in shares]
    reader = _Reader(shards, query_emb, query_keys is not None)

    relatives = _Relatives(len(query_ids))
    for tile in gallery_tiles(reader, protocol, arithmetic):
        entries = slice(tile.start, tile.start + tile.count)
        same_identity = SameIdentity(query_ids, reader.labels(entries), protocol, query_keys, reader.keys(entries))
        for rows, block in blocks:
            index, match, out = same_identity.rows(rows.start, rows.stop)
            if (match | out).any():
                values = tile.values(block, arithmetic)[: len(index)]
                own = values.gather(1, torch.from_numpy(index).to(arithmetic.device)).cpu().numpy()
                relatives.add(rows.start, own, tile.start + index, match, out)
    reader.finish()

    values_of_own, index, match, out = relatives.table()
    points, family = match_points(torch.from_numpy(values_of_own), index, match, out, protocol.ties)
    nearer = np.zeros_like(points)
    for tile in gallery_tiles(reader, protocol, arithmetic):
        for rows, block in blocks:
            if match[rows].any():
                values = tile.values(block, arithmetic)[: rows.stop - rows.start, : tile.count]
                nearer[rows] += arithmetic.count_nearer(values, tile.start, points[rows])
    reader.finish()

    measures = Measures(query_ids, protocol, share, query_keys)
    measures.add(slice(0, len(query_ids)), points, nearer - count_smaller(family, points))
    return measures.result() if part else measures.result().checked()


class _Reader:
    """Iterates over the embeddings of the shards, and knows the labels of all that was read.

    Args:
        shards: As for `rank_shards`.
        query_emb: What the embeddings must fit to.
        with_keys: Whether shards must have keys.
    """

    def __init__(
        self, shards: Sequence[Shard] | Callable[[], Iterable[Shard]], query_emb: Embeddings, with_keys: bool
    ) -> None:
        if not callable(shards) and iter(shards) is shards:
            raise ValueError("shards are read twice: give a list, or a function that returns a new iterator each time")
        self._shards, self._query_emb, self._with_keys = shards, query_emb, with_keys
        self._ids: list[np.ndarray] = []
        self._keys: list[str] = []
        self._before: np.ndarray | None = None

    def __iter__(self) -> Iterator[Embeddings]:
        self._ids, self._keys = [np.empty((0, 3), np.int64)], []
        seen: set[str] = set()
        for embeddings, ids, keys in self._shards() if callable(self._shards) else self._shards:
            check_shapes(self._query_emb, embeddings)
            if len(embeddings) != len(ids) or (keys is not None and len(keys) != len(ids)):
                raise ValueError(f"a shard has {len(embeddings)} embeddings, {len(ids)} labels or other keys: one each")
            if self._with_keys and keys is None:
                raise ValueError("query_keys and the keys of every shard belong together: give all or none")
            self._ids.append(np.stack([getattr(ids, name) for name in ("pid", "camid", "sceneid")], axis=1))
            if keys is not None:
                self._keys.extend(keys)
                seen.update(keys)
            if len(seen) != len(self._keys):
                raise ValueError("the shards repeat keys; keys must be unique in the whole gallery")
            yield embeddings

    def labels(self, entries: slice) -> Identities:
        """Return the labels of gallery entries that were read."""
        self._ids = [np.concatenate(self._ids)]
        return Identities(*self._ids[0][entries].T)

    def keys(self, entries: slice) -> list[str] | None:
        """Return the keys of gallery entries that were read, or None where there are none."""
        return self._keys[entries] if self._with_keys else None

    def finish(self) -> None:
        """Raise ValueError unless the reading that ended equals the one before."""
        ids = np.concatenate(self._ids)
        if not len(ids):
            raise ValueError("the gallery has no shard")
        if self._before is not None and not np.array_equal(ids, self._before):
            raise ValueError("the second reading of the shards differs from the first: it must give the same pieces")
        self._before = ids


class _Relatives:
    """Collects the entries of each query's own identity, tile by tile."""

    def __init__(self, num_query: int) -> None:
        self._num_query = num_query
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, start: int, own: np.ndarray, index: np.ndarray, match: np.ndarray, out: np.ndarray) -> None:
        """Take in ``(B, S)`` arrays of the queries from `start` on."""
        row, place = np.nonzero(match | out)
        at = row, place
        self._parts.append((start + row, own[at], index[at], match[at], out[at]))

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return values, gallery indices, matches and entries taken out, ``(Q, S)`` each, padded."""
        columns = [np.concatenate(part) for part in zip(*self._parts, strict=True)] if self._parts else []
        row = columns[0] if columns else np.empty(0, np.int64)
        order = np.argsort(row, kind="stable")
        row = row[order]
        count = np.bincount(row, minlength=self._num_query)
        place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
        tables = []
        for number, kind in enumerate((np.float32, np.int64, bool, bool)):
            table = np.zeros((self._num_query, max(1, count.max(initial=0))), kind)
            if columns:
                table[row, place] = columns[1 + number][order]
            tables.append(table)
        return tables[0], tables[1], tables[2], tables[3]
