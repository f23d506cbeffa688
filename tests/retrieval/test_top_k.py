"""`top_k` against a stable argsort of one query at a time."""

import numpy as np
import pytest

from nextreid.retrieval import Identities, get_protocol, rank, top_k
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
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        top_k(query, gallery, query_ids, gallery_ids, "none", 0)
