"""Margins between the modalities of one identity, and between identities (HTT, Wang et al., AAAI 2024)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def modality_margin(parts: Tensor, pid: Tensor, margin: float = 1.0, present: Tensor | None = None) -> Tensor:
    """Keep the modalities' centres of each identity at one squared distance (HTT, after IEEE's multi-modal margin).

    ``sum_p max_{a,b} |margin - |c_pa - c_pb|^2|``, where ``c_pa`` is the mean over identity p's samples of their unit
    vectors of modality a.

    Args:
        parts: A vector of each modality, ``(B, M, D)``, of any length; half precision is computed in float32.
        pid: ``(B,)`` identities, in any order.
        margin: The squared distance.
        present: Which modalities exist, bool ``(B, M)``; None for all.

    Returns:
        Scalar; zero, still attached to the graph, where no identity shows two modalities.
    """
    unit, present = _unit(parts, present)
    loss = unit.sum() * 0
    for p in pid.unique():
        rows = pid == p
        weight = present[rows].to(unit.dtype)[..., None]  # (n, M, 1)
        seen = weight.sum(0)[:, 0] > 0
        centers = ((unit[rows] * weight).sum(0) / weight.sum(0).clamp_min(1))[seen]
        if len(centers) > 1:
            a, b = torch.triu_indices(len(centers), len(centers), 1, device=unit.device)
            loss = loss + (margin - (centers[a] - centers[b]).square().sum(1)).abs().max()
    return loss


def identity_margin(parts: Tensor, pid: Tensor, margin: float = 0.5, present: Tensor | None = None) -> Tensor:
    """Keep vectors of two identities, of any modality each, at one mean absolute distance (HTT's CIM).

    The mean over pairs of identities of the largest ``|margin - mean_d |f - g||`` over their unit vectors f and g.

    Args:
        parts: A vector of each modality, ``(B, M, D)``, of any length; half precision is computed in float32.
        pid: ``(B,)`` identities, in any order.
        margin: The mean absolute distance.
        present: Which modalities exist, bool ``(B, M)``; None for all.

    Returns:
        Scalar; zero, still attached to the graph, where there is one identity.
    """
    unit, present = _unit(parts, present)
    flat, owners, rows = unit.flatten(0, 1), pid.repeat_interleave(parts.shape[1]), present.flatten()
    flat, owners = flat[rows], owners[rows]
    gaps = (margin - torch.cdist(flat, flat, p=1) / flat.shape[1]).abs()  # (n, n)
    ids = owners.unique()
    if len(ids) < 2:
        return gaps.sum() * 0
    each = torch.stack([gaps[owners == p].amax(0) for p in ids])  # (P, n)
    pairs = torch.stack([each[:, owners == p].amax(1) for p in ids], dim=1)  # (P, P)
    a, b = torch.triu_indices(len(ids), len(ids), 1, device=unit.device)
    return pairs[a, b].mean()


def _unit(parts: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    unit = F.normalize(parts.float() if parts.dtype.itemsize < 4 else parts, dim=-1)
    return unit, torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device) if present is None else present
