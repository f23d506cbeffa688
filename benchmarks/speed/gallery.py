"""A gallery's search beside the bare product, faiss and usearch: CPU time, memory, and what a compact code finds.

The embeddings are those of ``next_tiny`` on procedural persons, made once and kept in the system's temporary folder.
faiss and usearch are compared where they are installed, on one thread.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextreid.retrieval import Gallery, gallery_search, gallery_store

from ..harness import best_in_turn

ROWS, WIDTH = 100_000, 1536
MILLION = 1_000_000
SAMPLES = 200_000
QUERIES = 200
EMBEDDINGS = Path(tempfile.gettempdir()) / "nextreid_gallery_embeddings.npy"
_CHUNK = 250  # identities that are drawn at once


def run() -> Iterator[dict[str, Any]]:
    """Measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield from _exact(Path(folder) / "exact")
        yield from _proposed(Path(folder) / "real")
        yield from _million(Path(folder) / "million")


def real_embeddings(count: int = SAMPLES) -> np.ndarray:
    """Embeddings ``(n, 768)`` float16 of distinct samples of procedural persons, at most `count`."""
    if EMBEDDINGS.is_file():
        return np.load(EMBEDDINGS, mmap_mode="r")[:count]
    import nextreid
    from nextreid.engine import Condition, embed_samples
    from nextreid.synthetic import synthetic_persons

    model, rows = nextreid.create_model("next_tiny", pretrained=True).eval(), list[np.ndarray]()
    for seed in range(count):
        if sum(map(len, rows)) >= count:
            break
        data = synthetic_persons("tiny", seed=seed, num_train=1, num_test=_CHUNK, frames_per_visit=4).dataset
        samples = list({sample.key: sample for sample in (*data.query, *data.gallery)}.values())
        vectors = embed_samples(model, samples, Condition(text=False))
        rows.append(torch.nn.functional.normalize(vectors, dim=1).half().numpy())
    np.save(EMBEDDINGS, np.concatenate(rows)[:count])
    return np.load(EMBEDDINGS, mmap_mode="r")


def _row(
    what: str, form: str, against: str, unit: str, ours: float, theirs: float | None = None, goal: str = ""
) -> dict[str, Any]:
    """One row; a goal such as ``"ratio <= 1.5"`` is on the ratio, one such as ``">= 0.99"`` on the value."""
    ratio = None if theirs is None else ours / theirs
    met: bool | str = ""
    if goal:
        sign, limit = goal.removeprefix("ratio ").split()
        value = ratio if goal.startswith("ratio") else ours
        assert value is not None
        met = value <= float(limit) if sign == "<=" else value >= float(limit)
    return {
        "what": what,
        "form": form,
        "against": against,
        "ours": round(ours, 5),
        "theirs": "" if theirs is None else round(theirs, 5),
        "unit": unit,
        "ratio": "" if ratio is None else round(ratio, 3),
        "goal": goal,
        "met": met,
    }


def _fill(folder: Path, rows: int, width: int, rank: int | None = None) -> None:
    """Add random vectors, of low rank with noise on request."""
    rng = np.random.default_rng(0)
    basis = None if rank is None else rng.standard_normal((rank, width), np.float32)
    with Gallery.create(folder, width) as gallery:
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            some = rng.standard_normal((count, rank or width), np.float32)
            gallery.add(some if basis is None else some @ basis + rng.standard_normal((count, width), np.float32))


