"""``nextreid models``: lists, and verifies folders by exit status."""

import pytest

from nextreid import create_model, list_models, save_model, save_pretrained
from nextreid.cli import main


def test_models_are_listed(capsys):
    assert main(["models", "*_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_models("*_tiny")
    assert main(["models", "nothing_*"]) == 2
    assert "no model matches 'nothing_*'" in capsys.readouterr().err


def test_verify_says_what_differs_by_exit_status(tmp_path, capsys):
    good = save_pretrained(create_model("baseline_tiny"), tmp_path / "good")
    assert main(["models", "verify", str(good)]) == 0
    out = capsys.readouterr().out
    assert str(good) in out and "ok    golden embedding" in out and "FAIL" not in out
    old = save_model(create_model("baseline_tiny"), tmp_path / "old")
    assert main(["models", "verify", str(good), str(old)]) == 1
    assert "FAIL  SHA256SUMS: missing" in capsys.readouterr().out
    weights = good / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["models", "verify", str(good)]) == 1
    assert "FAIL  model.safetensors: SHA-256 differs" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "named"), [(["verify"], "needs a checkpoint"), (["verify", "x"], "no checkpoint")])
def test_verify_explains_mistakes(words, named, capsys):
    assert main(["models", *words]) == 2
    assert named in capsys.readouterr().err
