"""``nextreid export``."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nextreid import create_model, save_model
from nextreid.cli import export as command
from nextreid.cli import main
from nextreid.engine.exporter import FORMATS


@pytest.fixture
def checkpoint(tmp_path):
    tower = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_model(
        create_model("baseline_tiny", image_tower_args=tower, img_size=(16, 16), embed_dim=32), tmp_path / "model"
    )
    return tmp_path / "model"


def export(checkpoint, *more):
    return main([str(word) for word in ("export", checkpoint, "--out", checkpoint.with_name("model.pt2"), *more)])


def test_formats_are_those_of_the_engine():
    assert set(command.FORMATS) == set(FORMATS)


def test_a_checkpoint_becomes_a_file_compared_on_images(checkpoint, tmp_path, capsys):
    for number, modality in enumerate(("rgb", "nir", "tir")):
        (tmp_path / "images" / modality).mkdir(parents=True)
        for name in "abc":
            pixels = np.random.default_rng(number + ord(name)).integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / modality / f"{name}.png")
    assert export(checkpoint, "--format", "torch_export", "--check", tmp_path / "images", "--raw") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'model.pt2'}: images, present to embeddings of 96 numbers"
    assert second.startswith(
        f"against the model on 24 synthetic samples and 3 of {tmp_path / 'images'}: lowest cosine "
    )
    run = torch.export.load(tmp_path / "model.pt2").module()
    batch = {"images": torch.randn(1, 3, 3, 16, 16), "present": torch.ones(1, 3, dtype=torch.bool)}
    with torch.no_grad():
        expected = create_model(f"local-dir:{checkpoint}").eval()(**batch)
    torch.testing.assert_close(run(**batch), expected)
    assert export(checkpoint, "--format", "torch_export") == 2 and "--overwrite" in capsys.readouterr().err
    assert export(checkpoint, "--format", "torch_export", "--overwrite") == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_what_is_wrong_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    assert export(checkpoint, "--format", "torch_export", "--check", tmp_path / "nowhere") == 2
    assert "no folder and no manifest at" in capsys.readouterr().err
    write, read = FORMATS["torch_export"]
    monkeypatch.setitem(FORMATS, "torch_export", (write, lambda path: lambda batch: -read(path)(batch)))
    assert export(checkpoint, "--format", "torch_export") == 2
    assert "model.pt2 was not written: its embeddings are not the model's" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export(checkpoint) == 2
    assert "ONNX files need onnxscript: pip install 'nextreid[export]', or use torch_export" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
