"""Re-ranking against a dense implementation of the paper's equations."""

import functools

import numpy as np
import pytest

from nextreid.retrieval import Identities, Protocol, Rerank, rank, rank_distances, rerank
from nextreid.retrieval.distance import CPU
from nextreid.retrieval.protocol import get_protocol

RAW = Protocol("raw", "camera", "euclidean", normalize=False)


def clusters(seed, num_query=40, num_gallery=100, num_ids=12, dim=16):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_ids, dim))

    def split(count):
        pid = rng.integers(0, num_ids, count)
        values = centres[pid] * 1.2 + rng.standard_normal((count, dim))
        return values.astype(np.float32), Identities(pid, rng.integers(0, 3, count))

    return *split(num_query), *split(num_gallery)


def dense(query, gallery, normalize, k1, k2, weight):
    """Eq. 3 and 4 as Python sets, Eq. 7 and 11 as rows of a full matrix, then Eq. 10 and 12."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    if normalize:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.square(x[:, None] - x[None]).sum(axis=2)
    distance /= distance.max(axis=1, keepdims=True)
    total = len(x)
    order = np.argsort(distance, axis=1, kind="stable")

    @functools.cache
    def nearest(i, k):
        return dict.fromkeys(int(j) for j in order[i, :k])

    @functools.cache
    def reciprocal(i, k):
        return {j for j in nearest(i, k + 1) if i in nearest(j, k + 1)}

    vectors = np.zeros((total, total))
    for i in range(total):
        core = reciprocal(i, k1)
        grown = set(core)
        for j in core:
            other = reciprocal(j, round(k1 / 2))
            if len(core & other) > 2 / 3 * len(other):
                grown |= other
        members = sorted(grown)
        vectors[i, members] = np.exp(-distance[i, members])
        vectors[i] /= vectors[i].sum()
    vectors = np.stack([vectors[list(nearest(i, k2))].mean(axis=0) for i in range(total)])
    low = np.minimum(vectors[: len(query), None], vectors[None, len(query) :]).sum(axis=2)
    high = np.maximum(vectors[: len(query), None], vectors[None, len(query) :]).sum(axis=2)
    return (1 - weight) * (1 - low / high) + weight * distance[: len(query), len(query) :]


def blocks(query, gallery, protocol, settings):
    found = rerank.reranked_blocks(query, gallery, protocol, settings, CPU, slice(0, len(query)))
    return np.concatenate([block.numpy() for _, block in found])


@pytest.mark.parametrize("protocol", [get_protocol("camera"), RAW], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (7, 3, 0.5), (5, 1, 0.0), (1, 1, 0.3), (20, 30, 1.0), (400, 6, 0.3)]
)
def test_equals_the_dense_equations(k1, k2, weight, protocol):
    query, _, gallery, _ = clusters(k1)
    expected = dense(query, gallery, protocol.normalize, k1, k2, weight)
    found = blocks(query, gallery, protocol, Rerank(k1, k2, weight))
    assert found.dtype == np.float32
    assert (np.abs(found - expected) < 1e-5).mean() >= 0.9999


def test_neighbours_at_one_distance_come_in_order_of_index():
    """Every sample twice, as where the queries are in the gallery; coordinates are integers, so ties are exact."""
    rng = np.random.default_rng(2)
    query = rng.integers(-3, 4, (80, 5)).astype(np.float32)
    gallery = np.concatenate([query[::-1], query])
    expected = dense(query, gallery, False, 8, 3, 0.3)
    assert (np.abs(blocks(query, gallery, RAW, Rerank(8, 3)) - expected) < 1e-5).mean() >= 0.9999


def test_more_duplicates_than_neighbours():
    """A collapsed model: among many equal embeddings a sample is not its own neighbour, and none may be at all."""
    query = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    gallery = np.concatenate([query, -query[:5]])
    found = blocks(query, gallery, RAW, Rerank())
    assert np.isfinite(found).all()
    same = found[0, :40].max()
    assert same < found[0, 40:].min()


def test_blocks_of_any_size_agree(monkeypatch):
    query, _, gallery, _ = clusters(4)
    expected = blocks(query, gallery, RAW, Rerank())
    for name, size in (("_ROWS", 7), ("_PAIRS", 11), ("_SUMS", 300)):
        monkeypatch.setattr(rerank, name, size)
    np.testing.assert_allclose(blocks(query, gallery, RAW, Rerank()), expected, atol=1e-6)


def test_rank_scores_the_reranked_distances_and_records_it():
    query, query_ids, gallery, gallery_ids = clusters(5)
    result = rank(query, gallery, query_ids, gallery_ids, "camera", rerank=Rerank())
    values = blocks(query, gallery, get_protocol("camera"), Rerank())
    np.testing.assert_array_equal(result.ap, rank_distances(values, query_ids, gallery_ids, "camera").ap)
    plain = rank(query, gallery, query_ids, gallery_ids, "camera")
    assert result.mAP > plain.mAP
    assert "re-ranked (k1 20, k2 6, lambda 0.3)" in str(result) and "re-ranked" not in str(plain)
    assert result.to_dict()["rerank"] == {"k1": 20, "k2": 6, "lambda_value": 0.3}
    assert plain.to_dict()["rerank"] is None


def test_bad_input_is_rejected():
    for change in ({"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}):
        with pytest.raises(ValueError, match="re-ranking needs"):
            Rerank(**change)
    query, query_ids, gallery, gallery_ids = clusters(6)
    gallery[3, 0] = np.nan
    with pytest.raises(ValueError, match="gallery embeddings hold NaN"):
        rank(query, gallery, query_ids, gallery_ids, "camera", rerank=Rerank())
