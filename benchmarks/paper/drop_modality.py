"""Modality dropout in training: each subset of modalities as query against each as gallery, with it and without."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nextreid.engine import get_recipe, modality_matrix, train
from nextreid.models import create_model
from nextreid.synthetic import synthetic_persons

from .mechanism import BUNDLED, PROFILE, RECIPE, SIZE
from .pretraining import take_towers

MODELS, SHARES, SEEDS = ("baseline_tiny", "next_tiny"), (0.0, 0.3), range(3)


def run() -> Iterator[dict[str, Any]]:
    """Train each model with and without dropout and give the 49 cells of its matrix, captions hidden."""
    for seed in SEEDS:
        people = synthetic_persons(PROFILE, seed=seed, **SIZE).dataset
        for name in MODELS:
            for share in SHARES:
                torch.manual_seed(seed)
                model = create_model(name)
                take_towers(model, BUNDLED)
                recipe = get_recipe("tiny", **RECIPE, seed=seed, drop_modality=share)
                with tempfile.TemporaryDirectory() as folder:
                    train(model, people, recipe, Path(folder) / "run", progress=False)
                for report in modality_matrix(model, people, cross=True, text=False):
                    rule = report.result.protocol
                    yield {
                        **{"model": name, "drop_modality": share, "seed": seed},
                        "query": "+".join(rule.query_modalities or ()),
                        "gallery": "+".join(rule.gallery_modalities or ()),
                        **{name: round(report.result.metrics[name] or 0.0, 5) for name in ("mAP", "rank-1")},
                    }
