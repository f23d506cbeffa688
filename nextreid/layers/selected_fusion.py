"""Transformer blocks over selected tokens, first of each modality, then of all together (EDITOR)."""

from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ._registry import register_layer


class FusedTokens(NamedTuple):
    """What `SelectedFusion` gives, zero where a modality is absent.

    Attributes:
        reduced: One vector for each modality, ``(B, M, D)``.
        cls: Class tokens behind the joint block and the last norm, ``(B, M, D)``.
        mean: Means of the kept patch tokens there, ``(B, M, D)``.
        own: Class tokens behind each modality's own block, ``(B, M, D)``.
    """

    reduced: Tensor
    cls: Tensor
    mean: Tensor
    own: Tensor


@register_layer
class SelectedFusion(nn.Module):
    """Let the kept tokens of each modality interact, then those of all modalities (EDITOR, Sec. 3.3).

    A block of each modality runs on its class token and kept patches, one more on the kept tokens of all modalities
    side by side. The result is ``W_m [c_m ; mean_n p_mn] + b_m`` of the class token and the mean of the kept patches.
    No linear layer of the blocks has a bias: a discarded token, which EDITOR sets to zero and leaves in place, stays
    zero and has no part in anything, so it is left out here.

    Args:
        dim: Width D.
        num_modalities: Number M of modalities.
        num_heads: Heads of the blocks; must divide ``dim``.
        mlp_ratio: Hidden width of the blocks' MLPs as a multiple of ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.

    Example:
        >>> fusion = create_layer("SelectedFusion", dim=64, num_heads=4)
        >>> fusion(torch.randn(2, 3, 64), torch.randn(2, 3, 32, 64), torch.rand(2, 32) > 0.5).reduced.shape
        torch.Size([2, 3, 64])
    """

    def __init__(self, dim: int, num_modalities: int = 3, num_heads: int = 12, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")

        def block() -> Block:
            return Block(dim, num_heads, mlp_ratio, qkv_bias=False, proj_bias=False, norm_layer=nn.LayerNorm)

        self.blocks = nn.ModuleList(block() for _ in range(num_modalities))
        self.joint = block()
        self.norm = nn.LayerNorm(dim)
        self.reduce = nn.ModuleList(_reduction(dim) for _ in range(num_modalities))
        for module in (*self.blocks.modules(), *self.joint.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(
        self, cls: Tensor, tokens: Tensor, mask: Tensor, present: Tensor | None = None, limit: int | None = None
    ) -> FusedTokens:
        """Fuse.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``.
            mask: Kept patches, bool ``(B, N)``.
            present: Which modalities exist, bool ``(B, M)``; None for all.
            limit: The most patches that the mask of a sample can keep, where that is known: the others are not computed
                with.
        """
        batch, modalities, count, dim = tokens.shape
        length = count if limit is None else min(limit, count)
        # Kept patches first, in their order.
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :length]
        kept = mask.gather(1, order)  # (B, L)
        patches = tokens.gather(2, order[:, None, :, None].expand(batch, modalities, length, dim))
        x = torch.cat([cls[:, :, None], patches], dim=2)  # (B, M, 1+L, D)
        keys = torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)
        x = torch.stack([block(x[:, m], attn_mask=_keys(keys)) for m, block in enumerate(self.blocks)], dim=1)
        own = x[:, :, 0]
        if present is None:
            every = keys.repeat(1, modalities)
        else:
            every = (keys[:, None] & present[..., None]).flatten(1)
        out = self.norm(self.joint(x.flatten(1, 2), attn_mask=_keys(every))).unflatten(1, (modalities, -1))
        weight = kept.to(out.dtype) / kept.sum(1, keepdim=True).clamp_min(1)
        fused, mean = out[:, :, 0], torch.einsum("bl,bmld->bmd", weight, out[:, :, 1:])
        joined = torch.cat([fused, mean], dim=-1)
        reduced = torch.stack([linear(joined[:, m]) for m, linear in enumerate(self.reduce)], dim=1)
        parts = FusedTokens(reduced, fused, mean, own)
        if present is None:
            return parts
        return FusedTokens(*(part.masked_fill(~present[..., None], 0) for part in parts))


def _reduction(dim: int) -> nn.Linear:
    linear = nn.Linear(2 * dim, dim)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out")
    nn.init.zeros_(linear.bias)
    return linear


def _keys(keys: Tensor) -> Tensor:
    """Mask of the logits, bool ``(B, 1, 1, T)``; a sample without any key has all, and numbers that nothing reads."""
    return (keys | ~keys.any(1, keepdim=True))[:, None, None]
