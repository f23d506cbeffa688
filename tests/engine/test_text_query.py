"""Captions as queries: what is ranked, beside chance, and what cannot be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nextreid.engine import evaluate_text_query
from nextreid.engine import text_query as module


def test_captions_that_name_the_identity_find_it(build, dataset, monkeypatch):
    """A tower that reads images and words of an identity alike is right; one that does not is at chance."""
    model, codes = build(), torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    of_text = {" ".join(sample.captions[0]): sample.pid for sample in dataset.query}
    monkeypatch.setattr(module, "encode_words", lambda _, texts: torch.stack([codes[of_text.get(t, 0)] for t in texts]))
    width = model.num_features

    def embed(_, samples, *more):
        return torch.cat([torch.randn(len(samples), width), torch.stack([codes[s.pid] for s in samples])], dim=1)

    monkeypatch.setattr(module, "embed_samples", embed)
    report = evaluate_text_query(model, dataset)
    assert report.result.mAP == 1 and report.modality == "rgb" and report.left_out == 0
    assert report.result.protocol.name == "camera" and report.result.num_valid == len(dataset.query)
    assert 0.05 < report.chance["mAP"] < 0.5 and report.chance["rank-1"] < 0.4


def test_chance_is_that_of_a_random_order(build, dataset):
    """One match among n others is at each rank alike: its mAP is the mean of 1 / rank."""
    one = [replace(s, camid=0) for s in dataset.query[::3]]
    other = [replace(s, key=f"x{s.key}", camid=1) for s in dataset.query[1::3]]
    data = replace(dataset, train=(), query=tuple(one), gallery=tuple(other))
    report = evaluate_text_query(build(), data, modality="tir")
    assert report.chance["mAP"] == pytest.approx(np.mean(1 / np.arange(1, len(other) + 1)), abs=0.08)
    assert report.chance["rank-10"] == 1 and report.to_dict()["text_query"] == "tir"


def test_what_cannot_be_asked_is_named(build, dataset):
    with pytest.raises(ValueError, match="baseline_tiny has no space that images and words share"):
        evaluate_text_query(build("baseline_tiny"), dataset)
    bare = replace(dataset, query=tuple(replace(s, captions=()) for s in dataset.query))
    with pytest.raises(ValueError, match="no query of tints has a caption"):
        evaluate_text_query(build(), bare)
