"""Losses for training an embedding."""

from .criterion import Criterion
from .identity import identity_loss
from .triplet import batch_hard_triplet

__all__ = ["Criterion", "batch_hard_triplet", "identity_loss"]
