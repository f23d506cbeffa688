"""Images decoded once: unreadable, odd, copied or missing ones."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from ..image import ImageError, try_images
from ..sample import ReIDDataset, Sample
from .findings import Finding, Level, each_sample, found, found_in, tally

# JPEG may move a uniform grey by a step or two
_FLAT = 2

# by the reason of an `ImageError`, then by the kind of copy: what is wrong, what to do
_BAD = {
    "unreadable": ("images that cannot be read", "save them again; --on-error skip or mask trains without them"),
    "many-bits": (
        "images of more than 8 bits per channel",
        "say which raw values become black and white (the argument window of the reader), or save them with 8 bits",
    ),
    "wrong-size": ("images that are not of the declared size", "get them again, not resized or cropped"),
}
_COPIES: dict[str, tuple[Level, str, str]] = {
    "train-test-copy": ("error", "images that are in training and in test", "take them out of one of the two"),
    "identity-conflict": ("error", "images that belong to several identities", "correct the label or leave them out"),
    "copy": ("warning", "images that occur several times within one identity", "leave the copies out"),
    "modality-copy": (
        "warning",
        "images that occur in several modalities of one sample",
        "give the real image or none",
    ),
}


class ImageFacts(NamedTuple):
    """What one image showed."""

    size: tuple[int, int]  # width and height
    content: bytes  # hash of size and pixels
    flat: bool  # whether all pixels are alike


_Place = tuple[str, Sample, str]  # split, sample and modality
# for each sample, by its ``id``, what its M images showed or why not, None where one is missing
Inspected = dict[int, list[ImageFacts | ImageError | None]]


def inspect_images(
    dataset: ReIDDataset, workers: int = 0, progress: Callable[[int, int], object] | None = None
) -> Inspected:
    """Decode every image once, in threads or (0 workers) in this one; `progress` gets the samples done and all."""
    samples = [sample for _, sample in each_sample(dataset)]

    def inspect(sample: Sample) -> list[ImageFacts | ImageError | None]:
        opened = try_images(sample.images, sample.key, dataset.modalities)
        return [None if image is None else _facts(image) for image in opened]

    inspected: Inspected = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(inspect, samples) if workers > 0 else map(inspect, samples)
        for done, (sample, facts) in enumerate(zip(samples, results, strict=True), start=1):
            inspected[id(sample)] = facts
            if progress is not None:
                progress(done, len(samples))
    return inspected


def size_facts(dataset: ReIDDataset, split: str, inspected: Inspected) -> dict[str, dict[str, int]]:
    """Return by modality how many images of a split have each size ``"WxH"``, the most frequent first."""
    sizes: dict[str, Counter[str]] = {modality: Counter() for modality in dataset.modalities}
    for sample in dataset.splits()[split]:
        for modality, image in zip(dataset.modalities, inspected.get(id(sample), ()), strict=False):
            if isinstance(image, ImageFacts):
                sizes[modality]["{}x{}".format(*image.size)] += 1
    return {modality: dict(counter.most_common()) for modality, counter in sizes.items() if counter}


def check_images(dataset: ReIDDataset, inspected: Inspected) -> list[Finding]:
    """Return the findings about the images' content."""
    bad: dict[str, list[tuple[str, str]]] = defaultdict(list)
    flat, uneven = [], []
    places: dict[bytes, list[_Place]] = defaultdict(list)
    for split, sample in each_sample(dataset):
        sizes = {}
        for modality, image in zip(dataset.modalities, inspected[id(sample)], strict=True):
            if isinstance(image, ImageError):
                bad[image.reason].append((f"{split} {modality}", str(image)))
            elif image is not None:
                sizes[modality] = image.size
                if image.flat:
                    flat.append((f"{split} {modality}", sample.key))
                else:
                    places[image.content].append((split, sample, modality))
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{modality} {w}x{h}" for modality, (w, h) in sizes.items())
            uneven.append(f"{split} {sample.key}: {shown}")
    findings = []
    for reason, (what, hint) in _BAD.items():
        if pairs := bad[reason]:
            message = f"{what}: {len(pairs):,} ({tally(place for place, _ in pairs)})"
            findings.append(found("error", reason, message, hint, (text for _, text in pairs)))
    hint = "a black image is not a missing one: leave it out (an empty cell) if the sensor saw nothing"
    findings += found_in("warning", "flat-image", "images of one value everywhere", hint, flat)
    if uneven:
        message = f"samples whose images differ in size (width x height): {len(uneven):,}"
        hint = "all are resized for the model; check that they show the same part of the scene"
        findings.append(found("warning", "uneven-sizes", message, hint, uneven))
    copied: dict[str, list[str]] = defaultdict(list)
    for same in places.values():
        for code in _copy_codes(same):
            copied[code].append(" = ".join(f"{split} {modality} {s.key}" for split, s, modality in same[:4]))
    return findings + [
        found(level, code, f"{what}: {len(copied[code]):,}", hint, copied[code])
        for code, (level, what, hint) in _COPIES.items()
        if copied[code]
    ]


def check_presence(dataset: ReIDDataset) -> list[Finding]:
    """Return the finding about missing modalities; no image is opened."""
    missing = [
        (f"{split} {modality}", sample.key)
        for split, sample in each_sample(dataset)
        for modality, image in zip(dataset.modalities, sample.images, strict=True)
        if image is None
    ]
    images = {split: counts["images"] for split, counts in dataset.summary().items() if counts["samples"]}
    absent = [f"{split} {m}" for split, counts in images.items() for m, count in counts.items() if not count]
    hint = "models take samples with missing modalities; check that the files are really not there"
    if absent:
        hint = f"{', '.join(absent)} has no image at all: check the folders, or leave this modality out"
    return found_in("warning" if absent else "note", "missing-modality", "missing images", hint, missing)


def _facts(image: PILImage.Image | ImageError) -> ImageFacts | ImageError:
    if isinstance(image, ImageError):
        return ImageError(str(image), image.reason)  # without the traceback, which keeps decoded images alive
    rgb = image.convert("RGB")
    state = hashlib.blake2b(repr(rgb.size).encode(), digest_size=16)
    state.update(rgb.tobytes())
    flat = all(high - low <= _FLAT for low, high in np.reshape(rgb.getextrema(), (3, 2)))
    return ImageFacts(image.size, state.digest(), flat)


def _copy_codes(same: Sequence[_Place]) -> set[str]:
    """Return what is wrong with one image that occurs at all these places."""
    codes = set()
    if len({(id(sample), modality) for _, sample, modality in same}) > len({id(sample) for _, sample, _ in same}):
        codes.add("modality-copy")
    # a query that was copied into the gallery under its own key is one sample
    owners = {(split == "train", sample.key, sample.pid) for split, sample, _ in same}
    if len({train for train, _, _ in owners}) > 1:
        codes.add("train-test-copy")
    elif len({pid for _, _, pid in owners}) > 1:
        codes.add("identity-conflict")
    elif len(owners) > 1:
        codes.add("copy")
    return codes
