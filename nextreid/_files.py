"""The one way to write a file or a folder whole or not at all, and to read tensors back checked."""

import csv
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    Folders on the way are made. The temporary name is unique, so that two processes may write the same file; the last
    one stays. OSError where it cannot be written; what was there stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(path):
            write(temporary)
        _settle(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `target`, if there is one, when all went well.

    OSError where it cannot be written; what was there stays as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except PermissionError as error:
        raise PermissionError(f"cannot write {target}: {target.parent} may not be written; name another") from error
    old = target.with_name(f".{target.name}.old")
    try:
        fresh.chmod(0o755)
        with _disk_errors(target):
            yield fresh
        for path in fresh.rglob("*"):
            if path.is_file():
                _settle(path)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)  # a kill between the two renames leaves both on disk
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


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
    """Write a text file in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file of one indented value."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one JSON value a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    write_whole(path, write)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with a digest of its content; the header keeps `metadata` under the key ``nextreid``."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata))
    header = {"nextreid": text, "digest": tensors_digest(ready, text)}
    write_whole(path, lambda temporary: save_file(ready, temporary, header))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_tensors` wrote, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    # One open: through two, as safe_open reads, the halves of two files may meet while another process replaces it.
    data = path.read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text, tensors = header["nextreid"], load(data)
        whole = header["digest"] == tensors_digest(tensors, text)
        metadata = json.loads(text)
    except (SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or was not written by nextreid ({error})") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its digest is not that of its content")
    return tensors, metadata


def tensors_digest(tensors: Mapping[str, Any], text: str = "") -> str:
    """Fingerprint of a text and of tensors with their names, types and shapes: 32 hexadecimal digits of BLAKE2b."""
    import torch

    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn the safetensors writer's word for a full disk into OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _settle(path: Path) -> None:
    """Bring a file's bytes to the disk before its name, readable by everyone as other files are."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: ``~`` is the home folder."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises on a file named ~x


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
