"""Embeddings, scores and training on plots: what was chosen and counted, beside naive loops; bounds; rejected input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data import Sample
from nextreid.engine import calibrate, evaluate
from nextreid.engine.figures import scores, space, training
from nextreid.engine.figures.embedding_space import choose_samples, perplexity, plane, silhouette
from nextreid.engine.figures.runs import read_history
from nextreid.engine.figures.score_counts import STEP, count_scores
from nextreid.retrieval import get_protocol


def samples_of(sizes):
    return [Sample(f"{pid}_{i}", pid, 0, -1, (None,)) for pid, size in enumerate(sizes) for i in range(size)]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 60))
def test_samples_are_shared_evenly_and_never_more_than_the_limit(sizes, count, limit):
    samples = samples_of(sizes)
    chosen = choose_samples(samples, (), count, limit, 0, {})
    assert 1 <= len(chosen) <= limit and len(set(chosen)) == len(chosen)
    of = {}
    for place in chosen:
        of[samples[place].pid] = of.get(samples[place].pid, 0) + 1
    assert len(of) <= count
    if any(size > 1 for size in sizes):
        assert all(sizes[pid] > 1 for pid in of)
    full = [pid for pid in of if of[pid] < sizes[pid]]  # what was cut has no less than what was not, but for rounding
    assert all(of[pid] >= of[other] - 1 for pid in full for other in of)
    assert chosen == choose_samples(samples, (), count, limit, 0, {})


def test_identities_are_chosen_by_the_names_of_the_files():
    samples, names = samples_of([2, 3, 1]), {"pid": {0: "anna", 1: "bo", 2: "cy"}}
    assert [samples[i].pid for i in choose_samples(samples, ["cy", "anna"], 9, 99, 0, names)] == [2, 0, 0]
    with pytest.raises(ValueError, match=r"unknown identity 'ana'\. Did you mean 'anna'"):
        choose_samples(samples, ["ana"], 9, 99, 0, names)
    with pytest.raises(ValueError, match="none of 1 samples has a known identity"):
        choose_samples([Sample("a", -1, 0, -1, (None,))], (), 1, 9, 0, {})


def test_a_hundred_thousand_samples_are_bounded():
    one, two = samples_of([1, 1])
    assert len(choose_samples([one, two] * 50_000, (), 12, 500, 0, {})) == 500


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_few_samples_have_a_place_each(count):
    vectors = np.random.default_rng(0).normal(size=(count, 6))
    found = plane(vectors)
    assert found.shape == (count, 2) and np.isfinite(found).all()
    assert len(np.unique(found.round(6), axis=0)) == count
    np.testing.assert_array_equal(found, plane(vectors))  # the seed is fixed
    assert perplexity(count) < max(count, 1) and not plane(np.ones((count, 6))).any()


def test_clusters_stay_together_and_the_silhouette_is_that_of_the_definition():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], 8)
    vectors = np.eye(3, 10)[labels] + 0.05 * rng.normal(size=(24, 10))
    points = plane(vectors)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    same = labels[:, None] == labels[None]
    assert apart[same].max() < apart[~same].min()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance, values = 1 - unit @ unit.T, []
    for i, own in enumerate(labels):
        a = distance[i, (labels == own) & (np.arange(24) != i)].mean()
        b = min(distance[i, labels == other].mean() for other in {0, 1, 2} - {own})
        values.append((b - a) / max(a, b))
    assert silhouette(vectors, labels) == pytest.approx(np.mean(values))
    assert silhouette(vectors, np.zeros(24)) is None and silhouette(vectors, np.arange(24)) is None


def test_space_says_what_it_shows(build, dataset):
    models = {"next": build(), "baseline": build("baseline_tiny")}
    plot = space(models, dataset, count=3, limit=7)
    titles = [axis.get_title("left") for axis in plot.figure.axes]
    for title, (name, model) in zip(titles, models.items(), strict=True):
        assert f"{name}\nmAP {100 * evaluate(model, dataset).result.mAP:.1f} %, silhouette " in title
    assert sum(len(marks.get_offsets()) for marks in plot.figure.axes[0].collections) == 7
    assert "3 of 6 identities at random (seed 0), 7 of their 9 samples; t-SNE of 50" in plot.caption
    one = space({"m": models["baseline"]}, replace(dataset, query=dataset.query[:1], gallery=dataset.query[:1]))
    assert one.figure.axes[0].get_title("left") == "m" and "too few for t-SNE" in one.caption
    with pytest.raises(ValueError, match="no model"):
        space({}, dataset)
    with pytest.raises(ValueError, match="count and limit must be at least 1, got 0 and 1200"):
        space(models, dataset, count=0)


def test_scikit_learn_is_named_where_it_is_missing(build, dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'scikit-learn: pip install "nextreid\[figures\]"'):
        space({"m": build("baseline_tiny")}, dataset)


@pytest.mark.parametrize("protocol", ["camera", "none"])
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_pairs_are_counted_as_a_loop_counts_them(protocol, block, monkeypatch):
    monkeypatch.setattr("nextreid.engine.figures.score_counts._BLOCK", block * 12)
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), int(rng.integers(4)), int(rng.integers(2)), -1, (None,)) for i in range(20)]
    query, gallery, rule = samples[:11], samples[8:], get_protocol(protocol)
    vectors = torch.from_numpy(rng.normal(size=(20, 5)).astype(np.float32))
    counts = count_scores(vectors[:11], vectors[8:], query, gallery, rule)
    same, different = [], []
    for i, asked in enumerate(query):
        for j, entry in enumerate(gallery):
            if asked.key == entry.key or (
                protocol == "camera" and (asked.pid, asked.camid) == (entry.pid, entry.camid)
            ):
                continue
            score = float(torch.cosine_similarity(vectors[i], vectors[8 + j], dim=0))
            (same if asked.pid == entry.pid else different).append(score)
    for counted, scores_ in ((counts.same, same), (counts.different, different)):
        assert counted.sum() == len(scores_) and (counted >= 0).all()
        middles = np.repeat((counts.edges[1:] + counts.edges[:-1]) / 2, counted)
        np.testing.assert_allclose(middles, np.sort(scores_), atol=STEP)


def test_scores_say_what_they_show(build, dataset):
    model = build("baseline_tiny")
    found = calibrate(model, dataset)
    plot = scores({"m": model}, dataset, calibrations={"m": found}, queries=5)
    assert len(plot.figure.axes) == 3 and "5 of 18 queries at random (seed 0)" in plot.caption
    plain = scores({"m": model}, dataset)
    assert len(plain.figure.axes) == 2 and "No model is calibrated" in plain.caption
    with pytest.raises(ValueError, match="the calibration of m has digest"):
        scores({"m": build("baseline_tiny", seed=1)}, dataset, calibrations={"m": found})
    some = replace(found, curves={name: curve for name, curve in found.curves.items() if name != "nir+tir"})
    with pytest.raises(ValueError, match=r"calibration of m: unknown calibrated set of modalities 'nir\+tir'"):
        scores({"m": model}, dataset, calibrations={"m": some}, missing=["rgb"])
    alone = replace(dataset, query=dataset.query[:1], gallery=dataset.query[:1])
    with pytest.raises(ValueError, match="m has 0 pairs of one identity and 0 of two"):
        scores({"m": model}, alone)


def test_runs_are_read_from_their_folders(tmp_path):
    rows = [{"epoch": e, "loss": {"total": 4.0 / e}, "lr": {"new": 1e-3}} for e in (1, 2)]
    (tmp_path / "run" / "last").mkdir(parents=True)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_history(tmp_path / "run") == read_history(tmp_path / "run" / "last") == rows
    plot = training({"a": tmp_path / "run"}, style="print")
    assert plot.caption.endswith("a: 2 epoch(s), 0 evaluated.") and len(plot.figure.axes) == 2
    for text, message in (
        ("{", "line 1 is not JSON"),
        ('{"loss": 1}', "line 1 is no row of an epoch"),
        ('{"epoch": 1, "evaluation": 3}', "line 1 is no row of an epoch"),
        ('{"epoch": 1, "evaluation": {"mAP": "x"}}', "line 1: evaluation"),
        ('{"epoch": 1, "loss": {"total": "x"}}', "line 1: loss"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            training({"a": tmp_path / "run"})
    file.write_text("")
    with pytest.raises(FileNotFoundError, match="no whole epoch yet"):
        training({"a": tmp_path / "run"})
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        training({"a": tmp_path})
