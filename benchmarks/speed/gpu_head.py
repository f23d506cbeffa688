"""NEXT's head alone in training: goal P21, and its CUDA graph for P24. See ``gpu.py``."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from nextreid.layers import NEXTHead
from nextreid.ops import use_backend

from .blocks import Form, build_head, inputs, reference_form, step
from .counts import head_step
from .gpu_kernels import captured_in_graph
from .gpu_rig import Rig, Row, guarded, remark

DROP = 0.1


def head(rig: Rig) -> Iterator[Row]:
    """P21: a training step of the head against its equations, eager and compiled."""
    dim, ratio, batch, experts = rig.pick((768, 4.0, 64, 3), (16, 1.0, 2, 1))
    torch.manual_seed(0)
    size = f"B {batch}, D {dim}, hidden {ratio:g} D, dropout {DROP:g}, {str(rig.dtype)[6:]}"
    note = _check(rig, dim, ratio)
    module = build_head(dim, ratio, DROP, experts).to(rig.device, rig.dtype)
    data = inputs(module, batch, rig.dtype, str(rig.device))
    plain = reference_form(module)
    written, baseline = (partial(step, module, form, data) for form in (plain, rig.compile(plain)))
    ours: dict[str, Callable[[], object]] = {
        "eager": partial(step, module, module, data),
        "compiled": partial(step, module, rig.compile(module), data),
    }
    if rig.kernel:
        ours["eager, all kernels"] = partial(_with_kernels, ours["eager"])
    counts = head_step(dim, ratio, DROP, "torch", batch)
    traffic = head_step(dim, ratio, DROP, "kernels", batch) if rig.kernel else counts
    floor = 1000 * max(counts.flops / rig.ceilings.flops, traffic.bytes / rig.ceilings.bytes)
    eager, compiled = "its equations, eager", "torch.compile of its equations"
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
        yield from guarded("P24", "head step in a CUDA graph", _graphed(rig, module, data, size))
    else:
        yield remark("P24", "head step in a CUDA graph", "skipped: needs a GPU")


def _with_kernels(code: Callable[[], object]) -> None:
    with use_backend("triton"):
        code()


def _check(rig: Rig, dim: int, ratio: float) -> str:
    """Without dropout both forms agree, in float32; with it the kernels and PyTorch do for the same draws."""
    module = build_head(dim, ratio, DROP).to(rig.device)

    def outcome(form: Form, backend: str) -> list[Tensor]:
        with use_backend(backend):
            torch.manual_seed(1)
            data = inputs(module, 2, next(module.parameters()).dtype, str(rig.device))
            out = step(module, form, data)
        return [out.detach(), *(tensor.grad for tensor in data[:2] if tensor.grad is not None)]

    module.eval()
    off = _off(outcome(module, "auto"), outcome(reference_form(module), "auto"))
    module.train().to(rig.dtype)
    other = _off(outcome(module, "triton" if rig.kernel else "auto"), outcome(module, "torch"))
    note = f"head and equations agree to {off:.1e}, kernels and PyTorch to {other:.1e}"
    if not (off < 1e-2 and other < rig.pick(5e-2, 1e-2)):
        raise ValueError(note)
    return note


def _off(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(found, expected, strict=True))


def _graphed(rig: Rig, module: NEXTHead, data: tuple[Tensor, ...], size: str) -> Iterator[Row]:
    """P24: replays of a captured training step are finite and draw new dropout."""
    graph, out = captured_in_graph(lambda: step(module, module, data))
    graph.replay()
    rig.wait()
    first = out.detach().clone()
    graph.replay()
    rig.wait()
    if not out.isfinite().all():
        raise ValueError("the replayed step is not finite")
    if torch.equal(first, out):
        raise ValueError("two replays drew the same dropout")
    replayed, eager = rig.time(graph.replay, lambda: step(module, module, data))
    yield rig.row("P24", "head step in a CUDA graph", size, "ms", replayed.ms(), "eager", eager.ms())
