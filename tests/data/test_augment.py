import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nextreid.data import (
    Batch,
    EvalTransform,
    ImageCache,
    PKSampler,
    Sample,
    TrainTransform,
    augment_batch,
    make_loader,
    seeded_rng,
)

SIZE = (32, 16)


def samples(count: int = 12) -> list[Sample]:
    """Samples of which every fourth lacks its second image."""
    rng = np.random.default_rng(5)
    return [
        Sample(
            f"s{i}",
            i // 3,
            0,
            -1,
            tuple(rng.integers(0, 256, (*SIZE, 3), np.uint8) if i % 4 or m != 1 else None for m in range(3)),
        )
        for i in range(count)
    ]


GIVEN = samples()


def batches(
    transform: EvalTransform, world: tuple[int, int] | None = None, epoch: int = 1, **options: Any
) -> list[Batch]:
    """Batches of an epoch in training, or of a part of the processes; in order where nothing is trained."""
    if not isinstance(transform, TrainTransform):
        return list(make_loader(GIVEN, transform, batch_size=5, **options))
    sampler = PKSampler([s.pid for s in GIVEN], 4, 2, 3, *(world or ()))
    sampler.set_epoch(epoch)
    return list(make_loader(GIVEN, transform, sampler=sampler, seed=7, **options))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(images: torch.Tensor) -> bytes:
    return images.contiguous().numpy().tobytes()


@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 5, 40]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["shared", "independent"]),
    st.floats(-1, 1),
    st.floats(0.01, 3),
)
def test_device_and_transform_flip_shift_and_normalise_alike_to_the_bit(
    epoch: int, pad: int, flip: float, geometry: Any, mean: float, std: float
) -> None:
    transform = TrainTransform(
        SIZE, (mean, 0.45, 0.4), (0.2, std, 0.27), pad=pad, flip=flip, erase=0, geometry=geometry
    )
    for cpu, raw in zip(
        batches(transform, epoch=epoch), batches(transform, epoch=epoch, augment="device"), strict=True
    ):
        assert (
            raw.images.dtype == torch.uint8 and raw.augment_params is not None and raw.augment_params.shape == (8, 3, 7)
        )
        out = augment_batch(raw, transform, generator())
        assert bits(out.images) == bits(cpu.images) and out.images.dtype == torch.float32
        assert out.augment_params is None and out.draws == cpu.draws and torch.equal(out.present, cpu.present)


