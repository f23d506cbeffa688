"""Losses between the modalities of a sample: what one of them says, held to what the others say."""

from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor
from torch.nn import functional as F


def score_coherence(logits: Sequence[Tensor], rows: Sequence[Tensor | None] | None = None) -> Tensor:
    """HAMNet's coherence of the modalities' class scores (Li et al., AAAI 2020): the sum of ``1 - cos(s_a, s_b)``.

    Args:
        logits: For each modality ``(B, C)``; computed in float32 at least.
        rows: For each modality the samples that have it, bool ``(B,)``, None for all; a pair counts where both are.

    Returns:
        Scalar: the sum over pairs of modalities of the mean over samples. The authors sum over samples: their weight of
        0.001 with batches of 32 is 0.032 here.

    Raises:
        ValueError: If there are not two modalities at least, or shapes differ.

    Example:
        >>> score_coherence([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
        tensor(1.)
    """
    scores, there = _stack(logits, rows, "logits")
    cosines = F.normalize(scores, dim=-1) @ F.normalize(scores, dim=-1).mT  # (B, M, M)
    total = scores.new_zeros(())
    for a, b in combinations(range(len(logits)), 2):
        both = there[:, a] & there[:, b]
        total = total + ((1 - cosines[:, a, b]) * both).sum() / both.sum().clamp_min(1)
    return total


def center_margin(
    features: Sequence[Tensor], pid: Tensor, margin: float = 1.0, rows: Sequence[Tensor | None] | None = None
) -> Tensor:
    """IEEE's multi-modal margin loss (Wang et al., AAAI 2022): an identity's centers keep one distance to each other.

    For each identity of the batch the largest ``|margin - ||c_a - c_b||^2|`` over pairs of modalities a, b, where
    ``c_m`` is the mean of the identity's features in modality m.

    Args:
        features: For each modality ``(B, F)``; computed in float32 at least.
        pid: ``(B,)`` identities.
        margin: Squared distance that is kept.
        rows: For each modality the samples that have it, bool ``(B,)``, None for all.

    Returns:
        Scalar mean over the identities that have two modalities at least; zero, still attached to the graph, when there
        are none. The authors sum over the identities of a batch, two of them: their weight of 1 is 2 here.

    Raises:
        ValueError: If there are not two modalities at least, shapes differ, or the margin is negative.

    Example:
        >>> center_margin([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])], torch.tensor([7]))
        tensor(3.)
    """
    if margin < 0:
        raise ValueError(f"margin must be at least 0; got {margin}")
    stacked, there = _stack(features, rows, "features")
    same = (pid[:, None] == pid).to(stacked.dtype)
    counts = same @ there.to(stacked.dtype)  # (B, M), of each row's identity
    sums = torch.einsum("bc,cmf->bmf", same, stacked * there[..., None])
    centers = sums / counts.clamp_min(1)[..., None]
    worst = stacked.new_zeros(len(pid))
    counted = torch.zeros_like(pid, dtype=torch.bool)
    for a, b in combinations(range(len(features)), 2):
        both = (counts[:, a] > 0) & (counts[:, b] > 0)
        off = (margin - (centers[:, a] - centers[:, b]).square().sum(-1)).abs()
        worst, counted = torch.where(both, torch.maximum(worst, off), worst), counted | both
    share = counted / same.sum(1)  # a row's share of its identity
    return (worst * share).sum() / share.sum().clamp_min(1)


def modality_contrast(parts: Tensor, pid: Tensor, temperature: float = 0.1, present: Tensor | None = None) -> Tensor:
    """Supervised contrast across modalities: a vector finds its identity among the vectors of another modality.

    For each ordered pair of modalities a, b and each sample i the mean over the samples p of i's identity of
    ``-log(exp(f_ai f_bp / t) / sum_j exp(f_ai f_bj / t))``, of unit vectors f: CLIP's symmetric loss (Radford et al.,
    2021) with the positives of the supervised contrastive loss (Khosla et al., 2020, L_out).

    Args:
        parts: A vector of each modality, ``(B, M, D)``, of any length; half precision is computed in float32.
        pid: ``(B,)`` identities.
        temperature: Divisor t of the cosines.
        present: Which modalities exist, bool ``(B, M)``; None for all.

    Returns:
        Scalar mean over anchors and pairs of modalities that have a positive; zero, still attached to the graph, where
        no identity of the batch shows two modalities.

    Raises:
        ValueError: If there is one modality, shapes differ, or the temperature is not above 0.

    Example:
        >>> modality_contrast(torch.eye(2)[:, None].expand(2, 2, 2), torch.tensor([3, 7]), temperature=1.0)
        tensor(0.3133)
    """
    if parts.ndim != 3 or parts.shape[1] < 2 or pid.shape != parts.shape[:1]:
        raise ValueError(
            f"a contrast across modalities needs parts (B, M, D) with M of at least 2 and pid (B,); got "
            f"{tuple(parts.shape)} and {tuple(pid.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    unit = F.normalize(parts.to(torch.promote_types(parts.dtype, torch.float32)), dim=-1)
    there = torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device) if present is None else present
    same = pid[:, None] == pid
    total, count = unit.sum() * 0, there.sum() * 0
    for a, b in permutations(range(parts.shape[1]), 2):
        positive = same & there[:, b]
        anchors = there[:, a] & positive.any(1)
        cosines = unit[:, a] @ unit[:, b].T
        # not -inf: where no sample has b, nothing would be left to normalise by
        logits = (cosines / temperature).masked_fill(~there[:, b], torch.finfo(unit.dtype).min)
        found = logits.log_softmax(1).masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
        total, count = total - (found * anchors).sum(), count + anchors.sum()
    return total / count.clamp_min(1)


def _stack(parts: Sequence[Tensor], rows: Sequence[Tensor | None] | None, what: str) -> tuple[Tensor, Tensor]:
    """Stack the modalities' vectors to ``(B, M, F)``, with who has which, bool ``(B, M)``."""
    if len(parts) < 2 or len({part.shape for part in parts}) > 1 or parts[0].ndim != 2:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"a loss between modalities needs {what} (B, F) of one shape for two modalities at least, got {shapes}: "
            "build a model with a head for each modality, such as baseline_resnet50"
        )
    stacked = torch.stack(list(parts), dim=1)
    everyone = torch.ones(len(stacked), dtype=torch.bool, device=stacked.device)
    there = torch.stack([everyone if row is None else row for row in rows or [None] * len(parts)], dim=1)
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32)), there
