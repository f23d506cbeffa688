"""The procedural persons as a data set by name."""

from typing import Any

from ..sample import ReIDDataset
from ..synthetic import synthetic_persons
from .registry import register_dataset


@register_dataset("synthetic-persons")
def make_synthetic_persons(profile: str = "tiny", *, seed: int = 0, **options: Any) -> ReIDDataset:
    """Render the procedural persons; see `synthetic_persons` for the arguments."""
    return synthetic_persons(profile, seed=seed, **options).dataset
