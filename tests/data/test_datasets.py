import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data import ReIDDataset, list_datasets, load_dataset, register_dataset
from nextreid.data.datasets import registry

Writer = Callable[..., Path]
NAMES = (("RGB", "rgb"), ("NI", "nir"), ("TI", "tir"))


def ids(samples: tuple) -> int:
    return len({sample.pid for sample in samples})


def cameras(samples: tuple) -> set[int]:
    return {sample.camid for sample in samples}


@pytest.mark.parametrize("inside", [True, False])
def test_rgbnt201(write_rgbnt201: Writer, inside: bool) -> None:
    home = write_rgbnt201()
    data = load_dataset("rgbnt201", home if inside else str(home.parent))
    assert (data.name, data.object_type, data.protocol) == ("rgbnt201", "person", "rgbnt201")
    assert data.modalities == ("rgb", "nir", "tir")
    assert [s.key for s in data.train] == sorted(s.key for s in data.train) and len(data.train) == 5
    assert all(q is g for q, g in zip(data.query, data.gallery, strict=True)) and len(data.query) == 4
    sample = data.train[3]
    assert (sample.key, sample.pid, sample.camid, sample.sceneid) == ("000030_cam2_1_03.jpg", 30, 1, -1)
    assert sample.images == tuple(home / "train_171" / m / sample.key for m in ("RGB", "NI", "TI"))
    assert (sample.captions, sample.truth, data.notes) == ((), None, ())
    assert cameras(data.train) == {0, 1, 2} and cameras(data.query) == {0, 1}


def test_msvr310(write_msvr310: Writer) -> None:
    home = write_msvr310()
    data = load_dataset("msvr310", home.parent)
    assert (data.object_type, data.protocol, data.notes) == ("vehicle", "msvr310", ())
    assert len(data.train) == 4 and len(data.gallery) == 6
    assert [s.key for s in data.query] == ["0030_s004_v5_002.jpg", "0030_s005_v7_005.jpg", "0030_s018_v0_000.jpg"]
    assert all(any(q is g for g in data.gallery) for q in data.query)
    sample = data.query[1]
    assert (sample.pid, sample.camid, sample.sceneid) == (30, 7, 5)
    assert sample.images[2] == home / "bounding_box_test" / "0030" / "th" / sample.key


def test_msvr310_query_follows_the_rule_and_notes_another_folder(write_msvr310: Writer) -> None:
    data = load_dataset("msvr310", write_msvr310(query=["0018_s002_v1_000.jpg", "0030_s004_v5_002.jpg"]))
    assert len(data.query) == 3
    assert data.notes == (
        "query: the scene rule gives 3 samples (used), folder query3 has 2; 2 only by the rule, 1 only in the folder",
    )


def test_modalities_are_paired_by_name_never_by_position(write_rgbnt201: Writer) -> None:
    home = write_rgbnt201()
    (home / "train_171" / "NI" / "000009_cam3_1_00.jpg").unlink()
    (home / "train_171" / "RGB" / "000040_cam1_0_21.jpg").unlink()
    data = load_dataset("rgbnt201", home)
    assert len(data.train) == 5
    for sample in data.train:
        assert {image.name for image in sample.images if image} == {sample.key}
    assert [[image is not None for image in s.images] for s in (data.train[0], data.train[4])] == [
        [True, False, True],
        [False, True, True],
    ]
    assert data.notes == (
        "train: 1 of 5 samples lack rgb: 000040_cam1_0_21.jpg",
        "train: 1 of 5 samples lack nir: 000009_cam3_1_00.jpg",
    )


