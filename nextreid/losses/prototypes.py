"""Prototypes: one vector for each training identity, kept beside the weights, and the losses that read them."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def class_means(vectors: Tensor, pid: Tensor, num_classes: int, rows: Tensor | None = None) -> Tensor:
    """Mean vector of each identity.

    Args:
        vectors: ``(n, D)``.
        pid: ``(n,)`` int64 class indices in [0, C).
        num_classes: Number C of identities.
        rows: Samples that take part, bool ``(n,)``; None for all.

    Returns:
        ``(C, D)``, zero where an identity has no sample.
    """
    weight = torch.ones_like(vectors[:, :1]) if rows is None else rows[:, None].to(vectors.dtype)
    sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add_(0, pid, vectors * weight)
    counts = vectors.new_zeros(num_classes, 1).index_add_(0, pid, weight)
    return sums / counts.clamp_min(1)


@torch.no_grad()
def update_centers(
    centers: Tensor, vectors: Tensor, pid: Tensor, momentum: float = 0.2, rows: Tensor | None = None
) -> None:
    """Move the centre of each identity of a batch towards the mean of its vectors, in place.

    EDITOR (Zhang et al., CVPR 2024), object-centric refinement:
    ``c = momentum * c + (1 - momentum) * mean(f)``.

    Args:
        centers: ``(C, D)``.
        vectors: ``(B, D)``.
        pid: ``(B,)`` int64 class indices in [0, C), in any order.
        momentum: Share of the old centre that stays.
        rows: Samples that take part, bool ``(B,)``; None for all.
    """
    vectors = vectors.to(centers.dtype)
    means = class_means(vectors, pid, len(centers), rows)
    seen = torch.zeros(len(centers), dtype=torch.bool, device=pid.device)
    seen[pid if rows is None else pid[rows]] = True
    centers.copy_(torch.where(seen[:, None], momentum * centers + (1 - momentum) * means, centers))


@torch.no_grad()
def update_prototypes(
    prototypes: Tensor, vectors: Tensor, pid: Tensor, momentum: float = 0.1, rows: Tensor | None = None
) -> None:
    """Move unit prototypes towards unit vectors, sample by sample in the order of the batch, in place.

    ICPL-ReID (Li et al., TMM 2025), after Cluster Contrast (Dai et al., 2021): for each sample
    ``c = momentum * c + (1 - momentum) * f / |f|``, then ``c = c / |c|``.

    Args:
        prototypes: ``(C, D)``.
        vectors: ``(B, D)``, of any length.
        pid: ``(B,)`` int64 class indices in [0, C).
        momentum: Share of the old prototype that stays at each sample.
        rows: Samples that take part, bool ``(B,)``; None for all.
    """
    unit = F.normalize(vectors.to(prototypes.dtype), dim=1)
    if rows is not None:
        unit, pid = unit[rows], pid[rows]
    # The n-th samples of all identities move at once: identities do not touch each other.
    before = (pid[:, None] == pid).tril(-1).sum(1)
    for n in range(int(before.max()) + 1 if len(pid) else 0):
        ids = pid[before == n]
        prototypes[ids] = F.normalize(momentum * prototypes[ids] + (1 - momentum) * unit[before == n], dim=1)


def center_loss(vectors: Tensor, centers: Tensor, pid: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean squared difference of vectors from their identities' centres, which carry no gradient (EDITOR).

    Args:
        vectors: ``(B, D)``.
        centers: ``(C, D)``.
        pid: ``(B,)`` int64 class indices in [0, C).
        rows: Samples that take part, bool ``(B,)``; None for all.

    Returns:
        Scalar mean over elements; zero, still attached to the graph, when no sample takes part.
    """
    return _mean((vectors - centers.detach()[pid]).square().mean(1), rows)


def prototype_loss(
    vectors: Tensor, prototypes: Tensor, pid: Tensor, temperature: float = 0.05, rows: Tensor | None = None
) -> Tensor:
    """Cross entropy of unit vectors against the prototypes of all identities, which carry no gradient.

    ICPL-ReID's image-to-prototype loss, after Cluster Contrast (Dai et al., 2021).

    Args:
        vectors: ``(B, D)``, of any length; half precision is computed in float32.
        prototypes: ``(C, D)``, unit.
        pid: ``(B,)`` int64 class indices in [0, C).
        temperature: Divisor of the cosines.
        rows: Samples that take part, bool ``(B,)``; None for all.

    Returns:
        Scalar mean; zero, still attached to the graph, when no sample takes part.
    """
    logits = F.normalize(vectors.float() if vectors.dtype.itemsize < 4 else vectors, dim=1) @ prototypes.detach().T
    return _mean(F.cross_entropy(logits / temperature, pid, reduction="none"), rows)


def pairwise_contrast(a: Tensor, b: Tensor, rows: Tensor | None = None) -> Tensor:
    """Cross entropy in both directions of the products of two sets of vectors, whose n-th ones belong together.

    ICPL-ReID's losses between prototypes and texts: no temperature, nothing is normalised.

    Args:
        a: ``(n, D)``.
        b: ``(n, D)``.
        rows: Pairs that take part, bool ``(n,)``; None for all.

    Returns:
        Scalar, the sum of both directions; zero, still attached to the graph, when no pair takes part.
    """
    if rows is not None:
        a, b = a[rows], b[rows]
    if not len(a):
        return (a.sum() + b.sum()) * 0
    logits, target = a @ b.T, torch.arange(len(a), device=a.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def _mean(each: Tensor, rows: Tensor | None) -> Tensor:
    return each.mean() if rows is None else (each * rows).sum() / rows.sum().clamp_min(1)
