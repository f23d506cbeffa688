"""The gallery's interface on LanceDB, for what one machine does not hold: tables on object storage, read by many."""

import datetime
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nextreid._names import show, unknown

from .distance import as_float32
from .gallery import Gallery
from .gallery_entry import COLUMNS, FIXED, Entry, Where, as_label, as_seconds
from .gallery_reader import Encoder
from .gallery_search import Average, Found
from .gallery_store import FORMAT, row_digest

TABLE = "entries"
_AT_ONCE = 2048


class LanceGallery(Gallery):
    """A gallery in a LanceDB database: on a disk, or on object storage that many machines read.

    Searching, matching, adding, deleting, merging and their errors are those of `Gallery`. What differs: LanceDB keeps
    the versions and the snapshots, and no lock keeps a second writer out, so let one process write; the rank of equal
    scores is the engine's; with an index (`make_index`) a search is approximate, unless ``exact=True``; conditions on
    metadata are equality alone; vectors of modalities' means are kept beside the others, where the encoder makes them.

    Args:
        uri: What ``lancedb.connect`` takes: a folder, ``s3://bucket/people``, ``gs://``, ``az://``.
        encoder: As for `Gallery`.
        write: Ignored; kept so that the two open alike.

    Raises:
        ImportError: LanceDB is not installed.
        FileNotFoundError: There is no gallery.
        ValueError: It is of a newer version, or the encoder has another model.

    Example:
        >>> gallery = LanceGallery("s3://bucket/people")  # doctest: +SKIP
        >>> gallery.search(vector, where={"camera": "gate"})  # doctest: +SKIP
    """

    _piece = sys.maxsize  # the engine makes one change of one call

    def __init__(self, uri: str, *, write: bool = False, encoder: Encoder | None = None) -> None:
        self.folder, self.uri, self.encoder = uri, str(uri), encoder  # type: ignore[assignment]
        database = _connect(self.uri)
        if TABLE not in _names(database):
            raise FileNotFoundError(f"{uri} is no gallery; make one with LanceGallery.create")
        self._table = database.open_table(TABLE)
        about = json.loads((self._table.schema.metadata or {}).get(b"nextreid", b"{}"))
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{uri} is a gallery of version {about.get('format')}, this nextreid reads {FORMAT}: update it"
            )
        self.about = about
        self._store = _Store()  # type: ignore[assignment]
        self._search = _Search(self._table, self.uri)  # type: ignore[assignment]
        if encoder is not None:
            encoder.check(self)

    @classmethod
    def _make(cls, uri: Any, about: Mapping[str, Any]) -> None:
        import pyarrow as pa

        database = _connect(str(uri))
        if TABLE in _names(database):
            raise FileExistsError(f"{uri} is a gallery already; add to it, or name another place")
        width, words = about["width"], about["words"]
        columns = [pa.field(name, pa.float64() if name == "time" else pa.string()) for name in COLUMNS]
        columns += [pa.field("attributes", pa.list_(pa.string())), pa.field("digest", pa.binary())]
        columns += [pa.field("vector", pa.list_(pa.float16(), width))]
        columns += [pa.field("words", pa.list_(pa.float16(), words))] if words else []
        if mean := about.get("mean"):
            columns.append(pa.field("mean", pa.list_(pa.float16(), mean)))
        record = json.dumps({"format": FORMAT, **about})
        database.create_table(TABLE, schema=pa.schema(columns, metadata={"nextreid": record}))

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._table.count_rows()

    def __contains__(self, key: object) -> bool:
        """Return whether there is an entry of this key."""
        return bool(self._table.count_rows(f"key = {_quoted(str(key))}"))

    def close(self) -> None:
        """Nothing is held."""

    def _append(
        self, rows: np.ndarray, norms: np.ndarray, given: Sequence[Entry], replace: bool, before: int = 0
    ) -> list[str]:
        import pyarrow as pa

        start = self._table.version * 1_000_000  # keys that are numbers, and no other writer's
        table = [self._row(entry, start + number) for number, entry in enumerate(given, 1)]
        keys = [row[0] for row in table]
        if len(set(keys)) < len(keys):
            raise ValueError(f"key {show(max(keys, key=keys.count))} occurs twice; keys must be unique")
        there = self._places(keys)
        if there and not replace:
            raise ValueError(
                f"{len(there)} of {len(keys)} keys are in gallery {self.uri} already, such as "
                f"{show(next(iter(there)))}; leave them out, or replace them (replace=True, --replace)"
            )
        columns = {name: list(column) for name, column in zip(COLUMNS, zip(*table, strict=True), strict=True)}
        columns["attributes"] = [_attributes(entry.metadata) for entry in given]
        columns["digest"] = [row_digest(row) for row in rows]
        parts = {"vector": rows[:, : self.width], "words": rows[:, self.width :]}
        if self.about.get("mean"):
            if self.encoder is None:
                raise ValueError(
                    f"gallery {self.uri} keeps means of modalities, which need the model: open it with one"
                )
            means = self.encoder.average_modalities(as_float32(parts["vector"]))
            parts["mean"] = torch.nn.functional.normalize(means, dim=1).half().numpy()
        for name, part in parts.items():
            if part.shape[1]:
                flat = pa.array(np.ascontiguousarray(part).reshape(-1), pa.float16())
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, part.shape[1])
        added = pa.table(columns, schema=self._table.schema)
        if there:
            self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(added)
        else:
            self._table.add(added)
        return keys

    def delete(
        self,
        *,
        key: str | Sequence[str] | None = None,
        identity: str | int | None = None,
        before: Any = None,
        where: Where | None = None,
    ) -> int:
        """See `Gallery.delete`."""
        if key is None and identity is None and before is None and not where:
            raise ValueError("say what to delete: key, identity, before or where")
        parts = [_condition(where)]
        if key is not None:
            keys = [key] if isinstance(key, str) else list(key)
            if missing := set(keys) - set(self._places(keys)):
                raise KeyError(f"{len(missing)} keys are not in gallery {self.uri}, such as {show(min(missing))}")
            parts.append(f"key IN ({', '.join(map(_quoted, keys))})")
        if identity is not None:
            self._check_identity(identity)
            parts.append(f"identity = {_quoted(as_label('identity', identity))}")
        if before is not None:
            parts.append(f"time < {as_seconds(before)}")
        chosen = " AND ".join(parts)
        count = self._table.count_rows(chosen)
        if count:
            self._table.delete(chosen)
        return count

    def merge_identities(self, identity: str | int, into: str | int) -> int:
        """See `Gallery.merge_identities`."""
        self._check_identity(identity)
        old, new = as_label("identity", identity), as_label("identity", into)
        if new is None:
            raise ValueError(f"cannot merge into {show(into)}, which stands for unknown")
        chosen = f"identity = {_quoted(old)}"
        count = self._table.count_rows(chosen)
        self._table.update(where=chosen, values={"identity": new})
        return count

    def compact(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Remove deleted entries and all earlier versions from the storage; no other process may use it meanwhile.

        Args:
            progress: See `Gallery.compact`; the engine does not say how far it is.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says what the docstring says
            self._table.optimize(cleanup_older_than=datetime.timedelta(0), delete_unverified=True)

    def make_index(self, **settings: Any) -> None:
        """Make the engine's vector index: searches become approximate. Settings are those of its ``create_index``."""
        self._table.create_index(metric="cosine", vector_column_name="vector", **settings)

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """See `Gallery.vectors`."""
        found = self._places(keys)
        if missing := [key for key in keys if key not in found]:
            raise KeyError(f"{len(missing)} keys are not in gallery {self.uri}, such as {show(missing[0])}")
        rows = {row["key"]: _vector(row) for some in _parts(keys) for row in self._search.look(_among("key", some))}  # type: ignore[attr-defined]
        for key in keys:
            if rows[key][1] != row_digest(rows[key][0]):
                raise ValueError(f"the vector of {show(key)} in {self.uri} is damaged: it is not what was added")
        return np.stack([rows[key][0] for key in keys])

    def identities(self) -> dict[str, int]:
        """See `Gallery.identities`."""
        names = [row["identity"] for row in self._search.look("identity IS NOT NULL", ["identity"])]  # type: ignore[attr-defined]
        return {name: names.count(name) for name in sorted(set(names))}

    def info(self) -> dict[str, Any]:
        """See `Gallery.info`; sizes are the engine's to tell."""
        known = self.identities()
        unknown_ones = len(self) - sum(known.values())
        return {
            **self.about,
            "entries": len(self),
            "identities": len(known),
            "entries_of_unknown_identity": unknown_ones,
        }

    def verify(self, progress: Callable[[int, int], object] | None = None) -> list[str]:
        """See `Gallery.verify`."""
        damaged, count = [], len(self)
        for done, row in enumerate(self._search.look("true"), start=1):  # type: ignore[attr-defined]
            vector, digest = _vector(row)
            damaged += [] if digest == row_digest(vector) else [row["key"]]
            if progress is not None:
                progress(done, count)
        return damaged

    def _parts(self) -> Iterator[tuple[list[Entry], np.ndarray, np.ndarray]]:
        rows = list(self._search.look("true"))  # type: ignore[attr-defined]
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            vectors = np.stack([_vector(row)[0] for row in some])
            norms = np.linalg.norm(vectors[:, : self.width].astype(np.float32), axis=1)
            yield [Entry.from_row([row[name] for name in COLUMNS]) for row in some], vectors, norms

    def _check_identity(self, identity: str | int) -> None:
        if not self._table.count_rows(f"identity = {_quoted(as_label('identity', identity))}"):
            raise KeyError(unknown("identity", str(identity), list(self.identities())[:1000]))

    def _places(self, keys: Sequence[str]) -> dict[str, int]:
        found = (row["key"] for some in _parts(keys) for row in self._search.look(_among("key", some), ["key"]))  # type: ignore[attr-defined]
        return {key: 0 for key in found}


class _Store:
    """What a reader holds while it looks: LanceDB keeps its own snapshots."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        yield

    writing = reading


class _Search(NamedTuple):
    """`GallerySearch` by the engine."""

    table: Any
    uri: str

    def look(self, chosen: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows that fit, in no order."""
        query = self.table.search().where(chosen)
        yield from (query if columns is None else query.select(list(columns))).to_list()

    def shown(self, where: Where | None) -> frozenset[str]:
        names = {row["modalities"] for row in self.look(_condition(where), ["modalities"])}
        if not names:
            fits = (
                f"no entry of gallery {self.uri} fits {show(dict(where))}" if where else f"gallery {self.uri} is empty"
            )
            raise ValueError(fits if where else f"{fits}: add to it first")
        return frozenset(name for shown in names for name in shown.split("+"))

    def identities(self, where: Where | None) -> int:
        return len({row["identity"] for row in self.look(_condition(where), ["identity"])} - {None})

    def rows(self, where: Where | None) -> Iterator[tuple[Any, ...]]:
        for row in self.look(_condition(where), COLUMNS):
            yield tuple(row[name] for name in COLUMNS)

    def nearest(
        self,
        queries: Tensor,
        k: int,
        where: Where | None,
        *,
        average: Average | None = None,
        words: bool = False,
        exact: bool | None = None,
    ) -> Found:
        column = "words" if words else "vector" if average is None else "mean"
        if column not in self.table.schema.names:
            raise ValueError(
                f"gallery {self.uri} keeps no {column} of its vectors: make it with what is to be searched"
            )
        found = []
        for query in (queries if average is None else average(queries)).numpy():
            search = self.table.search(query, vector_column_name=column).distance_type("cosine").limit(k)
            search = search.where(_condition(where), prefilter=True)
            rows = (search.bypass_vector_index() if exact else search).to_list()
            for row in rows:
                vector, digest = _vector(row)
                if digest != row_digest(vector):
                    raise ValueError(
                        f"the vector of {show(row['key'])} in {self.uri} is damaged: it is not what was added"
                    )
            found.append([(tuple(row[name] for name in COLUMNS), 1 - row["_distance"]) for row in rows])
        return found


def _connect(uri: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise ImportError("galleries on LanceDB need it: pip install 'nextreid[lance]'") from error
    return lancedb.connect(uri)


def _names(database: Any) -> list[str]:
    listed = database.list_tables()
    return list(getattr(listed, "tables", listed))


def _vector(row: Mapping[str, Any]) -> tuple[np.ndarray, bytes]:
    """The whole vector of a row, and its digest."""
    return np.array([*row["vector"], *row.get("words", ())], np.float16), row["digest"]


def _parts(keys: Sequence[str]) -> Iterator[list[str]]:
    return (list(keys[start : start + _AT_ONCE]) for start in range(0, len(keys), _AT_ONCE))


def _among(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(map(_quoted, values))})"


def _attributes(metadata: Mapping[str, Any]) -> list[str]:
    """What conditions can ask: ``name=value`` in lower case, one for each item of a list."""
    found = []
    for name, value in metadata.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            found.append(f"{name}={item}".lower())
    return found


def _condition(where: Where | None) -> str:
    """Conditions as the engine's SQL; `nextreid.retrieval.gallery_entry.condition` says what they mean."""
    parts = ["true"]
    for name, wanted in (where or {}).items():
        options = list(wanted) if isinstance(wanted, list | set | frozenset) else [wanted]
        if isinstance(wanted, tuple):
            if name != "time" or len(wanted) != 2:
                raise ValueError(f"condition {show(name)}: ranges are of the time alone, here")
            low, high = map(as_seconds, wanted)
            parts += [f"time {sign} {end}" for sign, end in ((">=", low), ("<=", high)) if end is not None]
            parts.append("time IS NOT NULL")
        elif name == "time":
            parts.append(f"time IN ({', '.join(str(as_seconds(option)) for option in options)})")
        elif name in FIXED:
            words = ["+".join(o) if isinstance(o, list | tuple) else str(o) for o in options if o is not None]
            tests = [f"lower({name}) IN ({', '.join(_quoted(word.lower()) for word in words)})"] if words else []
            tests += [f"{name} IS NULL"] if None in options else []
            parts.append(f"({' OR '.join(tests)})")
        else:
            asked = ", ".join(_quoted(f"{name}={option}".lower()) for option in options)
            parts.append(f"array_has_any(attributes, [{asked}])")
    return " AND ".join(parts)


def _quoted(value: str | None) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"
