"""Whether each image is of the modality that it is filed under: colour, exchanged modalities, shifted folders.

Where colour cannot tell, a dataset is judged by its own statistics, and only by large effects: with
too few samples, or modalities that look alike, nothing is reported.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ..sample import ReIDDataset
from .facts import THUMB, ImageFacts, directions
from .findings import Finding, each_sample, found_in
from .images import Inspected

_COLOUR, _GREY = 4.0, 2.0  # chroma above which an image has colour, and below which it has none
_LEAST = 24  # samples without which statistics say too little
_SEPARATION = 2.5  # standard deviations between two modalities that can be distinguished by one sample: twice this
_OUTLIER = 4.5  # standard deviations from the median beyond which a sample is called exchanged
_SHIFT_RISK = 1e-3  # chance at most that a split of unrelated frames is called shifted
_SHIFTED = 0.85  # share of samples that fit their neighbour better where a folder is shifted
_NEIGHBOURS = (-3, -2, -1, 1, 2, 3)

_EXCHANGED = "samples whose {} and {} images look exchanged"


class _Column(NamedTuple):
    """What n samples show in one modality."""

    known: np.ndarray  # (n,) bool: whether there is an image with something on it
    chroma: np.ndarray  # (n,)
    smoothness: np.ndarray  # (n,)
    thumbs: np.ndarray  # (n, THUMB, THUMB) float32


def check_spectra(dataset: ReIDDataset, inspected: Inspected) -> list[Finding]:
    """Return the findings about images filed under the wrong modality or the wrong sample."""
    rows = each_sample(dataset)
    places = np.array([split for split, _ in rows])
    keys = [sample.key for _, sample in rows]
    images = [inspected[id(sample)] for _, sample in rows]
    columns = {m: _column([row[index] for row in images]) for index, m in enumerate(dataset.modalities)}
    order = sorted(range(len(rows)), key=lambda row: (places[row], keys[row]))
    return [
        *_colour(columns, places, keys),
        *_exchanged(columns, places, keys, np.array(order, dtype=int)),
        *_shifted(columns, places, keys, order),
    ]


def _column(images: Sequence[object]) -> _Column:
    facts = [image if isinstance(image, ImageFacts) and not image.flat else None for image in images]
    blank = np.zeros((THUMB, THUMB), np.uint8)
    return _Column(
        np.array([image is not None for image in facts], dtype=bool),
        np.array([image.chroma if image else 0.0 for image in facts]),
        np.array([image.smoothness if image else math.nan for image in facts]),
        np.array([image.thumb if image else blank for image in facts], dtype=np.float32).reshape(-1, THUMB, THUMB),
    )


def _colour(columns: dict[str, _Column], places: np.ndarray, keys: Sequence[str]) -> list[Finding]:
    """Return what the colour of visible images and the greyness of the others prove."""
    findings: list[Finding] = []
    rgb = columns.get("rgb")
    for modality in ("nir", "tir"):
        if modality not in columns:
            continue
        column = columns[modality]
        coloured = column.known & (column.chroma > _COLOUR)
        exchanged = np.zeros_like(coloured)
        if rgb is not None:
            both = column.known & rgb.known & (rgb.chroma > _COLOUR)
            if both.any() and coloured[both].mean() > 0.5:
                what = f"{modality} images in colour throughout"
                hint = "fine if the camera paints them; else check that the folder is the right one"
                findings += found_in("note", "colour", what, hint, _named(coloured, places, keys, modality))
                continue
            exchanged = coloured & rgb.known & (rgb.chroma < _GREY)
            hint = "the rgb image has no colour and the other one has: exchange the two"
            if exchanged.sum() > 0.5 * (column.known & rgb.known).sum():
                hint = f"the folders of rgb and {modality} are exchanged: rename them"
            what = _EXCHANGED.format("rgb", modality)
            findings += found_in("error", "swapped-modalities", what, hint, _named(exchanged, places, keys))
        hint = "no such sensor sees colour: check that these are not visible images or painted ones"
        names = _named(coloured & ~exchanged, places, keys, modality)
        findings += found_in("warning", "colour", f"{modality} images in colour", hint, names)
    return findings


def _exchanged(
    columns: dict[str, _Column], places: np.ndarray, keys: Sequence[str], order: np.ndarray
) -> list[Finding]:
    """Return the samples, and the folders, whose statistics fit a pair of modalities the other way round.

    Each feature is a difference between the two images, so that exchanging them changes its sign. The linear
    discriminant between the differences and their negatives scores the samples.
    """
    findings: list[Finding] = []
    rgb = columns.get("rgb")
    for one, two in combinations(columns, 2):
        a, b = columns[one], columns[two]
        rows = order[(a.known & b.known)[order]]
        if len(rows) < _LEAST or _told_by_colour(a, b, rows):
            continue
        reference = None if rgb is None or "rgb" in (one, two) else rgb
        alone = _differences(a, b, rows, reference)
        train = places[rows] == "train"
        hint = f"look at them: each image resembles those of the other modality; if so exchange {one} and {two}"
        if swapped := _swapped_split(alone, train):
            what = f"samples of a split whose {one} and {two} images resemble the other split's {two} and {one}"
            mask = np.isin(np.arange(len(keys)), rows[train == (swapped == "train")])
            hint = f"the folders of {one} and {two} of one split are exchanged; look at both"
            findings += found_in("warning", "swapped-modalities", what, hint, _named(mask, places, keys))
            continue
        odd = _outliers(np.c_[alone, _neighbourhood(a, b, rows, places)])
        if odd.any():
            mask = np.isin(np.arange(len(keys)), rows[odd])
            names = _named(mask, places, keys)
            findings += found_in("warning", "swapped-modalities", _EXCHANGED.format(one, two), hint, names)
        if {one, two} == {"nir", "tir"} and reference is not None:
            findings += _exchanged_everywhere(columns, rows, places, keys)
    return findings


def _told_by_colour(a: _Column, b: _Column, rows: np.ndarray) -> bool:
    low, high = sorted(float(np.median(column.chroma[rows])) for column in (a, b))
    return low < _GREY and high > _COLOUR


def _exchanged_everywhere(
    columns: dict[str, _Column], rows: np.ndarray, places: np.ndarray, keys: Sequence[str]
) -> list[Finding]:
    """Near infrared is reflected light as the visible is, so its edges fit the visible image better than heat does."""
    known = rows[columns["rgb"].known[rows]]
    if len(known) < _LEAST:
        return []
    rgb, nir, tir = (_edges(columns[m].thumbs[known]) for m in ("rgb", "nir", "tir"))
    lead = ((nir - tir) * rgb).sum(axis=1)  # (n,)
    if np.median(lead) > -0.1 or (lead < 0).mean() < 0.8:
        return []
    what = "samples whose tir image fits the rgb image far better than the nir image does"
    hint = "near infrared resembles visible light: the folders of nir and tir are probably exchanged"
    mask = np.isin(np.arange(len(keys)), known[lead < 0])
    return found_in("warning", "swapped-modalities", what, hint, _named(mask, places, keys))


def _differences(a: _Column, b: _Column, rows: np.ndarray, reference: _Column | None) -> np.ndarray:
    """Return how two modalities differ in what each image shows by itself, ``(n, features)``."""
    features = [_appearance(column, rows) for column in (a, b)]
    difference = features[0] - features[1]
    if reference is None:
        return difference
    seen = reference.known[rows]
    lead = ((_edges(a.thumbs[rows]) - _edges(b.thumbs[rows])) * _edges(reference.thumbs[rows])).sum(axis=1)
    return np.c_[difference, np.where(seen, lead, 0)]


def _appearance(column: _Column, rows: np.ndarray) -> np.ndarray:
    """Return brightness, contrast, texture, smoothness, skewness and where it is bright, ``(n, 8)``."""
    thumbs = column.thumbs[rows]
    mean, spread = thumbs.mean(axis=(1, 2)), thumbs.std(axis=(1, 2)) + 1
    steps = np.abs(np.diff(thumbs, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(thumbs, axis=2)).mean(axis=(1, 2))
    z = (thumbs - mean[:, None, None]) / spread[:, None, None]
    quarter = THUMB // 4
    smoothness = np.nan_to_num(column.smoothness[rows]).clip(0, 0.9995)
    return np.stack(
        [
            mean,
            np.log(spread),
            np.log((steps + 0.5) / spread),
            np.arctanh(smoothness),
            (z**3).mean(axis=(1, 2)).clip(-3, 3),
            z[:, quarter:-quarter, quarter:-quarter].mean(axis=(1, 2)),
            z[:, : THUMB // 2].mean(axis=(1, 2)),
            np.log1p(column.chroma[rows]),
        ],
        axis=1,
    )


def _neighbourhood(a: _Column, b: _Column, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return how well the difference of two modalities fits that of the samples around it, ``(n, 3)``.

    The products of differences are the likeness within each modality less the likeness across.
    """
    count = len(rows)
    out = np.zeros((count, 3))
    here = np.arange(count)
    for place, view in enumerate((directions, _edges, _levels)):
        difference = view(a.thumbs[rows]) - view(b.thumbs[rows])  # (n, THUMB * THUMB)
        for offset in _NEIGHBOURS:
            there = np.clip(here + offset, 0, count - 1)
            elsewhere = (there == here) | (places[rows[there]] != places[rows])
            there = np.where(elsewhere, np.clip(here - offset, 0, count - 1), there)
            out[:, place] += np.einsum("np,np->n", difference, difference[there])
    return out


