import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextreid.data import EvalTransform, ImageFile, load_dataset, make_loader, read_manifest
from nextreid.data.split import count_matches
from nextreid.retrieval import get_protocol

Rows = list[dict[str, object]]


@pytest.fixture
def write(tmp_path: Path, jpeg: Path) -> Callable[[Rows], Path]:
    for name in ("a.jpg", "b.jpg", "a_t.jpg"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(jpeg.read_bytes())

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
        {"key": "two", "pid": 5, "camid": 1, "sceneid": 2, "split": "query", "rgb": "images/b.jpg", "tir": ""},
        {"key": "one", "pid": 4, "camid": "", "sceneid": -1, "split": "train", "rgb": "images/a.jpg"},
    ]
    rows[1] |= {"tir": "images/a_t.jpg"}
    rows = [row | {"caption_rgb": text} for row, text in zip(rows, ("A man. He, say, runs.", ""), strict=True)]
    two, one = read_manifest(write(rows))
    assert (two.key, two.pid, two.camid, two.sceneid) == ("two", 5, 1, 2)
    assert two.images == (tmp_path / "images/b.jpg", None)
    assert two.captions == (("A man.", "He, say, runs."), ())
    assert (one.pid, one.camid, one.sceneid, one.captions) == (4, -1, -1, ())
    assert one.images == (tmp_path / "images/a.jpg", tmp_path / "images/a_t.jpg")
    assert [s.key for s in read_manifest(tmp_path / "manifest.csv", split="train")] == ["one"]
    wide = read_manifest(tmp_path / "manifest.csv", modalities=("tir", "nir", "rgb"))
    assert [image is not None for image in wide[1].images] == [True, False, True]
    batch = next(iter(make_loader([two, one], EvalTransform((8, 4)), ("rgb", "tir"), batch_size=2)))
    assert batch.present.tolist() == [[True, False], [True, True]]


