"""`top_k` beside the product of the embeddings alone, and re-ranking with small and large blocks of pairs.

CPU seconds of one thread, all forms of a row in turn; "ratio" is ours over the other. 50,000 gallery entries of width
768 and k = 10. Memory is the growth of a fresh process at its largest.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from nextreid.retrieval import Identities, PreparedGallery, get_protocol, rerank, top_k

from ..harness import best_in_turn
from .retrieval import _growth, embeddings, reranked

GALLERY, WIDTH = 50_000, 768
QUERIES = {1: 1.3, 16: None, 128: 1.2, 384: 1.2, 768: 1.2}
"""Queries of a call, and the goal for a prepared gallery; the product of one query is a matrix-vector product."""
OLD_PAIRS = 2**16
SIZES = ("RGBNT201", "RGBNT100")


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per call and form of the gallery, and one per size for the re-ranking."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    gallery, gallery_ids = rng.standard_normal((GALLERY, WIDTH), np.float32), _labels(rng, GALLERY)
    half = gallery.astype(np.float16)
    prepared = {dtype: PreparedGallery(rows, "camera") for dtype, rows in (("float32", gallery), ("float16", half))}
    for count, goal in QUERIES.items():
        query, query_ids = rng.standard_normal((count, WIDTH), np.float32), _labels(rng, count)
        out = np.empty((count, GALLERY), np.float32)

        def search(of: Any, query: np.ndarray = query, query_ids: Identities = query_ids) -> None:
            top_k(query, of, query_ids, gallery_ids, "camera")

        forms = {
            "float32, prepared": (partial(search, prepared["float32"]), goal),
            "float32": (partial(search, gallery), None if count == 1 else goal),
            "float16, prepared": (partial(search, prepared["float16"]), None),
            "float16": (partial(search, half), None),
        }
        codes = [partial(np.matmul, query, gallery.T, out=out), *(code for code, _ in forms.values())]
        product, *ours = best_in_turn(codes, 6)
        for (form, (_, target)), seconds in zip(forms.items(), ours, strict=True):
            yield _row(f"top_k, {count} queries", form, "product alone, float32", "s", seconds, product, target)
    for size in SIZES:
        yield from _pairs(size)


def _labels(rng: np.random.Generator, count: int) -> Identities:
    return Identities(rng.integers(0, 5000, count), rng.integers(0, 6, count))


def _pairs(size: str) -> Iterator[dict[str, Any]]:
    """Re-ranking with pairs in blocks that fit in the cache against large ones; the results must be the same bits."""
    query, gallery = embeddings(size)[:2]
    small = rerank._PAIRS

    def ranked(pairs: int) -> np.ndarray:
        rerank._PAIRS = pairs
        return np.concatenate([block.numpy().copy() for _, block in reranked(query, gallery)])

    def listed(pairs: int) -> np.ndarray:
        rerank._PAIRS = pairs
        return rerank._pair_distances(everyone, squares, protocol, row, column)

    if not np.array_equal(ranked(small), ranked(OLD_PAIRS)):
        raise ValueError("the size of the blocks changes the result")
    rng, everyone = np.random.default_rng(0), torch.from_numpy(np.concatenate([query, gallery]))
    squares, protocol = np.full(len(everyone), 2, np.float32), get_protocol("camera")
    row, column = rng.integers(0, len(everyone), (2, 30 * len(everyone)))
    against = f"blocks of {OLD_PAIRS:,}"
    for what, code in (("re-ranking", ranked), ("distances of pairs in it", listed)):
        ours, theirs = best_in_turn([partial(code, small), partial(code, OLD_PAIRS)], 2)
        yield _row(f"{what}, {size}", f"blocks of {small:,}", against, "s", ours, theirs)
    rerank._PAIRS = small
    program = (
        "import nextreid.retrieval.rerank as module\nmodule._PAIRS = {}\n"
        "for _, block in reranked(*embeddings({!r})[:2]): pass"
    )
    ours, theirs = (_growth(program.format(pairs, size), size) for pairs in (small, OLD_PAIRS))
    yield _row(f"extra memory of re-ranking, {size}", f"blocks of {small:,}", against, "MiB", ours, theirs)


def _row(
    what: str, form: str, against: str, unit: str, ours: float, theirs: float, goal: float | None = None
) -> dict[str, Any]:
    ratio = ours / theirs
    return {
        "what": what,
        "form": form,
        "against": against,
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "unit": unit,
        "ratio": round(ratio, 3),
        "goal": f"<= {goal}" if goal else "",
        "met": "" if goal is None else ratio <= goal,
    }