def _exact(folder: Path) -> Iterator[dict[str, Any]]:
    start = time.process_time()
    _fill(folder, ROWS, WIDTH)
    what = f"{ROWS:,} x {WIDTH:,}"
    yield _row(f"add, {what}", "Gallery, 20,000 a call", "", "s", time.process_time() - start)
    for count in (1, 128):
        grown = _grown(folder, WIDTH, count)
        block = ROWS * WIDTH * 2 / 2**20
        yield _row(f"memory, {what}, {count} queries", "Gallery", "float16 block", "MiB", grown, block, "ratio <= 1.2")
    rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gallery, forms = Gallery(folder), _flat(rows)
    for count, goal in ((1, 1.5), (128, 1.3)):
        query = np.random.default_rng(1).standard_normal((count, WIDTH), np.float32)
        out = np.empty((count, ROWS), np.float32)
        codes: dict[str, Callable[[], object]] = {"product": partial(np.matmul, query, rows.T, out=out)}
        codes["Gallery, float16, k = 10"] = partial(gallery.search, query)
        codes |= {name: partial(search, query, 10) for name, search in forms.items()}
        seconds = dict(zip(codes, best_in_turn(list(codes.values()), 6), strict=True))
        for name in list(codes)[1:]:
            wanted = f"ratio <= {goal}" if name.startswith("Gallery") else ""
            what_now = f"{what}, {count} queries"
            yield _row(what_now, name, "product alone, float32", "s", seconds[name], seconds["product"], wanted)


def _flat(rows: np.ndarray) -> dict[str, Callable[[np.ndarray, int], Any]]:
    faiss, found = _load("faiss"), {}
    if faiss:
        faiss.omp_set_num_threads(1)
        for name, kind in (("flat, float32", "Flat"), ("flat, float16", "SQfp16")):
            index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            index.train(rows[:1000])
            index.add(rows)
            found[f"faiss {version('faiss-cpu')} {name}"] = index.search
    return found


