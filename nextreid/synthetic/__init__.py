"""Procedural multi-spectral persons with captions and exact ground truth."""

from .build import SyntheticPersons, synthetic_persons
from .composer import compose_person
from .config import PROFILES, PersonsConfig
from .figure import PARTS
from .folder_layout import write_tree

__all__ = [
    "PARTS",
    "PROFILES",
    "PersonsConfig",
    "SyntheticPersons",
    "compose_person",
    "synthetic_persons",
    "write_tree",
]
