"""Which patches matter: attention of the class token, bright windows, and what to do with the rest (EDITOR)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._registry import register_layer


class SelectedTokens(NamedTuple):
    """What `TokenSelection` kept.

    Attributes:
        mask: Patches that any criterion keeps, bool ``(B, N)``; one mask for all modalities.
        attention: What each modality's heads keep, bool ``(B, M, N)``.
        bright: What the brightness keeps, bool ``(B, N)``.
    """

    mask: Tensor
    attention: Tensor
    bright: Tensor


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """Attention of the class token to all tokens through all blocks: the first row of ``A_L ... A_2 A_1``, by head.

    EDITOR's form (arXiv 2403.10254, Eq. 4): heads are not averaged, the identity of the residual is not added. The
    products are formed from the last map backwards, so that each is a row times a matrix.

    Args:
        maps: Attention maps ``(..., h, T, T)`` of the blocks, first to last; rows are queries.

    Returns:
        ``(..., h, T)`` in float32, or in float64 as the maps.
    """
    dtype = torch.promote_types(maps[-1].dtype, torch.float32)
    with torch.autocast(maps[-1].device.type, enabled=False):
        row = maps[-1][..., :1, :].to(dtype)
        for found in reversed(maps[:-1]):
            row = row @ found.to(dtype)
    return row.squeeze(-2)


def count_bright(brightness: Tensor, grid: tuple[int, int], present: Tensor | None = None) -> Tensor:
    """Count the pixels of the mean image above zero, in the window of each patch.

    EDITOR describes it as the energy of a Haar wavelet transform; its transform is followed by its own inverse, so that
    the mean image is all that is left.

    Args:
        brightness: Mean over the channels of each modality's normalised image, ``(B, M, H, W)``.
        grid: Rows and columns of patches; must divide H and W.
        present: Which modalities exist, bool ``(B, M)``; None for all. Only these are averaged.

    Returns:
        Counts ``(B, N)``, int64, row by row.
    """
    if present is None:
        mean = brightness.mean(1)
    else:
        mean = brightness.masked_fill(~present[..., None, None], 0).sum(1)  # its sign is that of the mean
    height, width = mean.shape[-2] // grid[0], mean.shape[-1] // grid[1]
    windows = mean.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))  # (B, rows, height, columns, width)
    return (windows > 0).sum((2, 4)).flatten(1)


@register_layer
class TokenSelection(nn.Module):
    """Keep the patches that a head of a modality attends to most, and the brightest windows (EDITOR, Sec. 3.2).

    Kept are, for each modality and head, the ``attention_keep`` patches of the largest rollout, and the ``bright_keep``
    windows with the most bright pixels, the first ones among equals. There is one mask for all modalities, the union;
    it carries no gradient. There are no parameters.

    Args:
        attention_keep: Patches that each head of each modality keeps.
        bright_keep: Windows that the brightness keeps.

    Raises:
        ValueError: If a number is negative, or both are zero.

    Example:
        >>> select = create_layer("TokenSelection", attention_keep=1, bright_keep=2)
        >>> select(torch.rand(2, 3, 4, 32), torch.randint(0, 9, (2, 32))).mask.shape
        torch.Size([2, 32])
    """

    def __init__(self, attention_keep: int = 2, bright_keep: int = 10) -> None:
        super().__init__()
        if min(attention_keep, bright_keep) < 0 or max(attention_keep, bright_keep) == 0:
            raise ValueError(
                f"attention_keep={attention_keep}, bright_keep={bright_keep}; neither may be negative, nor both zero"
            )
        self.attention_keep, self.bright_keep = attention_keep, bright_keep

    def limit(self, modalities: int, heads: int, patches: int) -> int:
        """The most patches that can be kept."""
        return min(patches, modalities * heads * self.attention_keep + self.bright_keep)

    def forward(self, rollout: Tensor, bright: Tensor, present: Tensor | None = None) -> SelectedTokens:
        """Select.

        Args:
            rollout: Attention of each modality's class token to the patches ``(B, M, h, N)``, see `attention_rollout`.
            bright: Bright pixels of each window ``(B, N)``, int64, see `count_bright`.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one selects nothing.
        """
        count = rollout.shape[-1]
        attention = _largest(rollout, min(self.attention_keep, count)).any(2)  # (B, M, N)
        if present is not None:
            attention = attention & present[..., None]
        place = torch.arange(count, device=bright.device)
        brightest = _largest(bright * count - place, min(self.bright_keep, count))
        return SelectedTokens(attention.any(1) | brightest, attention, brightest)


def _largest(score: Tensor, keep: int) -> Tensor:
    """Mask of the ``keep`` largest of the last axis."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter(-1, score.topk(keep, dim=-1).indices, True)


def background_loss(tokens: Tensor, mask: Tensor, present: Tensor | None = None) -> Tensor:
    """Sum over all pairs of modalities of the mean squared difference of their discarded patches (EDITOR, Eq. 12).

    What no criterion keeps is background, which shall look alike in all modalities. The mean is over all elements, kept
    ones counted as zero; a sample takes part in the pairs of which it has both modalities.

    Args:
        tokens: Patch tokens ``(B, M, N, D)``.
        mask: Kept patches, bool ``(B, N)``.
        present: Which modalities exist, bool ``(B, M)``; None for all.
    """
    rest = tokens.masked_fill(mask[:, None, :, None], 0)
    total = tokens.sum() * 0  # of one modality, which has no pair
    for a in range(tokens.shape[1]):
        for b in range(a + 1, tokens.shape[1]):
            error = (rest[:, a] - rest[:, b]).square().mean((1, 2))  # (B,)
            rows = torch.ones_like(error) if present is None else (present[:, a] & present[:, b]).to(error.dtype)
            total = total + (error * rows).sum() / rows.sum().clamp_min(1)
    return total
