"""Distances against float64, and their bits against the way the work is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nextreid.retrieval import PreparedGallery, Protocol, distance, distances, get_protocol
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


vectors = arrays(np.float32, (9, 3), elements=st.sampled_from([-1e3, -1.0, -1 / 3, 0.0, 1e-4, 0.5, 1.0, 7.0, 1e3]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(vectors, st.booleans(), st.integers(1, 100))
def test_euclidean_is_a_metric(points, normalize, copies):
    """From a vector to itself exactly 0, the same both ways, and copies of an entry are at one distance."""
    points = np.concatenate([points, points[:1].repeat(copies, axis=0)])
    result = distances(points, points, Protocol("x", "none", "euclidean", normalize))
    assert (np.diag(result) == 0).all() and (result >= 0).all() and (result == result.T).all()
    assert (result[:, 9:] == result[:, :1]).all() and (result[9:, 9:] == 0).all()
    exact = points.astype(np.float64)
    if normalize:
        length = np.linalg.norm(exact, axis=1, keepdims=True)
        exact = np.divide(exact, length, out=np.zeros_like(exact), where=length > 0)
    expected = np.linalg.norm(exact[:, None] - exact, axis=2)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=3e-7)


def test_small_euclidean_distances_are_not_rounding():
    """The squared lengths are a million times the squared distances here."""
    rng = np.random.default_rng(0)
    points = (1000 + rng.standard_normal((500, 64))).astype(np.float32)
    expected = np.linalg.norm(points[:70, None].astype(np.float64) - points, axis=2)
    np.testing.assert_allclose(distances(points[:70], points, EUCLIDEAN), expected, rtol=1e-5)


def test_cosine_distances_are_never_negative():
    query, _ = split()
    result = distances(query, query, "camera")
    assert (result >= 0).all() and (np.diag(result) < 1e-6).all()


@pytest.mark.parametrize("protocol", [Protocol("cosine", "none"), EUCLIDEAN], ids=lambda p: p.name)
@pytest.mark.parametrize("num_query", [1, 3, 64, 100])
def test_copies_rank_in_gallery_order(protocol, num_query):
    """Copies of an entry have the bits of one value wherever they stand, at the end of a tile too."""
    rng = np.random.default_rng(num_query)
    query, gallery = split(num_query=num_query, num_gallery=4096 + 64 + 7)
    places = np.sort(rng.choice(len(gallery), 40, replace=False))
    places[-4:] = [4095, 4096, 4096 + 64, len(gallery) - 1]
    gallery[places] = gallery[places[0]]
    for _, block in distance_blocks(query, gallery, protocol):
        assert (block[:, places] == block[:, places[:1]]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, np.int8])
@pytest.mark.parametrize("protocol", [Protocol("cosine", "none"), EUCLIDEAN], ids=lambda p: p.name)
def test_a_prepared_gallery_gives_the_same_bits(protocol, dtype):
    query, gallery = split(num_gallery=4096 + 100)
    gallery = torch.from_numpy(4 * gallery).to(dtype) if isinstance(dtype, torch.dtype) else (4 * gallery).astype(dtype)
    whole = gallery.float() if isinstance(gallery, torch.Tensor) else gallery.astype(np.float32)
    expected = [block.numpy().copy() for _, block in distance_blocks(query, whole, protocol)]
    prepared = PreparedGallery(gallery, protocol)
    assert len(prepared) == 4196 and "4196 embeddings of width 33" in repr(prepared)
    for _ in range(2):
        for (_, block), known in zip(distance_blocks(query, prepared, protocol), expected, strict=True):
            np.testing.assert_array_equal(block, known)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_gallery_of_another_dtype_is_never_copied_whole(dtype, monkeypatch):
    query, gallery = split(num_gallery=64 * 20 + 5)
    gallery = gallery.astype(dtype)
    monkeypatch.setattr(distance, "TILE", 64)
    converted = []
    as_float32 = distance.as_float32
    monkeypatch.setattr(distance, "as_float32", lambda rows: converted.append(len(rows)) or as_float32(rows))
    prepared = PreparedGallery(gallery, "none")
    assert sum(len(tile.rows) for tile in prepared._tiles) == 64  # the padded end alone is kept
    for _ in distance_blocks(query, prepared, get_protocol("none")):
        pass
    assert max(converted) <= 70  # the queries


def test_a_gallery_is_prepared_for_one_comparison():
    query, gallery = split()
    with pytest.raises(ValueError, match="prepare it for that"):
        next(distance_blocks(query, PreparedGallery(gallery, "none"), EUCLIDEAN))
    gallery[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 45 gallery embeddings.*index 7"):
        PreparedGallery(gallery, "none")


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        ([[1.0]], np.ones((2, 1)), "query embeddings must be a NumPy array or a tensor; got list"),
        (np.ones((2, 3)), np.ones((0, 3)), r"gallery embeddings must be a non-empty .*got \(0, 3\)"),
        (np.ones((0, 3)), np.ones((2, 3)), "query embeddings must be a non-empty"),
        (np.ones(3), np.ones((2, 3)), "query embeddings must be a non-empty"),
        (np.ones((2, 3)), np.ones((2, 4)), "query embeddings have 3 features but gallery embeddings have 4"),
        (np.ones((2, 3)), np.ones((2, 3), complex), "gallery embeddings must be real numbers; got dtype"),
        (np.array([["a"]]), np.ones((2, 1)), "query embeddings must be real numbers"),
        (np.array([[None]]), np.ones((2, 1)), "query embeddings must be real numbers"),
        (torch.ones(2, 3, dtype=torch.cfloat), np.ones((2, 3)), "query embeddings must be real numbers"),
        (np.full((2, 3), np.inf), np.ones((2, 3)), "2 of 2 query embeddings hold NaN, infinite"),
    ],
)
@pytest.mark.parametrize("protocol", ["none", EUCLIDEAN], ids=["cosine", "euclidean"])
def test_what_is_no_embedding_is_named(query, gallery, message, protocol):
    with pytest.raises(ValueError, match=message):
        distances(query, gallery, protocol)


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
