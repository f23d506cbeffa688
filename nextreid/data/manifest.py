"""Anybody's own pictures as samples: from a CSV manifest, or from one folder per modality."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from .captions import split_sentences
from .sample import MODALITIES, Sample

_logger = logging.getLogger(__name__)

_LABELS = ("pid", "camid", "sceneid")
_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_ALIASES = {"rgb": ("rgb", "vis"), "nir": ("nir", "ni"), "tir": ("tir", "ti", "th")}


def read_manifest(path: str | Path, modalities: Sequence[str] | None = None, split: str | None = None) -> list[Sample]:
    """Read samples from a CSV file with a header, one row per sample.

    Columns: one per modality with the picture's path, relative to the manifest's folder (an empty cell is a missing
    modality); optional are ``pid``, ``camid``, ``sceneid`` (whole numbers, -1 or empty for unknown), ``key`` (unique;
    default: the cell of the first picture), ``split`` and ``caption_<modality>``.

    Args:
        path: The CSV file, UTF-8.
        modalities: Order of the pictures; a modality without a column is missing everywhere. None takes those of
            ``("rgb", "nir", "tir")`` that have a column.
        split: Read only the rows with this value in column ``split``; None reads all.

    Returns:
        One sample per row, in the order of the file.

    Raises:
        FileNotFoundError: If the manifest or a picture is missing.
        ValueError: If a column is unknown or a cell is wrong; names the line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, restkey="", strict=True)
        columns = list(rows.fieldnames or ())
        chosen = tuple(modalities) if modalities is not None else tuple(m for m in MODALITIES if m in columns)
        _check_columns(path, columns, chosen, split)
        samples: dict[str, Sample] = {}
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if "" in row or None in row.values():
                raise ValueError(f"{where}: the row has not the {len(columns)} cells of the header")
            if split is not None and row["split"] != split:
                continue
            sample = _row(where, row, chosen, path.parent)
            if sample.key in samples:
                raise ValueError(f"{where}: key {sample.key!r} occurs a second time; keys must be unique")
            samples[sample.key] = sample
    if not samples:
        raise ValueError(f"{path} has no rows" + ("" if split is None else f" with split {split!r}"))
    return list(samples.values())


def read_folder(root: str | Path, modalities: Sequence[str] = MODALITIES) -> list[Sample]:
    """Read unlabelled samples from one folder per modality: ``root/{rgb,nir,tir}/name.jpg``.

    Pictures with one stem (the file name without its ending) are one sample. Folder names may be in upper or lower
    case; "vis" stands for rgb, "ni" for nir, "ti" and "th" for tir. A modality without a folder, or without this
    picture, is missing; how many are is logged.

    Args:
        root: Folder of the folders.
        modalities: Order of the pictures.

    Returns:
        Samples sorted by key (the name of the first picture), with pid, camid and sceneid -1.

    Raises:
        FileNotFoundError: If there is none of the folders.
        ValueError: If two folders stand for one modality, two pictures have one stem, or there is no picture.
    """
    root = Path(root).expanduser()
    layout = f"{root}/{{{','.join(modalities)}}}/name.jpg"
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; expected {layout}")
    names = {m: _ALIASES.get(m.lower(), (m.lower(),)) for m in modalities}
    folders = {m: sorted(f for f in root.iterdir() if f.is_dir() and f.name.lower() in names[m]) for m in modalities}
    if not any(folders.values()):
        found = sorted(entry.name for entry in root.iterdir())[:5]
        raise FileNotFoundError(f"none of the folders {layout} (found {', '.join(found) or 'nothing'} in {root})")
    pictures: dict[str, dict[str, Path]] = {m: {} for m in modalities}
    for modality, places in folders.items():
        if len(places) > 1:
            raise ValueError(f"{root} has {len(places)} folders for {modality}: {', '.join(f.name for f in places)}")
        for file in sorted(file for place in places for file in place.iterdir()):
            if file.suffix.lower() in _PICTURES:
                if file.stem in pictures[modality]:
                    raise ValueError(f"{file} and {pictures[modality][file.stem].name} have one stem: rename one")
                pictures[modality][file.stem] = file
    stems = {stem for column in pictures.values() for stem in column}
    if not stems:
        raise ValueError(f"no pictures ({', '.join(sorted(_PICTURES))}) in {layout}")
    samples = []
    for stem in stems:
        images = tuple(pictures[m].get(stem) for m in modalities)
        samples.append(Sample(next(image.name for image in images if image), -1, -1, -1, images))
    for modality, column in pictures.items():
        if len(column) < len(stems):
            _logger.warning("%s: %d of %d samples lack %s", root, len(stems) - len(column), len(stems), modality)
    return sorted(samples, key=lambda sample: sample.key)


def _check_columns(path: Path, columns: list[str], modalities: tuple[str, ...], split: str | None) -> None:
    if not set(modalities) & set(columns):
        raise ValueError(f"{path} has no column for a modality {modalities or MODALITIES}; its columns are {columns}")
    known = {*_LABELS, "key", "split", *MODALITIES, *modalities}
    known |= {f"caption_{m}" for m in (*MODALITIES, *modalities)}
    if len(set(columns)) < len(columns) or not set(columns) <= known:
        odd = [c for c in columns if c not in known or columns.count(c) > 1]
        raise ValueError(f"{path}: columns {odd} are unknown or double; known are {sorted(known)}")
    if split is not None and "split" not in columns:
        raise ValueError(f"{path} has no column 'split', so no rows with split {split!r}")


def _row(where: str, row: dict[str, str], modalities: tuple[str, ...], folder: Path) -> Sample:
    images = tuple(folder / row[m] if row.get(m) else None for m in modalities)
    for modality, image in zip(modalities, images, strict=True):
        if image is not None and not image.is_file():
            raise FileNotFoundError(f"{where}: no {modality} picture {image}")
    first = next((row[m] for m in modalities if row.get(m)), None)
    if first is None:
        raise ValueError(f"{where}: the row names no picture")
    labels = {}
    for column in _LABELS:
        try:
            labels[column] = int(row.get(column) or -1)
        except ValueError:
            raise ValueError(f"{where}: {column} must be a whole number, got {row[column]!r}") from None
    captions = tuple(split_sentences(row.get(f"caption_{m}") or "") for m in modalities)
    return Sample(
        key=row.get("key") or first,
        pid=labels["pid"],
        camid=labels["camid"],
        sceneid=labels["sceneid"],
        images=images,
        captions=captions if any(captions) else (),
    )
