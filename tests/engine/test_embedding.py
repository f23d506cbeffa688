"""Where embeddings are made: none that is not a number gets out, and cameras that no training has seen are unknown."""

import copy
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nextreid.data import Sample
from nextreid.engine import FeatureExtractor, embed_samples, embedding, evaluate, extract
from nextreid.engine.ablations import Condition


@pytest.fixture
def broken(build):
    model = build("baseline_tiny")
    with torch.no_grad():
        model.image_tower[0].proj.weight[0, 0] = torch.nan
    return model


def test_no_producer_gives_embeddings_that_are_not_numbers(broken, dataset, tmp_path):
    given, message = dataset.query[:3], r"3 of 3 samples .* not finite, first that of '003_10', in torch\.float32"
    small = replace(dataset, query=given, gallery=given)
    for produce in (
        lambda: embed_samples(broken, given),
        lambda: extract(broken, given, tmp_path / "out"),
        lambda: evaluate(broken, small),
    ):
        with pytest.raises(ValueError, match=message):
            produce()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"1 of 1 samples .* not finite"):
        FeatureExtractor(broken)(*given[0].images)


def test_a_sample_that_a_condition_does_not_show_is_no_failure(build, dataset):
    model = build("baseline_tiny")
    hidden = replace(dataset.query[0], images=(dataset.query[0].images[0], None, None), captions=())
    rows = embedding.embed_conditions(model, [hidden, *dataset.query[1:3]], [Condition(modalities=("tir",))])[0]
    assert rows[1:].isfinite().all()


def test_a_camera_beyond_those_of_training_is_unknown(build, caplog):
    model = build("baseline_tiny", modalities="rgb", num_cameras=2)
    image = np.full((64, 32, 3), 90, np.uint8)
    embedding._warn_cameras.cache_clear()
    with caplog.at_level(logging.WARNING):
        rows = embed_samples(model, [Sample(f"s{c}", 0, c, -1, (image,)) for c in (0, 1, -1, 2, 10**6)])
    assert torch.equal(rows[3], rows[2]) and torch.equal(rows[4], rows[2]) and not torch.equal(rows[0], rows[2])
    assert caplog.text.count("cameras beyond the 2") == 1
    with pytest.raises(ValueError, match=r"camera 2 is out of range for 2 cameras.*give -1"):
        model(torch.zeros(1, 1, 3, 64, 32), camid=torch.tensor([2]))


def test_an_extractor_travels_to_other_processes(build, dataset, tmp_path, monkeypatch):
    extractor = FeatureExtractor(build("next_tiny"))
    images = dataset.query[0].images
    expected = extractor(*images)
    for travelled in (pickle.loads(pickle.dumps(extractor)), copy.deepcopy(extractor)):
        assert torch.equal(travelled(*images), expected) and travelled.model is not extractor.model
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    assert torch.equal(extractor(rgb="~/a.png"), extractor(rgb=images[0]))


def test_a_key_twice_is_found_among_many_without_counting_each(build, tmp_path):
    class Key(str):
        compared = 0
        __slots__ = ()

        def __eq__(self, other):
            Key.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    samples = [Sample(Key(f"{i:05}"), 0, 0, -1, (None,)) for i in range(2000)]
    with pytest.raises(ValueError, match="'01999' names more than one sample"):
        extract(build("baseline_tiny", modalities="rgb"), [*samples, samples[-1]], tmp_path / "out")
    assert Key.compared < 40_000
