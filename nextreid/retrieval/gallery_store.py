"""The folder of a gallery: files of vectors that only grow, and a SQLite table that says which of their rows count.

A writer appends vectors and brings them to the disk, then commits the rows to the table; only then are they in the
gallery. What a killed writer appended and did not commit, the next one overwrites. Readers see the state of the last
commit for as long as they look: SQLite's write-ahead log keeps it for the table, and rows of vectors never change.
"""

import errno
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextreid._disk import lock, name_errors, sync, sync_folder
from nextreid._files import check_out_folder, parse_json, write_folder
from nextreid._names import show

from .distance import TILE
from .gallery_entry import COLUMNS

DATABASE = "gallery.sqlite"
FORMAT = 1
SEGMENT = 16 * TILE
"""Vectors of one file."""
_TABLES = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE vectors (place INTEGER PRIMARY KEY, norm REAL NOT NULL, digest BLOB NOT NULL);
CREATE TABLE entries (place INTEGER PRIMARY KEY, {COLUMNS[0]} TEXT NOT NULL UNIQUE, {", ".join(COLUMNS[1:])});
CREATE INDEX entries_identity ON entries (identity);
CREATE INDEX entries_modalities ON entries (modalities);
"""
_AT_ONCE = 500  # values of one query
_COUNTERS = ("generation", "rows", "deletions", "added")
_ERRORS = {
    "FULL": (errno.ENOSPC, OSError),
    "READONLY": (errno.EROFS, PermissionError),
    "PERM": (errno.EACCES, PermissionError),
    "AUTH": (errno.EACCES, PermissionError),
    "CANTOPEN": (errno.EACCES, PermissionError),
    "BUSY": (errno.EBUSY, BlockingIOError),
    "LOCKED": (errno.EBUSY, BlockingIOError),
    "IOERR": (errno.EIO, OSError),
}


class State(NamedTuple):
    """What one commit left.

    Attributes:
        generation: Raised when the files are rewritten.
        rows: Vectors in the files, deleted ones too.
        deletions: Raised when entries go.
        added: Vectors that were ever added.
        norms: ``(rows,)`` float32 lengths of the vectors as they are stored; 0 where the entry was deleted.
    """

    generation: int
    rows: int
    deletions: int
    added: int
    norms: np.ndarray


class GalleryStore:
    """An open folder of vectors and entries; see `Gallery`, which says what its methods mean.

    Args:
        folder: It.
        write: Whether to change it; then no other process can.

    Raises:
        FileNotFoundError: It is no gallery.
        BlockingIOError: Another writer has it open.
        PermissionError: It may not be written.
        ValueError: It is damaged or of a newer version.
    """

    def __init__(self, folder: Path, write: bool) -> None:
        self.folder, self.path = folder, folder / DATABASE
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{folder} is no gallery; make one with Gallery.create or 'nextreid gallery create'"
            )
        if write and not (os.access(folder, os.W_OK) and os.access(self.path, os.W_OK)):
            raise PermissionError(
                f"gallery {folder} may not be written; open it for reading, or change its permissions"
            )
        self._guard = threading.RLock()
        self._state: State | None = None
        self._maps: dict[int, np.ndarray] = {}
        self._files: dict[int, Any] = {}  # open, so that a reader keeps what a writer removes
        with ExitStack() as stack:
            if write:
                stack.enter_context(lock(folder / ".gallery.lock", f"gallery {folder}"))
            with self._named_errors():
                self._db = _connect(self.path, write)
                stack.callback(self._db.close)
                self.about = self._read_about()
                if write:
                    self._remove_leftovers()
            self._open = stack.pop_all()
        self.write = write

    @staticmethod
    def create(folder: Path, about: Mapping[str, Any]) -> None:
        """Make an empty gallery in a folder that is new or empty.

        Raises:
            OSError: It holds something, or cannot be written.
        """
        if (folder / DATABASE).exists():
            raise FileExistsError(f"{folder} is a gallery already; add to it, or name another folder")
        check_out_folder(folder, ())
        with write_folder(folder) as fresh, closing(_connect(fresh / DATABASE, True)) as db:
            db.executescript(_TABLES)
            rows = {"format": FORMAT, **dict.fromkeys(_COUNTERS, 0), **about}
            with _transaction(db):
                db.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in rows.items()])
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let others write."""
        with self._guard:
            if self.write:
                with suppress(sqlite3.Error):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._forget()
            self._open.close()

    @contextmanager
    def reading(self) -> Iterator[State]:
        """Hold the state of the last commit."""
        with self._guard, self._named_errors():
            if self._db.in_transaction:  # part of a change, or of a longer look
                yield self._refreshed()
                return
            self._db.execute("BEGIN")
            try:
                yield self._refreshed()
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold a change that is committed at the end, or as if it had never been."""
        if not self.write:
            raise PermissionError(f"gallery {self.folder} is open for reading; open it with write=True to change it")
        with self._guard, self._named_errors():
            try:
                with _transaction(self._db):
                    yield self._db
            except BaseException:
                self._state = None  # it may have been read inside the change
                raise

    def query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows of a query, inside `reading` or `writing`."""
        return iter(self._db.execute(sql, values))

    def segments(self, state: State) -> list[np.ndarray]:
        """Return the vectors ``(n, W)`` float16 of each file, mapped into memory.

        Raises:
            ValueError: A file is missing or too short.
        """
        found = []
        for start in range(0, state.rows, SEGMENT):
            count, known = min(SEGMENT, state.rows - start), self._maps.get(start)
            if known is None or len(known) < count:
                known = self._maps[start] = self._map(state.generation, start, count)
            found.append(known[:count])
        return found

    def read(self, number: int, places: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        """Read the vectors at places of a file that `segments` gave into rows of an array ``(n, W)`` float16."""
        file, size = self._files[number], self.width * 2
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            file.seek(place * size)
            file.readinto(out[row].data)

    def append(self, vectors: np.ndarray, norms: np.ndarray, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add vectors ``(n, W)`` float16 with their lengths and `Entry.row`: all of them or, on an error, none.

        When it returns they are on the disk. They go there before the table that makes them count.
        """
        with self.writing() as db:  # not committed yet, so that no reader looks at the rows
            state = self._refreshed()
            self._write_vectors(state.generation, state.rows, vectors)
            places = range(state.rows, state.rows + len(vectors))
            digests = map(row_digest, vectors)
            db.executemany("INSERT INTO vectors VALUES (?, ?, ?)", zip(places, map(float, norms), digests, strict=True))
            marks = ", ".join("?" * (1 + len(COLUMNS)))
            db.executemany(
                f"INSERT INTO entries VALUES ({marks})", ((p, *r) for p, r in zip(places, rows, strict=True))
            )
            self._count(rows=len(vectors), added=len(vectors))

    def delete(self, places: Iterable[int]) -> None:
        """Let entries no longer count."""
        with self.writing() as db:
            gone = [(place,) for place in places]
            db.executemany("DELETE FROM entries WHERE place = ?", gone)
            db.executemany("DELETE FROM vectors WHERE place = ?", gone)
            self._count(deletions=1)

    def compact(self, check: bool = True, progress: Callable[[int, int], object] | None = None) -> None:
        """Write the vectors that count to new files, and let nothing of the others stay on the disk.

        Raises:
            ValueError: A vector is damaged; nothing changed.
        """
        with self.writing() as db:
            state = self._refreshed()
            kept, written = np.flatnonzero(state.norms), 0
            for number, rows in enumerate(self.segments(state)):
                inside = kept[kept // SEGMENT == number]
                for some in np.array_split(inside, max(1, len(inside) // TILE)):
                    vectors = np.asarray(rows[some % SEGMENT])
                    if check:
                        self.check(some.tolist(), vectors)
                    self._write_vectors(state.generation + 1, written, vectors)
                    written += len(some)
                    if progress is not None:
                        progress(written, len(kept))
            moved = [(new, int(old)) for new, old in enumerate(kept) if new != old]  # ascending: no two meet
            for table in ("vectors", "entries"):
                db.executemany(f"UPDATE {table} SET place = ? WHERE place = ?", moved)
            self._count(generation=1, rows=len(kept) - state.rows, deletions=1)
        self._remove_leftovers()
        with self._guard, self._named_errors():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check(self, places: Sequence[int], vectors: np.ndarray) -> None:
        """Raise ValueError that names the first vector of ascending places that is not what was added."""
        if damaged := self.damaged(places, vectors):
            place, key = damaged[0]
            file = self._file(self._refreshed_now().generation, place // SEGMENT)
            raise ValueError(
                f"{file} is damaged: the vector of {show(key)} "
                "is not what was added. 'nextreid gallery verify' lists all that are; delete them and add them again, "
                "or copy the file from a backup"
            )

    def damaged(self, places: Sequence[int], vectors: np.ndarray) -> list[tuple[int, str]]:
        """Return the places and keys of vectors that are not what was added."""
        kept = self.fetch("SELECT place, digest FROM vectors WHERE place IN", places)
        wrong = [
            place
            for place, vector in zip(places, vectors, strict=True)
            if place in kept and kept[place][0] != row_digest(vector)
        ]
        return [
            (place, key) for place, (key,) in self.fetch("SELECT place, key FROM entries WHERE place IN", wrong).items()
        ]

    def fetch(self, sql: str, values: Sequence[Any]) -> dict[Any, tuple[Any, ...]]:
        """Rows of a query that ends in ``IN``, for any number of values: by their first column, the others."""
        found = dict[Any, tuple[Any, ...]]()
        for start in range(0, len(values), _AT_ONCE):
            some = list(values[start : start + _AT_ONCE])
            rows = self.query(f"{sql} ({', '.join('?' * len(some))})", some)
            found |= {first: tuple(rest) for first, *rest in rows}
        return found

    def check_structure(self) -> None:
        """Raise ValueError if the table is damaged."""
        with self.reading():
            found = [row[0] for row in self.query("PRAGMA integrity_check(3)")]
            lone = next(self.query("SELECT COUNT(*) FROM entries WHERE place NOT IN (SELECT place FROM vectors)"))[0]
            other = next(self.query("SELECT COUNT(*) FROM vectors WHERE place NOT IN (SELECT place FROM entries)"))[0]
        if found != ["ok"] or lone or other:
            raise ValueError(f"{self.path} is damaged: {'; '.join(found)[:200]}; copy it from a backup")

    def _refreshed_now(self) -> State:
        with self.reading() as state:
            return state

    def _refreshed(self) -> State:
        old = self._state
        marks = ", ".join("?" * len(_COUNTERS))
        found = dict(self._db.execute(f"SELECT name, value FROM about WHERE name IN ({marks})", _COUNTERS).fetchall())
        counters = [int(found[name]) for name in _COUNTERS]
        if old is not None and counters == list(old[:4]):
            return old
        generation, rows, deletions, added = counters
        if old is None or old.generation != generation:
            self._forget()
        norms, first = np.zeros(rows, np.float32), 0
        if old is not None and (old.generation, old.deletions) == (generation, deletions):
            first = old.rows
            norms[:first] = old.norms
        cursor = self._db.execute("SELECT place, norm FROM vectors WHERE place >= ?", (first,))
        while some := cursor.fetchmany(2**14):
            places, lengths = zip(*some, strict=True)
            norms[np.array(places)] = lengths
        self._state = State(generation, rows, deletions, added, norms)
        return self._state

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._db.execute("UPDATE about SET value = CAST(value AS INTEGER) + ? WHERE name = ?", (number, name))

    def _file(self, generation: int, number: int) -> Path:
        return self.folder / f"vectors-{generation:05d}-{number:05d}.f16"

    def _forget(self) -> None:
        self._maps.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _map(self, generation: int, start: int, count: int) -> np.ndarray:
        file, width = self._file(generation, start // SEGMENT), self.width
        size = file.stat().st_size if file.is_file() else 0
        if size < count * width * 2:
            raise ValueError(f"{file} is damaged: it has {size} bytes of {count * width * 2}; copy it from a backup")
        number = start // SEGMENT
        if number not in self._files:
            self._files[number] = file.open("rb", buffering=0)
        return np.memmap(self._files[number], "<f2", "r", 0, (count, width))

    @property
    def width(self) -> int:
        """Numbers of a row of vectors."""
        return self.about["width"] + self.about["words"]

    def _write_vectors(self, generation: int, row: int, vectors: np.ndarray) -> None:
        done = 0
        while done < len(vectors):
            number, place = divmod(row + done, SEGMENT)
            some = np.ascontiguousarray(vectors[done : done + SEGMENT - place], "<f2")
            file = self._file(generation, number)
            with name_errors(file):
                fresh = not file.exists()
                with file.open("wb" if fresh or not place else "r+b") as out:
                    out.truncate(place * self.width * 2)
                    out.seek(0, os.SEEK_END)
                    out.write(some.data)
                sync(file)
                if fresh:
                    sync_folder(self.folder)
            done += len(some)

    def _read_about(self) -> dict[str, Any]:
        try:
            rows = dict(self._db.execute("SELECT name, value FROM about").fetchall())
            about = {name: parse_json(str(value), f"{self.path}: {name}") for name, value in rows.items()}
            version = about["format"]
        except (sqlite3.OperationalError, KeyError, ValueError) as error:
            if getattr(error, "sqlite_errorname", "SQLITE_ERROR") != "SQLITE_ERROR":
                raise
            raise ValueError(f"{self.path} is no gallery, or damaged ({error})") from error
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(
                f"{self.folder} is a gallery of version {version}, this nextreid reads {FORMAT}: update it"
            )
        return about

    def _remove_leftovers(self) -> None:
        """Remove files of other generations, which a killed writer left or the last `compact` replaced."""
        generation = self._refreshed_now().generation
        for file in (*self.folder.glob("vectors-*.f16"), *self.folder.glob("code-*.safetensors")):
            if file.name.split("-")[1] != f"{generation:05d}":
                with suppress(PermissionError):  # Windows keeps what a reader has open
                    file.unlink(missing_ok=True)
        sync_folder(self.folder)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:  # no damage but a mistake, such as a search after close()
            raise ValueError(f"gallery {self.folder}: {error}") from error
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
            if name in _ERRORS:
                number, kind = _ERRORS[name]
                raise kind(number, f"gallery {self.folder}: {error} ({os.strerror(number)})") from error
            if name == "ERROR" and "no such" not in str(error):
                raise
            raise ValueError(f"{self.path} is damaged ({error}); copy it from a backup") from error


def row_digest(vector: np.ndarray) -> bytes:
    """Eight bytes that tell whether a stored vector has changed."""
    return hashlib.blake2b(np.ascontiguousarray(vector, "<f2").data, digest_size=8).digest()


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    mode = "rwc" if write else "rw"
    if not (write or (os.access(path.parent, os.W_OK) and os.access(path, os.W_OK))):
        log = path.with_name(f"{path.name}-wal")
        mode = "ro" if log.exists() and log.stat().st_size else "ro&immutable=1"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", 10, isolation_level=None, check_same_thread=False, uri=True
    )
    if write:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        db.execute("PRAGMA secure_delete=ON")  # what is deleted becomes zeros
    else:
        db.execute("PRAGMA query_only=ON")
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    if db.in_transaction:  # part of a larger change
        yield
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
