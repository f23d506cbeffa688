"""Pictures to tensors: the augmentation of the multi-modal re-identification literature, with explicit draws."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image as PILImage

_INTERPOLATION = {
    "nearest": PILImage.Resampling.NEAREST,
    "bilinear": PILImage.Resampling.BILINEAR,
    "bicubic": PILImage.Resampling.BICUBIC,
    "lanczos": PILImage.Resampling.LANCZOS,
}


class EvalTransform:
    """Resize to the input size without keeping the aspect ratio, then normalise.

    Args:
        img_size: ``(H, W)`` in pixels.
        mean: Mean of pixel values in [0, 1], one number or one per channel.
        std: Standard deviation, likewise.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (256, 128),
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        interpolation: str = "bicubic",
    ) -> None:
        if len(img_size) != 2 or any(int(side) != side or side < 1 for side in img_size):
            raise ValueError(f"img_size must be (height, width) in whole pixels, got {img_size!r}")
        if interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation must be one of {sorted(_INTERPOLATION)}, got {interpolation!r}")
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.interpolation = interpolation
        self.mean = _per_channel("mean", mean)
        self.std = _per_channel("std", std)
        if (self.std <= 0).any():
            raise ValueError(f"std must be positive, got {std!r}")

    def __call__(self, images: Sequence[PILImage.Image | None], rng: np.random.Generator | None = None) -> torch.Tensor:
        """Return ``(M, 3, H, W)`` float32, zeros where a picture is None; `rng` is ignored."""
        out = torch.zeros(len(images), 3, *self.img_size)
        for index, image in enumerate(images):
            if image is not None:
                out[index] = self._normalise(self._resize(image))
        return out

    def _resize(self, image: PILImage.Image) -> np.ndarray:
        if image.mode != "RGB":
            image = image.convert("RGB")
        height, width = self.img_size
        if image.size != (width, height):
            image = image.resize((width, height), _INTERPOLATION[self.interpolation])
        return np.array(image)

    def _normalise(self, pixels: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        return tensor.div_(255).sub_(self.mean).div_(self.std)


class TrainTransform(EvalTransform):
    """Resize, flip, pad with black and crop back at random, normalise, erase a box with noise.

    The draws are those of the published code bases: one flip with probability `flip`, a crop offset of 0 … 2 `pad`
    pixels each way, and with probability `erase` one box of 2 … 33 % of the area and aspect ratio 0.3 … 3.33 filled
    with N(0, 1) per value (up to ten attempts to find one that fits). Every draw is made whether or not a picture is
    there: a missing modality does not change the others.

    Args:
        img_size: ``(H, W)`` in pixels.
        mean: Mean of pixel values in [0, 1], one number or one per channel.
        std: Standard deviation, likewise.
        flip: Probability of a horizontal flip.
        pad: Black border in pixels on each side before the random crop.
        erase: Probability of random erasing, drawn for each modality on its own.
        geometry: "shared" flips and crops all modalities alike, so that their patches stay aligned; "independent"
            draws for each modality, as most published code does.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (256, 128),
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        *,
        flip: float = 0.5,
        pad: int = 10,
        erase: float = 0.5,
        geometry: Literal["shared", "independent"] = "shared",
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__(img_size, mean, std, interpolation)
        for name, value in (("flip", flip), ("erase", erase)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
        if int(pad) != pad or pad < 0:
            raise ValueError(f"pad must be a whole number of pixels, 0 or more, got {pad}")
        if geometry not in ("shared", "independent"):
            raise ValueError(f'geometry must be "shared" or "independent", got {geometry!r}')
        self.flip = flip
        self.pad = int(pad)
        self.erase = erase
        self.geometry = geometry

    def __call__(self, images: Sequence[PILImage.Image | None], rng: np.random.Generator | None = None) -> torch.Tensor:
        """Return ``(M, 3, H, W)`` float32, zeros where a picture is None; all draws come from `rng`.

        Raises:
            ValueError: If `rng` is None.
        """
        if rng is None:
            raise ValueError("TrainTransform needs a generator: pass rng=keyed_rng(...)")
        count = len(images)
        if self.geometry == "shared":
            geometry = [self._draw_geometry(rng)] * count
        else:
            geometry = [self._draw_geometry(rng) for _ in images]
        out = torch.zeros(count, 3, *self.img_size)
        for index, image in enumerate(images):
            box = self._draw_box(rng)
            if image is not None:
                out[index] = self._normalise(self._move(self._resize(image), *geometry[index]))
            if box is not None:
                top, left, height, width = box
                noise = rng.standard_normal((3, height, width), dtype=np.float32)
                if image is not None:
                    out[index, :, top : top + height, left : left + width] = torch.from_numpy(noise)
        return out

    def _draw_geometry(self, rng: np.random.Generator) -> tuple[bool, int, int]:
        flip = bool(rng.random() < self.flip)
        down, right = rng.integers(-self.pad, self.pad, size=2, endpoint=True).tolist()
        return flip, down, right

    def _draw_box(self, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        if rng.random() >= self.erase:
            return None
        rows, columns = self.img_size
        for _ in range(10):
            area = rng.uniform(0.02, 0.33) * rows * columns
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.33)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < rows and 0 < width < columns:
                top = int(rng.integers(0, rows - height, endpoint=True))
                left = int(rng.integers(0, columns - width, endpoint=True))
                return top, left, height, width
        return None

    @staticmethod
    def _move(pixels: np.ndarray, flip: bool, down: int, right: int) -> np.ndarray:
        """Flip, then shift by whole pixels: what padding with black and cropping back to size amounts to."""
        rows, columns = pixels.shape[:2]
        down, right = min(max(down, -rows), rows), min(max(right, -columns), columns)
        if flip:
            pixels = pixels[:, ::-1]
        out = np.zeros((rows, columns, 3), dtype=np.uint8)
        out[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = pixels[
            max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)
        ]
        return out


def _per_channel(name: str, value: float | Sequence[float]) -> torch.Tensor:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * 3
    if len(values) != 3:
        raise ValueError(f"{name} must be one number or three, one per channel, got {value!r}")
    return torch.tensor(values).reshape(3, 1, 1)
