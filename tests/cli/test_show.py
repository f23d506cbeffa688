"""``nextreid show``, and ``nextreid eval`` of several models: pictures, tables, mistakes."""

import json

import pytest
from PIL import Image

from nextreid.cli import main, show
from nextreid.viz import STYLES

DATA = ("--dataset", "synthetic-persons", "--dataset-arg", "num_train=0", "num_test=3", "frames_per_visit=2")


def run(*words):
    return main([str(word) for word in (*words, *DATA, "--device", "cpu", "--no-progress")])


def test_rank_lists_of_two_models(tmp_path, capsys):
    out = tmp_path / "ranks.pdf"
    line = ("show", "ranks", "next_tiny", "baseline_tiny", "--queries", "differ", "--count", "1", "--top", "3")
    assert run(*line, "--image-size", "32", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out) and out.read_bytes().startswith(b"%PDF")
    assert run(*line, "--out", out) == 2 and "--overwrite" in capsys.readouterr().err


def test_masks_of_an_expert(tmp_path, capsys):
    out = tmp_path / "experts.png"
    assert run("show", "experts", "next_tiny", "--count", "1", "--image-size", "32", "--out", out) == 0
    assert Image.open(out).width > 400
    assert run("show", "experts", "baseline_tiny", "--view", "sampled", "--out", tmp_path / "no.png") == 2
    assert "it can show rollout" in capsys.readouterr().err and not (tmp_path / "no.png").exists()


def test_plots_say_what_they_show(tmp_path, capsys):
    line = ("baseline_tiny", "--style", "print", "--out")
    assert run("show", "space", *line, tmp_path / "space.svg") == 0
    assert run("show", "scores", *line, tmp_path / "scores.pdf") == 0
    path, caption, other, more = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "space.svg") and caption.startswith("synthetic-persons, all 3 identities")
    assert other == str(tmp_path / "scores.pdf") and "No model is calibrated" in more
    assert run("show", "scores", "baseline_tiny", "--calibration", tmp_path, "--out", tmp_path / "a.png") == 2
    assert "'nextreid calibrate' makes it" in capsys.readouterr().err


def test_styles_are_those_there_are():
    assert set(show._STYLES) == set(STYLES)


def test_captions_and_training_need_no_model(tmp_path, capsys):
    out = tmp_path / "captions.png"
    assert main(["show", "captions", *DATA, "--out", str(out)]) == 0
    assert "Captions of synthetic-persons: " in capsys.readouterr().out and Image.open(out).format == "PNG"
    assert main(["show", "captions", "--out", str(tmp_path / "a.png")]) == 2
    assert "name a FOLDER of captions, or a dataset" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "loss": {"total": 2.0}, "lr": {"new": 0.1}}')
    line = ["show", "training", str(tmp_path / "run"), "--out", str(tmp_path / "training.pdf")]
    assert main(line) == 0 and "run: 1 epoch(s)" in capsys.readouterr().out
    assert main(["show", "training", str(tmp_path), "--out", str(tmp_path / "b.png")]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x.doc"), "use .png, .jpg, .pdf or .svg"),
        (("--out", "x.png", "--queries", "wurst"), "Did you mean 'worst'?"),
        (("--out", "x.png", "--image-size", "9000"), "16 to 2048"),
        (("--out", "x.png", "--missing", "rbg"), "Did you mean 'rgb'?"),
    ],
)
def test_mistakes_say_what_to_do(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("show", "ranks", "baseline_tiny", *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_several_models_are_compared_with_the_first(tmp_path, capsys):
    file = tmp_path / "both.json"
    assert run("eval", "baseline_tiny", "next_tiny", "--json", file) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split()[:2] == ["model", "captions"] and table[1].startswith("baseline_tiny  no")
    assert table[2].startswith("next_tiny") and "p = " in table[2]
    written = json.loads(file.read_text())
    first, second = (model["results"][0]["mAP"] for model in written["models"])
    (difference,) = written["differences"]
    assert difference["value"] == pytest.approx(second - first) and difference["to"] == "baseline_tiny"
    assert run("eval", "baseline_tiny", "baseline_tiny") == 2
    assert "named twice" in capsys.readouterr().err
    assert run("eval", "baseline_tiny", "next_tiny", "--cross") == 2
    assert "name one checkpoint" in capsys.readouterr().err
