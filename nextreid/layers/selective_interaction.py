"""Class tokens that attend to the patches which they and the other modalities find alike (Signal, AAAI 2026)."""

import torch
from torch import Tensor, nn

from ._registry import register_layer
from .attention import CrossAttention
from .experts import TokenSets


@register_layer
class SelectiveInteraction(nn.Module):
    """Choose patches by class tokens, set the others to zero, attend to all of them (Signal's SIM).

    Modality m's patch n is kept if it is among the ``keep`` largest ``z_m . p_mn`` of its own class token, or among the
    ``keep`` (times the number of other modalities) largest ``(Q z_k + q) . (K p_mn)`` of another modality's class token
    over the patches of all but its own. Then, with post-norms,
    ``x = LN(z + Attention(z, kept patches and zeros))``, ``out = LN(x + FFN(x))``.

    A hard choice has no gradient: Q, q and K stay as they are drawn, in the authors' code too, and are buffers here.

    Args:
        dim: Width D.
        num_modalities: Number M of modalities.
        keep: Patches that a class token keeps of one modality.
        num_heads: Heads of the attention; must divide ``dim``.

    Raises:
        ValueError: If ``keep`` is below 1, or ``num_heads`` does not divide ``dim``.

    Example:
        >>> layer = create_layer("SelectiveInteraction", dim=64, keep=20)
        >>> layer(torch.randn(2, 3, 64), torch.randn(2, 3, 32, 64)).shape
        torch.Size([2, 3, 64])
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor

    def __init__(self, dim: int, num_modalities: int = 3, keep: int = 80, num_heads: int = 8) -> None:
        super().__init__()
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.num_modalities, self.keep = num_modalities, keep
        for name, shape in (("q_weight", (dim, dim)), ("q_bias", (dim,)), ("k_weight", (dim, dim))):
            self.register_buffer(name, torch.empty(shape).uniform_(-(dim**-0.5), dim**-0.5))
        self.attention = CrossAttention(dim, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    @torch.no_grad()
    def select(self, cls: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Mask of the patches that are kept, bool ``(B, M, N)``; arguments are those of `forward`."""
        batch, modalities, count, _ = tokens.shape
        if present is None:
            present = torch.ones(batch, modalities, dtype=torch.bool, device=tokens.device)
        own = (tokens @ cls[..., None]).squeeze(-1)  # (B, M, N)
        within = _largest(own, torch.full_like(own[..., :1], self.keep, dtype=torch.long))
        rows = (cls @ self.q_weight.mT + self.q_bias) @ self.k_weight  # (B, M, D)
        logits = torch.einsum("bkd,bmnd->bkmn", rows, tokens)
        itself = torch.eye(modalities, dtype=torch.bool, device=tokens.device)
        others = ~itself & present[:, None] & present[..., None]  # (B, k, m): k chooses of m
        logits = logits.masked_fill(~others[..., None], -torch.inf)
        budget = self.keep * others.sum(-1, keepdim=True)  # (B, M, 1)
        across = _largest(logits.flatten(2), budget).unflatten(2, (modalities, count)) & others[..., None]
        return (within | across.any(1)) & present[..., None]

    def forward(self, cls: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Interact.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one chooses nothing and is no key,
                and its part of the result is zero.

        Returns:
            ``(B, M, D)``.
        """
        kept = tokens * self.select(cls, tokens, present)[..., None].to(tokens.dtype)
        keys = None if present is None else present.repeat_interleave(tokens.shape[2], dim=1)  # (B, M*N)
        x = self.norm1(cls + self.attention(cls, TokenSets(kept.flatten(1, 2)[:, None], keys))[0])
        out = self.norm2(x + self.ffn(x))
        return out if present is None else out.masked_fill(~present[..., None], 0)


def _largest(score: Tensor, count: Tensor) -> Tensor:
    """Mask of the ``count (..., 1)`` largest of the last axis, the first ones among equals."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order, places < count)
