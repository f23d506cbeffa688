"""Distances against float64, and the integer keys against the order of the floats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nextreid.retrieval import Protocol, distances
from nextreid.retrieval.distance import nearness_blocks, stable_keys

EUCLIDEAN = Protocol("euclidean", "none", distance="euclidean", normalize=False)


def split(seed=0, num_query=70, num_gallery=45, dim=33):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_query, dim)), rng.standard_normal((num_gallery, dim))


def test_cosine():
    query, gallery = split()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    result = distances(query, gallery, "camera")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 1 - unit[0] @ unit[1].T, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_euclidean(normalize):
    query, gallery = split()
    result = distances(query, gallery, Protocol("x", "none", "euclidean", normalize))
    if normalize:
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    np.testing.assert_allclose(result, np.linalg.norm(query[:, None] - gallery, axis=2), atol=1e-5)


def test_no_distance_is_negative_or_nan():
    query, _ = split()
    for protocol in ("camera", EUCLIDEAN):
        result = distances(query, query, protocol)
        assert (result >= 0).all()
        assert (np.diag(result) < 1e-2).all()


def test_zero_embedding_has_cosine_zero():
    query, gallery = split()
    query[3] = 0
    np.testing.assert_array_equal(distances(query, gallery, "camera")[3], 1)


@pytest.mark.parametrize("protocol", [Protocol("cosine", "none"), EUCLIDEAN], ids=lambda p: p.name)
def test_values_are_bitwise_the_same_for_any_block(protocol):
    query, gallery = split(num_query=200, num_gallery=77, dim=129)
    full = np.concatenate([block.copy() for _, block in nearness_blocks(query, gallery, protocol, 10_000)])
    for size in (1, 7, 64, 128):
        starts, blocks = zip(*((s, b.copy()) for s, b in nearness_blocks(query, gallery, protocol, size)), strict=True)
        np.testing.assert_array_equal(np.concatenate(blocks), full)
        assert starts == tuple(range(0, 200, -(-size // 64) * 64))


@given(hnp.arrays(np.float32, (2, 12), elements=st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])))
def test_stable_keys_order_as_a_stable_argsort(values):
    keys = stable_keys(values)
    np.testing.assert_array_equal(np.argsort(keys, axis=1), np.argsort(values, axis=1, kind="stable"))
    np.testing.assert_array_equal(keys & 0xFFFFFFFF, np.broadcast_to(np.arange(12), (2, 12)))
