"""Calibration of a model: pairs of each set of modalities, splits, the command."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nextreid.cli import main
from nextreid.engine import calibrate, embed_samples
from nextreid.retrieval import Calibration


def test_every_subset_has_a_curve_of_its_own_scores(build, dataset):
    model = build("baseline_tiny")
    found = calibrate(model, dataset)
    assert next(iter(found.curves)) == "rgb+nir+tir" and len(found.curves) == 7
    curve = found.curves["rgb+nir+tir"]
    unit = F.normalize(embed_samples(model, dataset.train), dim=1)
    cosines = (unit @ unit.T).numpy()
    pid, camid = (np.array([getattr(s, name) for s in dataset.train]) for name in ("pid", "camid"))
    same = pid[:, None] == pid[None]
    ignored = same & (camid[:, None] == camid[None])
    assert (curve.same, curve.different) == ((same & ~ignored).sum(), (~same).sum())
    assert (curve.low, curve.high) == pytest.approx((cosines[~ignored].min(), cosines[~ignored].max()), abs=1e-6)
    assert curve.identities == 6 and found.about["split"] == "train" and found.about["protocol"] == "camera"


def test_missing_images_leave_their_subsets_and_cross_pairs_are_averaged(build, dataset):
    dark = tuple(
        replace(s, images=(s.images[0], None, s.images[2])) if s.pid in (3, 7, 11) else s for s in dataset.train
    )
    found = calibrate(build("baseline_tiny"), replace(dataset, train=dark), cross=True)
    assert "nir" not in found.curves and "rgb+tir" in found.curves  # three identities are too few
    assert found.curves["tir>rgb"].identities == 6
    assert found.curve(("tir",), ("rgb",)).different == found.curve(("rgb",), ("tir",)).different


def test_splits_and_limits(build, dataset, caplog):
    model = build("baseline_tiny")
    with pytest.raises(ValueError, match="--allow-test"):
        calibrate(model, dataset, split="test")
    assert calibrate(model, dataset, split="test", allow_test=True, limit=12).curves["rgb"].identities == 4
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        calibrate(model, dataset, split="trian")
    with pytest.raises(ValueError, match="split train of tints: only 2 identities"):
        calibrate(model, replace(dataset, train=dataset.train[:8]))
    with pytest.raises(ValueError, match="no sample of known identity"):
        calibrate(model, replace(dataset, train=()))
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on={"dataset": "tints"})
    calibrate(model, dataset)
    assert "too sure" in caplog.text


def test_the_command_writes_beside_the_weights(build, tmp_path, capsys):
    from nextreid import save_model

    torch.manual_seed(0)
    save_model(build("baseline_tiny"), tmp_path / "m")
    line = ("calibrate", tmp_path / "m", "--dataset", "synthetic-persons", "--dataset-arg", "num_train=6", "num_test=2")
    more = ("frames_per_visit=2", "--no-progress", "--device", "cpu")
    assert main([str(word) for word in (*line, *more)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["shown", "fit", "ECE"] and out[-1] == str(tmp_path / "m" / "calibration.json")
    assert Calibration.read(tmp_path / "m").about["dataset"] == "synthetic-persons"
    assert main([str(word) for word in ("calibrate", "baseline_tiny", *line[2:], *more)]) == 2
    assert "--out" in capsys.readouterr().err
    assert (
        main([str(word) for word in ("calibrate", "baseline_tiny", *line[2:], *more, "--out", tmp_path / "new")]) == 0
    )
    assert Calibration.read(tmp_path / "new").about["dataset"] == "synthetic-persons"
