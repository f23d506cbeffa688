"""The demo's smallest form: everything it promises is there, it repeats, and it overwrites only itself."""

import json

import pytest
from PIL import Image

from nextreid.engine.demo import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    lines = []
    return out, run_demo(out, seed=3, smoke=True, write_line=lines.append), lines


def test_everything_is_written(demo):
    out, metrics, lines = demo
    assert json.loads((out / "metrics.json").read_text()) == metrics
    for name in ("rank_list.png", "masks.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "next_tiny" in page
    assert (out / "runs" / "next_tiny" / "last" / "model.safetensors").is_file()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    table = next(line for line in lines if "captions at test" in line)
    assert "without tir" in table and table.count("baseline_tiny") == 2


def test_every_condition_is_measured_on_unseen_identities(demo):
    _, metrics, _ = demo
    trained = [row for row in metrics["results"] if row["stage"] == "trained"]
    asked = {(row["model"], row["text"], *row["missing"]) for row in trained}
    conditions = [(), ("rgb",), ("nir",), ("tir",)]
    expected = {("baseline_tiny", False, *c) for c in conditions}
    expected |= {("next_tiny", text, *c) for text in (True, False) for c in conditions}
    assert asked == expected and len(trained) == 12
    assert all(row["protocol"] == "synthetic-persons" and row["valid_queries"] == row["queries"] for row in trained)


def test_the_same_seed_gives_the_same_numbers(demo, tmp_path):
    _, metrics, _ = demo
    again = run_demo(tmp_path / "again", seed=3, smoke=True)
    assert again["results"] == metrics["results"]


def test_shipped_weights_are_shown_without_training(demo, tmp_path):
    _, metrics, _ = demo
    lines = []
    shown = run_demo(tmp_path / "out", seed=3, smoke=True, pretrained=True, write_line=lines.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "report.html",
        "rank_list.png",
        "masks.png",
    }
    assert shown["recipe"] is None and shown["size"]["num_train"] == 0
    assert all(record["dataset"] == "synthetic-persons" for record in shown["weights"].values())
    asked = [(row["model"], row["text"], row["missing"]) for row in shown["results"]]
    trained = [row for row in metrics["results"] if row["stage"] == "trained"]
    assert asked == [(row["model"], row["text"], row["missing"]) for row in trained]
    assert all(row["dataset"] == "synthetic-persons" for row in shown["results"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "bundled weights" in page and "text tower is random" not in page
    other = run_demo(tmp_path / "out", seed=4, smoke=True, pretrained=True)  # replaces the folder as a whole
    assert other["results"] != shown["results"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["seed"] == 4


def test_a_folder_that_no_demo_wrote_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match="no demo wrote it"):
        run_demo(tmp_path / "photos", smoke=True)
    assert (tmp_path / "photos" / "a.jpg").exists()
