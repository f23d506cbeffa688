"""A gallery's entries: added, changed, deleted and gone, filtered, merged, and every mistake by its name."""

import datetime
import sqlite3
import threading

import numpy as np
import pytest

from nextreid.retrieval import Entry, Gallery

WIDTH = 8


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "people"


@pytest.fixture
def gallery(folder):
    """Six entries of three identities."""
    with Gallery.create(folder, WIDTH, model="m", digest="d") as gallery:
        names = ("anna", "anna", "ben", "ben", "zoë 17", None)
        gallery.add(
            vectors(6),
            [
                {
                    "key": f"k{i}",
                    "identity": name,
                    "camera": i % 2,
                    "time": 100.0 * i,
                    "color": ["red", "Blue"][i % 2],
                    "n": i,
                }
                for i, name in enumerate(names)
            ],
        )
        yield gallery


def keys(found):
    return [entry.key for entry in found]


def on_disk(folder):
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def test_a_frame_without_boxes_adds_nothing(gallery):
    assert gallery.add(vectors(0)) == [] and len(gallery) == 6
    with pytest.raises(ValueError, match="more entries"):
        gallery.add(vectors(0), iter([Entry()]))


def test_a_closed_gallery_is_not_called_damaged(folder):
    with Gallery.create(folder, WIDTH) as gallery:
        gallery.add(vectors(1))
    with pytest.raises(ValueError, match=r"gallery .*closed"):
        gallery.search(vectors(1)[0])


def test_what_was_added_comes_back(gallery, folder):
    given = Entry(
        "x", 17, "gate", datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC), ("tir",), {"tir": "/a.png"},
        {"tir": "A person."}, {"bag": True, "height": 1.8, "list": [1, "two"]},
    )  # fmt: skip
    assert gallery.add(vectors(1, 1), [given]) == ["x"]
    (found,) = Gallery(folder).entries({"key": "x"})
    assert found == given and found.identity == "17" and found.caption == {"tir": ("A person.",)}
    assert np.allclose(gallery.vectors(["x"]), vectors(1, 1) / np.linalg.norm(vectors(1, 1)), atol=1e-3)
    assert len(gallery) == 7 and "x" in gallery and "y" not in gallery


def test_entries_without_keys_are_numbered_and_never_again_the_same(gallery):
    assert gallery.add(vectors(2)) == ["7", "8"]
    gallery.delete(key="8")
    gallery.compact()
    assert gallery.add(vectors(1)) == ["9"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"identity": "anna"}, "k0 k1"),
        ({"camera": 1}, "k1 k3 k5"),
        ({"color": "RED"}, "k0 k2 k4"),
        ({"color": ["red", "blue"], "identity": ["ben"]}, "k2 k3"),
        ({"n": 3}, "k3"),
        ({"n": (1, 3)}, "k1 k2 k3"),
        ({"time": (None, 100)}, "k0 k1"),
        ({"time": (datetime.datetime.fromtimestamp(350), None)}, "k4 k5"),
        ({"identity": None}, "k5"),
        ({"key": ["k5", "k0"]}, "k0 k5"),
        ({"modalities": "rgb+nir+tir", "n": 0}, "k0"),
        ({"n": 9}, ""),
    ],
)
def test_conditions_choose_entries(gallery, where, expected):
    assert keys(gallery.entries(where)) == expected.split()


def test_a_condition_finds_a_value_in_a_list_and_true(gallery):
    gallery.add(vectors(1), [{"key": "x", "bags": ["backpack", "tote"], "hat": True}])
    assert keys(gallery.entries({"bags": "Tote"})) == keys(gallery.entries({"hat": True})) == ["x"]
    with pytest.raises(ValueError, match=r"unknown field or metadata 'hats'\. Did you mean 'hat'"):
        list(gallery.entries({"hats": True}))
    with pytest.raises(ValueError, match=r"no entry of gallery .* fits"):
        gallery.search(vectors(1)[0], where={"hat": False})


