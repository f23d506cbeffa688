"""What a gallery answers: the nearest entries to vectors, images or words, and what there is."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from torch import Tensor

from nextreid._files import user_path
from nextreid._names import show, unknown

from .calibration import Calibration
from .distance import Embeddings, as_float32, check_finite, check_matrix
from .gallery_entry import Entry, Where, as_label
from .gallery_match import Hit, find_calibration, match_hits
from .gallery_search import Found, GallerySearch
from .gallery_store import GalleryStore

_MATCHED = 200  # nearest entries of a query that are looked at
_AT_ONCE = 4096  # vectors that are copied or checked at once


class Encoder(Protocol):
    """What turns images and words into the vectors of a gallery; `nextreid.open_gallery` makes one of the model."""

    def check(self, gallery: "GalleryReader") -> None:
        """Raise ValueError if its vectors are not those of the gallery."""

    def encode(self, query: Any) -> tuple[Tensor, list[tuple[str, ...]]]:
        """Vectors ``(n, width + words)`` of one sample or a list of them, and the modalities that each shows."""

    def encode_words(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(n, words)``."""

    def average_modalities(self, vectors: Tensor) -> Tensor:
        """See `ReIDModel.average_modalities`."""


Query: TypeAlias = Embeddings | Mapping[str, Any] | Sequence[Any]


