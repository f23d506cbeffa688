"""Who is who: labels of a split, and for each query the gallery entries of its own identity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .protocol import Protocol


@dataclass(frozen=True, eq=False)
class Identities:
    """Labels of S samples.

    Attributes:
        pid: ``(S,)`` int64 identities.
        camid: ``(S,)`` int64 cameras, -1 where unknown; None means unknown everywhere.
        sceneid: ``(S,)`` int64 scenes, -1 where there is none; None means none everywhere.

    Raises:
        ValueError: If the arrays are not one-dimensional integers of one length.
    """

    pid: np.ndarray
    camid: np.ndarray | None = None
    sceneid: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pid", _labels("pid", self.pid))
        for name in ("camid", "sceneid"):
            given = getattr(self, name)
            labels = np.full_like(self.pid, -1) if given is None else _labels(name, given)
            if labels.shape != self.pid.shape:
                raise ValueError(f"{name} has {len(labels)} entries but pid has {len(self.pid)}")
            object.__setattr__(self, name, labels)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.pid)


def _labels(name: str, labels: ArrayLike) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(f"{name} must be a one-dimensional integer array; got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


class SameIdentity:
    """For each query, the gallery entries of its identity: those that count, and those that are taken out.

    Entries are taken out by the protocol (same camera, same scene) and, where keys are given, because they are the
    query itself. Either way they share the query's identity, so an entry of another identity always stays.

    Args:
        query: Labels of the Q queries.
        gallery: Labels of the G gallery entries.
        protocol: The rule of exclusion.
        query_keys: Q unique names of the queries, or None.
        gallery_keys: G unique names of the gallery entries, or None.

    Raises:
        ValueError: If only one of the key lists is given, their lengths do not fit, gallery keys repeat, or a key
            stands for different identities in query and gallery.
    """

    def __init__(
        self,
        query: Identities,
        gallery: Identities,
        protocol: Protocol,
        query_keys: Sequence[str] | None = None,
        gallery_keys: Sequence[str] | None = None,
    ) -> None:
        self._by_pid = np.argsort(gallery.pid, kind="stable")
        sorted_pid = gallery.pid[self._by_pid]
        self._first = np.searchsorted(sorted_pid, query.pid, side="left")
        self._count = np.searchsorted(sorted_pid, query.pid, side="right") - self._first
        self._query_label = {"camera": query.camid, "scene": query.sceneid, "none": None}[protocol.exclude]
        self._gallery_label = {"camera": gallery.camid, "scene": gallery.sceneid, "none": None}[protocol.exclude]
        self._itself = _find_itself(query, gallery, query_keys, gallery_keys)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the entries of the queries ``start:stop``, B of them, in gallery order and padded to one width S.

        Returns:
            Gallery indices ``(B, S)`` int64 (0 in the padding), which of them count as matches ``(B, S)`` bool, and
            which of them are taken out ``(B, S)`` bool. Both are False in the padding; S is at least 1.
        """
        count = self._count[start:stop, None]
        column = np.arange(max(1, count.max(initial=0)))
        real = column < count
        index = self._by_pid[np.where(real, self._first[start:stop, None] + column, 0)]
        index = np.where(real, index, 0)
        out = index == self._itself[start:stop, None]
        if self._query_label is not None and self._gallery_label is not None:
            out |= self._gallery_label[index] == self._query_label[start:stop, None]
        return index, real & ~out, real & out


def _find_itself(
    query: Identities,
    gallery: Identities,
    query_keys: Sequence[str] | None,
    gallery_keys: Sequence[str] | None,
) -> np.ndarray:
    """Return where each query itself stands in the gallery, ``(Q,)`` int64, -1 where it does not."""
    if query_keys is None and gallery_keys is None:
        return np.full(len(query), -1)
    if query_keys is None or gallery_keys is None:
        raise ValueError("query_keys and gallery_keys belong together: give both or neither")
    for name, keys, ids in (("query", query_keys, query), ("gallery", gallery_keys, gallery)):
        if len(keys) != len(ids):
            raise ValueError(f"{name}_keys has {len(keys)} entries but the {name} has {len(ids)}")
    place = {key: index for index, key in enumerate(gallery_keys)}
    if len(place) != len(gallery_keys):
        raise ValueError(f"gallery_keys holds {len(gallery_keys) - len(place)} repeated keys; keys must be unique")
    itself = np.fromiter((place.get(key, -1) for key in query_keys), np.int64, len(query))
    wrong = np.flatnonzero((itself >= 0) & (gallery.pid[itself] != query.pid))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} keys stand for different identities in query and gallery, "
            f"for example {query_keys[wrong[0]]!r}: keys must name one sample"
        )
    return itself
