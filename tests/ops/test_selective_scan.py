"""The selective scan agrees with its recurrence, one number at a time, and keeps the laws of one."""

import io
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nextreid.ops import selective_scan
from nextreid.ops.selective_scan import _in_blocks, _scan_op

sizes = st.tuples(*(st.integers(1, high) for high in (2, 3, 19, 3, 3)))


def arguments(size=(2, 2, 19, 3, 4), seed=0, dtype=torch.float64):
    """x, delta, A, B, C and D."""
    batch, groups, length, width, states = size
    generator = torch.Generator().manual_seed(seed)
    along = (batch, groups, length)
    shapes = [(*along, width), (*along, width), (groups, width, states), (*along, states), (*along, states)]
    x, delta, a, b, c, d = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (*shapes, (groups, width))
    )
    return [t.to(dtype).requires_grad_() for t in (x, delta.abs(), -a.exp(), b, c, d)]


def in_loops(x, delta, A, B, C, D):
    """The recurrence; whole vectors of states, since autograd goes through it."""
    rows = []
    for i in range(x.shape[0]):
        for g in range(x.shape[1]):
            for e in range(x.shape[3]):
                h, channel = torch.zeros(A.shape[-1], dtype=x.dtype), []
                for t in range(x.shape[2]):
                    step = delta[i, g, t, e]
                    h = torch.exp(step * A[g, e]) * h + step * x[i, g, t, e] * B[i, g, t]
                    channel.append(h @ C[i, g, t] + D[g, e] * x[i, g, t, e])
                rows.append(torch.stack(channel))
    return torch.stack(rows).unflatten(0, (x.shape[0], x.shape[1], x.shape[3])).transpose(2, 3)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(size=sizes, seed=st.integers(0, 99))
def test_it_is_the_recurrence_and_so_are_its_gradients(size, seed):
    inputs = arguments(size, seed)
    ours, loops = selective_scan(*inputs), in_loops(*inputs)
    torch.testing.assert_close(ours, loops)
    upstream = torch.cos(torch.arange(ours.numel(), dtype=torch.float64)).view(ours.shape)
    found, expected = (torch.autograd.grad(y, inputs, upstream) for y in (ours, loops))
    torch.testing.assert_close(found, expected)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cut=st.integers(0, 18), seed=st.integers(0, 99))
def test_no_token_sees_what_is_behind_it(cut, seed):
    inputs = [t.detach() for t in arguments(seed=seed)]
    changed = [t.clone() for t in inputs]
    for place in (0, 1, 3, 4):
        changed[place][:, :, cut:] = 0.5
    ours, theirs = selective_scan(*inputs), selective_scan(*changed)
    assert torch.equal(ours[:, :, :cut], theirs[:, :, :cut])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(absent=st.lists(st.booleans(), min_size=19, max_size=19).filter(lambda a: not all(a)))
def test_a_token_without_a_step_is_as_if_it_were_not_there(absent):
    x, delta, A, B, C, D = (t.detach() for t in arguments())
    there = ~torch.tensor(absent)
    masked = selective_scan(x, delta * there[:, None], A, B, C, D)[:, :, there]
    alone = selective_scan(*(t[:, :, there] for t in (x, delta)), A, *(t[:, :, there] for t in (B, C)), D)
    torch.testing.assert_close(masked, alone)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(scale=st.floats(-4, 4), seed=st.integers(0, 99))
def test_it_is_linear_in_its_inputs(scale, seed):
    x, *others = (t.detach() for t in arguments(seed=seed))
    other = torch.roll(x, 1, 2)
    both = selective_scan(x + scale * other, *others)
    torch.testing.assert_close(both, selective_scan(x, *others) + scale * selective_scan(other, *others))


def test_large_steps_forget_and_never_overflow():
    x, delta, A, B, C, D = (t.detach().float() for t in arguments())
    y = selective_scan(x, delta + 1e4, A, B, C, D)
    fresh = (delta + 1e4) * x * (B * C).sum(-1, keepdim=True) + D[:, None] * x
    torch.testing.assert_close(y, fresh, rtol=1e-4, atol=1e-2)


