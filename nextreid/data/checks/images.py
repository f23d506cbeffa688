"""Images decoded once: unreadable, odd, copied or empty ones."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from ..image import Image, ImageFile, image_path, open_image, open_images
from ..sample import ReIDDataset, Sample
from .findings import Finding, Level, each_sample, found, splits_of, tally

# JPEG may move a uniform grey by a step or two
_FLAT = 2

_BAD = {
    "unreadable": (
        "images that cannot be read",
        "get or save them again; --on-error skip or mask trains without them",
    ),
    "many-bits": (
        "images of more than 8 bits per channel",
        "say which raw values become black and white (the argument window of the reader), or save them with 8 bits",
    ),
    "wrong-size": (
        "images that have not the size which this dataset declares",
        "get them again, not resized or cropped",
    ),
}


@dataclass(frozen=True, slots=True)
class Look:
    """What one image showed.

    Attributes:
        size: Width and height; None where it could not be read.
        content: Hash of its size and pixels.
        flat: Whether all pixels are alike.
        problem: Why it could not be read, as the code of a finding; else ``""``.
        message: The error in words.
    """

    size: tuple[int, int] | None = None
    content: bytes = b""
    flat: bool = False
    problem: str = ""
    message: str = ""


Looks = dict[int, list[Look | None]]


def look_at_images(
    dataset: ReIDDataset, workers: int = 0, progress: Callable[[int, int], object] | None = None
) -> Looks:
    """Decode every image once.

    Args:
        dataset: Its samples' images are opened.
        workers: Threads; 0 decodes in this one.
        progress: Called with the samples done and all samples.

    Returns:
        For each sample, by its ``id``, what its M images showed, None where one is missing.
    """
    samples = [sample for _, sample in each_sample(dataset)]

    def look(sample: Sample) -> list[Look | None]:
        return _look_at(sample, dataset.modalities)

    looks: Looks = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results: Iterator[list[Look | None]] = pool.map(look, samples) if workers > 0 else map(look, samples)
        for done, (sample, seen) in enumerate(zip(samples, results, strict=True), start=1):
            looks[id(sample)] = seen
            if progress is not None:
                progress(done, len(samples))
    return looks


def size_facts(dataset: ReIDDataset, looks: Looks) -> dict[str, dict[str, dict[str, int]]]:
    """Return, by split and modality, how many images have each size ``"WxH"``, the most frequent first."""
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for split, samples in splits_of(dataset).items():
        sizes: dict[str, Counter[str]] = {modality: Counter() for modality in dataset.modalities}
        for sample in samples:
            for modality, look in zip(dataset.modalities, looks[id(sample)], strict=True):
                if look is not None and look.size is not None:
                    sizes[modality][f"{look.size[0]}x{look.size[1]}"] += 1
        facts[split] = {modality: dict(counter.most_common()) for modality, counter in sizes.items() if counter}
    return facts


def check_images(dataset: ReIDDataset, looks: Looks) -> list[Finding]:
    """Return the findings about the images' content."""
    return [*_bad(dataset, looks), *_odd(dataset, looks), *_copies(dataset, looks)]


def check_presence(dataset: ReIDDataset) -> list[Finding]:
    """Return the finding about missing modalities; no image is opened."""
    places: list[str] = []
    names: list[str] = []
    absent: list[str] = []
    for split, sample in each_sample(dataset):
        for modality, image in zip(dataset.modalities, sample.images, strict=True):
            if image is None:
                places.append(f"{split} {modality}")
                names.append(f"{split} {modality} {sample.key}")
    for split, samples in splits_of(dataset).items():
        for index, modality in enumerate(dataset.modalities):
            if samples and all(sample.images[index] is None for sample in samples):
                absent.append(f"{split} {modality}")
    if not places:
        return []
    if absent:
        remedy = f"there is none at all of {', '.join(absent)}: check the folders, or leave this modality out"
    else:
        remedy = "models take samples with missing modalities; check that the files are really not there"
    message = f"missing images: {len(places):,} ({tally(places)})"
    return [found("warning" if absent else "note", "missing-modality", message, remedy, names)]


def _look_at(sample: Sample, modalities: Sequence[str]) -> list[Look | None]:
    try:
        images = open_images(sample.images, sample.key, modalities)
        return [None if image is None else _look(image) for image in images]
    except ValueError:
        pass  # something is wrong: look at each
    looks: list[Look | None] = []
    for image, modality in zip(sample.images, modalities, strict=True):
        try:
            looks.append(None if image is None else _look(open_image(image, sample.key, modality)))
        except ValueError as error:
            looks.append(Look(problem=_problem(image), message=str(error)))
    return looks


def _look(image: PILImage.Image) -> Look:
    rgb = image.convert("RGB")
    state = hashlib.blake2b(repr(rgb.size).encode(), digest_size=16)
    state.update(rgb.tobytes())
    flat = all(high - low <= _FLAT for low, high in np.reshape(rgb.getextrema(), (3, 2)))
    return Look(image.size, state.digest(), flat)


