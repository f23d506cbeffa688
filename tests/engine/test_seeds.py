import json
from dataclasses import replace
from statistics import mean, stdev

import pytest
import torch

from nextreid.engine import train_seeds
from nextreid.models import create_model


def make():
    return create_model("next_tiny")


def test_seeds_give_mean_and_spread_of_last_and_best(dataset, recipe, tmp_path):
    recipe = replace(recipe, seed=4)
    state = torch.get_rng_state()
    report = train_seeds(make, dataset, recipe, tmp_path, 2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed4", "seed5", "summary.json"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == report.to_dict() and summary["seeds"] == [4, 5]
    rows = {s: [json.loads(x) for x in (tmp_path / f"seed{s}" / "metrics.jsonl").open()] for s in (4, 5)}
    chosen = {
        "last": [rows[s][-1]["evaluation"] for s in rows],
        "last_without_text": [rows[s][-1]["evaluation_without_text"] for s in rows],
        "best": [max((r["evaluation"] for r in rows[s]), key=lambda e: e["mAP"]) for s in rows],
    }
    for name, evaluations in chosen.items():
        for measure in ("mAP", "rank-1", "mINP"):
            values = [e[measure] for e in evaluations]
            told = summary[name][measure]
            assert told["values"] == {"4": values[0], "5": values[1]}
            assert (told["mean"], told["std"]) == pytest.approx((mean(values), stdev(values)))
        assert summary[name]["text"] == (name != "last_without_text") and summary[name]["protocol"] == "camera"
    assert rows[4] != rows[5]
    recipes = [json.loads((tmp_path / f"seed{s}" / "recipe.json").read_text()) for s in (4, 5)]
    assert [r["recipe"]["seed"] for r in recipes] == [4, 5]
    assert recipes[0]["start"]["digest"] != recipes[1]["start"]["digest"]  # other first weights, too

    with pytest.raises(FileExistsError, match=r"seed 4, 5.*--resume"):
        train_seeds(make, dataset, recipe, tmp_path, 2, progress=False)
    more = train_seeds(make, dataset, recipe, tmp_path, 3, resume=True, progress=False)
    assert list(more.runs) == [4, 5, 6] and more.runs[4].history == report.runs[4].history


def test_one_seed_has_no_spread_and_none_is_refused(dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1, text=False)
    summary = train_seeds(lambda: create_model("baseline_tiny"), dataset, recipe, tmp_path, 1, progress=False).to_dict()
    assert summary["last"]["mAP"]["std"] is None and "last_without_text" not in summary
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train_seeds(make, dataset, recipe, tmp_path, 0)
    bare = replace(recipe, eval_every=0)
    none = train_seeds(lambda: create_model("baseline_tiny"), dataset, bare, tmp_path / "bare", 1, progress=False)
    assert none.to_dict() == {"seeds": [0]}
