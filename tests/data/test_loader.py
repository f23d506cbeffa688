from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextreid.data import (
    Batch,
    EvalTransform,
    PKSampler,
    Sample,
    SampleDataset,
    TrainTransform,
    collate,
    make_loader,
)

SIZE = (16, 8)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def samples(count: int = 12) -> list[Sample]:
    return [
        Sample(
            key=f"s{i:02d}",
            pid=i // 3,
            camid=i % 2,
            sceneid=-1,
            images=(pixels(i), pixels(100 + i) if i % 4 else None, pixels(200 + i)[:, :, 0]),
            captions=((f"Sample {i}.",), (), ("A man.", "He runs.")) if i % 2 else (),
        )
        for i in range(count)
    ]


def assert_same(one: Batch, two: Batch) -> None:
    for name in ("images", "present", "pid", "camid", "sceneid"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("captions", "keys", "draws"):
        assert getattr(one, name) == getattr(two, name), name


def test_evaluation_keeps_order_and_all_samples() -> None:
    given = samples()
    loader = make_loader(given, EvalTransform(SIZE), batch_size=5)
    batches = list(loader)
    assert len(loader) == 3 and [len(b) for b in batches] == [5, 5, 2]
    assert [key for b in batches for key in b.keys] == [s.key for s in given]
    first = batches[0]
    assert first.images.shape == (5, 3, 3, *SIZE)
    assert first.present.tolist() == [[True, i % 4 != 0, True] for i in range(5)]
    assert first.captions[0] == [(), (), ()] and first.captions[1] == [("Sample 1.",), (), ("A man.", "He runs.")]
    assert first.pid.tolist() == [0, 0, 0, 1, 1] and first.pid.dtype == torch.int64
    assert first.camid.tolist() == [0, 1, 0, 1, 0] and first.sceneid.tolist() == [-1] * 5
    assert batches[1].draws == [(0, i) for i in range(5, 10)]
    expected = torch.from_numpy(given[3].images[0]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(first.images[3, 0], expected)
    assert not first.images[0, 1].any()


@pytest.mark.parametrize("training", [True, False])
def test_workers_change_nothing(training: bool) -> None:
    given = samples()
    loaders = []
    for workers in (0, 2):
        if training:
            sampler = PKSampler([s.pid for s in given], 2, 2, seed=3)
            sampler.set_epoch(1)
            transform = TrainTransform(SIZE, pad=2, geometry="independent")
            loaders.append(make_loader(given, transform, sampler=sampler, seed=9, workers=workers))
        else:
            loaders.append(make_loader(given, EvalTransform(SIZE), batch_size=5, workers=workers))
    state = torch.get_rng_state()
    one, two = (list(loader) for loader in loaders)
    assert len(one) == len(two) == len(loaders[0]) >= 2
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_reach_worker_processes() -> None:
    given = samples()
    sampler = PKSampler([s.pid for s in given], 2, 2)
    loader = make_loader(given, TrainTransform(SIZE, pad=2), sampler=sampler, workers=1)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert {e for batch in loader for e, _ in batch.draws} == {epoch}


def test_augmentation_depends_on_seed_epoch_and_slot_only() -> None:
    given = samples()
    transform = TrainTransform(SIZE, pad=4)
    data = SampleDataset(given, transform, seed=1)
    alone = SampleDataset(given[5:6], transform, seed=1)
    base = data[5, 2, 7].images
    assert torch.equal(base, alone[0, 2, 7].images)
    assert not torch.equal(base, data[5, 2, 8].images)
    assert not torch.equal(base, data[5, 3, 7].images)
    assert not torch.equal(base, SampleDataset(given, transform, seed=2)[5, 2, 7].images)


def test_any_callable_transforms() -> None:
    def transform(images: list[Image.Image | None], rng: np.random.Generator) -> torch.Tensor:
        shown = [0 if image is None else int(np.asarray(image).sum()) for image in images]
        return torch.tensor(shown)[:, None] + int(rng.integers(5))

    given = samples()
    (batch,) = make_loader(given, transform, batch_size=12, seed=2)
    assert batch.images.dtype == torch.int64 and batch.images.shape == (12, 3, 1)
    assert batch.images[:, 0, 0].tolist() == [
        int(SampleDataset(given, transform, seed=2)[i].images[0]) for i in range(12)
    ]
    with pytest.raises(ValueError, match="EvalTransform or TrainTransform, got function"):
        make_loader(given, transform, batch_size=2, augment="device")


def test_one_sample_is_the_row_of_its_batch() -> None:
    given, transform = samples(), TrainTransform(SIZE, pad=2)
    sampler = PKSampler([s.pid for s in given], 2, 2)
    (items, *_) = list(sampler)
    for augment in ("cpu", "device"):
        (batch, *_) = make_loader(given, transform, sampler=sampler, augment=augment)
        rows = [SampleDataset(given, transform, augment=augment)[item] for item in items]
        assert_same(batch, collate(rows))
        assert (augment == "cpu") == (rows[0].augment_params is None)


def test_files_and_arrays_give_the_same(tmp_path: Path) -> None:
    Image.fromarray(pixels(1)).save(tmp_path / "a.png")
    pair = [Sample("a", 0, 0, -1, (image,)) for image in (pixels(1), tmp_path / "a.png")]
    one, two = SampleDataset(pair, EvalTransform(SIZE), ("rgb",))
    assert torch.equal(one.images, two.images)


def test_unreadable_image_is_named(tmp_path: Path, jpeg_bytes: bytes) -> None:
    cases = {"missing.jpg": None, "text.jpg": b"not an image", "empty.jpg": b"", "cut.jpg": jpeg_bytes[:-40]}
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        sample = Sample("the-key", 0, 0, -1, (pixels(0), path))
        with pytest.raises(ValueError) as error:
            SampleDataset([sample], EvalTransform(SIZE), ("rgb", "tir"))[0]
        assert all(part in str(error.value) for part in (str(path), "the-key", "tir")), name
    broken = Sample("the-key", 0, 0, -1, (np.zeros((4, 4, 7), np.uint8),))
    with pytest.raises(ValueError, match="array, the rgb image of sample 'the-key'"):
        SampleDataset([broken], EvalTransform(SIZE), ("rgb",))[0]


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "thermal.png"
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="8 bits"):
        SampleDataset([Sample("a", 0, 0, -1, (path,))], EvalTransform(SIZE), ("tir",))[0]


def test_settings_that_do_not_fit_are_refused() -> None:
    given = samples()
    sampler = PKSampler([s.pid for s in given], 2, 2)
    with pytest.raises(ValueError, match=r"sample 's00' has 3 images.*'rgb', 'nir'"):
        make_loader(given, EvalTransform(SIZE), ("rgb", "nir"), batch_size=2)
    with pytest.raises(ValueError, match="has 1 captions"):
        SampleDataset([Sample("a", 0, 0, -1, (pixels(0), None), captions=(("A man.",),))], EvalTransform(), ("a", "b"))
    with pytest.raises(ValueError, match="sampler's batches have 4"):
        make_loader(given, EvalTransform(SIZE), batch_size=5, sampler=sampler)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_loader(given, EvalTransform(SIZE))
    with pytest.raises(ValueError, match="no samples"):
        make_loader([], EvalTransform(SIZE), batch_size=2)


def test_an_empty_batch_is_named_or_has_the_shape_of_a_batch() -> None:
    with pytest.raises(ValueError, match="no samples to collate"):
        collate([])
    batch = SampleDataset(samples(), EvalTransform((8, 4))).__getitems__([])
    assert batch.images.shape == (0, 3, 3, 8, 4) and batch.present.shape == (0, 3) and len(batch) == 0
    assert batch.present.dtype == torch.bool and batch.pid.dtype == batch.camid.dtype == torch.int64
