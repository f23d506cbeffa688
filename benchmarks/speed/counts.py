"""What NEXT's head and a training step ask of a machine, as written and as they run: goals P2 to P5, counted.

Meta tensors, batch 64, three modalities of 128 tokens, three experts of each kind, bfloat16: the sizes of the cost
model. Eager operators; bytes are those that the operators read and write. Counts never vary: tests hold them.
"""

from collections.abc import Iterator
from typing import Any

import torch

import nextreid
from nextreid.engine import get_recipe
from nextreid.engine.optimizer import build_optimizer
from nextreid.layers import CrossAttention, fused
from nextreid.ops import gated_attention, use_backend

from .blocks import Head, M, N, inputs, step
from .counting import Counts, count

BATCH = 64
SIZES = ((768, 4.0, 0.1), (768, 4.0, 0.0), (768, 1.0, 0.1), (512, 4.0, 0.1))
"""Width, hidden width of the experts over it, dropout."""


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per goal and size."""
    for dim, ratio, drop in SIZES:
        size = f"D {dim}, hidden {ratio:g} D, dropout {drop:g}"
        written, ours = head_step(dim, ratio, drop, "plain"), head_step(dim, ratio, drop, "fused")
        kernels = head_step(dim, ratio, drop, "kernels")
        largest = (dim, ratio) == (768, 4.0)
        goal = {(768, 4.0, 0.1): 4.4, (768, 4.0, 0.0): 2.7}.get((dim, ratio, drop))
        yield _row("P2", "head, training step", size, "TFLOP", written.flops / 1e12, ours.flops / 1e12, goal)
        with_drop = largest and drop > 0
        yield _row("P4", "head, training step", size, "calls", written.calls, ours.calls, 340 if with_drop else None)
        gib = 2.0**30
        goal = 21.0 if with_drop else None
        yield _row("P4", "head, training step", size, "GiB", written.bytes / gib, ours.bytes / gib, goal)
        if drop:
            goal = 150 if with_drop else None
            yield _row("P4", "the same with the kernels", size, "calls", written.calls, kernels.calls, goal)
            goal = 14.0 if with_drop else None
            yield _row("P4", "the same with the kernels", size, "GiB", written.bytes / gib, kernels.bytes / gib, goal)
    for dim, ratio in ((768, 4.0), (768, 1.0), (512, 4.0)):
        before, after = inference(dim, ratio)
        size = f"D {dim}, hidden {ratio:g} D, half kept"
        goal = 11.5 if (dim, ratio) == (768, 4.0) else None
        yield _row("P2", "head, inference, one sample", size, "GFLOP", before / 1e9, after / 1e9, goal)
    before, after = aggregation(768)
    yield _row("P3", "aggregation, one sample", "D 768, 4 sets", "GFLOP", before / 1e9, after / 1e9, 0.25)
    calls = optimizer_calls()
    yield _row("P5", "optimizer step of next_tiny", "AdamW", "calls", optimizer_calls(fused=False), calls, 10)
    yield _row("P5", "calls of the image tower a step", "next_tiny", "calls", M, tower_calls(), 1)


def _row(goal: str, what: str, size: str, unit: str, written: float, ours: float, target: float | None) -> dict:
    return {
        "goal": goal,
        "what": what,
        "size": size,
        "unit": unit,
        "as_written": round(written, 3),
        "ours": round(ours, 3),
        "ratio": round(written / ours, 2),
        "target": "" if target is None else f"<= {target:g}",
        "met": "" if target is None else ours <= target,
    }


def head_step(dim: int, ratio: float, drop: float, form: str, batch: int = BATCH) -> Counts:
    """Count a training step of the head: ``"plain"``, ``"fused"`` or, with the kernels as operators, ``"kernels"``."""
    with torch.device("meta"):
        head = Head(dim, ratio, drop).bfloat16()
        data = inputs(head, batch, torch.bfloat16, "meta")
    with use_backend("triton" if form == "kernels" else "auto"):
        return count(lambda: step(head, head.plain if form == "plain" else head.fused, data))


def inference(dim: int, ratio: float) -> tuple[float, float]:
    """FLOPs of a sample without gradients, as written and as it runs, where every second token is kept."""
    head = Head(dim, ratio, drop=0.1).eval()
    data = [tensor.detach() for tensor in inputs(head, 2)]
    half = torch.zeros(2, 3, M, N)
    half[..., ::2] = 1
    sample = fused._sample
    try:
        fused._sample = lambda *given: sample(*given)._replace(mask=half)
        with torch.no_grad():
            return count(lambda: head.plain(*data)).flops / 2, count(lambda: head.fused(*data)).flops / 2
    finally:
        fused._sample = sample


def aggregation(dim: int, sets: int = 4) -> tuple[float, float]:
    """FLOPs of the attention of one sample over token sets that exist, keys and values formed and not."""
    with torch.device("meta"):
        attention = CrossAttention(dim)
        cls, tokens = torch.empty(1, M, dim), torch.empty(1, M * N, dim)
        update, gate = torch.empty(1, sets, M * N, dim), torch.empty(1, sets, M * N)

    def ours() -> None:
        context = gated_attention(attention.absorb(cls), tokens, update, gate)
        attention.release(context.transpose(0, 1))

    written = count(lambda: [attention(cls, tokens) for _ in range(sets)]).flops
    return written, count(ours).flops


def optimizer_calls(fused: bool = True) -> int:
    """Operator calls of a step of the recipe's optimizer, or of one with a group per parameter, as peers build it."""
    model = nextreid.create_model("next_tiny", num_classes=8)
    optimizer = build_optimizer(model, get_recipe("tiny"))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not fused:
        optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters], foreach=False)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return count(optimizer.step).calls


def tower_calls() -> int:
    """How often a forward pass calls the image tower."""
    model = nextreid.create_model("next_tiny")
    calls = []
    model.image_tower.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, M, 3, *model.img_size))
    return len(calls)
