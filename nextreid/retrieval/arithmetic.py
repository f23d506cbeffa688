"""The heavy inner steps of retrieval, exact on every device: products of embeddings, and counting nearer entries.

An entry of a row of values has a *key*: an int64 whose upper half orders as the value does and whose lower half is the
entry's gallery column. Keys are distinct, and their order is that of a stable sort by value.

On a CPU both steps run in NumPy, which is several times faster there than torch.
"""

import numpy as np
import torch
from torch import Tensor

PADDING = np.iinfo(np.int64).max
"""A key behind all others, for the end of short rows."""

_LARGEST = np.finfo(np.float32).max
_AT_ONCE = 2**19  # values that the host counts at once; their temporaries stay in the cache
_FEW = 16  # a sixteenth of a row
_MAX_BINS = 2048


def order_keys(values: Tensor, columns: Tensor | int = 0) -> Tensor:
    """Turn finite float32 values ``(..., T)`` into int64 keys; `columns` is that of each value or of a row's first.

    The upper half of a key is the bit pattern of the value, with the magnitude of negative values flipped so that
    integers compare as the floats do.
    """
    if isinstance(columns, int):
        columns = torch.arange(columns, columns + values.shape[-1], device=values.device)
    bits = (values + 0.0).view(torch.int32)  # adding zero makes -0.0 and 0.0 one value
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32) | columns


