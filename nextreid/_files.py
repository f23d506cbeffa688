"""The one way to write a file or a folder whole or not at all, and to read tensors back checked.

A writer fills a temporary name, brings its bytes to the disk, renames it, and brings the name to the disk: a kill or a
loss of power at any moment leaves the old content or the new. What a killed writer leaves beside it, the next one
removes. Windows cannot bring a name to the disk, and replaces no file that a reader has open.
"""

import csv
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from ._disk import claim, exchange, lock, name_errors, sync, sync_folder

_logger = logging.getLogger(__name__)

_LFS = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # bytes, as safetensors has it
_ZEROS = "0" * 64
# The format's name of a dtype, and the bytes of a value.
_DTYPES = {
    **{f"int{bits}": (f"I{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (f"U{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (f"F{bits}", bits // 8) for bits in (16, 32, 64)},
    **{"bfloat16": ("BF16", 2), "bool": ("BOOL", 1), "complex64": ("C64", 8)},
    **{"float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1)},
}


# Files and folders, whole


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    Folders on the way are made. Several processes may write the same file; the last one stays.

    Raises:
        OSError: It cannot be written; the message names `path`, and what was there stays as it was.
    """
    with name_errors(path), claim(path) as temporary:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `target`, if there is one, when all went well.

    The two change places in one step, so there is always a whole one. Where the system cannot do that (Windows, some
    network file systems) it takes two; between them, or after a kill there, `find_folder` finds the old one.

    Raises:
        OSError: It cannot be written; the message names `target`, and what was there stays as it was.
    """
    target = Path(os.path.realpath(target))  # a link stays a link
    with name_errors(target), claim(target) as fresh:
        fresh.mkdir()
        yield fresh
        sync(fresh)
        old = _old(target)
        try:
            os.rename(fresh, target)
        except OSError:
            if not target.exists():
                raise
            if not exchange(fresh, target):
                shutil.rmtree(old, ignore_errors=True)
                os.rename(target, old)
                os.rename(fresh, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def find_folder(target: Path) -> Path:
    """Return `target`, or the whole folder that a writer without the one step moved aside and has not replaced."""
    return _old(target) if not target.exists() and _old(target).is_dir() else target


@contextmanager
def write_together(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Give an empty folder to fill with files that belong together, which then move to `folder`.

    The last of `names` vouches for the others: while they change it is not there, so that no reader and no kill finds
    files of two writers. A file of `names` that was not written is removed; other files in `folder` stay.

    Raises:
        OSError: They cannot be written, or another process writes them now.
    """
    *others, last = names
    with name_errors(folder / last), lock(folder / f".{last}.lock", str(folder / last)), claim(folder / last) as fresh:
        fresh.mkdir()
        yield fresh
        sync(fresh)
        if any((place / name).exists() for name in others for place in (fresh, folder)):
            (folder / last).unlink(missing_ok=True)
            sync_folder(folder)
        for name in others:
            (folder / name).unlink(missing_ok=True)
        for name in names:
            if (fresh / name).exists():
                os.replace(fresh / name, folder / name)
        sync_folder(folder)


# Where results may go


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: ``~`` is the home folder."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises on a file named ~x


def check_out_folder(folder: Path, ours: Sequence[str]) -> None:
    """Find out before the work whether its results can go into a folder.

    Args:
        folder: It may be missing or empty.
        ours: Names, or patterns of names, of which one lies in a folder of the same kind.

    Raises:
        OSError: It is a file, lies below one or in a folder that may not be written, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder that is new or empty")
    _check_parents(folder / "inside")
    there = sorted(entry.name for entry in folder.glob("[!.]*"))
    if there and not any(any(folder.glob(name)) for name in ours):
        shown = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise FileExistsError(f"{folder} holds other things ({shown}); name a folder that is new or empty")


def check_out_file(file: Path) -> None:
    """Find out before the work whether its result can go into a file; OSError if not."""
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file")
    _check_parents(file)


def _check_parents(path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, so that nothing can be written below it; name another folder")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent} may not be written; name another folder")


def write_text(path: Path, text: str) -> None:
    r"""Write a text file in UTF-8, with line ends as they are and a lone surrogate as ``\udce9``."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file of one indented value."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one JSON value a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header; `unescape_cell` gives back the text of its cells."""
    buffer = io.StringIO()
    cells = ([escape_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in [columns, *rows])
    csv.writer(buffer, lineterminator="\n").writerows(cells)
    write_text(path, buffer.getvalue())


def escape_cell(text: str) -> str:
    r"""Make a text a cell that can be encoded and that no spreadsheet takes for a formula.

    A lone surrogate, a byte of a file name that is not UTF-8, becomes ``\udce9``; before what begins as a formula and
    is no number goes an apostrophe. What looks like either is doubled, so that `unescape_cell` gives the text back.
    """
    text = re.sub(r"(\\+)(?=ud[89a-f][0-9a-f]{2}|[\ud800-\udfff])", r"\1\1", text)
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):x}", text)
    return f"'{text}" if re.match(r"'*[=+\-@\t\r]", text) and not re.fullmatch(r"[+-]\d+(\.\d+)?", text) else text


def unescape_cell(text: str) -> str:
    """Give back the text that `escape_cell` was given."""

    def back(found: re.Match[str]) -> str:
        slashes = "\\" * (len(found[1]) // 2)
        return slashes + (chr(int(found[2][1:], 16)) if len(found[1]) % 2 else found[2])

    return re.sub(r"(\\+)(ud[89a-f][0-9a-f]{2})", back, re.sub(r"^'(?='*[=+\-@\t\r])", "", text))


def read_json(path: Path, *, limit: int = 2**24) -> Any:
    """Read one JSON value from a file of at most `limit` bytes, see `parse_json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is larger, or `parse_json` rejects it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return parse_json(data, str(path))


def parse_json(text: str | bytes, source: str, *, depth: int = 32) -> Any:
    """Parse one JSON value from outside: UTF-8, no key twice, no NaN and no infinity, nested at most `depth` deep.

    Raises:
        ValueError: It is not; the message begins with `source`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = sorted(key for key, _ in pairs)
            twice = next(key for key, other in itertools.pairwise(names) if key == other)
            raise ValueError(f"key {twice[:80]!r} stands twice in one object")
        return table

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:80]} is no finite number")
        return value

    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError(f"{source} is not JSON of at most {depth} levels") from error
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from error
    level = [value]
    for _ in range(depth + 1):
        tables = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in tables for inner in (item.values() if isinstance(item, dict) else item)]
    if tables:
        raise ValueError(f"{source} is not JSON of at most {depth} levels")
    return value


# Tensors


class Header(NamedTuple):
    """What stands in front of the tensors of a safetensors file."""

    raw: bytes  # behind the eight bytes of its length
    tensors: dict[str, Any]  # of each: dtype, shape, data_offsets
    metadata: dict[str, Any]  # {} if the file is of another program
    digest: str | None  # None if the file is of another program


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Write a safetensors file whose header keeps `metadata`, values for JSON, and a digest; return the digest.

    It is the SHA-256 of the file with zeros in its place. The same tensors and metadata give the same bytes.
    """
    import torch

    # Wide values first, as safetensors does, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = {name: (str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape)) for name in names}
    flat = (tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data for name in names)
    return write_tensor_bytes(path, layout, flat, metadata)


def write_tensor_bytes(
    path: Path,
    layout: Mapping[str, tuple[str, Sequence[int]]],
    chunks: Iterable[memoryview],
    metadata: Mapping[str, Any],
    align: int = 8,
) -> str:
    """Write what `write_tensors` does, from bytes: `layout` has dtypes and shapes, `chunks` the values in its order."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in layout.items():
        code, size = _DTYPES[dtype]
        start, end = end, end + size * math.prod(shape)
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}

    def header(digest: str) -> bytes:
        ours = {"format": "pt", "nextreid": json.dumps(dict(metadata)), "nextreid_digest": digest}
        text = json.dumps({"__metadata__": ours, **entries}, separators=(",", ":")).encode()
        text = text.ljust(-(-(len(text) + 8) // align) * align - 8)
        return len(text).to_bytes(8, "little") + text

    state = hashlib.sha256(header(_ZEROS))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file, ThreadPoolExecutor(1) as pool:
            file.write(header(_ZEROS))
            for chunk in chunks:
                if len(chunk) < 2**18:
                    state.update(chunk)
                    file.write(chunk)
                else:  # hashing costs about half as much as writing, and nothing beside it
                    hashed = pool.submit(state.update, chunk)
                    file.write(chunk)
                    hashed.result()
            file.seek(0)
            file.write(header(state.hexdigest()))

    write_whole(path, write)
    return state.hexdigest()


def read_tensors(path: Path, *, third_party: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_tensors` wrote, on the CPU: the tensors and the metadata.

    Args:
        path: The file.
        third_party: Whether a safetensors file of another program is read as well. It has no digest, which is logged,
            and gives no metadata. A file of nextreid always has one, and it must be that of the content.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another program, or a pointer of Git LFS.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    # One open: through two, the halves of two files may meet while another process replaces it.
    with _open(path) as file:
        data = file.read()
    header = _parse(path, data)
    if header.digest is not None:
        _check(path, header, memoryview(data)[8 + len(header.raw) :])
    elif not third_party:
        raise ValueError(f"{path} was not written by nextreid: its header has no digest")
    else:
        _logger.info("%s has no digest: it is of another program, and damage would not be noticed", path)
    try:
        return load(data), header.metadata
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); copy it again") from error


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file alone. Errors are those of `read_tensors`, but no tensor is checked."""
    with _open(path) as file:
        return _parse(path, _head(file))


def map_tensor(path: Path, digest: str | None = None) -> tuple[Any, dict[str, Any], str]:
    """Map the one uint8 tensor of a file of `write_tensor_bytes` into memory: the array, the metadata and the digest.

    The content is checked, unless the `digest` that the header must have is given. FileNotFoundError and ValueError as
    in `read_tensors`.
    """
    import numpy as np

    with _open(path) as file:
        header = _parse(path, _head(file))
        if header.digest is None or len(header.tensors) != 1:
            raise ValueError(f"{path} was not written by nextreid: its header has no digest")
        (entry,) = header.tensors.values()
        start, size = 8 + len(header.raw), math.prod(entry["shape"])
        found = os.fstat(file.fileno()).st_size
        if found != start + size:
            raise ValueError(f"{path} is damaged: it has {found} bytes of {start + size}")
        # "c", private: nothing is ever written, but torch warns of arrays that cannot be
        array = np.asarray(np.memmap(file, np.uint8, "c", start, tuple(entry["shape"])))
    if digest is None:
        _check(path, header, array.reshape(-1).data)
    elif digest != header.digest:
        raise ValueError(f"{path} was replaced while it was in use")
    return array, header.metadata, header.digest


def reject_pointer(path: Path) -> None:
    """Raise ValueError if a file is the pointer that Git LFS leaves in place of a file that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(
                f"{path} is a pointer of Git LFS, not the file itself: install git-lfs and run 'git lfs pull' in that "
                "repository, or download the file"
            )


def tensors_digest(tensors: Mapping[str, Any], text: str = "") -> str:
    """Fingerprint of a text and of tensors with their names, types and shapes: 32 hexadecimal digits of BLAKE2b."""
    import torch

    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    reject_pointer(path)
    return path.open("rb")


def _head(file: IO[bytes]) -> bytes:
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER))


def _parse(path: Path, data: bytes) -> Header:
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 + length or not 0 < length <= _MAX_HEADER:
            raise ValueError(f"its header would take {length} bytes")
        raw = data[8 : 8 + length]
        tensors = json.loads(raw)
        recorded = tensors.pop("__metadata__", {})
        text, digest = recorded.get("nextreid"), recorded.get("nextreid_digest")
        if text is None and digest is None:
            return Header(raw, tensors, {}, None)
        if not re.fullmatch("[0-9a-f]{64}", digest or ""):  # a damaged word does not make it another program's
            raise ValueError("its header has no digest")
        return Header(raw, tensors, dict(json.loads(text)), digest)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or was not written by nextreid ({error})") from error


def _check(path: Path, header: Header, content: memoryview) -> None:
    assert header.digest is not None
    state = hashlib.sha256(len(header.raw).to_bytes(8, "little"))
    state.update(header.raw.replace(header.digest.encode(), _ZEROS.encode(), 1))
    state.update(content)
    if state.hexdigest() != header.digest:
        raise ValueError(f"{path} is damaged or truncated: its digest is not that of its content; copy it again")
