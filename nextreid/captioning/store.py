"""The store of answers: an append-only file with one line for every call that was answered.

A line is JSON and ends with a checksum of the text before it, so that a line torn by a kill or a full disk is
recognised and cut off, and any tool can read the rest. A line has left the process when `Store.append` returns, so a
kill cannot lose it; it is synced to disk once a second, so a power cut costs at most that second.
"""

import errno
import hashlib
import itertools
import json
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

FORMAT = 1
MAX_LINE = 1 << 22
"""Bytes of a row; the texts of an answer are cut well below it."""
_SUM = ',"sum":"'
_TEXTS = ("text", "finish", "refusal", "schema", "model", "modality")
_NUMBERS = ("cost", "prompt_tokens", "completion_tokens")


def call_key(**parts: Any) -> str:
    """Return the key of a call, 32 hex digits: a digest of everything its answer depends on.

    The parts are JSON values, such as the image's digest, the prompt, the model's name and the sampling, in any order.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Answers by the key of their call, in one file.

    Opening it to write creates it, takes a lock that ends with the process, and cuts off a torn last line. A damaged
    line elsewhere (its checksum is wrong, it is no row, or it is longer than any) is kept, named and not used. Of two
    rows with one key the later counts.

    Attributes:
        damaged: Numbers of the damaged lines, counted from 1.
        spent: Sum of ``cost`` over all rows.

    Raises:
        FileNotFoundError: If there is no such file to read.
        ValueError: If another process writes to it, it has a newer format, or it is something else.
    """

    def __init__(
        self, path: Path, *, write: bool = False, sync_every: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = Path(path)
        self.damaged: list[int] = []
        self.spent = 0.0
        self._schemas: Counter[str] = Counter()
        self._places: dict[str, tuple[int, int]] = {}  # length and offset
        self._write, self._sync_every, self._clock, self._synced = write, sync_every, clock, clock()
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_file():
            raise FileNotFoundError(f"no store of answers {self.path}")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if write else os.O_RDONLY
        # Windows would translate the line ends under the checksums
        self._file = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o644)
        try:
            if write:
                self._lock()
            self._end = self._read()
            if write and os.fstat(self._file).st_size > self._end:
                os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the row of a call, None if it was not answered."""
        if key not in self._places:
            return None
        length, start = self._places[key]
        os.lseek(self._file, start, os.SEEK_SET)  # os.pread is missing on Windows; what is written goes to the end
        parts = bytearray()
        while len(parts) < length and (part := os.read(self._file, length - len(parts))):
            parts += part
        return _parse(bytes(parts))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read all rows in the order in which the calls were first answered."""
        yield from filter(None, map(self.get, self._places))

    def count_other_schemas(self, digest: str) -> int:
        """Count the rows that answer another schema than this one."""
        return sum(count for name, count in self._schemas.items() if name not in ("", digest))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of one call: JSON values with its ``key``, the digest ``schema``, and its ``cost`` or None.

        Raises:
            ValueError: If it is no row, or longer than a line may be.
            OSError: If it cannot be written, as on a full disk; the file is then unchanged.
        """
        line = _line(row)
        if len(line) > MAX_LINE or not _is_row(row):
            raise ValueError(f"{self.path}: not a row of at most {MAX_LINE} bytes with a key: {str(row)[:200]}")
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._end)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what = "the disk is full" if full else error.strerror
            message = f"{what}: the run stops; {len(self)} answers are safe in the store, run again to continue"
            raise OSError(error.errno, message, str(self.path)) from error
        self._note(row, self._end, len(line))
        self._end += len(line)
        if self._clock() - self._synced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Sync what was appended to disk."""
        os.fsync(self._file)
        self._synced = self._clock()

    def close(self) -> None:
        """Close the file; the lock ends."""
        if self._file < 0:
            return
        try:
            if self._write:
                self.sync()
        finally:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        try:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(self._file, 2**31 - 2, os.SEEK_SET)  # a byte behind any row: locked ones cannot be read there
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another run writes to {self.path}; wait for it, or use another folder") from error

    def _read(self) -> int:
        """Read all lines; return the end of the last whole one."""
        end = good = 0
        with open(os.dup(self._file), "rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE)
                start, end = end, end + len(line)
                row = _parse(line)
                if row is not None:
                    if row["v"] != FORMAT:
                        raise ValueError(f"{self.path} has format {row['v']}, this nextreid reads {FORMAT}: update it")
                    self._note(row, start, len(line))
                elif len(line) == MAX_LINE and not line.endswith(b"\n"):
                    while not line.endswith(b"\n"):
                        if not (line := file.readline(MAX_LINE)):
                            raise ValueError(f"{self.path} is no store of answers: line {number} is longer than any")
                        end += len(line)
                    self.damaged.append(number)
                elif line.endswith(b"\n"):
                    self.damaged.append(number)
                else:  # the end, or a torn line before it
                    return good
                good = end
        return good

    def _note(self, row: Mapping[str, Any], start: int, length: int) -> None:
        self._places[row["key"]] = (length, start)
        self._schemas[row.get("schema") or ""] += 1
        self.spent += row.get("cost") or 0.0


def _line(row: Mapping[str, Any]) -> bytes:
    body = json.dumps({"v": FORMAT, **row}, ensure_ascii=True, allow_nan=False)[:-1]
    return f'{body}{_SUM}{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, None if it is torn or damaged."""
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        return None
    body, mark, end = text.rpartition(_SUM)
    if not mark or end != f'{zlib.crc32(body.encode()):08x}"}}\n':
        return None
    try:
        row: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not _is_row(row) or not isinstance(row.get("v"), int):
        return None
    del row["sum"]
    return row


def _is_row(row: Any) -> bool:
    """Tell whether a value has a key, and each of the columns that are read is of its type where it is there."""
    return (
        isinstance(row, Mapping)
        and isinstance(row.get("key"), str)
        and all(isinstance(row.get(name), str | None) for name in _TEXTS)
        and all(_is_count(row.get(name)) for name in _NUMBERS)
    )


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12)