def test_deleted_entries_are_gone_and_after_compact_their_bytes_too(gallery, folder):
    row = gallery.vectors(["k0", "k2"])
    assert gallery.delete(identity="anna") == 2
    assert "anna" not in gallery.identities() and gallery.info()["deleted_rows_on_disk"] == 2
    assert not {"k0", "k1"} & set(keys(hit.entry for hit in gallery.search(vectors(6)[0])))
    assert row[0].tobytes() in on_disk(folder)
    gallery.compact()
    assert gallery.info()["deleted_rows_on_disk"] == 0 and gallery.verify() == []
    gallery.close()
    left = on_disk(folder)
    assert row[0].tobytes() not in left and b"anna" not in left and row[1].tobytes() in left
    assert keys(Gallery(folder).entries()) == ["k2", "k3", "k4", "k5"]
    assert np.array_equal(Gallery(folder).vectors(["k2"]), row[1:])


def test_delete_by_key_age_and_condition(gallery):
    assert gallery.delete(before=200) == 2
    assert gallery.delete(where={"color": "blue"}, before=400) == 1
    assert gallery.delete(key=["k2", "k4"]) == 2
    assert keys(gallery.entries()) == ["k5"]
    with pytest.raises(KeyError, match=r"1 keys are not in gallery .*'k9'"):
        gallery.delete(key="k9")
    with pytest.raises(KeyError, match="unknown identity 'Ben'"):
        gallery.delete(identity="Ben")  # letters have a case here, whatever conditions do
    with pytest.raises(ValueError, match="say what to delete"):
        gallery.delete()


def test_identities_merge(gallery):
    assert gallery.merge_identities("ben", "anna") == 2
    assert gallery.identities() == {"anna": 4, "zoë 17": 1}
    with pytest.raises(KeyError, match="unknown identity 'carl'"):
        gallery.merge_identities("carl", "anna")


def test_galleries_merge_bit_by_bit(gallery, tmp_path):
    with Gallery.create(tmp_path / "b", WIDTH, model="m", digest="d") as other:
        other.add(vectors(3, 5), [{"key": f"b{i}", "identity": "anna"} for i in range(3)])
        assert gallery.merge(other) == 3
        assert np.array_equal(gallery.vectors(["b0", "b2"]), other.vectors(["b0", "b2"]))
        with pytest.raises(ValueError, match="3 of 3 keys are in gallery"):
            gallery.merge(other)
        assert gallery.merge(other, replace=True) == 3 and len(gallery) == 9
    with (
        Gallery.create(tmp_path / "c", WIDTH, model="other") as other,
        pytest.raises(ValueError, match="has model 'other'"),
    ):
        gallery.merge(other)


def test_a_key_is_added_once_unless_replaced(gallery):
    with pytest.raises(ValueError, match=r"1 of 2 keys are in gallery .* already, such as 'k1'"):
        gallery.add(vectors(2), [{"key": "k1"}, {"key": "new"}])
    assert "new" not in gallery
    gallery.add(vectors(1, 9), [{"key": "k1", "identity": "new"}], replace=True)
    assert len(gallery) == 6 and gallery.identities()["new"] == 1
    with pytest.raises(ValueError, match="key 'twice' occurs twice"):
        gallery.add(vectors(2), [{"key": "twice"}] * 2)


NUMBERED = [{"identity": i, "key": f"n{i}"} for i in range(5)]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("rows", "entries", "message"),
    [
        (np.stack([*vectors(4), np.zeros(WIDTH)]), NUMBERED, "1 of 1 vectors are zero, the first at index 4"),
        (vectors(5), NUMBERED[:3], "5 vectors but 3 entries"),
        (vectors(3), NUMBERED, "3 vectors but more entries"),
        (vectors(5), [*NUMBERED[:4], {"time": "soon"}], "entry at index 4: time must be"),
        (vectors(5), [*NUMBERED[:4], NUMBERED[0]], "key 'n0' occurs twice"),
    ],
)
def test_many_vectors_are_one_change(gallery, folder, monkeypatch, rows, entries, message, replace):
    monkeypatch.setattr(Gallery, "_piece", 2)
    with pytest.raises(ValueError, match=message):
        gallery.add(rows, iter(entries), replace=replace)
    assert len(gallery) == len(Gallery(folder)) == 6 and not gallery.verify()
    for seed in (1, 2) if replace else (1,):
        assert gallery.add(vectors(5, seed), iter(NUMBERED), replace=replace) == [f"n{i}" for i in range(5)]
        assert len(gallery) == len(Gallery(folder)) == 11
        kept = gallery.vectors(["n3"])[0].astype(np.float32)
        np.testing.assert_allclose(kept, vectors(5, seed)[3] / np.linalg.norm(vectors(5, seed)[3]), atol=1e-3)


