"""k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017).

N counts queries and gallery together, as in the paper. No N x N array is ever held: neighbours come from blocks of
distances, the encoding of each sample is a short sparse row, and the Jaccard sums walk over inverted lists.

Distances are squared Euclidean ones, divided by the largest in each row, as in the authors' code: between embeddings of
unit length, or as they are if the protocol does not normalise. Neighbours at one distance are taken in order of index,
queries before the gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextreid._names import show

from .arithmetic import order_keys
from .distance import BLOCK, TILE, Embeddings, as_float32, check_finite, check_shapes, distance_blocks
from .protocol import Protocol

_NONE = -1
_ROWS = 1024  # samples whose neighbourhoods are expanded at once
_PAIRS = 2**10  # embeddings whose distances are computed pair by pair at once; their rows stay in the cache
_SUMS = 2**22  # entries of a block of Jaccard sums


@dataclass(frozen=True)
class Rerank:
    """Settings of the re-ranking, with the paper's values.

    Choose others on training identities: chosen on the test set, they overfit it.

    Attributes:
        k1: Size of the neighbourhood.
        k2: Neighbours over which encodings are averaged; 1 for none.
        lambda_value: Weight of the original distance against the Jaccard distance.

    Raises:
        ValueError: If a value is out of range.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self) -> None:
        counts = all(isinstance(k, int | np.integer) and k >= 1 for k in (self.k1, self.k2))
        if not counts or not 0 <= self.lambda_value <= 1:
            raise ValueError(
                f"re-ranking needs integers k1 and k2 of at least 1 and lambda_value in [0, 1]; got {show(self)}"
            )

    def __str__(self) -> str:
        return f"re-ranked (k1 {self.k1}, k2 {self.k2}, lambda {self.lambda_value})"


@dataclass(frozen=True)
class _Rows:
    """A sparse matrix: row i holds `value` at `column`, both sliced ``start[i] : start[i + 1]``."""

    start: np.ndarray
    column: np.ndarray
    value: np.ndarray


