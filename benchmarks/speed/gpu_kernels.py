"""The kernels of `nextreid.ops` on their own: goals P19, P20 and their part of P24. See ``gpu.py``."""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nextreid.layers import CrossAttention, TokenSets
from nextreid.ops import gated_attention, route, route_torch, use_backend

from . import reference
from .gpu_rig import Rig, Row, check, guarded, nbytes, remark
from .reference_ops import gated_attention_reference, route_reference

M, SETS, EXPERTS = 3, 4, 3
ABSENT = "skipped: kernels run on a GPU, or interpreted with TRITON_INTERPRET=1"
Tensors = tuple[Tensor, ...]


def attention(rig: Rig) -> Iterator[Row]:
    """P19: K2 against the bytes that it must read and write, and against the aggregation by its equations, compiled."""
    for form in ("triton", "torch"):
        for dim in rig.pick((768, 512), (32,)):
            if form == "torch" or rig.kernel:
                yield from guarded("P19", f"gated attention, {form}, D {dim}", _attention(rig, dim, form))
            else:
                yield remark("P19", f"gated attention, {form}, D {dim}", ABSENT)


def _attention(rig: Rig, dim: int, form: str) -> Iterator[Row]:
    batch, length = rig.pick((64, 128 * M), (2, 12))
    torch.compiler.reset()  # what the last size compiled would make this one's shapes dynamic
    torch.manual_seed(0)
    layer = CrossAttention(dim, rig.pick(8, 2)).to(rig.device)
    cls = torch.randn(batch, M, dim, device=rig.device)
    tokens, update, gate = attention_inputs(rig, batch, length, dim)
    query = torch.randn(batch, M * layer.num_heads, dim, dtype=rig.dtype, device=rig.device) * dim**-0.5
    inputs = tuple(tensor.requires_grad_() for tensor in (query, tokens, update, gate))
    size = f"B {batch}, {SETS} sets, {query.shape[1]} rows, {length} tokens, D {dim}, {str(rig.dtype)[6:]}"
    what, copied = f"K2 ({form})", rig.ceilings.bytes
    with use_backend(form):
        out = gated_attention(*inputs)
        grad = torch.randn_like(out)
        grads = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        plain, exact = (_outcome(gated_attention_reference, inputs, grad, kind) for kind in (rig.dtype, torch.float64))
        note = check(what, (out, *grads), plain, exact)
        del plain, exact
        with torch.no_grad():
            (forward,) = rig.time(partial(gated_attention, *inputs))
        (backward,) = rig.time(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))
        aim: dict[str, Any] = {"of_floor": 1.5} if form == "triton" else {}
        floor = 1000 * nbytes(*inputs, out) / copied
        yield rig.row("P19", f"{what}, forward", size, "ms", forward.ms(), floor=floor, note=note, **aim)
        aim = {"of_floor": 2} if form == "triton" else {}
        floor = 1000 * nbytes(*inputs, grad, *grads) / copied
        yield rig.row("P19", f"{what}, backward", size, "ms", backward.ms(), floor=floor, **aim)
        if form == "triton" or not rig.kernel:
            yield from _aggregation(rig, layer, (cls, tokens, update, gate), size, what, form)


def attention_inputs(rig: Rig, batch: int, length: int, dim: int) -> Tensors:
    """Tokens, updates laid out as one product over the experts leaves them, and masks of which half is one."""
    tokens = torch.randn(batch, length, dim, dtype=rig.dtype, device=rig.device)
    update = torch.randn(SETS, batch, length, dim, dtype=rig.dtype, device=rig.device).transpose(0, 1)
    gate = (torch.rand(batch, SETS, length, device=rig.device) > 0.5).float()
    return tokens, update, gate


