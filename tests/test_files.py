"""Files and folders appear whole or not at all, and nothing else is left."""

import os

import pytest
import torch
from safetensors import SafetensorError

from nextreid._files import (
    check_out_file,
    check_out_folder,
    parse_json,
    read_json,
    read_tensors,
    user_path,
    write_csv,
    write_folder,
    write_jsonl,
    write_tensors,
    write_whole,
)


def test_tensors_and_their_metadata_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"text": True, "names": ["x"]})
    read, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"text": True, "names": ["x"]}
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": 2}])

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path):
    def full(temporary):
        raise SafetensorError("I/O error: No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*t\.safetensors: .*No space left"):
        write_whole(tmp_path / "t.safetensors", full)
    assert list(tmp_path.iterdir()) == []


def test_folders_on_the_way_are_made_and_others_may_read(tmp_path):
    path = tmp_path / "a" / "b" / "rows.csv"
    write_csv(path, ("key", "pid"), [("x, y", 1), ("z", -1)])
    assert path.read_text() == 'key,pid\n"x, y",1\nz,-1\n'
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "folder"
    with write_folder(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), write_folder(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with write_folder(target) as fresh:
        (fresh / "b").write_text("3")
    assert [p.name for p in target.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        (b"\xff", "is not JSON"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "key 'c' stands twice"),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ("9" * 10_000, "is not JSON"),
        ("[" * 33 + "]" * 33, "at most 32 levels"),
        ("[" * 200_000, "at most 32 levels"),
    ],
)
def test_json_from_outside_is_plain_and_bounded(text, named):
    with pytest.raises(ValueError, match=f"the answer.*{named}"):
        parse_json(text, "the answer")


def test_json_files_are_bounded_in_bytes(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1, 2.5, {}]")
    assert read_json(tmp_path / "a.json") == [1, 2.5, {}]
    with pytest.raises(ValueError, match=r"a\.json is larger than 8 bytes"):
        read_json(tmp_path / "a.json", limit=8)
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


def test_the_home_folder_of_a_path_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a" and user_path(tmp_path) == tmp_path


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "ours", "hidden files"])
def test_a_folder_that_may_be_written(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there != "nothing":
        out.mkdir(parents=True)
    if there == "ours":
        (out / "seed12").touch()
        (out / "notes.txt").touch()
    if there == "hidden files":
        (out / ".left.tmp").touch()
    check_out_folder(out, ("index.csv", "seed*"))


def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "images" / "rgb").mkdir(parents=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match=r"images holds other things \(rgb\)"):
        check_out_folder(tmp_path / "images", ("index.csv",))
    with pytest.raises(FileExistsError, match="file is a file; name a folder"):
        check_out_folder(file, ())
    for check in (check_out_file, lambda path: check_out_folder(path, ())):
        with pytest.raises(NotADirectoryError, match="file is a file"):
            check(file / "below" / "it")
    with pytest.raises(IsADirectoryError, match="name a file"):
        check_out_file(tmp_path)
    check_out_file(tmp_path / "new" / "file")
    check_out_file(file)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "images", "rgb"]
