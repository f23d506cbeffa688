"""Global vectors that attend to patch tokens at a few learned positions (IDEA's CDA)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer
from .attention import CrossAttention
from .experts import TokenSets


class AggregatedTokens(NamedTuple):
    """What the deformable aggregation returns.

    Attributes:
        queries: ``(B, Q, D)``.
        offsets: ``(B, 2, h, w)``, y and x, before tanh.
        positions: Where the maps were sampled, ``(B, h, w, 2)``, x and y in [-1, 1] from the first to the last patch.
    """

    queries: Tensor
    offsets: Tensor
    positions: Tensor


@register_layer
class DeformableAggregation(nn.Module):
    """One attention over patch tokens sampled where all modalities together decide (IDEA, arXiv 2503.10324).

    On the maps of the M modalities side by side, two 1x1 convolutions around a depth-wise one with a stride give an
    offset for each of ``h x w`` reference points::

        offset   = Conv(GELU(DWConv(GELU(Conv([P_1; ...; P_M])))))                            (2, h, w)
        position = clamp(reference + tanh(offset) factor / (size - 1), -1, 1)
        tokens   = bilinear samples of every P_m there                                        (M h w, D)
        out      = query + W_o softmax((W_q query)(W_k tokens)^T / sqrt(D)) W_v tokens

    Args:
        dim: Width D of the tokens.
        grid_size: Rows and columns of patch tokens.
        num_modalities: Number M of modalities.
        kernel_size: Of the depth-wise convolution; a smaller grid takes a smaller one.
        stride: Patches from one reference point to the next.
        offset_factor: Largest offset, in steps between reference points.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> aggregation = DeformableAggregation(512, (16, 8))
        >>> aggregation(torch.randn(2, 6, 512), torch.randn(2, 3, 128, 512)).positions.shape
        torch.Size([2, 7, 3, 2])
    """

    reference: Tensor
    reach: Tensor

    def __init__(
        self,
        dim: int,
        grid_size: Sequence[int],
        num_modalities: int = 3,
        kernel_size: int = 4,
        stride: int = 2,
        offset_factor: float = 5.0,
    ) -> None:
        super().__init__()
        if min(dim, num_modalities, kernel_size, stride, *grid_size) < 1:
            raise ValueError(
                f"sizes must be at least 1; got dim={dim}, grid_size={tuple(grid_size)}, "
                f"num_modalities={num_modalities}, kernel_size={kernel_size}, stride={stride}"
            )
        self.grid_size = rows, columns = tuple(grid_size)
        kernel = min(kernel_size, rows), min(kernel_size, columns)
        self.offset = nn.Sequential(
            nn.Conv2d(num_modalities * dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, kernel, stride, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, 2, 1, bias=False),
        )
        self.attention = CrossAttention(dim, num_heads=1)
        counts = [(size - k) // stride + 1 for size, k in zip((rows, columns), kernel, strict=True)]
        axes = [
            2 * (torch.arange(count) * stride + k // 2) / max(size - 1, 1) - 1
            for count, size, k in zip(counts, (rows, columns), kernel, strict=True)
        ]
        reference = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, h, w): y, x
        reach = torch.tensor([offset_factor / max(count - 1, 1) for count in counts])[:, None, None]
        self.register_buffer("reference", reference, persistent=False)
        self.register_buffer("reach", reach, persistent=False)

    def forward(self, queries: Tensor, tokens: Tensor, present: Tensor | None = None) -> AggregatedTokens:
        """Sample and attend.

        Args:
            queries: ``(B, Q, D)``.
            tokens: Patch tokens ``(B, M, N, D)``, row-major over the grid.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one's tokens must be zero; they
                are no keys.
        """
        rows, columns = self.grid_size
        maps = rearrange(tokens, "b m (h w) d -> b (m d) h w", h=rows, w=columns)
        offsets = self.offset(maps)  # (B, 2, h, w)
        positions = (self.reference + offsets.tanh() * self.reach).clamp(-1, 1)
        positions = positions.flip(1).movedim(1, -1)  # (B, h, w, 2): x, y
        sampled = F.grid_sample(maps, positions.to(maps.dtype), align_corners=True)
        sampled = rearrange(sampled, "b (m d) h w -> b 1 (m h w) d", m=tokens.shape[1])
        keys = None if present is None else present.repeat_interleave(sampled.shape[2] // tokens.shape[1], dim=1)
        return AggregatedTokens(queries + self.attention(queries, TokenSets(sampled, keys))[0], offsets, positions)
