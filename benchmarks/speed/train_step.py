"""Images a second of a tiny training step, NEXT and its baseline in turn."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import nextreid
from nextreid.losses import Criterion

BATCH, ROUNDS = 32, 15


def run() -> Iterator[dict[str, Any]]:
    """One row for each model; the ratio is to the baseline in the same rounds."""
    steps = {name: _step(name) for name in ("baseline_tiny", "next_tiny")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    for name, median in medians.items():
        yield {
            "model": name,
            "batch": BATCH,
            "samples_per_s": round(BATCH / median, 1),
            "images_per_s": round(3 * BATCH / median, 1),
            "step_ms": round(1000 * median, 1),
            "ratio_to_control": round(median / medians["baseline_tiny"], 2),
        }


def _step(name: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = nextreid.create_model(name, num_classes=8)
    images = torch.randn(BATCH, 3, 3, *model.img_size)
    pid = torch.arange(8).repeat_interleave(BATCH // 8)
    text = torch.randn(BATCH, 3, 3, model.embed_dim)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    criterion = Criterion()

    def step() -> None:
        out = model(images, text)
        loss = criterion(out.heads, pid, out.losses)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