def _outliers(differences: np.ndarray) -> np.ndarray:
    """Return which differences ``(n, features)`` are those of an exchanged pair, ``(n,)``; none if it cannot tell."""
    fitted = np.full(len(differences), True)
    for _ in range(4):  # without what looks exchanged, which would hide itself
        scores, separation = _discriminant(differences, fitted)
        middle = np.median(scores[fitted])
        spread = 1.4826 * np.median(np.abs(scores[fitted] - middle))
        fitted = scores > middle - 3 * spread
    if separation < _SEPARATION:
        return np.full(len(differences), False)
    return (scores < middle - _OUTLIER * spread) & (scores < -0.3 * middle)


def _discriminant(differences: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, float]:
    """Score each difference by the robust linear discriminant of the fitted ones against their negatives.

    Returns:
        Scores ``(n,)`` in standard deviations, positive where a sample is as the fitted ones, and their mean.
    """
    used = differences[fitted]
    middle = np.median(used, axis=0)
    spread = 1.4826 * np.median(np.abs(used - middle), axis=0) + 1e-3
    centred = ((used - middle) / spread).clip(-4, 4)
    # shrunk, so that few samples do not make a direction of small variance count
    covariance = 0.9 * np.cov(centred.T) + 0.1 * np.eye(differences.shape[1])
    weights = np.linalg.solve(covariance, middle / spread)
    separation = math.sqrt(max(float(weights @ (middle / spread)), 1e-12))
    return (differences / spread).clip(-8, 8) @ weights / separation, separation


