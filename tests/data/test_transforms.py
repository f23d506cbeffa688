import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nextreid.data import EvalTransform, TrainTransform, seeded_rng

SIZE = (32, 16)


def image_of(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def normalised(random_image: Image.Image, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    pixels = np.asarray(random_image.convert("RGB"), dtype=np.float64).transpose(2, 0, 1)
    return torch.tensor((pixels / 255 - mean) / std).float()


def test_eval_is_squash_resize_and_normalise() -> None:
    images = [image_of(0, (50, 40)), None, image_of(1)]
    out = EvalTransform(SIZE, mean=0.4, std=0.2)(images)
    assert out.shape == (3, 3, *SIZE) and out.dtype == torch.float32
    resized = images[0].resize((16, 32), Image.Resampling.BICUBIC)
    torch.testing.assert_close(out[0], normalised(resized, 0.4, 0.2))
    assert not out[1].any()
    torch.testing.assert_close(out[2], normalised(images[2], 0.4, 0.2))


def test_means_and_deviations_are_per_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = EvalTransform(SIZE, mean, std)([image_of()])[0]
    for channel in range(3):
        expected = normalised(image_of(), mean[channel], std[channel])[channel]
        torch.testing.assert_close(out[channel], expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 61), (20, 40), (31, 15)])
def test_torch_resizes_as_pillow_to_one_level(interpolation: str, size: tuple[int, int]) -> None:
    pillow, torch_ = (EvalTransform(SIZE, interpolation=interpolation, resize=by) for by in ("pillow", "torch"))
    a, b = (by.pixels(image_of(3, size)).astype(int) for by in (pillow, torch_))
    assert a.shape == b.shape == (3, *SIZE) and np.abs(a - b).max() <= 1
    assert np.array_equal(torch_.pixels(image_of(3)), pillow.pixels(image_of(3)))
    trained = TrainTransform(SIZE, flip=0, pad=0, erase=0, interpolation=interpolation, resize="torch")
    assert torch.equal(trained([image_of(3, size)], seeded_rng(0)), torch_([image_of(3, size)]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_three_channels(mode: str) -> None:
    random_image = image_of().convert(mode)
    torch.testing.assert_close(EvalTransform(SIZE)([random_image])[0], normalised(random_image))


def test_train_without_draws_is_eval() -> None:
    images = [image_of(0, (50, 40)), image_of(1)]
    train = TrainTransform(SIZE, flip=0, pad=0, erase=0)(images, seeded_rng("a"))
    torch.testing.assert_close(train, EvalTransform(SIZE)(images), rtol=0, atol=0)


@given(st.integers(0, 10_000), st.sampled_from([0, 3, 15]))
def test_flip_and_crop_are_those_of_a_padded_image(key: int, pad: int) -> None:
    size = (10, 5)
    random_image = image_of(0, size)
    out = TrainTransform(size, pad=pad, erase=0)([random_image], seeded_rng(key))[0]
    candidates = []
    for flipped in (random_image, ImageOps.mirror(random_image)):
        padded = normalised(ImageOps.expand(flipped, pad, fill=0))
        windows = padded.unfold(1, size[0], 1).unfold(2, size[1], 1)
        candidates.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))
    distance = (torch.cat(candidates) - out).abs().flatten(1).amax(1)
    assert distance.min() < 1e-6


def test_all_flips_and_offsets_occur_evenly() -> None:
    transform = TrainTransform(SIZE, pad=2, erase=0)
    drawn = Counter(transform._draw_geometry(seeded_rng(i)) for i in range(5000))
    assert len(drawn) == 2 * 5 * 5
    assert max(drawn.values()) < 2 * min(drawn.values())


def test_shared_geometry_keeps_modalities_aligned() -> None:
    images = [image_of(3)] * 3
    shared, independent = (TrainTransform(SIZE, erase=0, geometry=g) for g in ("shared", "independent"))
    differ = 0
    for key in range(20):
        out = shared(images, seeded_rng(key))
        assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
        out = independent(images, seeded_rng(key))
        differ += not torch.equal(out[0], out[1])
    assert differ > 15


