"""The gallery's interface on LanceDB's own engine: the same answers as the folder's."""

import numpy as np
import pytest

from nextreid.retrieval import Gallery
from nextreid.retrieval.gallery_lance import LanceGallery

lancedb = pytest.importorskip("lancedb")
WIDTH = 12


class Model:
    """Three parts of 4 numbers."""

    def check(self, gallery):
        pass

    def average_modalities(self, vectors):
        parts = vectors.unflatten(-1, (3, 4))
        return parts.sum(1) / (parts != 0).any(-1).sum(1, keepdim=True).clamp_min(1)


def entries(count):
    names = ["anna", "ben", "o'neill", None]
    return [
        {
            "key": f"k{i}",
            "identity": names[i % 4],
            "camera": i % 3,
            "time": 10.0 * i,
            "color": ["Red", "blue"][i % 2],
            "n": [i, 1],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same 40 entries in a folder and in a database."""
    rows = np.random.default_rng(0).standard_normal((40, WIDTH)).astype(np.float32)
    place, made = tmp_path_factory.mktemp("galleries"), []
    for kind, more in ((Gallery, {}), (LanceGallery, {"mean": 4})):
        gallery = kind.create(str(place / kind.__name__), WIDTH, model="m", digest="d", encoder=Model(), **more)
        gallery.add(rows[:25], entries(40)[:25])
        gallery.add(rows[25:], entries(40)[25:])
        made.append(gallery)
    yield made
    made[0].close()


def answers(hits):
    return [[(hit.entry, pytest.approx(hit.score, abs=1e-3)) for hit in row] for row in hits]


@pytest.mark.parametrize(
    "where",
    [
        None,
        {"identity": ["anna", "o'neill"]},
        {"camera": 1, "color": "red"},
        {"time": (50, 200)},
        {"time": 30},
        {"n": 7},
        {"identity": None},
        {"modalities": ["rgb+nir+tir"], "key": ["k1", "k2"]},
    ],
)
def test_searches_and_conditions_give_the_same(both, where):
    query = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    folder, database = (gallery.search(query, 6, where=where) for gallery in both)
    assert answers(folder) == answers(database)
    assert list(both[0].entries(where)) == sorted(both[1].entries(where), key=lambda e: int(e.key[1:]))


def test_other_modalities_are_compared_by_the_mean_of_their_parts(both):
    query = np.zeros((1, WIDTH), np.float32)
    query[0, 8:] = np.random.default_rng(2).standard_normal(4)
    folder, database = (gallery.search(query, 5, modalities="tir") for gallery in both)
    assert [hit.entry.key for hit in folder[0]] == [hit.entry.key for hit in database[0]]


def test_what_is_known_is_the_same(both):
    assert both[0].identities() == both[1].identities() and len(both[0]) == len(both[1]) == 40
    assert "k3" in both[1] and "x" not in both[1]
    assert np.array_equal(both[0].vectors(["k3", "k30"]), both[1].vectors(["k3", "k30"]))
    assert both[1].verify() == [] and both[1].info()["entries_of_unknown_identity"] == 10
    assert LanceGallery(both[1].uri).about["model"] == "m"


def test_the_engine_opens_it_with_its_model(tmp_path):
    from nextreid import create_model
    from nextreid.engine import add_samples, create_gallery
    from nextreid.synthetic import synthetic_persons

    model = create_model("next_tiny")
    data = synthetic_persons("tiny", num_train=1, num_test=3, frames_per_visit=1).dataset
    query = dict(zip(data.modalities, data.query[0].images, strict=True))
    queries = [query, {"tir": query["tir"]}]
    found = []
    for folder in (tmp_path / "g", f"lancedb:{tmp_path / 'l'}"):
        with create_gallery(folder, model, words=True) as gallery:
            add_samples(gallery, data.gallery)
            rows = [*gallery.search(queries, 3), gallery.search(text="a red coat", k=3)]
            found.append([[hit.entry.key for hit in row] for row in rows])
    assert found[0] == found[1]


def test_mistakes_have_the_same_names(both, tmp_path):
    database = both[1]
    with pytest.raises(ValueError, match=r"1 of 1 keys are in gallery .* already"):
        database.add(np.ones((1, WIDTH)), [{"key": "k1"}])
    with pytest.raises(ValueError, match="come from weights of digest 'x'"):
        database.add(np.ones((1, WIDTH)), digest="x")
    with pytest.raises(ValueError, match="vectors have 3 numbers"):
        database.add(np.ones((1, 3)))
    with pytest.raises(KeyError, match="unknown identity 'Anna'"):
        database.delete(identity="Anna")
    with pytest.raises(ValueError, match=r"no entry of gallery .* fits"):
        database.search(np.ones(WIDTH), where={"color": "green"})
    with pytest.raises(FileNotFoundError, match=r"is no gallery; make one with LanceGallery\.create"):
        LanceGallery(str(tmp_path / "nothing"))
    with pytest.raises(FileExistsError, match="is a gallery already"):
        LanceGallery.create(database.uri, WIDTH)


def test_changes_and_what_is_deleted_is_gone(tmp_path):
    rows = np.random.default_rng(0).standard_normal((9, WIDTH)).astype(np.float32)
    with LanceGallery.create(str(tmp_path / "g"), WIDTH) as gallery:
        gallery.add(rows[:8], entries(8))
        gone, kept = (row.tobytes() for row in gallery.vectors(["k0", "k5"]))
        gallery.add(rows[8:], [{"key": "k1", "identity": "new", "time": 99}], replace=True)
        assert gallery.identities()["new"] == 1 and len(gallery) == 8
        assert gallery.search(rows[8], 1)[0].entry.key == "k1"
        assert gallery.merge_identities("ben", "o'neill") == 1 and gallery.identities()["o'neill"] == 3
        assert gallery.delete(identity="anna") == 2 and gallery.delete(before=30) == 1
        gallery.compact()
        with Gallery.create(tmp_path / "folder", WIDTH) as folder:
            assert folder.merge(gallery) == 5
            assert np.array_equal(folder.vectors(["k5"]), gallery.vectors(["k5"]))
    data = b"".join(file.read_bytes() for file in (tmp_path / "g").rglob("*") if file.is_file())
    assert b"anna" not in data and gone not in data and kept in data
