"""A gallery in shards against the same gallery in one piece."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval import Identities, Protocol, RetrievalResult, distance, metrics, rank, rank_shards, streaming


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    for module in (distance, metrics, streaming):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(distance, "TILE", 64)


def make_split(seed, levels=None, num_query=130, num_gallery=300):
    rng = np.random.default_rng(seed)

    def split(count):
        values = rng.standard_normal((count, 9)) if levels is None else rng.integers(-1, 2, (count, 3))
        return values.astype(np.float32), Identities(
            rng.integers(0, 9, count), rng.integers(0, 2, count), rng.integers(0, 2, count)
        )

    return *split(num_query), *split(num_gallery)


def cut(embeddings, ids, edges, keys=None):
    bounds = [0, *sorted(edges), len(ids)]
    return [
        (
            embeddings[a:b],
            Identities(ids.pid[a:b], ids.camid[a:b], ids.sceneid[a:b]),
            None if keys is None else keys[a:b],
        )
        for a, b in itertools.pairwise(bounds)
        if b > a
    ]


def assert_same(a, b):
    for name in ("ap", "inp", "first", "pid"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    edges=st.lists(st.integers(0, 300), max_size=6),
    levels=st.sampled_from([None, 1]),
    protocol=st.sampled_from(
        [
            Protocol("camera", "camera"),
            Protocol("scene", "scene", ties="optimistic"),
            Protocol("raw", "camera", "euclidean", normalize=False, ties="pessimistic"),
        ]
    ),
)
def test_any_cut_gives_the_same_bits(seed, edges, levels, protocol):
    query, query_ids, gallery, gallery_ids = make_split(seed, levels)
    whole = rank(query, gallery, query_ids, gallery_ids, protocol)
    shards = cut(gallery, gallery_ids, edges)
    assert_same(rank_shards(query, query_ids, shards, protocol), whole)
    assert_same(rank_shards(query, query_ids, lambda: iter(shards), protocol), whole)


def test_keys_and_parts():
    gallery, gallery_ids = make_split(3, levels=1)[2:]
    names = [str(i) for i in range(300)]
    shards = cut(gallery, gallery_ids, [100, 101, 250], names)
    mine = gallery[:130], Identities(gallery_ids.pid[:130], gallery_ids.camid[:130])
    whole = rank(mine[0], gallery, mine[1], gallery_ids, "none", query_keys=names[:130], gallery_keys=names)
    assert_same(rank_shards(*mine, shards, "none", query_keys=names[:130]), whole)
    parts = [rank_shards(*mine, shards, "none", query_keys=names[:130], part=(i, 4)) for i in range(4)]
    assert_same(RetrievalResult.concat(parts), whole)
    assert rank(mine[0], gallery, mine[1], gallery_ids, "none").mAP > whole.mAP


def test_bad_shards_are_rejected():
    query, query_ids, gallery, gallery_ids = make_split(4)
    shards = cut(gallery, gallery_ids, [100])
    with pytest.raises(ValueError, match="read twice"):
        rank_shards(query, query_ids, iter(shards), "camera")
    with pytest.raises(ValueError, match="no shard"):
        rank_shards(query, query_ids, [], "camera")
    with pytest.raises(ValueError, match="keys of every shard"):
        rank_shards(query, query_ids, shards, "camera", query_keys=[str(i) for i in range(130)])
    with pytest.raises(ValueError, match="repeat keys"):
        rank_shards(query, query_ids, cut(gallery, gallery_ids, [100], ["a"] * 300), "camera")
    with pytest.raises(ValueError, match="9 features but gallery embeddings have 8"):
        rank_shards(query, query_ids, cut(gallery[:, :8], gallery_ids, [100]), "camera")
    with pytest.raises(ValueError, match="299 embeddings, 300 labels"):
        rank_shards(query, query_ids, [(gallery[:299], gallery_ids, None)], "camera")
    readings = [shards, shards[::-1]]
    with pytest.raises(ValueError, match="second reading"):
        rank_shards(query, query_ids, lambda: iter(readings.pop(0)), "camera")
    bad = gallery.copy()
    bad[203] = np.nan
    with pytest.raises(ValueError, match=r"gallery embeddings hold NaN.*index 203"):
        rank_shards(query, query_ids, cut(bad, gallery_ids, [100]), "camera")
