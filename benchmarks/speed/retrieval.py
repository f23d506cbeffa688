"""Ranking and re-ranking against the peers' own functions, imported from their checkouts: goals P10 to P13.

The checkouts are named by environment variables and are never changed or built here; a peer that is not there is left
out: NEXTREID_TORCHREID (KaiyangZhou/deep-person-reid), NEXTREID_FASTREID (JDAI-CV/fast-reid), NEXTREID_DEMO
(924973292/DeMo). CPU seconds of one thread, best of 3; "ratio" is the peer's time over ours, or ours over the product
of the embeddings. Memory is the growth of a process at its largest.
"""

import ast
import importlib.util
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nextreid.retrieval import Identities, Rerank, RetrievalResult, distances, get_protocol, rank, rank_distances
from nextreid.retrieval.rerank import reranked_blocks

SIZES = {
    "RGBNT201": (836, 836, 30, 2),
    "MSVR310": (591, 1055, 155, 8),
    "RGBNT100": (1715, 8575, 50, 8),
    "Market-1501": (3368, 15913, 750, 6),
    "MSMT17 / 8": (1457, 82161, 3060, 15),
}
"""Queries, gallery entries, identities, cameras."""

Split = tuple[np.ndarray, np.ndarray, Identities, Identities]


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per goal, size and peer."""
    torch.set_num_threads(1)
    evaluators = dict(_evaluators())
    for size in SIZES:
        if size != "MSMT17 / 8":  # peers need minutes and gigabytes there
            yield from _against_evaluators(size, evaluators)
        yield from _against_product(size)
    for size in ("RGBNT201", "RGBNT100", "Market-1501"):
        yield from _against_reranking(size)
    yield from _memory()


def embeddings(size: str, signal: float = 0.3, dim: int = 768) -> Split:
    """Random embeddings around one centre per identity, at the size of a benchmark."""
    num_query, num_gallery, num_ids, num_cams = SIZES[size]
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((num_ids, dim), np.float32)

    def side(count: int) -> tuple[np.ndarray, Identities]:
        pid = rng.integers(0, num_ids, count)
        values = signal * centres[pid] + rng.standard_normal((count, dim), np.float32)
        return values, Identities(pid, rng.integers(0, num_cams, count))

    (query, query_ids), (gallery, gallery_ids) = side(num_query), side(num_gallery)
    return query, gallery, query_ids, gallery_ids


def seconds(function: Callable[[], Any], repeat: int = 3) -> float:
    """CPU seconds of this process, best of some calls."""
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def _row(goal: str, size: str, what: str, against: str, ours: float, theirs: float, ratio: float, **more: Any) -> dict:
    filled = {"mAP": "", "unit": "s", "target": "", **more}
    return {
        "goal": goal,
        "size": size,
        "what": what,
        "against": against,
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "ratio": round(ratio, 3),
        **filled,
    }


def _against_evaluators(size: str, evaluators: dict[str, Callable]) -> Iterator[dict[str, Any]]:
    query, gallery, query_ids, gallery_ids = embeddings(size)
    matrix = distances(query, gallery, "camera")
    labels = query_ids.pid, gallery_ids.pid, query_ids.camid, gallery_ids.camid
    result = rank_distances(matrix, query_ids, gallery_ids, "camera")
    ours = seconds(lambda: rank_distances(matrix, query_ids, gallery_ids, "camera"), 5)
    big = size not in ("RGBNT201", "MSVR310")
    for name, evaluate in evaluators.items():
        if name == "torchreid Python" and matrix.size > 2e7:
            continue  # minutes
        slow = big and name == "torchreid Python"
        _check(name, evaluate(matrix, *labels), result)
        theirs = seconds(partial(evaluate, matrix, *labels), 1 if slow else 3)
        target = {
            "torchreid Python": ">= 100" if big else ">= 50",
            "fast-reid Cython": ">= 5" if matrix.size > 5e7 else ">= 1.5",
        }
        yield _row(
            "P10",
            size,
            "measures from a matrix",
            name,
            ours,
            theirs,
            theirs / ours,
            mAP=round(_mean_ap(result), 4),
            target=target.get(name, ""),
        )
    tied = np.round(matrix * 64) / 64
    levels = len(np.unique(tied[0]))
    heavy = seconds(lambda: rank_distances(tied, query_ids, gallery_ids, "camera"), 5)
    yield _row(
        "P12", size, f"heavy ties, {levels} distances a row, from a matrix", "without ties", heavy, ours, heavy / ours
    )


def _check(name: str, theirs: tuple[np.ndarray, float, float], ours: RetrievalResult) -> None:
    """Raise unless a peer's measures are ours; what it sums in float32 is compared at that precision."""
    cmc, mean_ap = theirs[0], theirs[1]
    if abs(mean_ap - _mean_ap(ours)) > 1e-6 or np.abs(cmc[:50] - ours.cmc[: len(cmc)]).max() > 1e-6:
        raise ValueError(f"{name} disagrees: mAP {mean_ap} and {_mean_ap(ours)}")


