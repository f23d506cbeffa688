"""Distances between two sets of embeddings, a block of queries and a tile of the gallery at a time.

Every matrix product has a shape that follows from the number of queries, the number of gallery entries and `BLOCK` and
`TILE` alone, and is filled up with zeros to multiples of 64. So a value has the same bits whether the gallery comes
whole or in shards, and whether one process computes all queries or several share them.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .arithmetic import product
from .protocol import Protocol, get_protocol

Embeddings: TypeAlias = np.ndarray | Tensor
CPU = torch.device("cpu")

BLOCK = 384
"""Queries of one matrix product."""
TILE = 4096
"""Gallery entries of one matrix product."""

_STEP = 64
_LONGEST = 1e18  # products of two embeddings stay far below the largest float32


def distances(query: Embeddings, gallery: Embeddings, protocol: str | Protocol) -> np.ndarray:
    """Return all distances at once; `rank` and `top_k` never hold this matrix.

    Args:
        query: ``(Q, F)`` embeddings, any float type; compared in float32 on the CPU.
        gallery: ``(G, F)`` embeddings.
        protocol: Gives the distance: ``1 - cosine`` in [0, 2], or Euclidean. A zero embedding has cosine 0 to all.

    Returns:
        ``(Q, G)`` float32.

    Raises:
        ValueError: If shapes do not fit, a set is empty, or an embedding is not finite.
    """
    protocol = get_protocol(protocol)
    result = torch.empty(len(query), len(gallery))
    for start, block in distance_blocks(query, gallery, protocol):
        rows = result[start : start + len(block)]
        if protocol.distance == "cosine":
            torch.clamp(1 + block, 0, 2, out=rows)
        else:
            length = _lengths("query", query[start : start + len(block)])[:, None]
            squares = 2 + 2 * block if protocol.normalize else length.square() + 2 * block
            torch.sqrt(squares.clamp(min=0), out=rows)
    return result.numpy()


def distance_blocks(
    query: Embeddings, gallery: Embeddings, protocol: Protocol, device: torch.device = CPU, queries: slice | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield values that order the gallery of each query as its distances do, smallest first; raise as `distances`.

    Unit length: ``-cosine``, which keeps more digits than ``1 - cosine`` and so has fewer ties. Euclidean without
    normalisation: ``|g|^2 / 2 - q.g``, half the squared distance less a constant of the query.

    The gallery is not copied where it is float32 and on the device already. `queries` starts at a multiple of `BLOCK`.

    Yields:
        The first query of a block and its ``(B, G)`` float32 values, a buffer that the next block overwrites.
    """
    check_shapes(query, gallery)
    first, stop = (0, len(query)) if queries is None else (queries.start, queries.stop)
    check_finite("query", query, first, stop)
    tiles = list(gallery_tiles([gallery], protocol, device))
    sizes = (count + -count % _STEP for count in (min(BLOCK, stop - first), len(gallery)))
    buffer = torch.empty(*sizes, device=device)
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
        rows: ``(W, F)`` float32 embeddings, W a multiple of 64; zeros after the first `count`.
        scale: ``(W,)`` reciprocal lengths, for comparison at unit length.
        offset: ``(W,)`` half squared lengths, for the Euclidean distance without normalisation.
    """

    start: int
    count: int
    rows: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None

    def values(self, block: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the values of a query block against the tile, ``(M, W)``, in `out` if given."""
        if out is None:
            out = torch.empty(len(block), len(self.rows), device=block.device)
        product(block, self.rows, out)
        if self.scale is not None:
            out *= self.scale
        if self.offset is not None:
            out += self.offset
        return out


def gallery_tiles(parts: Iterable[Embeddings], protocol: Protocol, device: torch.device) -> Iterator[Tile]:
    """Cut a gallery that comes in parts ``(n, F)`` into tiles of `TILE` entries, copied only where parts meet."""
    start, waiting, missing = 0, list[Tensor](), TILE
    for part in parts:
        rows = as_float32(part).to(device)
        while len(rows):
            waiting.append(rows[:missing])
            rows, missing = rows[missing:], missing - len(waiting[-1])
            if not missing:
                yield _tile(waiting, start, protocol)
                start, waiting, missing = start + TILE, [], TILE
    if waiting:
        yield _tile(waiting, start, protocol)


def _tile(parts: list[Tensor], start: int, protocol: Protocol) -> Tile:
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    count, missing = len(rows), -len(rows) % _STEP
    length = pad(_lengths("gallery", rows, start), (0, missing))
    rows = pad(rows, (0, 0, 0, missing)) if missing else rows
    if protocol.normalize:
        return Tile(start, count, rows, scale=torch.where(length > 0, 1 / length, 0))
    return Tile(start, count, rows, offset=rows.square().sum(dim=1) / 2)  # not of the length: a root would round


def query_block(queries: Embeddings, protocol: Protocol, device: torch.device) -> Tensor:
    """Return negated queries ``(M, F)``, at unit length if the protocol says so, zero rows up to a multiple of 64."""
    rows = as_float32(queries).to(device)
    if protocol.normalize:
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows / torch.where(length > 0, length, 1)
    return pad(-rows, (0, 0, 0, -len(rows) % _STEP))


def check_shapes(query: Embeddings, gallery: Embeddings) -> None:
    """Raise ValueError unless both are non-empty matrices with as many features."""
    for name, embeddings in (("query", query), ("gallery", gallery)):
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            shape = tuple(embeddings.shape)
            raise ValueError(f"{name} embeddings must be a non-empty (samples, features) array; got {shape}")
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
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a file mapped read-only is only read here
        return torch.from_numpy(np.ascontiguousarray(embeddings, np.float32))


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
