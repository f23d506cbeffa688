"""Cross-attention of a few queries over many tokens, with keys that may be absent."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention from queries ``(B, Q, D)`` to tokens ``(B, L, D)`` (the CA of Eq. 11).

    Keys have no bias: it would add the same number to every logit of a query and cancel in the softmax.

    Args:
        dim: Width D.
        num_heads: Number of heads; must divide ``dim``.
        drop: Dropout of the attention weights.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int = 8, drop: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        self.num_heads = num_heads
        self.drop = drop
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, tokens: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, D)``.
            tokens: Keys and values ``(B, L, D)``.
            key_mask: Which tokens exist, bool ``(B, L)``; None for all. A sample without any gets a zero context.

        Returns:
            ``(B, Q, D)``.
        """
        q = rearrange(self.q(query), "b q (h d) -> b h q d", h=self.num_heads)
        k = rearrange(self.k(tokens), "b l (h d) -> b h l d", h=self.num_heads)
        v = rearrange(self.v(tokens), "b l (h d) -> b h l d", h=self.num_heads)
        bias, some = None, None
        if key_mask is not None:
            some = key_mask.any(-1)
            # A softmax over nothing is NaN, in the backward pass too: such rows attend to all and are zeroed after.
            bias = (key_mask | ~some[:, None])[:, None, None, :]
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.drop if self.training else 0.0)
        if some is not None:
            context = context * some[:, None, None, None].to(context.dtype)
        return self.proj(rearrange(context, "b h q d -> b q (h d)"))

    def absorb(self, query: Tensor) -> Tensor:
        """AugmentParams the key projection to the queries: ``(B, Q, D)`` to ``(B, Q*heads, D)``.

        The product of a row with a token is the logit of that query, head and token, scale included, so that keys need
        not be formed.
        """
        q = rearrange(self.q(query), "b q (h e) -> h (b q) e", h=self.num_heads)
        k = self.k.weight.unflatten(0, (self.num_heads, -1))  # (h, e, d)
        rows = torch.bmm(q * q.shape[-1] ** -0.5, k)
        return rearrange(rows, "h (b q) d -> b (q h) d", b=query.shape[0])

    def release(self, context: Tensor, some: Tensor | None = None) -> Tensor:
        """Apply the value projection behind the weighted sums of tokens, then the last one.

        Args:
            context: Weighted sums of the tokens for the rows of `absorb`, ``(E, B, Q*heads, D)``.
            some: Which samples have any key, bool ``(E, B)`` or ``(B,)``; None for all. As in `forward`, the others
                have no value, not even the projection's bias.

        Returns:
            ``(E, B, Q, D)``.
        """
        sets, batch = context.shape[:2]
        heads = rearrange(context, "e b (q h) d -> h (e b q) d", h=self.num_heads)
        v = self.v.weight.unflatten(0, (self.num_heads, -1)).mT  # (h, d, e)
        value = rearrange(torch.bmm(heads, v), "h (e b q) d -> e b q (h d)", e=sets, b=batch) + self.v.bias
        if some is not None:
            value = value * some[..., None, None].to(value.dtype)
        return self.proj(value)
