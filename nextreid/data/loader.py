"""Samples to batches, the same for any number of worker processes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from torch.utils.data import DataLoader, Dataset

from .keyed import keyed_rng
from .pictures import open_pictures
from .sample import MODALITIES, Batch, Sample
from .sampler import PKSampler

Transform = Callable[[list[PILImage.Image | None], np.random.Generator], torch.Tensor]


class Item(NamedTuple):
    """One transformed sample: a row of a `Batch`."""

    images: torch.Tensor
    present: tuple[bool, ...]
    captions: list[tuple[str, ...]]
    pid: int
    camid: int
    sceneid: int
    key: str
    draw: tuple[int, int]


class SampleDataset(Dataset[Item]):
    """Reads and transforms samples.

    Args:
        samples: Samples with one picture per modality.
        transform: Called with M pictures (None where missing) and the generator that belongs to
            ``("augment", seed, epoch, slot, key)``; returns ``(M, 3, H, W)``.
        modalities: Names of the pictures, in their order.
        seed: Seed of the run.

    Raises:
        ValueError: If a sample has another number of pictures or captions than there are modalities.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        modalities: Sequence[str] = MODALITIES,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.modalities = tuple(modalities)
        self.seed = seed
        for sample in samples:
            for what, given in (("images", sample.images), ("captions", sample.captions)):
                if len(given) != len(self.modalities) and (what == "images" or given):
                    raise ValueError(
                        f"sample {sample.key!r} has {len(given)} {what}, expected one for each of "
                        f"{self.modalities}: load the data set with modalities={self.modalities!r}"
                    )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, item: int | tuple[int, int, int]) -> Item:
        """Return one sample, by its index (evaluation) or by ``(index, epoch, slot)`` from a sampler.

        Raises:
            ValueError: If a picture cannot be read; names the file, the sample and the modality.
        """
        index, epoch, slot = item if isinstance(item, tuple) else (item, 0, item)
        sample = self.samples[index]
        pictures = open_pictures(sample.images, sample.key, self.modalities)
        return Item(
            images=self.transform(pictures, keyed_rng("augment", self.seed, epoch, slot, sample.key)),
            present=tuple(picture is not None for picture in pictures),
            captions=list(sample.captions) or [()] * len(pictures),
            pid=sample.pid,
            camid=sample.camid,
            sceneid=sample.sceneid,
            key=sample.key,
            draw=(epoch, slot),
        )


def collate(items: Sequence[Item]) -> Batch:
    """Stack B items into a batch."""
    return Batch(
        images=torch.stack([item.images for item in items]),
        present=torch.tensor([item.present for item in items], dtype=torch.bool),
        captions=[item.captions for item in items],
        pid=torch.tensor([item.pid for item in items], dtype=torch.int64),
        camid=torch.tensor([item.camid for item in items], dtype=torch.int64),
        sceneid=torch.tensor([item.sceneid for item in items], dtype=torch.int64),
        keys=[item.key for item in items],
        draws=[item.draw for item in items],
    )


def make_loader(
    samples: Sequence[Sample],
    transform: Transform,
    modalities: Sequence[str] = MODALITIES,
    *,
    batch_size: int | None = None,
    sampler: PKSampler | None = None,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of batches, in the samples' order or as a sampler draws them.

    Neither the number of workers nor the global random generators change a byte of what it yields.

    Args:
        samples: Samples with one picture per modality.
        transform: See `SampleDataset`.
        modalities: Names of the pictures, in their order.
        batch_size: Samples per batch; may be left out with a sampler, which has its own.
        sampler: Batch sampler for training; call its `set_epoch` before each epoch. None keeps the order and all
            samples, the last batch may be smaller.
        seed: Seed of the augmentation.
        workers: Number of worker processes; 0 loads in this process.
        pin_memory: Whether to place batches in page-locked memory.

    Returns:
        The loader.

    Raises:
        ValueError: If there are no samples, or `batch_size` is missing, below 1, or not the sampler's.
    """
    if not samples:
        raise ValueError("there are no samples to load")
    dataset = SampleDataset(samples, transform, modalities, seed)
    if sampler is None:
        if batch_size is None or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 where there is no sampler, got {batch_size}")
        batches: PKSampler | list[list[int]] = [
            list(range(start, min(start + batch_size, len(samples)))) for start in range(0, len(samples), batch_size)
        ]
    elif batch_size in (None, sampler.batch_size):
        batches = sampler
    else:
        raise ValueError(f"batch_size={batch_size}, but the sampler's batches have {sampler.batch_size}: leave it out")
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # without one of its own the loader would draw from, and so advance, torch's global generator
        generator=torch.Generator(),
    )
