"""Ranking and re-ranking of embeddings that lie on the device: goal P22. See ``gpu.py``."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nextreid.retrieval import Identities, Protocol, Rerank, rank
from nextreid.retrieval.protocol import Ties

from .gpu_rig import Rig, Row, guarded

DIM = 768
SIZES = {"Market-1501": (3368, 15913, 750, 6), "MSMT17": (11659, 82161, 3060, 15)}
"""Queries, gallery entries, identities, cameras."""
SMALLEST = {"a toy": (40, 120, 10, 3), "a larger toy": (60, 300, 20, 3)}
RANKED = {"Market-1501": 30.0, "MSMT17": 150.0}
"""Most milliseconds."""
RERANKED = {"Market-1501": 0.5, "MSMT17": 5.0}
"""Most seconds."""
Split = tuple[Tensor, Tensor, Identities, Identities]


def evaluation(rig: Rig) -> Iterator[Row]:
    """P22: as many milliseconds as the product of the embeddings and a little more, with the results of a CPU."""
    (small, size), (large, larger) = rig.pick(SIZES, SMALLEST).items()
    yield from guarded("P22", "results of device and CPU", _equality(rig, size))
    yield from guarded("P22", f"ranking, {small}", _ranking(rig, small, split(rig, size)))
    yield from guarded("P22", f"ranking, {large}", _ranking(rig, large, split(rig, larger)))
    yield from guarded("P22", f"re-ranking, {small}", _reranking(rig, small, split(rig, size)))


def large_reranking(rig: Rig) -> Iterator[Row]:
    """P22: re-ranking at the size of MSMT17, much of which is work of the CPU."""
    _, (large, larger) = rig.pick(SIZES, SMALLEST).items()
    yield from _reranking(rig, large, split(rig, larger))


def split(rig: Rig, size: tuple[int, int, int, int], integers: bool = False) -> Split:
    """Random embeddings around one centre per identity; integers have exact products, and many equal distances."""
    num_query, num_gallery, num_ids, num_cams = size
    generator = torch.Generator(rig.device).manual_seed(0)
    rng = np.random.default_rng(0)

    def draw(count: int) -> Tensor:
        return torch.randn(count, DIM, generator=generator, device=rig.device)

    centres = draw(num_ids)

    def side(count: int) -> tuple[Tensor, Identities]:
        pid = rng.integers(0, num_ids, count)
        values = 0.3 * centres[torch.from_numpy(pid).to(rig.device)] + draw(count)
        return values.round() if integers else values, Identities(pid, rng.integers(0, num_cams, count))

    (query, query_ids), (gallery, gallery_ids) = side(num_query), side(num_gallery)
    return query, gallery, query_ids, gallery_ids


def _equality(rig: Rig, size: tuple[int, int, int, int]) -> Iterator[Row]:
    query, gallery, query_ids, gallery_ids = split(rig, size, integers=True)
    rules: list[tuple[Ties, Rerank | None]] = [("stable", None), ("optimistic", None), ("pessimistic", None)]
    for ties, rerank in (*rules, ("stable", Rerank())):
        rule = Protocol("integers", "camera", distance="euclidean", normalize=False, ties=ties)
        few = slice(0, 400 if rerank else None)  # the CPU takes long to re-rank all
        own, others = (Identities(ids.pid[few], ids.camid[few]) for ids in (query_ids, gallery_ids))  # type: ignore[index]
        here, there = (
            rank(query[few].to(device), gallery[few].to(device), own, others, rule, rerank=rerank, device=device)
            for device in (rig.device, torch.device("cpu"))
        )
        for field in ("ap", "inp", "first"):
            if not np.array_equal(getattr(here, field), getattr(there, field), equal_nan=True):
                raise ValueError(f"{field} of device and CPU differ, ties {ties!r}, {rerank or 'not re-ranked'}")
    note = "integer embeddings, to the bit: three tie rules, and 400 queries and entries re-ranked"
    yield rig.row("P22", "results unlike the CPU's", f"{size[0]} x {size[1]}, D {DIM}", "", 0.0, bound=0, note=note)


def _ranking(rig: Rig, name: str, data: Split) -> Iterator[Row]:
    query, gallery, query_ids, gallery_ids = data
    size, note = f"{name}, {len(query)} x {len(gallery)}, D {DIM}, fp32", ""
    ours = partial(rank, *data, "camera", device=rig.device)
    if len(query) < 5000:  # the CPU takes long for the larger set
        # products round otherwise on another device, which swaps entries that are all but equally far
        results = ours(), rank(query.cpu(), gallery.cpu(), query_ids, gallery_ids, "camera")
        here, there = (float(np.nanmean(result.ap)) for result in results)
        note = f"mAP {there:.6f}, off by {abs(here - there):.1e} from the CPU's"
        if not abs(here - there) < 1e-5:
            raise ValueError(note)
    mine, bare = (timing.ms() for timing in rig.time(ours, partial(_product, query, gallery)))
    aim = RANKED.get(name)
    yield rig.row("P22", "ranking", size, "ms", mine, "product alone", bare, bare.median, bound=aim, note=note)


def _product(query: Tensor, gallery: Tensor) -> None:
    for rows in query.split(4096):
        rows @ gallery.T


def _reranking(rig: Rig, name: str, data: Split) -> Iterator[Row]:
    query, gallery = data[:2]
    size = f"{name}, {len(query)} + {len(gallery)}, D {DIM}, fp32"
    everyone = torch.cat([query, gallery])
    (bare,) = rig.time(partial(_product, everyone, everyone))
    mine = rig.wall(partial(rank, *data, "camera", rerank=Rerank(), device=rig.device))
    yield rig.row(
        "P22", "k-reciprocal re-ranking", size, "s", mine, "product of all alone", bare, bare.median,
        bound=RERANKED.get(name), note="one run",
    )  # fmt: skip
