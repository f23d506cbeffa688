"""The three records that flow from readers to models: one sample, one batch, one dataset."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .image import Image, ImageFile, OnError, drop_unreadable_splits, image_path

MODALITIES: tuple[str, ...] = ("rgb", "nir", "tir")


@dataclass(frozen=True, slots=True)
class Sample:
    """One object seen once: the same moment in every modality.

    Attributes:
        key: Unique in its dataset; for published sets the file name, such as ``"000258_cam1_0_00.jpg"``.
        pid: Identity, or -1 when unknown.
        camid: Camera counted from 0, or -1 when unknown.
        sceneid: Scene, or -1 when the set has none.
        images: One per modality, each a file, a `ImageFile`, or a ``(H, W, 3)`` or ``(H, W)`` uint8 array; None
            where missing.
        captions: One tuple of sentences per modality; ``()`` means no captions at all, an inner ``()`` that this
            modality has none.
        truth: What a synthetic set knows about the image (attributes, visibility, part map).
    """

    key: str
    pid: int
    camid: int
    sceneid: int
    images: tuple[Image | None, ...]
    captions: tuple[tuple[str, ...], ...] = ()
    truth: Mapping[str, Any] | None = None


def check_counts(samples: Sequence[Sample], modalities: Sequence[str]) -> None:
    """Raise ValueError if a sample has another number of images or captions than there are modalities."""
    for sample in samples:
        for what, given in (("images", sample.images), ("captions", sample.captions)):
            if len(given) != len(modalities) and (what == "images" or given):
                raise ValueError(
                    f"sample {sample.key!r} has {len(given)} {what}, expected one for each of {tuple(modalities)}: "
                    f"load the dataset with modalities={tuple(modalities)!r}"
                )


@dataclass(slots=True)
class Batch:
    """B samples, collated.

    Attributes:
        images: ``(B, M, 3, H, W)`` float32, zeros where a modality is missing; uint8 where the device is still to
            finish them, see `augment_batch`.
        present: ``(B, M)`` bool, False where a modality is missing.
        captions: ``[B][M]`` tuples of sentences.
        pid: ``(B,)`` int64.
        camid: ``(B,)`` int64.
        sceneid: ``(B,)`` int64.
        keys: The samples' keys.
        draws: ``(epoch, slot)`` of each sample; ``(0, index)`` in evaluation.
        augment_params: ``(B, M, 7)`` int32, the `AugmentParams` that the device has still to apply to uint8 images;
            None where there is nothing to do.
    """

    images: torch.Tensor
    present: torch.Tensor
    captions: list[list[tuple[str, ...]]]
    pid: torch.Tensor
    camid: torch.Tensor
    sceneid: torch.Tensor
    keys: list[str]
    draws: list[tuple[int, int]]
    augment_params: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples B."""
        return len(self.keys)

    def to(self, device: torch.device | str) -> "Batch":
        """Return a batch whose tensors lie on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return a batch whose tensors lie in page-locked memory (called by the loader)."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(
            self,
            images=change(self.images),
            present=change(self.present),
            pid=change(self.pid),
            camid=change(self.camid),
            sceneid=change(self.sceneid),
            augment_params=None if self.augment_params is None else change(self.augment_params),
        )


@dataclass(frozen=True)
class ReIDDataset:
    """A re-identification dataset: three splits of samples, each sorted by key.

    Attributes:
        name: Registered name, such as ``"rgbnt201"``.
        modalities: Order of the images in every sample.
        object_type: What is re-identified, such as ``"person"`` or ``"vehicle"``.
        protocol: Name of the evaluation protocol.
        train: Training samples.
        query: Query samples.
        gallery: Gallery samples; may hold the very same objects as `query`.
        notes: What the reader noticed: images dropped, misnamed or missing, captions without an image.
    """

    name: str
    modalities: tuple[str, ...]
    object_type: str
    protocol: str
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, dict[str, Any]]:
        """Count what each split holds.

        Returns:
            ``{split: {"samples", "ids", "cameras", "scenes", "images", "captions"}}`` for the splits train,
            query and gallery; the last two are dictionaries from modality to a count.
        """
        return {split: _count(samples, self.modalities) for split, samples in self._splits().items()}

    def drop_unreadable(self, on_error: OnError) -> "ReIDDataset":
        """Return the set after every image was decoded once, without those that cannot be read.

        Args:
            on_error: ``"raise"``, ``"skip"`` or ``"mask"``, see `drop_unreadable`.

        Returns:
            The same set where nothing is wrong, else one whose notes say what was done.

        Raises:
            ValueError: If an image is bad and `on_error` is "raise".
        """
        (train, query, gallery), notes = drop_unreadable_splits(self._splits(), self.modalities, on_error)
        if not notes:
            return self
        return replace(self, train=train, query=query, gallery=gallery, notes=(*self.notes, *notes))

    def digest(self) -> str:
        """Return a fingerprint of what is read, the same wherever the files lie.

        It covers the modalities and, split by split and in order, every sample's key, labels, captions, which
        images it has, and each image's size in bytes, crop and window (of arrays: their values). Two sets of one
        fingerprint train and score alike unless files of one size differ in content.

        Returns:
            16 hexadecimal digits.

        Raises:
            FileNotFoundError: If an image is gone.
        """
        state = hashlib.blake2b(digest_size=8)
        state.update(repr(self.modalities).encode())
        for split, samples in self._splits().items():
            state.update(f"\n{split} {len(samples)}".encode())
            for s in samples:
                # ascii, not repr: which characters repr escapes depends on the interpreter's Unicode version
                state.update(ascii((s.key, s.pid, s.camid, s.sceneid, s.captions)).encode())
                for image in s.images:
                    state.update(_fingerprint(image))
        return state.hexdigest()

    def _splits(self) -> dict[str, Sequence[Sample]]:
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def _fingerprint(image: Image | None) -> bytes:
    if isinstance(image, np.ndarray):
        return f"array {image.shape} {image.dtype} ".encode() + np.ascontiguousarray(image).tobytes()
    path = image_path(image) if image is not None else None
    if path is None:
        return b"none"
    part = (image.box, image.window) if isinstance(image, ImageFile) else (None, None)
    return f"file {path.stat().st_size} {part}".encode()


def _count(samples: Sequence[Sample], modalities: tuple[str, ...]) -> dict[str, Any]:
    return {
        "samples": len(samples),
        "ids": len({s.pid for s in samples}),
        "cameras": len({s.camid for s in samples if s.camid >= 0}),
        "scenes": len({s.sceneid for s in samples if s.sceneid >= 0}),
        "images": {m: sum(s.images[i] is not None for s in samples) for i, m in enumerate(modalities)},
        "captions": {m: sum(bool(s.captions and s.captions[i]) for s in samples) for i, m in enumerate(modalities)},
    }
