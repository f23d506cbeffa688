"""What modalities share and what they do not: one learned query for every subset of them (DeMo's HDM)."""

from itertools import chain, combinations

import torch
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer
from .experts import uniform_parameter

_MOST = 6  # 63 subsets


def subsets(count: int) -> list[tuple[int, ...]]:
    """Non-empty subsets of ``range(count)``, smaller ones first: (0,) (1,) (2,) (0, 1) (0, 2) (1, 2) (0, 1, 2)."""
    return list(chain.from_iterable(combinations(range(count), size) for size in range(1, count + 1)))


@register_layer
class HierarchicalDecoupling(nn.Module):
    """One multi-head attention with one learned query for each of the S = 2^M - 1 subsets of the modalities.

    ``h_s = MHA_s(q_s, X_s, X_s)``, where X_s are the tokens of the subset's modalities (DeMo, arXiv 2412.10650).

    The queries do not depend on the sample, so that neither keys nor values are formed: a head's logits are products
    of the tokens with one row, ``W_k^T q``, and its value projection follows the weighted sum. Keys have no bias, which
    would cancel in the softmax.

    Args:
        dim: Width D of the tokens.
        num_modalities: Number M of modalities, at most 6.
        num_heads: Heads of each attention; must divide ``dim``.
        drop: Dropout of the attention weights.

    Raises:
        ValueError: If there are too many modalities, or ``num_heads`` does not divide ``dim``.

    Example:
        >>> HierarchicalDecoupling(512)(torch.randn(2, 3, 129, 512)).shape
        torch.Size([2, 7, 512])
    """

    members: Tensor

    def __init__(self, dim: int, num_modalities: int = 3, num_heads: int = 8, drop: float = 0.1) -> None:
        super().__init__()
        if not 1 <= num_modalities <= _MOST:
            raise ValueError(f"a query per subset of modalities is for 1 to {_MOST} modalities, got {num_modalities}")
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        self.num_heads = num_heads
        found = subsets(num_modalities)
        count = len(found)
        members = torch.tensor([[m in subset for m in range(num_modalities)] for subset in found])
        self.register_buffer("members", members, persistent=False)  # (S, M)
        self.query = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        # Started as nn.MultiheadAttention is.
        bound = (6 / (4 * dim)) ** 0.5
        self.q_weight, self.k_weight, self.v_weight = (
            nn.Parameter(torch.empty(count, dim, dim).uniform_(-bound, bound)) for _ in range(3)
        )
        self.proj_weight = uniform_parameter(count, dim, dim, fan_in=dim)
        self.q_bias, self.v_bias, self.proj_bias = (nn.Parameter(torch.zeros(count, dim)) for _ in range(3))
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Decouple.

        Args:
            tokens: ``(B, M, L, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one's tokens are no keys.

        Returns:
            ``(B, S, D)``, zero for a subset without any modality that exists.
        """
        heads = self.num_heads
        q = torch.einsum("sd,sed->se", self.query, self.q_weight) + self.q_bias
        q = rearrange(q, "s (h e) -> s h e", h=heads) * (q.shape[-1] // heads) ** -0.5
        rows = torch.einsum("she,shed->shd", q, self.k_weight.unflatten(1, (heads, -1)))
        keys = self.members[None] if present is None else self.members & present[:, None]  # (B, S, M)
        wide = keys.repeat_interleave(tokens.shape[2], dim=-1)[:, :, None]  # (B, S, 1, M*L)
        flat = tokens.flatten(1, 2)  # (B, M*L, D)
        logits = rearrange(flat @ rows.flatten(0, 1).mT, "b l (s h) -> b s h l", h=heads)
        weights = logits.masked_fill(~wide, torch.finfo(logits.dtype).min).softmax(-1)
        weights = self.drop(weights.masked_fill(~wide, 0))
        context = (weights.flatten(1, 2) @ flat).unflatten(1, (-1, heads))  # (B, S, h, D)
        value = torch.einsum("bshd,shed->bshe", context, self.v_weight.unflatten(1, (heads, -1)))
        # Dropped weights do not sum to one, and what they miss of the values they miss of their bias.
        value = value + weights.sum(-1, keepdim=True) * self.v_bias.unflatten(1, (heads, -1))
        out = torch.einsum("bsd,sed->bse", value.flatten(2), self.proj_weight) + self.proj_bias
        return out if present is None else out * keys.any(-1, keepdim=True).to(out.dtype)