def test_unknown_names_are_left_out_and_noted(write_rgbnt201: Writer, write_msvr310: Writer, caplog) -> None:
    home = write_rgbnt201()
    for name in ("Thumbs.db", "000258_c1_0_00.jpg", "copy of 000258_cam1_0_00.jpg", "000258_cam1_0_00.jpg.tmp"):
        (home / "test" / "TI" / name).touch()
    data = load_dataset("rgbnt201", home)
    assert len(data.gallery) == 4
    (note,) = data.notes
    assert note.startswith("test: 3 files left out") and "TI/000258_c1_0_00.jpg" in note and "Thumbs" not in note
    assert f"rgbnt201: {note}" in caplog.messages

    home = write_msvr310()
    (home / "bounding_box_train" / "0003" / "vis" / "0001_s002_v0_000.jpg").touch()
    (note,) = load_dataset("msvr310", home).notes
    assert "1 files left out" in note


def test_modalities_are_chosen_in_the_order_given(write_rgbnt201: Writer) -> None:
    home = write_rgbnt201()
    data = load_dataset("rgbnt201", home, modalities=("tir", "rgb"))
    assert data.modalities == ("tir", "rgb")
    assert [image.parent.name for image in data.train[0].images] == ["TI", "RGB"]
    for wrong in (("rgb", "NI"), (), ("rgb", "rgb")):
        with pytest.raises(ValueError, match=r"modalities must be one or more (names|of \('rgb', 'nir', 'tir'\))"):
            load_dataset("rgbnt201", home, modalities=wrong)


def test_missing_folders_are_named_with_the_layout(write_rgbnt201: Writer, write_msvr310: Writer) -> None:
    home = write_rgbnt201()
    with pytest.raises(FileNotFoundError, match=r"no MSVR310 in .*bounding_box_train.*expected MSVR310/\{bounding"):
        load_dataset("msvr310", home)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_dataset("rgbnt201", home / "elsewhere")
    (home / "test" / "NI").rename(home / "test" / "N")
    with pytest.raises(FileNotFoundError, match=r"test.NI; expected RGBNT201/\{train_171,test\}/\{RGB,NI,TI\}"):
        load_dataset("rgbnt201", home)
    assert load_dataset("rgbnt201", home, modalities=["rgb", "tir"]).notes == ()
    (home / "train_171").rename(home / "train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*train_171; expected RGBNT201"):
        load_dataset("rgbnt201", home.parent)
    home = write_msvr310()
    for folder in (home / "bounding_box_train").iterdir():
        (folder / "th").rename(folder / "ti")
    with pytest.raises(FileNotFoundError, match=r"bounding_box_train/\*/th; expected MSVR310"):
        load_dataset("msvr310", home)


def test_the_holding_folder_may_have_a_folder_of_the_same_name(write_rgbnt201: Writer) -> None:
    home = write_rgbnt201()
    (home.parent / "test").mkdir()
    assert len(load_dataset("rgbnt201", home.parent).train) == 5


def test_a_tree_without_known_names_is_rejected(write_rgbnt201: Writer) -> None:
    with pytest.raises(ValueError, match=r"train: no image with a name of the published form .*RGB/1\.jpg"):
        load_dataset("rgbnt201", write_rgbnt201(train=["1.jpg", "2.jpg"]))


def test_empty_folders_are_rejected(write_rgbnt201: Writer) -> None:
    with pytest.raises(ValueError, match=r"test: no image .* hold no files"):
        load_dataset("rgbnt201", write_rgbnt201(test=[]))


def test_captions_are_joined_by_name(write_rgbnt201: Writer, write_captions: Writer) -> None:
    home = write_rgbnt201()
    names = [
        [s.key for s in split] for split in (load_dataset("rgbnt201", home).train, load_dataset("rgbnt201", home).query)
    ]
    text = write_captions(reversed(names[0]), names[1])
    data = load_dataset("rgbnt201", home, captions=text)
    assert data.notes == ()
    sample = data.train[2]
    assert sample.captions == tuple((f"In {m}.", "A man.", "He carries a bag.") for m in ("RGB", "NI", "TI"))
    assert data.query[0].captions and data.query[0] is data.gallery[0]
    turned = load_dataset("rgbnt201", home, captions=str(text), modalities=("tir",))
    assert turned.train[0].captions[0][0] == "In TI."
    assert turned.summary()["train"]["captions"] == {"tir": 5}