@pytest.mark.parametrize(
    ("bad", "settings", "message"),
    [
        (np.full((1, WIDTH), np.nan), {}, "1 of 1 gallery embeddings hold NaN"),
        (np.zeros((2, WIDTH)), {}, "2 of 2 vectors are zero, the first at index 0"),
        (np.ones((1, 3)), {}, "vectors have 3 numbers but gallery .* has 8"),
        (np.ones((2, WIDTH)), {"entries": [{}]}, "2 vectors but 1 entries"),
        (np.ones((1, WIDTH)), {"model": "x"}, "come from model 'x', gallery .* is of 'm'"),
        (np.ones((1, WIDTH)), {"digest": "x"}, "come from weights of digest 'x', gallery .* is of 'd'"),
        (np.ones((1, WIDTH)), {"entries": [{"modalities": ["uv"]}]}, "unknown modality 'uv'"),
        (np.ones((1, WIDTH)), {"entries": [{"time": "soon"}]}, "time must be seconds or like"),
        (np.ones((1, WIDTH)), {"entries": ["x"]}, "an entry is an Entry or a mapping"),
        (np.ones((1, WIDTH)), {"entries": [{"x": object()}]}, "metadata of ''.x must be plain"),
        ([[1.0] * WIDTH], {}, "must be a NumPy array or a tensor"),
    ],
)
def test_bad_vectors_and_entries_are_rejected_by_name(gallery, bad, settings, message):
    with pytest.raises(ValueError, match=message):
        gallery.add(bad, **settings)
    assert len(gallery) == 6


def test_bad_queries_are_rejected_by_name(gallery, tmp_path):
    with pytest.raises(ValueError, match="1 of 1 query embeddings hold NaN"):
        gallery.search(np.full(WIDTH, np.nan))
    with pytest.raises(ValueError, match=r"queries have 3 numbers but gallery .* has 8"):
        gallery.search(np.ones(3))
    with pytest.raises(ValueError, match="k must be a whole number"):
        gallery.search(np.ones(WIDTH), k=0)
    with pytest.raises(ValueError, match="keeps no vectors of a joint space"):
        gallery.search(text="a red coat")
    with pytest.raises(ValueError, match="an image as query needs the model"):
        gallery.search({"rgb": "a.png"})
    with (
        Gallery.create(tmp_path / "empty", WIDTH) as empty,
        pytest.raises(ValueError, match="is empty: add to it first"),
    ):
        empty.search(np.ones(WIDTH))


def test_folders_that_are_none_or_occupied(gallery, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no gallery; make one"):
        Gallery(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="is a gallery already"):
        Gallery.create(folder, WIDTH)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(FileExistsError, match="holds other things"):
        Gallery.create(tmp_path / "other", WIDTH)
    with pytest.raises(BlockingIOError, match=r"gallery .* is in use by another process"):
        Gallery(folder, write=True)
    with pytest.raises(PermissionError, match="open for reading"):
        Gallery(folder).add(vectors(1))


def test_a_newer_version_and_a_damaged_table_are_named(gallery, folder):
    gallery.close()
    database = folder / "gallery.sqlite"
    with sqlite3.connect(database) as db:
        db.execute("UPDATE about SET value = '2' WHERE name = 'format'")
    with pytest.raises(ValueError, match="is a gallery of version 2, this nextreid reads 1: update it"):
        Gallery(folder)
    database.write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"gallery.sqlite is (no gallery, or )?damaged"):
        Gallery(folder)


