"""`rank` against a loop that sorts everything."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision

from nextreid.retrieval import (
    METRICS,
    Identities,
    Protocol,
    Rerank,
    RetrievalResult,
    arithmetic,
    distance,
    metrics,
    rank,
    rank_distances,
)
from nextreid.retrieval.distance import distance_blocks


def make_split(rng, num_query, num_gallery, num_ids, num_cams, dim=8, levels=None):
    def embeddings(count):
        values = rng.standard_normal((count, dim))
        return (values if levels is None else rng.integers(-levels, levels + 1, (count, dim))).astype(np.float32)

    def ids(count):
        return Identities(rng.integers(0, num_ids, count), rng.integers(0, num_cams, count), rng.integers(0, 3, count))

    return embeddings(num_query), embeddings(num_gallery), ids(num_query), ids(num_gallery)


def ranked_matches(row, query_ids, gallery_ids, protocol, i, itself=-1):
    """Walk one query's sorted gallery; return whether each entry that stays is a match."""
    kept = []
    same = gallery_ids.pid == query_ids.pid[i]
    second = {"stable": np.zeros_like(same), "optimistic": ~same, "pessimistic": same}[protocol.ties]
    for g in np.lexsort((second, row)):
        same = gallery_ids.pid[g] == query_ids.pid[i]
        if same and protocol.exclude == "camera" and gallery_ids.camid[g] == query_ids.camid[i]:
            continue
        if same and protocol.exclude == "scene" and gallery_ids.sceneid[g] == query_ids.sceneid[i]:
            continue
        if g == itself:
            continue
        kept.append(same)
    return kept


def naive(values, query_ids, gallery_ids, protocol, itself=None):
    ap, inp, first = [], [], []
    for i, row in enumerate(values):
        kept = ranked_matches(row, query_ids, gallery_ids, protocol, i, -1 if itself is None else itself[i])
        hits = [place for place, same in enumerate(kept, start=1) if same]
        if not hits:
            ap.append(math.nan), inp.append(math.nan), first.append(0)
            continue
        ap.append(sum((j + 1) / place for j, place in enumerate(hits)) / len(hits))
        inp.append(len(hits) / hits[-1])
        first.append(hits[0])
    return np.array(ap), np.array(inp), np.array(first)


