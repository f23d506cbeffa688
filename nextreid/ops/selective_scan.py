"""The selective scan of a state space with a diagonal transition (Mamba, Gu and Dao 2023, Algorithm 2)."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._backend import autocast_is_on

CHUNK = 8
"""Tokens whose states are held at a time. On CPUs the least time: more of them leave the cache."""


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """G selective scans side by side, each channel with N states of its own.

    For each channel e, with ``h_0 = 0``: ``h_t = exp(delta_t A_e) h_{t-1} + delta_t x_t B_t`` and
    ``y_t = <h_t, C_t> + D_e x_t``. A token whose ``delta`` is 0 leaves every state as it was: it has no part in the
    tokens behind it.

    The states of `CHUNK` tokens are held at a time, in the backward pass too, which computes them again from the state
    at the beginning of each chunk: the memory of ``(B, G, L, N, E)`` is never needed. The arithmetic is in float32 at
    least, also under autocast.

    Args:
        x: Inputs ``(B, G, L, E)``.
        delta: Time steps ``(B, G, L, E)``, not negative.
        A: Decay rates ``(G, E, N)``, negative.
        B: How an input enters the states ``(B, G, L, N)``.
        C: How states are read ``(B, G, L, N)``.
        D: Skip of the inputs ``(G, E)``; None for none.

    Returns:
        ``(B, G, L, E)``, in the type of ``x``.

    Raises:
        ValueError: If shapes do not agree or there is no token.

    Example:
        >>> x, delta = torch.randn(2, 1, 6, 4), torch.rand(2, 1, 6, 4)
        >>> B, C = torch.randn(2, 1, 6, 3), torch.randn(2, 1, 6, 3)
        >>> selective_scan(x, delta, -torch.rand(1, 4, 3), B, C).shape
        torch.Size([2, 1, 6, 4])
    """
    _check(x, delta, A, B, C, D)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # Time first: the recurrence reads whole slices. Channels last: they are many and the states few.
    inputs, steps, enter, read = (t.to(dtype).permute(2, 0, 1, 3).contiguous() for t in (x, delta, B, C))
    scan = _in_blocks if torch.compiler.is_exporting() else _scan_op if torch.compiler.is_compiling() else _Scan.apply
    with _full_precision(x):
        y = scan(inputs, steps, A.to(dtype).mT.contiguous(), enter, read)
    y = (y if isinstance(y, Tensor) else y[0]).permute(1, 2, 0, 3)
    return (y if D is None else torch.addcmul(y, x.to(dtype), D[:, None].to(dtype))).to(x.dtype)


def _forward(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The scan, time first: x and delta ``(L, B, G, E)``, a ``(G, N, E)``, b and c ``(L, B, G, N)``.

    Returns:
        ``y (L, B, G, E)``, and the state before each chunk, ``(L / CHUNK, B, G, N, E)``.
    """
    state = x.new_zeros((*x.shape[1:-1], *a.shape[-2:]))  # (B, G, N, E)
    outputs, starts = [], []
    for part in _chunks(x):
        starts.append(state)
        _, states = _run(state, x[part], delta[part], a, b[part])
        outputs.append((c[part, ..., None, :] @ states)[..., 0, :])
        state = states[-1].clone()  # a slice would keep the states of the whole chunk
    return torch.cat(outputs).contiguous(), torch.stack(starts)


