import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from nextreid.data import EvalTransform, make_loader, read_folder, read_manifest

Rows = list[dict[str, object]]


@pytest.fixture
def write(tmp_path: Path, jpeg: Path) -> Callable[[Rows], Path]:
    for name in ("a.jpg", "b.jpg", "a_t.jpg"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(jpeg.read_bytes())

    def write_rows(rows: Rows) -> Path:
        path = tmp_path / "manifest.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write_rows


def test_full_manifest(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    rows: Rows = [
        {"key": "two", "pid": 5, "camid": 1, "sceneid": 2, "split": "query", "rgb": "pictures/b.jpg", "tir": ""},
        {"key": "one", "pid": 4, "camid": "", "sceneid": -1, "split": "train", "rgb": "pictures/a.jpg"},
    ]
    rows[1] |= {"tir": "pictures/a_t.jpg"}
    rows = [row | {"caption_rgb": text} for row, text in zip(rows, ("A man. He, say, runs.", ""), strict=True)]
    two, one = read_manifest(write(rows))
    assert (two.key, two.pid, two.camid, two.sceneid) == ("two", 5, 1, 2)
    assert two.images == (tmp_path / "pictures/b.jpg", None)
    assert two.captions == (("A man.", "He, say, runs."), ())
    assert (one.pid, one.camid, one.sceneid, one.captions) == (4, -1, -1, ())
    assert one.images == (tmp_path / "pictures/a.jpg", tmp_path / "pictures/a_t.jpg")
    assert [s.key for s in read_manifest(tmp_path / "manifest.csv", split="train")] == ["one"]
    wide = read_manifest(tmp_path / "manifest.csv", modalities=("tir", "nir", "rgb"))
    assert [image is not None for image in wide[1].images] == [True, False, True]
    batch = next(iter(make_loader([two, one], EvalTransform((8, 4)), ("rgb", "tir"), batch_size=2)))
    assert batch.present.tolist() == [[True, False], [True, True]]


def test_only_pictures(write: Callable[[Rows], Path]) -> None:
    samples = read_manifest(write([{"rgb": "pictures/b.jpg"}, {"rgb": "pictures/a.jpg"}]))
    assert [(s.key, s.pid, s.camid, s.sceneid) for s in samples] == [
        ("pictures/b.jpg", -1, -1, -1),
        ("pictures/a.jpg", -1, -1, -1),
    ]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"rgb": "pictures/a.jpg", "camdi": 1}], ValueError, r"columns \['camdi'\] are unknown.*camid"),
        ([{"pid": 1}], ValueError, "no column for a modality"),
        ([{"rgb": "pictures/c.jpg"}], FileNotFoundError, r"line 2: no rgb picture .*c\.jpg"),
        ([{"rgb": "pictures/a.jpg", "pid": "x"}], ValueError, "line 2: pid must be a whole number, got 'x'"),
        ([{"rgb": "pictures/a.jpg"}, {"rgb": "pictures/a.jpg"}], ValueError, "line 3: key 'pictures/a.jpg' occurs a s"),
        ([{"rgb": "", "tir": "", "pid": 1}], ValueError, "line 2: the row names no picture"),
    ],
)
def test_bad_rows_are_named(write: Callable[[Rows], Path], rows: Rows, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_manifest(write(rows))


def test_bad_manifests_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest .*none\.csv"):
        read_manifest(tmp_path / "none.csv")
    for text, message in (
        ("rgb,tir\n", "has no rows"),
        ("rgb,rgb\na,b\n", "unknown or double"),
        ("rgb,tir\na.jpg\n", "line 2: the row has not the 2 cells"),
        ("rgb\na.jpg,b.jpg\n", "line 2: the row has not the 1 cells"),
    ):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="no column 'split'"):
        read_manifest(tmp_path / "m.csv", split="train")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folder(tmp_path: Path, caplog) -> None:
    touch(tmp_path, "vis/b.jpg", "vis/a.jpg", "NI/a.png", "TH/b.jpg", "TH/c.JPG", "TH/readme.txt", "other/x.jpg")
    samples = read_folder(tmp_path)
    assert [s.key for s in samples] == ["a.jpg", "b.jpg", "c.JPG"]
    assert samples[0].images == (tmp_path / "vis/a.jpg", tmp_path / "NI/a.png", None)
    assert samples[2].images == (None, None, tmp_path / "TH/c.JPG")
    assert {(s.pid, s.camid, s.sceneid) for s in samples} == {(-1, -1, -1)}
    assert [m.split(": ")[1] for m in caplog.messages] == [
        "1 of 3 samples lack rgb",
        "2 of 3 samples lack nir",
        "1 of 3 samples lack tir",
    ]
    assert [s.images[0].name for s in read_folder(tmp_path, ("tir",))] == ["b.jpg", "c.JPG"]


def test_folder_with_a_modality_of_ones_own(tmp_path: Path) -> None:
    touch(tmp_path, "Depth/a.png", "rgb/a.png")
    assert [image.parent.name for image in read_folder(tmp_path, ("depth", "rgb"))[0].images] == ["Depth", "rgb"]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; expected .*none/\{rgb,nir,tir\}/name\.jpg"):
        read_folder(tmp_path / "none")
    touch(tmp_path, "red/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"none of the folders .*found red in"):
        read_folder(tmp_path)
    touch(tmp_path, "rgb/a.txt")
    with pytest.raises(ValueError, match=r"no pictures \(\.bmp"):
        read_folder(tmp_path)
    touch(tmp_path, "rgb/a.jpg", "rgb/a.png")
    with pytest.raises(ValueError, match="have one stem"):
        read_folder(tmp_path)
    (tmp_path / "vis").mkdir()
    with pytest.raises(ValueError, match="has 2 folders for rgb: rgb, vis"):
        read_folder(tmp_path)
