"""``nextreid train``: what it prints, over seeds, with bad images, and by two processes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nextreid.cli import main
from nextreid.cli.arguments import pick_device
from nextreid.data import load_dataset

DATA = ("--dataset", "synthetic-persons", "--dataset-arg", "num_train=4", "num_test=4", "frames_per_visit=4")
FIELDS = ("num_ids=2", "num_instances=2", "eval_every=1", "warmup_epochs=0")


def words(out, *more, model="baseline_tiny", epochs=1):
    fields = (*FIELDS, f"epochs={epochs}")
    line = ("train", "--model", model, *DATA, "--set", *fields, "--out", out, "--no-progress", "--device", "cpu", *more)
    return [str(word) for word in line]


@pytest.fixture
def run(capsys):
    def run(*line):
        capsys.readouterr()
        status = main(list(line))
        return status, *capsys.readouterr()

    return run


def test_last_with_captions_and_without_and_best(run, tmp_path):
    status, out, _ = run(*words(tmp_path / "run", model="next_tiny", epochs=2))
    assert status == 0
    last, without, best, place = out.splitlines()
    assert last.startswith("last epoch 2: ") and "with captions at test" in last
    assert without.startswith("last epoch 2: ") and "no captions at test" in without
    assert best.startswith("best epoch (chosen by these very metrics) ") and place == f"run folder: {tmp_path / 'run'}"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert "evaluation_without_text" not in rows[0]
    for line, name in ((last, "evaluation"), (without, "evaluation_without_text")):
        assert f"mAP {100 * rows[1][name]['mAP']:.1f}  " in line
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    told = config["pretrained_cfg"]["trained_on"]
    described = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert told == {
        "dataset": "synthetic-persons",
        "digest": described["dataset"]["digest"],
        "protocol": "synthetic-persons",
        "recipe": "tiny",
        "seed": 0,
        "epoch": 2,
        "epochs": 2,
        "epoch_rule": "last",
    }
    measured = {name: rows[1]["evaluation"][name] for name in ("mAP", "rank-1", "rank-5", "rank-10", "mINP")}
    assert config["pretrained_cfg"]["metrics"] == measured
    assert config["pretrained_cfg"]["protocol"] == "synthetic-persons"
    assert described["dataset"]["source"] == {
        "root": "synthetic-persons",
        "pattern": None,
        "captions": None,
        "options": "num_train=4 num_test=4 frames_per_visit=4",
    }


def test_seeds_print_mean_and_spread(run, tmp_path):
    status, out, _ = run(*words(tmp_path / "runs", "--seeds", "2"))
    last, best, place = out.splitlines()
    number = r"\d+\.\d ± \d+\.\d"
    assert status == 0 and re.match(rf"last epoch: mAP {number}  rank-1 {number}  ", last)
    assert best.startswith("best epoch (chosen by these very metrics): mAP ") and "no captions at test]" in best
    assert place == f"2 seeds: 0, 1; run folder: {tmp_path / 'runs'}"
    alone = run(*words(tmp_path / "alone"))[0]
    assert alone == 0  # the first of the seeds is the plain run
    one, two = (load_file(f / "last" / "model.safetensors") for f in (tmp_path / "alone", tmp_path / "runs" / "seed0"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert run(*words(tmp_path / "runs", "--seeds", "2"))[0] == 2
    assert run(*words(tmp_path / "runs", "--seeds", "2", "--resume"))[1] == out


def test_a_bad_image_follows_the_policy(run, tmp_path, monkeypatch):
    real = load_dataset

    def spoilt(*args, **kwargs):
        data = real(*args, **kwargs)
        (tmp_path / "broken.jpg").write_bytes(b"no image")
        first = replace(data.train[0], images=(tmp_path / "broken.jpg", *data.train[0].images[1:]))
        return replace(data, train=(first, *data.train[1:]))

    monkeypatch.setattr("nextreid.data.load_dataset", spoilt)
    status, _, err = run(*words(tmp_path / "raise", epochs=3))
    assert status == 2 and "broken.jpg" in err and "rgb" in err
    for policy, left in (("skip", -1), ("mask", 0)):
        status, _, _ = run(*words(tmp_path / policy, "--on-error", policy))
        described = json.loads((tmp_path / policy / "recipe.json").read_text())["dataset"]
        whole = real("synthetic-persons", num_train=4, num_test=4, frames_per_visit=4)
        assert status == 0 and described["train"] == len(whole.train) + left
        assert len(described["notes"]) == len(whole.notes) + 1


def test_each_process_of_a_machine_gets_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: torch.zeros(()))
    assert pick_device(None) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (pick_device(None), pick_device("cuda"), pick_device("cuda:0"), pick_device("cpu")) == (
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    )
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine finds 2 GPUs"):
        pick_device(None)


@pytest.mark.slow
def test_torchrun_trains_as_one_process_and_prints_once(run, tmp_path):
    assert run(*words(tmp_path / "one"))[0] == 0
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nextreid"]
    done = subprocess.run(
        [*line, *words(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [text.split(" ")[0] for text in done.stdout.splitlines()] == ["last", "best", "run"]
    one, two = (json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-2)  # other features are dropped in the second process


@pytest.mark.slow
def test_torchrun_ends_when_one_process_cannot_go_on(tmp_path):
    """The second process cannot read an image; the first waits for it, and is ended."""
    script = tmp_path / "spoilt.py"
    script.write_text(
        "import sys, os\nfrom nextreid.cli import main\nimport nextreid.data.loader as loader\n"
        "real = loader.SampleDataset.__getitem__\n"
        "def get(self, *item):\n"
        "    if os.environ['RANK'] == '1': raise ValueError('cannot read that.jpg')\n"
        "    return real(self, *item)\n"
        "loader.SampleDataset.__getitem__ = get\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*line, *words(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode != 0 and "nextreid train: cannot read that.jpg" in done.stderr


def test_a_text_cache_needs_a_text_tower(run, tmp_path):
    path = str(tmp_path / "texts.safetensors")
    status, _, error = run(*words(tmp_path / "run", model="baseline_tiny", epochs=1), "--text-cache", path)
    assert status != 0 and "baseline_tiny has no text tower" in error
    status, _, _ = run(*words(tmp_path / "run", model="next_tiny", epochs=1), "--text-cache", path)
    assert status == 0 and (tmp_path / "texts.safetensors").is_file()
