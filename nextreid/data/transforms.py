"""Images to tensors: the augmentation of the re-identification literature with explicit draws, here or on a device."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from .sample import Batch

_INTERPOLATION = ("bicubic", "bilinear", "lanczos", "nearest")

Pixels: TypeAlias = PILImage.Image | np.ndarray


class AugmentParams(NamedTuple):
    """What training does to one image before it is normalised, and the box it erases after."""

    flip: bool = False  # whether left and right are exchanged, before all else
    down: int = 0  # pixels by which the image is shifted; what comes in is black
    right: int = 0
    top: int = 0  # first row of the erased box
    left: int = 0  # first column of it
    height: int = 0  # rows of it; 0 erases nothing
    width: int = 0


class EvalTransform:
    """Resize to the input size without keeping the aspect ratio, then normalise.

    An image is a Pillow image, or a ``(3, H, W)`` uint8 array that has the input size already (`pixels` makes such).

    Args:
        img_size: ``(H, W)`` in pixels.
        mean: Mean of pixel values in [0, 1], one number or one per channel.
        std: Standard deviation, likewise.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        resize: The library that resizes: "pillow", as published code does, or "torch", several times faster for
            images larger than the input, bilinear and bicubic only; some values differ from Pillow's by one of 256.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (256, 128),
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        interpolation: str = "bicubic",
        resize: Literal["pillow", "torch"] = "pillow",
    ) -> None:
        if len(img_size) != 2 or any(int(side) != side or side < 1 for side in img_size):
            raise ValueError(f"img_size must be (height, width) in whole pixels, got {img_size!r}")
        if interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation must be one of {_INTERPOLATION}, got {interpolation!r}")
        self.img_size = (int(img_size[0]), int(img_size[1]))
        if resize not in ("pillow", "torch"):
            raise ValueError(f'resize must be "pillow" or "torch", got {resize!r}')
        if resize == "torch" and interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f'resize="torch" takes interpolation "bilinear" or "bicubic", got {interpolation!r}')
        self.interpolation = interpolation
        self.resize = resize
        self.mean = _per_channel("mean", mean)
        self.std = _per_channel("std", std)
        if (self.std <= 0).any():
            raise ValueError(f"std must be positive, got {std!r}")

    def __repr__(self) -> str:
        settings = {
            name: [round(number, 4) for number in value.flatten().tolist()] if name in ("mean", "std") else value
            for name, value in vars(self).items()
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    def __call__(
        self, images: Sequence[Pixels | None], rng: np.random.Generator | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Transform the M images of a sample.

        Args:
            images: None where a modality is missing; its draws are made all the same.
            rng: Where all draws come from; evaluation needs none.
            out: Where to put the result.

        Returns:
            ``(M, 3, H, W)`` float32, zeros where an image is None; `out` if it was given.

        Raises:
            ValueError: If training gets no generator.
        """
        out = torch.empty(len(images), 3, *self.img_size) if out is None else out
        for target, image, params in zip(out, images, self.draws(len(images), rng), strict=True):
            top, left, height, width = params[3:]
            noise = rng.standard_normal((3, height, width), dtype=np.float32) if rng is not None and height else None
            if image is None:
                target.zero_()
                continue
            _move(target.numpy(), self.pixels(image), params)
            self.normalise(target)
            if noise is not None:
                target[:, top : top + height, left : left + width] = torch.from_numpy(noise)
        return out

    def draws(self, count: int, rng: np.random.Generator | None) -> Iterator[AugmentParams]:
        """Yield what is done to each of `count` images: nothing, in evaluation."""
        return repeat(AugmentParams(), count)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise float images ``(..., 3, H, W)`` of 0 … 255 in place, on the device that they are on."""
        mean, std = (value.to(images.device, non_blocking=True) for value in (self.mean, self.std))
        # by a tensor: a number would be turned into its reciprocal on CUDA, which rounds differently
        return images.div_(torch.full_like(mean, 255)).sub_(mean).div_(std)

    def pixels(self, image: Pixels) -> np.ndarray:
        """Resize an image, ``(3, H, W)`` uint8; an array must have this shape and type already."""
        if isinstance(image, np.ndarray):
            if image.shape != (3, *self.img_size) or image.dtype != np.uint8:
                expected = (3, *self.img_size)
                raise ValueError(f"an array must be uint8 of shape {expected}, got {image.dtype} of {image.shape}")
            return image
        if image.mode != "RGB":
            image = image.convert("RGB")
        height, width = self.img_size
        if image.size != (width, height):
            if self.resize == "torch":
                # channels last in memory, for which there is a fast kernel
                batch = torch.from_numpy(np.array(image).transpose(2, 0, 1)).unsqueeze(0)
                return F.interpolate(batch, self.img_size, mode=self.interpolation, antialias=True)[0].numpy()
            image = image.resize((width, height), PILImage.Resampling[self.interpolation.upper()])
        return np.array(image).transpose(2, 0, 1)


class TrainTransform(EvalTransform):
    """Resize, flip, pad with black and crop back at random, normalise, erase a box with noise.

    The draws are those of the published code bases: one flip with probability `flip`, a crop offset of 0 … 2 `pad`
    pixels each way, and with probability `erase` one box of 2 … 33 % of the area and aspect ratio 0.3 … 3.33 filled
    with N(0, 1) per value (up to ten attempts to find one that fits). Every draw is made whether or not an image is
    there: a missing modality does not change the others.

    Args:
        img_size: See `EvalTransform`, also for `mean`, `std`, `interpolation` and `resize`.
        flip: Probability of a horizontal flip.
        pad: Black border in pixels on each side before the random crop.
        erase: Probability of random erasing, drawn for each modality on its own.
        geometry: "shared" flips and crops all modalities alike, so that their patches stay aligned; "independent"
            draws for each modality, as most published code does.

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
        resize: Literal["pillow", "torch"] = "pillow",
    ) -> None:
        super().__init__(img_size, mean, std, interpolation, resize)
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

    def draws(self, count: int, rng: np.random.Generator | None) -> Iterator[AugmentParams]:
        """Draw what is done to each of `count` images: first all flips and shifts, then one box after the other.

        A call of the transform draws the noise of each box from `rng` before the next box. Where the device makes the
        noise, none is drawn in between: flips, shifts and the first box are the same, the boxes after it are others.
        """
        if rng is None:
            raise ValueError("TrainTransform needs a generator: pass rng=seeded_rng(...)")
        shared = self.geometry == "shared"
        geometries = [self._draw_geometry(rng) for _ in range(1 if shared else count)] * (count if shared else 1)
        for geometry in geometries:
            yield AugmentParams(*geometry, *self._draw_box(rng))

    def _draw_geometry(self, rng: np.random.Generator) -> tuple[bool, int, int]:
        flip = bool(rng.random() < self.flip)
        # one by one: an array of two costs twice the time for the same numbers
        down, right = (int(rng.integers(-self.pad, self.pad, endpoint=True)) for _ in range(2))
        return flip, down, right

    def _draw_box(self, rng: np.random.Generator) -> tuple[int, ...]:
        if rng.random() >= self.erase:
            return ()
        rows, columns = self.img_size
        for _ in range(10):
            area = rng.uniform(0.02, 0.33) * rows * columns
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.33)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < rows and 0 < width < columns:
                top = int(rng.integers(0, rows - height, endpoint=True))
                left = int(rng.integers(0, columns - width, endpoint=True))
                return top, left, height, width
        return ()


def _move(out: np.ndarray, pixels: np.ndarray, params: AugmentParams) -> None:
    """Flip, then shift by whole pixels and fill up with black: what padding and cropping back amount to."""
    rows, columns = out.shape[1:]
    down, right = min(max(params.down, -rows), rows), min(max(params.right, -columns), columns)
    top, bottom, left, end = max(0, down), rows + min(0, down), max(0, right), columns + min(0, right)
    if params.flip:
        pixels = torch.from_numpy(pixels).flip(2).numpy()  # many times faster than NumPy's
    out[:, :top] = out[:, bottom:] = 0
    out[:, top:bottom, :left] = out[:, top:bottom, end:] = 0
    out[:, top:bottom, left:end] = pixels[:, top - down : bottom - down, left - right : end - right]


def _per_channel(name: str, value: float | Sequence[float]) -> torch.Tensor:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * 3
    if len(values) != 3:
        raise ValueError(f"{name} must be one number or three, one per channel, got {value!r}")
    return torch.tensor(values).reshape(3, 1, 1)


def augment_batch(
    batch: Batch, transform: EvalTransform, generator: torch.Generator | None = None, part: tuple[int, int] = (0, 1)
) -> Batch:
    """Flip, shift, normalise and erase a batch of uint8 images on its device.

    It applies the parameters that ``make_loader(augment="device")`` drew; without any, as in evaluation, the images
    are normalised only. Flip, shift and normalisation equal those of a call of the transform to the bit. The noise in
    erased boxes is drawn from `generator`: other numbers, of the same distribution N(0, 1).

    Args:
        batch: Images ``(B, M, 3, H, W)`` uint8.
        transform: The one that the loader was made with; gives mean and standard deviation.
        generator: On the batch's device; may be None if nothing was drawn.
        part: Which of how many equal parts of a batch this one is, where processes share it: each draws the noise of
            the whole batch and takes its part, so that the noise does not depend on the number of processes.

    Returns:
        The batch with images ``(B, M, 3, H, W)`` float32, zeros where a modality is missing, and no parameters.

    Raises:
        ValueError: If the images are not uint8, or parameters were drawn but there is no generator.
    """
    images, params = batch.images, batch.augment_params
    if images.dtype != torch.uint8:
        raise ValueError(f"the batch has {images.dtype} images, which are augmented already: only uint8 ones are taken")
    if params is None:
        images = transform.normalise(images.float())
    elif generator is None:
        raise ValueError("augment_batch needs a generator on the batch's device for the noise in erased boxes")
    else:
        flip, down, right, top, left, height, width = params.long().unsqueeze(-1).unbind(2)  # (B, M, 1) each
        row = torch.arange(images.shape[3], device=images.device)
        column = torch.arange(images.shape[4], device=images.device)
        erased = _inside(row - top, height).unsqueeze(-1) & _inside(column - left, width).unsqueeze(-2)  # (B, M, H, W)
        images = transform.normalise(_move_on_device(images, row - down, column - right, flip.bool()).float())
        which, count = part
        noise = torch.randn((count, *images.shape), generator=generator, device=images.device)[which]
        images = torch.where(erased.unsqueeze(2), noise, images)
    images.masked_fill_(~batch.present[:, :, None, None, None], 0)
    return replace(batch, images=images, augment_params=None)


def _move_on_device(images: torch.Tensor, row: torch.Tensor, column: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Read ``(B, M, 3, H, W)`` at rows ``(B, M, H)`` and columns ``(B, M, W)``, of the flipped image where `flip`.

    What lies outside is black.
    """
    size, modalities, channels, rows, columns = images.shape
    inside = _inside(row, rows).unsqueeze(-1) & _inside(column, columns).unsqueeze(-2)
    column = torch.where(flip, columns - 1 - column, column)
    index = (
        torch.arange(size, device=images.device).view(-1, 1, 1, 1, 1),
        torch.arange(modalities, device=images.device).view(-1, 1, 1, 1),
        torch.arange(channels, device=images.device).view(-1, 1, 1),
        row.clamp(0, rows - 1)[:, :, None, :, None],
        column.clamp(0, columns - 1)[:, :, None, None, :],
    )
    return images[index].mul_(inside.unsqueeze(2))


def _inside(position: torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    return (position >= 0) & (position < count)
