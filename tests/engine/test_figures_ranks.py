"""Rank lists of models on a dataset: which queries are chosen, what is drawn of whom, and rejected input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data import Sample
from nextreid.engine import evaluate
from nextreid.engine.figures import rank_lists, ranks
from nextreid.engine.ranking import CHOICES, choose_queries

SAMPLES = [Sample(f"q{i}", i // 2, i % 2, -1, (None,)) for i in range(8)]  # four identities


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=16, max_size=16),
    st.lists(st.sampled_from(CHOICES), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_words_choose_queries_of_different_identities(values, words, count):
    ap = np.array(values).reshape(2, 8)
    chosen = choose_queries(SAMPLES, ap, words, count)
    places = [place for place, _ in chosen]
    assert len(set(places)) == len(places) and set(places) <= set(range(8))
    assert len(places) >= min(count, 4)
    first = words[0]
    scores = {"worst": -ap.mean(0), "best": ap.mean(0), "differ": np.ptp(ap, axis=0)}
    if first in scores:
        assert scores[first][places[0]] == scores[first].max()
        assert len({SAMPLES[place].pid for place in places[:count]}) == count


def test_keys_choose_queries_and_words_skip_those_without_a_match():
    ap = np.array([[0.5, np.nan, 0.1, 0.9, 0.2, 0.3, 0.4, 0.6]])
    assert choose_queries(SAMPLES, ap, ["q1", "worst"], 1) == [(1, "query q1; "), (2, "worst query; ")]
    with pytest.raises(ValueError, match=r"unknown choice of queries 'wurst'\. Did you mean 'worst'\?.*such as 'q0'"):
        choose_queries(SAMPLES, ap, ["wurst"], 1)
    nothing = np.full((1, 8), np.nan)
    with pytest.raises(ValueError, match="no query has a match"):
        choose_queries(SAMPLES, nothing, ["best"], 1)
    assert len(choose_queries(SAMPLES, nothing, ["random"], 3)) == 3


@pytest.fixture
def drawn(monkeypatch):
    """What is given to the drawing, by name."""
    found = {}

    def record(queries, gallery, indices, matches, modalities, **rest):
        found.update(queries=queries, gallery=gallery, indices=indices, matches=matches, modalities=modalities, **rest)

    monkeypatch.setattr(ranks, "rank_list_image", record)
    return found


def test_each_model_has_a_row_for_each_query_with_its_own_precision(build, dataset, drawn):
    models = {"next": build(), "baseline": build("baseline_tiny")}
    rank_lists(models, dataset, queries=["worst"], count=2, top=4)
    ap = {name: evaluate(model, dataset).result.ap for name, model in models.items()}
    worst = np.argsort(sum(ap.values()), kind="stable")[0]
    keys = [sample.key for sample in drawn["queries"]]
    assert keys[0] == keys[1] == dataset.query[worst].key and keys[2] == keys[3] != keys[0]
    for name, title in zip(models, drawn["titles"], strict=False):
        assert title == f"worst query; {name}: average precision {100 * ap[name][worst]:.1f} %"
    assert drawn["indices"].shape == (4, 4) and drawn["ignored"] is None
    for query, row, matches in zip(drawn["queries"], drawn["indices"], drawn["matches"], strict=True):
        entries = [dataset.gallery[i] for i in row]
        assert [entry.pid == query.pid for entry in entries] == matches.tolist()
        assert not any(entry.pid == query.pid and entry.camid == query.camid for entry in entries)
    assert (np.diff(drawn["scores"], axis=1) <= 1e-6).all()


def test_ignored_entries_are_drawn_when_asked_for_and_hidden_modalities_are_not(build, dataset, drawn):
    rank_lists({"m": build()}, dataset, queries=["best"], count=1, top=18, ignored=True, missing=["nir"])
    (query,) = drawn["queries"]
    assert query.images[1] is None and query.images[0] is not None
    entries = [dataset.gallery[i] for i in drawn["indices"][0]]
    same_place = [entry.pid == query.pid and entry.camid == query.camid for entry in entries]
    assert drawn["ignored"][0].tolist() == same_place and sum(same_place) == 2
    assert not (drawn["ignored"] & drawn["matches"]).any()
    assert drawn["titles"][0].startswith("best query; average precision")


def test_a_modality_that_nobody_has_takes_no_room(build, dataset, drawn):
    def without_nir(sample):
        return replace(sample, images=(sample.images[0], None, sample.images[2]))

    samples = {split: tuple(map(without_nir, getattr(dataset, split))) for split in ("query", "gallery")}
    rank_lists({"m": build()}, replace(dataset, **samples), queries=["random"], count=1, top=2)
    assert drawn["modalities"] == ("rgb", "tir") and len(drawn["queries"][0].images) == 2
    captions = next(s for s in dataset.query if s.key == drawn["queries"][0].key).captions
    assert drawn["queries"][0].captions == captions[::2]


def test_an_image_comes_out(build, dataset):
    image = rank_lists({"m": build("baseline_tiny")}, dataset, queries=["random"], count=1, top=2, image_size=32)
    assert image.mode == "RGB" and image.width > 300


def test_what_cannot_be_drawn_is_named(build, dataset):
    with pytest.raises(ValueError, match="no model"):
        rank_lists({}, dataset)
    with pytest.raises(ValueError, match="top must be at least 1"):
        rank_lists({"m": build("baseline_tiny")}, dataset, top=0)
    with pytest.raises(ValueError, match=r"the model reads rgb, nir, tir but .*--dataset-arg"):
        rank_lists({"m": build("baseline_tiny")}, replace(dataset, modalities=("a", "b", "c")))