def _backward(
    grad_y: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, a, b and c."""
    to_a, carry = torch.zeros_like(a), torch.zeros_like(starts[0])
    found: list[tuple[Tensor, ...]] = []
    for number, part in reversed(list(enumerate(_chunks(x)))):
        start, inputs, steps, grad = starts[number], x[part], delta[part], grad_y[part]
        decay, states = _run(start, inputs, steps, a, b[part])
        # What a state owes to its own output, and to the state behind it.
        to_states = c[part, ..., None] * grad[..., None, :]  # (T, B, G, N, E)
        to_states[-1] += carry
        for t in range(len(inputs) - 2, -1, -1):
            to_states[t].addcmul_(decay[t + 1], to_states[t + 1])
        carry = decay[0] * to_states[0]
        to_drive = (b[part, ..., None, :] @ to_states)[..., 0, :]  # of delta x
        to_b = (to_states @ (steps * inputs)[..., None])[..., 0]
        to_c = (states @ grad[..., None])[..., 0]
        to_rate = decay.mul_(to_states).mul_(torch.cat([start[None], states[:-1]]))  # of delta a
        to_a += (to_rate * steps[..., None, :]).sum((0, 1))
        to_delta = torch.addcmul((to_rate * a).sum(-2), to_drive, inputs)
        found.append((to_drive * steps, to_delta, to_b, to_c))
    to_x, to_delta, to_b, to_c = (torch.cat(parts[::-1]).contiguous() for parts in zip(*found, strict=True))
    return to_x, to_delta, to_a, to_b, to_c


class _Scan(torch.autograd.Function):
    """`_forward` and `_backward`, call by call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, starts = _forward(*inputs)
        ctx.save_for_backward(*inputs, starts)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        with _full_precision(grads[0]):
            return _backward(grads[0], *ctx.saved_tensors)


@torch.library.custom_op("nextreid::selective_scan", mutates_args=())
def _scan_op(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`_forward` as one node of a compiled graph, which would else hold every token of it."""
    return _forward(x, delta, a, b, c)


@torch.library.custom_op("nextreid::selective_scan_backward", mutates_args=())
def _scan_backward_op(
    grad_y: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _backward(grad_y, x, delta, a, b, c, starts)


@_scan_op.register_fake
def _(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((-(-x.shape[0] // CHUNK), *x.shape[1:-1], *a.shape[-2:]))


@_scan_backward_op.register_fake
def _(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in inputs[:-1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _op_backward(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return _scan_backward_op(grad_y.contiguous(), *ctx.saved_tensors)


_scan_op.register_autograd(_op_backward, setup_context=_setup_context)


def _in_blocks(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The scan for exported graphs: blocks of sqrt(L) tokens side by side, then what passes from block to block.

    It holds all states and twice the work, but a graph of some sqrt(L) nodes and no operator of our own.
    """
    length = x.shape[0]
    size = math.isqrt(length - 1) + 1
    count = -(-length // size)
    x, delta, b, c = (
        F.pad(t, (0, 0) * (t.dim() - 1) + (0, count * size - length)).unflatten(0, (count, size))
        for t in (x, delta, b, c)
    )  # a token without a step changes nothing
    decays = (delta[..., None, :] * a).exp().unbind(1)  # of each token (K, B, G, N, E)
    drives = (b[..., None] * (delta * x)[..., None, :]).unbind(1)
    local, passed = [drives[0]], [decays[0]]  # states as if a block were the first, and what is left of the one before
    for decay, drive in zip(decays[1:], drives[1:], strict=True):
        local.append(torch.addcmul(drive, decay, local[-1]))
        passed.append(decay * passed[-1])
    starts = [torch.zeros_like(local[0][0])]
    for end, rest in zip(local[-1].unbind(0)[:-1], passed[-1].unbind(0)[:-1], strict=True):
        starts.append(torch.addcmul(end, rest, starts[-1]))
    states = torch.addcmul(torch.stack(local, 1), torch.stack(passed, 1), torch.stack(starts)[:, None])
    return (c[..., None, :] @ states)[..., 0, :].flatten(0, 1)[:length]


def _chunks(x: Tensor) -> list[slice]:
    return [slice(begin, begin + CHUNK) for begin in range(0, x.shape[0], CHUNK)]


def _run(state: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states ``(T, B, G, N, E)`` of T tokens that follow a state ``(B, G, N, E)``."""
    decay = (delta[..., None, :] * a).exp_()
    states = b[..., None] * (delta * x)[..., None, :]
    for t in range(x.shape[0]):
        state = states[t].addcmul_(decay[t], state)
    return decay, states


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if autocast_is_on(device) else nullcontext()


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    if x.dim() != 4 or A.dim() != 3:
        raise ValueError(f"x is {tuple(x.shape)} and A {tuple(A.shape)}, expected (B, G, L, E) and (G, E, N)")
    (batch, groups, length, width), states = x.shape, A.shape[-1]
    if not length:
        raise ValueError("there is no token to scan: L is 0")
    along = (batch, groups, length)
    for name, tensor, axes, shape in (
        ("delta", delta, "(B, G, L, E)", (*along, width)),
        ("A", A, "(G, E, N)", (groups, width, states)),
        ("B", B, "(B, G, L, N)", (*along, states)),
        ("C", C, "(B, G, L, N)", (*along, states)),
        ("D", D, "(G, E)", (groups, width)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {axes} = {shape}")