def key_values(keys: np.ndarray) -> np.ndarray:
    """Return the float32 values that keys were made from."""
    bits = (keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits.view(np.float32)


def product(query: Tensor, gallery: Tensor, out: Tensor) -> None:
    """Write ``query @ gallery.T`` to `out`, in float32 whatever autocast and reduced precision training has allowed."""
    if out.device.type != "cpu":
        return _product_on_device(query, gallery, out)
    np.matmul(query.numpy(), gallery.numpy().T, out=out.numpy())


def _product_on_device(query: Tensor, gallery: Tensor, out: Tensor) -> None:
    matmul, cuda = torch.backends.cuda.matmul, out.device.type == "cuda"
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    try:
        if cuda:
            setattr(matmul, name, exact)
        with torch.autocast(out.device.type, enabled=False):
            out.copy_(query @ gallery.T)
    finally:
        if cuda:
            setattr(matmul, name, before)


def count_nearer(values: Tensor, first_column: int, points: np.ndarray) -> np.ndarray:
    """Count, for each key of `points`, the entries of its row whose keys are smaller.

    Values are ``(B, T)`` float32, `first_column` is the gallery column of the first of each row. Points and counts are
    ``(B, S)`` int64, points ascending in each row; the count of `PADDING` means nothing.
    """
    if values.device.type != "cpu":
        return _count_on_device(values, first_column, points)
    rows = max(1, _AT_ONCE // values.shape[1])
    parts = [slice(start, start + rows) for start in range(0, len(points), rows)]
    return np.concatenate([_count(values.numpy()[part], first_column, points[part]) for part in parts])


def _count_on_device(values: Tensor, first_column: int, points: np.ndarray) -> np.ndarray:
    num_rows, width = points.shape
    marks = torch.from_numpy(points).to(values.device)
    # a key is counted by every point behind it: by all from the first one that is larger
    bins = torch.searchsorted(marks, order_keys(values, first_column), right=True)
    bins += (width + 1) * torch.arange(num_rows, device=values.device)[:, None]
    counts = torch.bincount(bins.view(-1), minlength=num_rows * (width + 1)).view(num_rows, width + 1)
    return counts.cumsum(1)[:, :width].cpu().numpy()


def count_smaller(sorted_keys: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return how many keys of each ascending row ``(B, K)`` are smaller than each of its points ``(B, S)``."""
    return torch.searchsorted(torch.from_numpy(sorted_keys), torch.from_numpy(points)).numpy()


def merge_nearest(best: np.ndarray, values: np.ndarray, first_column: int) -> np.ndarray:
    """Merge the entries of a tile into the nearest ones so far.

    Args:
        best: ``(B, K)`` int64 keys of entries with smaller columns, ascending in each row and padded.
        values: ``(B, W)`` float32 values of the tile; infinite where an entry does not count.
        first_column: Gallery column of the first of each row.

    Returns:
        ``(B, K)`` the smallest keys of both, ascending and padded.
    """
    last = best[:, -1:]
    if (last == PADDING).any():  # partition is slow, but no row stays unfilled for long
        kth = min(best.shape[1], values.shape[1]) - 1
        limit = np.minimum(np.partition(values, kth, axis=1)[:, kth, None], _LARGEST)
        near = values <= np.where(last == PADDING, limit, np.minimum(limit, key_values(last)))
    else:
        near = values < key_values(last)  # at the same value the smaller column is nearer
    return np.sort(np.concatenate([best, _keys_where(values, near, first_column)], axis=1), axis=1)[:, : best.shape[1]]


def _count(values: np.ndarray, first_column: int, points: np.ndarray) -> np.ndarray:
    """Count nearer entries: in most rows few are as near as the farthest point, and only their keys are sorted."""
    low, high = _range(points)
    near = values <= high
    many = np.count_nonzero(near, axis=1) > values.shape[1] // _FEW
    near[many] = False
    result = count_smaller(_keys_where(values, near, first_column), points)
    if many.any():
        result[many] = _count_in_bins(values[many], first_column, points[many], low[many], high[many])
    return result


def _count_in_bins(
    values: np.ndarray, first_column: int, points: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Count nearer entries without sorting rows.

    A row is cut into equal bins between its smallest and its largest point. An entry in a lower bin than a point is
    nearer, one in a higher bin is not; only the few entries in the bins of points are compared exactly, by their keys.
    Rounding cannot break this, because each step from value to bin is monotone. A row with many entries in those bins
    (heavy ties, an outlier among the points) is sorted instead.
    """
    num_rows, width = values.shape
    bins = min(_MAX_BINS, 1 << max(4, (width // 4).bit_length()))
    scale = np.minimum((bins - 1) / np.maximum(high - low, np.float32(1e-30)), 1e30).astype(np.float32)
    first_bin = (1 + (bins + 2) * np.arange(num_rows, dtype=np.float32))[:, None]  # after one for all that is nearer

    def bin_of(some: np.ndarray) -> np.ndarray:
        place = np.subtract(some, low)
        with np.errstate(over="ignore"):
            np.multiply(place, scale, out=place)
        np.clip(place, -1, bins, out=place)
        np.add(place, first_bin, out=place)
        return place.astype(np.int64)

    entry_bin = bin_of(values)
    point_bin = bin_of(np.where(points == PADDING, low, key_values(points)))
    counts = np.bincount(entry_bin.ravel(), minlength=num_rows * (bins + 2)).reshape(num_rows, -1)
    shared = np.zeros(counts.size, bool)
    shared[point_bin] = True
    by_row = shared.reshape(num_rows, -1)
    lower = np.where(by_row, 0, counts).cumsum(axis=1)
    crowded = np.flatnonzero(width - lower[:, -1] > width // 4)
    by_row[crowded] = False
    close = shared.take(entry_bin)
    nearer = lower.ravel()[point_bin] + count_smaller(_keys_where(values, close, first_column), points)
    if crowded.size:
        keys = order_keys(torch.from_numpy(values[crowded]), first_column).numpy()
        nearer[crowded] = count_smaller(np.sort(keys, axis=1), points[crowded])
    return nearer


def _range(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest value of each row's points, ``(B, 1)`` float32, 0 where there is none."""
    last = np.maximum((points != PADDING).sum(axis=1, keepdims=True) - 1, 0)
    ends = key_values(np.concatenate([points[:, :1], np.take_along_axis(points, last, axis=1)], axis=1))
    ends = np.where(points[:, :1] == PADDING, np.float32(0), ends)
    return ends[:, :1], ends[:, 1:]


def _keys_where(values: np.ndarray, chosen: np.ndarray, first_column: int) -> np.ndarray:
    """Return the keys of chosen entries of each row in order, padded to one width."""
    width = values.shape[1]
    flat = np.flatnonzero(chosen)
    count = np.diff(np.searchsorted(flat, width * np.arange(len(values) + 1)))
    row = np.repeat(np.arange(len(values)), count)
    column = flat - width * row
    keys = order_keys(torch.from_numpy(values[row, column]), torch.from_numpy(column + first_column)).numpy()
    return np.sort(pad_rows(keys, row, count, PADDING), axis=1)


def pad_rows(values: np.ndarray, row: np.ndarray, count: np.ndarray, fill: int) -> np.ndarray:
    """Lay out values ordered by their row, `count` of them in each of B rows, as ``(B, S)``, filled up at the end."""
    padded = np.full((len(count), max(1, count.max(initial=0))), fill, values.dtype)
    padded[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = values
    return padded
