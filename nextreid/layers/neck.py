"""Batch-normalised neck and identity classifier (BNNeck, Luo et al. 2019)."""

from torch import Tensor, nn


class BNNeck(nn.Module):
    """Batch norm, as a rule without a shift, then a bias-free classifier.

    Args:
        num_features: Width F of the feature.
        num_classes: Number C of training identities.
        bias: Whether the batch norm learns a shift (EDITOR).

    Raises:
        ValueError: If ``num_classes`` is below 1.
    """

    def __init__(self, num_features: int, num_classes: int, bias: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, got {num_classes}")
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(num_features)
        self.norm.bias.requires_grad_(bias)
        self.classifier = nn.Linear(num_features, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor) -> Tensor:
        """Map features ``(B, F)`` to logits ``(B, C)``."""
        return self.classifier(self.norm(feature))