def reranked_blocks(
    query: Embeddings, gallery: Embeddings, protocol: Protocol, rerank: Rerank, device: torch.device, queries: slice
) -> Iterator[tuple[int, Tensor]]:
    """Yield re-ranked distances as `distance_blocks` yields distances; neighbourhoods are those of all queries.

    Distances and neighbours are computed on `device`, the rest and what is yielded on the CPU.
    """
    check_shapes(query, gallery)
    check_finite("gallery", gallery, 0, len(gallery))
    num_query, num_gallery = len(query), len(gallery)
    everyone = torch.cat([as_float32(query).to("cpu"), as_float32(gallery).to("cpu")])
    # what makes a squared distance of twice a value of `distance_blocks`
    if protocol.normalize:
        squares = np.full(len(everyone), 2, np.float32)
    else:
        squares = torch.cat([rows.square().sum(dim=1) for rows in everyone.split(TILE)]).numpy()
    count = min(len(everyone), max(rerank.k1 + 1, rerank.k2))
    neighbours, farthest = _neighbours(everyone, squares, protocol, device, count)
    encoding = _encode(neighbours, everyone, squares, farthest, protocol, rerank.k1)
    if rerank.k2 > 1:
        encoding = _average(encoding, neighbours[:, : rerank.k2])
    lists = _inverted(encoding, num_query)

    step = max(1, min(BLOCK, _SUMS // num_gallery))
    for first, values in distance_blocks(everyone[:num_query], everyone[num_query:], protocol, device, queries):
        block = values.cpu().numpy() * 2
        rows = slice(first, first + len(block))
        block += squares[rows, None]
        np.maximum(block, 0, out=block)
        block *= rerank.lambda_value / farthest[rows, None]
        for start in range(0, len(block), step):
            part = block[start : start + step]
            shared = _shared(encoding, lists, first + start, len(part), num_gallery)
            part += (1 - rerank.lambda_value) * (1 - shared / (2 - shared))
        yield first, torch.from_numpy(block)


def _neighbours(
    everyone: Tensor, squares: np.ndarray, protocol: Protocol, device: torch.device, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest samples of each, itself among them, ``(N, count)`` int32, and its largest squared distance."""
    total = len(everyone)
    nearest, farthest = np.empty((total, count), np.int32), np.empty(total, np.float32)
    for start, values in distance_blocks(everyone, everyone, protocol, device):
        rows = slice(start, start + len(values))
        top, index = torch.topk(values, min(count + 1, total), dim=1, largest=False, sorted=True)
        keys = order_keys(top[:, :count].contiguous(), index[:, :count]).sort(dim=1).values
        if count < total:
            tied = torch.nonzero(top[:, count] == top[:, count - 1]).flatten()  # topk takes any of them
            if len(tied):
                some = order_keys(values[tied]).cpu().numpy()
                some = np.sort(np.partition(some, count - 1, axis=1)[:, :count], axis=1)
                keys[tied] = torch.from_numpy(some).to(keys.device)
        nearest[rows] = (keys & 0xFFFFFFFF).cpu().numpy()
        farthest[rows] = squares[rows] + 2 * values.amax(dim=1).cpu().numpy()
    return nearest, np.maximum(farthest, np.finfo(np.float32).tiny)


def _encode(
    neighbours: np.ndarray, everyone: Tensor, squares: np.ndarray, farthest: np.ndarray, protocol: Protocol, k1: int
) -> _Rows:
    """Return the soft k-reciprocal encoding of each sample: the paper's Eq. 3, 4 and 7, rows of sum 1."""
    near, half = _reciprocal(neighbours, k1 + 1), _reciprocal(neighbours, round(k1 / 2) + 1)
    counts, columns = [], []
    for start in range(0, len(near), _ROWS):
        own = near[start : start + _ROWS]
        theirs = np.where((own != _NONE)[:, :, None], half[own], _NONE)
        inside = np.zeros(theirs.shape, bool)
        for place in range(own.shape[1]):
            inside |= theirs == own[:, place, None, None]
        inside &= theirs != _NONE
        alike = 3 * inside.sum(axis=2) > 2 * (theirs != _NONE).sum(axis=2)
        grown = np.where(alike[:, :, None], theirs, _NONE).reshape(len(own), -1)
        members = np.sort(np.concatenate([own, grown], axis=1), axis=1)
        new = members != _NONE
        new[:, 1:] &= members[:, 1:] != members[:, :-1]
        counts.append(new.sum(axis=1))
        columns.append(members[new])
    count, column = np.concatenate(counts), np.concatenate(columns)
    row, start_of = np.repeat(np.arange(len(near)), count), _starts(count)
    weight = np.exp(-_pair_distances(everyone, squares, protocol, row, column) / farthest[row])
    filled = count > 0  # a sample with more than k1 duplicates may have no reciprocal neighbour, not even itself
    weight /= np.repeat(np.add.reduceat(weight, start_of[:-1][filled]), count[filled])
    return _Rows(start_of, column, weight)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Return where rows of so many entries begin, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(counts)])


def _reciprocal(neighbours: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest of each sample that have it among their own k nearest, ``(N, k)``, -1 for the others."""
    forward = neighbours[:, :k]
    result = np.full_like(forward, _NONE)
    for start in range(0, len(forward), _ROWS):
        own = forward[start : start + _ROWS]
        itself = np.arange(start, start + len(own))[:, None, None]
        result[start : start + _ROWS] = np.where((forward[own] == itself).any(axis=2), own, _NONE)
    return result


def _pair_distances(
    everyone: Tensor, squares: np.ndarray, protocol: Protocol, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """Return the squared distances of listed pairs, float32."""
    rows, result = everyone.numpy(), np.empty(len(row), np.float32)
    length = torch.linalg.vector_norm(everyone, dim=1).numpy()
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        i, j = row[part], column[part]
        product = np.einsum("pf,pf->p", rows[i], rows[j])
        if protocol.normalize:
            product *= scale[i] * scale[j]
        result[part] = (2 if protocol.normalize else squares[i] + squares[j]) - 2 * product
    return np.maximum(result, 0)


def _average(rows: _Rows, neighbours: np.ndarray) -> _Rows:
    """Return the mean of the rows of each sample's first neighbours: the paper's Eq. 11."""
    total, k = neighbours.shape
    length = np.diff(rows.start)
    counts, columns, values = [], [], []
    for start in range(0, total, _ROWS):
        chosen = neighbours[start : start + _ROWS].ravel()
        entry = _slices(rows.start[chosen], length[chosen])
        owner = np.repeat(np.arange(len(chosen)) // k, length[chosen])
        key = owner * total + rows.column[entry]
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        values.append(np.add.reduceat(rows.value[entry[order]], first) / np.float32(k))
        counts.append(np.bincount(key[first] // total, minlength=len(chosen) // k))
        columns.append((key[first] % total).astype(np.int32))
    return _Rows(_starts(np.concatenate(counts)), np.concatenate(columns), np.concatenate(values))


def _inverted(rows: _Rows, num_query: int) -> _Rows:
    """Return the transpose of the gallery's rows: for each sample the gallery entries whose encoding holds it."""
    first = rows.start[num_query]
    column = rows.column[first:]
    order = np.argsort(column, kind="stable")
    total = len(rows.start) - 1
    entry = np.repeat(np.arange(total - num_query, dtype=np.int32), np.diff(rows.start[num_query:]))
    return _Rows(_starts(np.bincount(column, minlength=total)), entry[order], rows.value[first:][order])


def _shared(rows: _Rows, lists: _Rows, start: int, count: int, num_gallery: int) -> np.ndarray:
    """Return the summed element-wise minima of some queries' rows and all gallery rows, ``(count, G)`` float32."""
    entries = slice(rows.start[start], rows.start[start + count])
    column = rows.column[entries]
    length = lists.start[column + 1] - lists.start[column]
    entry = _slices(lists.start[column], length)
    low = np.minimum(np.repeat(rows.value[entries], length), lists.value[entry])
    owner = np.repeat(np.arange(count), np.diff(rows.start[start : start + count + 1]))
    cell = np.repeat(owner * num_gallery, length) + lists.column[entry]
    sums = np.bincount(cell, weights=low, minlength=count * num_gallery)
    return sums.reshape(count, num_gallery).astype(np.float32)


def _slices(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the indices of consecutive slices, one after the other."""
    end = np.cumsum(length)
    return np.arange(end[-1] if len(end) else 0) + np.repeat(start - (end - length), length)