def _mean_ap(result: RetrievalResult) -> float:
    return float(np.nanmean(result.ap))


def _against_product(size: str) -> Iterator[dict[str, Any]]:
    target = "<= 1.3" if size in ("Market-1501", "MSMT17 / 8") else ""
    for signal in (0.3, 0.4):
        query, gallery, query_ids, gallery_ids = embeddings(size, signal)
        out = np.empty((len(query), len(gallery)), np.float32)
        product = seconds(partial(np.matmul, query, gallery.T, out=out))
        del out
        args = query, gallery, query_ids, gallery_ids, "camera"
        quality = round(_mean_ap(rank(*args)), 4)
        ours = seconds(partial(rank, *args))
        yield _row(
            "P11",
            size,
            "measures from embeddings",
            "matrix product alone",
            ours,
            product,
            ours / product,
            mAP=quality,
            target=target,
        )
    coarse, others = np.sign(query), np.sign(gallery)  # cosines are multiples of 2 / 768
    tied = seconds(lambda: rank(coarse, others, query_ids, gallery_ids, "camera"))
    yield _row("P12", size, "heavy ties, from embeddings", "without ties", tied, ours, tied / ours, target="<= 2")


def _against_reranking(size: str) -> Iterator[dict[str, Any]]:
    rerank = _fastreid("rerank")
    query, gallery = embeddings(size)[:2]

    def ours() -> np.ndarray:
        return np.concatenate([block.numpy() for _, block in reranked(query, gallery)])

    def theirs() -> np.ndarray:
        return rerank_as_fastreid(query, gallery)

    mine = seconds(ours, 2)
    both = [*(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery))]
    everyone = np.concatenate(both)
    product = seconds(lambda: everyone @ everyone.T, 2)
    yield _row("P13", size, "re-ranking", "matrix product of all alone", mine, product, mine / product)
    if rerank is not None:
        found: list[np.ndarray] = []
        other = seconds(lambda: found.append(theirs()), 1)
        far = np.abs(ours() - found[0]) > 1e-5
        if far.mean() > 1e-4:
            raise ValueError(f"fast-reid's re-ranking disagrees on {far.mean():.2e} of the entries")
        what = f"re-ranking, {far.sum()} of {far.size} entries differ by more than 1e-5"
        yield _row("P13", size, what, "fast-reid", mine, other, other / mine, target=">= 3")


