"""Real pixels: scenes in three spectra, any of them missing, through a frozen tower and NEXT's untrained experts.

``NEXTREID_REAL`` is a folder with ``tno/{rgb,nir,tir}``, images of one name in each; the tower's weights are those of
`benchmarks.real`. A scene is seen once in each spectrum: query and gallery differ in the crop alone.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextreid.data import ReIDDataset, Sample
from nextreid.engine import modality_matrix
from nextreid.engine.figures import expert_masks
from nextreid.models import ReIDModel, convert_timm

from . import real

MODALITIES = ("rgb", "nir", "tir")
SIZE = (96, 128)
SHOWN = ("Marne_04", "jeep_in_smoke")
IMAGE = Path(__file__).parents[1] / "docs" / "real_masks.png"
JITTER = 0.1
SEEDS = (0, 1, 2)  # of the crops, and of the experts


def run() -> Iterator[dict[str, Any]]:
    """Every subset of the spectra against itself, and every spectrum against every other."""
    root = Path(os.environ.get("NEXTREID_REAL", "")) / "tno"
    names = sorted(path.name for path in root.glob("rgb/*.png"))
    if not names:
        raise SystemExit("set NEXTREID_REAL to a folder with tno/rgb, tno/nir and tno/tir")
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        arguments = {**real.TOWER, "modalities": MODALITIES, "embed_dim": None}
        convert_timm(real.tower_weights(), "baseline", start, by_order=True, **arguments)
        for seed in SEEDS:
            dataset = jittered(root, names, seed)
            for name, model in models(start, seed).items():
                for report in modality_matrix(model, dataset, protocol="camera", cross=True):
                    of_query, of_gallery = report.result.protocol.name.partition(":")[2].split(">")
                    if of_query == of_gallery or "+" not in of_query + of_gallery:
                        row = {"row": name, "query": of_query, "gallery": of_gallery, "seed": seed}
                        yield row | {"mAP": round(100 * report.to_dict()["mAP"], 2), "scenes": len(names)}
        draw(root, start)


def models(start: Path, seed: int, img_size: tuple[int, int] = SIZE) -> dict[str, ReIDModel]:
    """The tower's first stages alone, and under NEXT's experts as they are before any training."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {"modalities": MODALITIES, "embed_dim": None, "img_size": img_size}
    experts = {"num_heads": 4, "mmfa_residual": True}
    return {
        "frozen": real.start(start, "baseline", **shared).eval(),
        "NEXT, untrained experts": real.start(start, "next", text_tower=None, head=experts, **shared).eval(),
    }


def jittered(root: Path, names: list[str], seed: int) -> ReIDDataset:
    """Two crops of each scene; each spectrum of each moves every side inwards by up to `JITTER` of its length."""
    rng = np.random.default_rng(seed)

    def cut(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        top, bottom, left, right = rng.uniform(0, JITTER, 4) * (height, height, width, width)
        return pixels[round(top) : height - round(bottom), round(left) : width - round(right)]

    query, gallery = (
        tuple(
            Sample(f"{name}:{view}", pid, view, -1, tuple(cut(root / modality / name) for modality in MODALITIES))
            for pid, name in enumerate(names)
        )
        for view in range(2)
    )
    return ReIDDataset("tno", MODALITIES, "scene", "camera", (), query, gallery)


def draw(root: Path, start: Path) -> None:
    """What the experts sample of a scene as a whole, and of one whose near-infrared image is missing."""
    model = models(start, 0, (224, 304))["NEXT, untrained experts"]
    whole, other = (
        Sample(name, pid, 0, -1, tuple(root / modality / f"{name}.png" for modality in MODALITIES))
        for pid, name in enumerate(SHOWN)
    )
    samples = (whole, replace(other, images=(other.images[0], None, other.images[2])))
    dataset = ReIDDataset("tno", MODALITIES, "scene", "camera", (), samples, samples)
    expert_masks(model, dataset, samples, image_size=150).save(IMAGE)