def test_half_precision_and_autocast_compute_in_float32():
    inputs = arguments(dtype=torch.float32)
    expected = selective_scan(*inputs)
    expected.sum().backward()
    gradients = [t.grad.clone() for t in inputs]
    for tensor in inputs:
        tensor.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*inputs)
        found.sum().backward()
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert all(torch.equal(t.grad, g) for t, g in zip(inputs, gradients, strict=True))
    half = [t.detach().bfloat16() for t in inputs]
    assert torch.equal(selective_scan(*half), selective_scan(*(t.float() for t in half)).bfloat16())


class _Peak(TorchDispatchMode):
    """The most bytes that tensors made inside of it took at a time."""

    def __init__(self):
        super().__init__()
        self.live, self.bytes = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            if storage.data_ptr() not in self.live:
                self.live[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage.data_ptr(), None)
            self.bytes = max(self.bytes, sum(self.live.values()))
        return out


def test_memory_does_not_grow_with_the_states_of_all_tokens():
    """Neither pass ever holds as much as three quarters of the states of its tokens."""
    size = (1, 1, 256, 32, 32)
    inputs = arguments(size)
    with _Peak() as peak:
        selective_scan(*inputs).sum().backward()
    assert 0 < peak.bytes < 0.75 * 8 * math.prod(size)


def test_it_is_one_node_of_a_compiled_graph():
    inputs = [t.detach().float().requires_grad_() for t in arguments()]
    time_first = [t.permute(2, 0, 1, 3).contiguous() if t.dim() == 4 else t.mT.contiguous() for t in inputs[:5]]
    torch.library.opcheck(_scan_op, [t.detach().requires_grad_() for t in time_first])
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    ours, eager = compiled(*inputs), selective_scan(*inputs)
    assert torch.equal(ours, eager)
    for found, expected in zip(*(torch.autograd.grad(y.cos().sum(), inputs) for y in (ours, eager)), strict=True):
        torch.testing.assert_close(found, expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(size=sizes)
def test_the_form_of_exported_graphs_is_the_same_scan(size):
    x, delta, a, b, c = (t.detach() for t in arguments(size)[:5])
    time_first = (t.permute(2, 0, 1, 3) for t in (x, delta, b, c))
    x1, delta1, b1, c1 = time_first
    ours = _in_blocks(x1, delta1, a.mT, b1, c1).permute(1, 2, 0, 3)
    torch.testing.assert_close(ours, selective_scan(x, delta, a, b, c))


def test_it_exports_with_any_batch():
    class Scan(torch.nn.Module):
        def forward(self, x, delta, a, b, c):
            return selective_scan(x, delta, a, b, c)

    inputs = [tuple(t.detach().float() for t in arguments((n, 2, 19, 3, 4), n)[:5]) for n in (2, 5)]
    size = {0: torch.export.Dim("batch", min=1, max=9)}
    program = torch.export.export(Scan(), inputs[0], dynamic_shapes=(size, size, None, size, size))
    assert not [node for node in program.graph.nodes if "nextreid" in str(node.target)]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(*inputs[1]), selective_scan(*inputs[1]))


@pytest.mark.parametrize("place", range(6))
def test_shapes_that_do_not_agree_are_named(place):
    inputs = [t.detach() for t in arguments()]
    inputs[place] = inputs[place][..., :-1]
    name = "delta is" if place == 0 else f"{'x delta A B C D'.split()[place]} is|B is"
    with pytest.raises(ValueError, match=name):
        selective_scan(*inputs)
    with pytest.raises(ValueError, match="no token"):
        selective_scan(*(t[:, :, :0] if t.dim() == 4 else t for t in inputs))
    with pytest.raises(ValueError, match=r"expected \(B, G, L, E\) and \(G, E, N\)"):
        selective_scan(inputs[0][0], *inputs[1:])
