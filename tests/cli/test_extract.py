"""``nextreid extract`` with images that cannot be read."""

import csv

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
