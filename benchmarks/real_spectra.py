"""Real pixels: how many exchanged modalities ``nextreid data check`` finds in registered triplets of three spectra.

``NEXTREID_REAL`` is a folder with ``tno/{rgb,nir,tir}``, images of one name in each. An exchange is planted in one
sample after the other, in several at once, and in all of them.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nextreid.data import ReIDDataset, Sample
from nextreid.data.checks.findings import Finding
from nextreid.data.checks.images import Inspected, inspect_images
from nextreid.data.checks.spectra import check_spectra

MODALITIES = ("rgb", "nir", "tir")


def run() -> Iterator[dict[str, Any]]:
    """Nothing planted; then, for each pair of modalities, every single sample, draws of three, and all."""
    root = Path(os.environ.get("NEXTREID_REAL", "")) / "tno"
    names = sorted(path.name for path in root.glob("rgb/*.png"))
    if not names:
        raise SystemExit("set NEXTREID_REAL to a folder with tno/rgb, tno/nir and tno/tir")
    samples = tuple(
        Sample(f"{pid:03}", pid, 0, -1, tuple(root / modality / name for modality in MODALITIES))
        for pid, name in enumerate(names)
    )
    dataset = ReIDDataset("tno", MODALITIES, "scene", "none", (), samples, samples)
    inspected = inspect_images(dataset)
    yield _row("none", "", [_found(dataset, inspected, (), (0, 1))], [()])
    rng = np.random.default_rng(0)
    threes = [tuple(sorted(rng.choice(len(samples), 3, replace=False).tolist())) for _ in range(20)]
    everyone = tuple(range(len(samples)))
    for a, b in combinations(range(3), 2):
        for label, sets in (("one", [(row,) for row in everyone]), ("three", threes), ("all", [everyone])):
            found = [_found(dataset, inspected, rows, (a, b)) for rows in sets]
            yield _row(label, f"{MODALITIES[a]}-{MODALITIES[b]}", found, sets)


def _found(dataset: ReIDDataset, inspected: Inspected, rows: Sequence[int], pair: tuple[int, int]) -> list[Finding]:
    """What is called exchanged with an exchange planted in some samples."""
    facts, (a, b) = dict(inspected), pair
    for row in rows:
        images = list(facts[id(dataset.query[row])])
        images[a], images[b] = images[b], images[a]
        facts[id(dataset.query[row])] = images
    return [finding for finding in check_spectra(dataset, facts) if finding.code == "swapped-modalities"]


def _row(label: str, pair: str, found: Sequence[Sequence[Finding]], planted: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Planted exchanges that a finding tells, and samples that were named without one; at most five a finding."""
    right = wrong = 0
    for findings, rows in zip(found, planted, strict=True):
        named = {example for finding in findings for example in finding.examples}
        truly = {f"test {row:03}" for row in rows}
        right += sum(finding.count for finding in findings) if label == "all" else len(named & truly)
        wrong += len(named - truly)
    total = sum(map(len, planted))
    return {"planted": label, "pair": pair, "runs": len(planted), "exchanged": total, "found": right, "wrong": wrong}