def _outcome(form: Callable[..., Tensor], inputs: Tensors, grad: Tensor, dtype: torch.dtype) -> Tensors:
    """Result and gradients of one form in one type."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    out = form(*leaves)
    return (out, *torch.autograd.grad(out, leaves, grad.to(out.dtype)))


def _aggregation(
    rig: Rig, layer: CrossAttention, inputs: Tensors, size: str, what: str, form: str
) -> Iterator[Row]:  # fmt: skip
    def ours(cls: Tensor, tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        return layer(cls, _GatedSets(tokens, update, gate))

    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    parameters = list(layer.parameters())
    codes = [ours, rig.compile(ours), rig.compile(partial(written, layer))]
    with rig.autocast():
        outs = [code(*leaves) for code in (*codes, partial(written, layer))]
    exact = written(copy.deepcopy(layer).double(), *(leaf.double() for leaf in leaves))
    for out in outs[:2]:
        note = check(f"{what}, whole aggregation", [out], [outs[3]], [exact])
    grad = torch.randn_like(outs[0])
    del outs, exact

    def step(code: Callable[..., Tensor]) -> None:
        with rig.autocast():
            out = code(*leaves)
        torch.autograd.grad(out, [*leaves, *parameters], grad.to(out.dtype), allow_unused=True)

    eager, compiled, theirs = rig.time(*(partial(step, code) for code in codes))
    aim = {"ratio": 4} if form == "triton" else {}
    for name, timing in (("eager", eager), ("compiled", compiled)):
        label = f"aggregation with {what}, {name}, forward and backward"
        against = "torch.compile of its equations"
        yield rig.row("P19", label, size, "ms", timing.ms(), against, theirs.ms(), note=note, **aim)


def written(layer: CrossAttention, cls: Tensor, tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """The aggregation as the equations write it: token sets that exist, with keys and values of their own."""
    sets = gate[..., None].to(tokens.dtype) * (tokens[:, None] + update)
    return torch.stack([reference.attend(layer, cls, formed) for formed in sets.unbind(1)])


class _GatedSets(TokenSets):
    """Token sets ``gate * (tokens + update)`` in their factors."""

    def __init__(self, tokens: Tensor, update: Tensor, gate: Tensor) -> None:
        super().__init__(tokens)
        self.update, self.gate = update, gate

    def attend(self, query: Tensor) -> Tensor:
        """See `TokenSets.attend`."""
        return gated_attention(query, self.tokens, self.update, self.gate).transpose(0, 1)


def routing(rig: Rig) -> Iterator[Row]:
    """P20: K1 against the bytes that it must read and write, and against two plain forms, compiled."""
    form = "triton" if rig.kernel else "torch"
    if not rig.kernel:
        yield remark("P20", "K1 (triton)", ABSENT)
    for dim in rig.pick((768, 512), (16,)):
        yield from guarded("P20", f"routing, D {dim}", _routing(rig, dim, form))


def _routing(rig: Rig, dim: int, form: str) -> Iterator[Row]:
    batch, count = rig.pick((64, 128), (2, 6))
    torch.compiler.reset()
    torch.manual_seed(0)
    module = Route(dim, rig).to(rig.device)
    inputs = module.inputs(batch, count)
    leaves = [inputs[0], inputs[1], inputs[2], *module.parameters()]
    size = f"B {batch}, {M} modalities, {count} positions, {EXPERTS} experts, D {dim}, {str(rig.dtype)[6:]}"
    with use_backend(form):
        ours = partial(module.routes, route)
        routes = ours(*inputs)
        grad = torch.randn_like(routes.mask)
        grads = torch.autograd.grad(routes.mask, leaves, grad, retain_graph=True)
        note = _check_routes(module, routes, grads, grad, inputs)
        compiled = [rig.compile(partial(module.routes, plain)) for plain in (route_reference, route_torch)]
        with torch.no_grad():
            mine, *theirs = rig.time(*(partial(code, *inputs) for code in (ours, *compiled)))
        (backward,) = rig.time(lambda: torch.autograd.grad(routes.mask, leaves, grad, retain_graph=True))
        # what is compiled keeps no graph for a second backward pass: both passes are timed as one
        both, *theirs_both = rig.time(*(partial(_pass, code, inputs, leaves, grad) for code in (ours, *compiled)))
    read = nbytes(*inputs, *module.parameters())
    forward_floor, backward_floor = (
        1000 * (read + written) / rig.ceilings.bytes for written in (nbytes(*routes), nbytes(grad, *grads))
    )
    names = ("torch.compile of its equations", "torch.compile of its form in PyTorch")
    aims: list[dict[str, Any]] = [{"bound": 0.04, "ratio": 3} if form == "triton" else {}, {}]
    for name, other, aim in zip(names, theirs, aims, strict=True):
        pair = mine.ms(), name, other.ms()
        yield rig.row("P20", f"K1 ({form}), forward", size, "ms", *pair, forward_floor, note=note, **aim)
    yield rig.row("P20", f"K1 ({form}), backward", size, "ms", backward.ms(), floor=backward_floor)
    for name, other in zip(names, theirs_both, strict=True):
        floor = forward_floor + backward_floor
        yield rig.row("P20", f"K1 ({form}), both passes", size, "ms", both.ms(), name, other.ms(), floor)


def _pass(code: Callable[..., Any], inputs: Tensors, leaves: Sequence[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(code(*inputs).mask, leaves, grad)


def _check_routes(module: "Route", routes: Any, grads: Sequence[Tensor], grad: Tensor, inputs: Tensors) -> str:
    plain = module.routes(route_reference, *inputs)
    leaves = [*inputs[:3], *module.parameters()]
    plain_grads = torch.autograd.grad(plain.mask, leaves, grad)
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    twin = copy.deepcopy(module).double()
    exact = twin.routes(route_reference, *wide)
    exact_grads = torch.autograd.grad(exact.mask, [*wide[:3], *twin.parameters()], grad.double())
    near = (exact.gamma - wide[1][..., None]).abs() < 1e-4
    if not torch.equal(routes.mask.bool() | near, exact.mask.bool() | near):
        raise ValueError("K1: masks differ where scores are not at their thresholds")
    return check(
        "K1",
        (routes.gamma, routes.beta, *grads),
        (plain.gamma, plain.beta, *plain_grads),
        (exact.gamma, exact.beta, *exact_grads),
    )


class Attend(nn.Module):
    """`gated_attention` as a module."""

    def __init__(self, dim: int, rig: Rig) -> None:
        super().__init__()
        self.dim, self.rig = dim, rig

    def inputs(self, batch: int, count: int) -> Tensors:
        """Query rows, tokens, updates and masks; all are leaves."""
        query = torch.randn(batch, 8 * M, self.dim, dtype=self.rig.dtype, device=self.rig.device) * self.dim**-0.5
        rest = attention_inputs(self.rig, batch, M * count, self.dim)
        return tuple(tensor.requires_grad_() for tensor in (query, *rest))

    def forward(self, query: Tensor, tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        """Attend."""
        return gated_attention(query, tokens, update, gate)


class Route(nn.Module):
    """`route` as a module, with weights of the size that the model has."""

    def __init__(self, dim: int, rig: Rig) -> None:
        super().__init__()
        self.dim, self.hidden, self.rig = dim, max(1, dim // 4), rig
        narrow = 8 * M
        for name, size in (
            ("weight", (EXPERTS, M, self.hidden)), ("bias", (EXPERTS, M)), ("w1", (EXPERTS, narrow, M)),
            ("b1", (EXPERTS, narrow)), ("w2", (EXPERTS, M, narrow)), ("b2", (EXPERTS, M)),
        ):  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.randn(size) * size[-1] ** -0.5))

    def inputs(self, batch: int, count: int) -> Tensors:
        """Router activations, thresholds and tokens, which are leaves, then text, captioned and present."""
        new = partial(torch.randn, device=self.rig.device)
        # laid out as one product for each modality leaves it
        hidden = new(M, batch, count, EXPERTS, self.hidden, dtype=self.rig.dtype).movedim(0, 1)
        sigma = new(batch, EXPERTS, M)
        tokens = new(batch, M, count, self.dim, dtype=self.rig.dtype)
        text = new(batch, EXPERTS, M, self.dim)
        captioned = torch.rand(batch, EXPERTS, M, device=self.rig.device) > 0.1
        present = torch.rand(batch, M, device=self.rig.device) > 0.1
        return (*(x.requires_grad_() for x in (hidden, sigma, tokens)), text, captioned, present)

    def routes(
        self, form: Callable[..., Any], hidden: Tensor, sigma: Tensor, tokens: Tensor, text: Tensor, captioned: Tensor,
        present: Tensor,
    ) -> Any:  # fmt: skip
        """Masks, scores and cosines by one form."""
        mix = (self.w1, self.b1, self.w2, self.b2)
        return form(hidden, self.weight, self.bias, sigma, tokens, text, captioned, mix, present)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Masks."""
        return self.routes(route, *inputs).mask


