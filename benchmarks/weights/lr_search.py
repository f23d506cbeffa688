"""How the new layers' learning rate in ``benchmarks.weights`` was chosen, on held-out training identities (25 min)."""

import tempfile
from collections.abc import Iterator
from typing import Any

import torch

import nextreid
from benchmarks.paper.pretraining import load_towers, pretrain
from benchmarks.paper.runs import held_out
from nextreid.engine import evaluate, get_recipe, train

from .build import RECIPE, START, WORK, WORLD, world_of

EPOCHS = 5
SETTINGS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("baseline_tiny", {}, {"lr_new": 1e-3}),
    ("baseline_tiny", {}, {"lr_new": 3e-4}),
    ("baseline_tiny", {}, {"lr_new": 3e-4, "triplet_weight": 0.5}),
    ("next_tiny", {}, {"lr_new": 1e-3}),
    ("next_tiny", {}, {"lr_new": 3e-4}),
    ("next_tiny", {}, {"lr_new": 1e-4}),
    ("next_tiny", {}, {"lr_new": 1e-3, "triplet_weight": 0.5}),
    ("next_tiny", {}, {"lr_new": 3e-4, "triplet_weight": 0.5}),
    ("next_tiny", {"head": {"drop": 0.3}}, {"lr_new": 1e-3}),
)


def run(settings: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = SETTINGS) -> Iterator[dict[str, Any]]:
    """One row for each setting; the test identities are not looked at."""
    pretrain(WORK / "start", START)
    people = held_out(world_of(WORLD, train=True))
    for name, arguments, fields in settings:
        torch.manual_seed(0)
        model = nextreid.create_model(name, **arguments)
        load_towers(model, WORK / "start")
        with tempfile.TemporaryDirectory() as folder:
            train(model, people, get_recipe("tiny", **{**RECIPE, "epochs": EPOCHS, **fields}), folder, progress=False)
        row = evaluate(model, people).to_dict()
        measures = {measure: round(row[measure], 4) for measure in ("mAP", "rank-1")}
        yield {"model": name, "arguments": arguments, "recipe": fields, "epochs": EPOCHS, **measures}
