"""Files and folders appear whole or not at all, and nothing else is left; what is read back is what was written."""

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid import _files
from nextreid._files import (
    check_out_file,
    check_out_folder,
    escape_cell,
    find_folder,
    map_tensor,
    parse_json,
    read_header,
    read_json,
    read_tensors,
    unescape_cell,
    user_path,
    write_csv,
    write_folder,
    write_json,
    write_jsonl,
    write_tensor_bytes,
    write_tensors,
    write_text,
    write_together,
    write_whole,
)

ROOT = Path(__file__).parents[1]
DTYPES = [getattr(torch, name) for name in _files._DTYPES]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Tensors


def test_tensors_and_their_metadata_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3), "none": torch.zeros(0, 4)}
    tensors |= {str(dtype): torch.tensor([[0, 1]]).to(dtype) for dtype in DTYPES}
    tensors["tied"] = tensors["a"]
    digest = write_tensors(tmp_path / "t.safetensors", tensors, {"text": True, "names": ["x"]})
    read, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"text": True, "names": ["x"]} and read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert read[name].tolist() == tensor.tolist(), name
    header = read_header(tmp_path / "t.safetensors")
    assert (header.metadata, header.digest) == (metadata, digest)


def test_any_reader_of_the_format_reads_them(tmp_path):
    tensors = {"odd": torch.tensor([True]), "wide": torch.rand(3), "half": torch.rand(5).half()}
    write_tensors(tmp_path / "t.safetensors", tensors, {})
    read = safetensors.torch.load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    data = (tmp_path / "t.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and entries["__metadata__"]["format"] == "pt"
    for name, tensor in tensors.items():
        assert entries[name]["data_offsets"][0] % tensor.element_size() == 0


def test_the_same_content_gives_the_same_bytes(tmp_path):
    tensors = {name: torch.full((2,), float(ord(name))) for name in "hgfedcba"}
    for i, order in enumerate((tensors, dict(reversed(tensors.items())))):
        write_tensors(tmp_path / str(i), order, {"a": 1, "b": 2})
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "t.safetensors"
    write_tensors(path, {"a": torch.arange(9.0), "b": torch.ones(3, dtype=torch.bool)}, {"epoch": 3})
    return path, path.read_bytes()


def test_a_flipped_bit_is_noticed_wherever_it_is(written):
    """In the length, the header, its padding and the tensors, also where files without a digest are read."""
    path, content = written
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
            read_tensors(path, third_party=True)
    path.write_bytes(content)
    assert read_tensors(path)[1] == {"epoch": 3}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.booleans(), st.integers(0, 400))
def test_nothing_but_a_value_error_comes_of_foreign_bytes(written, data, framed, cut):
    path, content = written
    foreign = path.with_name("foreign")
    foreign.write_bytes(len(data).to_bytes(8, "little") + data if framed else content[:cut] + data)
    for read in (read_tensors, read_header, map_tensor, lambda p: read_tensors(p, third_party=True)):
        try:
            read(foreign)
        except ValueError as error:
            assert str(foreign) in str(error)


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"{}", b'{"__metadata__": 3}', b'{"__metadata__": {"nextreid": "["}}']
)
def test_hostile_headers_are_named(tmp_path, header):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"x (is damaged|was not written by nextreid)"):
        read_tensors(tmp_path / "x")


def test_a_file_of_another_program_is_read_where_that_is_meant(tmp_path, caplog):
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"format": "pt", "digest": "of theirs"})
    with pytest.raises(ValueError, match=r"theirs\.safetensors was not written by nextreid"):
        read_tensors(path)
    with caplog.at_level("INFO"):
        tensors, metadata = read_tensors(path, third_party=True)
    assert metadata == {} and tensors["a"].tolist() == [1, 1]
    assert [record.message.count("theirs.safetensors has no digest") for record in caplog.records] == [1]


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n")
    for read in (read_tensors, read_header, map_tensor):
        with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS.*git lfs pull"):
            read(path)


def test_a_mapped_tensor_is_checked_and_stays_the_one_that_was_opened(tmp_path):
    path, values = tmp_path / "t.store", np.arange(48, dtype=np.uint8).reshape(2, 24)

    def write(values):
        return write_tensor_bytes(path, {"pixels": ("uint8", (2, 24))}, (row.data for row in values), {"of": 1}, 4096)

    digest = write(values)
    array, metadata, found = map_tensor(path)
    assert (array.tolist(), metadata, found) == (values.tolist(), {"of": 1}, digest)
    assert path.stat().st_size == 4096 + 48 and safetensors.torch.load_file(path)["pixels"].tolist() == values.tolist()
    write(values + 1)
    assert array.tolist() == values.tolist()
    with pytest.raises(ValueError, match=r"t\.store was replaced"):
        map_tensor(path, digest)
    for spoil in (lambda data: data[:-1], lambda data: data + b"0", lambda data: data[:-1] + b"0"):
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(ValueError, match=r"t\.store is damaged"):
            map_tensor(path)
        write(values)


