"""CPU seconds of each figure with the bundled weights, and of what grows with the data at its bounds."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextreid.captioning import quality_of_dataset
from nextreid.data import Sample
from nextreid.engine.figures import expert_masks, rank_lists, scores, space, training
from nextreid.engine.figures.embedding_space import choose_samples, plane
from nextreid.engine.figures.score_counts import count_scores
from nextreid.models import create_model
from nextreid.retrieval import get_protocol
from nextreid.synthetic import synthetic_persons
from nextreid.viz import captions_plot, save_image

LARGE, QUERIES, LIMIT = 100_000, 2_000, 1_200


def run() -> Iterator[dict[str, Any]]:
    """Yield a row for each figure of 44 samples, drawn and saved as PDF, and for its parts at the largest sizes."""
    dataset = synthetic_persons("tiny", num_train=0, num_test=8, frames_per_visit=2).dataset
    models = {name: create_model(name, pretrained=True) for name in ("baseline_tiny", "next_tiny")}
    count = len({sample.key for sample in (*dataset.query, *dataset.gallery)})
    with tempfile.TemporaryDirectory() as folder:
        rows = ({"epoch": e, "loss": {"total": 1 / e}, "lr": {"new": 1e-3}} for e in range(1, 121))
        (Path(folder) / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        figures: dict[str, Callable[[], Any]] = {
            "ranks, 2 models, 6 queries": lambda: rank_lists(models, dataset),
            "experts, 4 samples": lambda: expert_masks(models["next_tiny"], dataset, dataset.query[:4]),
            "space, 2 models": lambda: space(models, dataset, style="print"),
            "scores, 2 models": lambda: scores(models, dataset, style="print"),
            "training, 120 epochs": lambda: training({"a": folder}, style="print"),
            "captions": lambda: captions_plot({dataset.name: quality_of_dataset(dataset)}, style="print"),
        }
        for name, draw in figures.items():
            yield _row(name, count, lambda draw=draw: save_image(draw(), Path(folder) / "figure.pdf"))  # type: ignore[misc]
    rng = np.random.default_rng(0)
    many = [Sample(str(i), int(pid), i % 4, -1, (None,)) for i, pid in enumerate(rng.integers(0, 5_000, LARGE))]
    vectors = torch.from_numpy(rng.normal(size=(LARGE, 64)).astype(np.float32))
    yield _row("space: choice of samples", LARGE, lambda: choose_samples(many, (), 12, LIMIT, 0, {}))
    yield _row("space: t-SNE at its limit", LIMIT, lambda: plane(rng.normal(size=(LIMIT, 512))))
    rule = get_protocol("camera")
    yield _row(
        f"scores: {QUERIES} queries",
        LARGE,
        lambda: count_scores(vectors[:QUERIES], vectors, many[:QUERIES], many, rule),
    )


def _row(figure: str, samples: int, work: Callable[[], object]) -> dict[str, Any]:
    start = time.process_time()
    work()
    return {"figure": figure, "samples": samples, "cpu_seconds": round(time.process_time() - start, 2)}
