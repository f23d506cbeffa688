"""The store: whole lines or none, one writer, nothing lost by a kill or a full disk."""

import json
import os
import resource
import subprocess
import sys
import textwrap
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextreid.captioning.store import Store, call_key


def row(n, **more):
    return {"key": f"k{n}", "schema": "s1", "text": f"answer {n} ünïcödé\n", "cost": 0.5, **more}


def filled(path, count):
    with Store(path, write=True) as store:
        for n in range(count):
            store.append(row(n))
    return path


def test_rows_come_back_as_they_went(tmp_path):
    path = filled(tmp_path / "deep" / "calls.jsonl", 3)
    with Store(path) as store:
        assert len(store) == 3 and "k1" in store and "k9" not in store
        assert store.get("k1") == {"v": 1, **row(1)} and store.get("k9") is None
        assert [r["key"] for r in store.rows()] == ["k0", "k1", "k2"]
        assert store.spent == 1.5
        assert (store.count_other_schemas("s1"), store.count_other_schemas("s2")) == (0, 3)
    for line in path.read_text().splitlines():
        assert json.loads(line)["text"].startswith("answer")  # any tool can read it


def test_the_later_row_counts(tmp_path):
    with Store(tmp_path / "c", write=True) as store:
        store.append(row(1))
        store.append(row(1, text="again"))
        assert len(store) == 1 and store.get("k1")["text"] == "again"


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), min_size=1, max_size=4))
def test_call_keys_differ_where_the_parts_do(parts):
    assert call_key(**parts) == call_key(**dict(reversed(parts.items())))
    for name in parts:
        assert call_key(**{**parts, name: [parts[name]]}) != call_key(**parts)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, data):
    path = filled(tmp_path_factory.mktemp("s") / "c", 4)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    with Store(path) as store:  # a reader leaves the file alone
        assert len(store) == lines
    assert path.stat().st_size == cut
    with Store(path, write=True) as store:
        assert len(store) == lines and store.damaged == []
        store.append(row(7))
    with Store(path) as store:
        assert len(store) == lines + 1 and store.get("k7") == {"v": 1, **row(7)}


def test_a_damaged_line_is_skipped_counted_and_kept(tmp_path):
    path = filled(tmp_path / "c", 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"answer 1", b"answer 2")
    path.write_bytes(b"".join(lines))
    with Store(path, write=True) as store:
        assert store.damaged == [2] and len(store) == 2 and "k1" not in store
        store.append(row(1))
    assert path.read_bytes().startswith(b"".join(lines))


def test_other_formats_other_writers_and_absence_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Store(tmp_path / "nowhere")
    path = filled(tmp_path / "c", 1)
    with Store(path, write=True):
        with pytest.raises(ValueError, match="another run writes to"):
            Store(path, write=True)
        Store(path).close()
    Store(path, write=True).close()
    with Store(path, write=True) as store:
        store.append(row(5, v=2))
    with pytest.raises(ValueError, match="format 2, this nextreid reads 1"):
        Store(path)


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path):
    path = filled(tmp_path / "c", 2)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path, write=True) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))  # room for half a line
        try:
            with pytest.raises(OSError, match="the disk is full: the run stops; 2 answers are safe"):
                store.append(row(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        store.append(row(2))
    with Store(path) as store:
        assert len(store) == 3 and store.damaged == []


def test_what_was_appended_survives_a_kill(tmp_path):
    code = f"""
        import os, signal
        from nextreid.captioning.store import Store
        store = Store({str(tmp_path / "c")!r}, write=True, sync_every=1e9)
        for n in range(50):
            store.append({{"key": f"k{{n}}", "schema": "s", "cost": None}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert done.returncode == -9
    with Store(tmp_path / "c", write=True) as store:  # and the lock is gone
        assert len(store) == 50


def test_the_disk_is_synced_once_a_second(tmp_path, monkeypatch):
    synced, now = [], [0.0]
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    with Store(tmp_path / "c", write=True, clock=lambda: now[0]) as store:
        for n in range(10):
            now[0] = n * 0.4
            store.append(row(n))
    assert synced == [1.2000000000000002, 2.4000000000000004, 3.6, 3.6]


def test_a_store_needs_neither_pread_nor_flock(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pread")  # as on Windows
    path = filled(tmp_path / "c", 3)
    with Store(path, write=True) as store:
        store.append(row(3))
        assert store.get("k1") == {"v": 1, **row(1)} and [r["key"] for r in store.rows()] == ["k0", "k1", "k2", "k3"]
        store.append(row(4))
    assert len(Store(path)) == 5


def summed(body: bytes) -> bytes:
    """A line whose checksum is right, whatever it holds."""
    return body + f',"sum":"{zlib.crc32(body):08x}"}}\n'.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["key", "text", "finish", "refusal", "schema", "model", "modality", "cost", "prompt_tokens"]),
    value=JSON,
)
def test_a_row_of_any_values_is_typed_or_damaged(tmp_path, name, value):
    path = tmp_path / "c"
    path.write_bytes(summed(json.dumps({"v": 1, **row(1), name: value})[:-1].encode()))
    with Store(path) as store:
        for found in store.rows():
            assert isinstance(found["key"], str) and isinstance(found["text"], str | None)
            assert found["cost"] is None or 0 <= found["cost"] < float("inf")
        assert len(store) + len(store.damaged) == 1 and 0 <= store.spent < float("inf")


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")) | st.binary(max_size=20).map(summed))
def test_any_bytes_are_a_damaged_line_and_the_others_stay(tmp_path, junk):
    path = filled(tmp_path / "d", 1) if not (tmp_path / "d").exists() else tmp_path / "d"
    good = path.read_bytes()
    (tmp_path / "e").write_bytes(good + junk.rstrip(b"\n") + b"\n" + good)
    with Store(tmp_path / "e", write=True) as store:
        assert len(store) == 1 and 2 in store.damaged


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"v":' * 50_000, b'{"key":"k"' + b" " * 10, b"5", b'{"v":1'])
def test_nested_and_foreign_lines_are_damaged(tmp_path, line):
    path = tmp_path / "c"
    path.write_bytes(summed(line))
    assert Store(path).damaged == [1]


def test_a_line_longer_than_any_row_is_skipped_and_one_without_end_is_no_store(tmp_path, monkeypatch):
    monkeypatch.setattr("nextreid.captioning.store.MAX_LINE", 400)
    path = filled(tmp_path / "c", 2)
    path.write_bytes(b"x" * 5000 + b"\n" + path.read_bytes())
    with Store(path, write=True) as store:
        assert store.damaged == [1] and len(store) == 2
        with pytest.raises(ValueError, match="not a row of at most 400 bytes"):
            store.append(row(9, text="y" * 400))
    (tmp_path / "movie").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="no store of answers: line 1 is longer than any"):
        Store(tmp_path / "movie", write=True)
    assert (tmp_path / "movie").stat().st_size == 5000


def test_texts_with_lone_surrogates_come_back(tmp_path):
    with Store(tmp_path / "c", write=True) as store:
        store.append(row(1, text="\ud800 \U0001f600 ü"))
        assert store.get("k1")["text"] == "\ud800 \U0001f600 ü"
