"""Samples to batches, the same for any number of worker processes."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_convert

from .image import open_images
from .image_cache import ImageCache
from .rng import seeded_rng
from .sample import MODALITIES, Batch, Sample, as_modalities, check_counts
from .sampler import PKSampler
from .transforms import AugmentParams, EvalTransform, Pixels, TrainTransform

Transform = Callable[[list[Pixels | None], np.random.Generator], torch.Tensor]
Augment = Literal["cpu", "device"]


class Item(NamedTuple):
    """One sample with its images transformed, or (uint8) left to the device: a row of a `Batch`."""

    sample: Sample
    images: torch.Tensor
    draw: tuple[int, int]
    augment_params: list[AugmentParams] | None = None


class SampleDataset(Dataset[Item]):
    """Reads and transforms samples.

    Args:
        samples: Samples with one image per modality.
        transform: Called with M images (None where missing) and the generator that belongs to
            ``("augment", seed, epoch, slot, key)``; returns ``(M, 3, H, W)``.
        modalities: Names of the images, in their order.
        seed: Seed of the run.
        store: A cache to read the images from instead of their files; the result is the same to the bit.
        augment: ``"cpu"`` transforms; ``"device"`` only resizes and draws, and leaves uint8 images to
            `augment_batch`.

    Raises:
        ValueError: If a sample has another number of images or captions than there are modalities, or a cache or
            ``"device"`` is combined with a custom transform or one that resizes in another way.
        KeyError: If an image is not in the cache.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        modalities: Sequence[str] = MODALITIES,
        seed: int = 0,
        *,
        store: ImageCache | None = None,
        augment: Augment = "cpu",
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.modalities = as_modalities(modalities)
        self.seed = seed
        self.store = store
        self.augment = augment
        check_counts(samples, self.modalities)
        if augment not in get_args(Augment):
            raise ValueError(f"augment must be one of {get_args(Augment)}, got {augment!r}")
        if (store is not None or augment == "device") and not isinstance(transform, EvalTransform):
            raise ValueError(
                f"a cache and augment='device' need an EvalTransform or TrainTransform, got {type(transform).__name__}"
            )
        if store is not None:
            store.check(transform)  # type: ignore[arg-type]
            self._rows = store.rows(samples, self.modalities)

    def __repr__(self) -> str:
        where = "their files" if self.store is None else self.store
        return f"SampleDataset({len(self.samples)} samples from {where}, {self.transform!r}, augment={self.augment!r})"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitems__(self, items: Sequence[int | tuple[int, int, int]]) -> Batch:
        """Return a batch (called by the loader)."""
        if not isinstance(self.transform, EvalTransform):
            return collate([self[item] for item in items])
        # NumPy allots large arrays in huge pages, which are four times faster to fill
        shape = (len(items), len(self.modalities), 3, *self.transform.img_size)
        images = torch.from_numpy(np.empty(shape, np.float32 if self.augment == "cpu" else np.uint8))
        return collate([self.__getitem__(item, out) for item, out in zip(items, images, strict=True)], images)

    def __getitem__(self, item: int | tuple[int, int, int], out: torch.Tensor | None = None) -> Item:
        """Return one sample, by its index (evaluation) or by ``(index, epoch, slot)`` from a sampler.

        Args:
            item: Which sample, and in training which draw.
            out: Where to put its images.

        Raises:
            ValueError: If an image cannot be read; names the file, the sample and the modality.
        """
        index, epoch, slot = item if isinstance(item, tuple) else (item, 0, item)
        sample, transform = self.samples[index], self.transform
        rng = seeded_rng("augment", self.seed, epoch, slot, sample.key)
        params = None
        if not isinstance(transform, EvalTransform):
            images = transform(self._images(index), rng)
        elif self.augment == "cpu":
            images = transform(self._images(index), rng, out)
        else:
            shape = (len(self.modalities), 3, *transform.img_size)
            images = torch.empty(shape, dtype=torch.uint8) if out is None else out
            self._fill(images.numpy(), index, transform)
            if isinstance(transform, TrainTransform):
                params = list(transform.draws(len(self.modalities), rng))
        return Item(sample, images, (epoch, slot), params)

    def _images(self, index: int) -> list[Pixels | None]:
        if self.store is not None:
            return [None if row < 0 else self.store.pixels[row] for row in self._rows[index]]
        sample = self.samples[index]
        return [*open_images(sample.images, sample.key, self.modalities)]

    def _fill(self, out: np.ndarray, index: int, transform: EvalTransform) -> None:
        """Put the images of a sample at the input size into `out`, ``(M, 3, H, W)`` uint8, zeros for missing ones."""
        if self.store is not None:
            self.store.take(self._rows[index], out)
        else:
            for target, image in zip(out, self._images(index), strict=True):
                target[:] = 0 if image is None else transform.pixels(image)