class GalleryReader:
    """What a gallery answers; see `Gallery`."""

    folder: Path
    about: Mapping[str, Any]

    def __init__(self, folder: str | os.PathLike[str], *, write: bool = False, encoder: Encoder | None = None) -> None:
        self.folder = user_path(folder)
        self._store = GalleryStore(self.folder, write)
        self._search = GallerySearch(self._store)
        self.about: Mapping[str, Any] = self._store.about
        self.encoder = encoder
        if encoder is not None:
            try:
                encoder.check(self)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Gallery({str(self.folder)!r}: {len(self)} entries of width {self.width}, {'+'.join(self.modalities)})"

    def __len__(self) -> int:
        """Return the number of entries."""
        with self._store.reading() as state:
            return int(np.count_nonzero(state.norms))

    def __contains__(self, key: object) -> bool:
        """Return whether there is an entry of this key."""
        with self._store.reading():
            return next(self._store.query("SELECT 1 FROM entries WHERE key = ?", (key,)), None) is not None

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.about["width"]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the model's order."""
        return tuple(self.about["modalities"])

    def close(self) -> None:
        """Let others write; the gallery can no longer be used."""
        self._store.close()

    def search(
        self,
        query: Query | None = None,
        k: int = 10,
        *,
        text: str | Sequence[str] | None = None,
        where: Where | None = None,
        modalities: Sequence[str] | None = None,
        exact: bool | None = None,
    ) -> Any:
        """Return the nearest entries.

        Where the queries show other modalities than the entries do, the modalities' parts of both are averaged
        first, as in `nextreid.evaluate`; that needs the encoder.

        Args:
            query: One vector ``(width,)`` or several ``(n, width)``; with an encoder also what `FeatureExtractor`
                takes, one sample or a list of them. None: the entries that fit `where`, unranked.
            k: Most entries for each query.
            text: Instead: words, for a gallery with a joint space of images and words.
            where: Conditions that all hold, such as ``{"camera": ["gate", "yard"], "upper_clothing_color": "red",
                "time": (start, None)}``; see `Where`.
            modalities: What vectors as queries show; None for all of the gallery's.
            exact: Whether to compare all vectors; None: as long as there are at most 100,000.

        Returns:
            A list of `Hit`, nearest first; of such lists for several queries.

        Raises:
            ValueError: The gallery is empty, nothing or no name fits `where`, the width differs, or a query is NaN.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1; got {show(k)}")
        if text is not None:
            if query is not None:
                raise ValueError("search by images or by words, one at a time")
            return self._search_words(text, int(k), where)
        if query is None:
            return [Hit(entry, None) for _, entry in zip(range(k), self.entries(where), strict=False)]
        rows, shown, single = self._encoded(query, modalities)
        hits, _ = self._nearest(rows, shown, int(k), where, exact)
        return hits[0] if single else hits

    def match(
        self,
        query: Query,
        *,
        least: float = 0.5,
        enrolled: float = 0.5,
        false_match_rate: float | None = None,
        where: Where | None = None,
        modalities: Sequence[str] | None = None,
        calibration: Calibration | None = None,
    ) -> Any:
        """Say who a query shows, with a probability, or that it is unknown.

        The probability is that of `Calibration.identify`: that the query shows this identity, and neither another one
        of the gallery nor nobody of it.

        Args:
            query: As for `search`.
            least: Probability below which the answer is unknown.
            enrolled: Probability, before looking, that the query's identity is in the gallery.
            false_match_rate: Whose threshold the score must reach as well; one that was calibrated.
            where: As for `search`; only identities with such entries count.
            modalities: As for `search`.
            calibration: What scores mean; None: the ``calibration.json`` of the gallery's folder, or of its model's.

        Returns:
            A `Match`; a list of them for several queries. Scores outside the calibrated range are a logged warning.

        Raises:
            FileNotFoundError: There is no calibration.
            KeyError: What query and entries show was not calibrated.
            ValueError: As `search`, or the calibration is of another model.
        """
        calibration = calibration or find_calibration(self.folder, self.about)
        rows, shown, single = self._encoded(query, modalities)
        hits, theirs = self._nearest(rows, shown, _MATCHED, where, None)
        entries = tuple(name for name in self.modalities if name in theirs)
        with self._store.reading():
            number = self._search.identities(where)
        found = []
        for of_query, row in zip(shown, hits, strict=True):
            calibration.drift([hit.score for hit in row[:1]], of_query, entries)
            complete = len(row) < _MATCHED
            sets = (of_query, entries)
            found.append(match_hits(row, calibration, sets, number, complete, enrolled, least, false_match_rate))
        return found[0] if single else found

    def _encoded(self, query: Query, modalities: Sequence[str] | None) -> tuple[Tensor, list[tuple[str, ...]], bool]:
        """Return queries ``(Q, width)``, what each shows, and whether it is one alone."""
        if isinstance(query, np.ndarray | Tensor):
            vectors: Embeddings = query
            shown = [self._names(modalities)] * (1 if query.ndim == 1 else len(query))
        else:
            vectors, shown = self._need_encoder("an image").encode(query)
        return self._queries(vectors, self.width), shown, vectors.ndim == 1

    def _nearest(
        self, rows: Tensor, shown: Sequence[tuple[str, ...]], k: int, where: Where | None, exact: bool | None
    ) -> tuple[list[list[Hit]], frozenset[str]]:
        theirs = self._search.shown(where)
        hits: list[list[Hit]] = [[]] * len(rows)
        for names in dict.fromkeys(shown):
            chosen = [i for i, of_query in enumerate(shown) if of_query == names]
            average = None if set(names) == theirs else self._averaging(names, theirs)
            found = self._search.nearest(rows[chosen], k, where, average=average, exact=exact)
            for i, row in zip(chosen, _hits(found), strict=True):
                hits[i] = row
        return hits, theirs

    def _search_words(self, text: str | Sequence[str], k: int, where: Where | None) -> Any:
        if not self.about["words"]:
            raise ValueError(
                f"gallery {self.folder} keeps no vectors of a joint space with words; make it with a model that has "
                "one (words=True, --words), or search the captions by their attributes (where=, --where)"
            )
        vectors = self._need_encoder("words").encode_words([text] if isinstance(text, str) else list(text))
        hits = _hits(self._search.nearest(self._queries(vectors, self.about["words"]), k, where, words=True))
        return hits[0] if isinstance(text, str) else hits

    def entries(self, where: Where | None = None) -> Iterator[Entry]:
        """Yield the entries that fit conditions, in the order of their addition.

        Raises:
            ValueError: No entry has a field or metadata of a name.
        """
        with self._store.reading():
            rows = list(self._search.rows(where))
        for row in rows:
            yield Entry.from_row(row)

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Return the vectors ``(n, width + words)`` of entries, float16 and checked; KeyError if one is missing."""
        with self._store.reading() as state:
            places = self._places(keys)
            if missing := [key for key in keys if key not in places]:
                raise KeyError(f"{len(missing)} keys are not in gallery {self.folder}, such as {show(missing[0])}")
            order = np.array([places[key] for key in keys], np.int64)
            return self._search.gather(state, order)

    def identities(self) -> dict[str, int]:
        """Return the identities and how many entries each has; those of unknown identity are not among them."""
        with self._store.reading():
            sql = (
                "SELECT identity, COUNT(*) FROM entries WHERE identity IS NOT NULL GROUP BY identity ORDER BY identity"
            )
            return dict(self._store.query(sql))

    def info(self) -> dict[str, Any]:
        """Return what the gallery is and holds, JSON-able."""
        with self._store.reading() as state:
            count = int(np.count_nonzero(state.norms))
            first, last = next(self._store.query("SELECT MIN(time), MAX(time) FROM entries"))
            shown = dict(self._store.query("SELECT modalities, COUNT(*) FROM entries GROUP BY modalities"))
            known = next(self._store.query("SELECT COUNT(identity), COUNT(DISTINCT identity) FROM entries"))
        return {
            **{
                name: value
                for name, value in self.about.items()
                if name not in ("generation", "rows", "deletions", "added")
            },
            "entries": count,
            "identities": known[1],
            "entries_of_unknown_identity": count - known[0],
            "shown": shown,
            "first_time": first,
            "last_time": last,
            "deleted_rows_on_disk": state.rows - count,
            "bytes": sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file()),
        }

    def verify(self, progress: Callable[[int, int], object] | None = None) -> list[str]:
        """Read everything and return the keys whose vectors are not what was added.

        Args:
            progress: Called with the number of vectors read and of all to read.

        Raises:
            ValueError: The table is damaged, or a file of vectors is missing or too short.
        """
        self._store.check_structure()
        damaged = list[str]()
        with self._store.reading() as state:
            alive = np.flatnonzero(state.norms)
            for start in range(0, len(alive), _AT_ONCE):
                places = alive[start : start + _AT_ONCE]
                rows = self._search.gather(state, places, check=False)
                damaged += [key for _, key in self._store.damaged(places.tolist(), rows)]
                if progress is not None:
                    progress(start + len(places), len(alive))
        return damaged

    def _queries(self, vectors: Embeddings, width: int) -> Tensor:
        rows = vectors[None] if vectors.ndim == 1 else vectors
        check_matrix("query", rows)
        if rows.shape[1] != width and rows.shape[1] != self.width + self.about["words"]:
            raise ValueError(f"queries have {rows.shape[1]} numbers but gallery {self.folder} has {width}")
        check_finite("query", rows, 0, len(rows))
        return as_float32(rows).cpu()[:, :width]

    def _names(self, modalities: Sequence[str] | None) -> tuple[str, ...]:
        names = (modalities,) if isinstance(modalities, str) else modalities
        if wrong := set(names or ()) - set(self.modalities):
            raise ValueError(unknown("modality", wrong, self.modalities))
        return tuple(name for name in self.modalities if names is None or name in names)

    def _need_encoder(self, what: str) -> Encoder:
        if self.encoder is None:
            raise ValueError(f"{what} as query needs the model: open the gallery with nextreid.open_gallery")
        return self.encoder

    def _averaging(self, ours: Sequence[str], theirs: Iterable[str]) -> Callable[[Tensor], Tensor]:
        if self.encoder is None:
            shown = [name for name in self.modalities if name in theirs]
            raise ValueError(
                f"the queries show {'+'.join(ours)} and the entries {'+'.join(shown)}: to compare them the parts of "
                "their vectors are averaged, which needs the model; open the gallery with nextreid.open_gallery, or "
                "choose entries (where={'modalities': ...})"
            )
        return self.encoder.average_modalities

    def _check_identity(self, identity: str | int) -> None:
        found = self._store.query("SELECT 1 FROM entries WHERE identity = ? LIMIT 1", (as_label("identity", identity),))
        if next(found, None) is None:
            raise KeyError(unknown("identity", str(identity), list(self.identities())[:1000]))

    def _parts(self) -> Iterator[tuple[list[Entry], np.ndarray, np.ndarray]]:
        """Yield entries, their vectors, which are checked, and the lengths of these, some at a time."""
        with self._store.reading() as state:
            rows, alive = self._search.rows(None), np.flatnonzero(state.norms)
            for start in range(0, len(alive), _AT_ONCE):
                places = alive[start : start + _AT_ONCE]
                entries = [Entry.from_row(next(rows)) for _ in places]
                yield entries, self._search.gather(state, places), state.norms[places]

    def _places(self, keys: Sequence[str]) -> dict[str, int]:
        found = self._store.fetch("SELECT key, place FROM entries WHERE key IN", keys)
        return {key: place for key, (place,) in found.items()}


def _hits(found: Found) -> list[list[Hit]]:
    return [[Hit(Entry.from_row(row), score) for row, score in hits] for hits in found]
