"""Batch-normalised neck and identity classifier (BNNeck, Luo et al. 2019)."""

import torch
from torch import Tensor, nn

HEADS = ("joint", "expert")


class BNNeck(nn.Module):
    """Batch norm without a shift, then bias-free classifiers.

    Args:
        num_features: Width F of the embedding.
        num_classes: Number C of training identities.
        num_groups: The embedding is split into this many equal groups with a classifier each; 1 for a joint one.

    Raises:
        ValueError: If ``num_groups`` does not divide ``num_features`` or ``num_classes`` is below 1.
    """

    def __init__(self, num_features: int, num_classes: int, num_groups: int = 1) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, got {num_classes}")
        if num_features % num_groups:
            raise ValueError(f"cannot split {num_features} features into {num_groups} equal groups")
        self.num_classes, self.num_groups = num_classes, num_groups
        self.norm = nn.BatchNorm1d(num_features)
        self.norm.bias.requires_grad_(False)
        width = num_features // num_groups
        classifiers = [nn.Linear(width, num_classes, bias=False) for _ in range(num_groups)]
        for classifier in classifiers:
            nn.init.normal_(classifier.weight, std=0.001)
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map embeddings ``(B, F)`` to logits ``(B, C)``, or ``(B, G, C)`` with G > 1 groups."""
        groups = self.norm(embedding).chunk(self.num_groups, dim=1)
        logits = [classifier(group) for classifier, group in zip(self.classifiers, groups, strict=True)]
        return logits[0] if self.num_groups == 1 else torch.stack(logits, dim=1)
