"""Losses for training an embedding."""

from .identity import identity_loss
from .reid import ReIDLoss
from .triplet import batch_hard_triplet

__all__ = ["ReIDLoss", "batch_hard_triplet", "identity_loss"]
