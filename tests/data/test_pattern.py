import random
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data import ImageFile, load_dataset, read_folder, read_pattern
from nextreid.data import pattern as module
from nextreid.data.pattern import _FIELDS

Labels = dict[str, tuple[int, int, int]]


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
    assert [m.split(": ", 1)[1] for m in caplog.messages] == [
        "1 files left out, not of the form '{modality}/{*}.{ext}'",
        "1 images left out, of other modalities: ['other']",
        "all: 1 of 3 samples lack rgb",
        "all: 2 of 3 samples lack nir",
        "all: 1 of 3 samples lack tir",
    ]
    assert [s.images[0].name for s in read_folder(tmp_path, ("tir",))] == ["b.jpg", "c.JPG"]


def test_folder_with_a_custom_modality(tmp_path: Path) -> None:
    touch(tmp_path, "Depth/a.png", "rgb/a.png")
    assert [image.parent.name for image in read_folder(tmp_path, ("depth", "rgb"))[0].images] == ["Depth", "rgb"]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; expected .*none/\{rgb,nir,tir\}/name\.jpg"):
        read_folder(tmp_path / "none")
    touch(tmp_path, "red/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder of the form .*found red in"):
        read_folder(tmp_path)
    touch(tmp_path, "rgb/a.txt")
    with pytest.raises(ValueError, match=r"no images of modalities .*there are \['red'\]"):
        read_folder(tmp_path)
    touch(tmp_path, "rgb/a.jpg", "rgb/a.png")
    with pytest.raises(ValueError, match=r"two files are one rgb image: rgb/a\.jpg, rgb/a\.png"):
        read_folder(tmp_path)
    (tmp_path / "vis").mkdir()
    with pytest.raises(ValueError, match="has 2 folders for rgb: rgb, vis"):
        read_folder(tmp_path)


def test_a_pattern_reads_labels_and_pairs_images(tmp_path: Path, caplog) -> None:
    touch(
        tmp_path,
        *(f"train/{m}/0007_c{c}_{f}.jpg" for m in ("RGB", "TI") for c in (1, 12) for f in ("a", "b")),
        "test/RGB/9_c-1_.JPG",
        "train/RGB/0007_c1.jpg",
        "train/RGB/deep/0007_c1_a.jpg",
        "readme.txt",
    )
    samples = read_pattern(tmp_path)
    assert [(s.key, s.pid, s.camid, s.sceneid) for s in samples] == [
        ("test/RGB/9_c-1_.JPG", 9, -1, -1),
        ("train/RGB/0007_c12_a.jpg", 7, 12, -1),
        ("train/RGB/0007_c12_b.jpg", 7, 12, -1),
        ("train/RGB/0007_c1_a.jpg", 7, 1, -1),
        ("train/RGB/0007_c1_b.jpg", 7, 1, -1),
    ]
    assert samples[0].images == (tmp_path / "test/RGB/9_c-1_.JPG", None)
    assert samples[3].images == (tmp_path / "train/RGB/0007_c1_a.jpg", tmp_path / "train/TI/0007_c1_a.jpg")
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "1 files left out, not of the form '{split}/{modality}/{pid}_c{camid}_{*}.jpg'",
        "test: 1 of 1 samples lack tir",
    ]
    assert [s.key for s in read_pattern(tmp_path, split="test")] == ["test/RGB/9_c-1_.JPG"]
    with pytest.raises(ValueError, match=r"no images with split 'query' .*there are test, train"):
        read_pattern(tmp_path, split="query")


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        # the ending and the modality are not part of a moment, all else is; a label that is named twice must agree
        (
            "{modality}/{pid}-{*}.{ext}",
            ["vis/4-x.jpg", "th/4-x.png", "th/4-y.png"],
            {"vis/4-x.jpg": (4, -1, -1), "th/4-y.png": (4, -1, -1)},
        ),
        ("{pid}/{pid}_{modality}.png", ["5/5_nir.png", "5/6_nir.png"], {"5/5_nir.png": (5, -1, -1)}),
        ("s{sceneid}/{*}_{*}_{camid}.png", ["s3/a_b_c_2.png"], {"s3/a_b_c_2.png": (-1, 2, 3)}),
        ("a+b (1).{pid}.png", ["a+b (1).8.png", "aab (1).9.png"], {"a+b (1).8.png": (8, -1, -1)}),
    ],
)
def test_fields_of_a_pattern(tmp_path: Path, pattern: str, names: list[str], expected: Labels) -> None:
    touch(tmp_path, *names)
    assert {s.key: (s.pid, s.camid, s.sceneid) for s in read_pattern(tmp_path, pattern)} == expected


