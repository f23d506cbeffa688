"""The training loss of re-identification: identity plus triplet over all heads, plus the method's own losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .identity import identity_loss
from .modalities import center_margin, modality_contrast, score_coherence
from .triplet import batch_hard_triplet


@dataclass(frozen=True)
class Criterion:
    """Weighted sum of identity loss and batch-hard triplet loss (NEXT, Eq. 12) over the heads of a model.

    Attributes:
        identity_weight: Weight of the identity loss; the equation has 1, the published code of related work 0.25.
        triplet_weight: Weight of the triplet loss.
        smoothing: Label smoothing of the identity loss.
        margin: None for the soft margin, else the hinge margin of the triplet loss.
        coherence_weight: Weight of `score_coherence` (HAMNet), for a model with a head for each modality.
        center_margin_weight: Weight of `center_margin` (IEEE), for a model with a head for each modality.
        center_margin: Squared distance that it keeps between the modalities' centers.
        contrast_weight: Weight of `modality_contrast`, for an embedding that is made of the modalities' parts.
        contrast_temperature: Its divisor of the cosines.
    """

    identity_weight: float = 0.25
    triplet_weight: float = 1.0
    smoothing: float = 0.1
    margin: float | None = None
    coherence_weight: float = 0.0
    center_margin_weight: float = 0.0
    center_margin: float = 1.0
    contrast_weight: float = 0.0
    contrast_temperature: float = 0.1

    def __call__(
        self,
        heads: Sequence[tuple[Tensor, Tensor, Tensor | None]],
        pid: Tensor,
        own: Mapping[str, Tensor] | None = None,
        parts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            heads: For each head its logits ``(B, C)``, the feature ``(B, F_i)`` before the neck, and the rows that take
                part (bool ``(B,)``, None for all); half precision is computed in float32.
            pid: ``(B,)`` int64 class indices.
            own: The model's own losses by name, already weighted.
            parts: What the embedding holds of each modality, ``(B, M, D)``, zero where it is absent; the contrast
                reads it.

        Returns:
            Scalars ``"total"``, ``"identity"`` and ``"triplet"`` (sums over the heads, not weighted), where they have a
            weight ``"coherence"``, ``"center_margin"`` and ``"contrast"`` (not weighted), and those of `own` by their
            names; all attached to the graph.

        Raises:
            ValueError: If there is no head, shapes do not fit, or a loss of the model's own has one of our names.
        """
        if not heads:
            raise ValueError("there is no head to train: build the model with num_classes, or call reset_classifier")
        own = own or {}
        if taken := {"total", "identity", "triplet", "coherence", "center_margin", "contrast"} & own.keys():
            raise ValueError(f"a model's own loss must not be named {', '.join(sorted(taken))}")
        identity = sum(identity_loss(logits, pid, self.smoothing, rows) for logits, _, rows in heads)
        triplet = sum(batch_hard_triplet(feature, pid, self.margin, rows) for _, feature, rows in heads)
        total = self.identity_weight * identity + self.triplet_weight * triplet + sum(own.values())
        losses: dict[str, Any] = {"total": total, "identity": identity, "triplet": triplet}
        logits, features, rows = zip(*heads, strict=True)
        if self.coherence_weight:
            losses["coherence"] = score_coherence(logits, rows)
            losses["total"] = losses["total"] + self.coherence_weight * losses["coherence"]
        if self.center_margin_weight:
            losses["center_margin"] = center_margin(features, pid, self.center_margin, rows)
            losses["total"] = losses["total"] + self.center_margin_weight * losses["center_margin"]
        if self.contrast_weight:
            if parts is None:
                raise ValueError("contrast_weight needs the modalities' parts of the embedding: pass parts=")
            present = (parts != 0).any(dim=-1)
            losses["contrast"] = modality_contrast(parts, pid, self.contrast_temperature, present)
            losses["total"] = losses["total"] + self.contrast_weight * losses["contrast"]
        return {**losses, **own}