def test_erasing_fills_one_box_with_normal_noise_for_each_modality() -> None:
    transform = TrainTransform(SIZE, flip=0, pad=0, erase=0.5)
    plain = EvalTransform(SIZE)([image_of(0), image_of(1)])
    erased, noise, boxes = 0, [], set()
    for key in range(400):
        out = transform([image_of(0), image_of(1)], seeded_rng(key))
        changed = (out != plain).any(1)
        erased += int(changed[0].any()) + int(changed[1].any())
        boxes.add(bool(changed[0].any()) == bool(changed[1].any()))
        for mask, tensor in zip(changed, out, strict=True):
            if mask.any():
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
                assert mask.sum() == height * width
                assert 0.01 < height * width / math.prod(SIZE) < 0.37
                assert 0.3 * 0.7 < height / width < 3.33 / 0.7
                noise.append(tensor[:, mask].flatten())
    assert boxes == {True, False}
    assert 330 < erased < 470
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02


def test_missing_modality_is_zero_and_does_not_change_the_others() -> None:
    images = [image_of(0), image_of(1), image_of(2)]
    transform = TrainTransform(SIZE, geometry="independent", erase=1.0)
    full = transform(images, seeded_rng("x"))
    part = transform([images[0], None, images[2]], seeded_rng("x"))
    assert not part[1].any()
    assert torch.equal(full[[0, 2]], part[[0, 2]])
    assert not transform([None, None], seeded_rng("x")).any()


def test_the_given_images_are_left_as_they_were() -> None:
    random_image = image_of()
    before = random_image.tobytes()
    TrainTransform(SIZE, erase=1.0)([random_image], seeded_rng(0))
    assert random_image.tobytes() == before


def test_draws_and_pixels_are_those_that_were_recorded() -> None:
    """Runs of older versions repeat: a change of one draw or of one rounding shows here."""
    state = hashlib.blake2b(digest_size=16)
    for key in range(40):
        for geometry in ("shared", "independent"):
            transform = TrainTransform(SIZE, (0.48, 0.46, 0.41), 0.27, pad=key % 20, geometry=geometry)
            given = [image_of(key), None if key % 3 else image_of(1), image_of(2)]
            state.update(transform(given, seeded_rng("golden", key)).numpy().tobytes())
    assert state.hexdigest() == "c2c3df4736ddd5672e3d3386a64104eb"


@pytest.mark.parametrize("transform", [EvalTransform(SIZE, 0.4), TrainTransform(SIZE, 0.4, pad=3, erase=1.0)])
def test_arrays_of_the_input_size_are_images_too(transform: EvalTransform) -> None:
    images = [image_of(0), None, image_of(1)]
    arrays = [None if random_image is None else np.asarray(random_image).transpose(2, 0, 1) for random_image in images]
    assert all(a is None or transform.pixels(a) is a for a in arrays)
    expected = transform(images, seeded_rng(4))
    room = torch.full((3, 3, *SIZE), torch.nan)
    assert transform([None if a is None else a.copy() for a in arrays], seeded_rng(4), room) is room
    assert torch.equal(room, expected)
    for wrong in (np.zeros((*SIZE, 3), np.uint8), np.zeros((3, *SIZE), np.float32)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(3, 32, 16\), got"):
            transform([wrong], seeded_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": (0, 4)}, "img_size"),
        ({"img_size": (8,)}, "img_size"),
        ({"img_size": (8.5, 4)}, "img_size"),
        ({"mean": (0.5, 0.5)}, "mean must be one number or three"),
        ({"std": 0.0}, "std must be positive"),
        ({"flip": 1.5}, "flip"),
        ({"erase": -0.1}, "erase"),
        ({"pad": -1}, "pad"),
        ({"geometry": "both"}, "shared"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"resize": "opencv"}, '"pillow" or "torch"'),
        ({"resize": "torch", "interpolation": "lanczos"}, '"bilinear" or "bicubic"'),
    ],
)
def test_bad_settings_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(**options)


def test_training_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="seeded_rng"):
        TrainTransform(SIZE)([image_of()])
