"""``nextreid extract`` with images that cannot be read."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from nextreid import create_model, save_model
from nextreid.cli import main


@pytest.fixture
def source(tmp_path):
    for number, modality in enumerate(("rgb", "nir", "tir")):
        (tmp_path / "images" / modality).mkdir(parents=True)
        for name in "abc":
            pixels = np.random.default_rng(number + ord(name)).integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / modality / f"{name}.png")
    (tmp_path / "images" / "nir" / "b.png").write_bytes(b"torn")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("policy", "present"),
    [
        ("raise", None),
        ("skip", ["rgb+nir+tir", "rgb+nir+tir"]),
        ("mask", ["rgb+nir+tir", "rgb+tir", "rgb+nir+tir"]),
    ],
)
def test_a_bad_image_follows_the_policy(source, tmp_path, capsys, policy, present):
    save_model(create_model("baseline_tiny"), tmp_path / "model")
    words = ["extract", tmp_path / "model", source, "--out", tmp_path / "out", "--on-error", policy, "--device", "cpu"]
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    if present is None:
        assert status == 2 and "b.png" in err and "nir" in err and not (tmp_path / "out").exists()
    else:
        assert status == 0 and out.startswith(f"{len(present)} embeddings of ")
        with (tmp_path / "out" / "index.csv").open() as file:
            assert [row["present"] for row in csv.DictReader(file)] == present


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(create_model("baseline_tiny"), tmp_path_factory.mktemp("extract") / "model"))


@pytest.fixture
def extract(model, tmp_path, capsys):
    """Extract a folder or manifest; return the rows of the index."""

    def extract(source, *more):
        words = ["extract", model, source, "--out", tmp_path / "out", "--device", "cpu", "--overwrite", *more]
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
        with (tmp_path / "out" / "index.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return extract


def write(path, value=100, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 10), value, kind)).save(path)


def test_folders_above_and_below_those_of_the_modalities(extract, tmp_path, caplog):
    for path in ("monday/rgb/a.png", "monday/TH/a.png", "tuesday/VIS/gate/a.png", "notes/rgb.png"):
        write(tmp_path / "images" / path)
    rows = extract(tmp_path / "images")
    assert [(row["key"], row["present"]) for row in rows] == [
        ("monday/a.png", "rgb+tir"),
        ("tuesday/gate/a.png", "rgb"),
    ]
    assert "1 files left out" in caplog.text and "2 of 2 samples lack nir" in caplog.text


def test_a_pattern_reads_labels_from_names(extract, tmp_path):
    for path in ("0007_c2/rgb.png", "0007_c2/nir.png", "0008_c1/rgb.png"):
        write(tmp_path / "images" / path)
    rows = extract(tmp_path / "images", "--pattern", "{pid}_c{camid}/{modality}.{ext}")
    assert [(row["pid"], row["camid"], row["present"]) for row in rows] == [("7", "2", "rgb+nir"), ("8", "1", "rgb")]


def test_labels_that_are_words_stay_words(extract, tmp_path):
    for path in ("Zoe_left/rgb.png", "ann_right/rgb.png"):
        write(tmp_path / "images" / path)
    by_pattern = extract(tmp_path / "images", "--pattern", "{pid:word}_{camid:word}/{modality}.{ext}")
    table = "rgb;pid;camid;sceneid;split\n{0}ann_right/rgb.png;ann;right;7;query\n{0}Zoe_left/rgb.png;Zoe;;8;train\n"
    (tmp_path / "list.csv").write_text(table.format("images/"))
    by_manifest = extract(tmp_path / "list.csv")
    labels = [[(row["pid"], row["camid"], row["sceneid"]) for row in rows] for rows in (by_pattern, by_manifest)]
    assert labels[0] == [("Zoe", "left", "-1"), ("ann", "right", "-1")]
    assert labels[1] == [("ann", "right", "7"), ("Zoe", "-1", "8")]


@pytest.mark.parametrize("window", ["tir=7000,9000", "tir=minmax"])
def test_a_window_reads_thermal_images_of_16_bits(extract, tmp_path, window):
    write(tmp_path / "images" / "tir" / "a.png", 7900, np.uint16)
    assert [row["present"] for row in extract(tmp_path / "images", "--window", window)] == ["tir"]


def test_captions_of_a_run_belong_to_the_images(extract, tmp_path, monkeypatch):
    write(tmp_path / "images" / "rgb" / "a.png")
    captions = tmp_path / "captions" / "all_RGB.json"
    captions.parent.mkdir()
    captions.write_text(json.dumps([{"item": "a.png", "description": "A man. He runs."}]))
    seen = []
    monkeypatch.setattr("nextreid.engine.extraction.reads_text", lambda _, samples, condition: seen.extend(samples))
    extract(tmp_path / "images", "--captions", captions.parent)
    assert seen[0].captions == (("A man.", "He runs."), (), ())