def test_a_damaged_vector_is_named_and_never_an_answer(gallery, folder):
    gallery.close()
    (file,) = folder.glob("*.f16")
    data = bytearray(file.read_bytes())
    data[2 * 2 * WIDTH] ^= 1  # the first number of the third vector
    file.write_bytes(data)
    with Gallery(folder, write=True) as gallery:
        assert gallery.verify() == ["k2"]
        with pytest.raises(ValueError, match="f16 is damaged: the vector of 'k2' is not what was added"):
            gallery.search(vectors(6)[2])
        with pytest.raises(ValueError, match="the vector of 'k2'"):
            gallery.compact()
        gallery.delete(key="k2")
        gallery.compact()
        assert gallery.verify() == [] and len(gallery) == 5
    (file,) = folder.glob("*.f16")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged: it has 79 bytes of 80"):
        Gallery(folder).search(vectors(1)[0])


def test_a_reader_sees_one_state_while_a_writer_goes_on(gallery, folder):
    reader = Gallery(folder)
    entries = reader.entries()
    first = next(entries)
    gallery.delete(key="k1")
    gallery.compact()
    assert [first.key, *keys(entries)] == ["k0", "k1", "k2", "k3", "k4", "k5"]
    assert keys(reader.entries()) == ["k0", "k2", "k3", "k4", "k5"]
    gallery.add(vectors(1, 7), [{"key": "late"}])
    assert keys(hit.entry for hit in reader.search(vectors(1, 7)[0], k=1)) == ["late"]


def test_threads_search_and_add_at_once(gallery, folder):
    reader, faults = Gallery(folder), []

    def look():
        try:
            for _ in range(30):
                assert keys(hit.entry for hit in reader.search(vectors(6)[3], k=1)) == ["k3"]
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(10):
        gallery.add(vectors(1, 50 + i), [{"key": f"t{i}"}])
        if i % 3 == 0:
            gallery.delete(key=f"t{i}")
            gallery.compact()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_full_disk_loses_nothing(gallery, folder, monkeypatch):
    from nextreid.retrieval import gallery_store

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery_store, "sync", full)
    with pytest.raises(OSError, match=r"cannot write .*f16: No space left"):
        gallery.add(vectors(2), [{"key": "a"}, {"key": "b"}])
    monkeypatch.undo()
    assert len(gallery) == 6 and len(Gallery(folder)) == 6 and gallery.verify() == []
    gallery._store._db.execute(f"PRAGMA max_page_count={next(gallery._store.query('PRAGMA page_count'))[0]}")
    with pytest.raises(OSError, match="database or disk is full"):
        gallery.add(vectors(2), [{"note": "x" * 4000}] * 2)
    gallery._store._db.execute("PRAGMA max_page_count=1000000")
    gallery.add(vectors(1), [{"key": "after"}])
    assert keys(Gallery(folder).entries())[6:] == ["after"] and gallery.verify() == []


def test_vectors_are_on_the_disk_before_the_table_counts_them(gallery, monkeypatch):
    from nextreid.retrieval import gallery_store

    seen = []
    monkeypatch.setattr(gallery_store, "sync", lambda path: seen.append(path.name))
    gallery._store._db.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    gallery.add(vectors(1))
    assert seen == ["vectors-00000-00000.f16", "COMMIT"]
    assert next(gallery._store.query("PRAGMA synchronous"))[0] == 2  # a commit waits for the disk


def test_a_read_only_folder_is_read_and_not_written(gallery, folder, monkeypatch):
    from nextreid.retrieval import gallery_store

    gallery.close()
    monkeypatch.setattr(gallery_store.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"gallery .* may not be written"):
        Gallery(folder, write=True)
    before = sorted(file.name for file in folder.iterdir())
    reader = Gallery(folder)
    assert len(reader.search(vectors(1)[0])) == 6
    reader.close()
    assert sorted(file.name for file in folder.iterdir()) == before
