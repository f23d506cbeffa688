"""Images decoded once: unreadable, odd or missing ones."""

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import log

import numpy as np

from ..image import ImageError, try_images
from ..sample import ReIDDataset, Sample
from .facts import ImageFacts, image_facts
from .findings import Finding, each_sample, found, found_in, tally

# by the reason of an `ImageError`: what is wrong, what to do
_BAD = {
    "unreadable": ("images that cannot be read", "save them again; --on-error skip or mask trains without them"),
    "many-bits": (
        "images of more than 8 bits per channel",
        "say which raw values become black and white (the argument window of the reader), or save them with 8 bits",
    ),
    "wrong-size": ("images that are not of the declared size", "get them again, not resized or cropped"),
}
# by code: what is odd, what to do
_ODD = {
    "flat-image": (
        "images of one value everywhere",
        "a black image is not a missing one: leave it out (an empty cell) if the sensor saw nothing",
    ),
    "noise-image": ("images of noise", "their neighbouring pixels have nothing to do with each other; get them again"),
    "cmyk": ("images in CMYK", "they are read, but their colours depend on the reader: save them as RGB"),
    "odd-size": (
        "images far larger, smaller, wider or narrower than those of their modality",
        "check that they show one object, not the whole frame or a sliver",
    ),
}
_NOISE = 0.15  # smoothness below which there is no image; photographs of all spectra have 0.7 and more
_SPREADS = 6  # robust standard deviations that a size may be off
_AREA, _ASPECT = log(16), log(3)  # and the least ratio that counts

# for each sample, by its ``id``, what its M images showed or why not, None where one is missing
Inspected = dict[int, list[ImageFacts | ImageError | None]]


def inspect_images(
    dataset: ReIDDataset, workers: int = 0, progress: Callable[[int, int], object] | None = None
) -> Inspected:
    """Decode every image once, in threads or (0 workers) in this one; `progress` gets the samples done and all."""
    samples = [sample for _, sample in each_sample(dataset)]

    def inspect(sample: Sample) -> list[ImageFacts | ImageError | None]:
        facts: list[ImageFacts | ImageError | None] = []
        for image in try_images(sample.images, sample.key, dataset.modalities):
            if isinstance(image, ImageError):
                image = ImageError(str(image), image.reason)  # without the traceback, which keeps images alive
            facts.append(image if image is None or isinstance(image, ImageError) else image_facts(image))
        return facts

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
    """Return the findings about single images and the sizes within a sample."""
    bad: dict[str, list[tuple[str, str]]] = defaultdict(list)
    odd: dict[str, list[tuple[str, str]]] = defaultdict(list)
    usual = _usual_sizes(dataset, inspected)
    uneven = []
    for split, sample in each_sample(dataset):
        sizes = {}
        for modality, image in zip(dataset.modalities, inspected[id(sample)], strict=True):
            place = f"{split} {modality}"
            if isinstance(image, ImageError):
                bad[image.reason].append((place, str(image)))
            elif image is not None:
                sizes[modality] = image.size
                for code in _oddities(image, usual[modality]):
                    shown = " {}x{}".format(*image.size) if code == "odd-size" else ""
                    odd[code].append((place, sample.key + shown))
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{modality} {w}x{h}" for modality, (w, h) in sizes.items())
            uneven.append(f"{split} {sample.key}: {shown}")
    findings = []
    for reason, (what, hint) in _BAD.items():
        if pairs := bad[reason]:
            message = f"{what}: {len(pairs):,} ({tally(place for place, _ in pairs)})"
            findings.append(found("error", reason, message, hint, (text for _, text in pairs)))
    for code, (what, hint) in _ODD.items():
        findings += found_in("warning", code, what, hint, odd[code])
    if uneven:
        message = f"samples whose images differ in size (width x height): {len(uneven):,}"
        hint = "all are resized for the model; check that they show the same part of the scene"
        findings.append(found("warning", "uneven-sizes", message, hint, uneven))
    return findings


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


def _shape(size: tuple[int, int]) -> np.ndarray:
    """Return the logarithms of an image's area and aspect ratio."""
    return np.log([size[0] * size[1], size[0] / size[1]])


def _usual_sizes(dataset: ReIDDataset, inspected: Inspected) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by modality the median of `_shape` and how far from it a size may be."""
    usual = {}
    for modality, images in zip(dataset.modalities, zip(*inspected.values(), strict=True), strict=True):
        shapes = np.array([_shape(image.size) for image in images if isinstance(image, ImageFacts)]).reshape(-1, 2)
        middle = np.median(shapes, axis=0) if len(shapes) else np.zeros(2)
        spread = 1.4826 * np.median(np.abs(shapes - middle), axis=0) if len(shapes) else np.zeros(2)
        usual[modality] = (middle, np.maximum(_SPREADS * spread, (_AREA, _ASPECT)))
    return usual


def _oddities(image: ImageFacts, usual: tuple[np.ndarray, np.ndarray]) -> list[str]:
    middle, allowed = usual
    signs = {
        "flat-image": image.flat,
        "noise-image": not image.flat and image.smoothness < _NOISE,
        "cmyk": image.mode == "CMYK",
        "odd-size": bool((np.abs(_shape(image.size) - middle) > allowed).any()),
    }
    return [code for code, seen in signs.items() if seen]
