"""Small experts on slices of features, each weighted by an attention over the features (DeMo's ATMoE)."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer
from .batch_norm import StackedBatchNorm
from .experts import uniform_parameter
from .token_reduction import quick_gelu


class GatedFeatures(NamedTuple):
    """What the experts return.

    Attributes:
        features: ``(B, S, D)``.
        gates: ``(B, H, S)``; each head's sum to one.
    """

    features: Tensor
    gates: Tensor


@register_layer
class AttentionTriggeredExperts(nn.Module):
    """An expert for each of H slices of each of S features, and a gate for each expert (DeMo, arXiv 2412.10650).

    With ``x_sh`` the h-th slice of feature s, of width E = D / H::

        expert_sh = BN(QuickGELU(W_sh x_sh + b_sh))
        query     = W_q BN(QuickGELU(W [x_1; ...; x_S] + b)),  key_s = W_k x_s
        gate_hs   = softmax_s(query_h . key_sh / sqrt(E))
        out_sh    = gate_hs expert_sh

    All experts run; none is left out. In training the batch norms use the batch's statistics, of the rows that exist.

    Args:
        dim: Width D of a feature.
        num_features: Number S of features.
        num_heads: Number H of slices and gates; must divide ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.

    Example:
        >>> features, gates = AttentionTriggeredExperts(512, 7, 4)(torch.randn(2, 7, 512))
        >>> features.shape, gates.shape
        (torch.Size([2, 7, 512]), torch.Size([2, 4, 7]))
    """

    def __init__(self, dim: int, num_features: int = 7, num_heads: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        width = dim // num_heads
        self.num_heads = num_heads
        self.weight = uniform_parameter(num_features, num_heads, width, width, fan_in=width)
        self.bias = uniform_parameter(num_features, num_heads, width, fan_in=width)
        self.norm = StackedBatchNorm(num_features, num_heads, width)
        self.reduce = nn.Linear(num_features * dim, dim)
        self.reduce_norm = StackedBatchNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)

    def forward(self, features: Tensor, present: Tensor | None = None) -> GatedFeatures:
        """Run and weight the experts.

        Args:
            features: ``(B, S, D)``.
            present: Which features exist, bool ``(B, S)``; None for all. Absent ones must be zero; they get no gate.
        """
        there = None if present is None else present[..., None, None]
        slices = features.unflatten(-1, (self.num_heads, -1))  # (B, S, H, E)
        experts = self.norm(quick_gelu(torch.einsum("bshi,shoi->bsho", slices, self.weight) + self.bias), there)
        some = None if present is None else present.any(1, keepdim=True)
        query = self.q(self.reduce_norm(quick_gelu(self.reduce(features.flatten(1))), some))
        query = rearrange(query, "b (h e) -> b h e", h=self.num_heads)
        key = rearrange(self.k(features), "b s (h e) -> b h e s", h=self.num_heads)
        logits = (query[:, :, None] @ key).squeeze(2) * query.shape[-1] ** -0.5  # (B, H, S)
        if present is None:
            gates = logits.softmax(-1)
        else:
            absent = ~present[:, None]
            gates = logits.masked_fill(absent, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(absent, 0)
        return GatedFeatures((experts * gates.mT[..., None]).flatten(2), gates)