# Text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("\\ud9e\udce9\ud83d\ude00aé\n"), max_size=12))
def test_escaped_text_can_be_written_and_comes_back(text):
    escaped = escape_cell(text)
    escaped.encode()
    assert unescape_cell(escaped) == text
    if not re.search("[\ud800-\udfff]|ud[89a-f]", text):
        assert escaped == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("=+-@\t\r'1.a"), max_size=6))
def test_no_cell_is_a_formula_and_every_one_comes_back(text):
    escaped = escape_cell(text)
    assert unescape_cell(escaped) == text
    number = re.fullmatch(r"[+-]?[\d.]+", escaped)
    assert number or not escaped.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_names_that_are_not_utf8_survive_every_writer(tmp_path):
    name, literal = os.fsdecode(b"caf\xe9.jpg"), r"caf\udce9.jpg"
    write_text(tmp_path / "text", f"{name}\n")
    write_csv(tmp_path / "csv", ("key",), [(name,), (literal,)])
    write_json(tmp_path / "json", {name: name})
    write_jsonl(tmp_path / "jsonl", [{name: name}])
    assert (tmp_path / "text").read_bytes() == b"caf\\udce9.jpg\n"
    cells = (tmp_path / "csv").read_text().splitlines()
    assert cells == ["key", r"caf\udce9.jpg", r"caf\\udce9.jpg"]
    assert [unescape_cell(cell) for cell in cells[1:]] == [name, literal]
    assert json.loads((tmp_path / "json").read_bytes()) == json.loads((tmp_path / "jsonl").read_bytes()) == {name: name}


# Whole or not at all


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": 2}])

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_whole(path, fail)
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n' and names(tmp_path) == ["rows.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="needs a limit of the file size")
@pytest.mark.parametrize("room", [0, 5000, 2**20 + 2000])
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, room):
    import resource

    tensors, path = {"a": torch.ones(2**18 + 600), "b": torch.ones(1)}, tmp_path / "t.safetensors"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        for write in (
            lambda: write_tensors(path, tensors, {}),
            lambda: write_text(path, "x" * (room + 9000)),
            lambda: write_whole(path, lambda temporary: temporary.write_bytes(bytes(room + 9000))),
        ):
            with pytest.raises(OSError, match=r"cannot write .*/t\.safetensors: ") as full:
                write()
            assert full.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old" and names(tmp_path) == ["t.safetensors"]


def test_folders_on_the_way_are_made_and_others_may_read(tmp_path):
    path = tmp_path / "a" / "b" / "rows.csv"
    write_csv(path, ("key", "pid"), [("x, y", 1), ("z", -1)])
    assert path.read_bytes() == b'key,pid\n"x, y",1\nz,-1\n'
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with write_folder(tmp_path / "c"):
        pass
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_whole_or_stays(tmp_path, monkeypatch, at_once):
    if not at_once:  # as on a system that cannot exchange two names
        monkeypatch.setattr(_files, "exchange", lambda *_: False)
    target = tmp_path / "folder"
    with write_folder(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), write_folder(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    for _ in range(2):
        with write_folder(target) as fresh:
            (fresh / "b").write_text("3")
        assert names(target) == ["b"] and names(tmp_path) == ["folder"]


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large disk")
    for text in ("1", "2"):
        with write_folder(tmp_path / "link") as fresh:
            (fresh / "a").write_text(text)
    assert (tmp_path / "large disk" / "a").read_text() == "2" and (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["large disk", "link"]


def test_what_was_moved_aside_is_found(tmp_path):
    target, old = tmp_path / "last", tmp_path / ".last.old"
    assert find_folder(target) == target
    old.mkdir()
    assert find_folder(target) == old
    with write_folder(target) as fresh:
        (fresh / "a").write_text("1")
    assert find_folder(target) == target and names(tmp_path) == ["last"]


def test_files_that_belong_together_are_replaced_together(tmp_path):
    (tmp_path / "mine").write_text("keep")

    def write(*written):
        with write_together(tmp_path, ("data", "model")) as fresh:
            for name in written:
                (fresh / name).write_text(str(len(written)))

    write("model", "data")
    assert names(tmp_path) == ["data", "mine", "model"]
    with pytest.raises(RuntimeError), write_together(tmp_path, ("data", "model")) as fresh:
        (fresh / "data").write_text("half")
        raise RuntimeError
    assert (tmp_path / "data").read_text() == (tmp_path / "model").read_text() == "2"
    write("model")
    assert names(tmp_path) == ["mine", "model"]


# JSON, paths and places


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


# The repository


def test_clones_have_the_same_bytes_everywhere():
    """Whatever git is told about line ends, it hands out every digested or binary file as it is."""
    listed = [
        str(sums.parent.relative_to(ROOT) / line.split()[1])
        for sums in ROOT.glob("nextreid/weights/*/SHA256SUMS")
        for line in sums.read_text().splitlines()
    ]
    listed += [str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.safetensors")]
    words = ["git", "-C", str(ROOT), "check-attr", "text", "--", *listed]
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == len(listed) > 6 and all(line.endswith(": text: unset") for line in found), found
