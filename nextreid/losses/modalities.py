"""Losses between the modalities' own heads: what one modality says of a sample, held to what the others say."""

from collections.abc import Sequence
from itertools import combinations

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
