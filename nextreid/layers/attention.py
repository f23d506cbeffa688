"""Cross-attention of a few queries over token sets, with keys that may be absent."""

import torch
from einops import rearrange
from torch import Tensor, nn

from .experts import TokenSets, as_token_sets, uniform_parameter


class CrossAttention(nn.Module):
    """Multi-head attention from queries ``(B, Q, D)`` to sets of tokens (the CA of Eq. 11).

    Keys and values are never formed: the key projection is moved to the queries, ``q (W_k z) = (W_k^T q) z``, and the
    value projection behind the weighted sums. Keys have no bias: it would add the same number to every logit of a query
    and cancel in the softmax.

    Args:
        dim: Width D.
        num_heads: Number of heads; must divide ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k_weight = uniform_parameter(dim, dim, fan_in=dim)
        self.v_weight = uniform_parameter(dim, dim, fan_in=dim)
        self.v_bias = uniform_parameter(dim, fan_in=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, sets: Tensor | TokenSets) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, D)``.
            sets: Keys and values ``(B, S, L, D)``, or token sets.

        Returns:
            ``(S, B, Q, D)``; a set without keys gives the projection of zero.
        """
        sets = as_token_sets(sets)
        q = rearrange(self.q(query), "b q (h e) -> h (b q) e", h=self.num_heads)
        k = self.k_weight.unflatten(0, (self.num_heads, -1))  # (h, e, d)
        # The product of a row with a token is the logit of that query and head, scale included.
        rows = rearrange(torch.bmm(q * q.shape[-1] ** -0.5, k), "h (b q) d -> b (q h) d", b=query.shape[0])
        context = sets.attend(rows)  # (S, B, Q*h, D)
        batch = context.shape[1]
        heads = rearrange(context, "s b (q h) d -> h (s b q) d", h=self.num_heads)
        v = self.v_weight.unflatten(0, (self.num_heads, -1)).mT  # (h, d, e)
        value = rearrange(torch.bmm(heads, v), "h (s b q) e -> s b q (h e)", b=batch, q=query.shape[1]) + self.v_bias
        if sets.keys is not None:  # a set without keys has no value, not even the projection's bias
            value = value * sets.keys.any(-1)[..., None, None].to(value.dtype)
        return self.proj(value)