def everywhere(rig: Rig) -> Iterator[Row]:
    """P24: each kernel under ``torch.compile(fullgraph=True)``, exported and reloaded, and in a CUDA graph."""
    form = "triton" if rig.kernel else "torch"
    if not rig.kernel:
        yield remark("P24", "K1, K2 (triton)", ABSENT)
    batch, count, dim = rig.pick((16, 128, 512), (2, 4, 16))
    tests: dict[str, Callable[[nn.Module, Callable[[int], Tensors], int], float]] = {
        "torch.compile(fullgraph), forward and backward": partial(_compiled, rig),
        "exported with a dynamic batch, reloaded": _exported,
        "in a CUDA graph, forward and backward": _graphed,
    }
    for kernel, kind in (("K1", Route), ("K2", Attend)):
        for name, test in tests.items():
            what = f"{kernel} ({form}), {name}"
            if test is _graphed and not rig.gpu:
                yield remark("P24", what, "skipped: needs a GPU")
                continue
            torch.manual_seed(0)
            module = kind(dim, rig).to(rig.device)
            with use_backend(form):
                size = f"B {batch}, D {dim}, {str(rig.dtype)[6:]}"
                rows = _agreement(rig, what, size, partial(test, module, partial(module.inputs, count=count), batch))
                yield from guarded("P24", what, rows)


