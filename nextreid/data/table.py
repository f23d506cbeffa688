"""Tables of text as people have them: the one place that decodes a CSV or parquet file into columns and rows."""

import codecs
import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .._names import clip, first_few
from .image import ENDINGS

_SEPARATORS = ",;\t"
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# what pandas calls a column without a name
_UNNAMED = re.compile(r"|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)


class Table(NamedTuple):
    """A table of text.

    Attributes:
        columns: Names, each once and none empty.
        rows: For each row where it is, for messages, and its stripped cells by column.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, dict[str, str]]]


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read a parquet file (``.parquet``, ``.pq``), or a text file with a header separated by comma, semicolon or tab.

    Text is UTF-8, with or without a byte order mark, unless `encoding` names another. Rows of empty cells are left
    out, and so is a column without a name that is the first one (an index) or empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a parquet file is read without pyarrow.
        ValueError: If it is no such table; names the line and what to do.
    """
    if not path.is_file():
        what = "a folder, and a manifest is a CSV or parquet file: name it" if path.is_dir() else "no file"
        raise FileNotFoundError(f"no manifest {path}: it is {what}")
    if path.suffix.lower() in (".parquet", ".pq"):
        header, lines = _read_parquet(path)
    else:
        header, lines = _read_text(path, _decode(path, encoding))
    kept = _named_columns(path, header, lines)
    columns = tuple(header[place] for place in kept)
    rows = [(where, {header[place]: cells[place] for place in kept}) for where, cells in lines]
    return Table(columns, rows)


def _decode(path: Path, encoding: str | None) -> str:
    if path.suffix[1:].lower() in ENDINGS:
        raise ValueError(f"{path} is an image: name the folder above rgb, nir and tir, or a table of images")
    data = path.read_bytes()
    try:
        text = data.decode(encoding or "utf-8-sig").removeprefix("\ufeff")
        wrong, line = "it holds NUL characters", text.count("\n", 0, text.find("\0")) + 1
        if "\0" not in text:
            return text
    except LookupError:
        raise ValueError(f"{path}: there is no encoding {encoding!r}; encodings are utf-16, cp1252, gbk, …") from None
    except UnicodeError as error:
        wrong, line = clip(str(error)), data.count(b"\n", 0, getattr(error, "start", 0)) + 1
    likely = " or ".join(repr(name) for name in _likely_encodings(data) if name != encoding)
    raise ValueError(
        f"{path}, line {line}: not CSV in {(encoding or 'utf-8').upper()}: {wrong}; save it as UTF-8, or name its "
        f"encoding (encoding={likely or '...'})"
    )


def _likely_encodings(data: bytes) -> list[str]:
    for mark, name in _BOMS.items():
        if data.startswith(mark):
            return [name]
    if b"\0" in data:
        return ["utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"]
    return [name for name in ("cp1252", "gbk", "latin-1") if _decodes(data, name)][:2]


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeError:
        return False
    return True


def _read_text(path: Path, text: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    # most cells in the header decide, the earlier separator among equals
    separator = max(_SEPARATORS, key=lambda mark: len(_first_row(text, mark)))
    header = [name.strip() for name in _first_row(text, separator)]
    lines: list[tuple[str, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        next(reader, None)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((f"{path}, line {reader.line_num}", [cell.strip() for cell in cells]))
    except csv.Error as error:
        hint = "; is a quotation mark missing?" if "limit" in str(error) or "end of data" in str(error) else ""
        raise ValueError(f"{path}, after line {reader.line_num}: not CSV in UTF-8: {error}{hint}") from error
    longer = bool(lines) and all(len(cells) == len(header) + 1 for _, cells in lines)
    counts = (range(first, first + len(lines)) for first in (0, 1))
    if longer and any(all(c[0] == str(n) for n, (_, c) in zip(count, lines, strict=True)) for count in counts):
        header = ["", *header]  # the index of R, or of pandas without a label
    for where, cells in lines:
        if len(cells) != len(header):
            raise ValueError(
                f"{where}: the row does not have the {len(header)} cells of the header, it has {len(cells)}; "
                f"cells are separated by {separator!r}, and one that contains it needs quotation marks"
            )
    return header, lines


def _first_row(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:
        return []


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install 'nextreid[data]', or save it as CSV") from error
    try:
        table = pq.read_table(path)
        values = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a parquet file: {clip(str(error), 200)}") from error
    lines = [(f"{path}, row {number}", list(cells)) for number, cells in enumerate(zip(*values, strict=True), 1)]
    return [str(name).strip() for name in table.column_names], lines


def _text(value: object) -> str:
    """Write a cell as CSV would; a column of whole numbers with gaps comes as floats with NaN."""
    return "" if value is None or value != value else str(value).strip()


def _named_columns(path: Path, header: list[str], lines: list[tuple[str, list[str]]]) -> list[int]:
    """Return the places of the columns to read."""
    unnamed = {place for place, name in enumerate(header) if _UNNAMED.fullmatch(name)}
    for place in sorted(unnamed):
        index = place == 0 or header[place].startswith("__index")
        if not index and any(cells[place] for _, cells in lines):
            raise ValueError(f"{path}: column {place + 1} of {len(header)} has no name; name it or remove it")
    kept = [place for place in range(len(header)) if place not in unnamed]
    counts = Counter(header[place].casefold() for place in kept)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"{path}: columns [{first_few(map(repr, repeated))}] occur more than once")
    return kept
