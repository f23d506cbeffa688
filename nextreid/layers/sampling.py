"""Which tokens an expert keeps: hard masks with a straight-through gradient (Eq. 3, Table 8)."""

from torch import Tensor

from ..ops import straight_through_mask

__all__ = ["SAMPLINGS", "random_mask", "straight_through_mask", "topk_threshold"]

SAMPLINGS = ("dynamic", "fixed", "topk", "all", "random")


def topk_threshold(score: Tensor, keep_ratio: float) -> Tensor:
    """Threshold that keeps the ``ceil(keep_ratio * N)`` largest of the last axis' N scores (Table 8, row B).

    Args:
        score: Routing scores ``(..., N)``.
        keep_ratio: Share of the tokens to keep_ratio, in (0, 1].

    Returns:
        Thresholds ``(..., 1)``, detached: the middle between the last score that stays and the first that goes.
        Tokens that tie there all go.
    """
    count = score.shape[-1]
    kept = min(count, max(1, int(-(-keep_ratio * count // 1))))
    ranked = score.detach().sort(dim=-1, descending=True).values
    if kept == count:
        return ranked[..., -1:] - 1.0
    return (ranked[..., kept - 1 : kept] + ranked[..., kept : kept + 1]) / 2


def random_mask(score: Tensor, keep_ratio: float) -> Tensor:
    """Mask of the ``ceil(keep_ratio * N)`` largest of the last axis' N scores, which are random numbers; no gradient.

    The baseline of the learned masks: as many tokens stay, but neither image nor caption says which.

    Args:
        score: Distinct random numbers ``(..., N)``.
        keep_ratio: Share of the tokens to keep_ratio, in (0, 1].

    Returns:
        A mask of zeros and ones with the shape and dtype of ``score``.
    """
    return (score > topk_threshold(score, keep_ratio)).to(score.dtype)