def _agreement(rig: Rig, what: str, size: str, test: Callable[[], float]) -> Iterator[Row]:
    yield rig.row("P24", what, size, "relative deviation from eager", test(), bound=1e-2)


def _compiled(rig: Rig, module: nn.Module, inputs: Callable[[int], Tensors], batch: int) -> float:
    given = inputs(batch)
    torch.compiler.reset()
    return _deviation(_with_grads(rig.compile(module, fullgraph=True), given), _with_grads(module, given))


def _exported(module: nn.Module, inputs: Callable[[int], Tensors], batch: int) -> float:
    size, given = torch.export.Dim("batch", min=2, max=1024), inputs(batch)
    shapes = tuple({0: size} for _ in given)
    kept = (shapes,) if isinstance(module, Route) else shapes  # its forward takes *inputs
    program = torch.export.export(module, given, dynamic_shapes=kept)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded, other = torch.export.load(file).module(), inputs(batch + 3)
    return _deviation([loaded(*other)], [module(*other)])


def _graphed(module: nn.Module, inputs: Callable[[int], Tensors], batch: int) -> float:
    static, fresh = inputs(batch), inputs(batch)
    expected = _with_grads(module, fresh)
    graph, captured = captured_in_graph(lambda: _with_grads(module, static))
    with torch.no_grad():
        for place, value in zip(static, fresh, strict=True):
            place.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    return _deviation(captured, expected)


def captured_in_graph(code: Callable[[], Any]) -> tuple[Any, Any]:
    """Run code some times on a stream of its own, then capture it; return the CUDA graph and what code returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            code()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = code()
    return graph, out


def _with_grads(module: Callable[..., Tensor], inputs: Tensors) -> list[Tensor]:
    """Result and the gradients of all leaves among the inputs."""
    out = module(*inputs)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def _deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)
