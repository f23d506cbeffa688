"""`top_k` against a stable argsort of one query at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval import Identities, PreparedGallery, distance, get_protocol, rank, top_k
from nextreid.retrieval.distance import distance_blocks


def make_split(seed, num_query=70, num_gallery=40, levels=None):
    rng = np.random.default_rng(seed)

    def embeddings(count):
        return rng.integers(-1, 2, (count, 3)) if levels else rng.standard_normal((count, 6))

    def ids(count):
        return Identities(rng.integers(0, 4, count), rng.integers(0, 2, count), rng.integers(0, 2, count))

    return embeddings(num_query), embeddings(num_gallery), ids(num_query), ids(num_gallery)


@pytest.mark.parametrize("levels", [None, 1], ids=["distinct", "ties"])
@pytest.mark.parametrize("protocol", ["camera", "scene", "none"])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_equals_a_stable_argsort(protocol, levels, k):
    query, gallery, query_ids, gallery_ids = make_split(0, levels=levels)
    indices, matches = top_k(query, gallery, query_ids, gallery_ids, protocol, k)
    assert indices.shape == matches.shape == (70, k) and indices.dtype == np.int64 and matches.dtype == bool
    values = np.concatenate([b for _, b in distance_blocks(query, gallery, get_protocol(protocol))])
    label = {"camera": "camid", "scene": "sceneid", "none": None}[protocol]
    for i in range(70):
        ignored = np.zeros(40, bool)
        if label:
            same = getattr(gallery_ids, label) == getattr(query_ids, label)[i]
            ignored = same & (gallery_ids.pid == query_ids.pid[i])
        kept = [g for g in np.argsort(values[i], kind="stable") if not ignored[g]][:k]
        assert indices[i].tolist() == kept + [-1] * (k - len(kept))
        assert matches[i].tolist() == [g >= 0 and gallery_ids.pid[g] == query_ids.pid[i] for g in indices[i]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 70]), st.sampled_from([1, 5, 64, 200]), st.sampled_from([None, 1]))
def test_any_cut_into_tiles_gives_the_nearest(seed, num_query, k, levels):
    query, gallery, query_ids, gallery_ids = make_split(seed, num_query, 150, levels)
    whole = top_k(query, gallery, query_ids, gallery_ids, "camera", k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "TILE", 64)
        for some in (gallery, PreparedGallery(gallery, "camera")):
            for ours, known in zip(top_k(query, some, query_ids, gallery_ids, "camera", k), whole, strict=True):
                np.testing.assert_array_equal(ours, known)


def test_mistakes_are_named():
    query, gallery, query_ids, gallery_ids = make_split(3)
    good = {"query_emb": query, "gallery_emb": gallery, "query_ids": query_ids, "gallery_ids": gallery_ids}
    wrong = [
        ({"query_ids": query_ids.pid}, "query labels must be Identities"),
        ({"gallery_ids": gallery_ids[:3]}, "40 gallery embeddings but 3 gallery labels"),
        ({"query_emb": query[:, :4]}, "query embeddings have 4 features"),
        ({"protocol": None}, "a protocol is a name or a Protocol; got None"),
        ({"protocol": "camera" * 1000}, r"^unknown protocol .{0,400}$"),
        ({"k": 2.5}, "k must be an integer"),
        ({"query_keys": ["a"] * 70, "gallery_keys": ["b"] * 40}, "query_keys holds 69 repeated keys"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            top_k(**{**good, "protocol": "camera", **change})
    query[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 70 query embeddings.*index 4"):
        top_k(query, gallery, query_ids, gallery_ids, "camera")


def test_agrees_with_rank():
    query, gallery, query_ids, gallery_ids = make_split(1, levels=1)
    result = rank(query, gallery, query_ids, gallery_ids, "camera")
    _, matches = top_k(query, gallery, query_ids, gallery_ids, "camera", 40)
    np.testing.assert_array_equal(result.first, np.where(matches.any(1), matches.argmax(1) + 1, 0))


def test_keys_ignore_the_query_itself():
    _, gallery, _, ids = make_split(2)
    keys = [str(i) for i in range(40)]
    assert (top_k(gallery, gallery, ids, ids, "none", 1)[0][:, 0] == np.arange(40)).all()
    indices, _ = top_k(gallery, gallery, ids, ids, "none", 39, query_keys=keys, gallery_keys=keys)
    assert all(sorted(indices[i]) == [j for j in range(40) if j != i] for i in range(40))


def test_bad_k_is_rejected():
    query, gallery, query_ids, gallery_ids = make_split(3)
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got 0"):
        top_k(query, gallery, query_ids, gallery_ids, "none", 0)
