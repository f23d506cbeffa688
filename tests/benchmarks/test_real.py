"""The benchmarks on real pixels, on drawn ones; on the real ones where they are."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import real, real_scenes, real_spectra
from nextreid.data import load_dataset

FOLDER = Path(os.environ.get("NEXTREID_REAL") or "no folder")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Ten frames with three objects each, of which one is too small."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    for spectrum in ("rgb", "tir"):
        (folder / spectrum).mkdir()
    rows = []
    for frame in range(10):
        for spectrum in ("rgb", "tir"):
            image = Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8))
            image.convert("RGB" if spectrum == "rgb" else "L").save(folder / spectrum / f"{frame}.png")
        rows += [(f"{frame}.png", "car", x, 20, 30, side) for x, side in ((5, 40), (60, 24), (100, 8))]
    with (folder / "objects.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("frame", "kind", "x", "y", "width", "height"), *rows])
    return folder


def test_crops_are_split_by_frame_and_jittered_on_their_own(scene, tmp_path):
    manifest = real.write_crops(scene, tmp_path / "crops")
    dataset = load_dataset("manifest", manifest)
    assert dataset.modalities == ("rgb", "tir") and len(dataset.train) == 6 * 2 * real.VIEWS
    assert len(dataset.query) == len(dataset.gallery) == 4 * 2
    assert not {s.pid for s in dataset.train} & {s.pid for s in dataset.query}
    assert {s.pid // 2 for s in dataset.train} | {s.pid // 2 for s in dataset.query} == set(range(10))  # frames
    sizes = [[Image.open(image).size for image in sample.images] for sample in dataset.query]
    assert any(a != b for a, b in sizes)
    for sample, ((width, height), _) in zip(dataset.query, sizes, strict=True):
        box = 30, (40, 24)[sample.pid % 2]
        assert abs(width - box[0]) <= 0.2 * box[0] + 1 and abs(height - box[1]) <= 0.2 * box[1] + 1
    still = load_dataset("manifest", real.write_crops(scene, tmp_path / "still", 0.0))
    assert {Image.open(image).size for sample in still.query for image in sample.images} == {(30, 40), (30, 24)}


def test_what_is_searched_does_not_depend_on_the_views_that_are_trained_on(scene, tmp_path):
    few, many = (load_dataset("manifest", real.write_crops(scene, tmp_path / str(n), views=n)) for n in (1, 3))
    assert len(many.train) == 3 * len(few.train)
    for one, other in zip((*few.query, *few.gallery), (*many.query, *many.gallery), strict=True):
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one.images, other.images, strict=True))


def test_scenes_are_cut_inwards_and_apart_in_each_view_and_spectrum(tmp_path):
    for spectrum in real_scenes.MODALITIES:
        (tmp_path / spectrum).mkdir()
        ramp = np.add.outer(np.arange(100), np.arange(120)).astype(np.uint8)
        Image.fromarray(ramp).save(tmp_path / spectrum / "a.png")
    dataset = real_scenes.jittered(tmp_path, ["a.png"], seed=0)
    crops = [image for sample in (*dataset.query, *dataset.gallery) for image in sample.images]
    assert len({int(crop[0, 0, 0]) for crop in crops}) > 3  # other corners
    for crop in crops:
        assert 79 <= crop.shape[0] <= 100 and 95 <= crop.shape[1] <= 120
        assert (np.diff(crop[:, :, 0].astype(int), axis=1) == 1).all()  # cut, not resized


def test_one_stream_takes_every_image_as_a_sample(scene, tmp_path):
    dataset = load_dataset("manifest", real.write_crops(scene, tmp_path / "crops"))
    single = real.one_stream(dataset)
    assert single.modalities == ("image",) and len(single.query) == 2 * len(dataset.query)
    assert sorted(str(s.images[0]) for s in single.train) == sorted(str(i) for s in dataset.train for i in s.images)
    assert {s.camid: Path(str(s.images[0])).stem[-3:] for s in single.query} == {0: "rgb", 1: "tir"}


def test_hog_counts_directions_and_knows_no_contrast():
    ramp = Image.fromarray(np.tile(np.arange(0, 128, 2, dtype=np.uint8), (64, 1)))
    found = real.hog(ramp).reshape(64, 9)
    assert np.isclose(np.linalg.norm(found), 1) and np.allclose(found[:, 1:], 0) and (found[:, 0] > 0).all()
    darker = Image.fromarray(np.asarray(ramp) // 2)
    assert np.allclose(real.hog(darker), real.hog(ramp), atol=0.05)


def test_rows_without_the_data_say_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("NEXTREID_REAL", str(tmp_path))
    for module in (real, real_spectra, real_scenes):
        with pytest.raises(SystemExit, match="set NEXTREID_REAL to a folder"):
            next(module.run())


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "tno").is_dir(), reason="NEXTREID_REAL names no folder with tno")
def test_exchanged_spectra_are_told_on_real_pixels(monkeypatch):
    monkeypatch.setenv("NEXTREID_REAL", str(FOLDER))
    rows = {(row["planted"], row["pair"]): row for row in real_spectra.run()}
    assert not any(row["wrong"] for key, row in rows.items() if key[0] in ("none", "one"))
    for pair, least in (("rgb-nir", 15), ("rgb-tir", 24), ("nir-tir", 26)):  # of 29
        assert rows["one", pair]["found"] >= least
    assert rows["all", "nir-tir"]["found"] >= 24


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "roadscene").is_dir(), reason="NEXTREID_REAL names no folder with roadscene")
def test_alignment_leaks_through_crops_that_are_not_jittered(tmp_path):
    found = []
    for jitter in (0.0, real.JITTER):
        manifest = real.write_crops(FOLDER / "roadscene", tmp_path / str(jitter), jitter, views=1)
        dataset = load_dataset("manifest", manifest)
        found.append(real._shortcut(manifest.parent, replace(dataset, train=()), 0, 1).mAP)
    assert found[0] > found[1] + 0.1
