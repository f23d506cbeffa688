"""The demo's smallest form: everything it promises is there, it repeats, and it overwrites only itself."""

import json

import pytest
from PIL import Image

from nextreid.data.pattern import read_folder
from nextreid.engine import demo as demo_module
from nextreid.engine.demo import run_demo
from nextreid.retrieval import Comparison
from nextreid.retrieval.significance import Interval


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    lines = []
    return out, run_demo(out, seed=3, smoke=True, train=True, write_line=lines.append), lines


def test_everything_is_written(demo):
    out, metrics, lines = demo
    assert json.loads((out / "metrics.json").read_text()) == metrics
    for name in ("rank_list.png", "masks.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "next_tiny" in page
    assert (out / "runs" / "next_tiny" / "last" / "model.safetensors").is_file()
    assert len(read_folder(out / "images")) == 4
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    table = next(line for line in lines if "captions at test" in line)
    assert "without tir" in table and table.strip().partition("\n\n")[0].count("baseline_tiny") == 2


def test_every_condition_is_measured_on_unseen_identities(demo):
    _, metrics, _ = demo
    trained = [row for row in metrics["results"] if row["stage"] == "trained"]
    asked = {(row["model"], row["text"], *row["missing"]) for row in trained}
    conditions = [(), ("rgb",), ("nir",), ("tir",)]
    expected = {("baseline_tiny", False, *c) for c in conditions}
    expected |= {("next_tiny", text, *c) for text in (True, False) for c in conditions}
    assert asked == expected and len(trained) == 12
    assert all(row["protocol"] == "synthetic-persons" and row["valid_queries"] == row["queries"] for row in trained)


def test_a_stopped_training_is_continued_to_the_same_numbers(demo, tmp_path, monkeypatch):
    _, metrics, _ = demo
    train = demo_module.train_model

    def stop_at_next(model, *args, **options):
        if model.pretrained_cfg.architecture == "next_tiny":
            raise KeyboardInterrupt
        return train(model, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo_module, "train_model", stop_at_next)
        run_demo(tmp_path / "out", seed=3, smoke=True, train=True)
    first = tmp_path / "out" / "runs" / "baseline_tiny" / "last" / "model.safetensors"
    before = first.stat().st_mtime_ns
    done = run_demo(tmp_path / "out", seed=3, smoke=True, train=True)
    assert done["results"] == metrics["results"] and first.stat().st_mtime_ns == before


def test_runs_with_other_settings_begin_anew(tmp_path):
    for seed, kept in ((1, False), (1, True), (2, False)):
        runs = demo_module._open_runs(tmp_path, {"seed": seed, "size": (1, 2)})
        assert (runs / "next_tiny").exists() == kept
        (runs / "next_tiny").mkdir(exist_ok=True)


def test_the_verdict_knows_how_sure_it_is(demo):
    _, metrics, lines = demo
    comparison = metrics["comparison"]
    assert 0 < comparison["p_value"] <= 1 and comparison["difference"]["identities"] == 4
    (told,) = [line for line in lines if "No winner" in line or "wins over" in line]
    assert ("wins over" in told) == (comparison["p_value"] <= 0.05)
    assert 0 < metrics["chance"] < 1 and f"gives {100 * metrics['chance']:.1f} %" in " ".join(told.split())


@pytest.mark.parametrize(
    ("p", "difference", "said"),
    [
        (0.04, 0.1, "next_tiny wins over baseline_tiny by 10.0 points"),
        (0.04, -0.1, "baseline_tiny wins over next_tiny by 10.0 points"),
        (0.06, -0.1, "No winner: baseline_tiny is ahead of next_tiny by 10.0 points"),
    ],
)
def test_who_won(p, difference, said):
    interval = Interval(difference, difference - 0.05, difference + 0.05, 0.95, 10, 32)
    assert demo_module._verdict(Comparison("mAP", 0.5, 0.5 + difference, interval, p), 32).startswith(said)


def test_shipped_weights_are_shown_without_training(demo, tmp_path):
    _, metrics, _ = demo
    lines = []
    shown = run_demo(tmp_path / "out", seed=3, smoke=True, write_line=lines.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "report.html",
        "rank_list.png",
        "masks.png",
        "images",
    }
    assert shown["recipe"] is None and shown["size"]["num_train"] == 0
    assert all(record["dataset"] == "synthetic-persons" for record in shown["weights"].values())
    asked = [(row["model"], row["text"], row["missing"]) for row in shown["results"]]
    trained = [row for row in metrics["results"] if row["stage"] == "trained"]
    assert asked == [(row["model"], row["text"], row["missing"]) for row in trained]
    assert all(row["dataset"] == "synthetic-persons" for row in shown["results"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "bundled weights" in page and "not for images of real persons" in page
    other = run_demo(tmp_path / "out", seed=4, smoke=True)  # replaces its files
    assert other["results"] != shown["results"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["seed"] == 4


def test_a_folder_that_no_demo_wrote_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match="holds other things"):
        run_demo(tmp_path / "photos", smoke=True)
    assert (tmp_path / "photos" / "a.jpg").exists()
