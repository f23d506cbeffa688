"""The records that flow from readers to models: one sample, one batch, one dataset."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, get_args

import numpy as np
import torch

from .._names import first_few, show
from .image import Image, ImageError, ImageFile, OnError, image_path, try_images

MODALITIES: tuple[str, ...] = ("rgb", "nir", "tir")
LabelNames: TypeAlias = Mapping[str, Mapping[int, str]]
"""What files call a label, by field (``"pid"``, ``"camid"``, ``"sceneid"``) and number; numbers without a name stay."""


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """One object seen once: the same moment in every modality.

    Attributes:
        key: Unique in its dataset; for published sets the file name, such as ``"000258_cam1_0_00.jpg"``.
        pid: Identity, or -1 when unknown.
        camid: Camera counted from 0, or -1 when unknown.
        sceneid: Scene, or -1 when the dataset has none.
        images: One per modality, each a file, an `ImageFile`, or a ``(H, W, 3)`` or ``(H, W)`` uint8 array; None
            where missing.
        captions: One tuple of sentences per modality; ``()`` means no captions at all, an inner ``()`` that this
            modality has none.
        truth: What a synthetic dataset knows about the image (attributes, visibility, part map).
    """

    key: str
    pid: int
    camid: int
    sceneid: int
    images: tuple[Image | None, ...]
    captions: tuple[tuple[str, ...], ...] = ()
    truth: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.captions, str):
            raise ValueError(f"sample {self.key!r}: captions must be one entry for each modality, not one string")
        object.__setattr__(self, "captions", tuple(map(as_sentences, self.captions)))

    def __repr__(self) -> str:
        images = f"{sum(image is not None for image in self.images)} of {len(self.images)} images"
        labels = f"pid={self.pid}, camid={self.camid}, sceneid={self.sceneid}"
        return f"Sample({self.key!r}, {labels}, {images}, {sum(map(len, self.captions))} sentences)"


def as_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    """Return the modalities as a tuple; a string is one modality, or several with commas between, never its letters.

    Raises:
        ValueError: If there is none, one is no name, or one occurs twice.
    """
    names = tuple(map(str.strip, modalities.split(","))) if isinstance(modalities, str) else tuple(modalities)
    if not names or len(set(map(str, names))) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"modalities must be one or more names, each once, got {show(names)}")
    return names


def as_sentences(caption: Iterable[str] | str | None) -> tuple[str, ...]:
    """Return a caption as a tuple of sentences; a string is one sentence, never its letters; None is no caption.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(caption, str):
        return (caption,) if caption.strip() else ()
    sentences = tuple(caption if isinstance(caption, Iterable) else () if caption is None else (caption,))
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f"a caption must be a list of sentences, one string, or None; got {show(caption)}")
    return sentences


def repeated_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys that occur more than once, in the order of their first occurrence."""
    return [key for key, count in Counter(keys).items() if count > 1]


def check_counts(samples: Sequence[Sample], modalities: Sequence[str]) -> None:
    """Raise ValueError if a sample does not have one image, and one caption or none, for each modality."""
    for sample in samples:
        for what, given in (("images", sample.images), ("captions", sample.captions)):
            if len(given) != len(modalities) and (what == "images" or given):
                raise ValueError(
                    f"sample {sample.key!r} has {len(given)} {what}, expected one for each of {tuple(modalities)}: "
                    f"load the dataset with modalities={tuple(modalities)!r}"
                )


@dataclass(slots=True, repr=False)
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

    def __repr__(self) -> str:
        images = self.images
        return f"Batch({len(self)} samples, images {tuple(images.shape)} {images.dtype} on {images.device})"

    def to(self, device: torch.device | str) -> "Batch":
        """Return a batch whose tensors lie on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return a batch whose tensors lie in page-locked memory (called by the loader)."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: change(value) for name, value in fields.items() if isinstance(value, torch.Tensor)}
        return Batch(**fields | tensors)


