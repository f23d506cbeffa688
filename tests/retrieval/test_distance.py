"""Distances against float64, and their bits against the way the work is cut."""

import numpy as np
import pytest

from nextreid.retrieval import Protocol, distance, distances, get_protocol
from nextreid.retrieval.distance import CPU, distance_blocks

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
def test_values_are_bitwise_the_same_for_any_part_and_any_cut(protocol, monkeypatch):
    monkeypatch.setattr(distance, "BLOCK", 64)
    monkeypatch.setattr(distance, "TILE", 64)
    query, gallery = split(num_query=200, num_gallery=150, dim=129)
    full = np.concatenate([block.numpy().copy() for _, block in distance_blocks(query, gallery, protocol)])
    for queries in (slice(0, 64), slice(64, 200), slice(200, 200)):
        blocks = [block.numpy().copy() for _, block in distance_blocks(query, gallery, protocol, CPU, queries)]
        np.testing.assert_array_equal(np.concatenate([full[:0], *blocks]), full[queries])
    pieces = [gallery[a:b] for a, b in ((0, 1), (1, 70), (70, 70), (70, 150))]
    block = distance.query_block(query[64:128], protocol, CPU)
    tiles = list(distance.gallery_tiles(pieces, protocol, CPU))
    assert [(tile.start, tile.count, len(tile.rows)) for tile in tiles] == [(0, 64, 64), (64, 64, 64), (128, 22, 64)]
    joined = np.concatenate([tile.values(block)[:, : tile.count] for tile in tiles], axis=1)
    np.testing.assert_array_equal(joined, full[64:128])


def test_a_float32_gallery_is_not_copied():
    _, gallery = split(num_gallery=128)
    gallery = gallery.astype(np.float32)
    (tile,) = distance.gallery_tiles([gallery], get_protocol("camera"), CPU)
    assert tile.rows.data_ptr() == gallery.ctypes.data
