"""Rows on persons made for the question: the part map as mask, and what is collected of finished runs."""

import numpy as np
import pytest
import torch

from benchmarks.paper import mechanism
from benchmarks.paper.command import main
from benchmarks.paper.mechanism import ROWS, SETTINGS, collect, pairs, run_mechanism, tables, unit_of
from benchmarks.paper.oracle import SHOWS, Oracle, with_part_maps
from nextreid.synthetic import PARTS, synthetic_persons


def test_the_oracle_samples_what_the_part_map_shows():
    config = {"evidence": "upper:nir"}
    people = synthetic_persons("tiny", num_train=2, num_test=0, frames_per_visit=1, splits=("train",), **config).dataset
    mapped = with_part_maps(people, config["evidence"])
    assert mapped.modalities == ("rgb", "nir", "tir", "parts") and len(mapped.train[0].images) == 4
    images = torch.from_numpy(np.stack([np.stack(sample.images) for sample in mapped.train]))
    model = Oracle("upper:nir", head={"num_structure_experts": 0, "sampling": "all"}).eval()
    with torch.no_grad():
        mask = model.forward_features(images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1)["mask"]
    upper = np.stack([sample.truth["parts"] == PARTS.index("upper") for sample in people.train])
    cover = upper.reshape(len(upper), 8, 8, 4, 8).mean((2, 4)).reshape(len(upper), -1)
    assert torch.equal(mask[:, 0, 1], torch.from_numpy(cover >= SHOWS).float()) and mask[:, :, 1].any()
    assert not mask[:, :, [0, 2]].any()  # the garment is evidence in one modality


def test_rows_run_once_and_are_compared_in_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mechanism, "SIZE", {"num_train": 6, "num_test": 4, "frames_per_visit": 2})
    small = {"epochs": 1, "num_ids": 4, "num_instances": 2, "warmup_epochs": 0}
    monkeypatch.setattr(mechanism, "RECIPE", {**mechanism.RECIPE, **small})
    chosen = (["crowd"], ["C", "oracle"], [0, 1])
    results = list(run_mechanism(tmp_path, *chosen))
    assert [(r["row"], r["seed"]) for r in results] == [("C", 0), ("oracle", 0), ("C", 1), ("oracle", 1)]
    assert results == list(run_mechanism(tmp_path, *chosen))  # read, not run
    rows, compared = collect(tmp_path, range(5)), pairs(tmp_path, range(5))
    assert [(r["row"], r["seed"], r["text_at_test"]) for r in rows] == [
        *(("C", 0, "yes"), ("C", 0, "no"), ("C", 1, "yes"), ("C", 1, "no")),
        *(("oracle", 0, "no"), ("oracle", 1, "no")),
    ]
    (pair,) = [p for p in compared if (p["row"], p["reference"]) == ("oracle", "C")]
    mAP = {(r["row"], r["seed"], r["text_at_test"]): 100 * r["mAP"] for r in rows}
    gains = [mAP["oracle", seed, "no"] - mAP["C", seed, "yes"] for seed in (0, 1)]
    assert pair["difference"] == pytest.approx(sum(gains) / 2, abs=2e-3)
    words = ["mechanism", "crowd", "--rows", "C", "oracle", "--seeds", "2", "--out", str(tmp_path)]
    assert main(words) == 0  # read, too
    out, err = capsys.readouterr()
    assert err.count("mAP") == 4 and "[4/4] crowd, oracle, seed 1" in err and tables(rows, compared) in out
    assert (tmp_path / "mechanism.csv").is_file() and (tmp_path / "mechanism_pairs.csv").is_file()
    # the persons of two seeds are others, though their numbers are the same
    assert (pair["seeds"], pair["identities"], pair["separates"]) == (2, 8, "no")
    assert "| oracle − C | 2 |" in tables(rows, compared)


def test_every_row_of_every_setting_is_a_run_of_its_own():
    digests = {unit_of(setting, row, seed).digest for setting in SETTINGS for row in ROWS for seed in (0, 1)}
    assert len(digests) == 2 * len(SETTINGS) * len(ROWS)
