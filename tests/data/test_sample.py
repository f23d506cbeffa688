import dataclasses

import numpy as np
import pytest
import torch

from nextreid.data import Batch, ReIDDataset, Sample

IMAGE = np.zeros((8, 4, 3), np.uint8)


def test_summary_counts_each_split() -> None:
    one = Sample("a", 1, 0, -1, (IMAGE, None), captions=(("A man.",), ()))
    two = Sample("b", 2, 3, 4, (IMAGE, IMAGE))
    new = Sample("c", 2, -1, -1, (IMAGE, None))
    summary = ReIDDataset("toy", ("rgb", "tir"), "person", "camera", (one, two, new), (two,), ()).summary()
    assert summary["train"] == {
        "samples": 3,
        "ids": 2,
        "cameras": 2,
        "scenes": 1,
        "images": {"rgb": 3, "tir": 1},
        "captions": {"rgb": 1, "tir": 0},
    }
    assert summary["query"]["samples"] == 1
    assert summary["gallery"]["images"] == {"rgb": 0, "tir": 0}


def test_sample_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample("a", 1, 0, -1, (IMAGE,)).pid = 2  # type: ignore[misc]


def test_batch_moves_its_tensors_and_keeps_the_rest() -> None:
    ids = torch.tensor([1])
    present = torch.ones(1, 1, dtype=torch.bool)
    batch = Batch(torch.zeros(1, 1, 3, 8, 4), present, [[("A man.",)]], ids, ids, ids, ["a"], [(0, 0)])
    moved = batch.to("meta")
    tensors = (moved.images, moved.present, moved.pid, moved.camid, moved.sceneid)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.captions, moved.keys, moved.draws, len(moved)) == (batch.captions, ["a"], [(0, 0)], 1)
