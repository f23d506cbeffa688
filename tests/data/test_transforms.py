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

from nextreid.data import EvalTransform, TrainTransform, keyed_rng

SIZE = (32, 16)


def image(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def normalised(picture: Image.Image, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64).transpose(2, 0, 1)
    return torch.tensor((pixels / 255 - mean) / std).float()


def test_eval_is_squash_resize_and_normalise() -> None:
    pictures = [image(0, (50, 40)), None, image(1)]
    out = EvalTransform(SIZE, mean=0.4, std=0.2)(pictures)
    assert out.shape == (3, 3, *SIZE) and out.dtype == torch.float32
    resized = pictures[0].resize((16, 32), Image.Resampling.BICUBIC)
    torch.testing.assert_close(out[0], normalised(resized, 0.4, 0.2))
    assert not out[1].any()
    torch.testing.assert_close(out[2], normalised(pictures[2], 0.4, 0.2))


def test_means_and_deviations_are_per_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = EvalTransform(SIZE, mean, std)([image()])[0]
    for channel in range(3):
        expected = normalised(image(), mean[channel], std[channel])[channel]
        torch.testing.assert_close(out[channel], expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 61), (20, 40), (31, 15)])
def test_torch_resizes_as_pillow_to_one_level(interpolation: str, size: tuple[int, int]) -> None:
    pillow, torch_ = (EvalTransform(SIZE, interpolation=interpolation, resize=by) for by in ("pillow", "torch"))
    a, b = (by.pixels(image(3, size)).astype(int) for by in (pillow, torch_))
    assert a.shape == b.shape == (3, *SIZE) and np.abs(a - b).max() <= 1
    assert np.array_equal(torch_.pixels(image(3)), pillow.pixels(image(3)))
    trained = TrainTransform(SIZE, flip=0, pad=0, erase=0, interpolation=interpolation, resize="torch")
    assert torch.equal(trained([image(3, size)], keyed_rng(0)), torch_([image(3, size)]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_three_channels(mode: str) -> None:
    picture = image().convert(mode)
    torch.testing.assert_close(EvalTransform(SIZE)([picture])[0], normalised(picture))


def test_train_without_draws_is_eval() -> None:
    pictures = [image(0, (50, 40)), image(1)]
    train = TrainTransform(SIZE, flip=0, pad=0, erase=0)(pictures, keyed_rng("a"))
    torch.testing.assert_close(train, EvalTransform(SIZE)(pictures), rtol=0, atol=0)


@given(st.integers(0, 10_000), st.sampled_from([0, 3, 15]))
def test_flip_and_crop_are_those_of_a_padded_picture(key: int, pad: int) -> None:
    size = (10, 5)
    picture = image(0, size)
    out = TrainTransform(size, pad=pad, erase=0)([picture], keyed_rng(key))[0]
    candidates = []
    for flipped in (picture, ImageOps.mirror(picture)):
        padded = normalised(ImageOps.expand(flipped, pad, fill=0))
        windows = padded.unfold(1, size[0], 1).unfold(2, size[1], 1)
        candidates.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))
    distance = (torch.cat(candidates) - out).abs().flatten(1).amax(1)
    assert distance.min() < 1e-6


def test_all_flips_and_offsets_occur_evenly() -> None:
    transform = TrainTransform(SIZE, pad=2, erase=0)
    drawn = Counter(transform._draw_geometry(keyed_rng(i)) for i in range(5000))
    assert len(drawn) == 2 * 5 * 5
    assert max(drawn.values()) < 2 * min(drawn.values())


def test_shared_geometry_keeps_modalities_aligned() -> None:
    pictures = [image(3)] * 3
    shared, independent = (TrainTransform(SIZE, erase=0, geometry=g) for g in ("shared", "independent"))
    differ = 0
    for key in range(20):
        out = shared(pictures, keyed_rng(key))
        assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
        out = independent(pictures, keyed_rng(key))
        differ += not torch.equal(out[0], out[1])
    assert differ > 15


def test_erasing_fills_one_box_with_normal_noise_for_each_modality() -> None:
    transform = TrainTransform(SIZE, flip=0, pad=0, erase=0.5)
    plain = EvalTransform(SIZE)([image(0), image(1)])
    erased, noise, boxes = 0, [], set()
    for key in range(400):
        out = transform([image(0), image(1)], keyed_rng(key))
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
    pictures = [image(0), image(1), image(2)]
    transform = TrainTransform(SIZE, geometry="independent", erase=1.0)
    full = transform(pictures, keyed_rng("x"))
    part = transform([pictures[0], None, pictures[2]], keyed_rng("x"))
    assert not part[1].any()
    assert torch.equal(full[[0, 2]], part[[0, 2]])
    assert not transform([None, None], keyed_rng("x")).any()


def test_the_given_pictures_are_left_as_they_were() -> None:
    picture = image()
    before = picture.tobytes()
    TrainTransform(SIZE, erase=1.0)([picture], keyed_rng(0))
    assert picture.tobytes() == before


def test_draws_and_pixels_are_those_that_were_recorded() -> None:
    """Runs of older versions repeat: a change of one draw or of one rounding shows here."""
    state = hashlib.blake2b(digest_size=16)
    for key in range(40):
        for geometry in ("shared", "independent"):
            transform = TrainTransform(SIZE, (0.48, 0.46, 0.41), 0.27, pad=key % 20, geometry=geometry)
            given = [image(key), None if key % 3 else image(1), image(2)]
            state.update(transform(given, keyed_rng("golden", key)).numpy().tobytes())
    assert state.hexdigest() == "c2c3df4736ddd5672e3d3386a64104eb"


@pytest.mark.parametrize("transform", [EvalTransform(SIZE, 0.4), TrainTransform(SIZE, 0.4, pad=3, erase=1.0)])
def test_arrays_of_the_input_size_are_pictures_too(transform: EvalTransform) -> None:
    pictures = [image(0), None, image(1)]
    arrays = [None if picture is None else np.asarray(picture).transpose(2, 0, 1) for picture in pictures]
    assert all(a is None or transform.pixels(a) is a for a in arrays)
    expected = transform(pictures, keyed_rng(4))
    room = torch.full((3, 3, *SIZE), torch.nan)
    assert transform([None if a is None else a.copy() for a in arrays], keyed_rng(4), room) is room
    assert torch.equal(room, expected)
    for wrong in (np.zeros((*SIZE, 3), np.uint8), np.zeros((3, *SIZE), np.float32)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(3, 32, 16\), got"):
            transform([wrong], keyed_rng(0))


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
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(**options)


def test_training_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="keyed_rng"):
        TrainTransform(SIZE)([image()])
