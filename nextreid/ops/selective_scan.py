"""The selective scan of a state space with a diagonal transition (Mamba, Gu and Dao 2023, Algorithm 2)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
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
    with _full_precision(x):
        y = _Scan.apply(inputs, steps, A.to(dtype).mT.contiguous(), enter, read)
    y = y.permute(1, 2, 0, 3)
    return (y if D is None else torch.addcmul(y, x.to(dtype), D[:, None].to(dtype))).to(x.dtype)


class _Scan(torch.autograd.Function):
    """The scan, time first: x and delta ``(L, B, G, E)``, A ``(G, N, E)``, B and C ``(L, B, G, N)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        state = x.new_zeros((*x.shape[1:-1], *a.shape[-2:]))  # (B, G, N, E)
        outputs, starts = [], []
        for part in _chunks(x):
            starts.append(state)
            _, states = _run(state, x[part], delta[part], a, b[part])
            outputs.append((c[part, ..., None, :] @ states)[..., 0, :])
            state = states[-1].clone()  # a slice would keep the states of the whole chunk
        ctx.save_for_backward(x, delta, a, b, c, torch.stack(starts) if any(ctx.needs_input_grad) else None)
        return torch.cat(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, starts = ctx.saved_tensors
        (grad_y,) = grads
        to_a, carry = torch.zeros_like(a), torch.zeros_like(starts[0])
        found: list[tuple[Tensor, ...]] = []
        with _full_precision(x):
            for number, part in reversed(list(enumerate(_chunks(x)))):
                start, inputs, steps = starts[number], x[part], delta[part]
                decay, states = _run(start, inputs, steps, a, b[part])
                grad = grad_y[part]
                # What a state owes to its own output, and to the state behind it.
                to_states = c[part, ..., None] * grad[..., None, :]  # (T, B, G, N, E)
                to_states[-1] += carry
                for t in range(len(inputs) - 2, -1, -1):
                    to_states[t].addcmul_(decay[t + 1], to_states[t + 1])
                carry = decay[0] * to_states[0]
                to_drive = (b[part, ..., None, :] @ to_states)[..., 0, :]  # of delta x
                to_b = (to_states @ (steps * inputs)[..., None])[..., 0]
                to_c = (states @ grad[..., None])[..., 0]
                to_rate = decay.mul_(to_states).mul_(torch.cat([start[None], states[:-1]]))  # of delta A
                to_a += (to_rate * steps[..., None, :]).sum((0, 1))
                to_delta = torch.addcmul((to_rate * a).sum(-2), to_drive, inputs)
                found.append((to_drive * steps, to_delta, to_b, to_c))
        to_x, to_delta, to_b, to_c = (torch.cat(parts[::-1]) for parts in zip(*found, strict=True))
        return to_x, to_delta, to_a, to_b, to_c


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
