"""Images that occur several times: the same pixels, or the same image saved or resized again."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..sample import ReIDDataset, Sample
from .facts import THUMB, ImageFacts, directions
from .findings import Finding, Level, each_sample, found
from .images import Inspected

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
# Two images are one, saved or resized again, where their thumbnails at 12 x 12 correlate so much and differ nowhere by
# more grey levels. JPEG of quality 20 moves those of a small image by 10; frames of one video differ by 17 and more.
_ALIKE = 0.985
_LEVELS = 10
_CONTRAST = 8  # standard deviation of a thumbnail below which it shows too little to compare
_BLOCK = 2048

_Place = tuple[str, Sample, str]  # split, sample and modality


def check_copies(dataset: ReIDDataset, inspected: Inspected) -> list[Finding]:
    """Return the findings about images of equal pixels, and about images of training that test shows again."""
    places: dict[bytes, list[_Place]] = defaultdict(list)
    for split, sample in each_sample(dataset):
        for modality, image in zip(dataset.modalities, inspected[id(sample)], strict=True):
            if isinstance(image, ImageFacts) and not image.flat:
                places[image.content].append((split, sample, modality))
    copied: dict[str, list[str]] = defaultdict(list)
    for same in places.values():
        for code in _copy_codes(same):
            copied[code].append(" = ".join(f"{split} {modality} {s.key}" for split, s, modality in same[:4]))
    findings = [
        found(level, code, f"{what}: {len(copied[code]):,}", hint, copied[code])
        for code, (level, what, hint) in _COPIES.items()
        if copied[code]
    ]
    if near := [pair for index in range(len(dataset.modalities)) for pair in _near_copies(dataset, inspected, index)]:
        message = f"images of training that test shows again, saved or resized again: {len(near):,}"
        findings.append(found("warning", "near-copy", message, "look at them; take copies out of one of the two", near))
    return findings


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


def _near_copies(dataset: ReIDDataset, inspected: Inspected, index: int) -> list[str]:
    """Return the pairs of one modality whose thumbnails are alike and whose pixels are not."""
    sides: dict[bool, list[tuple[str, ImageFacts]]] = {True: [], False: []}
    for split, sample in each_sample(dataset):
        image = inspected[id(sample)][index]
        if isinstance(image, ImageFacts) and not image.flat and image.thumb.std() > _CONTRAST:
            sides[split == "train"].append((f"{split} {dataset.modalities[index]} {sample.key}", image))
    train, test = sides[True], sides[False]
    if not train or not test:
        return []
    coarse = {side: _coarse([image for _, image in rows]) for side, rows in sides.items()}
    views = {side: directions(thumbs) for side, thumbs in coarse.items()}
    pairs = []
    for start in range(0, len(test), _BLOCK):
        for first in range(0, len(train), _BLOCK):
            alike = views[False][start : start + _BLOCK] @ views[True][first : first + _BLOCK].T
            for row, column in np.argwhere(alike > _ALIKE):
                (name, image), (other, twin) = test[start + row], train[first + column]
                difference = np.abs(coarse[False][start + row] - coarse[True][first + column]).max()
                if image.content != twin.content and difference <= _LEVELS:
                    pairs.append(f"{other} ~ {name}")
    return pairs


def _coarse(images: Sequence[ImageFacts]) -> np.ndarray:
    thumbs = np.stack([image.thumb for image in images]).astype(np.float32)
    return thumbs.reshape(len(thumbs), THUMB // 2, 2, THUMB // 2, 2).mean(axis=(2, 4))  # (n, 12, 12)
