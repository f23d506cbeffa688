"""RGBNT100, RGBN300, WMVEID863 and Market-1501-MM on small trees with the hard cases in them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from nextreid.data import EvalTransform, ReIDDataset, SampleDataset, load_dataset

VEHICLE_TRAIN = ("0501_c0001_000.jpg", "0501_c0001_001.jpg", "0503_c0008_000.jpg")
VEHICLE_TEST = (*(f"0502_c000{c}_{f:03d}.jpg" for c in (2, 5) for f in range(6)), "0504_c0003_003.jpg")
VEHICLE_QUERY = tuple(name for name in VEHICLE_TEST if name.endswith(("000.jpg", "005.jpg")))


def write_vehicles(home: Path, parts: int, query: tuple[str, ...] | None = VEHICLE_QUERY) -> Path:
    source = trees.jpeg(home.parent, (256 * parts, 128))
    return trees.write_side_by_side(home, source, VEHICLE_TRAIN, VEHICLE_TEST, query)


def keys(samples: tuple) -> list[str]:
    return [sample.key for sample in samples]


def write_texts(folder: Path, **items: list[str]) -> Path:
    """Caption files by name, one caption for each item."""
    folder.mkdir(parents=True)
    for name, names in items.items():
        entries = [{"item": item, "description": f"{name} of {item}."} for item in names]
        (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.mark.parametrize("inside", ["", "RGBNT100", "RGBNT100/rgbir"])
def test_rgbnt100(tmp_path: Path, inside: str) -> None:
    home = write_vehicles(tmp_path / "RGBNT100", 3)
    data = load_dataset("rgbnt100", tmp_path / inside)
    assert (data.object_type, data.protocol, data.modalities) == ("vehicle", "rgbnt100", ("rgb", "nir", "tir"))
    assert keys(data.train) == list(VEHICLE_TRAIN) and keys(data.gallery) == sorted(VEHICLE_TEST)
    assert keys(data.query) == sorted(VEHICLE_QUERY) and data.notes == ()
    assert all(any(q is g for g in data.gallery) for q in data.query)
    sample = data.train[2]
    assert (sample.pid, sample.camid, sample.sceneid) == (503, 7, -1)
    assert {image.path for image in sample.images} == {home / "rgbir" / "bounding_box_train" / sample.key}


def test_a_file_is_cropped_into_its_modalities(tmp_path: Path) -> None:
    home = write_vehicles(tmp_path / "RGBNT100", 3)
    file = home / "rgbir" / "bounding_box_train" / VEHICLE_TRAIN[0]
    file.unlink()
    values = np.repeat(np.array([40, 120, 200], np.uint8), 256)[None, :, None] * np.ones((128, 1, 3), np.uint8)
    Image.fromarray(values).save(file, quality=100)
    data = load_dataset("rgbnt100", home, modalities=("tir", "rgb", "nir"))
    images = SampleDataset(data.train, EvalTransform((16, 32)), data.modalities)[0].images
    assert np.abs((images.numpy() + 1) * 127.5 - np.array([200, 40, 120])[:, None, None, None]).max() < 2
    file.unlink()
    Image.fromarray(values[:, :512]).save(file)
    bad = load_dataset("rgbnt100", home)
    message = rf"{file}, the rgb image of sample '{file.name}': it must be 768 x 128 .* found 512 x 128"
    with pytest.raises(ValueError, match=message):
        SampleDataset(bad.train, EvalTransform((16, 32)))[0]


def test_rgbnt100_compares_its_query_folder_with_the_rule(tmp_path: Path) -> None:
    home = write_vehicles(tmp_path / "RGBNT100", 3, query=(VEHICLE_QUERY[0], VEHICLE_TEST[1]))
    data = load_dataset("rgbnt100", home)
    assert keys(data.query) == [VEHICLE_QUERY[0], VEHICLE_TEST[1]]
    assert data.notes == (
        "query: the every-fifth-frame rule gives 4 samples, folder query has 2 (used); 3 only by the rule, "
        "1 only in the folder",
    )


def test_rgbnt100_takes_captions_of_idea(tmp_path: Path) -> None:
    write_vehicles(tmp_path / "RGBNT100", 3)
    every = {
        f"{s}_{m}": list(n) for s, n in (("train", VEHICLE_TRAIN), ("test", VEHICLE_TEST)) for m in ("RGB", "NI", "TI")
    }
    every["test_TI"].remove("0504_c0003_003.jpg")
    write_texts(tmp_path / "anno" / "RGBNT100" / "text", **every)
    data = load_dataset("rgbnt100", tmp_path, captions=tmp_path / "anno")
    assert data.notes == ("test: 1 tir images have no caption in test_TI.json",)
    assert data.query[0].captions[1] == (f"test_NI of {data.query[0].key}.",)
    assert data.gallery[-1].captions[2] == ()


@pytest.mark.parametrize("folder", ["RGBN300", "RGBNT300"])
@pytest.mark.parametrize("query", [VEHICLE_QUERY, None])
def test_rgbn300(tmp_path: Path, folder: str, query: tuple[str, ...] | None) -> None:
    write_vehicles(tmp_path / folder, 2, query)
    data = load_dataset("rgbn300", tmp_path)
    assert (data.modalities, data.protocol, data.object_type) == (("rgb", "nir"), "rgbn300", "vehicle")
    assert [(i.box, i.size) for i in data.train[0].images] == [
        ((0, 0, 256, 128), (512, 128)),
        ((256, 0, 512, 128), (512, 128)),
    ]
    # 0504 has one camera only: without a list its images are no queries
    assert keys(data.query) == sorted(query or VEHICLE_TEST[:-1])
    assert (data.notes == ()) == (query is not None)
    assert query or "no folder query, and its list is not published: all 12 of 13 gallery" in data.notes[0]
    with pytest.raises(ValueError, match=r"one or more of \('rgb', 'nir'\)"):
        load_dataset("rgbn300", tmp_path, modalities=("rgb", "tir"))


@pytest.fixture
def wmveid863(tmp_path: Path) -> Path:
    return trees.write_wmveid863(tmp_path / "WMVEID863", trees.jpeg(tmp_path))


def test_wmveid863_reads_complete_samples_and_names_the_rest(wmveid863: Path) -> None:
    data = load_dataset("wmveid863", wmveid863.parent)
    assert keys(data.train) == [
        "0018_v1_n9_s002_020.jpg",
        "0018_v4_n9_s002_021.jpg",
        "0030_v5_n9_s004_022.jpg",
        "0451_v1_n1_s999_000.jpg",
        "0451_v2_n1_s999_001.jpg",
        "0865_v1_n0_s999_001.jpg",
    ]
    twin = data.train[2]
    assert (twin.pid, twin.camid, twin.sceneid) == (30, 5, 4)
    assert twin.images[1] == wmveid863 / "train" / "0030" / "ni" / "v5_n9_s004_022.jpg"
    assert data.train[3].sceneid == -1
    assert len(data.gallery) == 7 and all(None not in s.images for s in (*data.train, *data.gallery))
    unnamed, dropped, test_dropped, query, shared = data.notes
    assert unnamed == "train: 1 files left out, their names are not of the published form: vis/0865_vis_v1_n0_03.jpg"
    assert "1 of 7 samples left out that lack a modality" in dropped
    assert dropped.endswith(": 0865_v1_n0_s999_002.jpg (no rgb, no nir)")
    assert test_dropped.endswith(
        ": 0406_v1_n0_s999_004.jpg (no rgb, no tir), 0476_v0_n0_s999_001.jpg (no rgb), "
        "0476_v1_n0_s999_002.jpg (no rgb), 0476_v1_n0_s999_003.jpg (no rgb)"
    )
    # 0406 is left with one view, 0900 has one: both are distractors
    assert query.startswith("query: no folder query, and its list is not published: all 4 of 7 gallery samples")
    assert {s.pid for s in data.query} == {451, 476}
    assert shared == "train and test share 1 identities (451) and 1 sample names: 0451_v1_n1_s999_000.jpg"


def test_wmveid863_reads_what_lacks_a_modality_if_told(wmveid863: Path) -> None:
    data = load_dataset("wmveid863", wmveid863, complete=False)
    assert len(data.train) == 7 and len(data.gallery) == 11
    lone = next(s for s in data.train if s.key == "0865_v1_n0_s999_002.jpg")
    assert [image is not None for image in lone.images] == [False, False, True]
    for sample in (*data.train, *data.gallery):
        assert {f"{i.parent.parent.name}_{i.name}" for i in sample.images if i is not None} == {sample.key}
    assert "test: 4 of 11 samples lack rgb: 0406_v1_n0_s999_004.jpg, 0476_v0_n0_s999_001.jpg, " in "\n".join(data.notes)
    # complete is meant of the modalities that are read
    assert len(load_dataset("wmveid863", wmveid863, modalities=("tir",)).train) == 7


def test_wmveid863_takes_its_query_folder(wmveid863: Path) -> None:
    source = trees.jpeg(wmveid863.parent)
    places = {
        "query/0451/vis,ni,th": ("v1_n1_s999_000.jpg",),
        "query/0476/vis,ni,th": ("v2_n0_s999_009.jpg",),
    }
    trees.write_wmveid863(wmveid863, source, places)
    items = ["0451_v1_n1_s999_000.jpg", "0476_v2_n0_s999_009.jpg", "0865_0865_vis_v1_n0_03.jpg"]
    text = write_texts(wmveid863.parent / "863", test_RGB=items, train_RGB=items[:1])
    data = load_dataset("wmveid863", wmveid863, captions=text.parent)
    assert keys(data.query) == items[:2]
    assert any(data.query[0] is g for g in data.gallery) and data.query[1].key not in keys(data.gallery)
    assert data.query[0].captions[0] == ("test_RGB of 0451_v1_n1_s999_000.jpg.",)
    assert data.query[1].captions[0] == ("test_RGB of 0476_v2_n0_s999_009.jpg.",)
    assert data.train[3].captions == (("train_RGB of 0451_v1_n1_s999_000.jpg.",), (), ())
    assert not any("no folder query" in note for note in data.notes)
    notes = "\n".join(data.notes)
    assert "test: 1 captions in test_RGB.json name no rgb image" in notes
    assert "test: 6 rgb images have no caption in test_RGB.json" in notes


@pytest.mark.parametrize("folder", ["Market1501-MM", "Market-1501-RGBNT"])
def test_market1501_mm_drops_junk_and_keeps_distractors(tmp_path: Path, folder: str) -> None:
    home = trees.write_market(tmp_path / folder, trees.jpeg(tmp_path))
    data = load_dataset("market1501-mm", tmp_path)
    assert (data.object_type, data.protocol) == ("person", "market1501-mm")
    assert [(s.pid, s.camid, s.sceneid) for s in data.train] == [(2, 0, -1), (2, 1, -1)]
    assert [(s.pid, s.camid) for s in data.query] == [(3, 0)]
    assert [(s.pid, s.camid) for s in data.gallery] == [(0, 0), (3, 3)]
    assert data.query[0].images[2] == home / "query" / "TI" / "0003_c1s6_015996_00.jpg"
    assert data.notes == (
        "gallery: 1 of 3 samples left out, they are junk (identity -1)",
        "gallery: 1 of 3 samples are distractors (identity 0)",
    )


READERS: dict[str, Callable[[Path], object]] = {
    "rgbnt201": lambda home: trees.write_rgbnt201(home, trees.jpeg(home), trees.RGBNT201_TRAIN, trees.RGBNT201_TEST),
    "msvr310": lambda home: trees.write_msvr310(
        home, trees.jpeg(home), trees.MSVR310_TRAIN, trees.MSVR310_TEST, trees.MSVR310_TEST[2:5]
    ),
    "rgbnt100": lambda home: write_vehicles(home, 3),
    "rgbn300": lambda home: write_vehicles(home, 2, None),
    "wmveid863": lambda home: trees.write_wmveid863(home, trees.jpeg(home)),
    "market1501-mm": lambda home: trees.write_market(home, trees.jpeg(home)),
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_file_system_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    READERS[name](tmp_path)
    for place in list(tmp_path.rglob("*.jpg"))[:2]:
        (place.parent / "Thumbs.db").touch()
    listing, expected = Path.iterdir, load_dataset(name, tmp_path)
    assert expected.train and expected.query and expected.gallery
    for split in (expected.train, expected.query, expected.gallery):
        assert keys(split) == sorted(keys(split))

    def shuffled(seed: int) -> Callable[[Path], object]:
        return lambda folder: iter(random.Random(seed).sample(found := sorted(listing(folder)), len(found)))

    for seed in range(5):
        monkeypatch.setattr(Path, "iterdir", shuffled(seed))
        found: ReIDDataset = load_dataset(name, tmp_path)
        assert found == expected and found.digest() == expected.digest()


def test_captions_from_the_table_of_a_run(tmp_path: Path) -> None:
    """The table that a captioning run writes reads like the published files that it writes beside it."""
    from nextreid.captioning import get_schema
    from nextreid.captioning.export import Description, write_captions, write_table

    write_vehicles(tmp_path / "RGBNT100", 3)
    told = [
        Description(split, key, modality, (f"{modality} of {key}.", "A car."), {})
        for split, names in (("train", VEHICLE_TRAIN), ("test", VEHICLE_TEST[:3]))
        for key in names
        for modality in ("rgb", "tir")
    ]
    table = write_table(tmp_path / "attributes.parquet", told, get_schema("vehicle"))
    write_captions(tmp_path / "published", told)
    from_table, from_files = (load_dataset("rgbnt100", tmp_path, captions=c) for c in (table, tmp_path / "published"))
    for split in ("train", "query", "gallery"):
        assert [s.captions for s in getattr(from_table, split)] == [s.captions for s in getattr(from_files, split)]
    assert from_table.train[0].captions == (
        (f"rgb of {VEHICLE_TRAIN[0]}.", "A car."),
        (),
        (f"tir of {VEHICLE_TRAIN[0]}.", "A car."),
    )
    assert sum(map(bool, (s.captions for s in from_table.gallery))) == len(VEHICLE_TEST)
