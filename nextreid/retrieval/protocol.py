"""Evaluation protocols as data: who is searched where, what a query ignores, how two embeddings are compared."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Exclude = Literal["camera", "scene", "none"]
Distance = Literal["cosine", "euclidean"]
Feature = Literal["before_neck", "after_neck"]
Ties = Literal["stable", "optimistic", "pessimistic"]


@dataclass(frozen=True)
class Protocol:
    """Which samples are queries and gallery, what a query ignores, and how two samples are compared.

    Attributes:
        name: Printed beside every number.
        exclude: A query ignores the gallery entries of its own identity that share its camera (``"camera"``), its
            scene (``"scene"``), or none at all.
        distance: ``"cosine"`` or ``"euclidean"``.
        normalize: Whether embeddings are scaled to unit length first; always so for cosine.
        feature: The embedding to extract, in front of the batch-norm neck or behind it.
        query_rule: In words, which samples are the queries. The reader of a dataset applies it.
        gallery_rule: In words, which samples are the gallery.
        query_modalities: What a query shows, in the order of the dataset; None shows all.
        gallery_modalities: What a gallery entry shows, likewise.
        ties: Where a match stands among other entries at exactly its distance: ``"stable"`` in gallery order,
            ``"optimistic"`` in front of them, ``"pessimistic"`` behind them.
        version: Grows when a named protocol changes its numbers.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    name: str
    exclude: Exclude
    distance: Distance = "cosine"
    normalize: bool = True
    feature: Feature = "before_neck"
    query_rule: str = "the samples given as queries"
    gallery_rule: str = "the samples given as gallery"
    query_modalities: tuple[str, ...] | None = None
    gallery_modalities: tuple[str, ...] | None = None
    ties: Ties = "stable"
    version: int = 1

    def __post_init__(self) -> None:
        for field, allowed in (("exclude", Exclude), ("distance", Distance), ("feature", Feature), ("ties", Ties)):
            if getattr(self, field) not in get_args(allowed):
                raise ValueError(
                    f"protocol {self.name!r}: {field} must be one of {', '.join(get_args(allowed))}; "
                    f"got {getattr(self, field)!r}"
                )
        if self.distance == "cosine" and not self.normalize:
            raise ValueError(
                f"protocol {self.name!r}: the cosine distance normalises by definition; "
                'use distance="euclidean" with normalize=False'
            )
        for field in ("query_modalities", "gallery_modalities"):
            shown = getattr(self, field)
            if shown is None:
                continue
            if isinstance(shown, str) or not shown or not all(shown) or len(set(shown)) < len(shown):
                raise ValueError(
                    f"protocol {self.name!r}: {field} must name one or more different modalities, such as "
                    f"('rgb', 'tir'), or be None for all; got {shown!r}"
                )
            object.__setattr__(self, field, tuple(shown))

    @property
    def remedy(self) -> str:
        """What to do about queries that have no valid match under this protocol."""
        if self.exclude == "none":
            return "no gallery entry shows their identity: check the identity labels and the query and gallery splits"
        label = {"camera": "camid", "scene": "sceneid"}[self.exclude]
        return (
            f"each query needs a gallery entry of its identity from another {self.exclude}: check the {label} labels "
            f"(entries labelled -1 count as one {self.exclude}), or evaluate with another protocol such as 'none'"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a JSON-able dictionary; ``Protocol(**fields)`` is this protocol again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_TEST_POOL = "every sample of the test identities"

_PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("camera", "camera"),
        Protocol("scene", "scene"),
        Protocol("none", "none"),
        Protocol(
            "rgbnt201",
            "camera",
            query_rule="every sample of the folder test",
            gallery_rule="every sample of the folder test",
        ),
        Protocol(
            "msvr310",
            "scene",
            query_rule="the folder query3: every test sample of an identity that has two scenes or more",
            gallery_rule="the folder bounding_box_test, identities of a single scene included",
        ),
        Protocol(
            "rgbnt100",
            "camera",
            query_rule="the folder query, whose samples are in the gallery too",
            gallery_rule="the folder bounding_box_test",
        ),
        Protocol("wmveid863", "camera", query_rule="the folder query", gallery_rule="the folder test"),
        Protocol("rgbn300", "camera", query_rule="the folder query", gallery_rule="the folder bounding_box_test"),
        Protocol(
            "market1501-mm",
            "camera",
            query_rule="the folder query",
            gallery_rule="the folder gallery without the samples of identity -1",
        ),
        Protocol("synthetic-persons", "camera", query_rule=_TEST_POOL, gallery_rule=_TEST_POOL),
        Protocol("synthetic-vehicles", "camera", query_rule=_TEST_POOL, gallery_rule=_TEST_POOL),
    )
}


def list_protocols() -> list[str]:
    """Return the names that `get_protocol` knows, sorted."""
    return sorted(_PROTOCOLS)


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return a protocol by name; a `Protocol` is handed back as it is.

    A name may end in what the two sides show: ``"rgbnt201:tir>rgb"`` searches with thermal images in a gallery of
    RGB images, ``"camera:rgb+tir>rgb+nir+tir"`` with two modalities in a gallery of three. That is its name then.

    Raises:
        ValueError: If the name is unknown or the sides cannot be read.
    """
    if isinstance(protocol, Protocol):
        return protocol
    base, colon, sides = protocol.partition(":")
    if base not in _PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}; known: {', '.join(list_protocols())}; "
            'or pass Protocol(name, exclude="camera" | "scene" | "none")'
        )
    if not colon:
        return _PROTOCOLS[base]
    if sides.count(">") != 1:
        raise ValueError(
            f"cannot read {sides!r} in protocol {protocol!r}: write what a query shows, '>', and what the gallery "
            f"shows, as in '{base}:tir>rgb' or '{base}:rgb+tir>rgb+nir+tir'"
        )
    query, gallery = (tuple(side.split("+")) for side in sides.split(">"))
    return replace(_PROTOCOLS[base], name=protocol, query_modalities=query, gallery_modalities=gallery)