def _problem(image: Image | None) -> str:
    """Return why an image could not be opened, told by the file's header."""
    path = None if image is None else image_path(image)
    if path is None:
        return "unreadable"
    try:
        with PILImage.open(path) as file:
            size, mode = file.size, file.mode
            raw = " ".join(str(tile[3]) for tile in file.tile)
    except Exception:
        return "unreadable"
    if isinstance(image, ImageFile) and image.size is not None and size != tuple(image.size):
        return "wrong-size"
    deep = mode.startswith(("I", "F")) or (mode in ("RGB", "RGBA", "LA") and ";16" in raw)
    return "many-bits" if deep else "unreadable"


def _each_image(dataset: ReIDDataset, looks: Looks) -> Iterator[tuple[str, Sample, str, Look]]:
    for split, sample in each_sample(dataset):
        for modality, look in zip(dataset.modalities, looks[id(sample)], strict=True):
            if look is not None:
                yield split, sample, modality, look


def _bad(dataset: ReIDDataset, looks: Looks) -> list[Finding]:
    bad: dict[str, list[tuple[str, str]]] = {code: [] for code in _BAD}
    for split, _, modality, look in _each_image(dataset, looks):
        if look.problem:
            bad[look.problem].append((f"{split} {modality}", look.message))
    findings = []
    for code, pairs in bad.items():
        if pairs:
            what, remedy = _BAD[code]
            message = f"{what}: {len(pairs):,} ({tally(place for place, _ in pairs)})"
            findings.append(found("error", code, message, remedy, (text for _, text in pairs)))
    return findings


def _odd(dataset: ReIDDataset, looks: Looks) -> list[Finding]:
    findings = []
    flat = [(f"{split} {m}", s.key) for split, s, m, look in _each_image(dataset, looks) if look.flat]
    if flat:
        message = f"images of one value everywhere: {len(flat):,} ({tally(place for place, _ in flat)})"
        remedy = "a black image is not a missing one: leave it out (an empty cell) if the sensor saw nothing"
        findings.append(found("warning", "flat-image", message, remedy, map(" ".join, flat)))
    uneven = []
    for split, sample in each_sample(dataset):
        sizes = {
            modality: look.size
            for modality, look in zip(dataset.modalities, looks[id(sample)], strict=True)
            if look is not None and look.size is not None
        }
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{modality} {w}x{h}" for modality, (w, h) in sizes.items())
            uneven.append(f"{split} {sample.key}: {shown}")
    if uneven:
        message = f"samples whose images differ in size (width x height): {len(uneven):,}"
        remedy = "all are resized for the model; check that they show the same part of the scene"
        findings.append(found("warning", "uneven-sizes", message, remedy, uneven))
    return findings


def _copies(dataset: ReIDDataset, looks: Looks) -> list[Finding]:
    places: dict[bytes, list[tuple[str, Sample, str]]] = defaultdict(list)
    for split, sample, modality, look in _each_image(dataset, looks):
        if look.size is not None and not look.flat:
            places[look.content].append((split, sample, modality))
    copied: dict[str, list[str]] = {code: [] for code in _COPIES}
    for same in places.values():
        for code in _kinds(same):
            copied[code].append(" = ".join(f"{split} {modality} {s.key}" for split, s, modality in same[:4]))
    findings = []
    for code, names in copied.items():
        if names:
            level, what, remedy = _COPIES[code]
            findings.append(found(level, code, f"{what}: {len(names):,}", remedy, names))
    return findings


_COPIES: dict[str, tuple[Level, str, str]] = {
    "train-test-copy": (
        "error",
        "images that stand in training and in test",
        "take them out of one of the two: a model may know them by heart",
    ),
    "identity-conflict": (
        "error",
        "images that stand under several identities",
        "one of the labels is wrong: correct it, or leave the image out",
    ),
    "copy": ("warning", "images that occur several times within one identity", "leave the copies out"),
    "modality-copy": (
        "warning",
        "images that stand in several modalities of one sample",
        "a copy is no second sensor: give the real image, or none",
    ),
}


def _kinds(same: Sequence[tuple[str, Sample, str]]) -> set[str]:
    """Return what is wrong with one image that occurs at all these places."""
    kinds = set()
    if len({(id(sample), modality) for _, sample, modality in same}) > len({id(sample) for _, sample, _ in same}):
        kinds.add("modality-copy")
    # a query that was copied into the gallery under its own key is one sample
    owners = {(split == "train", sample.key, sample.pid) for split, sample, _ in same}
    if len({train for train, _, _ in owners}) > 1:
        kinds.add("train-test-copy")
    elif len({pid for _, _, pid in owners}) > 1:
        kinds.add("identity-conflict")
    elif len(owners) > 1:
        kinds.add("copy")
    return kinds