def _swapped_split(differences: np.ndarray, train: np.ndarray) -> str | None:
    """Return the smaller split, "train" or "test", if its differences are those of the other one turned round."""
    if min(train.sum(), (~train).sum()) < _LEAST:
        return None
    larger = train if train.sum() >= (~train).sum() else ~train
    scores, separation = _discriminant(differences, larger)
    if separation < 0.6 * _SEPARATION or np.median(scores[~larger]) > -0.5 * separation:
        return None
    return "test" if larger is train else "train"


def _shifted(
    columns: dict[str, _Column], places: np.ndarray, keys: Sequence[str], order: Sequence[int]
) -> list[Finding]:
    """Return the runs of samples whose image fits the first modality of the sample before or after better.

    Page's test: whether an image's edges fit the neighbour better is a coin at best where nothing is shifted.
    """
    findings: list[Finding] = []
    first, *others = columns
    for modality in others:
        pairs: dict[int, list[int]] = defaultdict(list)
        for split in sorted(set(places)):
            rows = np.array([r for r in order if places[r] == split and columns[first].known[r]], dtype=int)
            rows = rows[columns[modality].known[rows]]
            if len(rows) < _LEAST:
                continue
            one, two = (_edges(columns[m].thumbs[rows]) for m in (first, modality))
            own = (one * two).sum(axis=1)  # (n,)
            for step in (1, -1):
                better = (one * np.roll(two, -step, axis=0)).sum(axis=1) > own
                pairs[step] += rows[_longest_run(better)].tolist()
        for step, shifted in pairs.items():
            which = "before" if step > 0 else "after"
            what = f"samples whose {modality} image fits the {first} image of the sample {which} better than its own"
            hint = f"{modality} is shifted by one sample, as where a file is missing and images were paired by position"
            mask = np.isin(np.arange(len(keys)), shifted)
            findings += found_in("warning", "shifted-modality", what, hint, _named(mask, places, keys))
    return findings


def _longest_run(better: np.ndarray) -> slice:
    """Return where the evidence for a shift is highest, nothing where chance could explain it."""
    gain, loss = math.log(_SHIFTED / 0.5), math.log((1 - _SHIFTED) / 0.5)
    best, top, total, start = slice(0), math.log(len(better) / _SHIFT_RISK), 0.0, 0
    for place, won in enumerate(better):
        if total <= 0:
            total, start = 0.0, place
        total += gain if won else loss
        if total > top:
            top, best = total, slice(start, place + 1)
    return best


def _edges(thumbs: np.ndarray) -> np.ndarray:
    """Return the strength of edges, whichever way they go, as `directions` does; two spectra share edges."""
    across, down = np.zeros_like(thumbs), np.zeros_like(thumbs)
    across[:, :, 1:-1] = thumbs[:, :, 2:] - thumbs[:, :, :-2]
    down[:, 1:-1] = thumbs[:, 2:] - thumbs[:, :-2]
    return directions(np.log1p(np.hypot(across, down)))


def _levels(thumbs: np.ndarray) -> np.ndarray:
    return thumbs.reshape(len(thumbs), -1)


def _named(mask: np.ndarray, places: np.ndarray, keys: Sequence[str], modality: str = "") -> list[tuple[str, str]]:
    return [(f"{places[row]} {modality}".strip(), keys[row]) for row in np.flatnonzero(mask).tolist()]
