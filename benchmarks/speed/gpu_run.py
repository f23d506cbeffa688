"""A shortened training run at the size of RGBNT201, from files to numbers: goal P23. See ``gpu.py``."""

import io
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nextreid.data import MODALITIES, ImageCache, ReIDDataset, Sample, seeded_rng
from nextreid.engine import get_recipe, train
from nextreid.engine.embedding import eval_transform

from .gpu_model import build, sentence
from .gpu_rig import Rig, Row

EPOCHS, WHOLE, DISTINCT = 3, 50, 83_884
"""Epochs that are run, those of a whole run, and the distinct caption subsets of RGBNT201's training set."""
SPLITS = {"train": (171, 3951, 0), "test": (30, 836, 1000)}
"""Identities, samples, and the first identity; query and gallery are one folder, as in RGBNT201."""
SMALLEST = {"train": (3, 12, 0), "test": (2, 6, 1000)}


def run_of_rgbnt201(rig: Rig) -> Iterator[Row]:
    """P23: minutes of a run of 50 epochs, from an epoch of this one, and what the evaluation takes of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(rig)
        dataset = _dataset(rig, folder, model.img_size)
        size = f"{model.pretrained_cfg.architecture}, {len(dataset.train)} + {len(dataset.query)} samples"
        samples = (*dataset.train, *dataset.query)
        file = folder / "images.store"
        stored = rig.wall(lambda: ImageCache.build(samples, MODALITIES, eval_transform(model), file=file))
        warmed, texts = _warm(rig, model, dataset)
        starts: list[float] = []
        handle = model.register_forward_pre_hook(lambda module, _: starts.append(time.perf_counter()))
        recipe = get_recipe(
            "next",
            epochs=EPOCHS,
            num_ids=rig.pick(8, 2),
            num_instances=rig.pick(8, 2),
            store=str(file),
            augment="device",
            workers=rig.pick(_workers(), 0),
            eval_batch_size=rig.pick(128, 4),
        )
        report = train(model, dataset, recipe, folder / "run", progress=False)
        handle.remove()
    first, second = report.history[0], report.history[1]
    # from the first step of the second epoch to that of the third: evaluation and files are in it
    period = starts[first["steps"] + second["steps"]] - starts[first["steps"]]
    trained, evaluated = second["train_seconds"], second["evaluation"]["seconds"]
    text = warmed * DISTINCT / texts
    told = (
        f"an epoch {period:.2f} s: training {trained:.2f}, evaluation {evaluated:.2f}, "
        f"files {period - trained - evaluated:.2f}; "
        f"before it images {stored:.1f} s, caption features {text:.1f} s (from {texts} texts)"
    )
    whole = (WHOLE * period + stored + text) / 60
    note = f"{told}; {len(dataset.train) / trained:.0f} samples/s in training, {recipe.workers} workers"
    yield rig.row("P23", f"{WHOLE} epochs, extrapolated from one", size, "min", whole, bound=6, note=note)
    yield rig.row("P23", "evaluation's share of the epoch", size, "1", evaluated / period, bound=0.1, note=told)
    losses = [row["loss"]["total"] for row in report.history]
    if not np.isfinite(losses).all():
        raise ValueError(f"losses {losses}")


def _workers() -> int:
    """Processes that load: some, where the memory that they share holds their batches."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2**30
    return min(8, os.cpu_count() or 1) if roomy else 0


def _dataset(rig: Rig, folder: Path, size: tuple[int, int]) -> ReIDDataset:
    """JPEG files of the input size, few of them different; captions of three synthetic sentences each."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(rig.pick(64, 2)):
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
        memory = io.BytesIO()
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(memory, "JPEG", quality=90)
        contents.append(memory.getvalue())
    distinct = rig.pick(600, 4)
    splits = {}
    for split, (ids, count, first) in rig.pick(SPLITS, SMALLEST).items():
        samples = []
        for number in range(count):
            key = f"{first + number % ids:06}_{split}_{number:05}"
            paths = tuple(folder / f"{key}_{modality}.jpg" for modality in MODALITIES)
            for place, path in enumerate(paths):
                path.write_bytes(contents[(number + place) % len(contents)])
            drawn = seeded_rng("caption", split, number).integers(0, distinct, len(MODALITIES)).tolist()
            captions = tuple(tuple(sentence(caption, part) for part in range(3)) for caption in drawn)
            samples.append(Sample(key, first + number % ids, number // ids % 4, -1, paths, captions))
        splits[split] = tuple(sorted(samples, key=lambda sample: sample.key))
    train_split, test = splits["train"], splits["test"]
    return ReIDDataset("synthetic", MODALITIES, "person", "camera", train_split, test, test)


def _warm(rig: Rig, model: torch.nn.Module, dataset: ReIDDataset) -> tuple[float, int]:
    """Encode every subset of every caption; return the seconds and how many texts there were."""
    captions = {caption for s in (*dataset.train, *dataset.query) for caption in s.captions}
    subsets = {
        part
        for caption in captions
        for count in range(1, len(caption) + 1)
        for part in itertools.combinations(caption, count)
    }
    counted: list[int] = []
    seconds = rig.wall(lambda: counted.append(model.text_tower.precompute(sorted(subsets))))  # type: ignore[union-attr, operator]
    return seconds, counted[0]
