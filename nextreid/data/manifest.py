"""Custom images as samples, listed in a manifest: a CSV or parquet file with one row per sample."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .captions import split_sentences
from .image import Image, Window, check_windows, through_window
from .sample import MODALITIES, Sample

_LABELS = ("pid", "camid", "sceneid")
_Row = tuple[str, dict[str, str]]  # where it is, for messages, and its cells by column


def read_manifest(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    window: Mapping[str, Window] | None = None,
    *,
    anywhere: bool = False,
) -> list[Sample]:
    """Read samples from a CSV file with a header, or from a parquet file, one row per sample.

    Columns: one per modality with the image's path, relative to the manifest's folder (an empty cell is a missing
    modality); optional are ``pid``, ``camid``, ``sceneid`` (whole numbers, -1 or empty for unknown), ``key`` (unique;
    default: the cell of the first image), ``split`` and ``caption_<modality>``.

    Args:
        path: The file: ``.parquet`` or ``.pq`` (needs pyarrow), else CSV in UTF-8.
        modalities: Order of the images; a modality without a column is missing everywhere. None takes those of
            ``("rgb", "nir", "tir")`` that have a column; others have to be declared here.
        split: Read only the rows with this value in column ``split``; None reads all.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        anywhere: Allow absolute paths, and paths that leave the manifest's folder.

    Returns:
        One sample per row, in the order of the file.

    Raises:
        FileNotFoundError: If the manifest or images are missing; counts them.
        ImportError: If a parquet file is read without pyarrow.
        ValueError: If a column is unknown or a cell is wrong; names the line.
    """
    path = Path(path).expanduser()
    chosen, rows = _read_rows(path, modalities)
    if split is not None:
        if "split" not in rows[0][1]:
            raise ValueError(f"{path} has no column 'split', so no rows with split {split!r}")
        rows = [(where, cells) for where, cells in rows if cells["split"] == split]
        if not rows:
            raise ValueError(f"{path} has no rows with split {split!r}")
    return _samples(path, rows, chosen, window, anywhere)


def manifest_splits(
    path: Path, modalities: Sequence[str] | None, window: Mapping[str, Window] | None, anywhere: bool
) -> tuple[tuple[str, ...], dict[str, list[Sample]]]:
    """Return the modalities, and the samples of `read_manifest` by column ``split``, ``""`` where there is none.

    Keys need to be unique in each split only.
    """
    chosen, rows = _read_rows(path, modalities)
    splits: dict[str, list[_Row]] = {}
    for where, cells in rows:
        splits.setdefault(cells.get("split", ""), []).append((where, cells))
    return chosen, {split: _samples(path, found, chosen, window, anywhere) for split, found in splits.items()}


def _read_rows(path: Path, modalities: Sequence[str] | None) -> tuple[tuple[str, ...], list[_Row]]:
    """Return the modalities to read, after a look at the columns, and the rows."""
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path}")
    columns, rows = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"{path}: columns {repeated} occur more than once")
    chosen = tuple(m for m in MODALITIES if m in columns) if modalities is None else tuple(modalities)
    known = {*_LABELS, "key", "split", *MODALITIES, *chosen, *(f"caption_{m}" for m in (*MODALITIES, *chosen))}
    odd = [column for column in columns if column not in known]
    if odd and modalities is None:
        images = [column for column in odd if not column.startswith("caption_")] or odd
        raise ValueError(
            f"{path}: columns {odd} are unknown; known are {sorted(known)}. If they name images, declare all "
            f"modalities in their order, such as modalities={(*chosen, *images)!r}; else rename or remove them"
        )
    if odd:
        raise ValueError(f"{path}: columns {odd} are unknown; with modalities {chosen} known are {sorted(known)}")
    if not set(chosen) & set(columns):
        raise ValueError(f"{path} has no column for a modality {chosen or MODALITIES}; its columns are {columns}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return chosen, rows


def _read_csv(path: Path) -> tuple[list[str], list[_Row]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        columns = list(reader.fieldnames or ())
        rows = []
        try:
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if "" in cells or None in cells.values():
                    raise ValueError(f"{where}: the row does not have the {len(columns)} cells of the header")
                rows.append((where, cells))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: not CSV in UTF-8: {error}") from error
    return columns, rows


def _read_parquet(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install 'nextreid[data]', or save it as CSV") from error
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    columns = [str(name) for name in table.column_names]
    values = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    cells = zip(*values, strict=True)
    return columns, [(f"{path}, row {i}", dict(zip(columns, row, strict=True))) for i, row in enumerate(cells, 1)]


def _text(value: object) -> str:
    """Write a cell as CSV would; a column of whole numbers with gaps comes as floats with NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _samples(
    path: Path, rows: Iterable[_Row], modalities: tuple[str, ...], window: Mapping[str, Window] | None, anywhere: bool
) -> list[Sample]:
    windows = check_windows(window, modalities)
    samples: dict[str, Sample] = {}
    missing = []
    for where, cells in rows:
        images: list[Image | None] = []
        for modality in modalities:
            cell = cells.get(modality)
            if cell and not anywhere and (os.path.isabs(cell) or os.path.normpath(cell).split(os.sep)[0] == os.pardir):
                raise ValueError(
                    f"{where}: image {cell!r} is not below the manifest's folder {path.parent}; with anywhere=True "
                    "such paths are followed"
                )
            images.append(through_window(path.parent / cell, windows.get(modality)) if cell else None)
            if cell and not (path.parent / cell).is_file():
                missing.append(f"{where}: no {modality} image {path.parent / cell}")
        if not any(images):
            raise ValueError(f"{where}: the row names no image")
        key = cells.get("key") or next(cells[modality] for modality in modalities if cells.get(modality))
        if key in samples:
            raise ValueError(f"{where}: key {key!r} occurs a second time; keys must be unique")
        pid, camid, sceneid = (_label(where, column, cells.get(column)) for column in _LABELS)
        captions = tuple(split_sentences(cells.get(f"caption_{modality}") or "") for modality in modalities)
        samples[key] = Sample(key, pid, camid, sceneid, tuple(images), captions if any(captions) else ())
    if missing:
        more = f"\n… and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(f"{len(missing)} images are missing\n" + "\n".join(missing[:5]) + more)
    return list(samples.values())


def _label(where: str, column: str, cell: str | None) -> int:
    try:
        return int(cell or -1)
    except ValueError:
        raise ValueError(f"{where}: {column} must be a whole number, got {cell!r}") from None
