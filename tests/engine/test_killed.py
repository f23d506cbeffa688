"""Runs that are killed, or whose disk is full, and end as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nextreid import _files
from nextreid._files import read_tensors
from nextreid.engine import get_recipe, train
from nextreid.models import create_model

HERE = Path(__file__).parent


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["epoch"], row["loss"], row["evaluation"]["mAP"]) for row in rows]


def killed(out, kills):
    """Run with kills; return the exit statuses of the attempts."""
    words = [sys.executable, str(HERE / "killed.py"), str(HERE / "conftest.py"), str(out), json.dumps(kills)]
    done = subprocess.run(words, cwd=HERE.parents[1], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """The same run, undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = create_model("baseline_tiny")
    recipe = get_recipe("tiny", epochs=3, num_ids=3, warmup_epochs=1, eval_every=1)
    report = train(model, dataset, recipe, tmp_path_factory.mktemp("whole") / "run", progress=False)
    return report.folder


def check(folder, whole, kills):
    statuses, errors = killed(folder, kills)
    assert statuses == [-9] * len(kills) + [0], errors
    assert losses(folder) == losses(whole)
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.slow
def test_a_run_killed_in_its_writes_ends_as_the_undisturbed_one(whole, tmp_path):
    """Files of an epoch: best, last, metrics, state; each takes several steps on the disk."""
    model, state = "model.safetensors", "state.safetensors"
    kills = [["step", 2], [model, 2], ["step", 41], [state, 1], ["step", 70], ["step", 23], [state, 2]]
    check(tmp_path / "run", whole, kills)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_the_undisturbed_one(whole, tmp_path):
    """Five of the 400 moments of ``benchmarks reliability``."""
    moments = np.random.default_rng(0).uniform(0.02, 0.5, 5)
    statuses, errors = killed(tmp_path / "run", [["seconds", float(moment)] for moment in moments])
    assert statuses[-1] == 0 and set(statuses[:-1]) <= {-9, 0}, errors  # 0: it was done before
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.parametrize("cut", ["state", "metrics"])
def test_a_full_disk_leaves_the_state_before(build, dataset, recipe, tmp_path, monkeypatch, cut):
    run = tmp_path / "run"
    train(build("baseline_tiny"), dataset, recipe, tmp_path / "whole", progress=False)
    real, written = _files.write_whole, []

    def write_whole(path, write):
        def full(temporary):
            temporary.write_bytes(b"half a file")
            raise OSError(28, "No space left on device")

        if path.name.startswith(cut):
            written.append(path)
        real(path, full if len(written) == 2 else write)

    monkeypatch.setattr(_files, "write_whole", write_whole)
    with pytest.raises(OSError, match=f"cannot write .*/{cut}.*No space left"):
        train(build("baseline_tiny"), dataset, recipe, run, progress=False)
    monkeypatch.undo()
    _, metadata = read_tensors(run / "state.safetensors")
    assert metadata["epoch"] == 1 and not list(run.glob(".*tmp"))
    train(build("baseline_tiny", seed=9), dataset, recipe, run, resume=True, progress=False)
    assert losses(run) == losses(tmp_path / "whole")
