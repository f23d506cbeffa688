"""Distances between two sets of embeddings, a block of queries and a tile of the gallery at a time.

Every matrix product has a shape that follows from the number of queries, the number of gallery entries and `BLOCK` and
`TILE` alone, and is filled up with zeros. So a value has the same bits whether the gallery comes whole or in shards,
and whether one process computes all queries or several share them; and copies of an entry are at one distance.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nextreid._names import show

from .arithmetic import product
from .protocol import Protocol, get_protocol

Embeddings: TypeAlias = np.ndarray | Tensor
CPU = torch.device("cpu")

BLOCK = 384
"""Queries of one matrix product."""
TILE = 4096
"""Gallery entries of one matrix product."""

_STEP = 64
_CACHED = 2**18  # values that one query alone meets at once: converted, they stay in the cache
_PIECE = 1024  # gallery entries that several queries meet at once, likewise
_SPAN = 2**20  # values of a span of tiles
_PAIRS = 2**13  # embeddings whose differences are taken at once
_CANCELLED = 2**-6  # a squared distance below this part of the squared lengths is mostly rounding
_LONGEST = 1e18  # products of two embeddings stay far below the largest float32


def distances(query: Embeddings, gallery: Embeddings, protocol: str | Protocol) -> np.ndarray:
    """Return all distances at once; `rank` and `top_k` never hold this matrix.

    Args:
        query: ``(Q, F)`` embeddings, any real dtype; compared in float32 on the CPU.
        gallery: ``(G, F)`` embeddings.
        protocol: Gives the distance: ``1 - cosine`` in [0, 2], or Euclidean, which is exactly 0 from an embedding to
            itself. A zero embedding has cosine 0 to all.

    Returns:
        ``(Q, G)`` float32.

    Raises:
        ValueError: If shapes or dtypes do not fit, a set is empty, or an embedding is not finite.
    """
    protocol = get_protocol(protocol)
    check_shapes(query, gallery)
    if protocol.distance == "euclidean":
        return _euclidean(query, gallery, protocol.normalize)
    result = torch.empty(len(query), len(gallery))
    for start, block in distance_blocks(query, gallery, protocol):
        torch.clamp(1 + block, 0, 2, out=result[start : start + len(block)])
    return result.numpy()


def _euclidean(query: Embeddings, gallery: Embeddings, normalize: bool) -> np.ndarray:
    """Return Euclidean distances ``(Q, G)``: ``|q|^2 + |g|^2 - 2 q.g``, and small ones from the differences."""
    a, a_squares = _with_squares("query", query, normalize)
    b, b_squares = _with_squares("gallery", gallery, normalize)
    squares = torch.empty(len(a), len(b))
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        product(a[rows], b, squares[rows])
        total = a_squares[rows, None] + b_squares
        torch.sub(total, 2 * squares[rows], out=squares[rows])
        i, j = torch.nonzero(squares[rows] < _CANCELLED * total, as_tuple=True)
        for left, right in zip((start + i).split(_PAIRS), j.split(_PAIRS), strict=True):
            squares[left, right] = (a[left] - b[right]).square().sum(dim=1)
    return squares[: len(query), : len(gallery)].sqrt().numpy()


def _with_squares(name: str, embeddings: Embeddings, normalize: bool) -> tuple[Tensor, Tensor]:
    rows = as_float32(embeddings).to(CPU)
    length = _lengths(name, rows)
    if normalize:
        rows = rows / torch.where(length > 0, length, 1)[:, None]
    rows = pad(rows, (0, 0, 0, -len(rows) % _STEP))
    return rows, rows.square().sum(dim=1)


def distance_blocks(
    query: Embeddings,
    gallery: "Embeddings | PreparedGallery",
    protocol: Protocol,
    device: torch.device = CPU,
    queries: slice | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield values that order the gallery of each query as its distances do, smallest first; raise as `distances`.

    Unit length: ``-cosine``, which keeps more digits than ``1 - cosine`` and so has fewer ties. Euclidean without
    normalisation: ``|g|^2 / 2 - q.g``, half the squared distance less a constant of the query.

    The gallery is not copied where it is on the device already. `queries` starts at a multiple of `BLOCK`.

    Yields:
        The first query of a block and its ``(B, G)`` float32 values, a buffer that the next block overwrites.
    """
    check_shapes(query, gallery)
    first, stop = (0, len(query)) if queries is None else (queries.start, queries.stop)
    check_finite("query", query, first, stop)
    tiles = prepared(gallery, protocol, device)
    buffer = torch.empty(padded(min(BLOCK, stop - first)), len(gallery) + -len(gallery) % _STEP, device=device)
    for start in range(first, stop, BLOCK):
        block = query_block(query[start : min(start + BLOCK, stop)], protocol, device)
        for tile in tiles:
            tile.values(block, out=buffer[: len(block), tile.start : tile.start + len(tile.rows)])
        yield start, buffer[: min(BLOCK, stop - start), : len(gallery)]


