import dataclasses

import numpy as np
import pytest
import torch

from nextreid.data import Batch, ReIDDataset, Sample
from nextreid.data.sample import as_modalities, repeated_keys

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


def test_unknown_identities_are_not_counted() -> None:
    samples = tuple(Sample(str(i), pid, 0, -1, (IMAGE,)) for i, pid in enumerate((-1, -1, 3)))
    dataset = ReIDDataset("toy", ("rgb",), "person", "camera", samples, (), ())
    assert dataset.summary()["train"]["ids"] == 1 and "3 samples of 1 ids" in repr(dataset)


def test_labels_are_shown_as_the_files_name_them() -> None:
    dataset = ReIDDataset("toy", ("rgb",), "person", "camera", (), (), (), label_names={"camid": {0: "left"}})
    assert [dataset.label_name("camid", n) for n in (0, 1, -1)] == ["left", "1", "unknown"]
    assert dataset.label_name("pid", 0) == "0" and hash(dataset) == hash(dataclasses.replace(dataset, label_names={}))


@pytest.mark.parametrize("wrong", [(), "", ("rgb", "rgb"), ("rgb", 1), ("rgb", "")])
def test_modalities_are_names_each_once(wrong: object) -> None:
    assert as_modalities("rgb, tir") == ("rgb", "tir")
    assert as_modalities("rgb") == ("rgb",) and as_modalities(["rgb", "tir"]) == ("rgb", "tir")
    with pytest.raises(ValueError, match="modalities must be one or more names, each once"):
        as_modalities(wrong)  # type: ignore[arg-type]


class Counted(str):
    """A key that counts its comparisons."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_repeated_keys_are_found_without_comparing_all_pairs() -> None:
    keys = [Counted(f"key {n}") for n in range(2000)]
    assert repeated_keys([*keys, keys[5], keys[1], Counted("key 5")]) == ["key 1", "key 5"]
    assert Counted.compared < 20_000


def test_a_caption_given_as_one_string_is_one_sentence() -> None:
    sample = Sample("a", 0, 0, -1, (None,) * 4, ("A man. He walks.", " ", None, ["A man.", "He walks."]))  # type: ignore
    assert sample.captions == (("A man. He walks.",), (), (), ("A man.", "He walks."))
    assert dataclasses.replace(sample, captions=("abc", (), (), ())).captions == (("abc",), (), (), ())
    for wrong in ("abc", [5], [[b"x"]], [["A man.", 5]]):
        with pytest.raises(ValueError, match="caption"):
            Sample("a", 0, 0, -1, (None,) * 3, wrong)  # type: ignore[arg-type]