def test_captions_and_images_that_do_not_meet_are_noted(write_msvr310: Writer, write_captions: Writer) -> None:
    home = write_msvr310()
    names = [s.key for s in load_dataset("msvr310", home).train]
    tests = [s.key for s in load_dataset("msvr310", home).gallery]
    text = write_captions([*names[1:], "0009_s000_v0_000.jpg"], tests)
    entries = json.loads((text / "train_TI.json").read_text())
    entries[0]["description"] = "  "
    (text / "train_TI.json").write_text(json.dumps(entries))
    (home / "bounding_box_train" / names[1][:4] / "ni" / names[1]).unlink()
    data = load_dataset("msvr310", home, captions=text)
    assert data.train[0].captions == ((), (), ())
    assert data.train[1].captions[1:] == ((), ())
    assert data.train[2].captions[0][0] == "In RGB."
    assert data.notes == (
        f"train: 1 of 4 samples lack nir: {names[1]}",
        "train: 1 captions in train_RGB.json name no rgb image",
        "train: 1 rgb images have no caption in train_RGB.json",
        "train: 2 captions in train_NI.json name no nir image",
        "train: 1 nir images have no caption in train_NI.json",
        "train: 1 captions in train_TI.json name no tir image",
        "train: 1 tir images have no caption in train_TI.json",
        "train: 1 captions in train_TI.json are blank",
    )


def test_captions_of_another_dataset_are_rejected(write_rgbnt201: Writer, write_captions: Writer) -> None:
    home = write_rgbnt201()
    text = write_captions(["0001_s002_v0_000.jpg"], ["0018_s002_v1_000.jpg"])
    with pytest.raises(
        ValueError, match=r"train_RGB\.json: none of its 1 .*0001_s002.*000009_cam3.*choose the caption"
    ):
        load_dataset("rgbnt201", home, captions=text)


def test_caption_files_that_are_absent_are_noted(write_rgbnt201: Writer, write_captions: Writer) -> None:
    home = write_rgbnt201()
    text = write_captions(trees.RGBNT201_TRAIN, trees.RGBNT201_TEST)
    for name in ("train_NI", "test_RGB", "test_NI", "test_TI"):
        (text / f"{name}.json").unlink()
    data = load_dataset("rgbnt201", home, captions=text)
    assert [bool(c) for c in data.train[0].captions] == [True, False, True] and data.query[0].captions == ()
    assert data.notes == (
        "train: no caption file train_NI.json, so 0 of 5 nir images have a caption",
        *(f"test: no caption file test_{n}.json, so 0 of 4 {m} images have a caption" for n, m in NAMES),
    )
    expected = r"no caption file in captions=.*\{train,test\}_\{NI\}\.json in it or in one of text, RGBNT201, 201"
    with pytest.raises(FileNotFoundError, match=expected):
        load_dataset("rgbnt201", home, captions=text, modalities=["nir"])
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_dataset("rgbnt201", home, captions=text / "none")


@pytest.mark.parametrize("place", [".", "text", "RGBNT201", "RGBNT201/text", "201"])
def test_captions_are_found_as_next_and_as_idea_publish_them(
    write_rgbnt201: Writer, write_captions: Writer, tmp_path: Path, place: str
) -> None:
    text = write_captions(trees.RGBNT201_TRAIN, trees.RGBNT201_TEST)
    folder = tmp_path / "published"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    text.rename(folder / place)
    data = load_dataset("rgbnt201", write_rgbnt201(), captions=folder)
    assert data.notes == () and data.train[0].captions[1][0] == "In NI."


def test_an_empty_caption_file_means_none_for_this_modality(write_rgbnt201: Writer, write_captions: Writer) -> None:
    home = write_rgbnt201()
    data = load_dataset("rgbnt201", home)
    text = write_captions([s.key for s in data.train], [s.key for s in data.query])
    (text / "test_NI.json").write_text("[]")
    data = load_dataset("rgbnt201", home, captions=text)
    assert data.query[0].captions[1] == () and data.query[0].captions[2]
    assert data.notes == ("test: 4 nir images have no caption in test_NI.json",)