@dataclass(frozen=True)
class Tile:
    """Gallery entries that one matrix product takes.

    Attributes:
        start: Gallery index of the first one.
        count: How many there are.
        rows: ``(W, F)`` embeddings, W a multiple of 64; zeros after the first `count`. Float32, or float16 with a
            `buffer`.
        scale: ``(W,)`` reciprocal lengths, for comparison at unit length.
        offset: ``(W,)`` half squared lengths, for the Euclidean distance without normalisation.
        buffer: ``(>= W, F)`` float32, into which `values` converts rows: memory that is new each time costs more.
    """

    start: int
    count: int
    rows: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    buffer: Tensor | None = None

    def values(self, block: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the values of a query block against the tile, ``(M, W)``, in `out` if given."""
        if out is None:
            out = torch.empty(len(block), len(self.rows), device=block.device)
        step = len(self.rows)
        if block.device == CPU:
            step = _PIECE if len(block) > 1 else max(_STEP, _CACHED // block.shape[1] // _STEP * _STEP)
        for start in range(0, len(self.rows), step):
            piece = self.rows[start : start + step]
            if self.buffer is not None:
                piece = self.buffer[: len(piece)].copy_(piece)
            product(block, piece, out[:, start : start + step])
        if self.scale is not None:
            out *= self.scale
        if self.offset is not None:
            out += self.offset
        return out


class PreparedGallery:
    """A gallery whose lengths are computed and whose values are checked once, for many searches.

    `rank` and `top_k` take it in the place of the embeddings, with a protocol that compares as this one. Embeddings
    that are float32 are not copied, others are converted a tile at a time: a float16 gallery stays float16. They must
    not change afterwards.

    Args:
        embeddings: ``(G, F)``, a memory-mapped file too.
        protocol: A name that `get_protocol` takes, or a `Protocol`; only whether it normalises counts.
        device: Where to compute; None means the CPU.
        lengths: ``(G,)`` lengths of the embeddings where they are known, for a comparison at unit length: then float16
            embeddings are neither read nor checked before they are searched.

    Raises:
        ValueError: If the array is no non-empty matrix of real numbers, or an embedding is not finite.

    Example:
        >>> gallery = PreparedGallery(embeddings, "camera")
        >>> indices, matches = top_k(query, gallery, query_ids, gallery_ids, "camera")
    """

    def __init__(
        self,
        embeddings: Embeddings,
        protocol: str | Protocol,
        device: torch.device | str | None = None,
        *,
        lengths: np.ndarray | None = None,
    ) -> None:
        check_matrix("gallery", embeddings)
        self.device = torch.device(device or "cpu")
        self.protocol = get_protocol(protocol)
        self.shape = tuple(embeddings.shape)
        self._rows = _on_device(embeddings, self.device)
        self._tiles = list[Tile]()
        converted, known = _is_converted(self._rows), 0
        if lengths is not None and converted and self.protocol.normalize:
            empty = torch.empty(0, self.shape[1], device=self.device)
            for known in range(TILE, len(self._rows) + 1, TILE):
                some = lengths[known - TILE : known]
                scale = torch.from_numpy(1 / np.where(some > 0, some, np.inf)).to(self.device, torch.float32)
                self._tiles.append(Tile(known - TILE, TILE, empty, scale))
        for tile in gallery_tiles([self._rows[known:]], self.protocol, self.device):
            tile = replace(tile, start=tile.start + known)
            dropped = converted and tile.count == len(tile.rows)
            self._tiles.append(replace(tile, rows=tile.rows[:0].clone()) if dropped else tile)

    def __len__(self) -> int:
        """Return the number of entries."""
        return self.shape[0]

    def __repr__(self) -> str:
        return f"PreparedGallery({self.shape[0]} embeddings of width {self.shape[1]}, {self.device})"

    def __iter__(self) -> Iterator[Tile]:
        buffer = None
        for tile in self._tiles:
            if not len(tile.rows):
                stored = self._rows[tile.start : tile.start + tile.count]
                if _is_half(stored):
                    buffer = torch.empty(TILE, self.shape[1], device=self.device) if buffer is None else buffer
                    tile = replace(tile, rows=_as_tensor(stored), buffer=buffer)
                else:
                    tile = replace(tile, rows=as_float32(stored))
            yield tile


def prepared(gallery: Embeddings | PreparedGallery, protocol: Protocol, device: torch.device) -> PreparedGallery:
    """Return a gallery that was prepared for this comparison as it is, embeddings prepared."""
    if not isinstance(gallery, PreparedGallery):
        return PreparedGallery(gallery, protocol, device)
    if gallery.protocol.normalize != protocol.normalize or gallery.device != device:
        raise ValueError(
            f"the gallery was prepared for protocol {gallery.protocol.name!r} on {gallery.device}, which compares "
            f"otherwise than {protocol.name!r} on {device}: prepare it for that"
        )
    return gallery


def gallery_tiles(parts: Iterable[Embeddings], protocol: Protocol, device: torch.device) -> Iterator[Tile]:
    """Cut a gallery that comes in parts ``(n, F)`` into tiles of `TILE` entries, copied only where parts meet.

    What is left at the end makes a tile of as many entries as are a multiple of 64, and one of the others.
    """
    start, waiting, missing = 0, list[Embeddings](), TILE
    for part in parts:
        done, part = 0, _on_device(part, device)
        while done < len(part):
            waiting.append(part[done : done + missing])
            done, missing = done + len(waiting[-1]), missing - len(waiting[-1])
            if not missing:
                yield _tile(_join(waiting), start, protocol)
                start, waiting, missing = start + TILE, [], TILE
    if waiting:
        rows = _join(waiting)
        whole = len(rows) // _STEP * _STEP
        for rest in (rows[:whole], rows[whole:]):
            if len(rest):
                yield _tile(rest, start, protocol)
                start += len(rest)


def _join(parts: list[Embeddings]) -> Tensor:
    return as_float32(parts[0]) if len(parts) == 1 else torch.cat([as_float32(part) for part in parts])


def _tile(rows: Tensor, start: int, protocol: Protocol) -> Tile:
    count, missing = len(rows), -len(rows) % _STEP
    length = pad(_lengths("gallery", rows, start), (0, missing))
    rows = pad(rows, (0, 0, 0, missing)) if missing else rows
    if protocol.normalize:
        return Tile(start, count, rows, scale=torch.where(length > 0, 1 / length, 0))
    return Tile(start, count, rows, offset=rows.square().sum(dim=1) / 2)  # not of the length: a root would round


def value_spans(block: Tensor, tiles: Iterable[Tile]) -> Iterator[tuple[int, Tensor]]:
    """Yield values of a query block against consecutive tiles, several at a time where the queries are few.

    Yields:
        The gallery index of the first column and ``(M, W)`` float32 values, a buffer that the next span overwrites.
    """
    several = max(1, _SPAN // (len(block) * TILE))
    buffer = torch.empty(len(block), several * TILE, device=block.device)
    first = stop = 0
    for tile in tiles:
        if tile.start - first + len(tile.rows) > buffer.shape[1]:
            yield first, buffer[:, : stop - first]
            first = tile.start
        place = tile.start - first
        tile.values(block, out=buffer[:, place : place + len(tile.rows)])
        stop = tile.start + tile.count
    yield first, buffer[:, : stop - first]


def query_block(queries: Embeddings, protocol: Protocol, device: torch.device) -> Tensor:
    """Return negated queries ``(M, F)``, at unit length if the protocol says so, filled up with zero rows."""
    rows = as_float32(queries).to(device)
    if protocol.normalize:
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows / torch.where(length > 0, length, 1)
    return pad(-rows, (0, 0, 0, padded(len(rows)) - len(rows)))


def padded(queries: int) -> int:
    """Return the rows of a product of so many queries: of one alone (a matrix-vector product), else multiples of 64."""
    return queries if queries == 1 else queries + -queries % _STEP


def check_matrix(name: str, embeddings: Embeddings) -> None:
    """Raise ValueError unless embeddings are a non-empty matrix of real numbers."""
    if not isinstance(embeddings, np.ndarray | Tensor):
        raise ValueError(f"{name} embeddings must be a NumPy array or a tensor; got {type(embeddings).__name__}")
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        shape = tuple(embeddings.shape)
        raise ValueError(f"{name} embeddings must be a non-empty (samples, features) array; got {shape}")
    real = embeddings.dtype.kind in "fiub" if isinstance(embeddings, np.ndarray) else not embeddings.is_complex()
    if not real:
        raise ValueError(f"{name} embeddings must be real numbers; got {show(embeddings.dtype)}")


def check_shapes(query: Embeddings, gallery: Embeddings | PreparedGallery) -> None:
    """Raise ValueError unless both are non-empty matrices with as many features."""
    check_matrix("query", query)
    if not isinstance(gallery, PreparedGallery):
        check_matrix("gallery", gallery)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query embeddings have {query.shape[1]} features but gallery embeddings have {gallery.shape[1]}: "
            "extract both with the same model"
        )


def check_finite(name: str, embeddings: Embeddings, start: int, stop: int) -> None:
    """Raise ValueError if an embedding in ``start:stop`` is not finite or is too long."""
    for first in range(start, stop, TILE):
        _lengths(name, embeddings[first : min(stop, first + TILE)], first)


def as_float32(embeddings: Embeddings) -> Tensor:
    """Return a float32 tensor, the same memory where it is one already."""
    if isinstance(embeddings, Tensor):
        return embeddings.detach().to(torch.float32).contiguous()
    if _is_half(embeddings):
        return _as_tensor(embeddings).to(torch.float32)  # several times faster than NumPy
    with np.errstate(over="ignore"):
        return _as_tensor(embeddings.astype(np.float32, copy=False))


def _is_half(embeddings: Embeddings) -> bool:
    """Whether torch converts them by itself, and fast."""
    if isinstance(embeddings, Tensor):
        return embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.dtype == np.float16 and embeddings.dtype.isnative


def _as_tensor(array: Embeddings) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a file mapped read-only is only read here
        return torch.from_numpy(np.ascontiguousarray(array))


def _is_converted(embeddings: Embeddings) -> bool:
    """Whether `as_float32` copies slices of these embeddings."""
    some = embeddings[:2]
    return as_float32(some).data_ptr() != (some.data_ptr() if isinstance(some, Tensor) else some.ctypes.data)


def _on_device(embeddings: Embeddings, device: torch.device) -> Embeddings:
    """Return embeddings on a device in their own dtype; on the CPU those that are there as they are."""
    if device == CPU and not isinstance(embeddings, Tensor):
        return embeddings
    rows = embeddings if isinstance(embeddings, Tensor) else _as_tensor(embeddings)
    return rows.detach().to(device)


def _lengths(name: str, embeddings: Embeddings, start: int = 0) -> Tensor:
    """Return the lengths of embeddings, the first of which has index `start`; raise if one is not finite."""
    lengths = torch.linalg.vector_norm(as_float32(embeddings), dim=1)
    bad = torch.nonzero(~(lengths <= _LONGEST)).flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(lengths)} {name} embeddings hold NaN, infinite or too large values, the first at "
            f"index {start + int(bad[0])}: check the weights, the inputs and half-precision overflow"
        )
    return lengths
