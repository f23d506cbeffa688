"""The three records that flow from readers to models: one sample, one batch, one data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

MODALITIES: tuple[str, ...] = ("rgb", "nir", "tir")

Image: TypeAlias = Path | np.ndarray


@dataclass(frozen=True, slots=True)
class Sample:
    """One object seen once: the same moment in every modality.

    Attributes:
        key: Unique in its data set; for published sets the file name, such as ``"000258_cam1_0_00.jpg"``.
        pid: Identity, or -1 when unknown.
        camid: Camera counted from 0, or -1 when unknown.
        sceneid: Scene, or -1 when the set has none.
        images: One per modality, each a file or a ``(H, W, 3)`` or ``(H, W)`` uint8 array, None where missing.
        captions: One tuple of sentences per modality; ``()`` means no captions at all, an inner ``()`` that this
            modality has none.
        truth: What a synthetic set knows about the picture (attributes, visibility, part map).
    """

    key: str
    pid: int
    camid: int
    sceneid: int
    images: tuple[Image | None, ...]
    captions: tuple[tuple[str, ...], ...] = ()
    truth: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Batch:
    """B samples, collated.

    Attributes:
        images: ``(B, M, 3, H, W)`` float32, zeros where a modality is missing.
        present: ``(B, M)`` bool, False where a modality is missing.
        captions: ``[B][M]`` tuples of sentences.
        pid: ``(B,)`` int64.
        camid: ``(B,)`` int64.
        sceneid: ``(B,)`` int64.
        keys: The samples' keys.
        draws: ``(epoch, slot)`` of each sample; ``(0, index)`` in evaluation.
    """

    images: torch.Tensor
    present: torch.Tensor
    captions: list[list[tuple[str, ...]]]
    pid: torch.Tensor
    camid: torch.Tensor
    sceneid: torch.Tensor
    keys: list[str]
    draws: list[tuple[int, int]]

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
        )


@dataclass(frozen=True)
class ReIDDataset:
    """A re-identification data set: three splits of samples, each sorted by key.

    Attributes:
        name: Registered name, such as ``"rgbnt201"``.
        modalities: Order of the pictures in every sample.
        object_type: What is re-identified.
        protocol: Name of the evaluation protocol.
        train: Training samples.
        query: Query samples.
        gallery: Gallery samples; may hold the very same objects as `query`.
        notes: What the reader noticed: pictures dropped, misnamed or missing, captions without a picture.
    """

    name: str
    modalities: tuple[str, ...]
    object_type: Literal["person", "vehicle"]
    protocol: str
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, dict[str, Any]]:
        """Count what each split holds.

        Returns:
            ``{split: {"samples", "ids", "cameras", "scenes", "pictures", "captions"}}`` for the splits train,
            query and gallery; the last two are dictionaries from modality to a count.
        """
        splits = {"train": self.train, "query": self.query, "gallery": self.gallery}
        return {split: _count(samples, self.modalities) for split, samples in splits.items()}


def _count(samples: Sequence[Sample], modalities: tuple[str, ...]) -> dict[str, Any]:
    return {
        "samples": len(samples),
        "ids": len({s.pid for s in samples}),
        "cameras": len({s.camid for s in samples if s.camid >= 0}),
        "scenes": len({s.sceneid for s in samples if s.sceneid >= 0}),
        "pictures": {m: sum(s.images[i] is not None for s in samples) for i, m in enumerate(modalities)},
        "captions": {m: sum(bool(s.captions and s.captions[i]) for s in samples) for i, m in enumerate(modalities)},
    }