def test_only_images(write: Callable[[Rows], Path]) -> None:
    samples = read_manifest(write([{"rgb": "images/b.jpg"}, {"rgb": "images/a.jpg"}]))
    assert [(s.key, s.pid, s.camid, s.sceneid) for s in samples] == [
        ("images/b.jpg", -1, -1, -1),
        ("images/a.jpg", -1, -1, -1),
    ]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"row": 0, "key": "a", "pid": 1, "present": "rgb"}], ValueError, "is the index of embeddings"),
        ([{"rgb": "images/a.jpg", "camdi": 1}], ValueError, r"columns \['camdi'\] are unknown.*camid"),
        ([{"pid": 1}], ValueError, "no column for a modality"),
        ([{"rgb": "/tmp/a.jpg"}], ValueError, "line 2: image '/tmp/a.jpg' is not below the manifest's folder"),
        ([{"rgb": "x/../../a.jpg"}], ValueError, r"line 2: image 'x/\.\./\.\./a.jpg' is not below .*anywhere=True"),
        ([{"rgb": "images/c.jpg"}], FileNotFoundError, r"line 2: no rgb image .*c\.jpg"),
        ([{"rgb": "images/a.jpg", "pid": "1.5"}], ValueError, "line 2: pid must be a whole number, .* got '1.5'"),
        ([{"rgb": "images/a.jpg"}, {"rgb": "images/a.jpg"}], ValueError, "line 3: key 'images/a.jpg' occurs a s"),
        ([{"rgb": "", "tir": "", "pid": 1}], ValueError, "line 2: the row names no image"),
    ],
)
def test_bad_rows_are_named(write: Callable[[Rows], Path], rows: Rows, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_manifest(write(rows))


def test_parquet_reads_as_csv_does(write: Callable[[Rows], Path], tmp_path: Path, monkeypatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = ["A man. He runs.", None]
    rows = [{"key": k, "pid": p, "camid": c, "rgb": f"images/{k}.jpg"} for k, p, c in (("a", 7, 1), ("b", 8, ""))]
    csv_path = write([row | {"caption_rgb": text} for row, text in zip(rows, texts, strict=True)])
    columns = {"key": ["a", "b"], "pid": [7, 8], "rgb": ["images/a.jpg", "images/b.jpg"], "caption_rgb": texts}
    for camid in ([1, None], [1.0, float("nan")], ["1", ""]):
        pq.write_table(pa.table(columns | {"camid": camid}), tmp_path / "m.parquet")
        assert read_manifest(tmp_path / "m.parquet") == read_manifest(csv_path)
    pq.write_table(pa.table(columns | {"camid": [1, 1.5]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet, row 2: camid must be a whole number, .*got '1\.5'"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.pq").write_text("rgb\n")
    with pytest.raises(ValueError, match=r"m\.pq is not a parquet file"):
        read_manifest(tmp_path / "m.pq")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'nextreid\[data\]', or save it as CSV"):
        read_manifest(tmp_path / "m.parquet")


def test_custom_modalities_are_declared(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    path = write([{"rgb": "images/a.jpg", "depth": "images/b.jpg", "event": "", "caption_depth": "Near."}])
    expected = r"columns \['depth', 'event', 'caption_depth'\] are unknown.*modalities=\('rgb', 'depth', 'event'\)"
    with pytest.raises(ValueError, match=expected):
        read_manifest(path)
    (sample,) = read_manifest(path, ("event", "depth", "rgb"))
    assert sample.images == (None, tmp_path / "images/b.jpg", tmp_path / "images/a.jpg")
    assert sample.captions == ((), ("Near.",), ())
    with pytest.raises(ValueError, match=r"columns \['event'\] are unknown; .* with modalities \('depth',\)"):
        read_manifest(path, ("depth",))


def test_missing_images_are_counted(write: Callable[[Rows], Path]) -> None:
    path = write([{"rgb": f"images/{i}.jpg"} for i in range(8)])
    with pytest.raises(FileNotFoundError, match=r"8 images are missing\n.*line 2: no rgb .*\n(.*\n)*… and 3 more"):
        read_manifest(path)


def test_images_elsewhere_need_leave(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    path = write([{"rgb": "images/../images/a.jpg"}])
    assert len(read_manifest(path)) == 1
    (tmp_path / "lists").mkdir()
    path = path.rename(tmp_path / "lists" / "m.csv")
    path.write_text(f"rgb,tir\n../images/a.jpg,{tmp_path}/images/b.jpg\n")
    with pytest.raises(ValueError, match="anywhere=True"):
        read_manifest(path)
    (sample,) = read_manifest(path, anywhere=True)
    assert [image.resolve() for image in sample.images] == [tmp_path / "images" / n for n in ("a.jpg", "b.jpg")]


def test_windows_belong_to_modalities(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    path = write([{"rgb": "images/a.jpg", "tir": "images/a_t.jpg"}])
    (sample,) = read_manifest(path, window={"tir": [7000, 9000]})
    files = tmp_path / "images/a.jpg", tmp_path / "images/a_t.jpg"
    assert sample.images == (files[0], ImageFile(files[1], window=(7000, 9000)))
    with pytest.raises(ValueError, match=r"window names \['nir'\], but the modalities are \('rgb', 'tir'\)"):
        read_manifest(path, window={"nir": "minmax"})
    with pytest.raises(ValueError, match="window must be"):
        read_manifest(path, window={"tir": (2, 1)})


SPLITS = ("train", "train", "query", "gallery", "test", "val")


def split_rows(camid: object = 3) -> Rows:
    """Six rows with keys in falling order, one split each."""
    return [
        {"key": f"k{9 - i}", "pid": i if i < 2 else 9, "camid": camid, "split": split, "rgb": "images/a.jpg"}
        for i, split in enumerate(SPLITS)
    ]


def test_a_manifest_is_a_dataset(write: Callable[[Rows], Path]) -> None:
    path = write(split_rows())
    data = load_dataset("manifest", path, window={"rgb": "minmax"})
    assert (data.name, data.modalities, data.object_type, data.protocol) == ("manifest", ("rgb",), "object", "camera")
    keys = [[s.key for s in split] for split in (data.train, data.query, data.gallery)]
    assert keys == [["k8", "k9"], ["k5", "k7"], ["k5", "k6"]]
    assert data.query[0] is data.gallery[0] and data.train[0].images[0].window == "minmax"
    assert data.notes == (
        "1 samples with split 'val' left out; known are train, query, gallery, test, bounding_box_train, "
        "bounding_box_test",
    )
    data = load_dataset("manifest", path, protocol="none", object_type="horse", modalities=("tir", "rgb"))
    assert (data.protocol, data.object_type, data.modalities) == ("none", "horse", ("tir", "rgb"))
    # without cameras the camera rule would leave no query a match
    assert load_dataset("manifest", write(split_rows(""))).protocol == "none"
    # a name is looked up where it is used
    data = load_dataset("manifest", path, protocol="cam")
    with pytest.raises(ValueError, match="unknown protocol 'cam'"):
        get_protocol(data.protocol)


def test_one_image_may_be_query_and_gallery_but_not_twice_in_one(write: Callable[[Rows], Path]) -> None:
    rows = split_rows()
    for row in rows[2:4]:
        row["key"] = "both"
    assert [s.key for s in load_dataset("manifest", write(rows)).query] == ["both", "k5"]
    with pytest.raises(ValueError, match="key 'both' occurs a second time"):
        read_manifest(write(rows))
    rows[1]["key"] = rows[0]["key"]
    with pytest.raises(ValueError, match="line 3: key 'k9' occurs a second time"):
        load_dataset("manifest", write(rows))


def test_a_manifest_without_splits_is_split_by_identity(write: Callable[[Rows], Path]) -> None:
    rows: Rows = [{"key": f"{p}{c}", "pid": p, "camid": c, "rgb": "images/a.jpg"} for p in range(6) for c in (0, 1)]
    path = write(rows)
    expected = (
        r"manifest.csv has no column 'split'.*train=0\.5 .*, as split_identities\(read_manifest\('.*\), modalities="
    )
    with pytest.raises(ValueError, match=expected):
        load_dataset("manifest", path)
    data = load_dataset("manifest", path, train=0.5, seed=3)
    assert (len(data.train), len(data.query), len(data.gallery), data.protocol) == (6, 6, 6, "camera")
    assert load_dataset("manifest", path, train=0.5, seed=3, protocol="rgbnt201").query == data.query
    anywhere = load_dataset("manifest", path, train=0.5, seed=3, protocol="none:rgb>rgb")
    assert anywhere.protocol == "none:rgb>rgb" and anywhere.gallery == data.gallery
    with pytest.raises(ValueError, match="seen by two scenes"):
        load_dataset("manifest", path, train=0.5, protocol="scene:rgb>rgb")
    for rows, message in (
        (split_rows(), "train=0.5 splits by identity, but the splits are named: train, query, gallery, test, val"),
        (split_rows()[:3], r"no sample has split 'gallery', there are train, query; .*have split 'test'"),
        (split_rows()[5:], "no sample has a known split; 1 samples with split 'val'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset("manifest", write(rows), train=0.5 if len(rows) == 6 else None)


def test_bad_manifests_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest .*none\.csv"):
        read_manifest(tmp_path / "none.csv")
    for text, message in (
        ("rgb,tir\n", "has no rows"),
        ("rgb,rgb\na,b\n", r"columns \['rgb'\] occur more than once"),
        ('rgb\n"a"b\n', "not CSV in UTF-8"),
        ("rgb,tir\na.jpg\n", "line 2: the row does not have the 2 cells"),
        ("rgb\na.jpg,b.jpg\n", "line 2: the row does not have the 1 cells"),
    ):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("rgb\na.jpg\n")
    with pytest.raises(ValueError, match="no column 'split'"):
        read_manifest(tmp_path / "m.csv", split="train")


def test_captions_of_a_run_join_by_key(tmp_path):
    rows = [(pid, cam, split) for pid in range(4) for cam in (0, 1) for split in (("train", "test")[pid % 2],)]
    lines = ["pid,camid,split,rgb,tir,caption_rgb"]
    for pid, cam, split in rows:
        for modality in ("rgb", "tir"):
            Image.new("RGB", (8, 16), (pid, cam, 9)).save(tmp_path / f"{pid}_{cam}_{modality}.png")
        lines.append(f"{pid},{cam},{split},{pid}_{cam}_rgb.png,{pid}_{cam}_tir.png,Manifest words.")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    home = tmp_path / "captions"
    home.mkdir()
    written = [{"item": f"{pid}_{cam}_rgb.png", "description": f"Person {pid}."} for pid, cam, _ in rows[:-1]]
    (home / "all_RGB.json").write_text(json.dumps(written))
    assert load_dataset("manifest", tmp_path / "mine.csv").train[0].captions[0] == ("Manifest words.",)
    dataset = load_dataset("manifest", tmp_path / "mine.csv", captions=home)
    assert [sample.captions for sample in dataset.train] == [((f"Person {s.pid}.",), ()) for s in dataset.train]
    assert [bool(sample.captions[0]) for sample in dataset.query] == [True, True, True, False]
    assert any("1 rgb images have no caption in all_RGB.json" in note for note in dataset.notes)
    assert any("no caption file all_NI" not in note and "all_TI" in note for note in dataset.notes)
    with pytest.raises(FileNotFoundError, match=r"expected \{all\}_\{RGB,TI\}\.json"):
        load_dataset("manifest", tmp_path / "mine.csv", captions=tmp_path)


def text_manifest(tmp_path: Path, text: str) -> Path:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    return tmp_path / "m.csv"


def test_columns_in_any_case_and_a_string_for_modalities(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    write([{"rgb": "images/a.jpg"}])
    path = text_manifest(tmp_path, "PID,CamID,Rgb,Caption_RGB,TIR\n4,2,images/a.jpg,A man.,images/a_t.jpg\n")
    (sample,) = read_manifest(path)
    assert (sample.pid, sample.camid, sample.captions) == (4, 2, (("A man.",), ())) and all(sample.images)
    (sample,) = read_manifest(path, "tir")
    assert sample.images == (tmp_path / "images/a_t.jpg",)


@pytest.mark.parametrize("cell", [r"images\a.jpg", r".\images\a.jpg", r"images\\a.jpg", "images/a.jpg"])
def test_paths_may_be_written_as_on_windows(write: Callable[[Rows], Path], tmp_path: Path, cell: str) -> None:
    write([{"rgb": "images/a.jpg"}])
    (sample,) = read_manifest(text_manifest(tmp_path, f"rgb\n{cell}\n"))
    assert sample.images[0].samefile(tmp_path / "images/a.jpg") and sample.key == cell


OUTSIDE = [r"..\a.jpg", r"images\..\..\a.jpg", r"C:\a.jpg", "C:/a.jpg", r"\\server\a.jpg", "//server/a.jpg", "~/a.jpg"]


@pytest.mark.parametrize("cell", [*OUTSIDE, "/a.jpg", "../a.jpg", "C:a.jpg"])
def test_no_spelling_leaves_the_folder(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: image .* is not below the manifest's folder.*anywhere=True"):
        read_manifest(text_manifest(tmp_path, f"rgb\n{cell}\n"))
    with pytest.raises(FileNotFoundError, match="1 images are missing"):
        read_manifest(tmp_path / "m.csv", anywhere=True)


def test_the_home_of_another_user_is_a_name_like_any(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no rgb image") as caught:
        read_manifest(text_manifest(tmp_path, "rgb\n~root/a.jpg\n"))
    assert str(tmp_path / "~root" / "a.jpg") in str(caught.value)


def test_home_is_expanded_where_paths_may_leave_the_folder(
    write: Callable[[Rows], Path], tmp_path: Path, monkeypatch
) -> None:
    write([{"rgb": "images/a.jpg"}])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (sample,) = read_manifest(text_manifest(tmp_path, "rgb\n~/images/a.jpg\n"), anywhere=True)
    assert sample.images[0] == tmp_path / "images/a.jpg"
    assert len(read_manifest("~/m.csv", anywhere=True)) == 1


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_names_in_either_form_of_unicode(jpeg: Path, tmp_path: Path, on_disk: str, in_table: str) -> None:
    (tmp_path / normalize(on_disk, "né.jpg")).write_bytes(jpeg.read_bytes())
    (sample,) = read_manifest(text_manifest(tmp_path, f"rgb\n{normalize(in_table, 'né.jpg')}\n"))
    assert sample.images[0].is_file()


def test_labels_may_be_words_and_are_shown_as_the_file_names_them(write: Callable[[Rows], Path]) -> None:
    def rows(order: int) -> Rows:
        made: Rows = [
            {"key": f"{who}{cam}", "pid": who, "camid": cam, "split": "test", "rgb": "images/a.jpg"}
            for who in ("ann", "Bob")
            for cam in ("left", "right")
        ]
        return [*made, {"key": "x", "pid": "", "camid": "", "split": "train", "rgb": "images/a.jpg"}][::order]

    data = load_dataset("manifest", write(rows(1)))
    assert [(data.label_name("pid", s.pid), data.label_name("camid", s.camid)) for s in data.query] == [
        ("Bob", "left"),
        ("Bob", "right"),
        ("ann", "left"),
        ("ann", "right"),
    ]
    assert data.protocol == "camera" and "pid: words, numbered in their order: Bob, ann" in data.notes
    again = load_dataset("manifest", write(rows(-1)))
    assert (again.query, again.label_names) == (data.query, data.label_names)
    assert {s.pid for s in read_manifest(write(rows(1)[2:]), split="test")} == {0}
    assert {s.pid for s in read_manifest(write(rows(1)), split="train")} == {-1}


def test_rows_without_identity_are_never_scored_or_trained_on(write: Callable[[Rows], Path]) -> None:
    rows: Rows = [
        {"key": f"{split}{i}", "pid": pid, "camid": i % 2, "split": split, "rgb": "images/a.jpg"}
        for split in ("train", "test")
        for i, pid in enumerate(("", "", 5, 5))
    ]
    data = load_dataset("manifest", write(rows))
    assert [s.pid for s in data.train] == [5, 5] and len(data.query) == 4
    assert data.notes[0] == "train: 2 samples of unknown identity (pid -1) left out"
    assert count_matches(data.query, data.gallery, "camera") == [0, 0, 1, 1]
    for rule in ("scene", "none"):
        assert count_matches(data.query, data.gallery, rule)[:2] == [0, 0]


def test_many_columns_are_answered_in_few_words(tmp_path: Path) -> None:
    text = ",".join(f"c{i}" for i in range(20_000)) + "\n"
    with pytest.raises(ValueError, match=r"columns \['c0', 'c1', .*…\] are unknown") as caught:
        read_manifest(text_manifest(tmp_path, text))
    assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match="no column for a modality") as caught:
        read_manifest(text_manifest(tmp_path, "pid\n1\n"))
    with pytest.raises(ValueError, match="occurs a second time") as caught:
        read_manifest(text_manifest(tmp_path, "key,rgb\n" + f"{'k' * 10_000},m.csv\n" * 2))
    assert len(str(caught.value)) < 1000


CELLS = ("m.csv", "1", "-1", "1.5", "é", "..", "~", "C:", "\\")


@settings(max_examples=150, derandomize=True)
@given(
    header=st.lists(
        st.sampled_from(["pid", "camid", "rgb", "TIR", "key", "split", "caption_rgb", ""]) | st.text(max_size=4),
        min_size=1,
        max_size=5,
    ),
    rows=st.lists(
        st.lists(
            st.sampled_from(["m.csv", "1", "-1", "1.5", "é", "..", "~", "C:", "\\"]) | st.text(max_size=5), max_size=5
        ),
        max_size=4,
    ),
)
def test_any_table_is_read_or_named(tmp_path_factory, header: list[str], rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("t") / "m.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([header, *rows])
    try:
        samples = read_manifest(path)
    except (ValueError, FileNotFoundError) as error:
        assert len(str(error)) < 3000
    else:
        assert all(sample.pid >= -1 and any(sample.images) for sample in samples)