def test_custom_modalities_and_windows(tmp_path: Path, caplog) -> None:
    touch(tmp_path, "Depth/1.png", "rgb/1.png", "event/1.png", "event/2.png")
    pattern = "{modality}/{pid}.png"
    expected = r"unknown modalities \['Depth', 'event'\]; .* modalities=\('rgb', 'Depth', 'event'\)"
    with pytest.raises(ValueError, match=expected):
        read_pattern(tmp_path, pattern)
    (sample,) = read_pattern(tmp_path, pattern, ("depth", "rgb"), window={"depth": [0, 4000]})
    assert sample.images == (ImageFile(tmp_path / "Depth/1.png", window=(0, 4000)), tmp_path / "rgb/1.png")
    assert "2 images left out, of other modalities: ['event']" in caplog.text
    with pytest.raises(ValueError, match=r"no images of modalities \('tir',\); there are \['Depth', 'event', 'rgb'\]"):
        read_pattern(tmp_path, pattern, ("tir",))
    touch(tmp_path, "vis/1.png")
    (sample,) = read_pattern(tmp_path, pattern, ("vis", "rgb"))
    assert sample.images == (tmp_path / "vis/1.png", tmp_path / "rgb/1.png")
    (sample, _) = read_pattern(tmp_path, "event/{pid}.png", ("event",))
    assert sample.images == (tmp_path / "event/1.png",)


def test_a_pattern_is_a_dataset(tmp_path: Path) -> None:
    names = [f"{p:04d}_c{c}s1_{p}.jpg" for p in (2, 3) for c in (1, 2)]
    touch(tmp_path, *(f"bounding_box_train/{n}" for n in names[:2]), *(f"bounding_box_test/{n}" for n in names[2:]))
    touch(tmp_path, f"query/{names[2]}")
    data = load_dataset("pattern", tmp_path, pattern="{split}/{pid}_c{camid}s1_{*}.jpg", object_type="person")
    assert (data.name, data.modalities, data.protocol, data.notes) == (tmp_path.name, ("rgb",), "camera", ())
    assert [len(split) for split in (data.train, data.query, data.gallery)] == [2, 1, 2]
    with pytest.raises(ValueError, match=r"pattern '{\*}/{pid}.*' has no {split}: .*split_identities\(read_pattern"):
        load_dataset("pattern", tmp_path, pattern="{*}/{pid}_c{camid}s1_{*}.jpg")
    split = load_dataset("pattern", tmp_path, pattern="{*}/{pid}_c{camid}s1_{*}.jpg", train=0.5)
    assert len({s.pid for s in split.train}) == len({s.pid for s in split.gallery}) == 1 and split.query


def test_the_order_of_the_listing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [(split, f"{p}_c{c}_x.jpg") for split in ("train", "query", "gallery") for p in range(3) for c in (1, 2)]
    # some lack rgb, so that their keys begin with another modality
    touch(tmp_path, *(f"{s}/{m}/{n}" for m in ("rgb", "nir") for s, n in people if m == "nir" or n[0] != "1"))
    expected, listing = load_dataset("pattern", tmp_path), module._files

    for seed in range(5):
        order = random.Random(seed)
        monkeypatch.setattr(
            module, "_files", lambda *place, order=order: order.sample(found := sorted(listing(*place)), len(found))
        )
        assert load_dataset("pattern", tmp_path) == expected
    assert len(expected.train) == 6 and expected.notes[-1] == "train and test share 3 identities (0, 1, 2)"
    for samples in (expected.train, expected.query, expected.gallery):
        assert [s.key for s in samples] == sorted(s.key for s in samples)
    samples = read_pattern(tmp_path)
    assert [s.key for s in samples] == sorted(s.key for s in samples)


