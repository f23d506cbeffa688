"""The demo on a user's own images: what is measured where identities are known, and what is said where not."""

import json

import numpy as np
import pytest
from PIL import Image

from nextreid.data import load_dataset
from nextreid.engine import evaluate
from nextreid.engine.demo_images import run_demo_on_images
from nextreid.models import create_model
from nextreid.synthetic import synthetic_persons


@pytest.fixture(scope="module")
def models():
    return {name: create_model(name, pretrained=True) for name in ("baseline_tiny", "next_tiny")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four persons, twice each, in RGB and TIR; one file is damaged."""
    root = tmp_path_factory.mktemp("photos")
    persons = synthetic_persons("tiny", num_train=0, num_test=4, frames_per_visit=1).dataset
    first = {}
    for i, sample in enumerate(persons.query):
        first.setdefault(sample.pid, []).append(i)
    for i in (i for seen in first.values() for i in seen[:2]):
        sample = persons.query[i]
        for modality, image in zip(persons.modalities, sample.images, strict=True):
            if modality != "nir":
                file = root / f"p{sample.pid}" / modality / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
    (root / f"p{persons.query[0].pid}" / "rgb" / "damaged.png").write_bytes(b"no image")
    return root


def test_identities_that_are_folders_are_measured(photos, models, tmp_path):
    lines = []
    metrics = run_demo_on_images(photos, tmp_path / "out", models, write_line=lines.append)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "report.html",
        "rank_list.png",
        "masks.png",
    }
    asked = [(row["model"], row["missing"]) for row in metrics["results"]]
    assert asked == [(name, missing) for name in models for missing in ([], ["rgb"], ["tir"])]  # nobody has nir
    dataset = load_dataset("folder", photos).drop_unreadable("skip")
    alone = evaluate(models["next_tiny"], dataset, text=False)
    assert metrics["results"][3]["mAP"] == alone.result.mAP and 0 < metrics["chance"] < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "drawn images (synthetic-persons)" in page and "damaged.png" in page and str(photos) in page
    assert page.count("data:image/png;base64,") == 2
    assert any("without tir" in line and "without nir" not in line for line in lines)


def test_without_identities_the_nearest_are_shown(models, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (30 + i, 50, 3), np.uint8)).save(tmp_path / "flat" / f"{i}.jpg")
    metrics = run_demo_on_images(tmp_path / "flat", tmp_path / "out", {"b": models["baseline_tiny"]})
    assert metrics["results"] == [] and metrics["chance"] is None
    assert "nothing can be measured" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "masks.png").exists()  # a model without semantic experts


def test_what_cannot_be_shown_is_named(models, photos, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    Image.new("RGB", (8, 8)).save(one / "a.png")
    with pytest.raises(ValueError, match="1 images that can be read; the demo takes 2 to 20,000"):
        run_demo_on_images(one, tmp_path / "out", models)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_demo_on_images(tmp_path / "nowhere", tmp_path / "out", models)
    with pytest.raises(ValueError, match="read the same modalities"):
        run_demo_on_images(photos, tmp_path / "out", {**models, "rgb": create_model("next_tiny", modalities=("rgb",))})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").touch()
    with pytest.raises(OSError, match="mine"):
        run_demo_on_images(photos, tmp_path / "mine", models)


def test_images_that_cannot_be_read_are_said_with_the_reason(models, tmp_path, caplog):
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.full((9, 9), 7000, np.uint16)).save(tmp_path / "deep" / "a.png")
    with pytest.raises(ValueError, match="0 images that can be read"):
        run_demo_on_images(tmp_path / "deep", tmp_path / "out", models)
    assert "a.png" in caplog.text and "more than 8 bits" in caplog.text