@dataclass(frozen=True, repr=False)
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
        label_names: For ``"pid"``, ``"camid"`` and ``"sceneid"``: what the files call the labels that are numbered
            differently here, such as ``{"camid": {0: "1"}}``; see `label_name`.
    """

    name: str
    modalities: tuple[str, ...]
    object_type: str
    protocol: str
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    label_names: LabelNames = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        counts = (
            f"{name} {len(s)} samples of {len({x.pid for x in s} - {-1})} ids" for name, s in self.splits().items()
        )
        facts = f"{'+'.join(self.modalities)}, protocol {self.protocol!r}, {', '.join(counts)}"
        return f"ReIDDataset({self.name!r}, {facts}, {len(self.notes)} notes)"

    def summary(self) -> dict[str, dict[str, Any]]:
        """Count what each split holds.

        Returns:
            ``{split: {"samples", "ids", "cameras", "scenes", "images", "captions"}}`` for the splits train,
            query and gallery; the last two are dictionaries from modality to a count.
        """
        return {
            split: {
                "samples": len(samples),
                "ids": len({s.pid for s in samples if s.pid >= 0}),
                "cameras": len({s.camid for s in samples if s.camid >= 0}),
                "scenes": len({s.sceneid for s in samples if s.sceneid >= 0}),
                "images": {m: sum(s.images[i] is not None for s in samples) for i, m in enumerate(self.modalities)},
                "captions": {
                    m: sum(any(s.captions[i : i + 1]) for s in samples) for i, m in enumerate(self.modalities)
                },
            }
            for split, samples in self.splits().items()
        }

    def label_name(self, field: str, value: int) -> str:
        """Return what the files call a label, such as ``label_name("camid", 0)``; "unknown" for -1."""
        return self.label_names.get(field, {}).get(value, str(value)) if value >= 0 else "unknown"

    def splits(self) -> dict[str, tuple[Sample, ...]]:
        """Return the splits by name: train, query and gallery."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}

    def drop_unreadable(self, on_error: OnError, progress: Callable[[int, int], object] | None = None) -> "ReIDDataset":
        """Decode every image once and return the dataset without those that cannot be read, see `drop_unreadable`.

        It is this very dataset where nothing is wrong, else one whose notes say what was done.
        """
        kept, notes = drop_unreadable(self.splits(), self.modalities, on_error, progress)
        changes: dict[str, Any] = {**kept, "notes": (*self.notes, *notes)}
        return replace(self, **changes) if notes else self

    def digest(self) -> str:
        """Return a fingerprint of what is read, the same wherever the files lie.

        It covers the modalities and, split by split and in order, every sample's key, labels, captions, which
        images it has, and each image's size in bytes, crop and window (of arrays: their values). Two datasets of one
        fingerprint train and score alike unless files of one size differ in content.

        Returns:
            16 hexadecimal digits.

        Raises:
            FileNotFoundError: If an image is gone.
        """
        state = hashlib.blake2b(digest_size=8)
        state.update(repr(self.modalities).encode())
        for split, samples in self.splits().items():
            state.update(f"\n{split} {len(samples)}".encode())
            for s in samples:
                # ascii, not repr: which characters repr escapes depends on the interpreter's Unicode version
                state.update(ascii((s.key, s.pid, s.camid, s.sceneid, s.captions)).encode())
                for image in s.images:
                    state.update(_fingerprint(image))
        return state.hexdigest()


def drop_unreadable(
    splits: Mapping[str, Sequence[Sample]],
    modalities: Sequence[str],
    on_error: OnError,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[dict[str, tuple[Sample, ...]], list[str]]:
    """Decode every image once and decide about those that cannot be read, before anything is trained or scored.

    The outcome depends on the files only, so that worker processes and ranks agree on the samples. A sample that is
    in several splits is decoded once.

    Args:
        splits: Samples with one image per modality, by the name of their split.
        modalities: Names of the images, in their order.
        on_error: ``"raise"`` an error that counts all bad images, ``"skip"`` samples that have one, or ``"mask"``:
            the modality is missing from there on, image and caption; a sample without any is left out.
        progress: Called with the number of samples decoded and of all.

    Returns:
        The samples that remain, in their order and untouched where nothing was wrong, and a note for each thing done.

    Raises:
        ValueError: If an image is bad and `on_error` is "raise", or `on_error` is not one of the three.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}; got {on_error!r}")
    modalities = as_modalities(modalities)
    every = {id(sample): sample for samples in splits.values() for sample in samples}

    def find_errors(sample: Sample) -> dict[str, str]:
        opened = zip(modalities, try_images(sample.images, sample.key, modalities), strict=True)
        return {modality: str(image) for modality, image in opened if isinstance(image, ImageError)}

    errors: dict[int, dict[str, str]] = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for done, (key, found) in enumerate(zip(every, pool.map(find_errors, every.values()), strict=True), start=1):
            if found:
                errors[key] = found
            if progress is not None:
                progress(done, len(every))
    if errors and on_error == "raise":
        messages = [message for found in errors.values() for message in found.values()]
        more = f"\n… and {len(messages) - 5} more" if len(messages) > 5 else ""
        raise ValueError(
            f"{len(messages)} images of {len(errors)} samples cannot be read; repair them, or leave out the samples "
            'with on_error="skip" or only the images with on_error="mask":\n' + "\n".join(messages[:5]) + more
        )
    masked = {key: _mask(every[key], found, modalities) for key, found in errors.items() if on_error == "mask"}
    notes: list[str] = []
    kept: dict[str, tuple[Sample, ...]] = {}
    for split, samples in splits.items():
        after = [masked.get(id(sample)) if id(sample) in errors else sample for sample in samples]
        kept[split] = tuple(sample for sample in after if sample is not None)
        if dropped := [sample.key for sample, left in zip(samples, after, strict=True) if left is None]:
            why = "an image" if on_error == "skip" else "all of their images"
            notes.append(f"{split}: {len(dropped)} samples left out, {why} cannot be read: {first_few(dropped)}")
        for modality in modalities:
            if hidden := [s.key for s in samples if masked.get(id(s)) and modality in errors[id(s)]]:
                keys = first_few(hidden)
                notes.append(f"{split}: {modality} of {len(hidden)} samples cannot be read, missing: {keys}")
    return kept, notes


def _mask(sample: Sample, bad: Mapping[str, str], modalities: Sequence[str]) -> Sample | None:
    """Return the sample without the bad modalities, None where no image is left."""
    images = tuple(None if m in bad else image for m, image in zip(modalities, sample.images, strict=True))
    if all(image is None for image in images):
        return None
    captions = tuple(() if m in bad else text for m, text in zip(modalities, sample.captions, strict=False))
    return replace(sample, images=images, captions=captions)


def _fingerprint(image: Image | None) -> bytes:
    if isinstance(image, np.ndarray):
        return f"array {image.shape} {image.dtype} ".encode() + np.ascontiguousarray(image).tobytes()
    path = image_path(image)
    if path is None:
        return b"none"
    part = (image.box, image.window) if isinstance(image, ImageFile) else (None, None)
    return f"file {path.stat().st_size} {part}".encode()
