"""`rank` against a loop that sorts everything."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision

from nextreid.retrieval import Identities, Protocol, rank
from nextreid.retrieval.distance import nearness_blocks


def make_split(rng, num_query, num_gallery, num_ids, num_cams, dim=8, levels=None):
    def embeddings(count):
        values = rng.standard_normal((count, dim))
        return (values if levels is None else rng.integers(-levels, levels + 1, (count, dim))).astype(np.float32)

    def ids(count):
        return Identities(rng.integers(0, num_ids, count), rng.integers(0, num_cams, count), rng.integers(0, 3, count))

    return embeddings(num_query), embeddings(num_gallery), ids(num_query), ids(num_gallery)


def ranked_matches(row, query_ids, gallery_ids, protocol, i, itself=-1):
    """Walk a stable argsort of one query's gallery; return whether each entry that stays is a match."""
    kept = []
    for g in np.argsort(row, kind="stable"):
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
    for r, value in ((1, result.rank1), (5, result.rank5), (10, result.rank10), (50, result.cmc[49])):
        assert value == pytest.approx(np.mean([f <= r for f in found]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_query=st.integers(1, 9),
    num_gallery=st.integers(1, 30),
    num_ids=st.integers(1, 4),
    num_cams=st.integers(1, 3),
    protocol=st.sampled_from(PROTOCOLS[:4]),
)
def test_ties_keep_gallery_order(seed, num_query, num_gallery, num_ids, num_cams, protocol):
    """Few small integers as features: equal distances everywhere, between matches, others and removed entries."""
    rng = np.random.default_rng(seed)
    query, gallery, query_ids, gallery_ids = make_split(rng, num_query, num_gallery, num_ids, num_cams, 2, levels=1)
    values = np.concatenate([block.copy() for _, block in nearness_blocks(query, gallery, protocol)])
    expected = naive(values, query_ids, gallery_ids, protocol)
    if (expected[2] == 0).all():
        with pytest.raises(ValueError, match="valid match"):
            rank(query, gallery, query_ids, gallery_ids, protocol)
    else:
        assert_equal(rank(query, gallery, query_ids, gallery_ids, protocol), expected)


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


def test_result_does_not_depend_on_block():
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(6), 300, 333, 9, 3, dim=257)
    results = [rank(query, gallery, query_ids, gallery_ids, "camera", block=b) for b in (64, 1, 7, 100, 256, 10_000)]
    for other in results[1:]:
        np.testing.assert_array_equal(other.ap, results[0].ap)
        np.testing.assert_array_equal(other.inp, results[0].inp)
        np.testing.assert_array_equal(other.first, results[0].first)


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
def test_keys_take_out_the_query_itself(protocol):
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
        assert rank(embeddings, embeddings[order], ids, gallery_ids, "none").rank1 == 1
        assert result.rank1 < 1


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


def test_no_valid_query_is_an_error_with_the_remedy():
    query, gallery, _, _ = make_split(np.random.default_rng(11), 2, 3, 1, 1)
    same_scene = Identities([0, 0], [0, 1], [5, 5]), Identities([0, 0, 0], [2, 2, 2], [5, 5, 5])
    with pytest.raises(ValueError, match=r"none of 2 queries.*msvr310.*sceneid"):
        rank(query, gallery, *same_scene, "msvr310")
    with pytest.raises(ValueError, match="identity labels"):
        rank(query, gallery, Identities([8, 8]), Identities([0, 0, 0]), "none")


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
    with pytest.raises(ValueError, match="block"):
        rank(query, gallery, query_ids, gallery_ids, "camera", block=0)


def test_to_dict_is_plain_and_complete():
    query, gallery, query_ids, gallery_ids = make_split(np.random.default_rng(13), 20, 30, 3, 3)
    result = rank(query, gallery, query_ids, gallery_ids, "camera")
    summary = result.to_dict()
    assert list(summary) == ["mAP", "rank-1", "rank-5", "rank-10", "mINP", "queries", "valid_queries", "protocol"]
    assert all(type(value) in (float, int, str) for value in summary.values())
    assert result.cmc.shape == (50,) and (np.diff(result.cmc) >= 0).all() and result.cmc[-1] == 1
    assert "protocol camera" in str(result)
