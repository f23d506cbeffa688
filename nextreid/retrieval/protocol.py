"""Evaluation protocols as data, and for each query the gallery entries that it has to find or ignores under them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from nextreid._names import show, unknown

Exclude = Literal["camera", "scene", "none"]
Distance = Literal["cosine", "euclidean"]
Feature = Literal["before_neck", "after_neck"]
Ties = Literal["stable", "optimistic", "pessimistic"]
_LABELS = {"camera": "camid", "scene": "sceneid"}


@dataclass(frozen=True)
class Protocol:
    """Which samples are query and gallery, what a query ignores, and how two embeddings are compared.

    Attributes:
        name: Printed with every metric.
        exclude: A query ignores the gallery entries of its own identity that share its camera (``"camera"``), its
            scene (``"scene"``), or ignores nothing (``"none"``).
        distance: ``"cosine"`` or ``"euclidean"``.
        normalize: Whether embeddings are scaled to unit length first; always so for cosine.
        feature: The embedding to extract, before or after the batch-norm neck.
        query_rule: In words, which samples are the queries. The reader of a dataset applies it.
        gallery_rule: In words, which samples are the gallery.
        query_modalities: The modalities that a query has, in the order of the dataset; None for all.
        gallery_modalities: The modalities that a gallery entry has, likewise.
        ties: Where a match ranks among other entries at exactly its distance: ``"stable"`` in gallery order,
            ``"optimistic"`` before them, ``"pessimistic"`` after them.
        version: Raised when a named protocol changes its metrics.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    name: str
    exclude: Exclude
    distance: Distance = "cosine"
    normalize: bool = True
    feature: Feature = "before_neck"
    query_rule: str = field(default="the samples given as queries", repr=False)
    gallery_rule: str = field(default="the samples given as gallery", repr=False)
    query_modalities: tuple[str, ...] | None = None
    gallery_modalities: tuple[str, ...] | None = None
    ties: Ties = "stable"
    version: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("exclude", Exclude), ("distance", Distance), ("feature", Feature), ("ties", Ties)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"protocol {self.name!r}: {name} must be one of {', '.join(get_args(allowed))}; "
                    f"got {getattr(self, name)!r}"
                )
        if self.distance == "cosine" and not self.normalize:
            raise ValueError(
                f"protocol {self.name!r}: the cosine distance normalises by definition; "
                'use distance="euclidean" with normalize=False'
            )
        for name in ("query_modalities", "gallery_modalities"):
            names = getattr(self, name)
            if names is None:
                continue
            if isinstance(names, str) or not names or not all(names) or len(set(names)) != len(names):
                raise ValueError(
                    f"protocol {self.name!r}: {name} must name one or more different modalities, such as "
                    f"('rgb', 'tir'), or be None for all; got {names!r}"
                )
            object.__setattr__(self, name, tuple(names))

    @property
    def hint(self) -> str:
        """What to do about queries of known identity that have no valid match under this protocol."""
        if self.exclude == "none":
            return "no gallery entry shows their identity: check the identity labels and the query and gallery splits"
        label = _LABELS[self.exclude]
        return (
            f"each query needs a gallery entry of its identity from another {self.exclude}: check the {label} labels "
            f"(entries labelled -1 count as one {self.exclude}), or evaluate with another protocol such as 'none'"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a JSON-able dictionary; ``Protocol(**fields)`` is this protocol again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_TEST = "every sample of the folder test"
_TEST_IDENTITIES = "every sample of the test identities"
_PUBLISHED: dict[str, tuple[Exclude, str, str]] = {
    "rgbnt201": ("camera", _TEST, _TEST),
    "msvr310": (
        "scene",
        "the folder query3: every test sample of an identity that has two scenes or more",
        "the folder bounding_box_test, identities of a single scene included",
    ),
    "rgbnt100": ("camera", "the folder query, whose samples are in the gallery too", "the folder bounding_box_test"),
    "wmveid863": ("camera", "the folder query", "the folder test"),
    "rgbn300": ("camera", "the folder query", "the folder bounding_box_test"),
    "market1501-mm": ("camera", "the folder query", "the folder gallery without the samples of identity -1"),
    "synthetic-persons": ("camera", _TEST_IDENTITIES, _TEST_IDENTITIES),
    "synthetic-vehicles": ("camera", _TEST_IDENTITIES, _TEST_IDENTITIES),
}
_PROTOCOLS = {rule: Protocol(rule, rule) for rule in get_args(Exclude)} | {
    name: Protocol(name, exclude, query_rule=query, gallery_rule=gallery)
    for name, (exclude, query, gallery) in _PUBLISHED.items()
}


def list_protocols() -> list[str]:
    """Return the names that `get_protocol` knows, sorted."""
    return sorted(_PROTOCOLS)


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return a protocol by name; a `Protocol` is returned as it is.

    A name may end in the modalities of query and gallery: ``"rgbnt201:tir>rgb"`` searches with thermal images in a
    gallery of RGB images, ``"camera:rgb+tir>rgb+nir+tir"`` with two modalities in a gallery of three. The protocol
    then has that whole name.

    Raises:
        ValueError: If the name is unknown or its modalities cannot be parsed.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, str):
        raise ValueError(f"a protocol is a name or a Protocol; got {show(protocol)}")
    base, colon, modalities = protocol.partition(":")
    if base not in _PROTOCOLS:
        own = 'or pass Protocol(name, exclude="camera" | "scene" | "none")'
        raise ValueError(f"{unknown('protocol', base, list_protocols())}; {own}")
    if not colon:
        return _PROTOCOLS[base]
    if modalities.count(">") != 1:
        raise ValueError(
            f"cannot parse {show(modalities)} in protocol {show(protocol)}: write the modalities of the query, '>', "
            f"and those of the gallery, as in '{base}:tir>rgb' or '{base}:rgb+tir>rgb+nir+tir'"
        )
    query, gallery = (tuple(names.split("+")) for names in modalities.split(">"))
    return replace(_PROTOCOLS[base], name=protocol, query_modalities=query, gallery_modalities=gallery)


