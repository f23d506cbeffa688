"""Batch-hard triplet loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def batch_hard_triplet(
    embedding: Tensor, pid: Tensor, margin: float | None = None, rows: Tensor | None = None
) -> Tensor:
    """Triplet loss with the farthest positive and the nearest negative of each anchor in the batch.

    Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017, equation 5, on Euclidean
    distances of embeddings that are not normalised. Identities may have different numbers of samples; an anchor
    without another sample of its identity, or without a sample of another identity, is left out.

    Args:
        embedding: ``(B, F)``; half precision is computed in float32.
        pid: ``(B,)`` int64 identities.
        margin: None for the soft margin ``softplus(d_ap - d_an)``, else the hinge ``relu(d_ap - d_an + margin)``.
        rows: Samples that take part, as anchors, positives and negatives, bool ``(B,)``; None for all.

    Returns:
        Scalar mean over the anchors that take part; zero, still attached to the graph, when there are none.

    Raises:
        ValueError: If shapes do not fit or `margin` is negative.
    """
    if embedding.ndim != 2 or pid.shape != embedding.shape[:1]:
        raise ValueError(f"embedding must be (B, F) and pid (B,); got {tuple(embedding.shape)} and {tuple(pid.shape)}")
    if margin is not None and margin < 0:
        raise ValueError(f"margin must be None (soft margin) or at least 0; got {margin}")
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    same = pid[:, None] == pid
    positive = same & ~torch.eye(len(pid), dtype=torch.bool, device=pid.device)
    negative = ~same
    if rows is not None:
        both = rows[:, None] & rows
        positive, negative = positive & both, negative & both
    with torch.no_grad():
        squared = _squared_distances(embedding)
        farthest = squared.masked_fill(~positive, -torch.inf).argmax(dim=1)
        nearest = squared.masked_fill(~negative, torch.inf).argmin(dim=1)

    # only the chosen pairs need a gradient; vector_norm has a zero one where a pair coincides
    gap = torch.linalg.vector_norm(embedding - embedding[farthest], dim=1) - torch.linalg.vector_norm(
        embedding - embedding[nearest], dim=1
    )
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    takes_part = positive.any(dim=1) & negative.any(dim=1)
    return (loss * takes_part).sum() / takes_part.sum().clamp_min(1)


def _squared_distances(embedding: Tensor) -> Tensor:
    """Return ``(B, B)`` squared Euclidean distances, outside autocast so that they are not formed in half precision."""
    with torch.autocast(embedding.device.type, enabled=False):
        # distances do not change with the origin, and small coordinates cancel less
        centred = embedding - embedding.mean(dim=0)
        squares = centred.square().sum(dim=1)
        return squares[:, None] + squares - 2 * centred @ centred.T