def test_bad_patterns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        read_pattern(tmp_path / "none")
    with pytest.raises(ValueError, match=r"{person} is not one of {split}, {modality}, {pid}"):
        read_pattern(tmp_path, "{person}.jpg")
    with pytest.raises(ValueError, match=r"no path of the form .*at that depth there are no files"):
        read_pattern(tmp_path, "{pid}.jpg")
    touch(tmp_path, "1.jpg", "x.png")
    with pytest.raises(ValueError, match=r"no path of the form '{pid}\.png'; at that depth there are 1\.jpg, x\.png"):
        read_pattern(tmp_path, "{pid}.png")
    touch(tmp_path, "vis/1.jpg", "rgb/1.jpg")
    with pytest.raises(ValueError, match=r"two files are one rgb image: rgb/1\.jpg, vis/1\.jpg"):
        read_pattern(tmp_path, "{modality}/{pid}.jpg")


LEFT = ("._a.jpg", ".DS_Store", "Thumbs.db", "@eaDir/a.jpg", "__MACOSX/a.jpg")


def test_what_systems_leave_beside_images_is_no_image(tmp_path: Path, caplog) -> None:
    touch(tmp_path, "rgb/a.jpg", *(f"rgb/{name}" for name in LEFT), *LEFT, ".hidden/a.jpg")
    assert [s.key for s in read_folder(tmp_path)] == ["a.jpg"]
    assert [s.key for s in read_pattern(tmp_path, "{modality}/{*}.jpg", "rgb")] == ["rgb/a.jpg"]
    assert "left out" not in caplog.text


def test_endings_of_every_form_are_read(tmp_path: Path) -> None:
    names = [f"rgb/{number}.{ending}" for number, ending in enumerate(("jfif", "jp2", "PGM", "ppm", "bmp", "webp"))]
    touch(tmp_path, *names)
    assert len(read_folder(tmp_path, "rgb")) == len(names)


def test_labels_of_a_pattern_may_be_words(tmp_path: Path) -> None:
    touch(tmp_path, *(f"test/{who}/{m}/{cam}_1.jpg" for who in ("ann", "Bob") for m in ("vis", "th") for cam in "lr"))
    pattern = "{split}/{pid:word}/{modality}/{camid:word}_{*}.jpg"
    data = load_dataset("pattern", tmp_path, pattern=pattern)
    assert data.label_names == {"pid": {0: "Bob", 1: "ann"}, "camid": {0: "l", 1: "r"}}
    assert [(s.pid, s.camid) for s in data.query] == [(0, 0), (0, 1), (1, 0), (1, 1)] and data.protocol == "camera"
    with pytest.raises(ValueError, match="no path of the form"):
        load_dataset("pattern", tmp_path, pattern=pattern.replace(":word", ""))


def test_names_in_two_forms_of_unicode_are_one_moment(tmp_path: Path) -> None:
    touch(tmp_path, "rgb/" + normalize("NFC", "né.jpg"), "tir/" + normalize("NFD", "né.jpg"))
    (sample,) = read_folder(tmp_path, ("rgb", "tir"))
    assert all(sample.images)


def test_an_identity_of_many_digits_is_numbered(tmp_path: Path) -> None:
    touch(tmp_path, f"test/rgb/{10**20}_c1_a.jpg", f"test/rgb/{10**20}_c2_a.jpg", "test/rgb/5_c1_a.jpg")
    assert sorted(s.pid for s in load_dataset("pattern", tmp_path).query) == [0, 0, 1]


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.sampled_from([*_FIELDS, "x", "pid:", ""]).map("{{{}}}".format) | st.text(max_size=3), max_size=6))
def test_any_pattern_is_used_or_named(tmp_path_factory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed-pattern"
    if not root.exists():
        touch(root, "a/rgb/1_c2.jpg", "b/tir/1_c2.png", "3.jpg")
    try:
        samples = read_pattern(root, "".join(parts))
    except ValueError as error:
        assert len(str(error)) < 1500
    else:
        assert samples
