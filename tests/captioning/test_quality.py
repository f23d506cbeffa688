"""Quality of captions beside naive counts; files and datasets."""

import json

import numpy as np
import pytest

from nextreid.captioning import caption_quality, quality_of_dataset, quality_of_files
from nextreid.captioning.quality import word_agreement
from nextreid.captioning.statistics import word_features
from nextreid.data import ReIDDataset, Sample

TEXTS = [
    "A tall man in a red coat.",
    "A man in a red coat. Unknown hair.",
    "A short woman.",
    "",
    "A tall woman, unclear.",
]


def count(text):
    return len(text.split()) + 2


def test_shares_and_lengths():
    found = caption_quality(TEXTS, [1, 1, 2, 2, -1], count)
    assert (found.captions, found.unknown) == (5, 0.4)
    assert found.tokens.tolist() == [9, 10, 5, 2, 6]
    with pytest.raises(ValueError, match="no caption"):
        caption_quality([], [])


def test_agreement_is_the_mean_cosine_of_all_pairs():
    pids = [1, 1, 2, 2, 1]
    features = word_features(TEXTS, min_count=1).astype(np.float64)
    similar = features @ features.T
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    same, other = ([similar[i, j] for i, j in pairs if (pids[i] == pids[j]) == alike] for alike in (True, False))
    assert word_agreement(TEXTS, pids) == pytest.approx((np.mean(same), np.mean(other)), abs=1e-6)
    assert np.isnan(word_agreement(TEXTS, [-1] * 5)).all()
    assert np.isnan(word_agreement(TEXTS[:1], [3]).same)


def test_files_and_datasets_are_measured_by_modality(tmp_path):
    for split in ("train", "test"):
        for code in ("RGB", "TI"):
            items = [f"000{pid}_cam1_{i}.jpg" for pid in (1, 2) for i in (0, 1)]
            entries = [{"item": item, "description": f"{split} {code} {item[3]}"} for item in items]
            (tmp_path / f"{split}_{code}.json").write_text(json.dumps(entries))
    found = quality_of_files(tmp_path)
    assert list(found) == ["rgb", "tir"] and found["rgb"].captions == 8
    samples = [Sample(str(i), i // 2, 0, -1, (None, None), (("A man.",), ()) if i < 3 else ()) for i in range(4)]
    dataset = ReIDDataset("d", ("rgb", "nir"), "person", "camera", (), tuple(samples), tuple(samples))
    assert {name: q.captions for name, q in quality_of_dataset(dataset).items()} == {"rgb": 3}
    with pytest.raises(ValueError, match="no sample of d has a caption"):
        quality_of_dataset(ReIDDataset("d", ("rgb", "nir"), "person", "camera", (), tuple(samples[3:]), ()))