@dataclass(frozen=True, eq=False, repr=False)
class Identities:
    """Labels of S samples.

    Attributes:
        pid: ``(S,)`` int64 identities, -1 where unknown: such a sample is nobody's match.
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

    def __getitem__(self, rows: slice | np.ndarray) -> "Identities":
        """Return the labels of some samples, as NumPy indexes an array."""
        return Identities(*(np.asarray(labels)[rows] for labels in (self.pid, self.camid, self.sceneid)))

    def __repr__(self) -> str:
        return f"Identities({len(self)} samples of {len(np.unique(self.pid))} identities)"


def is_known(pid: np.ndarray) -> np.ndarray:
    """Return which identities are known."""
    return pid >= 0


def _labels(name: str, labels: ArrayLike) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(f"{name} must be a one-dimensional integer array; got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


class SameIdentity:
    """For each query, the gallery entries of its identity: the matches, and those that are ignored.

    Entries are ignored by the protocol (same camera, same scene) and, where keys are given, because they are the
    query itself. Either way they have the query's identity, so an entry of another identity is never ignored.

    An unknown identity matches nothing, not even another unknown one: such a gallery entry is a distractor to all
    queries, and such a query has no match and ignores only itself.
    """

    def __init__(
        self,
        query: Identities,
        gallery: Identities,
        protocol: Protocol,
        query_keys: Sequence[str] | None = None,
        gallery_keys: Sequence[str] | None = None,
    ) -> None:
        label = _LABELS.get(protocol.exclude)
        self._labels = label and (getattr(query, label), getattr(gallery, label))
        self._itself = _find_itself(query, gallery, query_keys, gallery_keys)
        asked = np.unique(query.pid[is_known(query.pid)])
        shared = np.flatnonzero(np.isin(gallery.pid, asked))  # for few queries far less than the gallery to sort
        self._by_pid = shared[np.argsort(gallery.pid[shared], kind="stable")]
        sorted_pid = gallery.pid[self._by_pid]
        self._first = np.searchsorted(sorted_pid, query.pid, side="left")
        self._count = np.searchsorted(sorted_pid, query.pid, side="right") - self._first
        # a query of unknown identity has one entry: itself
        alone = np.flatnonzero(~is_known(query.pid) & (self._itself >= 0))
        self._first[alone] = len(self._by_pid) + np.arange(len(alone))
        self._count[alone] = 1
        self._by_pid = np.append(self._by_pid, self._itself[alone])

    def entries(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the entries of the queries ``start:stop``, in gallery order and padded to one width S of at least 1.

        They are gallery indices ``(B, S)``, 0 in the padding, and which of them are matches and which are ignored,
        ``(B, S)`` bool, False in the padding.
        """
        count = self._count[start:stop, None]
        column = np.arange(max(1, count.max(initial=0)))
        real = column < count
        place = np.where(real, self._first[start:stop, None] + column, 0)
        index = np.where(real, self._by_pid[place], 0) if len(self._by_pid) else place
        ignored = index == self._itself[start:stop, None]
        if self._labels:
            ignored |= self._labels[1][index] == self._labels[0][start:stop, None]
        return index, real & ~ignored, real & ignored


def _find_itself(
    query: Identities, gallery: Identities, query_keys: Sequence[str] | None, gallery_keys: Sequence[str] | None
) -> np.ndarray:
    """Return the gallery index of each query itself, ``(Q,)`` int64, -1 where the gallery does not hold it."""
    if query_keys is None and gallery_keys is None:
        return np.full(len(query), -1)
    if query_keys is None or gallery_keys is None:
        raise ValueError("query_keys and gallery_keys belong together: give both or neither")
    for name, keys, ids in (("query", query_keys, query), ("gallery", gallery_keys, gallery)):
        if len(keys) != len(ids):
            raise ValueError(f"{name}_keys has {len(keys)} entries but the {name} has {len(ids)}")
        if repeated := len(keys) - len(set(keys)):
            raise ValueError(f"{name}_keys holds {repeated} repeated keys; keys must be unique")
    place = {key: index for index, key in enumerate(gallery_keys)}
    itself = np.fromiter((place.get(key, -1) for key in query_keys), np.int64, len(query))
    wrong = np.flatnonzero((itself >= 0) & (gallery.pid[itself] != query.pid))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} keys stand for different identities in query and gallery, "
            f"for example {show(query_keys[wrong[0]])}: keys must name one sample"
        )
    return itself