def reranked(query: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Our re-ranked distances, block by block."""
    return reranked_blocks(query, gallery, get_protocol("camera"), Rerank(), torch.device("cpu"), slice(0, len(query)))


def rerank_as_fastreid(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """fast-reid's re-ranked distances of unit embeddings."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery))
    pairs = (np.sqrt(np.maximum(2 - 2 * a @ b.T, 0)) for a, b in ((x, y), (x, x), (y, y)))
    return _fastreid("rerank").re_ranking(*pairs)  # type: ignore[union-attr]


def _memory() -> Iterator[dict[str, Any]]:
    yield from _memory_of_reranking("Market-1501")
    for size, limit in (("Market-1501", 64), ("MSMT17 / 8", 200)):
        mib = _growth(f"rank(*embeddings({size!r}), 'camera')", size)
        yield _row(
            "P11", size, "extra memory of rank", "limit", mib, limit, mib / limit, unit="MiB", target=f"<= {limit}"
        )


def _memory_of_reranking(size: str) -> Iterator[dict[str, Any]]:
    ours = _growth(f"for _, block in reranked(*embeddings({size!r})[:2]): block.sum()", size)
    if _fastreid("rerank") is not None:
        theirs = _growth(f"rerank_as_fastreid(*embeddings({size!r})[:2])", size)
        what, target = "extra memory of re-ranking", ">= 10"
        yield _row("P13", size, what, "fast-reid", ours, theirs, theirs / ours, unit="MiB", target=target)


def _growth(code: str, size: str) -> float:
    """Largest growth in MiB of a fresh process while it runs an expression, over the embeddings that it starts with."""
    program = (
        "import re, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from benchmarks.speed.retrieval import *\n"
        "status = lambda: Path('/proc/self/status').read_text()\n"
        "mib = lambda field: int(re.search(field + r':\\s+(\\d+)', status())[1]) / 1024\n"
        "rank(*embeddings('RGBNT201'), 'camera')\n"
        f"data = embeddings({size!r})\n"
        "Path('/proc/self/clear_refs').write_text('5')  # the largest size so far is forgotten\n"
        "before = mib('VmRSS')\n"
        f"{code.replace(f'embeddings({size!r})', 'data')}\n"
        "print(mib('VmHWM') - before)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def _evaluators() -> Iterator[tuple[str, Callable]]:
    """Yield the peers' evaluators that can be imported: (matrix, four label arrays) -> CMC and mAP."""
    if root := os.environ.get("NEXTREID_TORCHREID"):
        folder = Path(root) / "torchreid/metrics"
        module = _load(folder / "rank.py")
        yield "torchreid Python", lambda matrix, *labels: module.eval_market1501(matrix, *labels, 50)
        yield from _cython("torchreid Cython", folder / "rank_cylib")
    if root := os.environ.get("NEXTREID_FASTREID"):
        yield from _cython("fast-reid Cython", Path(root) / "fastreid/evaluation/rank_cylib")
    if root := os.environ.get("NEXTREID_DEMO"):
        function = _function(Path(root) / "utils/metrics.py", "eval_func")
        yield "DeMo eval_func", lambda matrix, *labels: function(matrix, *labels, 50)


def _cython(name: str, folder: Path) -> Iterator[tuple[str, Callable]]:
    for extension in folder.glob("rank_cy*.so"):
        module = _load(extension, "rank_cy")

        def evaluate(matrix: np.ndarray, *labels: np.ndarray, module: ModuleType = module) -> tuple:
            found = module.evaluate_cy(matrix, *labels, 50, False)
            if len(found) == 2:
                return found
            cmc, ap = found[0], found[1]  # fast-reid returns the AP of every query
            return np.asarray(cmc), float(np.mean(ap))

        yield name, evaluate


def _fastreid(name: str) -> ModuleType | None:
    root = os.environ.get("NEXTREID_FASTREID")
    return _load(Path(root) / f"fastreid/evaluation/{name}.py") if root else None


def _load(path: Path, name: str | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def _function(path: Path, name: str) -> Callable:
    """Run one function of a file whose imports are not all there."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    space: dict[str, Any] = {"np": np}
    exec(compile(tree, str(path), "exec"), space)
    return space[name]
