"""NEXT's head alone, at the sizes of the cost model, for the benchmarks that count and time it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nextreid.layers import NEXTHead

from . import reference

M, N = 3, 128

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def build_head(dim: int, mlp_ratio: float, drop: float, experts: int = 3) -> NEXTHead:
    """The head with as many semantic as structure experts."""
    return NEXTHead(dim, M, num_semantic_experts=experts, num_structure_experts=experts, mlp_ratio=mlp_ratio, drop=drop)


def reference_form(head: NEXTHead) -> Form:
    """The head's embedding ``(B, 4 * M * D)`` by its equations."""
    return partial(_reference, head)


def _reference(head: NEXTHead, cls: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
    return reference.head(head, cls, tokens, text)["groups"].flatten(1)


def inputs(head: NEXTHead, batch: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
    """Class tokens, patch tokens and caption features; those that training differentiates are leaves."""
    dim, experts = head.dim, head.num_semantic_experts
    sizes = ((batch, M, dim), (batch, M, N, dim), (batch, experts, M, dim))
    cls, tokens, text = (torch.randn(size, dtype=dtype, device=device) for size in sizes)
    return cls.requires_grad_(), tokens.requires_grad_(), text


def step(head: NEXTHead, form: Form, data: tuple[Tensor, ...]) -> Tensor:
    """One forward and backward pass."""
    head.zero_grad(set_to_none=True)
    for tensor in data:
        tensor.grad = None
    out = form(*data)
    out.float().square().mean().backward()
    return out
