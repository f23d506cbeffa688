"""The one way to write a file or a folder whole or not at all, and to read tensors back checked."""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_METADATA = "nextreid"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    The temporary name is unique, so that two processes may write the same file; the last one stays.

    Args:
        path: The file; folders on the way are made.
        write: Called with the temporary file, which exists and is empty.

    Raises:
        OSError: If the file cannot be written; what was there stays as it was.
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
    """Give an empty folder to fill, which takes the place of `target` when all went well.

    Args:
        target: The folder; one that is there is replaced, which only its owner can tell to be right.

    Yields:
        The new folder, beside its place.

    Raises:
        OSError: If it cannot be written; what was there stays as it was.
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
    """Write a safetensors file; `metadata` is kept in its header as JSON under the key ``nextreid``."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(ready, temporary, {_METADATA: json.dumps(dict(metadata))}))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()[_METADATA])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or was not written by nextreid ({error})") from error


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
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
