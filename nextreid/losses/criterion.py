"""The training loss of re-identification: identity plus triplet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .identity import identity_loss
from .triplet import batch_hard_triplet


@dataclass(frozen=True)
class Criterion:
    """Weighted sum of identity loss and batch-hard triplet loss (NEXT, equation 12).

    Attributes:
        identity_weight: Weight of the identity loss; the equation has 1, the published code of related work 0.25.
        triplet_weight: Weight of the triplet loss.
        smoothing: Label smoothing of the identity loss.
        margin: None for the soft margin, else the hinge margin of the triplet loss.
    """

    identity_weight: float = 0.25
    triplet_weight: float = 1.0
    smoothing: float = 0.1
    margin: float | None = None

    def __call__(self, embedding: Tensor, logits: Tensor, pid: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            embedding: ``(B, F)`` in front of the neck.
            logits: ``(B, C)``; or ``(B, H, C)`` for H heads, each of which reads one of H equal groups of features.
                Both losses are then averaged over the heads.
            pid: ``(B,)`` int64 class indices.

        Returns:
            ``{"total", "identity", "triplet"}`` scalars, all attached to the graph; the parts are not weighted.

        Raises:
            ValueError: If shapes do not fit, or F cannot be split into H groups.
        """
        identity = identity_loss(logits, pid, self.smoothing)
        heads = logits.shape[1] if logits.ndim == 3 else 1
        if embedding.shape[-1] % heads:
            raise ValueError(f"embedding has {embedding.shape[-1]} features, which {heads} heads cannot share equally")
        groups = embedding.chunk(heads, dim=-1)
        triplet = torch.stack([batch_hard_triplet(group, pid, self.margin) for group in groups]).mean()
        total = self.identity_weight * identity + self.triplet_weight * triplet
        return {"total": total, "identity": identity, "triplet": triplet}