def collate(items: Sequence[Item], images: torch.Tensor | None = None) -> Batch:
    """Stack B items into a batch; `images` are theirs if they are one tensor already.

    Raises:
        ValueError: If there is no item, and no `images` to say what shape their batch has.
    """
    if not items and images is None:
        raise ValueError("there are no samples to collate: a batch needs at least one")
    samples = [item.sample for item in items]
    params = [item.augment_params for item in items]
    batch = torch.stack([item.images for item in items]) if images is None else images
    present = [[image is not None for image in sample.images] for sample in samples]
    return Batch(
        images=batch,
        present=torch.tensor(present, dtype=torch.bool).reshape(batch.shape[:2]),
        captions=[list(sample.captions) or [()] * len(sample.images) for sample in samples],
        pid=torch.tensor([sample.pid for sample in samples], dtype=torch.int64),
        camid=torch.tensor([sample.camid for sample in samples], dtype=torch.int64),
        sceneid=torch.tensor([sample.sceneid for sample in samples], dtype=torch.int64),
        keys=[sample.key for sample in samples],
        draws=[item.draw for item in items],
        augment_params=None if None in params else torch.tensor(params, dtype=torch.int32),
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
    store: ImageCache | None = None,
    augment: Augment = "cpu",
) -> DataLoader[Batch]:
    """Return a loader of batches, in the samples' order or as a sampler draws them.

    Neither the number of workers, nor a cache, nor the global random generators change a byte of what it yields.

    Args:
        samples: Samples with one image per modality.
        transform: See `SampleDataset`.
        modalities: Names of the images, in their order.
        batch_size: Samples per batch; may be left out with a sampler, which has its own.
        sampler: Batch sampler for training; call its `set_epoch` before each epoch. None keeps the order and all
            samples, the last batch may be smaller.
        seed: Seed of the augmentation.
        workers: Number of worker processes; 0 loads in this process.
        pin_memory: Whether to place batches in page-locked memory.
        store: See `SampleDataset`.
        augment: See `SampleDataset`; with ``"device"`` each batch is finished by `augment_batch`.

    Returns:
        The loader.

    Raises:
        ValueError: If there are no samples, `batch_size` is missing, below 1, or not the sampler's, or as
            `SampleDataset`.
        KeyError: If an image is not in the cache.
    """
    if not samples:
        raise ValueError("there are no samples to load")
    dataset = SampleDataset(samples, transform, modalities, seed, store=store, augment=augment)
    if sampler is None:
        if batch_size is None or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 where there is no sampler, got {batch_size}")
        batches: PKSampler | BatchSampler = BatchSampler(range(len(samples)), batch_size, drop_last=False)
    elif batch_size in (None, sampler.batch_size):
        batches = sampler
    else:
        raise ValueError(f"batch_size={batch_size}, but the sampler's batches have {sampler.batch_size}: leave it out")
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=default_convert,  # leaves a batch as it is
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # without one of its own the loader would draw from, and so advance, torch's global generator
        generator=torch.Generator(),
    )