def exact_values(query, gallery, protocol):
    """Values that order each row, in float64 from the float64 embeddings."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if protocol.normalize:
        query /= np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-300)
        gallery /= np.maximum(np.linalg.norm(gallery, axis=1, keepdims=True), 1e-300)
    if protocol.distance == "cosine":
        return 1 - query @ gallery.T
    return np.linalg.norm(query[:, None] - gallery[None], axis=2)


def assert_equal(result, expected):
    ap, inp, first = expected
    np.testing.assert_allclose(result.ap, ap, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.inp, inp, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.first, first)


PROTOCOLS = [
    Protocol("camera", "camera"),
    Protocol("scene", "scene"),
    Protocol("none", "none"),
    Protocol("euclidean", "camera", distance="euclidean", normalize=False),
    Protocol("euclidean-unit", "scene", distance="euclidean"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
@pytest.mark.parametrize(("num_query", "num_gallery"), [(1, 40), (70, 33), (130, 200)])
def test_equals_a_full_sort_in_float64(protocol, num_query, num_gallery):
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(num_query), num_query, num_gallery, 5, 3)
    expected = naive(exact_values(query, gallery, protocol), query_ids, gallery_ids, protocol)
    result = rank(query, gallery, query_ids, gallery_ids, protocol)
    assert_equal(result, expected)
    assert result.mAP == pytest.approx(np.nanmean(expected[0]), abs=1e-12)
    assert result.mINP == pytest.approx(np.nanmean(expected[1]), abs=1e-12)
    found = expected[2][expected[2] > 0]
    for k in (1, 5, 10, 50):
        for value in (result.metric(f"rank-{k}"), result.cmc[k - 1]):
            assert value == pytest.approx(np.mean([f <= k for f in found]), abs=1e-12)
    assert result.metrics == {name: result.metric(name) for name in METRICS}


def block_values(query, gallery, protocol):
    return np.concatenate([b.numpy().copy() for _, b in distance_blocks(query, gallery, protocol)])


cases = {
    "seed": st.integers(0, 2**32 - 1),
    "num_query": st.integers(1, 9),
    "num_gallery": st.integers(1, 30),
    "num_ids": st.integers(1, 4),
    "num_cams": st.integers(1, 3),
    "protocol": st.sampled_from(PROTOCOLS[:4]),
    "ties": st.sampled_from(["stable", "optimistic", "pessimistic"]),
}


@settings(max_examples=80, deadline=None)
@given(**cases)
def test_every_tie_rule_equals_a_full_sort(seed, num_query, num_gallery, num_ids, num_cams, protocol, ties):
    """Few small integers as features: equal distances everywhere, between matches, others and removed entries."""
    rng = np.random.default_rng(seed)
    protocol = replace(protocol, ties=ties)
    query, gallery, query_ids, gallery_ids = make_split(rng, num_query, num_gallery, num_ids, num_cams, 2, levels=1)
    values = block_values(query, gallery, protocol)
    expected = naive(values, query_ids, gallery_ids, protocol)
    assert_equal(rank(query, gallery, query_ids, gallery_ids, protocol), expected)
    assert_equal(rank_distances(values, query_ids, gallery_ids, protocol), expected)


@settings(max_examples=40, deadline=None)
@given(seed=cases["seed"], ties=st.sampled_from(["optimistic", "pessimistic"]))
def test_order_free_tie_rules_do_not_see_the_gallery_order(seed, ties):
    rng = np.random.default_rng(seed)
    query, gallery, query_ids, gallery_ids = make_split(rng, 5, 40, 3, 3, 2, levels=1)
    order = rng.permutation(40)
    moved = Identities(gallery_ids.pid[order], gallery_ids.camid[order])
    rule = Protocol("camera", "camera", ties=ties)
    here, there = (
        rank(query, gallery, query_ids, gallery_ids, rule),
        rank(query, gallery[order], query_ids, moved, rule),
    )
    assert_equal(there, (here.ap, here.inp, here.first))


@settings(max_examples=40, deadline=None)
@given(seed=cases["seed"], ties=cases["ties"])
def test_a_distractor_never_helps(seed, ties):
    rng = np.random.default_rng(seed)
    query, gallery, query_ids, gallery_ids = make_split(rng, 5, 40, 3, 3, 2, levels=1)
    more = np.concatenate([gallery, rng.integers(-1, 2, (3, 2)).astype(np.float32)])
    more_ids = Identities(np.append(gallery_ids.pid, [99] * 3), np.append(gallery_ids.camid, [0, 1, 2]))
    rule = Protocol("camera", "camera", ties=ties)
    before, after = rank(query, gallery, query_ids, gallery_ids, rule), rank(query, more, query_ids, more_ids, rule)
    for name in ("ap", "inp"):
        change = getattr(after, name) - getattr(before, name)
        assert (change[~np.isnan(change)] <= 1e-15).all()
    assert (after.first >= before.first).all()


@pytest.mark.parametrize("ties", ["stable", "optimistic", "pessimistic"])
@pytest.mark.parametrize("levels", [None, 1], ids=["distinct", "ties"])
def test_torch_equals_numpy(levels, ties, monkeypatch):
    """What runs on a GPU, here on the CPU: equal distances are equal bits when features are small integers."""
    rng = np.random.default_rng(20)
    split = make_split(rng, 70, 300, 6, 3, 3 if levels else 16, levels)
    rule = Protocol("euclidean", "camera", "euclidean", normalize=False, ties=ties)
    expected = rank(*split, rule)
    monkeypatch.setattr(metrics, "count_nearer", arithmetic._count_on_device)
    monkeypatch.setattr(distance, "product", arithmetic._product_on_device)
    assert_equal(rank(*split, rule), (expected.ap, expected.inp, expected.first))


@pytest.mark.parametrize("rerank", [None, Rerank(5, 2)])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_join_to_the_whole(num_parts, rerank, monkeypatch, caplog):
    monkeypatch.setattr(distance, "BLOCK", 64)
    monkeypatch.setattr(metrics, "BLOCK", 64)
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(21), 300, 90, 40, 2)
    keys = [str(i) for i in range(300)], [str(300 + i) for i in range(90)]
    args = (query, gallery, query_ids, gallery_ids, "camera")
    whole = rank(*args, query_keys=keys[0], gallery_keys=keys[1], rerank=rerank)
    caplog.clear()
    named = {"query_keys": keys[0], "gallery_keys": keys[1], "rerank": rerank}
    parts = [rank(*args, **named, part=(i, num_parts)) for i in range(num_parts)]
    assert not caplog.records and sum(part.num_query for part in parts) == 300
    joined = RetrievalResult.concat(parts)
    assert len(caplog.records) == 1
    for name in ("ap", "inp", "first", "pid"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    assert joined.keys == whole.keys == tuple(keys[0]) and joined.rerank == rerank
    with pytest.raises(ValueError, match="0 <= i < n"):
        rank(*args, part=(num_parts, num_parts))


def test_one_tie_decided_by_gallery_order():
    query = np.array([[1.0, 0.0]])
    gallery = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    ids = Identities([7], [0])
    assert rank(query, gallery, ids, Identities([8, 7, 9], [1, 1, 1]), "camera").ap[0] == 1
    assert rank(query, gallery, ids, Identities([8, 9, 7], [1, 1, 1]), "camera").ap[0] == 0.5


def test_equal_embeddings_rank_in_gallery_order():
    """A collapsed model: every distance is the same, so only the gallery order decides."""
    rng = np.random.default_rng(3)
    row = rng.standard_normal((1, 100)).astype(np.float32)
    query_ids, gallery_ids = Identities(rng.integers(0, 9, 70)), Identities(rng.integers(0, 9, 203))
    result = rank(row.repeat(70, 0), row.repeat(203, 0), query_ids, gallery_ids, "none")
    assert_equal(result, naive(np.zeros((70, 203)), query_ids, gallery_ids, Protocol("none", "none")))


def test_average_precision_equals_torchmetrics():
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(5), 40, 90, 6, 2)
    result = rank(query, gallery, query_ids, gallery_ids, "none")
    scores = 2 - exact_values(query, gallery, Protocol("none", "none"))
    expected = [
        float(retrieval_average_precision(torch.tensor(row), torch.tensor(gallery_ids.pid == pid)))
        for row, pid in zip(scores, query_ids.pid, strict=True)
    ]
    np.testing.assert_allclose(result.ap, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_tensors_of_any_float_type(dtype):
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(7), 30, 60, 5, 3)
    query, gallery = torch.tensor(query, dtype=dtype, requires_grad=True), torch.tensor(gallery, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = rank(query, gallery, query_ids, gallery_ids, "camera")
    expected = rank(query.detach().float().numpy(), gallery.float().numpy(), query_ids, gallery_ids, "camera")
    np.testing.assert_array_equal(result.ap, expected.ap)


def test_leaves_its_inputs_alone():
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(8), 64, 64, 5, 3)
    before = query.copy(), gallery.copy()
    rank(query, gallery, query_ids, gallery_ids, "camera")
    np.testing.assert_array_equal(query, before[0])
    np.testing.assert_array_equal(gallery, before[1])


@pytest.mark.parametrize("protocol", ["none", "camera"])
def test_keys_ignore_the_query_itself(protocol):
    rng = np.random.default_rng(9)
    embeddings = rng.standard_normal((25, 8)).astype(np.float32)
    ids = Identities(rng.integers(0, 4, 25), rng.integers(0, 2, 25))
    keys = [f"{i}.jpg" for i in range(25)]
    order = rng.permutation(25)
    gallery_ids = Identities(ids.pid[order], ids.camid[order])
    result = rank(
        embeddings,
        embeddings[order],
        ids,
        gallery_ids,
        protocol,
        query_keys=keys,
        gallery_keys=[keys[i] for i in order],
    )
    rule = Protocol(protocol, protocol)
    values = exact_values(embeddings, embeddings[order], rule)
    assert_equal(result, naive(values, ids, gallery_ids, rule, itself=np.argsort(order)))
    if protocol == "none":
        assert rank(embeddings, embeddings[order], ids, gallery_ids, "none").metric("rank-1") == 1
        assert result.metric("rank-1") < 1


def test_queries_without_a_match_are_counted_and_reported_once(caplog):
    query, gallery, _, _ = make_split(np.random.default_rng(10), 4, 6, 1, 1)
    query_ids = Identities([0, 0, 1, 99], [0, 1, 0, 0])
    gallery_ids = Identities([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0])
    with caplog.at_level(logging.WARNING, logger="nextreid"):
        result = rank(query, gallery, query_ids, gallery_ids, "rgbnt201")
    assert np.isnan(result.ap).tolist() == [False, True, True, True]
    assert result.num_query == 4 and result.num_valid == 1
    assert result.mAP == result.ap[0]
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 of 4" in message and "rgbnt201" in message and "camid" in message and "'none'" in message


@pytest.mark.parametrize(("part", "counts"), [(None, [384, 768, 1000]), ((1, 2), [384, 616])])
def test_ranking_says_how_far_it_is(part, counts):
    args = make_split(np.random.default_rng(13), 1000, 5, 2, 2)
    seen = []
    rank(*args, "camera", part=part, progress=lambda *done: seen.append(done))
    assert seen == [(count, counts[-1]) for count in counts]


def test_no_valid_query_is_a_report_with_a_hint():
    query, gallery, _, _ = make_split(np.random.default_rng(11), 2, 3, 1, 1)
    same_scene = Identities([0, 0], [0, 1], [5, 5]), Identities([0, 0, 0], [2, 2, 2], [5, 5, 5])
    result = rank(query, gallery, *same_scene, "msvr310")
    assert result.mAP is None and "sceneid" in result.hint and "msvr310" in str(result)
    assert "identity labels" in rank(query, gallery, Identities([8, 8]), Identities([0, 0, 0]), "none").hint


def test_bad_embeddings_are_counted():
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(12), 5, 6, 2, 2)
    bad = gallery.copy()
    bad[[1, 4], 3] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 6 gallery embeddings.*index 1"):
        rank(query, bad, query_ids, gallery_ids, "camera")
    with pytest.raises(ValueError, match="4 query embeddings but 5 query labels"):
        rank(query[:4], gallery, query_ids, gallery_ids, "camera")
    with pytest.raises(ValueError, match="8 features but gallery embeddings have 7"):
        rank(query, gallery[:, :7], query_ids, gallery_ids, "camera")
    with pytest.raises(ValueError, match="non-empty"):
        rank(query[:0], gallery, Identities([]), gallery_ids, "camera")
    values = np.zeros((5, 6))
    values[3, 2] = np.nan
    with pytest.raises(ValueError, match="query 3 hold NaN"):
        rank_distances(values, query_ids, gallery_ids, "camera")
    with pytest.raises(ValueError, match=r"= \(5, 6\).*got \(4, 6\)"):
        rank_distances(values[:4], query_ids, gallery_ids, "camera")