def test_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_datasets()  # loads what registers itself, before the copy
    monkeypatch.setattr(registry, "_readers", dict(registry._readers))
    assert {"rgbnt201", "msvr310"} <= set(list_datasets()) and list_datasets() == sorted(list_datasets())
    with pytest.raises(ValueError, match=r"unknown dataset 'market'.* Known: .*msvr310.*rgbnt201"):
        load_dataset("market", tmp_path)
    with pytest.raises(ValueError, match=r"missing a required argument: 'root' \(--root\); it takes root"):
        load_dataset("rgbnt201")
    with pytest.raises(ValueError, match="'seed'"):
        load_dataset("rgbnt201", tmp_path, seed=1)

    @register_dataset("made")
    def made(profile: str, seed: int = 0) -> ReIDDataset:
        return ReIDDataset(f"{profile}{seed}", ("rgb",), "person", "camera", (), (), ())

    assert load_dataset("made", profile="tiny", seed=3).name == "tiny3"
    with pytest.raises(ValueError, match="'root'; it takes profile, seed"):
        load_dataset("made", tmp_path, profile="tiny")
    with pytest.raises(ValueError, match="'made' is registered already"):
        register_dataset("made")(made)


def test_modalities_with_other_endings_are_paired(write_rgbnt201: Writer) -> None:
    home = write_rgbnt201()
    expected = load_dataset("rgbnt201", home)
    for folder, ending in (("NI", ".JPG"), ("TI", ".png")):
        for path in list(home.glob(f"*/{folder}/*")):
            path.rename(path.with_suffix(ending))
    data = load_dataset("rgbnt201", home)
    assert [s.key for s in data.train] == [s.key for s in expected.train] and data.notes == ()
    assert [image.suffix for image in data.train[0].images] == [".jpg", ".JPG", ".png"]
    first = home / "test" / "NI" / "000258_cam1_0_00"
    first.with_suffix(".jpeg").write_bytes(first.with_suffix(".JPG").read_bytes())
    with pytest.raises(ValueError, match="occurs twice"):
        load_dataset("rgbnt201", home)


@pytest.mark.parametrize("name", ["rgbnt201", "msvr310"])
def test_what_systems_leave_beside_images_is_not_noted(
    write_rgbnt201: Writer, write_msvr310: Writer, name: str
) -> None:
    home = {"rgbnt201": write_rgbnt201, "msvr310": write_msvr310}[name]()
    expected = load_dataset(name, home)
    for folder in [path for path in home.rglob("*") if path.is_dir()]:
        for left in ("._000258_cam1_0_00.jpg", ".DS_Store", "Thumbs.db"):
            (folder / left).touch()
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "000258_cam1_0_00.jpg").touch()
    assert load_dataset(name, home) == expected and expected.notes == ()


def test_cameras_are_shown_as_the_files_name_them(write_rgbnt201: Writer, write_msvr310: Writer) -> None:
    data = load_dataset("rgbnt201", write_rgbnt201())
    assert [data.label_name("camid", s.camid) for s in data.train[:3]] == ["3", "3", "1"]
    data = load_dataset("msvr310", write_msvr310())
    assert data.label_name("camid", data.train[0].camid) == "0"


def test_one_modality_given_as_a_string(write_rgbnt201: Writer) -> None:
    data = load_dataset("rgbnt201", write_rgbnt201(), modalities="tir")
    assert data.modalities == ("tir",) and len(data.train[0].images) == 1


@settings(max_examples=100, derandomize=True)
@given(st.text(max_size=12) | st.sampled_from(list_datasets()).map(lambda name: name + " ") | st.just("a" * 100_000))
def test_any_name_is_known_or_named(name: str) -> None:
    if name not in list_datasets():
        with pytest.raises(ValueError, match="unknown dataset") as caught:
            load_dataset(name)
        assert len(str(caught.value)) < 1000
