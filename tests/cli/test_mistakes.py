"""The first mistakes of a new user: each gets one line that says what to do, status 2, and leaves nothing behind."""

import numpy as np
import pytest
from PIL import Image

from nextreid import create_model, save_model
from nextreid.cli import main

TRAIN = ("train", "--dataset", "synthetic-persons", "--model", "next_tiny")
SIX = ("--dataset-arg", "num_train=4", "num_test=2", "frames_per_visit=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user has it: images of three spectra, a file, an empty folder, a run, a corrupt image."""
    home = tmp_path_factory.mktemp("home")
    for modality in ("rgb", "nir", "tir"):
        for folder in ("images", "corrupt"):
            (home / folder / modality).mkdir(parents=True)
            Image.new("RGB", (8, 16), (90, 60, 30)).save(home / folder / modality / "a.png")
    (home / "corrupt" / "nir" / "a.png").write_bytes(b"torn")
    (home / "file").write_text("text")
    (home / "empty").mkdir()
    (home / "own.csv").write_text("rgb,nir,tir,pid,camid,split\n" + "images/rgb/a.png,,,1,1,test\n")
    deep = np.full((16, 8), 7500, np.uint16)
    (home / "deep" / "tir").mkdir(parents=True)
    Image.fromarray(deep).save(home / "deep" / "tir" / "a.png")
    for name in ("last", "best"):
        save_model(create_model("baseline_tiny"), home / "run" / name)
    return home


@pytest.fixture
def answer(place, capsys, monkeypatch):
    """Run a command in the user's folder; return (status, stdout, stderr), having checked that nothing was left."""
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))

    def answer(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as done:  # of argparse
            status = done.code
        out, err = capsys.readouterr()
        assert sorted(place.rglob("*")) == before
        return status, out, err

    return answer


MISTAKES = [
    # names
    (["demos"], "did you mean demo?"),
    (["data", "chek", "images"], "did you mean check?"),
    (["train", "--modle", "next_tiny"], "did you mean --model?"),
    ([*TRAIN, "--out", "r", "--epochs", "0"], "--set epochs=50"),
    ([*TRAIN, "--out", "r", "--model", "next_tinny"], "Did you mean 'next_tiny'"),
    (["extract", "next_tinny", "images", "--out", "v"], "did you mean next_tiny"),
    (["extract", "next_tiny", "images/rgb/a.png", "--out", "v"], "is an image: name the folder above rgb, nir and tir"),
    (["data", "check", "images/rgb/a.png"], "is an image: name the folder above rgb, nir and tir"),
    (["extract", "images", "images", "--out", "v"], "training writes one, RUN/last"),
    (["export", "next_tinny", "--out", "m.onnx"], "did you mean next_tiny"),
    (["models", "next_tinny"], "did you mean next_tiny"),
    ([*TRAIN, "--out", "r", "--dataset", "synthetic-person"], "Did you mean 'synthetic-persons' or"),
    (["data", "check", "rgbnt20"], "Did you mean 'rgbnt201'"),
    (["data", "card", "rgbnt20"], "Did you mean 'rgbnt201'"),
    ([*TRAIN, "--out", "r", "--recipe", "tinny"], "Did you mean 'tiny'?"),
    ([*TRAIN, "--out", "r", "--set", "epoch=3"], "Did you mean 'epochs'?"),
    (["eval", "run/last", *TRAIN[1:3], *SIX, "--missing", "tirr"], "Did you mean 'tir'?"),
    (["eval", "run/last", *TRAIN[1:3], *SIX, "--protocol", "camra"], "Did you mean 'camera'?"),
    # numbers
    ([*TRAIN, *SIX, "--out", "r", "--set", "epochs=0"], "'epochs' is 0; it must be at least 1"),
    ([*TRAIN, *SIX, "--out", "r", "--set", "num_ids=-2"], "'num_ids' is -2; it must be at least 2"),
    ([*TRAIN, *SIX, "--out", "r", "--seeds", "0"], "the number of seeds must be at least 1, got 0"),
    (["extract", "run/last", "images", "--out", "v", "--batch-size", "-3"], "batch_size must be at least 1, got -3"),
    (["extract", "run/last", "images", "--out", "v", "--workers", "-1"], "workers must be 0"),
    (["extract", "run/last", "images", "--out", "v", "--device", "cuda:7"], "take --device cpu"),
    (["extract", "run/last", "images", "--out", "v", "--device", "gpu"], "devices are cpu, cuda"),
    # places to read
    ([*TRAIN, "--out", "r", "--dataset", "rgbnt201"], "(--root)"),
    ([*TRAIN, "--out", "r", "--dataset", "rgbnt201", "--root", "nowhere"], "no RGBNT201 in nowhere (there is no such"),
    ([*TRAIN, "--out", "r", "--dataset", "rgbnt201", "--root", "empty"], "expected RGBNT201/{train_171,test}"),
    ([*TRAIN, "--out", "r", "--dataset", "list.csv"], "no file and no folder list.csv"),
    ([*TRAIN, "--out", "r", "--dataset", "manifest", "--root", "images"], "a manifest is a CSV or parquet file"),
    ([*TRAIN, "--out", "r", "--dataset", "images"], "--pattern"),
    ([*TRAIN, "--out", "r", "--dataset", "own.csv", "--root", "images"], "leave it out"),
    (["extract", "run/last", "nowhere", "--out", "v"], "no folder and no manifest at nowhere"),
    (["extract", "run/last", "empty", "--out", "v"], "found nothing"),
    (["extract", "run/last", "images/rgb", "--out", "v"], "rgb holds one modality: name the folder above it"),
    (["extract", "run/last", "images", "--out", "v", "--captions", "nowhere"], "there is no such folder"),
    (["extract", "run/last", "own.csv", "--out", "v", "--pattern", "{*}.png"], "a pattern is for a folder"),
    (["extract", "run/last", "corrupt", "--out", "v"], "corrupt/nir/a.png"),
    (["extract", "run/last", "deep", "--out", "v"], "window"),
    (["extract", "run/last", "deep", "--out", "v", "--window", "tir=9000,7000"], "low below high, got (9000, 7000)"),
    (["extract", "run/last", "deep", "--out", "v", "--window", "heat=1,2"], "the modalities are ('rgb', 'nir', 'tir')"),
    (["eval", "run/last", "--dataset", "own.csv", "--dataset-arg", 'modalities=["tir","rgb"]'], "reads rgb, nir, tir"),
    # checkpoints
    (["eval", "run", *TRAIN[1:3], *SIX], "run is the folder of a run, take run/last or run/best"),
    (["export", "run", "--out", "m.onnx"], "take run/last or run/best"),
    (["models", "verify", "run"], "take run/last or run/best"),
    (["extract", "empty", "images", "--out", "v"], "it needs config.json and model.safetensors"),
    (["extract", "own.csv", "images", "--out", "v"], "own.csv is a file; a checkpoint is a folder"),
    # places to write
    ([*TRAIN, "--out", "images"], "images holds other things (nir, rgb, tir)"),
    ([*TRAIN, "--out", "file"], "file is a file; name a folder"),
    ([*TRAIN, "--out", "images", "--seeds", "2"], "images holds other things"),
    (["extract", "run/last", "images", "--out", "images"], "images holds other things"),
    (["extract", "run/last", "images", "--out", "file"], "file is a file; name a folder"),
    (["demo", "--out", "images"], "images holds other things"),
    (["export", "run/last", "--out", "file/m.onnx"], "file is a file"),
    (["export", "run/last", "--out", "images"], "images is a folder; name a file"),
    (["eval", "run/last", *TRAIN[1:3], *SIX, "--json", "file/r.json"], "file is a file"),
    (["eval", "run/last", *TRAIN[1:3], *SIX, "--save-queries", "images"], "images holds other things"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: value if isinstance(value, str) else None)
def test_one_line_says_what_to_do(words, said, answer):
    status, out, err = answer(*words)
    *before, last = err.splitlines()
    assert (status, out) == (2, "") and "Traceback" not in err
    assert last.startswith("nextreid") and said in last, last
    assert all(line.startswith(("usage:", " ", "WARNING ")) for line in before), err


def test_clip_without_a_network_is_one_line(answer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, out, err = answer("extract", "next_clip_b16", "images", "--out", "v")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("nextreid extract: ") and "HF_ENDPOINT" in err
