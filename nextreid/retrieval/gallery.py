"""A gallery that lasts: a folder of vectors with what they belong to, searched by vectors, images or words."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch

from nextreid._files import user_path
from nextreid._names import show, unknown

from .distance import Embeddings, as_float32, check_finite, check_matrix
from .gallery_entry import Entry, Where, as_entry, as_label, as_seconds, condition
from .gallery_reader import Encoder, GalleryReader
from .gallery_store import GalleryStore


class Gallery(GalleryReader):
    """A folder that grows: float16 vectors of one model, and what each of them belongs to.

    One writer changes it at a time, any number of readers search it meanwhile, each in the state of one commit. What
    `add` and its like have done when they return is on the disk, whatever happens to the process.

    Vectors are kept at unit length and compared by their cosine. Searching is exact, in the order of
    `nextreid.retrieval.top_k`; above 100,000 entries a compact code proposes and the vectors decide.

    Args:
        folder: What `create` made.
        write: Whether to change it; then no other process can before `close`.
        encoder: What turns images and words into its vectors; without one, queries are vectors.

    Attributes:
        folder: The folder.
        about: What was given to `create`.

    Raises:
        FileNotFoundError: There is no gallery.
        BlockingIOError: Another writer has it open.
        PermissionError: It may not be written.
        ValueError: It is damaged, of a newer version, or the encoder has another model or other weights.

    Example:
        >>> with Gallery.create("people", 4) as gallery:
        ...     gallery.add(np.eye(4), [{"identity": name} for name in ("anna", "ben", "ben", "carl")])
        ['1', '2', '3', '4']
        >>> [(hit.entry.identity, hit.score) for hit in Gallery("people").search(np.eye(4)[0], k=1)]
        [('anna', 1.0)]
    """

    _piece = 8192  # vectors that are added at once, as parts of one change

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        width: int,
        *,
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        model: str | None = None,
        digest: str | None = None,
        embedding: str | None = None,
        protocol: str = "none",
        words: int = 0,
        encoder: Encoder | None = None,
        **more: Any,
    ) -> "Gallery":
        """Make an empty gallery and open it for writing.

        Args:
            folder: New or empty.
            width: Numbers of a vector.
            modalities: Those that the model reads.
            model: Name of the model that the vectors come from; None: it is not known, and never asked for.
            digest: Of its weights, likewise.
            embedding: Which of the model's vectors; None for the default.
            protocol: What the vectors are compared under, for the record.
            words: Numbers behind a vector that are one of the joint space of images and words; 0 for none.
            encoder: As for `Gallery`.
            **more: Further plain facts for the record.

        Raises:
            OSError: The folder holds something, or cannot be written.
            ValueError: A width is out of range, or no modality is given.
        """
        names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
        if not names or len(set(names)) < len(names) or any(not name or "+" in name for name in names):
            raise ValueError(f"modalities must be one or more different names; got {show(modalities)}")
        for name, number, low in (("width", width, 1), ("words", words, 0)):
            if not isinstance(number, int) or not low <= number <= 65_536:
                raise ValueError(f"{name} must be a whole number of {low} to 65,536; got {show(number)}")
        about = {"width": width, "words": words, "modalities": list(names), "model": model, "digest": digest}
        cls._make(folder, {**about, "embedding": embedding, "protocol": protocol, **more})
        return cls(folder, write=True, encoder=encoder)

    @classmethod
    def _make(cls, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        GalleryStore.create(user_path(folder), about)

    def add(
        self,
        vectors: Embeddings,
        entries: Iterable[Entry | Mapping[str, Any]] | None = None,
        *,
        model: str | None = None,
        digest: str | None = None,
        replace: bool = False,
    ) -> list[str]:
        """Add vectors: all of them or, on an error, none. When it returns they are on the disk.

        They are read some at a time, so that a million of them may be a memory-mapped file and an iterator.

        Args:
            vectors: ``(n, width)``, or ``(n, width + words)``, of any length, n possibly 0; kept at unit length in
                float16.
            entries: What is known of each; a mapping's names that are no field of `Entry` are metadata.
            model: Name of the model that made them; must be the gallery's. None: not checked.
            digest: Of its weights, likewise.
            replace: Whether entries with these keys are replaced; else they are an error.

        Returns:
            The keys; those that were empty are numbers now.

        Raises:
            ValueError: A vector is NaN, zero or of another width, its model another one, or a key is there already.
            OSError: The disk is full, or the gallery is open for reading.
        """
        for name, made in (("model", model), ("digest", digest)):
            if made is not None and self.about[name] is not None and made != self.about[name]:
                what = "model" if name == "model" else "weights of digest"
                raise ValueError(
                    f"the vectors come from {what} {show(made)}, gallery {self.folder} is of {show(self.about[name])}: "
                    "vectors of two models cannot be compared"
                )
        if np.shape(vectors)[:1] != (0,) or np.ndim(vectors) != 2:  # a frame may be without boxes
            check_matrix("gallery", vectors)
        if isinstance(entries, Sized) and len(entries) != len(vectors):
            raise ValueError(f"{len(vectors)} vectors but {len(entries)} entries: give one each")
        given = repeat(Entry(), len(vectors)) if entries is None else iter(entries)
        keys = list[str]()
        with self._store.writing():
            for start in range(0, len(vectors), self._piece):
                rows, norms = self._rows(vectors, start, min(start + self._piece, len(vectors)))
                some = [_numbered(start + i, entry) for i, entry in enumerate(islice(given, len(rows)))]
                if len(some) < len(rows):
                    raise ValueError(f"{len(vectors)} vectors but {start + len(some)} entries: give one each")
                keys += self._append(rows, norms, some, replace, start)
            if next(given, None) is not None:
                raise ValueError(f"{len(vectors)} vectors but more entries: give one each")
        return keys

    def _append(
        self, rows: np.ndarray, norms: np.ndarray, given: Sequence[Entry], replace: bool, before: int = 0
    ) -> list[str]:
        """Add entries to a change that has added some `before`, among which no key may be again."""
        with self._store.writing():
            with self._store.reading() as state:
                table = [self._row(entry, state.added + number) for number, entry in enumerate(given, 1)]
                first = state.rows - before
            keys = [row[0] for row in table]
            there = self._places(keys)
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice := twice + [key for key, place in there.items() if place >= first]:
                raise ValueError(f"key {show(twice[0])} occurs twice; keys must be unique")
            if there and not replace:
                raise ValueError(
                    f"{len(there)} of {len(keys)} keys are in gallery {self.folder} already, such as "
                    f"{show(next(iter(there)))}; leave them out, or replace them (replace=True, --replace)"
                )
            if there:
                self._store.delete(there.values())
            self._store.append(rows, norms, table)
        return keys

    def delete(
        self,
        *,
        key: str | Sequence[str] | None = None,
        identity: str | int | None = None,
        before: Any = None,
        where: Where | None = None,
    ) -> int:
        """Delete entries; `compact` then removes their bytes from the disk.

        Args:
            key: Of one entry or several.
            identity: All of its entries.
            before: Entries that were seen before this moment; see `Entry`. Those without a time stay.
            where: Conditions; see `search`. With several arguments, all must hold.

        Returns:
            How many.

        Raises:
            KeyError: There is no entry of this key or identity.
            ValueError: Nothing says which.
        """
        if key is None and identity is None and before is None and not where:
            raise ValueError("say what to delete: key, identity, before or where")
        conditions = dict(where or {})
        keys = None if key is None else [key] if isinstance(key, str) else list(key)
        with self._store.writing():
            if keys is not None:
                if missing := set(keys) - set(self._places(keys)):
                    raise KeyError(
                        f"{len(missing)} keys are not in gallery {self.folder}, such as {show(min(missing))}"
                    )
                conditions["key"] = keys
            if identity is not None:
                self._check_identity(identity)
                conditions["identity"] = as_label("identity", identity)
            sql, values = condition(conditions)
            if before is not None:
                sql, values = f"{sql} AND time < ?", [*values, as_seconds(before)]
            exact = " AND identity = ?" if identity is not None else ""  # conditions do not see the case of letters
            values += [as_label("identity", identity)] if exact else []
            gone = [place for (place,) in self._store.query(f"SELECT place FROM entries WHERE {sql}{exact}", values)]
            if gone:
                self._store.delete(gone)
        return len(gone)

    def merge_identities(self, identity: str | int, into: str | int) -> int:
        """Give the entries of one identity another one; return how many.

        Raises:
            KeyError: There is no entry of the first.
        """
        with self._store.writing() as db:
            self._check_identity(identity)
            names = as_label("identity", into), as_label("identity", identity)
            if names[0] is None:
                raise ValueError(f"cannot merge into {show(into)}, which stands for unknown")
            return db.execute("UPDATE entries SET identity = ? WHERE identity = ?", names).rowcount

    def merge(self, other: "Gallery", *, replace: bool = False) -> int:
        """Add all entries of another gallery, whose vectors are checked; return how many.

        Raises:
            ValueError: It has another model, width or modalities, a vector is damaged, or a key is in both.
        """
        for name in ("width", "words", "modalities", "model", "digest", "embedding"):
            ours, theirs = self.about.get(name), other.about.get(name)
            if ours != theirs:
                raise ValueError(
                    f"gallery {other.folder} has {name} {show(theirs)}, gallery {self.folder} {show(ours)}"
                )
        count = 0
        with self._store.writing():
            for entries, rows, norms in other._parts():
                self._append(rows, norms, entries, replace)
                count += len(entries)
        return count

    def compact(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Remove the bytes of deleted entries from the disk.

        Args:
            progress: Called with the number of vectors written and of all to write.

        Raises:
            ValueError: A vector is damaged; nothing changed.
        """
        self._store.compact(progress=progress)

    def _rows(self, vectors: Embeddings, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors as they are stored, each part at unit length, and the lengths of the first part as stored."""
        width, words = self.width, self.about["words"]
        if vectors.shape[1] != width + words:
            also = f" (and {words} of the joint space with words behind them)" if words else ""
            raise ValueError(
                f"vectors have {vectors.shape[1]} numbers but gallery {self.folder} has {width}{also}: use the model "
                f"{show(self.about.get('model'))} that it was made with"
            )
        check_finite("gallery", vectors, start, stop)
        parts = list(as_float32(vectors[start:stop]).split([width, words] if words else [width], dim=1))
        lengths = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in parts]
        if zero := torch.nonzero(lengths[0][:, 0] == 0)[:, 0].tolist():
            raise ValueError(f"{len(zero)} of {stop - start} vectors are zero, the first at index {start + zero[0]}")
        unit = [part / torch.where(length > 0, length, 1) for part, length in zip(parts, lengths, strict=True)]
        rows = torch.cat(unit, dim=1).to(torch.float16)
        return rows.cpu().numpy(), torch.linalg.vector_norm(rows[:, :width].float(), dim=1).cpu().numpy()

    def _row(self, entry: Entry, number: int) -> tuple[Any, ...]:
        key, identity, camera, time, _, *tables = entry.row()
        shown = [name for name in self.modalities if name in entry.modalities or not entry.modalities]
        if wrong := set(entry.modalities) - set(self.modalities):
            raise ValueError(f"entry {show(key)}: {unknown('modality', wrong, self.modalities)}")
        return key or str(number), identity, camera, time, "+".join(shown), *tables


def _numbered(index: int, entry: Any) -> Entry:
    try:
        return as_entry(entry)
    except ValueError as error:
        raise ValueError(f"entry at index {index}: {error}") from error
