"""What NEXT's head and a training step ask of a machine, by the equations and as they run: goals P2 to P5, counted.

Meta tensors, batch 64, three modalities of 128 tokens, three experts of each kind, bfloat16: the sizes of the cost
model. Eager operators; bytes are those that the operators read and write. Counts never vary: tests hold them.
"""

from collections.abc import Iterator
from typing import Any

import torch

import nextreid
from nextreid.engine import get_recipe
from nextreid.engine.optimizer import build_optimizer
from nextreid.layers import CrossAttention
from nextreid.ops import use_backend

from . import reference
from .blocks import M, N, build_head, inputs, reference_form, step
from .counting import Counts, count

BATCH = 64
SIZES = ((768, 4.0, 0.1), (768, 4.0, 0.0), (768, 1.0, 0.1), (512, 4.0, 0.1))
"""Width, hidden width of the experts over it, dropout."""


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per goal and size."""
    for dim, ratio, drop in SIZES:
        size = f"D {dim}, hidden {ratio:g} D, dropout {drop:g}"
        written, ours = head_step(dim, ratio, drop, "reference"), head_step(dim, ratio, drop, "torch")
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
    """Count a training step of the head: its ``"reference"``, as it runs (``"torch"``), or with the ``"kernels"``."""
    with torch.device("meta"):
        head = build_head(dim, ratio, drop).bfloat16()
        data = inputs(head, batch, torch.bfloat16, "meta")
    with use_backend("triton" if form == "kernels" else "auto"):
        return count(lambda: step(head, reference_form(head) if form == "reference" else head, data))


def inference(dim: int, ratio: float) -> tuple[float, float]:
    """FLOPs of a sample without gradients, by the equations and as it runs, where every second token is kept."""
    head = build_head(dim, ratio, drop=0.1).eval()
    data = [tensor.detach() for tensor in inputs(head, 2)]
    half = torch.zeros(2, 3, M, N)
    half[..., ::2] = 1
    experts = head.semantic_experts
    assert experts is not None
    sample = experts._sample
    with torch.no_grad():
        written = count(lambda: reference_form(head)(*data)).flops / 2
        experts._sample = lambda *given: (half, *sample(*given)[1:])  # type: ignore[method-assign]
        return written, count(lambda: head(*data)).flops / 2


def aggregation(dim: int, sets: int = 4) -> tuple[float, float]:
    """FLOPs of the attention of one sample over token sets that exist, keys and values formed and not."""
    with torch.device("meta"):
        attention = CrossAttention(dim)
        cls, tokens = torch.empty(1, M, dim), torch.empty(1, sets, M * N, dim)
    written = count(lambda: [reference.attend(attention, cls, formed) for formed in tokens.unbind(1)]).flops
    return written, count(lambda: attention(cls, tokens)).flops


def optimizer_calls(fused: bool = True) -> int:
    """Operator calls of a step of the recipe's optimizer, or of one with a group per parameter, as in related work."""
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
