"""Custom images as samples, listed in a manifest: a CSV or parquet file with one row per sample.

A manifest is read in steps: the file becomes a table of text, its columns get their meanings, labels become numbers,
and each row becomes a sample.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from unicodedata import normalize

from .._names import clip, first_few
from .captions import split_sentences
from .image import Image, Window, check_windows, through_window
from .labels import LABELS, number_labels
from .sample import MODALITIES, Sample, as_modalities
from .table import read_table

_Rows = list[tuple[str, dict[str, str]]]  # where a row is, for messages, and its cells by the meaning of the column


class Manifest(NamedTuple):
    """What a manifest holds.

    Attributes:
        modalities: Those that were read, in order.
        splits: Samples by the cell of column ``split``, ``""`` where there is none.
        label_names: See `ReIDDataset`.
    """

    modalities: tuple[str, ...]
    splits: dict[str, list[Sample]]
    label_names: dict[str, dict[int, str]]


def read_manifest(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    window: Mapping[str, Window] | None = None,
    *,
    anywhere: bool = False,
    encoding: str | None = None,
) -> list[Sample]:
    """Read samples from a CSV file with a header, or from a parquet file, one row per sample.

    Columns, in upper or lower case: one per modality with the image's path, relative to the manifest's folder (an
    empty cell is a missing modality); optional are ``pid``, ``camid``, ``sceneid`` (empty or -1 for unknown), ``key``
    (unique; default: the cell of the first image), ``split`` and ``caption_<modality>``. A column of labels that are
    not all whole numbers is numbered in the order of its sorted words. Cells are separated by commas, semicolons or
    tabs, and paths may be written as on Windows.

    Args:
        path: The file: ``.parquet`` or ``.pq`` (needs pyarrow), else CSV.
        modalities: Order of the images; a modality without a column is missing everywhere. None takes those of
            ``("rgb", "nir", "tir")`` that have a column; others have to be declared here.
        split: Read only the rows with this value in column ``split``; None reads all.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        anywhere: Allow absolute paths, paths that leave the manifest's folder, and ``~`` for the home folder.
        encoding: Of a CSV file, such as "cp1252", "gbk" or "utf-16"; None takes UTF-8.

    Returns:
        One sample per row, in the order of the file.

    Raises:
        FileNotFoundError: If the manifest or images are missing; counts them.
        ImportError: If a parquet file is read without pyarrow.
        ValueError: If the file cannot be decoded, a column is unknown or a cell is wrong; names the line.
    """
    path = Path(path).expanduser()
    chosen, rows = _known_columns(path, modalities, encoding)
    labels, _ = _number_columns(rows)
    if split is not None:
        if "split" not in rows[0][1]:
            raise ValueError(f"{path} has no column 'split', so no rows with split {split!r}")
        kept = [place for place, (_, cells) in enumerate(rows) if cells["split"] == split]
        if not kept:
            there = first_few(sorted({cells["split"] for _, cells in rows}))
            raise ValueError(f"{path} has no rows with split {split!r}; there are {there}")
        rows, labels = [rows[place] for place in kept], [labels[place] for place in kept]
    return _samples(path, rows, labels, chosen, window, anywhere)


def manifest_splits(
    path: Path,
    modalities: Sequence[str] | None,
    window: Mapping[str, Window] | None,
    anywhere: bool,
    encoding: str | None = None,
    *,
    whole: bool = False,
) -> Manifest:
    """Return the samples of `read_manifest` by split; keys need to be unique in each split only.

    With `whole` all are under ``""``, in the order of the file.
    """
    chosen, rows = _known_columns(path, modalities, encoding)
    labels, names = _number_columns(rows)
    places: dict[str, list[int]] = {}
    for place, (_, cells) in enumerate(rows):
        places.setdefault("" if whole else cells.get("split", ""), []).append(place)
    splits = {
        word: _samples(path, [rows[p] for p in found], [labels[p] for p in found], chosen, window, anywhere)
        for word, found in places.items()
    }
    return Manifest(chosen, splits, names)


def _known_columns(path: Path, modalities: Sequence[str] | None, encoding: str | None) -> tuple[tuple[str, ...], _Rows]:
    """Return the modalities to read and the rows, whose columns are named as in `read_manifest`."""
    columns, rows = read_table(path, encoding)
    declared = None if modalities is None else as_modalities(modalities)
    named = (*MODALITIES, *(declared or ()))
    known = {name.casefold(): name for name in (*LABELS, "key", "split", *(f"caption_{m}" for m in named), *named)}
    if odd := [column for column in columns if column.casefold() not in known]:
        _reject_columns(path, odd, columns, declared)
    meaning = {column: known[column.casefold()] for column in columns}
    chosen = declared or tuple(m for m in MODALITIES if m in meaning.values())
    if not set(chosen) & set(meaning.values()):
        raise ValueError(
            f"{path} has no column for a modality {chosen or MODALITIES}; its columns are {first_few(columns, 12)}"
        )
    if not rows:
        raise ValueError(f"{path} has no rows")
    return chosen, [(where, {meaning[column]: cell for column, cell in cells.items()}) for where, cells in rows]


def _reject_columns(path: Path, odd: Sequence[str], columns: Sequence[str], declared: tuple[str, ...] | None) -> None:
    """Raise the ValueError about columns without a meaning, the names in it bounded."""
    if {"row", "key", "present"} <= set(columns):
        raise ValueError(
            f"{path} is the index of embeddings and names no images: load_embeddings and 'nextreid gallery add' read "
            "its folder; a dataset is what they were extracted from"
        )
    known = f"{', '.join(LABELS)}, key, split, a modality, caption_<modality>"
    message = f"{path}: columns [{first_few(map(repr, odd), 8)}] are unknown; known are {known}"
    if declared is not None:
        raise ValueError(f"{message}, with modalities {declared}")
    images = [column for column in odd if not column.startswith("caption_")] or list(odd)
    if len(images) <= 8:
        every = (*(m for m in MODALITIES if m in map(str.casefold, columns)), *map(clip, images))
        message += f". If they name images, declare all modalities in their order, such as modalities={every!r}"
    raise ValueError(f"{message}; else rename or remove them")


def _number_columns(rows: _Rows) -> tuple[list[tuple[int, ...]], dict[str, dict[int, str]]]:
    """Return pid, camid and sceneid of each row, and what the file calls those that are numbered differently."""
    columns, names = [], {}
    for column in LABELS:
        cells = [(where, row.get(column, "")) for where, row in rows]
        numbers, called = number_labels(column, cells)
        columns.append(numbers)
        if called:
            names[column] = called
    return list(zip(*columns, strict=True)), names


def _samples(
    path: Path,
    rows: _Rows,
    labels: Sequence[tuple[int, ...]],
    modalities: tuple[str, ...],
    window: Mapping[str, Window] | None,
    anywhere: bool,
) -> list[Sample]:
    windows = check_windows(window, modalities)
    samples: dict[str, Sample] = {}
    missing = []
    for (where, cells), (pid, camid, sceneid) in zip(rows, labels, strict=True):
        images: list[Image | None] = []
        for modality in modalities:
            cell = cells.get(modality)
            file = _find_image(path.parent, cell, where, anywhere) if cell else None
            images.append(through_window(file, windows.get(modality)) if file else None)
            if file and not os.path.isfile(file):
                missing.append(f"{where}: no {modality} image {clip(str(file), 300)}")
        if not any(images):
            raise ValueError(f"{where}: the row names no image")
        key = cells.get("key") or next(cells[modality] for modality in modalities if cells.get(modality))
        if key in samples:
            raise ValueError(f"{where}: key {clip(key)!r} occurs a second time; keys must be unique")
        captions = tuple(split_sentences(cells.get(f"caption_{modality}") or "") for modality in modalities)
        samples[key] = Sample(key, pid, camid, sceneid, tuple(images), captions if any(captions) else ())
    if missing:
        more = f"\n… and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(f"{len(missing)} images are missing\n" + "\n".join(missing[:5]) + more)
    return list(samples.values())


def _find_image(folder: Path, cell: str, where: str, anywhere: bool) -> Path:
    """Return the file that a cell names: as it is written, else with slashes for backslashes, NFC or NFD.

    File systems keep one of the two Unicode forms of a name, and tables may hold the other.
    """
    slashed = cell.replace("\\", "/")
    outside = PureWindowsPath(cell).anchor or os.path.normpath(slashed).split(os.sep)[0] in (os.pardir, "~")
    if outside and not anywhere:
        raise ValueError(
            f"{where}: image {clip(cell)!r} is not below the manifest's folder {folder}; with anywhere=True such "
            "paths are followed"
        )
    texts = dict.fromkeys((cell, slashed))
    written = [folder / (os.path.expanduser(text) if anywhere else text) for text in texts]
    forms = [Path(normalize(form, str(file))) for file in written for form in ("NFC", "NFD")]
    return next((file for file in (*written, *forms) if os.path.isfile(file)), written[-1])
