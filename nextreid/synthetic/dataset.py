"""The procedural persons as a dataset by name."""

from typing import Any

from ..data.datasets.registry import register_dataset
from ..data.sample import ReIDDataset
from .build import synthetic_persons


@register_dataset("synthetic-persons")
def make_synthetic_persons(profile: str = "tiny", *, seed: int = 0, **options: Any) -> ReIDDataset:
    """Render the procedural persons; see `synthetic_persons` for the arguments."""
    return synthetic_persons(profile, seed=seed, **options).dataset
