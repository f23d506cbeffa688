"""What the loader left undone to uint8 batches, on the device in a few operator calls."""

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
    """Flip, shift, normalise and erase a batch of uint8 images on the device that it lies on.

    The work of ``make_loader(augment="device")`` that is not the loader's: without draws, as in evaluation, the
    images are normalised only. Flip, shift and normalisation are those of the transform to the bit. The noise in
    erased boxes is drawn from `generator`: other numbers than the transform's, of the same distribution N(0, 1).

    Args:
        batch: Images ``(B, M, 3, H, W)`` uint8; a float batch is refused.
        transform: The one that the loader was made with; gives mean and standard deviation.
        generator: On the batch's device; may be None if nothing was drawn.
        part: Which of how many equal parts of a batch this one is, where processes share it: each draws the noise of
            the whole batch and takes its own, so that it does not depend on their number.

    Returns:
        The batch with images ``(B, M, 3, H, W)`` float32, zeros where a modality is missing, and no draws.

    Raises:
        ValueError: If the images are not uint8, or there are draws but no generator.
    """
    if batch.images.dtype != torch.uint8:
        raise ValueError(f"the batch holds {batch.images.dtype} images, finished ones: uint8 is what is augmented")
    if batch.augment_params is None:
        images = _normalised(batch.images, transform)
        return replace(batch, images=images.masked_fill_(_missing(batch), 0))
    if generator is None:
        raise ValueError("the batch has draws: pass a generator on its device for the noise of erased boxes")
    flip, down, right, top, left, height, width = (
        batch.augment_params.to(torch.int64).unsqueeze(-1).unbind(2)
    )  # (B, M, 1) each
    row = torch.arange(batch.images.shape[3], device=batch.images.device)
    column = torch.arange(batch.images.shape[4], device=batch.images.device)
    erased = _inside(row - top, height).unsqueeze(-1) & _inside(column - left, width).unsqueeze(-2)  # (B, M, H, W)
    moved = _moved(batch.images, row - down, column - right, flip.bool())
    images = _normalised(moved, transform)
    which, count = part
    noise = torch.randn((count, *images.shape), generator=generator, device=images.device)[which]
    images = torch.where(erased.unsqueeze(2), noise, images)
    return replace(batch, images=images.masked_fill_(_missing(batch), 0), augment_params=None)


def _moved(images: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """Read ``(B, M, 3, H, W)`` at rows ``(B, M, H)`` and columns ``(B, M, W)``, of the flipped image where `flip`.

    What lies outside is black.
    """
    size, modalities, channels, rows, columns = images.shape
    inside = _inside(row, rows).unsqueeze(-1) & _inside(column, columns).unsqueeze(-2)
    column = torch.where(flip, columns - 1 - column, column)
    places = (
        torch.arange(size, device=images.device).view(-1, 1, 1, 1, 1),
        torch.arange(modalities, device=images.device).view(-1, 1, 1, 1),
        torch.arange(channels, device=images.device).view(-1, 1, 1),
        row.clamp(0, rows - 1)[:, :, None, :, None],
        column.clamp(0, columns - 1)[:, :, None, None, :],
    )
    return images[places].mul_(inside.unsqueeze(2))


def _inside(place: Tensor, count: int | Tensor) -> Tensor:
    return (place >= 0) & (place < count)


def _normalised(images: Tensor, transform: EvalTransform) -> Tensor:
    mean, std = (value.to(images.device, non_blocking=True) for value in (transform.mean, transform.std))
    # by a tensor: a number would be turned into its reciprocal on CUDA, which rounds otherwise
    return images.float().div_(torch.full_like(mean, 255)).sub_(mean).div_(std)


def _missing(batch: Batch) -> Tensor:
    return ~batch.present[:, :, None, None, None]
