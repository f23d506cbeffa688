"""The frozen text tower, each distinct string encoded once and cut at its end, against every draw at 77: goals P6, P7.

A run's captions are drawn by the library as in training (three experts, batches of 64, 50 epochs) from the published
NEXT captions, where NEXTREID_CAPTIONS names the folder that holds NEXT, else from the tiny synthetic persons. What is
computed is counted by a narrow tower with features of CLIP's width; features are checked against fresh ones to the last
bit. CPU seconds are those of one thread, best of 5.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import nextreid
from nextreid.data import seeded_rng
from nextreid.data.captions import caption_sampler, read_captions, split_sentences
from nextreid.synthetic import synthetic_persons
from nextreid.towers import CONTEXT, TextTower
from nextreid.towers.text_cache import TextFeatureCache

EPOCHS, BATCH, EXPERTS, DIM = 50, 64, 3, 512
NARROW = {"width": 16, "heads": 1, "layers": 1}

Captions = list[list[Sequence[str]]]


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per goal and quantity."""
    torch.set_num_threads(1)
    source, captions = training_captions("RGBNT201")
    yield from counts(source, captions, EPOCHS)
    yield from step(source, captions)
    for name in ("RGBNT201", "MSVR310"):
        if published(name):
            yield lengths(*training_captions(name))


def published(name: str) -> list[Path]:
    """The caption files of a training set, one per modality, where they are there."""
    folder = Path(os.environ.get("NEXTREID_CAPTIONS", "/")) / "NEXT" / name
    files = [folder / f"train_{modality}.json" for modality in ("RGB", "NI", "TI")]
    return files if all(file.is_file() for file in files) else []


def training_captions(name: str) -> tuple[str, Captions]:
    """Captions ``[samples][3]`` as sentences, and what they are of."""
    files = [read_captions(file) for file in published(name)]
    if files:
        return name, [[split_sentences(file[key]) for file in files] for key in sorted(files[0])]
    persons = synthetic_persons("tiny", splits=("train",))
    return "synthetic persons", [list(sample.captions) for sample in persons.dataset.train]


def drawn(captions: Captions, epochs: int) -> Iterator[list[list[tuple[str, ...]]]]:
    """Batches of a run: rows of one caption per modality."""
    for epoch in range(epochs):
        order = seeded_rng("benchmark", epoch).permutation(len(captions)).tolist()
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            rows, keys = [captions[i] for i in part], [str(i) for i in part]
            sample = caption_sampler(rows, keys, [(epoch, i) for i in range(len(part))], seed=0)
            yield [[sample(i, m, e) for m in range(len(rows[i]))] for i in range(len(part)) for e in range(EXPERTS)]


def counts(source: str, captions: Captions, epochs: int) -> Iterator[dict[str, Any]]:
    """What a run computes, what a second epoch over fixed captions does, what the table weighs, what it returns."""
    tower, work = counted(TextTower(NARROW, DIM))
    strings, distinct = 0, set[str]()
    for rows in drawn(captions, epochs):
        windows = [tower.windows(caption) for row in rows for caption in row]
        strings += sum(map(len, windows))
        distinct.update(*windows)
        tower.encode(windows)
    texts = tower.cache.texts
    features = tower.cache.look_up(texts)
    needed = sum(map(tower.count_tokens, distinct))
    size = f"{source}, {len(captions)} samples, {epochs} epochs"
    yield _row(
        "P6",
        "strings encoded",
        size,
        work["texts"],
        strings,
        f"<= {len(distinct)} distinct",
        work["texts"] <= len(distinct),
    )
    yield _row(
        "P6", "tokens computed", size, work["tokens"], strings * CONTEXT, f"<= {needed}", work["tokens"] <= needed
    )
    fixed = [tower.windows(caption) for sample in captions for caption in sample]
    tower.encode(fixed)
    before = work["calls"]
    tower.encode(fixed)
    yield _row(
        "P6",
        "tower calls, whole captions again",
        size,
        work["calls"] - before,
        len(fixed),
        "0",
        work["calls"] == before,
    )
    for dtype in (torch.bfloat16, torch.float32):
        table, stored = TextFeatureCache(2**40), features.to(dtype)
        for start in range(0, len(texts), BATCH):
            table.add(texts[start : start + BATCH], stored[start : start + BATCH])
        mib, least = table.nbytes / 2**20, stored.nbytes / 2**20
        yield _row("P6", f"MiB of the table, against its rows alone, {dtype}", size, mib, least, "<= 100", mib <= 100)
    fresh = TextTower(NARROW, DIM, cache_bytes=0)
    fresh.load_state_dict(tower.state_dict())
    picked = [texts[i] for i in seeded_rng("benchmark").permutation(len(texts))[:2000].tolist()]
    unequal = int(
        (tower.encode([[t] for t in picked]) != torch.cat([fresh.encode([[t]]) for t in picked])).any(1).sum()
    )
    yield _row("P6", "features unlike fresh ones", size, unequal, len(picked), "0", unequal == 0)


def counted(tower: TextTower) -> tuple[TextTower, dict[str, int]]:
    """The tower and what its transformer is asked for: calls, texts and tokens."""
    work = {"calls": 0, "texts": 0, "tokens": 0}

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        work["calls"] += 1
        work["texts"] += len(args[0])
        work["tokens"] += args[0].shape[:2].numel()

    tower.transformer.transformer.register_forward_pre_hook(note)
    return tower, work


def step(source: str, captions: Captions) -> Iterator[dict[str, Any]]:
    """CPU seconds of the text part of a training step of next_tiny."""
    model = nextreid.create_model("next_tiny", num_classes=4)
    rows = next(drawn(captions, 1))
    tower = model.text_tower
    assert tower is not None
    expected = model.prepare_text(rows)
    known = _seconds(lambda: model.prepare_text(rows))
    tower.cache = TextFeatureCache(0)
    again = model.prepare_text(rows)
    if expected is None or again is None or not torch.equal(again, expected):
        raise ValueError("features of the table are not those of a tower without one")
    seconds = _seconds(lambda: model.prepare_text(rows))
    size = f"{source}, {BATCH} samples x {EXPERTS} experts x 3 modalities"
    yield _row("P6", "CPU s, text part of a next_tiny step", size, known, seconds, "", "")


def lengths(source: str, captions: Captions) -> dict[str, Any]:
    """Captions over the window, and the tokens that are lost by packing and by a cut."""
    tower = TextTower(NARROW, DIM)
    given = [sentences for sample in captions for sentences in sample]
    tokens = [tower.count_tokens(" ".join(sentences)) for sentences in given]
    over = sum(count > CONTEXT for count in tokens)
    read = [sum(tower.count_tokens(text) - 2 for text in tower.windows(sentences)) for sentences in given]
    lost = sum(count - 2 - kept for count, kept in zip(tokens, read, strict=True))
    cut = sum(max(0, count - CONTEXT) for count in tokens)
    size = f"{source}, {len(given)} captions, {over} ({over / len(given):.1%}) over {CONTEXT} tokens"
    return _row("P7", "tokens not read", size, lost, cut, "0", lost == 0)


def _seconds(function: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def _row(goal: str, what: str, size: str, ours: float, against: float, target: str, met: bool | str) -> dict[str, Any]:
    return {
        "goal": goal,
        "what": what,
        "size": size,
        "ours": round(ours, 5),
        "against": round(against, 5),
        "ratio": round(against / ours, 2) if ours else "",
        "target": target,
        "goal_met": met,
    }