def _proposed(folder: Path) -> Iterator[dict[str, Any]]:
    """Recall against exact search on real embeddings, and the time of one query.

    Files hold fewer vectors here than they do, so that the code is used although the embeddings are few.
    """
    segment = gallery_store.SEGMENT
    gallery_store.SEGMENT = gallery_search.SEGMENT = 4096
    vectors = np.asarray(real_embeddings(), np.float32)
    rng = np.random.default_rng(0)
    asked = rng.choice(len(vectors), QUERIES, replace=False)
    query, rows = vectors[asked], np.delete(vectors, asked, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with Gallery.create(folder, rows.shape[1]) as gallery:
        gallery.add(rows)
        what = f"{len(rows):,} embeddings of next_tiny"
        exact = [{hit.entry.key for hit in hits} for hits in gallery.search(query, exact=True)]

        def recall(found: Iterator[set[str]]) -> float:
            return float(np.mean([len(a & b) / 10 for a, b in zip(exact, found, strict=True)]))

        seconds = {
            name: _each(partial(gallery.search, exact=exact), list(query))
            for name, exact in (("exact", True), ("code", False))
        }
        hits = gallery.search(query, exact=False)
        found = recall({hit.entry.key for hit in row} for row in hits)
        gallery_store.SEGMENT = gallery_search.SEGMENT = segment
        form = f"Gallery, 128 components and 200 vectors (used above {gallery_search.EXACT_ROWS:,})"
        yield _row(f"recall@10, {what}", form, "exact search", "", found, None, ">= 0.99")
        yield _row(f"one query, {what}", form, "Gallery, exact", "s", seconds["code"], seconds["exact"])
        for name, few in _codes(rows, query):
            found = recall({str(i + 1) for i in row} for row in few)
            yield _row(f"recall@10, {what}", name, "exact search", "", found)
        for name, index in _indexes(rows):
            found = recall({str(int(i) + 1) for i in row} for row in index(query))
            took = _each(index, [one[None] for one in query])
            yield _row(f"recall@10, {what}", name, "exact search", "", found)
            yield _row(f"one query, {what}", name, "Gallery, exact", "s", took, seconds["exact"])


def _each(search: Callable[[np.ndarray], object], queries: Sequence[np.ndarray]) -> float:
    """Seconds of one query of 20."""

    def twenty() -> None:
        for one in queries[:20]:
            search(one)

    return best_in_turn([twenty], 3)[0] / 20


def _codes(rows: np.ndarray, query: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The ten best of 200 that other codes propose."""
    mean = rows[::3].mean(axis=0)
    centred = rows[::3] - mean
    _, basis = np.linalg.eigh(centred.T @ centred)
    proposals = {f"{n} components": (query @ basis[:, -n:]) @ ((rows - mean) @ basis[:, -n:]).T for n in (32, 64, 128)}
    signs = np.sign(rows - mean)
    proposals["sign bits about the mean"] = np.sign(query - mean) @ signs.T
    proposals["sign bits about the mean, query as it is"] = (query - mean) @ signs.T
    for name, scores in proposals.items():
        some = np.argpartition(-scores, 200, axis=1)[:, :200]
        exact = np.einsum("qf,qkf->qk", query, rows[some])
        yield f"{name}, 200 vectors", np.take_along_axis(some, np.argsort(-exact, axis=1)[:, :10], axis=1)


def _indexes(rows: np.ndarray) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    if faiss := _load("faiss"):
        faiss.omp_set_num_threads(1)
        name, width = f"faiss {version('faiss-cpu')}", rows.shape[1]
        inverted = faiss.index_factory(width, f"IVF{int(4 * len(rows) ** 0.5)},Flat", faiss.METRIC_INNER_PRODUCT)
        inverted.train(rows[::2])
        inverted.add(rows)
        for probes in (8, 32):

            def look(query: np.ndarray, probes: int = probes) -> np.ndarray:
                inverted.nprobe = probes
                return inverted.search(query, 10)[1]

            yield f"{name} IVF, nprobe {probes}", look
        graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = 64
        graph.add(rows)

        def walk(query: np.ndarray) -> np.ndarray:
            return graph.search(query, 10)[1]

        yield f"{name} HNSW, M 32, efSearch 64", walk
    if usearch := _load("usearch.index"):
        index = usearch.Index(ndim=rows.shape[1], metric="cos", dtype="f16")
        index.add(np.arange(len(rows)), rows, threads=1)

        def search(query: np.ndarray) -> np.ndarray:
            return np.asarray(index.search(query, 10, threads=1).keys).reshape(len(query), -1)

        yield f"usearch {version('usearch')} HNSW, float16", search


def _million(folder: Path) -> Iterator[dict[str, Any]]:
    start = time.process_time()
    _fill(folder, MILLION, 768, rank=64)
    what = f"{MILLION:,} x 768"
    yield _row(f"add, {what}", "Gallery, 20,000 a call", "", "s", time.process_time() - start)
    gallery = Gallery(folder)
    query = np.random.default_rng(1).standard_normal((20, 768), np.float32)
    start = time.process_time()
    gallery.search(query[0])
    yield _row(f"making the code, {what}", "Gallery", "", "s", time.process_time() - start)

    def three(exact: bool) -> None:
        for one in query[:3]:
            gallery.search(one, exact=exact)

    ours, exact = (seconds / 3 for seconds in best_in_turn([partial(three, False), partial(three, True)], 2))
    yield _row(f"one query, {what}", "Gallery", "Gallery, exact", "s", ours, exact)
    gallery.close()
    yield _row(f"resident memory of the process, {what}", "Gallery, one query at a time", "", "MiB", *_resident(folder))


def _grown(folder: Path, width: int, queries: int) -> float:
    """MiB by which the resident memory of a process grows when it opens a gallery and searches."""
    return _measured(folder, width, queries)[1]


def _resident(folder: Path) -> tuple[float, None, str]:
    return _measured(folder, 768, 1)[0], None, "<= 1024"


def _measured(folder: Path, width: int, queries: int) -> tuple[float, float]:
    program = f"""
import json, os, numpy, torch
from nextreid.retrieval import Gallery
torch.set_num_threads(1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
query = numpy.random.default_rng(0).standard_normal(({queries}, {width}), numpy.float32)
before = resident()
gallery = Gallery({str(folder)!r})
for _ in range(3):
    gallery.search(query)
print(json.dumps([resident(), resident() - before]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    total, more = json.loads(done.stdout)
    return total, more


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
