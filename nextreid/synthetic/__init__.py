"""Procedural multi-spectral persons with captions and exact ground truth."""

from .captioner import compose_person
from .config import PROFILES, PersonsConfig
from .dataset import SyntheticPersons, synthetic_persons, write_folder_layout
from .figure import PARTS

__all__ = [
    "PARTS",
    "PROFILES",
    "PersonsConfig",
    "SyntheticPersons",
    "compose_person",
    "synthetic_persons",
    "write_folder_layout",
]
