"""Procedural multi-spectral persons and vehicles with captions and exact ground truth."""

from .captioner import compose_person
from .config import PROFILES, VEHICLE_PROFILES, PersonsConfig, SyntheticConfig, VehiclesConfig
from .dataset import SyntheticDataset, synthetic_persons, synthetic_vehicles, write_folder_layout
from .figure import PARTS, VEHICLE_PARTS

__all__ = [
    "PARTS",
    "PROFILES",
    "PersonsConfig",
    "SyntheticConfig",
    "SyntheticDataset",
    "VEHICLE_PARTS",
    "VEHICLE_PROFILES",
    "VehiclesConfig",
    "compose_person",
    "synthetic_persons",
    "synthetic_vehicles",
    "write_folder_layout",
]
