"""Complementary reconstruction: tokens of a missing modality predicted from those that exist (TOP-ReID, Sec. 3.3)."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ._registry import register_layer


@register_layer
class ComplementaryReconstruction(nn.Module):
    """Predict every modality's tokens from every other's, and put predictions where a modality is missing.

    A transformer block for each ordered pair (s, t) maps modality s's tokens ``T_s`` to a prediction of ``T_t``. Where
    t is missing, the mean over the modalities s that exist takes its place: ``T_t = (1/n) sum_s block_{s,t}(T_s)``
    (TOP-ReID, arXiv 2312.09612).

    Args:
        dim: Width D.
        num_modalities: Number M of modalities; M (M - 1) blocks.
        num_heads: Heads of the blocks; must divide ``dim``.
        mlp_ratio: Hidden width of the blocks' MLPs as a multiple of ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.

    Example:
        >>> layer = create_layer("ComplementaryReconstruction", dim=64, num_heads=4)
        >>> tokens, present = torch.randn(2, 3, 129, 64), torch.tensor([[True, True, True], [True, False, True]])
        >>> layer.complete(tokens, layer(tokens), present).shape
        torch.Size([2, 3, 129, 64])
    """

    def __init__(self, dim: int, num_modalities: int = 3, num_heads: int = 12, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        self.num_modalities = num_modalities
        self.blocks = nn.ModuleDict(
            {
                f"{source}_{target}": Block(dim, num_heads, mlp_ratio, qkv_bias=False, norm_layer=nn.LayerNorm)
                for source in range(num_modalities)
                for target in range(num_modalities)
                if source != target
            }
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict.

        Args:
            tokens: ``(B, M, T, D)``, class tokens included where they are to be predicted too.

        Returns:
            ``(B, M, M, T, D)``: at [:, s, t] what modality s predicts of t; at [:, t, t] the tokens of t themselves.
        """
        every = range(self.num_modalities)
        parts = [
            self.blocks[f"{s}_{t}"](tokens[:, s]) if s != t else tokens[:, s] for s in every for t in every
        ]  # each (B, T, D)
        return torch.stack(parts, dim=1).unflatten(1, (self.num_modalities, self.num_modalities))

    def complete(self, tokens: Tensor, predicted: Tensor, present: Tensor) -> Tensor:
        """Put the mean prediction where a modality is missing; zeros in a sample without any.

        Args:
            tokens: ``(B, M, T, D)``.
            predicted: What `forward` gave, ``(B, M, M, T, D)``.
            present: Which modalities exist, bool ``(B, M)``.
        """
        weight = present.to(tokens.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)  # only read where the target itself is missing
        mean = torch.einsum("bs,bstnd->btnd", weight, predicted)
        return torch.where(present[:, :, None, None], tokens, mean)

    def loss(self, tokens: Tensor, predicted: Tensor, present: Tensor | None = None) -> Tensor:
        """Sum over all ordered pairs of the mean squared error of the predictions (TOP-ReID, Eq. 12).

        The gradient reaches predictions and targets. A sample takes part in the pairs of which it has both modalities.

        Args:
            tokens: ``(B, M, T, D)``.
            predicted: What `forward` gave, ``(B, M, M, T, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all.
        """
        error = (predicted - tokens[:, None]).square().mean((-2, -1))  # (B, M, M), zero on the diagonal
        if present is None:
            return error.mean(0).sum()
        both = (present[:, :, None] & present[:, None]).to(error.dtype)
        return ((error * both).sum(0) / both.sum(0).clamp_min(1)).sum()
