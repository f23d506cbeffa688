"""Samples of unknown identity (-1): nobody's match, distractors in the gallery, no valid queries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval import Identities, Rerank, compare, rank, rank_distances, rank_shards, top_k

PROTOCOLS = ("camera", "scene", "none")


def make_split(seed, num_query=12, num_gallery=40):
    """Query and gallery of which about a third is unknown; small integers as features, so that there are ties."""
    rng = np.random.default_rng(seed)

    def side(count):
        labels = (rng.integers(-1, 2, count), rng.integers(-1, 2, count), rng.integers(-1, 2, count))
        return rng.integers(-2, 3, (count, 3)).astype(np.float32), Identities(*labels)

    (query, query_ids), (gallery, gallery_ids) = side(num_query), side(num_gallery)
    return query, gallery, query_ids, gallery_ids


def distinct(ids, start):
    """The same labels with an identity of its own for each unknown sample: what -1 has to mean."""
    pid = np.where(ids.pid < 0, start + np.arange(len(ids)), ids.pid)
    return Identities(pid, ids.camid, ids.sceneid)


def same(a, b):
    for name in ("ap", "inp", "first"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(PROTOCOLS))
def test_an_unknown_sample_is_like_one_that_nobody_else_shows(seed, protocol):
    query, gallery, query_ids, gallery_ids = make_split(seed)
    labels = distinct(query_ids, 1000), distinct(gallery_ids, 2000)
    result = rank(query, gallery, query_ids, gallery_ids, protocol)
    same(result, rank(query, gallery, *labels, protocol))
    same(
        rank(query, gallery, query_ids, gallery_ids, protocol, rerank=Rerank(4, 2)),
        rank(query, gallery, *labels, protocol, rerank=Rerank(4, 2)),
    )
    matrix = ((query[:, None] - gallery) ** 2).sum(axis=2)
    same(
        rank_distances(matrix, query_ids, gallery_ids, protocol),
        rank_distances(matrix, *labels, protocol),
    )
    shards = [(gallery[rows], gallery_ids[rows], None) for rows in (slice(0, 7), slice(7, 7), slice(7, 40))]
    same(rank_shards(query, query_ids, shards, protocol), result)
    np.testing.assert_array_equal(np.isnan(result.ap) | (query_ids.pid >= 0), True)
    for ours, theirs in zip(
        top_k(query, gallery, query_ids, gallery_ids, protocol, 9),
        top_k(query, gallery, *labels, protocol, 9),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_query_ignores_itself_and_nothing_else(protocol):
    _, gallery, _, ids = make_split(3)
    keys = [str(i) for i in range(len(ids))]
    indices, matches = top_k(gallery, gallery, ids, ids, protocol, 40, query_keys=keys, gallery_keys=keys)
    for i in np.flatnonzero(ids.pid < 0):
        assert sorted(indices[i]) == [-1, *(j for j in range(40) if j != i)] and not matches[i].any()


@pytest.mark.parametrize("rerank", [None, Rerank(3, 1)])
def test_nothing_but_unknown_samples_is_a_report_without_metrics(rerank, caplog):
    query, gallery, query_ids, gallery_ids = make_split(1)
    nobody = Identities(np.full(12, -1)), Identities(np.full(40, -1))
    result = rank(query, gallery, *nobody, "none", rerank=rerank)
    assert (result.num_query, result.num_valid, result.mAP) == (12, 0, None)
    assert "12 have an unknown identity (-1)" in result.hint and result.hint in caplog.text
    assert rank(query, gallery, nobody[0], gallery_ids, "none").mAP is None
    assert rank(query, gallery, query_ids, nobody[1], "none").mAP is None


def test_intervals_and_comparisons_draw_known_identities_only():
    query, gallery, query_ids, gallery_ids = make_split(2)
    result = rank(query, gallery, query_ids, gallery_ids, "none")
    assert result.bootstrap(samples=10).identities == len(np.unique(query_ids.pid[query_ids.pid >= 0]))
    assert compare(result, result, samples=10).difference.identities == result.bootstrap(samples=10).identities
