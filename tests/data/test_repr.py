"""Every public object prints in one short line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextreid.data import (
    MODALITIES,
    EvalTransform,
    ImageCache,
    ImageFile,
    PKSampler,
    ReIDDataset,
    SampleDataset,
    TrainTransform,
    check_dataset,
    data_card,
    list_cards,
    load_dataset,
    make_loader,
)


@pytest.fixture(scope="module")
def persons() -> ReIDDataset:
    return load_dataset("synthetic-persons", num_train=8, num_test=3, frames_per_visit=2)


def test_every_object_prints_in_one_short_line(persons: ReIDDataset) -> None:
    transform = TrainTransform((64, 32), (0.48145466, 0.4578275, 0.40821073), 0.27)
    sampler = PKSampler([sample.pid for sample in persons.train], 4, 2)
    cache = ImageCache.build(persons.train, MODALITIES, transform)
    data = SampleDataset(persons.train, transform, store=cache)
    batch = next(iter(make_loader(persons.train, transform, sampler=sampler)))
    many = replace(persons, train=persons.train * 50, notes=("a long note " * 20,) * 20)
    report = check_dataset(many, "camera", images=False)
    objects = [many, persons.train[0], batch, data, cache, transform, EvalTransform(), sampler, report]
    objects += [ImageFile(Path("a.png"), window="minmax"), *report.findings, *map(data_card, list_cards())]
    for value in objects:
        text = repr(value)
        assert type(value).__name__ in text and len(text) < 500 and "\n" not in text and " at 0x" not in text, text
    counts = [f"{len(split)} samples" for split in (many.train, persons.query, persons.gallery)]
    assert all(count in repr(many) for count in counts) and "synthetic-persons" in repr(many)


def test_an_array_in_a_sample_does_not_print(persons: ReIDDataset) -> None:
    sample = replace(persons.train[0], images=(np.zeros((64, 32, 3), np.uint8), None, None))
    assert repr(
        sample
    ) == f"Sample({sample.key!r}, pid={sample.pid}, camid={sample.camid}, sceneid=-1, 1 of 3 images, " + (
        f"{sum(map(len, sample.captions))} sentences)"
    )
