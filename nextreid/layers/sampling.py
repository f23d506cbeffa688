"""Which tokens an expert keeps: hard masks with a straight-through gradient (Eq. 3, Table 8)."""

import torch
from torch import Tensor

SAMPLINGS = ("dynamic", "fixed", "topk", "all", "random")


def straight_through_mask(score: Tensor, threshold: Tensor | float, temperature: float = 1.0) -> Tensor:
    """Hard mask ``1[score > threshold]`` whose gradient is that of a sigmoid (NEXT, Eq. 3).

    The paper asks for a hard choice "while keeping the operation differentiable" and names no estimator; this is
    the straight-through one: the forward value is exactly 0 or 1, the backward pass is that of
    ``sigmoid((score - threshold) / temperature)``, for the score and for the threshold.

    Args:
        score: Routing scores, any shape.
        threshold: A number or a tensor that broadcasts against ``score``.
        temperature: Width of the sigmoid in the backward pass, in units of the score.

    Returns:
        A mask of zeros and ones with the shape and dtype of ``score``.
    """
    margin = score - threshold
    soft = torch.sigmoid(margin / temperature)
    hard = (margin > 0).to(score.dtype)
    # (soft - soft) is exactly zero, which ``hard + soft - soft.detach()`` is not once it is rounded.
    return hard + (soft - soft.detach())


def topk_threshold(score: Tensor, keep: float) -> Tensor:
    """Threshold that keeps the ``ceil(keep * N)`` largest of the last axis' N scores (Table 8, row B).

    Args:
        score: Routing scores ``(..., N)``.
        keep: Share of the tokens to keep, in (0, 1].

    Returns:
        Thresholds ``(..., 1)``, detached: the middle between the last score that stays and the first that goes.
        Tokens that tie there all go.
    """
    count = score.shape[-1]
    kept = min(count, max(1, int(-(-keep * count // 1))))
    ranked = score.detach().sort(dim=-1, descending=True).values
    if kept == count:
        return ranked[..., -1:] - 1.0
    return (ranked[..., kept - 1 : kept] + ranked[..., kept : kept + 1]) / 2


def random_mask(score: Tensor, keep: float) -> Tensor:
    """Mask of the ``ceil(keep * N)`` largest of the last axis' N scores, which are random numbers; no gradient.

    The control of the learned masks: as many tokens stay, but neither picture nor caption says which.

    Args:
        score: Distinct random numbers ``(..., N)``.
        keep: Share of the tokens to keep, in (0, 1].

    Returns:
        A mask of zeros and ones with the shape and dtype of ``score``.
    """
    return (score > topk_threshold(score, keep)).to(score.dtype)
