"""Small networks that score tokens for an expert (Eq. 2)."""

import torch
from torch import Tensor, nn

ROUTINGS = ("specific", "shared")


class Router(nn.Module):
    """FC, activation, FC from features to one score, per modality or shared by all (NEXT, Eq. 2, Table 4).

    Args:
        dim: Width D of the features.
        num_modalities: Number M of modalities.
        hidden: Hidden width; by default ``dim // 4``.
        routing: ``"specific"`` has one network per modality, ``"shared"`` one for all.

    Raises:
        ValueError: If ``routing`` is unknown.
    """

    def __init__(self, dim: int, num_modalities: int = 3, hidden: int | None = None, routing: str = "specific") -> None:
        super().__init__()
        if routing not in ROUTINGS:
            raise ValueError(f"unknown routing {routing!r}; allowed: {', '.join(ROUTINGS)}")
        hidden = hidden or max(1, dim // 4)
        count = num_modalities if routing == "specific" else 1
        self.routing = routing
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1)) for _ in range(count)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, M, ..., D)`` to scores ``(B, M, ...)``."""
        if self.routing == "shared":
            return self.nets[0](features).squeeze(-1)
        return torch.stack([net(features[:, m]).squeeze(-1) for m, net in enumerate(self.nets)], dim=1)
