"""What the identities of persons and of vehicles have in common: pools, twins, and how values are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .config import SyntheticConfig

Choices = Mapping[str, float]
"""Values with their relative frequencies."""

FIRST_PID = {"train": 1, "test": 200_001, "pretrain": 500_001, "bystander": 800_001}

_B = TypeVar("_B")


@dataclass(frozen=True, slots=True)
class Identity(Generic[_B]):
    """One person or vehicle."""

    pid: int  # unique over the pools
    attributes: Mapping[str, str]  # what captions can name
    body: _B  # what they cannot
    twin: int  # pid of the identity with the same attributes, or -1


def choose(rng: np.random.Generator, choices: Choices, without: tuple[str, ...] = ()) -> str:
    """Draw one value, except those `without`, with one random number; the frequencies need not add up to one."""
    values = [value for value in choices if value not in without]
    left = rng.random() * sum(choices[value] for value in values)
    for value in values:
        left -= choices[value]
        if left < 0:
            return value
    return values[-1]


def choices(values: str, frequencies: tuple[float, ...]) -> Choices:
    """Pair values, separated by spaces, with their frequencies."""
    return dict(zip(values.split(), frequencies, strict=True))


def pool_pids(config: SyntheticConfig, pool: str) -> range:
    """Return the consecutive pids of a pool; the pools are disjoint, whatever their sizes."""
    first = FIRST_PID[pool]
    return range(first, first + getattr(config, f"num_{pool}"))


def twin_of(config: SyntheticConfig, pid: int) -> int:
    """Return the pid of the twin of `pid` in a pool of any size, or -1: the fraction `twins` of neighbouring pairs."""
    first = max(start for start in FIRST_PID.values() if start <= pid)
    pair, member = divmod(pid - first, 2)
    paired = int((pair + 1) * config.twins + 1e-9) > int(pair * config.twins + 1e-9)
    return (first + 2 * pair + 1 - member) if paired else -1


def owner_of(config: SyntheticConfig, pid: int) -> tuple[int, int]:
    """Return the pid whose attributes `pid` has, its own or its twin's, and the twin's pid or -1."""
    twin = twin_of(config, pid)
    return (min(pid, twin) if twin >= 0 else pid), twin


def tint(rng: np.random.Generator, colors: list[tuple[float, float, float]]) -> np.ndarray:
    """Return ``(n, 3)`` display colours from 0 to 1 near the given ones from 0 to 255."""
    shades = np.array(colors) / 255
    shades = shades * rng.uniform(0.70, 1.12, (len(colors), 1)) + rng.normal(0, 0.025, shades.shape)
    return np.clip(shades, 0.04, 0.95)


def reflectances(rng: np.random.Generator, color: np.ndarray, nir_corr: float) -> np.ndarray:
    """Return the ``(n,)`` near-infrared reflectances of materials, which follow their colours as far as asked."""
    independent = rng.uniform(0.08, 0.85, len(color))
    return (1 - nir_corr) * independent + nir_corr * color.mean(1)
