"""Distances between two sets of embeddings, a block of queries at a time."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch

from .protocol import Protocol, get_protocol

Embeddings: TypeAlias = np.ndarray | torch.Tensor

STRIP = 64


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
    result = np.empty((len(query), len(gallery)), np.float32)
    for start, block in nearness_blocks(query, gallery, protocol):
        result[start : start + len(block)] = block
    if protocol.distance == "cosine":
        return np.clip(1 + result, 0, 2)
    squares = np.square(_prepare("query", query, protocol.normalize)[: len(query)]).sum(axis=1, keepdims=True)
    return np.sqrt(np.maximum(squares + 2 * result, 0))


def nearness_blocks(
    query: Embeddings, gallery: Embeddings, protocol: Protocol, block: int = STRIP
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield values that order the gallery of each query as its distances do, smallest first.

    Cosine: ``-q.g``, which keeps more digits than ``1 - q.g`` and so has fewer ties. Euclidean: ``|g|^2 / 2 - q.g``,
    half the squared distance less a constant of the query.

    Every matrix product has 64 queries (zeros fill the last), and the gallery is filled up to a multiple of 64, so
    that the rounding of a value does not depend on `block`.

    Args:
        query: ``(Q, F)``.
        gallery: ``(G, F)``.
        protocol: Gives distance and normalisation.
        block: Queries to hold at once, rounded up to a multiple of 64.

    Yields:
        The first query of a block and its ``(B, G)`` float32 values, a buffer that the next block overwrites.

    Raises:
        ValueError: As for `distances`.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    num_query, num_gallery = len(query), len(gallery)
    query, gallery = _prepare("query", query, protocol.normalize), _prepare("gallery", gallery, protocol.normalize)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query embeddings have {query.shape[1]} features but gallery embeddings have {gallery.shape[1]}: "
            "extract both with the same model"
        )
    np.negative(query, out=query)
    offset = np.square(gallery).sum(axis=1) / 2 if protocol.distance == "euclidean" else None
    rows = -(-block // STRIP) * STRIP
    buffer = np.empty((min(rows, len(query)), len(gallery)), np.float32)
    for start in range(0, num_query, rows):
        stop = min(start + rows, num_query)
        for strip in range(start, stop, STRIP):
            out = buffer[strip - start : strip - start + STRIP]
            # NumPy, not torch: a product in torch may run in bfloat16 or TF32 under settings made for training
            np.matmul(query[strip : strip + STRIP], gallery.T, out=out)
            if offset is not None:
                out += offset
        yield start, buffer[: stop - start, :num_gallery]


def stable_keys(values: np.ndarray) -> np.ndarray:
    """Turn ``(B, G)`` float32 values into distinct int64 keys ordered by value, then by column.

    The upper half of a key is the bit pattern of the value, with the magnitude of negative values flipped so that
    integers compare as the floats do; the lower half is the column.
    """
    bits = (values + np.float32(0)).view(np.int32)  # adding zero makes -0.0 and 0.0 one value
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return (bits.astype(np.int64) << 32) | np.arange(values.shape[1])


def _prepare(name: str, embeddings: Embeddings, normalize: bool) -> np.ndarray:
    """Return a float32 copy, checked, of unit length if asked, with zero rows up to a multiple of `STRIP`."""
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().to("cpu", torch.float32).numpy()
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"{name} embeddings must be a non-empty (samples, features) array; got {embeddings.shape}")
    count = len(embeddings)
    rows = np.zeros((-(-count // STRIP) * STRIP, embeddings.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        rows[:count] = embeddings
        squares = np.einsum("nf,nf->n", rows, rows)
    bad = np.flatnonzero(~np.isfinite(squares))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {count} {name} embeddings hold NaN, infinite or too large values, the first at index "
            f"{bad[0]}: check the weights, the inputs and half-precision overflow"
        )
    if normalize:
        lengths = np.sqrt(squares)
        rows /= np.where(lengths > 0, lengths, 1)[:, None]
    return rows