@pytest.mark.parametrize("kept", [True, False])
def test_evaluation_normalises_only(kept: bool) -> None:
    transform = EvalTransform(SIZE, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    store = ImageCache.build(GIVEN, ("rgb", "nir", "tir"), transform) if kept else None
    raw = batches(transform, store=store, augment="device")
    assert [len(batch) for batch in raw] == [5, 5, 2] and all(batch.augment_params is None for batch in raw)
    for cpu, batch in zip(batches(transform), raw, strict=True):
        assert bits(augment_batch(batch, transform).images) == bits(cpu.images)


def test_one_box_of_noise_is_erased_in_each_image() -> None:
    erasing, plain = (TrainTransform(SIZE, pad=3, erase=erase) for erase in (1.0, 0.0))
    noise = []
    for raw, bare in zip(batches(erasing, augment="device"), batches(plain, augment="device"), strict=True):
        assert raw.augment_params is not None and bare.augment_params is not None
        same = bare.augment_params[:, :1]  # the flips and shifts come first in the stream
        assert (
            torch.equal(raw.augment_params[:, :, :3], same[..., :3].expand(-1, 3, -1))
            and not bare.augment_params[..., 3:].any()
        )
        out, kept = augment_batch(raw, erasing, generator(1)), augment_batch(bare, plain, generator(1))
        drawn = torch.randn(out.images.shape, generator=generator(1))
        for i, m in np.ndindex(8, 3):
            top, left, height, width = raw.augment_params[i, m, 3:].tolist()
            expected = kept.images[i, m].clone()
            if raw.present[i, m]:
                box = (slice(None), slice(top, top + height), slice(left, left + width))
                expected[box] = drawn[i, m][box]
                noise.append(drawn[i, m][box].flatten())
                assert 0 < height < 32 and 0 < width < 16 and 0.01 < height * width / math.prod(SIZE) < 0.37
            assert bits(out.images[i, m]) == bits(expected)
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.05 and abs(float(values.std()) - 1) < 0.05


def test_the_first_box_is_that_of_a_call() -> None:
    transform = TrainTransform(SIZE, flip=0, pad=0, erase=1.0)
    one = [np.zeros((3, *SIZE), np.uint8)]
    for key in range(50):
        (params,) = transform.draws(1, seeded_rng(key))
        assert (
            len(list(transform.draws(3, seeded_rng(key)))) == 3
            and next(iter(transform.draws(3, seeded_rng(key)))) == params
        )
        box = torch.zeros(SIZE, dtype=torch.bool)
        box[params.top : params.top + params.height, params.left : params.left + params.width] = True
        assert torch.equal((transform(one, seeded_rng(key))[0] != -1).all(0), box)


def test_boxes_come_as_often_as_asked_for() -> None:
    transform = TrainTransform(SIZE, erase=0.3)
    drawn = [params.height > 0 for key in range(1000) for params in transform.draws(3, seeded_rng(key))]
    assert 0.27 < sum(drawn) / len(drawn) < 0.33


@pytest.mark.parametrize("kept", [True, False])
def test_workers_and_a_cache_change_nothing(kept: bool) -> None:
    transform = TrainTransform(SIZE, pad=4, geometry="independent")
    store = ImageCache.build(GIVEN, ("rgb", "nir", "tir"), transform) if kept else None
    one, two = batches(transform, augment="device"), batches(transform, augment="device", workers=2, store=store)
    assert len(one) == len(two) >= 1
    for a, b in zip(one, two, strict=True):
        assert (
            torch.equal(a.images, b.images) and torch.equal(a.augment_params, b.augment_params) and a.draws == b.draws
        )
        assert bits(augment_batch(a, transform, generator(2)).images) == bits(
            augment_batch(b, transform, generator(2)).images
        )


def test_two_processes_make_the_batch_of_one() -> None:
    transform = TrainTransform(SIZE, pad=4, erase=1.0)
    whole = batches(transform, augment="device")
    parts = [batches(transform, (rank, 2), augment="device") for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        expected = augment_batch(batch, transform, generator(3)).images
        found = [augment_batch(part, transform, generator(3), (rank, 2)).images for rank, part in enumerate(shares)]
        assert bits(torch.cat(found)) == bits(expected)


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_the_number_of_operator_calls_does_not_grow_with_the_batch() -> None:
    transform = TrainTransform(SIZE)
    (batch, *_) = batches(transform, augment="device")
    counts = []
    for times in (1, 5):
        tensors = {name: torch.cat([getattr(batch, name)] * times) for name in ("images", "present", "augment_params")}
        with Calls() as calls:
            augment_batch(replace(batch, **tensors), transform, generator())
        counts.append(calls.count)
    assert counts[0] == counts[1] < 80


def test_the_parameters_move_with_the_batch() -> None:
    (batch, *_) = batches(TrainTransform(SIZE), augment="device")
    moved = batch.to("meta")
    assert moved.augment_params is not None and moved.augment_params.is_meta and moved.images.is_meta
    assert (
        batch.to("cpu").augment_params is batch.augment_params
        and batches(TrainTransform(SIZE))[0].augment_params is None
    )


def test_bad_arguments_are_rejected() -> None:
    transform = TrainTransform(SIZE)
    with pytest.raises(ValueError, match=r"float32.*uint8"):
        augment_batch(batches(transform)[0], transform, generator())
    with pytest.raises(ValueError, match="generator"):
        augment_batch(batches(transform, augment="device")[0], transform)
    with pytest.raises(ValueError, match=r"'cpu', 'device'"):
        batches(transform, augment="gpu")
