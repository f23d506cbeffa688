"""Losses for training an embedding."""

from .criterion import Criterion
from .identity import identity_loss
from .margins import identity_margin, modality_margin
from .modalities import center_margin, modality_contrast, score_coherence
from .prototypes import (
    center_loss,
    class_means,
    pairwise_contrast,
    prototype_loss,
    update_centers,
    update_prototypes,
)
from .proxies import ProxyLoss
from .triplet import batch_hard_triplet

__all__ = [
    "Criterion",
    "ProxyLoss",
    "batch_hard_triplet",
    "center_loss",
    "center_margin",
    "class_means",
    "identity_loss",
    "identity_margin",
    "modality_contrast",
    "modality_margin",
    "pairwise_contrast",
    "prototype_loss",
    "score_coherence",
    "update_centers",
    "update_prototypes",
]
