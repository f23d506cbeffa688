"""Pulling the modalities of a sample together, as whole images and patch by patch (Signal, AAAI 2026)."""

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer


class DeformableSampler(nn.Module):
    """Sample a map at a few positions that it chooses itself.

    A 1x1 convolution, then ``Conv(GELU(DWConv(GELU(Conv(.)))))`` give one number o for each of h x w cells; the map is
    read bilinearly at ``clamp(reference + factor tanh(o) / (size - 1), -1, 1)``, o moving both axes. References are
    ``2 (i + 0.5) / (size - 1) - 1``, so that the last ones lie on the map's edge.

    Args:
        dim: Width D.
        grid_size: Rows and columns of the map.
        kernel_size: Of the depth-wise convolution, and its stride; a smaller map takes a smaller one.
        offset_factor: Largest offset, in steps between references.
    """

    reference: Tensor
    reach: Tensor

    def __init__(self, dim: int, grid_size: Sequence[int], kernel_size: int = 4, offset_factor: float = 2.0) -> None:
        super().__init__()
        rows, columns = (min(kernel_size, size) for size in grid_size)
        kernel = rows, columns
        self.proj = nn.Conv2d(dim, dim, 1)
        self.offset = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, kernel, kernel_size, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, 1, 1, bias=False),
        )
        counts = [(size - k) // kernel_size + 1 for size, k in zip(grid_size, kernel, strict=True)]
        axes = [2 * (torch.arange(count) + 0.5) / max(count - 1, 1) - 1 for count in counts]
        reference = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, h, w): y, x
        reach = torch.tensor([offset_factor / max(count - 1, 1) for count in counts])[:, None, None]
        self.register_buffer("reference", reference, persistent=False)
        self.register_buffer("reach", reach, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``(B, D, H, W)`` to samples ``(B, D, h, w)``."""
        offset = self.offset(self.proj(maps)).tanh() * self.reach  # (B, 2, h, w)
        positions = (self.reference + offset).clamp(-1, 1).flip(1).movedim(1, -1)  # x, y
        return F.grid_sample(maps, positions.to(maps.dtype), align_corners=True)


@register_layer
class ModalityAlignment(nn.Module):
    """Two losses that align the modalities' patch tokens: volumes of mean tokens, and sampled tokens (Signal).

    Args:
        dim: Width D.
        grid_size: Rows and columns of patch tokens.
        num_modalities: Number M of modalities.

    Example:
        >>> alignment = create_layer("ModalityAlignment", dim=64, grid_size=(8, 4))
        >>> alignment.volume_loss(torch.randn(2, 3, 32, 64)).shape
        torch.Size([])
    """

    def __init__(self, dim: int, grid_size: Sequence[int], num_modalities: int = 3) -> None:
        super().__init__()
        self.grid_size = tuple(grid_size)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.samplers = nn.ModuleList(DeformableSampler(dim, grid_size) for _ in range(num_modalities))

    def volume_loss(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Contrast of volumes: those of one sample's modalities are small, those across samples large.

        With unit mean tokens f, ``V_ij = sqrt|det G|``, G the Gram matrix of the first modality of sample i and the
        other modalities of sample j; cross entropy of ``-V / temperature`` by rows and by columns, with smoothing 0.1,
        halved. Samples with all modalities take part.

        Args:
            tokens: Patch tokens ``(B, M, N, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all.
        """
        unit = F.normalize(tokens.mean(2).float(), dim=-1)
        with torch.autocast(unit.device.type, enabled=False):
            volume = gram_volumes(unit)
        complete = torch.ones_like(unit[:, 0, 0], dtype=torch.bool) if present is None else present.all(1)
        logits = -volume / self.temperature.float()
        return (_contrast(logits, complete) + _contrast(logits.mT, complete)) / 2

    def patch_loss(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean over pairs of modalities of the mean squared difference of their sampled tokens.

        Args:
            tokens: Patch tokens ``(B, M, N, D)``, row-major over the grid.
            present: Which modalities exist, bool ``(B, M)``; None for all.
        """
        rows, columns = self.grid_size
        maps = rearrange(tokens, "b m (h w) d -> m b d h w", h=rows, w=columns)
        sampled = [sampler(part) for sampler, part in zip(self.samplers, maps, strict=True)]
        total, pairs = tokens.sum() * 0, list(combinations(range(len(sampled)), 2))
        for a, b in pairs:
            error = (sampled[a] - sampled[b]).square().mean((1, 2, 3))  # (B,)
            both = torch.ones_like(error) if present is None else (present[:, a] & present[:, b]).to(error.dtype)
            total = total + (error * both).sum() / both.sum().clamp_min(1)
        return total / max(len(pairs), 1)


def gram_volumes(unit: Tensor) -> Tensor:
    """Volume spanned by the first vector of sample i and the other vectors of sample j.

    Args:
        unit: ``(B, M, D)``, float32 or float64.

    Returns:
        ``(B, B)``: ``sqrt|det G_ij|``.
    """
    batch, count, _ = unit.shape
    gram = (unit @ unit.mT).expand(batch, batch, count, count)  # of j
    across = torch.einsum("id,jmd->ijm", unit[:, 0], unit[:, 1:])  # (B, B, M-1)
    first = unit[:, 0].square().sum(-1)[:, None, None].expand(batch, batch, 1)
    row = torch.cat([first, across], dim=-1)  # (B, B, M): <first of i, first of i and others of j>
    below = torch.cat([across[..., None], gram[..., 1:, 1:]], dim=-1)  # (B, B, M-1, M)
    return torch.cat([row[..., None, :], below], dim=-2).det().abs().clamp_min(1e-12).sqrt()


def _contrast(logits: Tensor, rows: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy ``(B, B)`` of each row with its own column, among the samples that take part."""
    logs = logits.masked_fill(~rows, -torch.inf).log_softmax(-1).masked_fill(~rows, 0)
    each = -(1 - smoothing) * logs.diagonal() - smoothing * logs.sum(-1) / rows.sum().clamp_min(1)
    return each.masked_fill(~rows, 0).sum() / rows.sum().clamp_min(1)
