"""Searching the folder of a gallery: which entries count, their nearest, and whether the answers are undamaged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nextreid._names import show, unknown

from .arithmetic import PADDING, key_values
from .compact_code import CompactCode
from .distance import BLOCK, CPU, TILE, PreparedGallery, Tile, as_float32, gallery_tiles, query_block
from .gallery_entry import COLUMNS, FIXED, Where, condition
from .gallery_store import SEGMENT, GalleryStore, State
from .metrics import nearest_keys
from .protocol import get_protocol

EXACT_ROWS = 100_000
"""Entries up to which a search compares all vectors."""
_PROPOSED = 100
"""Entries that the compact code proposes, and 10 for each that is asked for."""
_FEW = 16_384  # entries that are copied to be compared, where conditions leave no more
_TRIES = 5
_SCATTERED = 512  # vectors of a file up to which they are read: a mapped page brings its neighbours into memory
_RULE = get_protocol("none")

Average = Callable[[Tensor], Tensor]
Found = list[list[tuple[tuple[Any, ...], float]]]
"""For each query the `COLUMNS` of the nearest entries, and their scores."""


class _Chosen(NamedTuple):
    """Entries that fit conditions: ``(rows,)`` bool and how many; the modalities that they show."""

    alive: np.ndarray
    number: int
    shown: frozenset[str]


class GallerySearch:
    """Searches a store; what it prepares is kept for the next search."""

    def __init__(self, store: GalleryStore) -> None:
        self._store = store
        self._prepared: dict[tuple[int, int, int, bool], PreparedGallery] = {}
        self._code: CompactCode | None = None
        self._all: tuple[State, _Chosen] | None = None

    def shown(self, where: Where | None) -> frozenset[str]:
        """Return the modalities that the entries that fit conditions show; raise as `nearest`."""
        with self._store.reading() as state:
            return self._chosen(state, where).shown

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
        """Return the nearest entries of queries ``(Q, F)`` float32, all in the state of one commit.

        Args:
            queries: As the model gave them.
            k: Most entries for each.
            where: Conditions that they fit.
            average: What is done with queries and vectors before they are compared.
            words: Whether queries are compared with the part behind the embedding.
            exact: Whether all vectors are compared; None: up to `EXACT_ROWS`.

        Raises:
            ValueError: The gallery is empty, no entry fits, or an answer is damaged.
        """
        for tries in range(_TRIES):
            with self._store.reading() as state:
                chosen = self._chosen(state, where)
                try:
                    segments = self._store.segments(state)
                except ValueError:
                    if tries == _TRIES - 1:
                        raise
                    continue  # a writer has just rewritten the files: look at its state
                queries = queries if average is None else average(queries)
                few = chosen.number <= min(_FEW, len(chosen.alive) // 4)
                proposed = chosen.number > EXACT_ROWS if exact is None else not exact
                if few:
                    found = self._among_few(state, queries, k, chosen, average, words)
                elif proposed and average is None and not words and len(segments[0]) == SEGMENT:
                    found = self._proposed(state, segments, queries, k, chosen)
                else:
                    tiles = self._tiles(state, segments, average, words)
                    found = _smallest(queries, k, partial(tiles, 0), ~chosen.alive)
                return self._answers(state, found)
        raise AssertionError

    def rows(self, where: Where | None) -> Iterator[tuple[Any, ...]]:
        """Yield the `COLUMNS` of the entries that fit conditions, in order, inside a reading."""
        sql, values = condition(where)
        found = False
        for row in self._store.query(f"SELECT {', '.join(COLUMNS)} FROM entries WHERE {sql} ORDER BY place", values):
            found = True
            yield row
        if not found and where:
            self._check_names(where)

    def identities(self, where: Where | None) -> int:
        """Return how many identities the entries have that fit conditions, inside a reading."""
        sql, values = condition(where)
        return next(self._store.query(f"SELECT COUNT(DISTINCT identity) FROM entries WHERE {sql}", values))[0]

    def gather(self, state: State, places: np.ndarray, check: bool = True) -> np.ndarray:
        """Return vectors ``(n, W)`` float16; ValueError that names the first that is damaged."""
        segments = self._store.segments(state)
        rows = np.empty((len(places), self._store.width), "<f2")
        for number in np.unique(places // SEGMENT):
            inside = np.flatnonzero(places // SEGMENT == number)
            if len(inside) > _SCATTERED:
                rows[inside] = segments[number][places[inside] % SEGMENT]
            else:
                self._store.read(int(number), places[inside] % SEGMENT, rows, inside)
        if check:
            self._store.check(places.tolist(), rows)
        return rows

    def _chosen(self, state: State, where: Where | None) -> _Chosen:
        if not where and self._all is not None and self._all[0] is state:
            return self._all[1]
        sql, values = condition(where)
        alive = state.norms > 0
        if where:
            places = [place for (place,) in self._store.query(f"SELECT place FROM entries WHERE {sql}", values)]
            alive = np.zeros(state.rows, bool)
            alive[places] = True
        shown = [row[0] for row in self._store.query(f"SELECT DISTINCT modalities FROM entries WHERE {sql}", values)]
        chosen = _Chosen(alive, int(alive.sum()), frozenset(name for names in shown for name in names.split("+")))
        if not chosen.number:
            if where:
                self._check_names(where)
                raise ValueError(f"no entry of gallery {self._store.folder} fits {show(dict(where))}")
            raise ValueError(f"gallery {self._store.folder} is empty: add to it first")
        if not where:
            self._all = (state, chosen)
        return chosen

    def _check_names(self, where: Where) -> None:
        """Raise ValueError if a condition names neither a field nor metadata of any entry."""
        names = {
            name
            for (name,) in self._store.query("SELECT DISTINCT names.key FROM entries, json_each(metadata) AS names")
        }
        if wrong := [name for name in where if name not in names and name not in FIXED]:
            raise ValueError(unknown("field or metadata", wrong, [*FIXED, *sorted(names)]))

    def _part(self, words: bool) -> slice:
        width = self._store.about["width"]
        return slice(width, None) if words else slice(0, width)

    def _tiles(
        self, state: State, segments: Sequence[np.ndarray], average: Average | None, words: bool
    ) -> Callable[[int], Iterator[Tile]]:
        """Return what gives the tiles of all files from that of a number on."""
        part = self._part(words)

        def tiles(first: int) -> Iterator[Tile]:
            for number, rows in enumerate(segments[first:], first):
                start = number * SEGMENT
                if average is not None:
                    pieces = (average(as_float32(rows[i : i + TILE, part])) for i in range(0, len(rows), TILE))
                    found = gallery_tiles(pieces, _RULE, CPU)
                else:
                    norms = None if words else state.norms[start : start + len(rows)]
                    found = iter(self._prepare(state.generation, number, rows[:, part], norms, words))
                yield from (replace(tile, start=tile.start + start) for tile in found)

        return tiles

    def _prepare(
        self, generation: int, number: int, rows: np.ndarray, norms: np.ndarray | None, words: bool
    ) -> PreparedGallery:
        key = (generation, number, len(rows), words)
        if key not in self._prepared:
            for old in [old for old in self._prepared if old[0] != generation or old[1::2] == key[1::2]]:
                del self._prepared[old]
            self._prepared[key] = PreparedGallery(rows, _RULE, lengths=norms)
        return self._prepared[key]

    def _among_few(
        self, state: State, queries: Tensor, k: int, chosen: _Chosen, average: Average | None, words: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        places = np.flatnonzero(chosen.alive)
        rows = as_float32(self.gather(state, places, check=False)[:, self._part(words)])
        tiles = list(gallery_tiles([rows if average is None else average(rows)], _RULE, CPU))
        found = _smallest(queries, k, lambda: iter(tiles), np.zeros(len(places), bool))
        return [(places[index], scores) for index, scores in found]

    def _proposed(
        self, state: State, segments: Sequence[np.ndarray], queries: Tensor, k: int, chosen: _Chosen
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The code proposes entries of full files, those of the last file are compared; the vectors decide."""
        full = [rows for rows in segments if len(rows) == SEGMENT]
        if self._code is None or not self._code.fits(state.generation, len(full)):
            self._code = CompactCode(self._store.folder, state.generation, len(full), self._store.about["width"])
        code, hidden = self._code, ~chosen.alive
        code.extend(full)
        proposals = _smallest(code.queries(queries), 10 * k + _PROPOSED, code.tiles, hidden, ready=True)
        tiles, part = self._tiles(state, segments, None, False), self._part(False)
        rest = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        if len(full) < len(segments):
            behind = hidden[len(full) * SEGMENT :]
            some = (replace(tile, start=tile.start - len(full) * SEGMENT) for tile in tiles(len(full)))
            kept = list(some)
            rest = _smallest(queries, k, lambda: iter(kept), behind)
        unit = torch.nn.functional.normalize(queries, dim=1).numpy()
        found = []
        for query, (places, _), (last, scores) in zip(unit, proposals, rest, strict=True):
            order = np.sort(places)
            vectors = as_float32(self.gather(state, order, check=False)[:, part]).numpy()
            exact = vectors @ query / state.norms[order]
            both = np.concatenate([order, last + len(full) * SEGMENT]), np.concatenate([exact, scores])
            best = np.argsort(-both[1], kind="stable")[:k]
            found.append((both[0][best], both[1][best]))
        return found

    def _answers(self, state: State, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Found:
        places = np.unique(np.concatenate([index for index, _ in found]))
        self.gather(state, places)
        entries = self._store.fetch(f"SELECT place, {', '.join(COLUMNS)} FROM entries WHERE place IN", places.tolist())
        return [
            [(entries[place], score) for place, score in zip(index.tolist(), scores.tolist(), strict=True)]
            for index, scores in found
        ]


def _smallest(
    queries: Tensor, k: int, tiles: Callable[[], Iterator[Tile]], hidden: np.ndarray, *, ready: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the indices and scores of the k nearest of tiles for each query, without the hidden ones.

    `ready` queries are not brought to unit length; the score is then what the tiles' values say.
    """
    any_hidden = hidden.any()

    def hide(first: int, values: np.ndarray) -> None:
        if any_hidden:
            values[:, hidden[first : first + values.shape[1]]] = np.inf

    found = []
    for start in range(0, len(queries), BLOCK):
        some = queries[start : start + BLOCK]
        block = query_block(some, replace(_RULE, distance="euclidean", normalize=False) if ready else _RULE, CPU)
        nearest = nearest_keys(np.full((len(some), min(k, len(hidden))), PADDING), block, tiles(), hide)
        for keys in nearest:
            keys = keys[keys != PADDING]
            found.append((keys & 0xFFFFFFFF, -key_values(keys)))
    return found
