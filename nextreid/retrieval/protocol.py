"""Evaluation protocols as data: what a query ignores, how two embeddings are compared."""

from dataclasses import dataclass
from typing import Literal, get_args

Exclude = Literal["camera", "scene", "none"]
Distance = Literal["cosine", "euclidean"]
Feature = Literal["before_neck", "after_neck"]


@dataclass(frozen=True)
class Protocol:
    """How a query is compared with a gallery, and which gallery entries it ignores.

    Attributes:
        name: Printed beside every number.
        exclude: A query ignores the gallery entries of its own identity that share its camera (``"camera"``), its
            scene (``"scene"``), or none at all.
        distance: ``"cosine"`` or ``"euclidean"``.
        normalize: Whether embeddings are scaled to unit length first; always so for cosine.
        feature: The embedding to extract, in front of the batch-norm neck or behind it.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    name: str
    exclude: Exclude
    distance: Distance = "cosine"
    normalize: bool = True
    feature: Feature = "before_neck"

    def __post_init__(self) -> None:
        for field, allowed in (("exclude", Exclude), ("distance", Distance), ("feature", Feature)):
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


_PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("camera", exclude="camera"),
        Protocol("scene", exclude="scene"),
        Protocol("none", exclude="none"),
        Protocol("rgbnt201", exclude="camera"),
        Protocol("msvr310", exclude="scene"),
        Protocol("rgbnt100", exclude="camera"),
        Protocol("wmveid863", exclude="camera"),
        Protocol("synthetic-persons", exclude="camera"),
    )
}


def list_protocols() -> list[str]:
    """Return the names that `get_protocol` knows, sorted."""
    return sorted(_PROTOCOLS)


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return a protocol by name; a `Protocol` is handed back as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in _PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}; known: {', '.join(list_protocols())}; "
            'or pass Protocol(name, exclude="camera" | "scene" | "none")'
        )
    return _PROTOCOLS[protocol]
