"""A gallery's search equals the ranking of `nextreid.retrieval`, whatever was deleted, filtered or proposed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval import Gallery, Identities, compact_code, gallery_search, gallery_store, top_k

WIDTH = 16


def unlabelled(count):
    return Identities(np.full(count, -1))


def expected(query, stored, k):
    """Keys and cosines of the nearest, by `top_k` on the vectors as they are stored."""
    index, _ = top_k(query, stored, unlabelled(len(query)), unlabelled(len(stored)), "none", k)
    unit = [
        rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        for rows in (query, stored)
    ]
    return index, np.take_along_axis(unit[0] @ unit[1].T, index, axis=1)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    count=st.integers(1, 60),
    gone=st.sets(st.integers(0, 59), max_size=30),
    queries=st.integers(1, 5),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    compact=st.booleans(),
)
def test_search_is_the_ranking_of_what_is_left(tmp_path_factory, count, gone, queries, k, seed, compact):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (count, WIDTH)).astype(np.float32)  # with ties
    rows[~rows.any(axis=1), 0] = 1
    query = rng.standard_normal((queries, WIDTH)).astype(np.float32)
    gone = sorted(i for i in gone if i < count)
    left = [i for i in range(count) if i not in gone]
    with Gallery.create(tmp_path_factory.mktemp("gallery") / "g", WIDTH) as gallery:
        half = count // 2
        for part in (range(half), range(half, count)):
            if len(part):
                gallery.add(rows[part.start : part.stop], [{"key": str(i), "even": i % 2 == 0} for i in part])
        if gone:
            gallery.delete(key=[str(i) for i in gone])
        if compact:
            gallery.compact()
        if not left:
            with pytest.raises(ValueError, match="is empty"):
                gallery.search(query)
            return
        for names, where in ((left, None), ([i for i in left if i % 2 == 0], {"even": True})):
            if not names:
                continue
            stored = gallery.vectors([str(i) for i in names])
            index, scores = expected(query, stored, min(k, len(names)))
            for hits, row, values in zip(gallery.search(query, k=k, where=where), index, scores, strict=True):
                assert [hit.entry.key for hit in hits] == [str(names[i]) for i in row]
                assert np.allclose([hit.score for hit in hits], values, atol=1e-6)


@pytest.fixture
def small_files(monkeypatch):
    """Files of 64 vectors, and a code from 100 entries on."""
    monkeypatch.setattr(gallery_store, "SEGMENT", 64)
    monkeypatch.setattr(gallery_search, "SEGMENT", 64)
    monkeypatch.setattr(gallery_search, "EXACT_ROWS", 100)
    monkeypatch.setattr(gallery_search, "_FEW", 0)


def clustered(count, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, WIDTH))
    return (centres[rng.integers(0, 20, count)] + 0.3 * rng.standard_normal((count, WIDTH))).astype(np.float32)


def test_the_code_proposes_and_the_vectors_decide(tmp_path, small_files, monkeypatch):
    monkeypatch.setattr(compact_code, "COMPONENTS", 12)
    rows, query = clustered(300), clustered(7, 1)
    with Gallery.create(tmp_path / "g", WIDTH) as gallery:
        gallery.add(rows, [{"key": str(i), "even": i % 2 == 0} for i in range(300)])
        gallery.delete(key=[str(i) for i in range(0, 300, 7)])
        for where in (None, {"even": True}):
            found, exact = (gallery.search(query, 5, where=where, exact=exact) for exact in (False, True))
            for ours, theirs in zip(found, exact, strict=True):
                assert [hit.entry.key for hit in ours] == [hit.entry.key for hit in theirs]
                assert np.allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-6)
        files = sorted(file.name for file in gallery.folder.glob("code-*"))
        assert files == [
            f"code-00000-00004-{name}.safetensors" for name in ("00000", "00001", "00002", "00003", "basis")
        ]
        (gallery.folder / files[0]).write_bytes(b"damaged")
        assert [hit.entry.key for hit in Gallery(gallery.folder).search(query[0], 5, exact=False)] == [
            hit.entry.key for hit in gallery.search(query[0], 5)
        ]
        gallery.compact()
        assert not list(gallery.folder.glob("code-*")), "the code of deleted vectors goes with them"


def test_only_what_the_code_proposes_is_compared(tmp_path, small_files, monkeypatch):
    monkeypatch.setattr(compact_code, "COMPONENTS", 1)
    monkeypatch.setattr(gallery_search, "_PROPOSED", 0)
    with Gallery.create(tmp_path / "g", WIDTH) as gallery:
        gallery.add(clustered(256))
        read = []
        real = gallery._search.gather
        monkeypatch.setattr(gallery._search, "gather", lambda s, p, **more: read.append(len(p)) or real(s, p, **more))
        hits = gallery.search(clustered(1, 1)[0], 2)
    assert read == [20, 2] and len(hits) == 2


def test_files_of_vectors_follow_each_other(tmp_path, small_files):
    rows = clustered(200)
    with Gallery.create(tmp_path / "g", WIDTH) as gallery:
        for start in range(0, 200, 33):
            gallery.add(rows[start : start + 33], [{"key": str(i)} for i in range(start, min(200, start + 33))])
        assert len(list(gallery.folder.glob("*.f16"))) == 4
        stored = gallery.vectors([str(i) for i in range(200)])
        index, _ = expected(rows[:9], stored, 4)
        assert [[hit.entry.key for hit in hits] for hits in gallery.search(rows[:9], 4, exact=True)] == index.astype(
            str
        ).tolist()
        assert gallery.verify() == []


def test_other_modalities_are_compared_by_the_mean_of_their_parts(tmp_path):
    class Model:
        """Three parts of 4 numbers."""

        def check(self, gallery):
            pass

        def average_modalities(self, vectors):
            parts = vectors.unflatten(-1, (3, 4))
            return parts.sum(1) / (parts != 0).any(-1).sum(1, keepdim=True).clamp_min(1)

    rng = np.random.default_rng(0)
    rows, query = rng.standard_normal((5, 12)).astype(np.float32), np.zeros((1, 12), np.float32)
    query[0, 8:] = rng.standard_normal(4)
    rows[:, 4:8] = 0
    with Gallery.create(tmp_path / "g", 12) as gallery:
        gallery.add(rows, [{"key": str(i), "modalities": ["rgb", "tir"]} for i in range(5)])
        with pytest.raises(ValueError, match=r"the queries show tir and the entries rgb\+tir"):
            gallery.search(query, modalities="tir")
        stored = gallery.vectors(list("01234"))
    gallery = Gallery(tmp_path / "g", encoder=Model())
    means = [Model().average_modalities(torch.from_numpy(np.asarray(v, np.float32))).numpy() for v in (query, stored)]
    index, scores = expected(*means, 5)
    (hits,) = gallery.search(query, modalities="tir")
    assert [hit.entry.key for hit in hits] == index[0].astype(str).tolist()
    assert np.allclose([hit.score for hit in hits], scores, atol=1e-6)
    same, _ = expected(query, stored, 5)
    assert [hit.entry.key for hit in gallery.search(query, modalities=("rgb", "tir"))[0]] == same[0].astype(
        str
    ).tolist()
