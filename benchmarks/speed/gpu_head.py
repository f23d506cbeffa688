"""NEXT's head alone in training: goal P21, and its CUDA graph for P24. See ``gpu.py``."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from nextreid.ops import use_backend

from .blocks import Head, inputs, step
from .counts import head_step
from .gpu_kernels import captured_in_graph
from .gpu_rig import Rig, Row, guarded, remark

DROP = 0.1


def head(rig: Rig) -> Iterator[Row]:
    """P21: a training step of the head, fused, against the blocks as written, eager and compiled."""
    dim, ratio, batch, experts = rig.pick((768, 4.0, 64, 3), (16, 1.0, 2, 1))
    torch.manual_seed(0)
    size = f"B {batch}, D {dim}, hidden {ratio:g} D, dropout {DROP:g}, {str(rig.dtype)[6:]}"
    note = _check(rig, dim, ratio)
    own = Head(dim, ratio, DROP, experts).to(rig.device, rig.dtype)
    data = inputs(own, batch, rig.dtype, str(rig.device))
    written, baseline = (partial(step, own, form, data) for form in (own.plain, rig.compile(own.plain)))
    fused, faster = own.fused, rig.compile(own.fused)
    ours: dict[str, Callable[[], object]] = {
        "eager": partial(step, own, fused, data),
        "compiled": partial(step, own, faster, data),
    }
    if rig.kernel:
        ours["eager, all kernels"] = partial(_with_kernels, ours["eager"])
    counts = head_step(dim, ratio, DROP, "fused", batch)
    traffic = head_step(dim, ratio, DROP, "kernels", batch) if rig.kernel else counts
    floor = 1000 * max(counts.flops / rig.ceilings.flops, traffic.bytes / rig.ceilings.bytes)
    eager, compiled = "as written, eager", "torch.compile of it as written"
    timings = [timing.ms() for timing in rig.time(baseline, written, *ours.values())]
    for name, timing in zip(ours, timings[2:], strict=True):
        aim = {"ratio": 1.8, "of_floor": 1.6}
        yield rig.row("P21", f"head step, {name}", size, "ms", timing, compiled, timings[0], floor, note=note, **aim)
        yield rig.row("P21", f"head step, {name}", size, "ms", timing, eager, timings[1], floor)
    peaks = {compiled: rig.peak(baseline), eager: rig.peak(written)}
    for name, code in ours.items():
        mine = rig.peak(code)
        for against, theirs in peaks.items():
            yield rig.row("P21", f"memory of a head step, {name}", size, "GiB", mine, against, theirs, ratio=1 / 0.6)
    if rig.gpu:
        yield from guarded("P24", "head step in a CUDA graph", _graphed(rig, own, data, size))
    else:
        yield remark("P24", "head step in a CUDA graph", "skipped: needs a GPU")


def _with_kernels(code: Callable[[], object]) -> None:
    with use_backend("triton"):
        code()


def _check(rig: Rig, dim: int, ratio: float) -> str:
    """Without dropout both forms agree, in float32; with it the kernels and PyTorch do for the same draws."""
    own = Head(dim, ratio, DROP).to(rig.device)

    def outcome(form: Callable[..., Tensor], backend: str) -> list[Tensor]:
        with use_backend(backend):
            torch.manual_seed(1)
            data = inputs(own, 2, next(own.parameters()).dtype, str(rig.device))
            out = step(own, form, data)
        return [out.detach(), *(tensor.grad for tensor in data[:2] if tensor.grad is not None)]

    own.eval()
    off = _off(outcome(own.fused, "auto"), outcome(own.plain, "auto"))
    own.train().to(rig.dtype)
    other = _off(outcome(own.fused, "triton" if rig.kernel else "auto"), outcome(own.fused, "torch"))
    told = f"fused and plain agree to {off:.1e}, kernels and PyTorch to {other:.1e}"
    if not (off < 1e-2 and other < rig.pick(5e-2, 1e-2)):
        raise ValueError(told)
    return told


def _off(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(found, expected, strict=True))


def _graphed(rig: Rig, own: Head, data: tuple[Tensor, ...], size: str) -> Iterator[Row]:
    """P24: replays of a captured training step are finite and draw dropout anew."""
    graph, out = captured_in_graph(lambda: step(own, own.fused, data))
    graph.replay()
    rig.wait()
    first = out.detach().clone()
    graph.replay()
    rig.wait()
    if not out.isfinite().all():
        raise ValueError("the replayed step is not finite")
    if torch.equal(first, out):
        raise ValueError("two replays drew the same dropout")
    replayed, eager = rig.time(graph.replay, lambda: step(own, own.fused, data))
    yield rig.row("P24", "head step in a CUDA graph", size, "ms", replayed.ms(), "eager", eager.ms())
