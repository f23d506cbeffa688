"""NEXT's head alone, at the sizes of the cost model, for the benchmarks that count and time it."""

from collections.abc import Callable

import torch
from nextreid.layers.fused import fused_head
from torch import Tensor, nn

from nextreid.layers import MMFA, SemanticSamplingExperts, StructureExperts

M, N = 3, 128


class Head(nn.Module):
    """Three semantic and three structure experts and their aggregation; `plain` as written, `fused` as it runs."""

    def __init__(self, dim: int, mlp_ratio: float, drop: float, experts: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.semantic = SemanticSamplingExperts(dim, experts, mlp_ratio=mlp_ratio, drop=drop)
        self.structure = StructureExperts(dim, experts, mlp_ratio=mlp_ratio, drop=drop)
        self.mmfa = MMFA(dim)

    def plain(self, cls: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        """Block after block, ``(B, 4 * M * D)``."""
        sampled = self.semantic(cls, tokens, text)
        return self.mmfa(cls, sampled.tokens, self.structure(tokens).tokens)

    def fused(self, cls: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        """The same from the fused head."""
        head = fused_head(cls, tokens, text, semantic=self.semantic, structure=self.structure, mmfa=self.mmfa)
        return head.groups.flatten(1)


def inputs(head: Head, batch: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
    """Class tokens, patch tokens and caption features; those that training differentiates are leaves."""
    dim, experts = head.dim, len(head.semantic.experts)
    sizes = ((batch, M, dim), (batch, M, N, dim), (batch, experts, M, dim))
    cls, tokens, text = (torch.randn(size, dtype=dtype, device=device) for size in sizes)
    return cls.requires_grad_(), tokens.requires_grad_(), text


def step(head: Head, form: Callable[..., Tensor], data: tuple[Tensor, ...]) -> Tensor:
    """One forward and backward pass."""
    head.zero_grad(set_to_none=True)
    for tensor in data:
        tensor.grad = None
    out = form(*data)
    out.float().square().mean().backward()
    return out
