"""The augmentation of `TrainTransform` on the device: a batch of uint8 images in a few operator calls."""

from dataclasses import replace

import torch
from torch import Tensor

from .sample import Batch
from .transforms import EvalTransform


def augment_batch(
    batch: Batch,
    transform: EvalTransform,
    generator: torch.Generator | None = None,
    part: tuple[int, int] = (0, 1),
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
        images = transform.normalise(_move(images, row - down, column - right, flip.bool()).float())
        which, count = part
        noise = torch.randn((count, *images.shape), generator=generator, device=images.device)[which]
        images = torch.where(erased.unsqueeze(2), noise, images)
    images.masked_fill_(~batch.present[:, :, None, None, None], 0)
    return replace(batch, images=images, augment_params=None)


def _move(images: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
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


def _inside(position: Tensor, count: int | Tensor) -> Tensor:
    return (position >= 0) & (position < count)
